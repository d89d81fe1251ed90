"""Crowds before one bulkhead: 32 threads and two event loops, threads taking turns every microsecond.

Nobody is ever let in beyond the limit, everybody gets through, and every call is in the books once. Those who
wait do not look again by themselves here: one that nobody wakes fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tests.stress.bulkheads import Inside, assert_whole, usable
from tests.stress.crowd import Crowd

from resilient import AIMD, Bulkhead, BulkheadFullError, Gradient, Priority, Vegas, current_priority, priority

LIMIT = 4
THREADS = 32
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
CALLS = 100_000 if SOAK else 10_000
ROUNDS = 5_000 if SOAK else 400
LONG = 40.0  # seconds; whoever waits for as long is stuck

pytestmark = [
    pytest.mark.usefixtures("restless", "one_look"),
    pytest.mark.timeout(600.0 if SOAK else 60.0),
]


def small(kind: type[Any]) -> Any:
    return kind(initial=LIMIT, min_limit=1, max_limit=2 * LIMIT, window=0.005, min_samples=5)


LIMITS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": LIMIT},
    "one": {"limit": 1},
    "newest-first": {"limit": LIMIT, "order": "newest-first"},
    "priorities": {"limit": LIMIT, "priority": "critical", "reserve": 0},
    "aimd": {"limit": small(AIMD)},
    "vegas": {"limit": small(Vegas)},
    "gradient": {"limit": small(Gradient)},
}


@pytest.mark.parametrize("options", LIMITS.values(), ids=LIMITS)
def test_everybody_gets_through_and_never_too_many_at_once(options: dict[str, Any]) -> None:
    """None is refused, none waits in vain, and the limit is reached, but not exceeded."""
    bulkhead, inside = Bulkhead("b", max_wait=LONG, **options), Inside()
    limit = options["limit"] if isinstance(options["limit"], int) else options["limit"].max_limit

    Crowd(bulkhead(inside.visit), bulkhead(inside.avisit), threads=THREADS, calls=CALLS).run()

    stats = bulkhead.stats()
    assert inside.most == limit if isinstance(options["limit"], int) else inside.most <= limit
    assert (stats.calls, len(inside.seen)) == (CALLS, CALLS)
    assert (stats.rejected, stats.gave_up, stats.put_out) == (0, 0, 0)
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)


class Ledger:
    """What became of the calls, counted by themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def note(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1


REFUSALS: dict[str, dict[str, Any]] = {
    "none-waits": {"limit": LIMIT},
    "short-queue": {"limit": LIMIT, "max_wait": LONG, "max_queue": 5},
    "short-wait": {"limit": 1, "max_wait": 0.0005},
    "adaptive": {"limit": small(AIMD), "max_wait": 0.0005, "max_queue": 20},
}


@pytest.mark.parametrize("options", REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_counted_once_each(options: dict[str, Any]) -> None:
    """Let in, refused at once or after a wait: the sums are exact."""
    bulkhead, inside, ledger = Bulkhead("b", **options), Inside(), Ledger()
    visit, avisit = bulkhead(inside.visit), bulkhead(inside.avisit)

    def call(_number: int) -> None:
        try:
            visit()
        except BulkheadFullError:
            ledger.note("refused")

    async def acall(_number: int) -> None:
        try:
            await avisit()
        except BulkheadFullError:
            ledger.note("refused")
            await asyncio.sleep(0)

    Crowd(call, acall, threads=THREADS, calls=CALLS).run()

    stats = bulkhead.stats()
    assert 0 < stats.calls == len(inside.seen)
    assert 0 < stats.rejected + stats.gave_up == ledger.counts["refused"]
    assert stats.calls + stats.rejected + stats.gave_up == CALLS
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)


MOST = {Priority.PROBE: 11, Priority.CRITICAL: 10, Priority.DEFAULT: 9, Priority.SHEDDABLE: 7}


def test_each_priority_keeps_to_its_share() -> None:
    """However many ask: of each priority and all that matter less, no more are in than may be."""
    bulkhead = Bulkhead("b", 10, max_wait=LONG, max_queue=1_000, priority=current_priority, reserve=1)
    books = {level: Inside() for level in Priority}

    @contextlib.contextmanager
    def staying(level: Priority) -> Iterator[None]:
        visitor = object()
        for other in Priority:
            if other <= level:
                books[other].come(visitor)
        yield
        for book in books.values():
            book.go(visitor)

    def call(number: int) -> None:
        level = Priority(number % 4)
        with priority(level), bulkhead.calling(), staying(level):
            pass

    async def acall(number: int) -> None:
        level = Priority(number % 4)
        async with priority(level), bulkhead.calling():
            with staying(level):
                await asyncio.sleep(0)

    Crowd(call, acall, threads=THREADS, calls=CALLS).run()

    assert {level: book.most for level, book in books.items() if book.most > MOST[level]} == {}
    assert bulkhead.stats().calls == CALLS
    assert_whole(bulkhead, 10, priority="critical")
    assert usable(bulkhead, priority="sheddable") == 7
    assert usable(bulkhead, priority="probe") == 11


def test_each_key_keeps_to_its_own_limit() -> None:
    """Twenty keys, two slots for each; nobody waits for another key's."""
    bulkhead = Bulkhead("b", 2, max_wait=LONG, key=lambda number: str(number % 20))
    books = [Inside() for _ in range(20)]

    @bulkhead
    def call(number: int) -> None:
        books[number % 20].visit()

    @bulkhead
    async def acall(number: int) -> None:
        await books[number % 20].avisit()

    Crowd(call, acall, threads=THREADS, calls=CALLS).run()

    assert max(book.most for book in books) <= 2
    assert [len(book.seen) for book in books] == [CALLS // 20] * 20
    assert (bulkhead.stats().calls, bulkhead.stats().keys) == (CALLS, 20)
    for number in range(20):
        assert_whole(bulkhead, 2, key=str(number))


class Resizer:
    """Has another limit all the time, in a thread of its own, while a crowd goes through."""

    def __init__(self, bulkhead: Bulkhead, limits: tuple[Any, ...]) -> None:
        self._bulkhead = bulkhead
        self._limits = itertools.cycle(limits)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.resized = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.0002):
            self._bulkhead.resize(next(self._limits))
            self.resized += 1


@pytest.mark.parametrize("kind", ["fixed", "mixed"])
def test_resizing_all_the_time_leaves_nobody_behind(kind: str) -> None:
    """Up and down, to adaptive limits and back: never more than the highest, and everybody gets through."""
    limits = {"fixed": (1, 8, 2, 6), "mixed": (1, small(Gradient), 2, small(AIMD))}[kind]
    bulkhead, inside = Bulkhead("b", LIMIT, max_wait=LONG), Inside()
    resizer = Resizer(bulkhead, limits)

    with resizer:
        Crowd(bulkhead(inside.visit), bulkhead(inside.avisit), threads=THREADS, calls=CALLS).run()

    assert resizer.resized > 10
    assert inside.most <= 8
    assert (bulkhead.stats().calls, len(inside.seen)) == (CALLS, CALLS)
    assert (bulkhead.stats().rejected, bulkhead.stats().gave_up) == (0, 0)
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)


