"""Interrupts at any moment of borrowing, waiting, returning, closing: no connection is lost, nor lent twice.

The interrupt is a real signal's, whose handler raises as Ctrl-C does. Every one of them comes out: none is
swallowed by a finalizer or a weak reference's callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.stress.bulkheads import busy
from tests.stress.pools import SOAK, Book, Link, LostError, assert_all_closed, assert_whole
from tests.stress.signals import Interrupter, within_seconds
from tests.support.waiting import wait_until

from resilient import AsyncConnectionPool, ConnectionPool, PoolTimeoutError
from resilient.pool import rounds

SIZE = 3
SIGNALS = 30_000 if SOAK else 11_000
OF_EACH = 10_000 if SOAK else 600
LONG = 30.0

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(
        600.0 if SOAK else 60.0, method="thread"
    ),  # its other method needs the signal used here
    # One that is struck before its first step was never awaited indeed.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
]


class Textbook:
    """Connections as they are lent everywhere: taken out of a list under a lock, put back in `finally`."""

    def __init__(self, free: int) -> None:
        self.free = [*range(free)]

    def call(self) -> None:
        taken = self.free.pop()
        try:
            work(taken)
        finally:
            self.free.append(taken)


def work(*_args: object) -> None:
    """Do what takes a few bytecodes."""


def test_ten_thousand_interrupts_lose_no_connection(interrupter: Interrupter) -> None:
    """They come out, and all connections can be lent afterwards; the textbook's way is hit just as hard."""
    book, textbook = Book(), Textbook(SIGNALS)
    pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG)

    def borrow() -> None:
        with pool.connection() as conn:
            work(conn)

    interrupter.strike(borrow, times=SIGNALS)
    assert interrupter.inside > SIGNALS // 2, "too few of them struck the pool"
    interrupter.strike(textbook.call, times=SIGNALS // 10)

    assert SIGNALS - len(textbook.free) > SIGNALS // 1_000, "the signals do no harm, so nothing is shown"
    assert book.most <= SIZE
    assert_whole(pool, book)
    assert_all_closed(pool, book)


def in_a_block(pool: ConnectionPool[Link]) -> Callable[[], object]:
    def call() -> None:
        with pool.connection() as conn:
            work(conn)

    return call


def by_hand(pool: ConnectionPool[Link]) -> Callable[[], object]:
    return lambda: pool.putconn(pool.getconn())


def in_a_function(pool: ConnectionPool[Link]) -> Callable[[], object]:
    return pool(work)


def in_a_generator(pool: ConnectionPool[Link]) -> Callable[[], object]:
    @pool
    def stream(conn: Link) -> Iterator[None]:
        yield work(conn)
        yield work(conn)

    return lambda: [*stream()]


def failing(pool: ConnectionPool[Link]) -> Callable[[], object]:
    def call() -> None:
        with contextlib.suppress(KeyError), pool.connection():
            raise KeyError

    return call


def breaking(pool: ConnectionPool[Link]) -> Callable[[], object]:
    """Have another connection made each time, by a thread that may have to be started."""

    def call() -> None:
        with contextlib.suppress(LostError), pool.connection():
            raise LostError

    return call


def in_vain(pool: ConnectionPool[Link]) -> Callable[[], object]:
    """Ask for one connection more than there may be."""

    def call(depth: int = SIZE) -> None:
        with contextlib.suppress(PoolTimeoutError), pool.connection(LONG if depth else 1e-5):
            if depth:
                call(depth - 1)

    return call


def forgetful(pool: ConnectionPool[Link]) -> Callable[[], object]:
    return lambda: work(pool.getconn())


def draining(pool: ConnectionPool[Link]) -> Callable[[], object]:
    def call() -> None:
        with pool.connection():
            pool.drain()

    return call


def resizing(pool: ConnectionPool[Link]) -> Callable[[], object]:
    def call() -> None:
        with pool.connection():
            pool.resize(1)
        pool.resize(SIZE)

    return call


def telling(pool: ConnectionPool[Link]) -> Callable[[], object]:
    def call() -> None:
        with pool.connection():
            assert pool.stats().used
            pool.borrowers()
            pool._core.round()

    return call


FORMS = (
    in_a_block,
    by_hand,
    in_a_function,
    in_a_generator,
    failing,
    breaking,
    in_vain,
    forgetful,
    draining,
    resizing,
    telling,
)
POOLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reset": {"reset": work},
    "checked": {"check": work, "check_after_idle": 1e-4},
    "kept-full": {"min_size": SIZE},
}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_borrowing_loses_a_connection(
    interrupter: Interrupter, form: Callable[[ConnectionPool[Link]], Callable[[], object]], options: Any
) -> None:
    """Each form, in pools that have more or less to do when a connection comes back."""
    book = Book()
    pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG, broken=LostError, **options)

    interrupter.strike(form(pool), times=OF_EACH // len(POOLS))

    pool.resize(SIZE)
    assert book.most <= SIZE
    assert_whole(pool, book)
    assert_all_closed(pool, book)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_interrupted_waiter_among_others(interrupter: Interrupter, options: dict[str, Any]) -> None:
    """One of four is interrupted, holding, waiting or in between: the others get all their turns."""
    book = Book()
    pool = ConnectionPool(book.link, name="p", max_size=1, timeout=LONG, **options | {"min_size": 0})

    def borrow() -> None:
        with pool.connection() as conn:
            conn.use()

    with busy(borrow, threads=3):
        interrupter.strike(borrow, times=2 * OF_EACH // len(POOLS))

    assert book.most == 1
    assert pool.stats().timeouts == 0
    assert_whole(pool, book)
    assert_all_closed(pool, book)


def test_interrupted_close_can_be_done_again(interrupter: Interrupter) -> None:
    """However far it had come: every connection is closed in the end, once, also one that is lent."""
    for _ in range(OF_EACH // 10):
        book = Book()
        pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG)
        lent = [pool.getconn() for _ in range(SIZE)]
        pool.putconn(lent.pop())

        def close(pool: ConnectionPool[Link] = pool) -> None:
            pool.close(1e-4)

        interrupter.strike(close, times=2)

        lent.clear()
        pool.close()
        wait_until(lambda book=book: not book.open, "all are closed")
        assert len(book.ended) == len(book.made) == SIZE


def test_interrupt_in_the_first_checkout_leaves_a_pool_that_is_seen_to(interrupter: Interrupter) -> None:
    """It is visited about once a second, and closed at exit, as any other: leaks are found."""
    for _ in range(OF_EACH // 5):
        book = Book()
        pool = ConnectionPool(book.link, name="p", max_size=1, timeout=LONG)
        interrupter.strike(in_a_block(pool), times=1)
        with pool.connection():
            pass
        assert any(place() is pool._core for place in rounds._watcher._places)
        assert_all_closed(pool, book)


def test_no_lock_is_left_behind(interrupter: Interrupter) -> None:
    """Other threads use the pool after each interrupt."""
    book = Book()
    pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG, broken=LostError)

    for _ in range(20):
        for form in (in_a_block, breaking, telling, in_vain):
            interrupter.strike(form(pool), times=max(OF_EACH // 100, 2))
            assert within_seconds(10.0, pool.stats) is not None
            assert within_seconds(10.0, lambda: in_a_block(pool)() is None)

    assert_whole(pool, book)
    assert_all_closed(pool, book)


def driven(coroutine: Any) -> None:
    """Run a coroutine that has nothing to wait for: a loop does not survive an exception at any moment."""
    with contextlib.suppress(StopIteration), contextlib.closing(coroutine):
        coroutine.send(None)


async def ablock(pool: AsyncConnectionPool[Link]) -> None:
    async with pool.connection() as conn:
        work(conn)


async def ahand(pool: AsyncConnectionPool[Link]) -> None:
    await pool.putconn(await pool.getconn())


async def afailing(pool: AsyncConnectionPool[Link]) -> None:
    with contextlib.suppress(KeyError):
        async with pool.connection():
            raise KeyError


@pytest.mark.parametrize("borrow", [ablock, ahand, afailing])
def test_no_form_of_asynchronous_borrowing_loses_a_connection(
    interrupter: Interrupter, borrow: Callable[[AsyncConnectionPool[Link]], Any]
) -> None:
    """Struck between the steps of a task."""
    book = Book()

    async def main() -> None:
        # Struck while it begins one of the pool's tasks, asyncio loses that.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        pool = AsyncConnectionPool(book.alink, name="p", min_size=SIZE, max_size=SIZE, timeout=LONG)
        lent = [await pool.getconn() for _ in range(SIZE)]
        for conn in lent:
            await pool.putconn(conn)
        for _ in range(OF_EACH):
            while not pool._core.stock.idle:  # else it would wait, and what is driven by hand cannot
                pool._core.round()
                await asyncio.sleep(0)
            interrupter.strike(lambda: driven(borrow(pool)), times=1)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(SIZE):
                await stack.enter_async_context(pool.connection())
        await pool.close()

    asyncio.run(main())

    assert not book.open
    assert len(book.ended) == len(book.made)
    assert book.most <= SIZE
