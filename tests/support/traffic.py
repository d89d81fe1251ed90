"""Requests that keep flowing through a rate limiter, from threads and tasks, while a test does its worst.

Every decision is noted with the moments it began and ended. The machine is noisy, so a decision may be late
although the limiter did its part. Two controls, in the same process and under the same load, tell how much of
that is the machine's: a `Pulse`, for the pauses that fell into a decision, and `Waits`, for how late a thread
is woken that waited for nothing but the time. Linux tells besides how long the very thread that decided could
have run, and was not let: it has its own `Queue` to stand in. And where a decision waits for the server as
long as that takes, `Echoes` tell how long it takes to answer somebody else, at that very moment.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

from resilient import Decision, RateLimiter
from tests.support.waiting import wait_until

_STARTS_WITHIN = 10.0
_ENDS_WITHIN = 10.0


class Sample(NamedTuple):
    """One decision, and when it was asked for and told."""

    began: float
    ended: float
    key: str
    decision: Decision
    held_up: float = 0.0  # seconds in which its thread waited for a processor

    @property
    def seconds(self) -> float:
        """How long the decision took."""
        return self.ended - self.began


class Queue:
    """Tells how long the thread that made it has waited for a processor so far, where the system does."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def waited(self) -> float:
        """Return the seconds; always 0 where nothing tells."""
        if self._file < 0:
            return 0.0
        _running, waiting, _slices = os.pread(self._file, 100, 0).split()
        return int(waiting) / 1e9


class Pulse:
    """A thread that asks to be woken every *beat* seconds, and notes when it was.

    What it is late, beyond one beat, is time in which a thread of this process that could have run was not
    let: the processor was another's, or the interpreter's lock was. Where the system tells how much of it was
    the wait for a processor, that is left out: another thread has a wait of its own. The pulse does nothing
    else, and so cannot be held up by what it stands beside, such as an event loop that somebody blocks; but
    it cannot tell who has the lock. What a client library does in one go without letting others run counts as
    the machine's.
    """

    def __init__(self, beat: float = 0.002) -> None:
        self._beat = beat
        self._beats: list[tuple[float, float]] = []  # when, and how long it had waited for a processor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(_ENDS_WITHIN)

    def _run(self) -> None:
        with Queue() as queue:
            while not self._over.is_set():
                self._beats.append((time.perf_counter(), queue.waited()))
                time.sleep(self._beat)

    def lost(self, began: float, ended: float) -> float:
        """Return the seconds between two moments in which this process was not let run."""
        return sum(
            min(min(ended, late_until) - max(began, late_from), lost)
            for late_from, late_until, lost in self._pauses()
            if late_from < ended and began < late_until
        )

    def _pauses(self) -> Iterator[tuple[float, float, float]]:
        for (one, before), (following, waited) in itertools.pairwise(self._beats):
            # A beat and its like again for the ordinary cost of waking up: only what is beyond counts.
            lost = following - one - 2 * self._beat - (waited - before)
            if lost > 0:
                yield one + 2 * self._beat, following, lost


class Waits:
    """Threads that wait for *seconds*, again and again, as a decision does that runs out of time.

    What they are late, in the worst case but for one in a hundred, is what such a decision may be late.
    """

    def __init__(self, seconds: float = 0.05, threads: int = 2) -> None:
        self._seconds = seconds
        self._late: list[float] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="waits") for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_ENDS_WITHIN)

    def _run(self) -> None:
        never = threading.Event()
        while not self._over.is_set():
            began = time.perf_counter()
            never.wait(self._seconds)
            self._late.append(time.perf_counter() - began - self._seconds)

    def late(self) -> float:
        """Return the seconds by which 99 of 100 were late at most."""
        return statistics.quantiles(self._late, n=100, method="inclusive")[-1]


class Echoes:
    """A thread that has a server answer again and again, by calling *ask*, and notes when it did."""

    def __init__(self, ask: Callable[[], object], pace: float = 0.01) -> None:
        self._ask = ask
        self._pace = pace
        self._heard: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="echoes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(_ENDS_WITHIN)

    def _run(self) -> None:
        while not self._over.wait(self._pace):
            began = time.perf_counter()
            self._ask()
            self._heard.append((began, time.perf_counter()))

    def late(self, began: float, ended: float) -> float:
        """Return for how long, of the time between two moments, the same answer was waited for."""
        return max((min(ended, heard) - max(began, asked) for asked, heard in self._heard), default=0.0)


