"""A pool and event loops: it belongs to one, says so to others, and ends with it without a complaint.

That asyncio complains of nothing (tasks destroyed, coroutines never awaited) is seen to after each test, here
in asyncio's debug mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from tests.stress.pools import Book, Link, LostError, close_in_a_turn
from tests.support.waiting import await_until

from resilient import AsyncConnectionPool, PoolClosedError, PoolTimeoutError

LONG = 20.0


@pytest.fixture(autouse=True)
def debugging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have every loop in debug mode; a busy machine is no fault of ours."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.slow_callback_duration", LONG, raising=False)
    yield
    gc.collect()


@pytest.fixture
def book() -> Book:
    return Book()


def pool_of(book: Book, **options: Any) -> AsyncConnectionPool[Link]:
    return AsyncConnectionPool(book.alink, name="p", **{"max_size": 2, "close": close_in_a_turn, **options})


async def use(pool: AsyncConnectionPool[Link]) -> None:
    async with pool.connection() as conn:
        await conn.ause()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run *main* in a loop of its own, which is not the test's."""
    with asyncio.Runner(debug=True) as runner:
        runner.get_loop().slow_callback_duration = LONG
        return runner.run(main)


def test_pool_made_outside_of_a_loop_is_used_in_one(book: Book) -> None:
    """Whatever is asked of it before, and with `min_size` too."""
    pool = pool_of(book, min_size=2)
    pool.drain()
    pool.resize(3)
    assert pool.borrowers() == []
    assert pool.stats().connect_failures == pool.stats().size == 0
    assert pool.available

    async def main() -> None:
        await pool.wait()
        await use(pool)
        await pool.close()

    run(main())

    assert len(book.made) >= 2
    assert not book.open


USES: dict[str, Callable[[AsyncConnectionPool[Link]], Coroutine[Any, Any, Any]]] = {
    "connection": use,
    "getconn": lambda pool: pool.getconn(),
    "wait": lambda pool: pool.wait(),
    "close": lambda pool: pool.close(),
    "decorator": lambda pool: pool(close_in_a_turn)(),
}


@pytest.mark.parametrize("borrow", USES.values(), ids=USES)
async def test_second_loop_is_refused_while_the_first_runs(
    book: Book, borrow: Callable[[AsyncConnectionPool[Link]], Coroutine[Any, Any, Any]]
) -> None:
    """In another thread; the message says what to do, and the first loop's connections are untouched."""
    pool = pool_of(book)
    await use(pool)

    with pytest.raises(RuntimeError, match=r"'p' belongs to the event loop .* make a pool in each"):
        await asyncio.to_thread(run, borrow(pool))

    await use(pool)
    assert len(book.made) == 1
    await pool.close()


@pytest.mark.parametrize("borrow", USES.values(), ids=USES)
def test_loop_after_the_first_one_is_refused(
    book: Book, borrow: Callable[[AsyncConnectionPool[Link]], Coroutine[Any, Any, Any]]
) -> None:
    """As with `asyncio.run` twice; the message says that the first has been closed."""
    pool = pool_of(book)
    run(use(pool))

    with pytest.raises(RuntimeError, match="which has been closed"):
        run(borrow(pool))

    assert not book.open


def test_connection_of_another_loop_is_not_taken_back_for_good(book: Book) -> None:
    """It is refused, or what comes of it is told in words."""
    pool = pool_of(book)

    async def borrow() -> Link:
        return await pool.getconn()

    conn = run(borrow())

    with contextlib.suppress(RuntimeError, PoolClosedError):
        run(pool.putconn(conn))
    assert not pool.stats().idle


def test_pool_driven_without_a_loop_says_so(book: Book) -> None:
    """By a thread that has none."""
    pool = pool_of(book)

    for coroutine in (pool.getconn(), pool.wait(), pool.close()):
        with contextlib.closing(coroutine), pytest.raises(RuntimeError, match="event loop"):
            coroutine.send(None)


def test_what_needs_no_loop_works_in_any_thread(book: Book) -> None:
    """Statistics, borrowers, draining and resizing, from a thread beside the loop's."""
    pool = pool_of(book)

    async def main() -> None:
        async with pool.connection() as conn:
            errors = list[BaseException]()

            def look() -> None:
                try:
                    assert pool.stats().used == len(pool.borrowers()) == 1
                    pool.drain()
                    pool.resize(3, 3)
                except BaseException as exc:
                    errors.append(exc)

            thread = threading.Thread(target=look)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert not errors
            await conn.ause()
        await pool.wait()
        assert pool.stats().idle == 3
        await pool.close()

    run(main())
    assert len(book.made) >= 3


def test_connection_forgotten_in_another_thread_comes_back(book: Book) -> None:
    """The collector runs where it pleases."""
    pool = pool_of(book, max_size=1)

    async def main() -> None:
        held = [await pool.getconn()]
        thread = threading.Thread(target=held.clear)
        thread.start()
        await asyncio.to_thread(thread.join)
        await use(pool)
        await pool.close()

    run(main())
    assert len(book.made) == 1


