"""Users' own functions, listeners and finalizers that do to a pool what nobody should."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.stress.pools import Book, Link, LostError, assert_all_closed, assert_whole
from tests.support.waiting import wait_until

from resilient import (
    AsyncConnectionPool,
    ConnectionPool,
    ConnectionReturnedError,
    PoolTimeoutError,
    PoolUnavailableError,
)
from resilient.events import Event

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
LONG = 20.0
SOON = 0.2


@pytest.fixture(autouse=True)
def reports_off(caplog: pytest.LogCaptureFixture) -> None:
    """Much is forgotten here."""
    caplog.set_level("CRITICAL", "resilient")


@pytest.fixture
def book() -> Book:
    return Book()


def raises(_conn: object = None) -> None:
    raise ValueError("boom")


def exits(_conn: object = None) -> None:
    raise SystemExit


def interrupts(_conn: object = None) -> None:
    raise KeyboardInterrupt


def stops(_conn: object = None) -> None:
    raise StopIteration


def ends(_conn: object = None) -> None:
    raise GeneratorExit


def answers_nonsense(_conn: object = None) -> object:
    return object()


EVILS = (raises, exits, interrupts, stops, ends)


@pytest.mark.parametrize("connect", [*EVILS, lambda: None], ids=lambda one: one.__name__)
def test_connect_that_fails_in_any_way_is_told(connect: Callable[[], Any]) -> None:
    """By an error in time; the pool goes on trying, at its own pace."""
    pool = ConnectionPool(connect, name="p", timeout=SOON)
    began = time.monotonic()

    with pytest.raises((PoolTimeoutError, PoolUnavailableError)) as caught, pool.connection():
        pass

    assert time.monotonic() - began < LONG
    assert caught.value.last_failure is not None
    pool.close()
    assert pool.stats().size == 0
    assert pool.stats().connect_failures < 10


@pytest.mark.parametrize("evil", [*EVILS, answers_nonsense])
@pytest.mark.parametrize("what", ["check", "reset", "close"])
def test_function_that_fails_in_any_way_breaks_nothing(book: Book, what: str, evil: Any) -> None:
    """A connection that cannot be checked or reset is replaced; one that cannot be closed is given up."""
    options: dict[str, Any] = {what: evil, "check_after_idle": 0.0, "min_size": 0}
    pool = ConnectionPool(book.link, name="p", max_size=2, timeout=LONG, **options)

    for _ in range(3):
        with pool.connection() as one, pool.connection() as another:
            one.use()
            another.use()

    wait_until(lambda: pool.stats().idle == pool.stats().size, "all come back or are gone")
    assert len(book.made) < 20, "made without end"
    assert not book.wrongs
    pool.close()
    assert pool.stats().size == 0


@pytest.mark.parametrize("evil", EVILS)
def test_predicate_that_fails_loses_no_connection(book: Book, evil: Callable[..., Any]) -> None:
    """What comes out of the block is the failure that was in there, or the predicate's, and no other."""
    pool = ConnectionPool(book.link, name="p", max_size=1, timeout=LONG, broken=evil)

    def fail() -> None:
        with pool.connection() as conn:
            conn.use()
            raise KeyError

    for _ in range(3):
        with pytest.raises((KeyError, SystemExit, KeyboardInterrupt, GeneratorExit)):
            fail()

    assert_whole(pool, book)
    assert_all_closed(pool, book)


def test_functions_that_hang_cost_a_caller_no_more_than_his_timeout(book: Book) -> None:
    """Whatever hangs, and when all the pool's threads do."""
    gate = threading.Event()

    def hang(_conn: object = None) -> Any:
        gate.wait()
        return book.link()

    for options in ({}, {"check": hang, "check_after_idle": 0.0}, {"reset": hang}, {"close": hang}):
        connect = book.link if options else hang
        pool: ConnectionPool[Link] = ConnectionPool(
            connect, name="p", max_size=1, timeout=SOON, check_timeout=SOON, broken=LostError, **options
        )
        for _ in range(3):
            began = time.monotonic()
            with contextlib.suppress(PoolTimeoutError, LostError, PoolUnavailableError), pool.connection():
                raise LostError
            assert time.monotonic() - began < 2.0
        began = time.monotonic()
        pool.close(SOON)
        assert time.monotonic() - began < 2.0
    gate.set()


def test_functions_that_borrow_from_the_same_pool(book: Book) -> None:
    """They wait for a connection as anybody does, and no lock is held while they do."""
    pools = list[ConnectionPool[Link]]()

    def borrow(_conn: object = None) -> None:
        with contextlib.suppress(PoolTimeoutError), pools[0].connection(0.01) as conn:
            conn.use()

    def connect() -> Link:
        if len(book.made) == 1:
            borrow()
        return book.link()

    pools.append(
        ConnectionPool(
            connect, name="p", max_size=3, timeout=LONG, reset=borrow, check=borrow, check_after_idle=0.001
        )
    )
    for _ in range(5):
        with pools[0].connection() as one, pools[0].connection() as another:
            one.use()
            another.use()

    assert book.most <= 3
    wait_until(lambda: not pools[0].stats().used, "none is lent")
    pools[0].close()
    assert not book.open


