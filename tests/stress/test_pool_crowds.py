"""Crowds before one pool: 32 threads or 500 tasks that fail, give up, are cancelled, forget what they have.

Every connection is accounted for by itself: made once and closed once, never more open than there may be,
never in two hands. Threads take turns every microsecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.stress.pools import (
    SOAK,
    Book,
    Link,
    LostError,
    aassert_all_closed,
    aassert_whole,
    assert_all_closed,
    assert_whole,
    close_in_a_turn,
    in_threads,
)
from tests.support.waiting import wait_until

from resilient import (
    AsyncConnectionPool,
    ConnectionPool,
    ConnectionReclaimedError,
    ConnectionReturnedError,
    PoolClosedError,
    PoolTimeoutError,
)

SIZE = 8
THREADS = 32
TASKS = 500
CHECKOUTS = 1_000_000 if SOAK else 6_000
LONG = 60.0  # seconds; whoever waits for as long is stuck
SOON = 0.001
SEED = 5

pytestmark = [
    pytest.mark.usefixtures("restless", "reports_off"),
    pytest.mark.timeout(3_000.0 if SOAK else 60.0),
]


@pytest.fixture
def reports_off(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands forget what they borrow; that this is logged is tried elsewhere."""
    caplog.set_level("CRITICAL", "resilient")


class UpstreamError(Exception):
    """What a borrower's own work raises."""


