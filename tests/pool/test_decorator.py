"""Functions that are given a connection for each call."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from tests.pool.support import Conn, World, patient

from resilient import Retry
from resilient.errors import ConnectionReturnedError


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def test_function_is_called_with_a_connection(world: World) -> None:
    """It goes in first; what the caller gives comes after it."""
    pool = world.pool()

    @pool
    def store(conn: Conn, order: int, *, priority: int = 0) -> tuple[object, int]:
        """Store an order."""
        assert pool.stats().used == 1
        return conn.ask(order), priority

    assert store(7) == (7, 0)
    assert store(8, priority=2) == (8, 2)
    assert pool.stats().used == 0
    assert pool.stats().checkouts == 2
    assert store.__name__ == "store"
    assert store.__doc__ == "Store an order."
    assert str(inspect.signature(store)) in {
        "(order: 'int', *, priority: 'int' = 0) -> 'tuple[object, int]'",
        "(order: int, *, priority: int = 0) -> tuple[object, int]",
    }


def test_connection_is_back_whatever_happens(world: World) -> None:
    """After a failure too; it is broken if the failure says so."""
    pool = world.pool()

    @pool
    def fail(conn: Conn, error: BaseException) -> None:
        assert conn.ask()
        raise error

    for error in (ValueError("bad"), ConnectionResetError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
    assert pool.stats().used == 0
    assert pool.stats().discarded == 2


def test_method_is_given_the_connection_after_self(world: World) -> None:
    """In a class, the first parameter is not the connection."""
    pool = world.pool()

    class Shop:
        name = "shop"

        @pool
        def store(self, conn: Conn, order: int) -> tuple[str, object]:
            return self.name, conn.ask(order)

        @classmethod
        @pool
        def count(cls, conn: Conn) -> tuple[str, object]:
            return cls.name, conn.ask(0)

        @staticmethod
        @pool
        def ping(conn: Conn) -> object:
            return conn.ask()

    shop = Shop()
    assert shop.store(3) == ("shop", 3)
    assert shop.count() == Shop.count() == ("shop", 0)
    assert shop.ping() == "pong"
    assert list(inspect.signature(shop.store).parameters) == ["order"]
    assert pool(shop.ping.__wrapped__)() == "pong"  # type: ignore[attr-defined]


def test_bound_method_partial_and_object(world: World) -> None:
    """Whatever can be called."""
    pool = world.pool()

    class Work:
        def run(self, conn: Conn, more: int) -> object:
            return conn.ask(more)

        def __call__(self, conn: Conn) -> object:
            return conn.ask("called")

    def add(conn: Conn, one: int, other: int) -> object:
        return conn.ask(one + other)

    assert pool(Work().run)(4) == 4
    assert pool(Work())() == "called"
    assert pool(functools.partial(add, other=5))(1) == 6
    assert pool.stats().used == 0


def test_generator_holds_its_connection_until_it_ends(world: World) -> None:
    """From the first step to the last, or to its end before that."""
    pool = world.pool()

    @pool
    def rows(conn: Conn, count: int) -> Generator[object, object, str]:
        for number in range(count):
            yield conn.ask(number)
        return "done"

    running = rows(3)
    assert pool.stats().checkouts == 0
    assert next(running) == 0
    assert pool.stats().used == 1
    assert list(running) == [1, 2]
    assert pool.stats().used == 0

    ended = rows(3)
    next(ended)
    ended.close()
    assert pool.stats().used == 0

    def outer() -> Iterator[object]:
        answer = yield from rows(1)
        yield answer

    assert list(outer()) == [0, "done"]


def test_function_that_keeps_its_connection_finds_it_returned(world: World) -> None:
    """What was lent for a call is over with it."""
    pool = world.pool()
    kept = pool(lambda conn: conn)()
    with pytest.raises(ConnectionReturnedError):
        kept.ask()


def test_pool_goes_with_policies(world: World) -> None:
    """A retry outside of it gets another connection each time; a retry inside keeps the one."""
    pool = world.pool()
    numbers: list[int] = []

    @Retry(on=ConnectionError, attempts=2, sleep=world.clock.sleep)
    @pool
    def store(conn: Conn) -> object:
        numbers.append(conn.number)
        if len(numbers) == 1:
            raise ConnectionResetError
        return conn.ask()

    assert store() == "pong"
    assert numbers == [0, 1]


def test_pool_for_threads_takes_no_coroutine_function(world: World) -> None:
    """Nor an asynchronous generator function, nor what cannot be called."""
    pool = world.pool()

    async def store(conn: Conn) -> None: ...

    async def rows(conn: Conn) -> AsyncIterator[None]:
        yield

    for wrong in (store, rows):
        with pytest.raises(TypeError, match="ConnectionPool 'orders' needs a"):
            pool(wrong)
    with pytest.raises(TypeError, match="cannot guard 5: it is not callable"):
        pool(5)  # type: ignore[arg-type]


@patient
async def test_coroutine_function_is_called_with_a_connection(world: World) -> None:
    """Of the pool for tasks; each task one of its own."""
    pool = world.async_pool(max_size=2)

    @pool
    async def store(conn: Conn, order: int) -> tuple[int, object]:
        await asyncio.sleep(1.0)
        return conn.number, conn.ask(order)

    answers = await asyncio.gather(*(store(order) for order in range(4)))

    assert sorted(order for _, order in answers) == [0, 1, 2, 3]
    assert {number for number, _ in answers} == {0, 1}
    assert inspect.iscoroutinefunction(store)
    assert list(inspect.signature(store).parameters) == ["order"]
    assert pool.stats().used == 0
    await pool.close()


@patient
async def test_async_generator_holds_its_connection_until_it_ends(world: World) -> None:
    """To the end, or to `aclose`."""
    pool = world.async_pool()

    @pool
    async def rows(conn: Conn, count: int) -> AsyncIterator[object]:
        for number in range(count):
            await asyncio.sleep(0.5)
            yield conn.ask(number)

    assert [row async for row in rows(2)] == [0, 1]
    assert pool.stats().used == 0
    running: Any = rows(2)
    async with aclosing(running):
        assert await anext(running) == 0
        assert pool.stats().used == 1
    assert pool.stats().used == 0
    await pool.close()


@patient
async def test_pool_for_tasks_takes_no_ordinary_function(world: World) -> None:
    """It could not wait there."""
    pool = world.async_pool()

    def store(conn: Conn) -> None: ...

    def rows(conn: Conn) -> Iterator[None]:
        yield

    for wrong in (store, rows):
        with pytest.raises(TypeError, match="AsyncConnectionPool 'orders' needs a"):
            pool(wrong)  # type: ignore[arg-type]