def test_lower_limit_holds_for_all_calls_that_begin_after_it() -> None:
    """As soon as those have ended that had begun before."""
    bulkhead, inside, over = Bulkhead("b", 8, max_wait=LONG), Inside(), threading.Event()
    visit, calls = bulkhead(inside.visit), [0] * THREADS

    def caller(place: int) -> None:
        while not over.is_set():
            visit()
            calls[place] += 1

    threads = [threading.Thread(target=caller, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    over_the_limit = 0
    for _ in range(ROUNDS // 10):
        bulkhead.resize(8)
        _await_calls(calls)
        bulkhead.resize(2)
        _await_calls(calls)
        seen = len(inside.seen)
        _await_calls(calls)
        over_the_limit += max(inside.seen[seen:]) > 2
    over.set()
    for thread in threads:
        thread.join()

    assert over_the_limit == 0
    assert_whole(bulkhead, 2)


def _await_calls(calls: list[int]) -> None:
    """Wait until each of the callers has begun, and ended, a call."""
    before = [*calls]
    while any(now < then + 2 for now, then in zip(calls, before, strict=True)):
        time.sleep(0.0005)


class Churn:
    """Tasks that are cancelled at random, while they wait, hold a slot, or are just given one."""

    def __init__(self, bulkhead: Bulkhead, seed: int) -> None:
        self._work = bulkhead(self._hold)
        self._random = random.Random(seed)
        self.cancelled = self.done = 0

    async def _hold(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def run(self, rounds: int, tasks: int = 20) -> None:
        """Have so many *tasks* at once, so many times."""
        for _ in range(rounds):
            running = [asyncio.create_task(self._work(self._random.randrange(4))) for _ in range(tasks)]
            for task in running:
                await asyncio.sleep(0) if self._random.random() < 0.5 else None
                if self._random.random() < 0.5:
                    task.cancel()
            for result in await asyncio.gather(*running, return_exceptions=True):
                self._note(result)

    def _note(self, result: BaseException | None) -> None:
        assert result is None or isinstance(result, asyncio.CancelledError), result
        self.cancelled += result is not None
        self.done += result is None


@pytest.mark.parametrize("options", LIMITS.values(), ids=LIMITS)
async def test_cancelled_tasks_leave_their_slots(options: dict[str, Any]) -> None:
    """Twenty tasks for ten slots, cancelled at random: afterwards all ten can be used."""
    bulkhead = Bulkhead("b", max_wait=LONG, **options)
    bulkhead.resize(10) if options["limit"] == LIMIT else None
    churn = Churn(bulkhead, seed=3)

    await churn.run(ROUNDS)

    assert min(churn.cancelled, churn.done) > ROUNDS
    stats = bulkhead.stats()
    assert churn.done <= stats.calls <= stats.calls + stats.gave_up <= churn.done + churn.cancelled
    assert (stats.rejected, stats.waiting) == (0, 0)
    bulkhead.resize(10)
    assert_whole(bulkhead, 10)


def test_cancelled_tasks_of_two_loops_among_threads() -> None:
    """The same on two loops at once, with threads in the line and the limit moving."""
    bulkhead, inside = Bulkhead("b", LIMIT, max_wait=LONG), Inside()
    churns = [Churn(bulkhead, seed) for seed in range(2)]
    loops = [threading.Thread(target=asyncio.run, args=(churn.run(ROUNDS // 2),)) for churn in churns]
    for loop in loops:
        loop.start()

    with Resizer(bulkhead, (2, 7, 1, 5)):
        Crowd(bulkhead(inside.visit), bulkhead(inside.avisit), calls=CALLS // 5).run()
        for loop in loops:
            loop.join()

    stats = bulkhead.stats()
    assert len(inside.seen) == CALLS // 5
    assert all(churn.done + churn.cancelled == ROUNDS // 2 * 20 for churn in churns)
    assert stats.rejected == 0
    # Cancelled in the line, cancelled with a slot in hand, or before they asked for one.
    done, cancelled = (sum(getattr(churn, what) for churn in churns) for what in ("done", "cancelled"))
    assert CALLS // 5 + done <= stats.calls <= stats.calls + stats.gave_up <= CALLS // 5 + done + cancelled
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)
