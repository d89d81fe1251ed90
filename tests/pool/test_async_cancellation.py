"""Cancellation at every await of the pool for tasks: nothing is lost, nothing is hidden.

`cancelled_at` runs a call in a task and cancels it in a turn of the loop; the tests go through all turns,
until the call is over before it could be cancelled.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.pool.support import Session, Shop, Slow, World, patient

from resilient import AsyncConnectionPool
from resilient.errors import (
    ConnectionReclaimedError,
)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, and somebody who listens."""
    return World(monkeypatch)


_MOST_STEPS = 60


async def cancelled_at(step: int, call: Callable[[], Awaitable[Any]], times: int = 1) -> asyncio.Task[Any]:
    """Return the finished task of *call*, cancelled *times* times from its *step*-th turn of the loop on."""

    async def run() -> Any:
        return await call()

    task = asyncio.create_task(run())
    for turn in range(_MOST_STEPS):
        if task.done():
            break
        if step <= turn < step + times:
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    return task


async def each_step(run: Callable[[int], Awaitable[asyncio.Task[Any]]], least: int) -> None:
    """Call *run* for 0, 1, 2, … until the call was over before its cancel: after *least* at the earliest."""
    for step in range(_MOST_STEPS):
        if not (await run(step)).cancelled():
            assert step >= least
            return
    pytest.fail("the call never ended")


each_time = pytest.mark.parametrize("times", [1, 2, 3])


@each_time
@pytest.mark.parametrize("how", ["getconn", "block"])
@patient
async def test_cancelled_while_one_is_made(world: World, how: str, times: int) -> None:
    """asyncpg#464, #547; SQLAlchemy#6652, #12077: the connection that was for it is somebody else's then."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, max_size=2)

        async def borrow() -> None:
            if how == "block":
                async with shop.pool.connection():
                    pass
            else:
                await shop.pool.putconn(await shop.pool.getconn())

        task = await cancelled_at(step, borrow, times)
        await shop.is_whole()
        return task

    await each_step(run, least=4)


@each_time
@patient
async def test_cancelled_while_it_waits_for_another(world: World, times: int) -> None:
    """asyncpg#467, #1156, cpython#90155, bpo-27585: in the very turn in which it is handed over, too."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, max_size=1)
        held = await shop.pool.getconn()
        order: list[str] = []

        async def borrow(name: str) -> None:
            async with shop.pool.connection():
                order.append(name)

        async def give_back() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            await shop.pool.putconn(held)

        giver = asyncio.create_task(give_back())
        first = asyncio.create_task(borrow("first"))
        await asyncio.sleep(0)
        task = await cancelled_at(step, lambda: borrow("cancelled"), times)
        last = asyncio.create_task(borrow("last"))
        await asyncio.wait([giver, first, last], timeout=30.0)
        assert order[0] == "first"
        assert order[-1] == "last"
        assert ("cancelled" in order) == (not task.cancelled())
        await shop.is_whole()
        return task

    await each_step(run, least=3)


@each_time
@patient
async def test_cancelled_while_its_connection_is_checked(world: World, times: int) -> None:
    """The check goes on; what it says is of use to the next."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, max_size=1, check=Slow.check, check_after_idle=0)
        await shop.pool.putconn(await shop.pool.getconn())
        await asyncio.sleep(1.0)

        async def borrow() -> None:
            async with shop.pool.connection():
                pass

        task = await cancelled_at(step, borrow, times)
        assert len(shop.made) == 1
        await shop.is_whole()
        return task

    await each_step(run, least=3)


@each_time
@pytest.mark.parametrize("how", ["well", "badly", "by hand"])
@patient
async def test_cancelled_while_it_gives_one_back(world: World, how: str, times: int) -> None:
    """asyncpg#955, #431, SQLAlchemy#8145: in the middle of a commit or rollback; nobody gets half of it."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, Session, max_size=1)
        conn = await shop.pool.getconn()
        await shop.pool.putconn(conn)

        async def borrow() -> None:
            if how == "by hand":
                conn = await shop.pool.getconn()
                try:
                    await conn.ask()
                finally:
                    await shop.pool.putconn(conn)
                return
            try:
                async with shop.pool.connection() as conn:
                    if how == "badly":
                        await _fail(conn)
                    await conn.ask()
            except KeyError:
                pass

        task = await cancelled_at(step, borrow, times)
        await asyncio.sleep(1.0)
        if not task.cancelled():
            assert shop.made[-1].log[-1] == ("commit" if how == "well" else "rollback")
        await shop.is_whole()
        return task

    await each_step(run, least=6 if how == "well" else 3)


