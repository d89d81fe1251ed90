"""Processes that hammer one rate limit together.

    with Hammers(4) as hammers:
        results = hammers.strike(Job(storage=server.url, rate="500/hour", name="door"))
        assert sum(result.permits for result in results) == 500

This file run as a module is one of these processes: it reads jobs and writes results, one line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeAlias

from resilient import Decision, RateLimiter

Strategy: TypeAlias = Literal["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]

_ROOT = Path(__file__).parents[2]
_READY = "ready\n"
# A decision on a shared machine may take as long as it likes: who counts is asked here, not how fast.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Job:
    """What each process does: *workers* tasks or threads make *attempts* each, for the *costs* in turn."""

    storage: str
    rate: str | list[str]
    name: str
    strategy: Strategy = "token-bucket"
    by: Literal["tasks", "threads"] = "tasks"
    workers: int = 8
    attempts: int = 25
    key: str = ""
    costs: list[int] = field(default_factory=lambda: [1])
    options: dict[str, Any] = field(default_factory=dict)

    def limiter(self) -> RateLimiter:
        """Return the limiter that the job is about."""
        options = {"decision_timeout": _PATIENCE} | self.options
        return RateLimiter(self.rate, name=self.name, storage=self.storage, strategy=self.strategy, **options)


@dataclass
class Result:
    """What one process was told: the costs of the calls that were allowed, denials, where it was decided."""

    allowed: list[int] = field(default_factory=list)
    denied: int = 0
    rungs: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def permits(self) -> int:
        """How many permits were given."""
        return sum(self.allowed)

    def add(self, decision: Decision, cost: int) -> None:
        """Note one decision."""
        self.rungs[decision.rung] = self.rungs.get(decision.rung, 0) + 1
        if decision.allowed:
            self.allowed.append(cost)
        else:
            self.denied += 1


class Hammers:
    """Keep *count* processes that do the same job at the same time."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._processes = [stack.enter_context(_process()) for _ in range(self._count)]
            # In the order they are closed: the pipes first, so that the processes end.
            self._running = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            _pipe(process.stdin).close()
        self._running.close()

    def strike(self, job: Job) -> list[Result]:
        """Have every process do *job*, beginning together, and return what each was told."""
        self._tell(json.dumps(asdict(job)))
        assert [line for line in self._hear() if line != _READY] == []
        self._tell("go")
        results = [Result(**json.loads(line)) for line in self._hear()]
        assert [result.errors for result in results if result.errors] == []
        return results

    def _tell(self, line: str) -> None:
        for process in self._processes:
            pipe = _pipe(process.stdin)
            pipe.write(line + "\n")
            pipe.flush()

    def _hear(self) -> list[str]:
        return [_pipe(process.stdout).readline() for process in self._processes]


def total(results: list[Result]) -> Counter[str]:
    """Add up permits, denials and rungs of all processes."""
    sums: Counter[str] = Counter()
    for result in results:
        sums.update(permits=result.permits, denied=result.denied, **result.rungs)
    return sums


def _process() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _do(job: Job) -> Result:
    limiter, result = job.limiter(), Result()
    # Connected, and the others too, before the first permit is taken.
    limiter.peek(job.key)
    _say(_READY)
    sys.stdin.readline()
    try:
        if job.by == "tasks":
            asyncio.run(_by_tasks(limiter, job, result))
        else:
            _by_threads(limiter, job, result)
    except Exception as exc:
        result.errors.append(repr(exc))
    return result


async def _by_tasks(limiter: RateLimiter, job: Job, result: Result) -> None:
    async def work(place: int) -> None:
        for attempt in range(job.attempts):
            cost = job.costs[(place + attempt) % len(job.costs)]
            result.add(await limiter.ahit(job.key, cost), cost)

    async with asyncio.TaskGroup() as group:
        for place in range(job.workers):
            group.create_task(work(place))


def _by_threads(limiter: RateLimiter, job: Job, result: Result) -> None:
    lock = threading.Lock()

    def work(place: int) -> None:
        try:
            for attempt in range(job.attempts):
                cost = job.costs[(place + attempt) % len(job.costs)]
                decision = limiter.hit(job.key, cost)
                with lock:
                    result.add(decision, cost)
        except Exception as exc:
            result.errors.append(repr(exc))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(job.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    for line in sys.stdin:
        _say(json.dumps(asdict(_do(Job(**json.loads(line))))) + "\n")
