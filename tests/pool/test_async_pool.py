"""The pool for tasks: what holds for threads holds here, in one event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.pool.support import AsyncConn, Conn, LostError, PatientLoop, Session, Shop, World, patient

from resilient import AsyncConnectionPool, deadline
from resilient.errors import (
    ConnectionReclaimedError,
    ConnectionReturnedError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RejectedError,
)
from resilient.events import PoolAvailable


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, and a server whose connections are closed by awaiting that."""
    world = World(monkeypatch)
    world.server.kind = AsyncConn
    return world


# As for threads.


@patient
async def test_tasks_are_served_in_the_order_of_their_coming(world: World) -> None:
    """asyncpg#1247: nobody starves, and whoever comes back at once is the last in the line."""
    shop = Shop(world, max_size=2)
    served: list[tuple[int, int]] = []

    async def work(name: int) -> None:
        for turn in range(5):
            async with shop.pool.connection():
                served.append((turn, name))
                await asyncio.sleep(1.0)

    await asyncio.gather(*(work(name) for name in range(10)))

    assert [turn for turn, _ in served] == sorted(turn for turn, _ in served)
    assert len(shop.made) == 2
    await shop.is_whole()


@patient
async def test_timeout_ends_the_wait_whatever_the_server_does(world: World) -> None:
    """asyncpg's `acquire` has none unless one is given (hushh-research#5871, six hours)."""

    async def never() -> Conn:
        await asyncio.sleep(1e5)
        raise AssertionError

    pool = world.async_pool(connect=never, connect_timeout=60.0)
    began = world.clock()
    with pytest.raises(PoolTimeoutError):
        await pool.getconn()
    assert world.clock() - began == pytest.approx(5.0, abs=0.1)
    with pytest.raises(PoolTimeoutError):
        await pool.getconn(timeout=0)
    with deadline(2.0), pytest.raises(PoolTimeoutError):
        await pool.getconn(timeout=60.0)
    await pool.close(drain=0)
    await asyncio.sleep(60.0)
    assert pool.stats().size == 0


@patient
async def test_connect_that_hangs_is_cancelled(world: World) -> None:
    """When its time is over; the next attempt may work."""
    ended: list[str] = []
    attempts: list[int] = []

    async def connect() -> Conn:
        attempts.append(1)
        if len(attempts) > 1:
            return await world.server.aconnect()
        try:
            await asyncio.sleep(1e5)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    pool = world.async_pool(connect=connect, connect_timeout=2.0, timeout=10.0)
    async with pool.connection() as conn:
        assert conn.ask() == "pong"
    assert ended == ["cancelled"]
    assert pool.stats().connect_failures == 1
    await pool.close()


@patient
async def test_connection_whose_closing_hangs_is_cut(world: World) -> None:
    """The server is frozen: its place is free after a while, and its socket is shut."""
    cut: list[int] = []

    class Hanging(AsyncConn):
        async def aclose(self) -> None:
            await asyncio.sleep(1e5)

        def fileno(self) -> int:
            cut.append(self.number)
            return -1

    world.server.kind = Hanging
    pool = world.async_pool(check_timeout=2.0, max_size=1)
    async with pool.connection():
        pool.drain()
    async with pool.connection() as conn:
        assert conn.number == 1
    assert cut == [0]
    await pool.close(drain=1.0)
    await asyncio.sleep(10.0)
    assert pool.stats().size == 0


@patient
async def test_failures_are_told_as_for_threads(world: World) -> None:
    """Down, then up."""
    pool = world.async_pool(timeout=30.0)
    world.server.failure = LostError("refused")
    began = world.clock()
    with pytest.raises(PoolUnavailableError):
        await pool.getconn()
    assert world.clock() - began < 2.0
    world.server.failure = None
    await asyncio.sleep(2.0)
    async with pool.connection() as conn:
        assert conn.ask() == "pong"
    assert len(world.of(PoolAvailable)) == 1
    await pool.close()


@patient
async def test_rounds_are_made_in_the_loop(world: World) -> None:
    """About once a second: what is idle for too long goes, what is missing is made, and a leak is told."""
    pool = world.async_pool(min_size=1, max_idle=10.0, leak_after=5.0)
    held = [await pool.getconn() for _ in range(3)]
    await asyncio.sleep(7.0)
    assert pool.stats().leaks == 3
    for conn in held:
        await pool.putconn(conn)
    await asyncio.sleep(12.0)
    assert pool.stats().idle == 1
    await pool.close()


@patient
async def test_what_is_called_may_be_asynchronous_or_not(world: World) -> None:
    """`close`, `check` and `reset`, each; `connect` may be what returns an awaitable."""
    log: list[str] = []

    def plain(name: str) -> Callable[[object], None]:
        return lambda _: log.append(name)

    def later(name: str) -> Callable[[object], Awaitable[None]]:
        async def act(_: object) -> None:
            await asyncio.sleep(0)
            log.append(name)

        return act

    for kind in (plain, later):
        for connect in (world.server.aconnect, lambda: world.server.aconnect()):  # noqa: PLW0108
            log.clear()
            pool = world.async_pool(
                connect=connect,
                close=kind("close"),
                check=kind("check"),
                reset=kind("reset"),
                check_after_idle=0,
            )
            await pool.putconn(await pool.getconn())
            await asyncio.sleep(1.0)
            await pool.putconn(await pool.getconn())
            await pool.close()
            assert log == ["reset", "check", "reset", "close"]


