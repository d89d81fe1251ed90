"""Pools with too few connections: how long borrowers wait, and how many connections a moment's rush makes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from time import perf_counter
from typing import Any, Self

from bench import resources
from bench.subjects.model import Work
from bench.subjects.pools import PATIENCE, TASKED, THREADED, Build, Library, Setting

BORROWERS = 64
CONNECTIONS = 8
HOLD = 0.005
"""Seconds for which each borrower has a connection."""

AHEAD = BORROWERS // CONNECTIONS - 1
"""Borrowers before one on the same connection, where all want one and go by turns."""

TURNS = 20
"""How often each borrower has a turn in a sample, if all go by turns."""

FIRST = 2
"""The turns after which the line is as long as it gets; waits that ended before are not counted."""

RUSH = 50
RUSH_HOLD = 0.002
RUSH_CONNECTIONS = 5, 10
"""Connections that are open when so many borrowers come at once, and the most there may be."""

CONNECTING = 0.15
"""Seconds that connecting takes. The figures of the rush are those of HikariCP's and psycopg's own tests."""

THREADS = f"pool, {BORROWERS} threads on {CONNECTIONS} connections"
TASKS = f"async pool, {BORROWERS} tasks on {CONNECTIONS} connections"
IDEAL = "ideal"
"""The row that says how long the holds of those before take, if passing a connection on costs nothing."""

P50, P99, LONGEST = "median wait", "p99 wait", "longest wait"
RUSHED = f"connections made for a rush of {RUSH}"


@dataclass(frozen=True, slots=True)
class Queue:
    """Borrowers in front of one library's pool.

    Args:
        title: What they are and how many connections there are.
        name: The library.
        package: Its distribution.
        build: Makes the pool; None: there is none, and each borrower waits for those before it by itself.
        awaited: The borrowers are tasks.
    """

    title: str
    name: str
    package: str | None
    build: Build | None
    awaited: bool

    @property
    def rushed(self) -> str:
        """Return the family in which its connections are counted."""
        return f"{'async ' * self.awaited}pool: {RUSHED}"

    @property
    def ids(self) -> frozenset[str]:
        """Return `family/name` of each of its figures, by which targets and `--only` speak of them."""
        families = [f"{self.title}: {figure}" for figure in (P50, P99, LONGEST)]
        return frozenset(f"{family}/{self.name}" for family in (*families, *[self.rushed] * bool(self.build)))


def _queues(title: str, libraries: Sequence[Library], *, awaited: bool) -> Iterator[Queue]:
    yield Queue(title, IDEAL, None, None, awaited)
    for name, package, build in libraries:
        yield Queue(title, name, package, build, awaited)


QUEUES: tuple[Queue, ...] = (
    *_queues(THREADS, THREADED, awaited=False),
    *_queues(TASKS, TASKED, awaited=True),
)


@dataclass(slots=True)
class Waited:
    """What became of the borrowers of one queue.

    Args:
        p50: Nanoseconds, one for each round, as in *p99* and *longest*.
        made: Connections made for a rush, one for each round.
        waits: How many waits there were, in the last round.
    """

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    waits: int = 0

    def note(self, waits: Sequence[float]) -> None:
        """Keep what a sample came to, in seconds."""
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        self.p50.append(cuts[49] * 1e9)
        self.p99.append(cuts[98] * 1e9)
        self.longest.append(max(waits) * 1e9)
        self.waits = len(waits)


def measure(
    chosen: Sequence[Queue], rounds: int, turns: int
) -> tuple[dict[Queue, Waited], dict[Queue, Exception]]:
    """Return what became of each of the *chosen* queues, and what went wrong with the others.

    A sample of each is taken in turn, and then again; each has a pool of its own.

    Args:
        chosen: The queues.
        rounds: Samples of each, >= 1.
        turns: How long a sample lasts, > `FIRST`: so often has each borrower a turn.
    """
    found = {queue: Waited() for queue in chosen}
    failed: dict[Queue, Exception] = {}
    for _ in range(rounds):
        for queue, waited in found.items():
            if queue not in failed:
                try:
                    waited.note(_line_up(queue, turns))
                    if queue.build:
                        waited.made.append(_rush(queue))
                except Exception as error:
                    failed[queue] = error
    return {queue: waited for queue, waited in found.items() if queue not in failed}, failed


def _line_up(queue: Queue, turns: int) -> list[float]:
    """Return the seconds that each borrower waited each time, in a line that is as long as it gets."""
    lasts, skips = (BORROWERS / CONNECTIONS * HOLD * count for count in (turns, FIRST))
    waits: list[tuple[float, float]] = []

    def noted(asked: float) -> None:
        waits.append(((got := perf_counter()), got - asked))

    with _Players(queue, Setting(most=CONNECTIONS), HOLD, noted) as players:
        began = players.play(CONNECTIONS if queue.build is None else BORROWERS, lasts)
    return [wait for got, wait in waits if got >= began + skips]


def _rush(queue: Queue) -> int:
    """Return how many connections a rush makes beyond those that are there."""
    least, most = RUSH_CONNECTIONS
    begun: list[None] = []
    made: list[None] = []

    def connect() -> None:
        begun.append(None)
        time.sleep(CONNECTING)
        made.append(None)

    async def connect_async() -> None:
        begun.append(None)
        await asyncio.sleep(CONNECTING)
        made.append(None)

    setting = Setting(most=most, least=least, connect=connect_async if queue.awaited else connect)
    with _Players(queue, setting, RUSH_HOLD, lambda _: None) as players:
        players.play(1, 0.0)
        players.wait_until(lambda: len(made) >= least)
        players.play(RUSH, 0.0)
        players.wait_until(lambda: len(made) == len(begun))
    return len(begun) - least


class _Players:
    """Borrowers of one pool, each in a thread or a task.

    Args:
        queue: Whose pool.
        setting: How it is made.
        hold: Seconds for which each has a connection.
        noted: Told of each connection that is got when it was asked for.
    """

    def __init__(self, queue: Queue, setting: Setting, hold: float, noted: Callable[[float], None]) -> None:
        self._awaited = queue.awaited
        self._runner = asyncio.Runner()
        self._guarded = self._build(queue.build, setting, hold, noted)

    def _build(
        self, build: Build | None, setting: Setting, hold: float, noted: Callable[[float], None]
    ) -> Work:
        def holds(asked: Any) -> None:
            noted(asked)
            time.sleep(hold)

        async def holds_async(asked: Any) -> None:
            noted(asked)
            await asyncio.sleep(hold)

        def waits(asked: Any) -> None:
            for _ in range(AHEAD):
                time.sleep(hold)
            noted(asked)

        async def waits_async(asked: Any) -> None:
            for _ in range(AHEAD):
                await asyncio.sleep(hold)
            noted(asked)

        if build is None:
            return waits_async if self._awaited else waits

        async def built() -> Any:
            made = build(holds_async, setting)
            return await made if isinstance(made, Awaitable) else made

        guarded: Work = self._runner.run(built()) if self._awaited else build(holds, setting)
        return guarded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runner.run(resources.close())
        self._runner.close()

    def play(self, many: int, seconds: float) -> float:
        """Let so *many* borrow for so many *seconds*, each once at least; return when they began."""
        if self._awaited:
            return self._runner.run(self._play_tasks(many, seconds))
        began: list[float] = []
        start = Barrier(many, action=lambda: began.append(perf_counter()))

        def one() -> None:
            start.wait()
            while True:
                self._guarded(perf_counter())  # type: ignore[arg-type]  # what they hand on is a time
                if perf_counter() >= began[0] + seconds:
                    return

        with ThreadPoolExecutor(many) as threads:
            jobs = [threads.submit(one) for _ in range(many)]
        for job in jobs:
            job.result()
        return began[0]

    async def _play_tasks(self, many: int, seconds: float) -> float:
        began = perf_counter()

        async def one() -> None:
            while True:
                await self._guarded(perf_counter())  # type: ignore[arg-type]
                if perf_counter() >= began + seconds:
                    return

        async with asyncio.TaskGroup() as tasks:
            for _ in range(many):
                tasks.create_task(one())
        return began

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Let time pass until it is *there*."""
        give_up_at = perf_counter() + PATIENCE
        while not there():
            if perf_counter() > give_up_at:
                raise TimeoutError("connections that were asked for are not made")
            self._runner.run(asyncio.sleep(CONNECTING / 10))