async def stop_at_once(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    await use(pool)


async def stop_with_one_lent(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    kept.append(await pool.getconn())


async def stop_with_a_task_that_has_one(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    async def hold() -> None:
        async with pool.connection():
            begun.set()
            await asyncio.sleep(LONG)

    begun = asyncio.Event()
    kept.append(asyncio.create_task(hold()))
    await begun.wait()


async def stop_with_tasks_in_the_line(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    kept.extend([await pool.getconn(LONG) for _ in range(2)])
    kept.extend(asyncio.create_task(pool.getconn(LONG)) for _ in range(3))
    await await_until(lambda: pool.stats().waiting == 3, "they wait")


async def stop_while_connecting(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    kept.append(asyncio.create_task(pool.getconn(LONG)))
    await asyncio.sleep(0)
    assert pool.stats().connecting == 1


async def stop_with_much_to_do(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    for _ in range(2):
        with contextlib.suppress(LostError):
            async with pool.connection():
                raise LostError
    pool.drain()
    await use(pool)


async def stop_while_closing(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    kept.append(await pool.getconn())
    kept.append(asyncio.create_task(pool.close(LONG)))
    await asyncio.sleep(0)


async def stop_with_a_watch(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    pool.resize(3, 3)
    kept.append(asyncio.create_task(pool.wait()))
    await asyncio.sleep(0)


async def stop_by_an_error(pool: AsyncConnectionPool[Link], kept: list[Any]) -> None:
    async with pool.connection():
        raise LostError


STOPS = (
    stop_at_once,
    stop_with_one_lent,
    stop_with_a_task_that_has_one,
    stop_with_tasks_in_the_line,
    stop_while_connecting,
    stop_with_much_to_do,
    stop_while_closing,
    stop_with_a_watch,
    stop_by_an_error,
)
MORE: dict[str, dict[str, Any]] = {"plain": {}, "reset": {"reset": close_in_a_turn}}


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("stop", STOPS)
def test_loop_ends_in_the_midst_of_things(
    book: Book, stop: Callable[[Any, list[Any]], Coroutine[Any, Any, None]], options: dict[str, Any]
) -> None:
    """With the pool open: nobody complains, and what is free is closed in good order."""
    pool, kept = pool_of(book, broken=LostError, **options), list[Any]()

    with contextlib.suppress(LostError):
        run(stop(pool, kept))

    # Not what they are: a connection that was taken away raises when it is asked.
    lent = sum(type(one) is not asyncio.Task for one in kept)
    assert len(book.open) <= lent
    kept.clear()
    with pytest.raises(RuntimeError, match="closed"):
        run(use(pool))


def test_loop_that_is_closed_without_any_ceremony(book: Book) -> None:
    """As some frameworks do: no task is cancelled, no generator ended; whoever comes later is told."""
    pool, loop = pool_of(book), asyncio.new_event_loop()
    loop.run_until_complete(use(pool))
    loop.close()

    with pytest.raises(RuntimeError, match="which has been closed"):
        run(use(pool))
    assert pool.stats().used == 0
    del pool
    gc.collect()


async def test_task_cancelled_in_the_users_own_connect_is_a_failure_and_no_more(book: Book) -> None:
    """What it awaited was cancelled; that does not end the pool."""
    attempts = list[int]()

    async def connect() -> Link:
        attempts.append(1)
        if len(attempts) < 3:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return await book.alink()

    pool: AsyncConnectionPool[Link] = AsyncConnectionPool(connect, name="p", timeout=LONG)

    async with pool.connection(), pool.connection() as conn:
        await conn.ause()
    await pool.close()

    assert len(book.made) == 2


async def test_somebody_who_cancels_all_tasks_does_not_end_the_pool(book: Book) -> None:
    """A supervisor that starts again in the same loop."""
    pool = pool_of(book, timeout=LONG)
    waiting = [asyncio.create_task(use(pool)) for _ in range(5)]
    await asyncio.sleep(0)

    others = asyncio.all_tasks() - {asyncio.current_task()}
    while others:
        others.pop().cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    await asyncio.gather(*(use(pool) for _ in range(5)))
    await pool.close()
    assert not book.open


async def test_timeouts_and_cancels_at_every_turn_complain_of_nothing(book: Book) -> None:
    """One that is cancelled after so many turns of the loop, for each number of turns."""
    pool = pool_of(book, max_size=1, broken=LostError, reset=close_nothing)
    for turns in range(30):
        tasks = [asyncio.create_task(use(pool)) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[turns % 3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(PoolTimeoutError):
            await use(pool)
    await await_until(lambda: pool.stats().idle == pool.stats().size, "all come back")
    await pool.close()
    assert not book.open
    assert not book.wrongs


async def close_nothing(_conn: Link) -> None:
    await asyncio.sleep(0)
