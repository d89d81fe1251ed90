"""psycopg_pool: its ways to borrow and to return, and pools whose methods somebody else has replaced."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

from resilient.errors import PoolTimeoutError, PoolUnavailableError
from resilient.events import ConnectionCollected, Event
from resilient.pool.watching import Watched, watch


@pytest.fixture
def pool(postgres: PostgresServer) -> Iterator[Any]:
    """An open pool of up to two connections."""
    with psycopg_pool.ConnectionPool(postgres.url, min_size=1, max_size=2, open=False, timeout=5) as made:
        yield made


def rounds(watching: Watched) -> None:
    """Make rounds enough for whatever is to be reported."""
    for _ in range(2):
        watching._ledger.round()


def test_borrower_is_the_line_of_the_with_statement(pool: Any) -> None:
    """Not one of the library, or of contextlib."""
    with watch(pool) as watching, pool.connection() as connection:
        connection.execute("SELECT 1")
        (borrower,) = watching.borrowers()

    assert borrower.where.startswith(f"{__file__}:")
    assert borrower.stack[0] == borrower.where


async def test_borrower_of_an_awaited_connection_is_the_line_of_the_with_statement(
    postgres: PostgresServer,
) -> None:
    """With the name of the task."""
    async with psycopg_pool.AsyncConnectionPool(postgres.url, min_size=1, open=False) as pool:
        watching = watch(pool)
        async with pool.connection():
            (borrower,) = watching.borrowers()

    task = asyncio.current_task()
    assert task is not None
    assert borrower.where.startswith(f"{__file__}:")
    assert borrower.task == task.get_name()


def test_name_is_that_of_the_pool(postgres: PostgresServer) -> None:
    """As in the library's own log."""
    pool = psycopg_pool.ConnectionPool(postgres.url, name="orders", open=False)

    assert watch(pool).name == "orders"


def test_forgotten_connection_is_reported_as_closed(pool: Any) -> None:
    """The library does not learn of it: its pool is smaller from then on."""
    heard: list[Event] = []
    watching = watch(pool, listeners=[heard.append])

    connection = pool.getconn()
    del connection
    gc.collect()
    rounds(watching)

    (lost,) = heard
    assert isinstance(lost, ConnectionCollected)
    assert not lost.reused
    assert "test_forgotten_connection" in lost.where
    assert (watching.stats().used, watching.stats().collected) == (0, 1)


def test_connection_that_returns_when_closed_is_back(postgres: PostgresServer) -> None:
    """By way of `close_returns`."""
    with psycopg_pool.ConnectionPool(
        postgres.url, min_size=1, max_size=1, open=False, close_returns=True
    ) as pool:
        watching = watch(pool)
        for _ in range(2):
            connection = pool.getconn()
            assert watching.stats().used == 1
            connection.close()
            assert watching.stats().used == 0


def test_connection_of_another_pool_is_refused_as_before(pool: Any, postgres: PostgresServer) -> None:
    """It changes nothing in what is known."""
    watching = watch(pool)
    held = pool.getconn()
    with psycopg.connect(postgres.url) as foreign, pytest.raises(ValueError, match="can't return connection"):
        pool.putconn(foreign)

    assert watching.stats().used == 1
    pool.putconn(held)
    with pytest.raises(ValueError, match="can't return connection"):
        pool.putconn(held)
    assert watching.stats().used == 0


def test_subclass_keeps_its_ways(postgres: PostgresServer) -> None:
    """Its own methods are called, and call those of the library."""
    calls: list[str] = []

    class Mine(psycopg_pool.ConnectionPool[Any]):
        def getconn(self, timeout: float | None = None) -> Any:
            calls.append("getconn")
            return super().getconn(timeout)

        def putconn(self, conn: Any) -> None:
            calls.append("putconn")
            super().putconn(conn)

    with Mine(postgres.url, min_size=1, open=False) as pool, watch(pool) as watching:
        with pool.connection():
            assert watching.stats().used == 1
        assert isinstance(pool, Mine)
        watching.check(timeout=20.0)

    assert calls == ["getconn", "putconn"] * 2
    assert type(pool) is Mine


def test_methods_that_somebody_replaced_before_are_watched_and_put_back(pool: Any) -> None:
    """On this one pool, as tools for tracing do."""
    calls: list[str] = []
    original = pool.getconn

    def getconn(timeout: float | None = None) -> Any:
        calls.append("getconn")
        return original(timeout)

    pool.getconn = getconn
    with watch(pool) as watching:
        with pool.connection():
            assert watching.stats().used == 1
        connection = pool.getconn(timeout=5)
        assert watching.stats().used == 1
        pool.putconn(connection)

    assert calls == ["getconn", "getconn"]
    assert pool.getconn is getconn
    assert watching.stats().checkouts == 2


def test_methods_that_somebody_replaces_later_are_theirs(pool: Any) -> None:
    """They call what is watched; ending the watch leaves them."""
    watching = watch(pool)
    original = pool.getconn

    def getconn(timeout: float | None = None) -> Any:
        return original(timeout)

    pool.getconn = getconn
    with pool.connection():
        assert watching.stats().used == 1
    watching.unwatch()

    assert pool.getconn is getconn
    with pool.connection():
        assert watching.stats().checkouts == 1


def test_connection_that_is_returned_to_a_closed_pool_is_back(postgres: PostgresServer) -> None:
    """The pool closes it."""
    pool = psycopg_pool.ConnectionPool(postgres.url, min_size=1, open=False)
    pool.open()
    watching = watch(pool)
    connection = pool.getconn()
    pool.close()

    pool.putconn(connection)

    assert connection.closed
    assert watching.stats().used == 0
    with pytest.raises(PoolUnavailableError, match="PoolClosed"):
        watching.check(timeout=20.0)


async def test_return_that_was_cancelled_is_none(postgres: PostgresServer) -> None:
    """The pool does not have the connection, and nobody will return it: that is a leak, and stays one."""
    async with psycopg_pool.AsyncConnectionPool(postgres.url, min_size=1, max_size=1, open=False) as pool:
        watching = watch(pool)
        connection = await pool.getconn()
        async with pool._lock:  # somebody else is in the middle of something
            returning = asyncio.create_task(pool.putconn(connection))
            await asyncio.sleep(0)
            assert watching.stats().used == 0
            returning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await returning

        assert watching.stats().used == 1
        await connection.close()


def test_check_without_a_server_ends_in_time() -> None:
    """This library goes on trying to connect; whoever asks it is told that no connection came."""
    address = f"postgresql://me@127.0.0.1:{free_port()}/orders"
    with psycopg_pool.ConnectionPool(address, min_size=1, max_size=1, open=False, name="orders") as pool:
        watching = watch(pool)
        with pytest.raises(PoolTimeoutError, match=r"no connection came free within 0\.2 s; 0 conn"):
            watching.check(timeout=0.2)
        assert watching.stats().waiting == 0
