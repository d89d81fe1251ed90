"""asyncpg: a pool with slots, whose holders are lent, and connections that end while they are."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

from resilient.errors import PoolTimeoutError, PoolUnavailableError
from resilient.pool.watching import watch


async def test_borrower_is_the_line_of_the_with_statement(postgres: PostgresServer) -> None:
    """Not one of asyncpg's; with the name of the task."""
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=2) as pool:
        watching = watch(pool)
        async with pool.acquire() as connection:
            await connection.execute("SELECT 1")
            (borrower,) = watching.borrowers()

        task = asyncio.current_task()
        assert task is not None
        assert borrower.where.startswith(f"{__file__}:")
        assert borrower.task == task.get_name()
        assert watching.stats().used == 0


async def test_queries_of_the_pool_itself_borrow_and_return(postgres: PostgresServer) -> None:
    """Each of them."""
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=2) as pool:
        watching = watch(pool)
        assert await pool.fetchval("SELECT 7") == 7
        await pool.execute("SELECT 1")

        assert (watching.stats().checkouts, watching.stats().used, watching.stats().idle) == (2, 0, 1)


async def test_pool_may_be_watched_before_it_is_opened(postgres: PostgresServer) -> None:
    """What it is made of comes later."""
    pool = asyncpg.create_pool(postgres.url, min_size=1, max_size=2)
    watching = watch(pool)
    assert watching.stats().idle == 0
    async with pool:
        async with pool.acquire():
            assert watching.stats().used == 1
        assert watching.stats().used == 0

        watching.unwatch()
        assert type(pool) is asyncpg.Pool
        assert {type(holder) for holder in pool._holders} == {asyncpg.pool.PoolConnectionHolder}


async def test_connection_that_ends_while_it_is_lent_is_back(postgres: PostgresServer) -> None:
    """Ended by its borrower, or by the server: the pool has its place again."""
    async with asyncpg.create_pool(postgres.url, min_size=0, max_size=1) as pool:
        watching = watch(pool)
        connection = await pool.acquire()
        await connection.close()
        assert watching.stats().used == 0

        connection = await pool.acquire()
        connection.terminate()
        assert watching.stats().used == 0

        connection = await pool.acquire()
        pid = connection.get_server_pid()
        await asyncio.to_thread(postgres.query, f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.execute("SELECT 1")
        await pool.release(connection)
        assert watching.stats().used == 0

        await pool.expire_connections()
        async with pool.acquire():
            assert watching.stats().used == 1
        assert (watching.stats().used, watching.stats().checkouts) == (0, 4)


async def test_connection_that_is_returned_twice_is_returned_once(postgres: PostgresServer) -> None:
    """The library allows it; whoever has it by then keeps it."""
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=1) as pool:
        watching = watch(pool)
        connection = await pool.acquire()
        await pool.release(connection)
        other = await pool.acquire()
        await pool.release(connection)

        assert watching.stats().used == 1
        await pool.release(other)
        assert watching.stats().used == 0


async def test_setup_that_fails_lends_nothing(postgres: PostgresServer) -> None:
    """Its error is passed on."""

    async def fail(_connection: Any) -> None:
        raise LookupError("not today")

    async with asyncpg.create_pool(postgres.url, min_size=0, max_size=1, setup=fail) as pool:
        watching = watch(pool)
        for _ in range(2):
            with pytest.raises(LookupError, match="not today"):
                await pool.acquire()

        assert (watching.stats().used, watching.stats().waiting, watching.stats().timeouts) == (0, 0, 0)


@pytest.mark.parametrize(
    ("address", "words", "name"),
    [
        ("postgresql://me:secret@db.example:5433/orders", {}, "db.example:5433/orders"),
        ("postgresql://me:secret@db.example", {}, "db.example:5432/me"),
        (
            None,
            dict(host="db.example", port=5433, database="orders", password="secret"),
            "db.example:5433/orders",
        ),
        (None, dict(host=["one", "other"], database="orders"), "asyncpg/orders"),
        (None, {}, "asyncpg/"),
    ],
)
async def test_name_is_where_it_connects_to(address: str | None, words: dict[str, Any], name: str) -> None:
    """Never the password."""
    with watch(asyncpg.create_pool(address, **words)) as watching:
        assert watching.name == name


async def test_server_that_is_not_there_is_said_so() -> None:
    """In a few words, with the reason."""
    address = f"postgresql://me@127.0.0.1:{free_port()}/orders"
    async with asyncpg.create_pool(address, min_size=0) as pool:
        watching = watch(pool, name="orders")
        with pytest.raises(PoolUnavailableError, match=r"pool 'orders' failed: .*Refused"):
            await watching.acheck(timeout=20.0)
        assert (watching.stats().used, watching.stats().waiting) == (0, 0)


@pytest.mark.faults
async def test_check_of_a_server_that_hangs_ends_in_time() -> None:
    """Though asyncpg asks that server to cancel before it lets go, and waits for the answer."""
    with PostgresServer() as server:
        pool = await asyncpg.create_pool(server.url, min_size=1, max_size=1)
        watching = watch(pool)
        await watching.acheck(timeout=20.0)
        server.pause()
        try:
            begun = time.monotonic()
            with pytest.raises(PoolTimeoutError, match="no answer from the server within"):
                await watching.acheck(timeout=0.2)
            assert time.monotonic() - begun < 5.0  # it was without end
        finally:
            server.resume()
        pool.terminate()
