"""Every moment of borrowing, returning, losing, closing: something else comes in between, in the same thread.

A signal's handler that borrows, or raises; the collector, which ends a forgotten block. A profiler is told of
each call and return, so none of the moments is left to luck.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest
from tests.stress.moments import EVENTS, INTERRUPTIBLE, Moments
from tests.stress.pools import SOAK, Book, Link, LostError, assert_all_closed, assert_whole
from tests.support.waiting import wait_until

import resilient
from resilient import ConnectionPool, PoolTimeoutError

SIZE = 2
LONG = 20.0
STRIDE = 1 if SOAK else 13  # each so many-th moment

pytestmark = [
    pytest.mark.usefixtures("reports_off", "without_collector"),
    pytest.mark.timeout(600.0 if SOAK else 60.0),
]


@pytest.fixture
def reports_off(caplog: pytest.LogCaptureFixture) -> None:
    """That they forget what they borrow is tried elsewhere."""
    caplog.set_level("CRITICAL", "resilient")


class Interrupted(BaseException):
    """What the handler of a signal raises."""


class Knot:
    """Holds a forgotten block in a circle, so that only the collector finds it."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.circle = self


def stream(pool: ConnectionPool[Link]) -> Iterator[None]:
    with pool.connection():
        yield


def borrows(pool: ConnectionPool[Link]) -> None:
    with contextlib.suppress(PoolTimeoutError), pool.connection(0.01) as conn:
        conn.use()


def interrupts(_pool: ConnectionPool[Link]) -> None:
    raise Interrupted


def collects(_pool: ConnectionPool[Link]) -> None:
    gc.collect()


def resizes(pool: ConnectionPool[Link]) -> None:
    pool.resize(1)
    pool.resize(SIZE)


def attends(pool: ConnectionPool[Link]) -> None:
    pool._core.round()
    assert pool.stats().max_size
    assert pool.borrowers() is not None


ACTS: dict[Callable[[Any], None], Container[str]] = {
    borrows: EVENTS,
    collects: EVENTS,
    interrupts: INTERRUPTIBLE,
    resizes: EVENTS,
    attends: EVENTS,
}


def borrow(pool: ConnectionPool[Link]) -> None:
    with pool.connection() as conn:
        conn.use()


def fail(pool: ConnectionPool[Link]) -> None:
    with contextlib.suppress(KeyError), pool.connection():
        raise KeyError


def break_it(pool: ConnectionPool[Link]) -> None:
    borrow(pool)  # one that never worked would count as a failure to connect, and the next one be waited for
    with contextlib.suppress(LostError), pool.connection():
        raise LostError


def lose(pool: ConnectionPool[Link]) -> None:
    pool.getconn()
    pool._core.attend()


def replace(pool: ConnectionPool[Link]) -> None:
    pool.drain()
    with pool.connection() as conn:
        conn.use()


STEPS = (borrow, fail, break_it, lose, replace)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_comes_in_between_loses_no_connection_and_lends_none_twice(
    step: Callable[[Any], None], act: Callable[[Any], None]
) -> None:
    """At each moment of each step; one connection was lost, and one forgotten, just before."""
    book = Book()
    pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG, broken=LostError)
    offset = STEPS.index(step) % STRIDE
    for moment in itertools.count(offset, STRIDE):
        if act is collects:
            Knot(begun := stream(pool))
            next(begun)
            del begun
        pool.getconn()  # and lost
        moments = Moments("pool", moment, lambda: act(pool), ACTS[act])
        with contextlib.suppress(Interrupted), moments:
            step(pool)
        gc.collect()
        _assert_all_there(pool, book, moments.struck)
        if not moments.struck:
            break
    assert moment > 15, "too few moments to mean anything"
    assert book.most <= SIZE
    assert_whole(pool, book)
    assert_all_closed(pool, book)


@pytest.mark.parametrize("act", [borrows, interrupts, attends])
def test_whatever_comes_in_between_the_first_checkout_leaves_the_pool_in_use(
    act: Callable[[Any], None],
) -> None:
    """From the making of the pool on: it is visited, its connections are counted, and it can be closed."""
    for moment in itertools.count(0, STRIDE):
        book = Book()
        pool = ConnectionPool(book.link, name="p", max_size=1, timeout=LONG)
        moments = Moments("pool", moment, lambda pool=pool: act(pool), ACTS[act])
        with contextlib.suppress(Interrupted), moments:
            borrow(pool)
        borrow(pool)
        assert book.most == 1, moments.struck
        assert_all_closed(pool, book)
        if not moments.struck:
            break
    assert moment > 15, "too few moments to mean anything"


@pytest.mark.parametrize("act", [borrows, interrupts, attends])
def test_whatever_comes_in_between_closing_every_connection_is_closed_once(
    act: Callable[[Any], None],
) -> None:
    """One is free and one is lent as it begins."""

    def try_to(pool: ConnectionPool[Link]) -> None:
        with contextlib.suppress(resilient.PoolClosedError):
            act(pool)

    for moment in itertools.count(0, STRIDE):
        book = Book()
        pool = ConnectionPool(book.link, name="p", max_size=SIZE, timeout=LONG)
        lent = [pool.getconn(), pool.getconn()]
        pool.putconn(lent.pop())
        moments = Moments("pool", moment, lambda pool=pool: try_to(pool), ACTS[act])
        with contextlib.suppress(Interrupted), moments:
            pool.close(0.001)
        lent.clear()
        pool.close()
        wait_until(lambda book=book: not book.open, f"all are closed, struck at {moments.struck}")
        assert len(book.ended) == len(book.made) == SIZE, moments.struck
        if not moments.struck:
            break
    assert moment > 15, "too few moments to mean anything"


def test_connection_reclaimed_at_any_moment_of_its_return_is_nobody_elses() -> None:
    """Who borrows next has one that stays: what is taken away is taken from the one who held it too long."""
    book = Book()
    now = [0.0]
    for moment in itertools.count(0, STRIDE):
        pool = ConnectionPool(
            book.link,
            name="p",
            max_size=1,
            timeout=LONG,
            on_leak="reclaim",
            max_hold=10.0,
            clock=lambda: now[0],
        )
        conn = pool.getconn()
        now[0] += 11.0

        def come_and_go(pool: ConnectionPool[Link] = pool) -> None:
            """Have a round made by another thread."""
            attendant = threading.Thread(target=pool._core.round)
            attendant.start()
            attendant.join(0.005)

        moments = Moments("pool", moment, come_and_go, EVENTS)
        with contextlib.suppress(resilient.ConnectionReclaimedError), moments:
            pool.putconn(conn)
        time.sleep(0.0)
        with pool.connection() as another:
            another.use()
        pool.close()
        assert not book.wrongs
        if not moments.struck:
            break
    assert moment > 5, "too few moments to mean anything"


def _assert_all_there(pool: ConnectionPool[Link], book: Book, struck: str) -> None:
    def is_at_rest() -> bool:
        pool._core.round()
        stats = pool.stats()
        return not stats.used and not stats.connecting and stats.idle == stats.size == len(book.open)

    try:
        wait_until(is_at_rest, "all come back", within=5.0)
    except TimeoutError as exc:
        raise AssertionError(f"struck at {struck}: {pool.stats()}, {len(book.open)} open") from exc
    idle = [id(token.conn) for token in pool._core.stock.idle]
    assert len(idle) == len(set(idle)), f"one twice, struck at {struck}"
    assert not book.wrongs, struck