@each_time
@patient
async def test_cancelled_in_its_block(world: World, times: int) -> None:
    """redis-py#2624, #2665, aredis#171: an answer that is still to come is not taken for somebody else's."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, max_size=1)
        await shop.pool.putconn(await shop.pool.getconn())

        async def borrow() -> None:
            async with shop.pool.connection() as conn:
                await conn.ask()

        task = await cancelled_at(step, borrow, times)
        await asyncio.sleep(1.0)
        if task.cancelled() and step:
            assert shop.made[0].log == ["close"]
        await shop.is_whole()
        return task

    await each_step(run, least=3)


@each_time
@patient
async def test_cancelled_while_it_waits_for_the_least(world: World, times: int) -> None:
    """`wait` leaves nobody behind."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, min_size=2, max_size=2)
        task = await cancelled_at(step, shop.pool.wait, times)
        assert not shop.pool._core._watches
        await shop.is_whole()
        return task

    await each_step(run, least=4)


@each_time
@patient
async def test_cancelled_while_it_closes_the_pool(world: World, times: int) -> None:
    """Whoever closes it has no more time: then it is cut, and nothing stays open."""

    async def run(step: int) -> asyncio.Task[Any]:
        shop = Shop(world, max_size=2)
        held = [await shop.pool.getconn() for _ in range(2)]
        await shop.pool.putconn(held.pop())
        returning = asyncio.create_task(_return_after(8, shop.pool, held[0]))

        task = await cancelled_at(step, shop.pool.close, times)
        await returning
        await asyncio.sleep(5.0)
        gc.collect()
        if step:
            assert shop.pool.closed
        else:
            await shop.pool.close()
        await asyncio.sleep(5.0)
        assert shop.pool.stats().size == 0
        assert shop.open == 0
        return task

    await each_step(run, least=4)


async def _fail(conn: Any) -> None:
    await conn.ask()
    raise KeyError("in the block")


async def _return_after(turns: int, pool: AsyncConnectionPool[Any], conn: Any) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await pool.putconn(conn)
    except ConnectionReclaimedError:
        assert pool.closed


@patient
async def test_cancel_is_never_swallowed(world: World) -> None:
    """psycopg#1401: whoever is cancelled while it waits is cancelled, also if it could have had one."""
    shop = Shop(world, max_size=1)
    held = await shop.pool.getconn()
    waiting = asyncio.create_task(shop.pool.getconn())
    await asyncio.sleep(0)
    await shop.pool.putconn(held)  # which hands it over
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await shop.is_whole()


@patient
async def test_time_limits_of_asyncio_lose_nothing(world: World) -> None:
    """SQLAlchemy#12099: `asyncio.timeout` and `wait_for` around it, ended in the moment of the hand-over."""
    shop = Shop(world, max_size=1)
    loop = asyncio.get_running_loop()
    for limit in (asyncio.wait_for, _within):
        held = await shop.pool.getconn()
        loop.call_later(1.0, lambda held=held: loop.create_task(shop.pool.putconn(held)))
        del held
        try:
            conn = await limit(shop.pool.getconn(), 1.0)
        except TimeoutError:
            conn = None
        await asyncio.sleep(1.0)
        assert shop.pool.stats().used == (conn is not None)
        if conn is not None:
            await shop.pool.putconn(conn)
    await shop.is_whole()


async def _within(awaitable: Awaitable[Any], seconds: float) -> Any:
    async with asyncio.timeout(seconds):
        return await awaitable


@patient
async def test_cancelling_all_tasks_does_not_end_the_pool(world: World) -> None:
    """Its own chores among them: they are begun anew for whoever comes then."""
    shop = Shop(world, max_size=2)
    waiting = asyncio.create_task(shop.pool.getconn())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await shop.is_whole()


@patient
async def test_cancelled_error_of_the_users_connect_is_a_failure(world: World) -> None:
    """It awaited something that was cancelled; the pool goes on connecting."""
    shop = Shop(world, timeout=5.0)
    connect = shop.pool._crew._connect
    attempts = []

    async def flaky() -> Slow:
        attempts.append(1)
        if len(attempts) == 1:
            raise asyncio.CancelledError
        conn: Slow = await connect()
        return conn

    shop.pool._crew._connect = flaky
    async with shop.pool.connection() as conn:
        assert await conn.ask() == "pong"
    assert shop.pool.stats().connect_failures == 1
    await shop.is_whole()