@patient
async def test_connect_that_returns_at_once_is_told_apart(world: World) -> None:
    """It would block the loop: that is for the other pool."""
    pool = world.async_pool(connect=world.server.connect, timeout=2.0)
    with pytest.raises(RejectedError, match="connect must return an awaitable, as a coroutine function does"):
        await pool.getconn()
    await pool.close()


@patient
async def test_block_commits_when_it_is_left_well(world: World) -> None:
    """And rolls back when it is not, before it is lent again."""
    shop = Shop(world, Session, max_size=1)
    async with shop.pool.connection() as conn:
        await conn.ask()
    assert shop.made[0].log == ["ask", "commit"]
    with pytest.raises(KeyError):
        await _leave_badly(shop.pool)
    await asyncio.sleep(1.0)
    assert shop.made[0].log == ["ask", "commit", "ask", "rollback"]
    await shop.is_whole()


async def _leave_badly(pool: AsyncConnectionPool[Any]) -> None:
    async with pool.connection() as conn:
        await conn.ask()
        raise KeyError("in the block")


@patient
async def test_mistakes_are_told_as_for_threads(world: World) -> None:
    """Twice returned, of another pool, of a closed pool, of one that is full."""
    pool, other = world.async_pool(max_size=1, max_waiting=0), world.async_pool(name="carts")
    conn = await _first(pool)
    with pytest.raises(PoolFullError):
        await pool.getconn()
    with pytest.raises(ValueError, match="is of pool 'orders'"):
        await other.putconn(conn)
    await pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError):
        await pool.putconn(conn)
    with pytest.raises(TypeError, match="conn must be a connection borrowed"):
        await pool.putconn(world.server.made[0])
    for one in (pool, other):
        await one.close()
        await one.close()
        for call in (one.getconn, one.wait):
            with pytest.raises(PoolClosedError):
                await call()


async def _first(pool: AsyncConnectionPool[Any]) -> Any:
    """Return the first connection of a pool for which nobody may wait."""
    for _ in range(10):
        try:
            return await pool.getconn()
        except PoolFullError:
            await asyncio.sleep(0.1)
    return pytest.fail("nobody is ever served")


@patient
async def test_close_waits_for_borrowers_then_cuts_them(world: World) -> None:
    """Those who wait are refused at once."""
    pool = world.async_pool(max_size=2)
    quick, slow = await pool.getconn(), await pool.getconn()
    waiting = asyncio.create_task(pool.getconn(timeout=60.0))
    await asyncio.sleep(0)
    began = world.clock()
    asyncio.get_running_loop().call_later(1.0, lambda: asyncio.ensure_future(pool.putconn(quick)))
    await pool.close(drain=3.0)
    assert world.clock() - began == pytest.approx(3.0, abs=0.1)
    with pytest.raises(PoolClosedError):
        await waiting
    with pytest.raises(ConnectionReclaimedError):
        slow.ask()
    assert [conn.closed for conn in world.server.made] == [1, 0]
    del slow
    gc.collect()


@patient
async def test_block_closes_the_pool(world: World) -> None:
    """`async with AsyncConnectionPool(...)`."""
    async with world.async_pool() as pool, pool.connection() as conn:
        assert conn.ask() == "pong"
    assert pool.closed
    assert not world.server.open


# One event loop.


def test_pool_belongs_to_one_loop(world: World) -> None:
    """Its connections work in no other: told clearly, while the loop runs and when it is closed."""
    pool = world.async_pool()
    calls: list[Callable[[], Awaitable[object]]] = [
        pool.getconn,
        pool.wait,
        pool.close,
        lambda: pool.connection().__aenter__(),
    ]

    async def use() -> None:
        async with pool.connection() as conn:
            assert conn.ask() == "pong"

    async def misuse(why: str) -> None:
        for call in calls:
            with pytest.raises(
                RuntimeError, match=rf"'orders' belongs to the event loop it was first used in{why}"
            ):
                await call()

    first, second = PatientLoop(world.clock), PatientLoop(world.clock)
    try:
        first.run_until_complete(use())
        second.run_until_complete(misuse(": its connections"))
        first.run_until_complete(use())
    finally:
        first.close()
    second.run_until_complete(misuse(", which has been closed: its connections"))
    second.close()


def test_loop_that_ends_loses_nobody(world: World) -> None:
    """`asyncio.run` without closing the pool: those who waited are gone with it, and nothing complains."""
    pool = world.async_pool(max_size=1)

    async def main() -> None:
        conn = await pool.getconn()
        asyncio.ensure_future(pool.getconn())  # noqa: RUF006 - it is gone with the loop
        await asyncio.sleep(0)
        del conn

    with asyncio.Runner(loop_factory=lambda: PatientLoop(world.clock)) as runner:
        runner.run(main())
    gc.collect()
    assert pool.stats().waiting == 0


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """Do nothing, as a context manager of the user's."""
    yield


@patient
async def test_coroutine_that_is_dropped_returns_its_connection(world: World) -> None:
    """Started by hand, never ended: its block is left when it is collected."""
    shop = Shop(world, max_size=1)
    await shop.pool.putconn(await shop.pool.getconn())

    async def borrow() -> None:
        async with nothing(), shop.pool.connection():
            await asyncio.sleep(1e5)

    coroutine = borrow()
    coroutine.send(None)
    assert shop.pool.stats().used == 1
    coroutine.close()
    assert shop.pool.stats().used == 0
    with pytest.raises(RejectedError):
        await shop.pool.getconn(timeout=0)  # it was in the middle of something: another is made
    await shop.is_whole()