class Knot:
    """Holds something in a circle, so that only the collector finds that nobody needs it."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.circle = self


class Habits:
    """What borrowers do, at random but the same each time, and how often each was done."""

    def __init__(self, *habits: tuple[int, Callable[[Any], Any]]) -> None:
        self._weights = [weight for weight, _ in habits]
        self._habits = [habit for _, habit in habits]
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    def choices(self, place: int, number: int) -> Iterator[Callable[[Any], Any]]:
        """Return *number* of them, for the borrower in this *place*."""
        drawn = random.Random(SEED + place).choices(self._habits, self._weights, k=number)
        with self._lock:
            self.done.update(habit.__name__ for habit in drawn)
        return iter(drawn)


def uses(pool: ConnectionPool[Link]) -> None:
    with pool.connection(LONG) as conn:
        conn.use()


def takes_and_returns(pool: ConnectionPool[Link]) -> None:
    conn = pool.getconn(LONG)
    conn.use()
    pool.putconn(conn)


def fails(pool: ConnectionPool[Link]) -> None:
    with contextlib.suppress(UpstreamError), pool.connection(LONG) as conn:
        conn.use()
        raise UpstreamError


def breaks(pool: ConnectionPool[Link]) -> None:
    with contextlib.suppress(LostError), pool.connection(LONG):
        raise LostError


def is_impatient(pool: ConnectionPool[Link]) -> None:
    with contextlib.suppress(PoolTimeoutError), pool.connection(random.choice((0.0, SOON))) as conn:
        conn.use()


def forgets(pool: ConnectionPool[Link]) -> None:
    conn = pool.getconn(LONG)
    conn.use()


def forgets_in_a_circle(pool: ConnectionPool[Link]) -> None:
    Knot(pool.getconn(LONG))


def forgets_a_block(pool: ConnectionPool[Link]) -> None:
    def stream() -> Iterator[None]:
        with pool.connection(LONG) as conn:
            conn.use()
            yield

    Knot(begun := stream())
    next(begun)


def returns_twice(pool: ConnectionPool[Link]) -> None:
    conn = pool.getconn(LONG)
    pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError):
        conn.use()
    with pytest.raises(ConnectionReturnedError):
        pool.putconn(conn)


THREADS_HABITS = (
    (60, uses),
    (20, takes_and_returns),
    (10, fails),
    (1, breaks),
    (10, is_impatient),
    (3, forgets),
    (1, forgets_in_a_circle),
    (1, forgets_a_block),
    (2, returns_twice),
)


@contextlib.contextmanager
def collecting(pool: Any) -> Iterator[None]:
    """Have rounds made and what lies about in circles found as often as that can be."""
    over = threading.Event()

    def attend() -> None:
        while not over.wait(0.002):
            pool._core.round()
            gc.collect(0)

    attendant = threading.Thread(target=attend)
    attendant.start()
    try:
        yield
    finally:
        over.set()
        attendant.join()


POOLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reset": {"reset": lambda conn: conn.use()},
    "checked": {"check": lambda conn: conn.use(), "check_after_idle": 0.0005, "check_every": 0.01},
    "short-lived": {"max_lifetime": 0.02, "max_idle": 0.005, "min_size": 2, "jitter": 1.0},
}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_thirty_two_threads_lose_no_connection(options: dict[str, Any]) -> None:
    """Whatever they do with them: made is closed or in the pool, and never are there too many."""
    book, habits = Book(), Habits(*THREADS_HABITS)
    pool = ConnectionPool(book.link, name="p", max_size=SIZE, broken=LostError, **options)
    each = CHECKOUTS // THREADS // len(POOLS)

    with collecting(pool):
        in_threads(THREADS, lambda place: [habit(pool) for habit in habits.choices(place, each)])

    assert set(habits.done) == {habit.__name__ for _, habit in THREADS_HABITS}
    assert 1 < book.most <= SIZE
    assert pool.stats().checkouts >= each * THREADS * 0.8
    assert pool.stats().collected > 0
    assert_whole(pool, book)
    assert_all_closed(pool, book)


def test_every_late_borrower_is_told() -> None:
    """Who holds a connection too long finds it taken away, by use or by return, and nobody else has it."""
    book, told = Book(), Counter[str]()
    pool = ConnectionPool(
        book.link, name="p", max_size=SIZE, timeout=LONG, on_leak="reclaim", max_hold=0.01, leak_after=0.005
    )
    rounds = CHECKOUTS // THREADS // 20

    def hold(place: int) -> None:
        for turn in range(rounds):
            conn = pool.getconn()
            late = not (place + turn) % 8
            if late:
                until = time.monotonic() + LONG
                while time.monotonic() < until:
                    time.sleep(0.001)
                    try:
                        conn.use()
                    except ConnectionReclaimedError:
                        told["in use"] += 1
                        break
            try:
                pool.putconn(conn)
            except ConnectionReclaimedError:
                told["on return"] += 1
                late = False
            assert not late, "it was given back though it had been taken away"

    with collecting(pool):
        in_threads(THREADS, hold)

    assert told["in use"] == THREADS * rounds // 8
    assert pool.stats().reclaimed == told["on return"] >= told["in use"]
    assert_whole(pool, book)
    assert_all_closed(pool, book)


async def auses(pool: AsyncConnectionPool[Link]) -> None:
    async with pool.connection(LONG) as conn:
        await conn.ause()


async def atakes_and_returns(pool: AsyncConnectionPool[Link]) -> None:
    conn = await pool.getconn(LONG)
    await conn.ause()
    await pool.putconn(conn)


async def afails(pool: AsyncConnectionPool[Link]) -> None:
    with contextlib.suppress(UpstreamError):
        async with pool.connection(LONG) as conn:
            await conn.ause()
            raise UpstreamError


async def abreaks(pool: AsyncConnectionPool[Link]) -> None:
    with contextlib.suppress(LostError):
        async with pool.connection(LONG):
            raise LostError


async def ais_impatient(pool: AsyncConnectionPool[Link]) -> None:
    with contextlib.suppress(PoolTimeoutError):
        async with pool.connection(random.choice((0.0, SOON))) as conn:
            await conn.ause()


async def aforgets(pool: AsyncConnectionPool[Link]) -> None:
    conn = await pool.getconn(LONG)
    await conn.ause()


async def aforgets_in_a_circle(pool: AsyncConnectionPool[Link]) -> None:
    Knot(await pool.getconn(LONG))


async def is_cancelled(pool: AsyncConnectionPool[Link]) -> None:
    """Be cancelled in the line, as the connection comes, while it is used, or as it is returned."""
    task = asyncio.ensure_future(auses(pool))
    for _ in range(random.randrange(40)):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def is_timed_out(pool: AsyncConnectionPool[Link]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON), pool.connection(LONG) as conn:
            await conn.ause()


async def areturns_twice(pool: AsyncConnectionPool[Link]) -> None:
    conn = await pool.getconn(LONG)
    await pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError):
        await pool.putconn(conn)


TASKS_HABITS: tuple[tuple[int, Callable[[Any], Awaitable[None]]], ...] = (
    (50, auses),
    (20, atakes_and_returns),
    (10, afails),
    (1, abreaks),
    (10, ais_impatient),
    (3, aforgets),
    (1, aforgets_in_a_circle),
    (15, is_cancelled),
    (5, is_timed_out),
    (2, areturns_twice),
)


async def awork(conn: Link) -> None:
    await conn.ause()


APOOLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reset": {"reset": awork},
    "checked": {"check": awork, "check_after_idle": 0.0005, "check_every": 0.01},
    "short-lived": {"max_lifetime": 0.02, "max_idle": 0.005, "min_size": 2, "jitter": 1.0},
}


@pytest.mark.parametrize("options", APOOLS.values(), ids=APOOLS)
async def test_five_hundred_tasks_lose_no_connection(options: dict[str, Any]) -> None:
    """Whatever they do with them, and however they are cancelled."""
    book, habits = Book(), Habits(*TASKS_HABITS)
    pool = AsyncConnectionPool(
        book.alink, name="p", max_size=SIZE, broken=LostError, close=close_in_a_turn, **options
    )
    each = CHECKOUTS // TASKS // len(APOOLS)
    over = asyncio.Event()

    async def borrow(place: int) -> None:
        for habit in habits.choices(place, each):
            await habit(pool)

    async def attend() -> None:
        while not over.is_set():
            pool._core.round()
            gc.collect(0)
            await asyncio.sleep(0.002)

    attendant = asyncio.create_task(attend())
    await asyncio.gather(*map(borrow, range(TASKS)))
    over.set()
    await attendant

    assert set(habits.done) == {habit.__name__ for _, habit in TASKS_HABITS}
    assert 1 < book.most <= SIZE
    assert pool.stats().collected > 0
    await aassert_whole(pool, book)
    await aassert_all_closed(pool, book)


@pytest.mark.parametrize("drain", [0.0, 0.01])
def test_pool_that_is_closed_in_the_middle_closes_every_connection(drain: float) -> None:
    """Nobody hangs, who has one or comes later is told, and what was made is closed, once."""
    for number in range(100 if SOAK else 5):
        book, numbers = Book(), itertools.count()
        pool = ConnectionPool(book.link, name="p", max_size=SIZE, broken=LostError, timeout=LONG)

        def work(place: int, pool: Any = pool, numbers: Iterator[int] = numbers) -> None:
            with contextlib.suppress(ConnectionReclaimedError, PoolClosedError):
                while not pool.closed:
                    uses(pool)
                    if next(numbers) > 200 and place == 0:
                        pool.close(drain)

        in_threads(THREADS, work)

        # Who was cut gives his up in his own time, and it is closed when he has.
        wait_until(lambda book=book: not book.open, f"all are closed, in round {number}")
        assert book.most <= SIZE
        assert_all_closed(pool, book)
