"""Many threads at the same thing at once: what a lock costs depends on who else wants it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from time import perf_counter

from bench.subjects.model import Work


@dataclass(slots=True)
class Together:
    """A loop that many threads run at once.

    Args:
        loop: What each of them does.
        threads: How many, >= 2.
        longest: The most that *loop* returned to any of them in the last run.
    """

    loop: Callable[[Work, int], float]
    threads: int
    longest: float = 0.0

    def __call__(self, call: Work, calls: int) -> float:
        """Return the seconds from the common start to the end of the last, divided by the number of threads.

        That is what the calls of one of them took. Starting the threads is not in it.
        """
        started: list[float] = []
        start = Barrier(self.threads, action=lambda: started.append(perf_counter()))

        def one() -> tuple[float, float]:
            start.wait()
            result = self.loop(call, calls)
            return perf_counter(), result

        # None of them is idle before the last has started: each job has a thread of its own.
        with ThreadPoolExecutor(self.threads) as pool:
            jobs = [pool.submit(one) for _ in range(self.threads)]
        done = [job.result() for job in jobs]
        self.longest = max(result for _, result in done)
        return (max(end for end, _ in done) - started[0]) / self.threads