@pytest.mark.parametrize("close", [True, False])
def test_listener_that_uses_the_pool(book: Book, close: bool) -> None:
    """It borrows, looks, and closes, from inside of whatever happened."""
    pool = ConnectionPool(book.link, name="p", max_size=2, timeout=LONG, broken=LostError)
    heard = list[Event]()

    def listen(event: Event) -> None:
        heard.append(event)
        assert pool.stats().max_size == 2
        assert pool.borrowers() is not None
        if len(heard) < 3:
            with pool.connection() as conn:
                conn.use()
        elif close:
            pool.close(0.0)

    pool.add_listener(listen)
    for _ in range(3):
        with pool.connection():
            pass
        with contextlib.suppress(LostError), pool.connection():
            raise LostError

    wait_until(lambda: len(heard) >= 3, "it hears")
    assert pool.closed is close
    pool.close()
    wait_until(lambda: not book.open, "all are closed")


class Session:
    """Gives its connection back when it is collected, and is in a circle."""

    def __init__(self, pool: ConnectionPool[Link]) -> None:
        self.pool = pool
        self.conn = pool.getconn()
        self.me = self

    def __del__(self) -> None:
        self.pool.putconn(self.conn)


def session(pool: ConnectionPool[Link]) -> None:
    Session(pool)


def in_a_generator(pool: ConnectionPool[Link], *, by_hand: bool = False) -> None:
    def in_a_block() -> Iterator[Any]:
        with pool.connection():
            yield

    def finally_by_hand() -> Iterator[Any]:
        conn = pool.getconn()
        try:
            yield
        finally:
            pool.putconn(conn)

    class Knot: ...

    knot: Any = Knot()
    knot.generator = finally_by_hand() if by_hand else in_a_block()
    next(knot.generator)
    knot.me = knot


def in_a_generator_by_hand(pool: ConnectionPool[Link]) -> None:
    in_a_generator(pool, by_hand=True)


FINALIZERS = (session, in_a_generator, in_a_generator_by_hand)


@pytest.mark.parametrize("options", [{}, {"reset": lambda conn: conn.use()}], ids=["plain", "reset"])
@pytest.mark.parametrize("forget", FINALIZERS)
def test_finalizer_in_a_circle_returns_a_connection_once(
    book: Book, forget: Callable[[Any], None], options: dict[str, Any]
) -> None:
    """The collector has seen it as lost before the finalizer returns it: only one of both counts."""
    pool = ConnectionPool(book.link, name="p", max_size=2, timeout=LONG, **options)
    with pool.connection(), pool.connection():
        pass
    for _ in range(20):
        forget(pool)
        gc.collect()
        with pool.connection() as one, pool.connection() as another:
            assert pool.unwrap(one) is not pool.unwrap(another)
            one.use()
            another.use()

    assert_whole(pool, book)
    assert_all_closed(pool, book)


@pytest.mark.parametrize("forget", FINALIZERS)
def test_collecting_all_the_time_loses_no_connection(book: Book, forget: Callable[[Any], None]) -> None:
    """At each object that is made, also inside of the pool, finalizers return connections."""
    pool = ConnectionPool(book.link, name="p", max_size=3, timeout=LONG, broken=LostError)
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    try:
        for turn in range(200 if SOAK else 10):
            forget(pool)
            gc.collect()  # or all would be lent, and who waits makes nothing that could be collected
            with pool.connection() as conn:
                conn.use()
            if not turn % 2:
                with contextlib.suppress(LostError), pool.connection():
                    raise LostError
    finally:
        gc.set_threshold(*before)
    assert book.most <= 3
    assert_whole(pool, book)
    assert_all_closed(pool, book)


def test_one_connection_returned_by_many_threads_is_returned_once(book: Book) -> None:
    """All the others are told, whichever was first."""
    pool = ConnectionPool(book.link, name="p", max_size=2, timeout=LONG)
    for _ in range(50):
        conn, told = pool.getconn(), list[int]()
        together = threading.Barrier(4)

        def give_back(conn: Link = conn, told: list[int] = told, together: Any = together) -> None:
            together.wait(LONG)
            try:
                pool.putconn(conn)
            except ConnectionReturnedError:
                told.append(1)

        threads = [threading.Thread(target=give_back) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 3
    assert_whole(pool, book)
    assert_all_closed(pool, book)


async def test_coroutine_functions_that_fail_hang_and_answer_nonsense(book: Book) -> None:
    """In an asynchronous pool: nobody waits beyond his timeout, and nothing is made without end."""

    async def hang(_conn: object = None) -> None:
        await asyncio.sleep(3_600.0)

    async def fail(_conn: object = None) -> None:
        raise KeyError

    async def cancel(_conn: object = None) -> None:
        raise asyncio.CancelledError

    for what in ("check", "reset", "close"):
        for evil in (hang, fail, cancel, raises, answers_nonsense):
            options: dict[str, Any] = {what: evil, "check_after_idle": 0.0}
            pool = AsyncConnectionPool(
                book.alink,
                name="p",
                max_size=1,
                timeout=SOON,
                check_timeout=0.01,
                broken=LostError,
                **options,
            )
            for _ in range(3):
                began = time.monotonic()
                with contextlib.suppress(PoolTimeoutError, LostError):
                    async with pool.connection() as conn:
                        await conn.ause()
                        raise LostError
                assert time.monotonic() - began < 2.0
            await pool.close(SOON)
            assert pool.stats().size == 0, f"{what} {evil.__name__}"
            assert len(book.made) < 20, f"made without end: {what} {evil.__name__}"
            book.made.clear()
    assert not book.wrongs