class Traffic:
    """Ask *limiter* for a permit of each of *keys* in turn, until told to stop.

    As many *threads* as *tasks* (in a loop of their own), each with *pace* seconds between two decisions.
    *echo* asks something of the same server: what that takes is no decision's fault.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        keys: Sequence[str],
        *,
        threads: int = 4,
        tasks: int = 4,
        pace: float = 0.01,
        echo: Callable[[], object] | None = None,
    ) -> None:
        self._limiter = limiter
        self._keys = keys
        self._workers = threads, tasks
        self._pace = pace
        self._over = threading.Event()
        self.samples: list[Sample] = []
        self.errors: list[BaseException] = []
        self._pulse, self._waits = Pulse(), Waits()
        self._echoes = None if echo is None else Echoes(echo)
        self._threads = [threading.Thread(target=self._guarded, args=(self._ask,)) for _ in range(threads)]
        self._threads.append(threading.Thread(target=self._guarded, args=(self._run_loop,)))

    def __enter__(self) -> Self:
        self._controls = ExitStack()
        self._controls.enter_context(self._pulse)
        self._controls.enter_context(self._waits)
        if self._echoes is not None:
            self._controls.enter_context(self._echoes)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_ENDS_WITHIN)
            if thread.is_alive():
                self.errors.append(TimeoutError(f"a decision still takes, after {_ENDS_WITHIN} s"))
        self._controls.close()

    def flow(self, seconds: float) -> None:
        """Let the requests flow for a while."""
        time.sleep(seconds)

    def use_up(self) -> None:
        """Let them flow until the store has no permit left for any key: on a busy machine they are few."""
        since = time.perf_counter()
        wait_until(lambda: self._denied(since) == {*self._keys}, "the permits are used up")

    def _denied(self, since: float) -> set[str]:
        late = (sample for sample in [*self.samples] if sample.began > since)
        return {one.key for one in late if one.decision.rung == "shared" and not one.decision.allowed}

    def admitted(self) -> Counter[str]:
        """Return how many decisions let a call through, by key."""
        return Counter(sample.key for sample in self.samples if sample.decision.allowed)

    def rungs(self, since: float = 0.0) -> Counter[str]:
        """Return how many decisions were made on each rung, of those asked for after *since*."""
        return Counter(sample.decision.rung for sample in self.samples if sample.began > since)

    def late(self, bound: float) -> list[str]:
        """Describe the decisions that took longer than *bound* and what the machine kept of it to itself."""
        waking = self._waits.late()
        return [
            f"{sample.seconds * 1000:.1f} ms, the machine's {(lost + waking) * 1000:.1f} included: {sample!r}"
            for sample in self.samples
            if sample.seconds > bound and sample.seconds > bound + waking + (lost := self._lost(sample))
        ]

    def _lost(self, sample: Sample) -> float:
        late = 0.0 if self._echoes is None else self._echoes.late(sample.began, sample.ended)
        return max(late, sample.held_up + self._pulse.lost(sample.began, sample.ended))

    def figures(self) -> str:
        """Return the spread of the decisions' times, for a person."""
        times = [sample.seconds * 1000 for sample in self.samples]
        cuts = statistics.quantiles(times, n=100)
        spread = f"p50 {cuts[49]:.2f}, p99 {cuts[98]:.2f}, p100 {max(times):.2f} ms"
        return f"{len(times)} decisions: {spread}; a bare wait was {self._waits.late() * 1000:.2f} ms late"

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            self.errors.append(exc)

    def _ask(self) -> None:
        with Queue() as queue:
            for key in itertools.cycle(self._keys):
                began, before = time.perf_counter(), queue.waited()
                decision = self._limiter.hit(key)
                held_up = queue.waited() - before
                self.samples.append(Sample(began, time.perf_counter(), key, decision, held_up))
                if self._over.wait(self._pace):
                    return

    def _run_loop(self) -> None:
        asyncio.run(self._ask_in_tasks())

    async def _ask_in_tasks(self) -> None:
        with Queue() as queue:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers[1]):
                    group.create_task(self._aask(queue))
            await self._limiter.aclose()

    async def _aask(self, queue: Queue) -> None:
        for key in itertools.cycle(self._keys):
            began, before = time.perf_counter(), queue.waited()
            decision = await self._limiter.ahit(key)
            held_up = queue.waited() - before
            self.samples.append(Sample(began, time.perf_counter(), key, decision, held_up))
            await asyncio.sleep(self._pace)
            if self._over.is_set():
                return
