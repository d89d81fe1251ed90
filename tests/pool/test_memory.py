"""What borrowers leave behind in a pool: nothing. And what a pool leaves behind: no thread, no memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from tests.stress.memory import aassert_flat, assert_flat
from tests.stress.pools import LostError
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool, PoolTimeoutError

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
CHECKOUTS = 1_000_000 if SOAK else 5_000
LONG = 20.0

pytestmark = pytest.mark.timeout(600.0 if SOAK else 60.0)


class Conn:
    """A connection without anything."""

    def close(self) -> None: ...


class Load:
    """Something that must not be kept."""


@pytest.fixture(autouse=True)
def reports_off(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is kept by pytest."""
    caplog.set_level("CRITICAL", "resilient")


@pytest.fixture
def pool() -> Iterator[ConnectionPool[Conn]]:
    made = ConnectionPool(Conn, name="p", max_size=2, timeout=LONG, broken=LostError)
    yield made
    made.close()


async def aconnect() -> Conn:
    return Conn()


POOLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full-stacks": {"full_stacks": True},
    "reset": {"reset": lambda _: None},
}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_checkouts_leave_nothing_behind(options: dict[str, Any]) -> None:
    """Good ones, failing ones, and some in vain."""
    pool = ConnectionPool(Conn, name="p", max_size=1, timeout=LONG, **options)

    def checkouts(number: int) -> None:
        for turn in range(number // 3):
            with pool.connection():
                if not turn % 50:
                    with pytest.raises(PoolTimeoutError):
                        pool.getconn(0.0)
            with contextlib.suppress(KeyError), pool.connection():
                raise KeyError
            pool.putconn(pool.getconn())

    assert_flat(checkouts, CHECKOUTS if "reset" not in options else CHECKOUTS // 10)
    pool.close()


def test_connections_that_come_and_go_leave_nothing_behind(pool: ConnectionPool[Conn]) -> None:
    """Broken, forgotten, drained: also their threads' work."""

    def checkouts(number: int) -> None:
        for _ in range(number // 3):
            with pool.connection():
                pass
            with pool.connection():
                pool.drain()
            pool.getconn()
        wait_until(lambda: _is_at_rest(pool), "all is done")

    assert_flat(checkouts, CHECKOUTS // 20)
    assert pool.stats().collected > 0


def test_kinds_of_connections_that_are_no_more_are_not_kept() -> None:
    """There are those that have a class of their own each, as mocks have."""

    def own() -> Conn:
        kind: type[Conn] = type("Own", (Conn,), {})
        return kind()

    def checkouts(number: int) -> None:
        pool = ConnectionPool(own, name="p", max_lifetime=1e-9)
        for _ in range(number):
            with pool.connection():
                pass
        pool.close()

    kinds = lambda: sum(type(one) is type and one.__name__ == "Own" for one in gc.get_objects())  # noqa: E731
    checkouts(300)
    gc.collect()
    assert kinds() <= 140, "more than a cache of drivers keeps"


async def test_asynchronous_checkouts_leave_nothing_behind() -> None:
    """With tasks that wait, that are cancelled, and that forget."""
    pool = AsyncConnectionPool(aconnect, name="p", max_size=1, timeout=LONG)

    async def use() -> None:
        async with pool.connection():
            await asyncio.sleep(0)

    async def checkouts(number: int) -> None:
        for _ in range(number // 10):
            tasks = [asyncio.create_task(use()) for _ in range(5)]
            await asyncio.sleep(0)
            tasks[-1].cancel()
            await asyncio.wait(tasks)
            await pool.getconn()
            for _ in range(4):
                await use()
        await await_until(lambda: _is_at_rest(pool), "all is done")

    await aassert_flat(checkouts, CHECKOUTS // 3)
    await pool.close()


def in_a_block(pool: ConnectionPool[Conn], load: Load) -> None:
    with pool.connection():
        del load


def in_a_wait(pool: ConnectionPool[Conn], load: Load) -> None:
    """Get it after a wait."""
    with pool.connection() as one, pool.connection() as another:
        thread = threading.Thread(target=in_a_block, args=(pool, load))
        thread.start()
        wait_until(lambda: pool.stats().waiting == 1, "it waits")
        del one, another
    thread.join()


def in_vain(pool: ConnectionPool[Conn], load: Load) -> None:
    with pool.connection(), pool.connection(), contextlib.suppress(PoolTimeoutError):
        pool.getconn(0.001)
    del load


def failing(pool: ConnectionPool[Conn], load: Load) -> None:
    with contextlib.suppress(LostError), pool.connection():
        error = LostError()
        error.load = load  # type: ignore[attr-defined]
        raise error


def forgetting(pool: ConnectionPool[Conn], load: Load) -> None:
    conn = pool.getconn()
    del load, conn


def reported(pool: ConnectionPool[Conn], load: Load) -> None:
    with pool.connection():
        assert pool.borrowers()
        assert pool.stats()
    del load


HABITS = (in_a_block, in_a_wait, in_vain, failing, forgetting, reported)


@pytest.mark.parametrize("full_stacks", [False, True])
@pytest.mark.parametrize("habit", HABITS)
def test_nothing_of_a_borrower_is_kept(habit: Callable[[Any, Load], None], full_stacks: bool) -> None:
    """Not its locals, nor its exception, its context, its thread or what that held."""
    pool = ConnectionPool(
        Conn, name="p", max_size=2, timeout=LONG, broken=LostError, full_stacks=full_stacks, leak_after=LONG
    )
    var: ContextVar[Load] = ContextVar("var")

    class Borrowing(threading.Thread):
        def __init__(self) -> None:
            super().__init__()
            self.load = Load()

        def run(self) -> None:
            self.inner = Load()
            var.set(self.inner)
            local = Load()
            traces.append(weakref.ref(local))
            habit(pool, local)

    traces = list[weakref.ref[Any]]()
    thread = Borrowing()
    thread.start()
    thread.join()
    traces += map(weakref.ref, (thread, thread.load, thread.inner))
    del thread

    wait_until(lambda: _is_at_rest(pool), "all is done")

    def are_gone() -> bool:
        gc.collect()
        return not any(trace() for trace in traces)

    assert len(traces) == 4
    wait_until(are_gone, "they are gone")
    pool.close()


async def test_nothing_of_a_task_is_kept() -> None:
    """Nor of the one that borrowed first, in whose time the pool began with its rounds."""
    pool = AsyncConnectionPool(aconnect, name="p", max_size=1, timeout=LONG, broken=LostError)
    var: ContextVar[Load] = ContextVar("var")
    traces = list[weakref.ref[Any]]()

    async def borrow(how: str) -> None:
        local, around = Load(), Load()
        var.set(around)
        traces.extend(map(weakref.ref, (local, around, asyncio.current_task())))
        with contextlib.suppress(LostError, PoolTimeoutError):
            if how == "forget":
                await pool.getconn()
                return
            async with pool.connection():
                if how == "fail":
                    raise LostError
                if how == "wait in vain":
                    await pool.getconn(0.0)

    for how in ("use", "fail", "wait in vain", "forget", "use"):
        await asyncio.create_task(borrow(how))
    await await_until(lambda: _is_at_rest(pool), "all is done")

    def are_gone() -> bool:
        gc.collect()
        return not any(trace() for trace in traces)

    # asyncio keeps the context of a time limit that was taken back until it would have been over.
    await await_until(are_gone, "they are gone")
    await pool.close()


def test_closed_connection_is_not_kept(pool: ConnectionPool[Conn]) -> None:
    """Nor one that was reclaimed, once its borrower has given it up."""
    traces = list[weakref.ref[Any]]()
    for end in (pool.drain, pool._core.cut):
        conn = pool.getconn()
        traces.append(weakref.ref(pool.unwrap(conn)))
        end()
        with contextlib.suppress(Exception):
            pool.putconn(conn)
        del conn
    wait_until(lambda: not any(trace() for trace in traces), "they are gone")
    assert pool.stats().size == 0


def test_kept_exceptions_keep_no_connection_from_coming_back(pool: ConnectionPool[Conn]) -> None:
    """Whoever forgets the same connection afterwards is noticed all the same."""
    kept = list[BaseException]()
    for error in (KeyError(), LostError(), ValueError()):
        try:
            with pool.connection():
                raise error
        except (KeyError, LostError, ValueError) as exc:
            kept.append(exc)
        pool.getconn()  # and lost
        pool.getconn()
        wait_until(lambda: _is_at_rest(pool), "they come back")
    with pytest.raises(TypeError, match="must be a connection borrowed") as caught:
        pool.putconn(Conn())
    kept.append(caught.value)
    assert len(kept) == 4


class Committing(Conn):
    """A connection that cannot commit."""

    def cursor(self) -> None: ...
    def rollback(self) -> None: ...
    def commit(self) -> None:
        raise ValueError("cannot commit")


def test_kept_exception_of_a_commit_keeps_no_connection_from_coming_back() -> None:
    """It came out of the pool itself."""
    pool = ConnectionPool(Committing, name="p", max_size=1, timeout=LONG)
    with pytest.raises(ValueError, match="cannot commit") as kept, pool.connection():
        pass
    pool.getconn()  # and lost

    wait_until(lambda: _is_at_rest(pool), "it comes back")

    assert kept.value
    pool.close()


@pytest.fixture
def impatient_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads end that have nothing to do for a moment."""
    monkeypatch.setattr("resilient.engine.workers._IDLE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient_threads")
def test_pool_that_is_dropped_is_collected_with_its_threads() -> None:
    """Without being closed: its connections are dropped with it, and its threads end when they find out."""
    before = set(threading.enumerate())
    pool: Any = ConnectionPool(Conn, name="dropped", max_size=2, min_size=2)
    pool.wait()
    with pool.connection() as conn:
        traces = [weakref.ref(pool), weakref.ref(pool._core), weakref.ref(pool.unwrap(conn))]
        del conn
    workers = [thread for thread in set(threading.enumerate()) - before if "dropped" in thread.name]
    assert workers

    del pool

    def is_collected() -> bool:
        gc.collect()  # again: a thread may just have been about to end its work
        return not any(trace() for trace in traces)

    wait_until(is_collected, "it is collected")
    wait_until(lambda: not any(thread.is_alive() for thread in workers), "its threads end")


async def test_asynchronous_pool_that_is_dropped_is_collected() -> None:
    """Though the loop goes on, in which it made its rounds."""
    pool: Any = AsyncConnectionPool(aconnect, name="dropped", max_size=2)
    async with pool.connection() as conn:
        traces = [weakref.ref(pool), weakref.ref(pool._core), weakref.ref(pool.unwrap(conn))]
        del conn

    del pool
    gc.collect()

    assert [trace() for trace in traces] == [None] * 3


@pytest.mark.usefixtures("impatient_threads")
def test_many_pools_leave_nothing_behind() -> None:
    """Made, used and closed one after the other, as tests of a service do."""

    def pools(number: int) -> None:
        for _ in range(number):
            with ConnectionPool(Conn, name="many", max_size=2) as pool, pool.connection():
                pass

    pools(5)
    gc.collect()
    before = sys.getallocatedblocks()
    pools(40)
    wait_until(_is_quiet, "their threads have ended", within=20.0)
    gc.collect()
    assert sys.getallocatedblocks() - before < 40 * 60


def _is_quiet() -> bool:
    return not any(thread.name.startswith("resilient-pool-many") for thread in threading.enumerate())


def _is_at_rest(pool: Any) -> bool:
    pool._core.round()
    stats = pool.stats()
    return bool(stats.idle == stats.size and not stats.used and not stats.connecting and not stats.waiting)
