"""The line before a pool: who came first is served first, whatever the others do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.stress.pools import SOAK, Book, Link, assert_all_closed, assert_whole, in_threads
from tests.support.waiting import wait_until

from resilient import AsyncConnectionPool, ConnectionPool, PoolTimeoutError
from resilient.pool.line import Line, Turn

LONG = 60.0
WAITERS = 64
ROUNDS = 50 if SOAK else 3
THREADS = 32
CHECKOUTS = 200_000 if SOAK else 4_000

pytestmark = [
    pytest.mark.usefixtures("restless", "one_look"),
    pytest.mark.timeout(600.0 if SOAK else 60.0),
]


class Recorder(Line):
    """A line that keeps account of who came, and of who left it with a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.come: dict[int, int] = {}
        self.turns: list[Turn] = []  # all that ever came: so no two have the same address
        self.served: list[int] = []

    def append(self, turn: Turn) -> None:
        self.come[id(turn)] = next(self.numbers)
        self.turns.append(turn)
        super().append(turn)

    def leave(self, turn: Turn) -> None:
        # Some leave without a connection, and some once more when they have it.
        if turn.token is not None and id(turn) in self.come:
            self.served.append(self.come.pop(id(turn)))
        super().leave(turn)


@pytest.fixture
def pool(book: Book) -> Iterator[ConnectionPool[Link]]:
    made = ConnectionPool(book.link, name="p", max_size=3, timeout=LONG)
    made._core._line = Recorder()
    yield made
    made.close()


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_crowd_of_threads_is_served_in_the_order_of_its_coming(
    pool: ConnectionPool[Link], book: Book
) -> None:
    """Some give up in the line, some find one free: those who wait never overtake one another."""

    def borrow(place: int) -> None:
        chance = random.Random(place)
        for _ in range(CHECKOUTS // THREADS):
            patience = LONG if chance.random() < 0.8 else chance.random() * 0.001
            with contextlib.suppress(PoolTimeoutError), pool.connection(patience) as conn:
                conn.use()

    in_threads(THREADS, borrow)

    line = pool._core._line
    assert len(line.served) > CHECKOUTS // 20, "too few waited to mean anything"
    assert line.served == sorted(line.served)
    assert_whole(pool, book)
    assert_all_closed(pool, book)


async def test_a_crowd_of_tasks_is_served_in_the_order_of_its_coming(book: Book) -> None:
    """Some are cancelled in the line, or with the connection on its way to them."""
    pool = AsyncConnectionPool(book.alink, name="p", max_size=3, timeout=LONG)
    pool._core._line = line = Recorder()

    async def borrow(place: int) -> None:
        chance = random.Random(place)
        for _ in range(CHECKOUTS // 100):
            task = asyncio.create_task(use())
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.002)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def use() -> None:
        async with pool.connection() as conn:
            await conn.ause()

    await asyncio.gather(*map(borrow, range(100)))

    assert len(line.served) > CHECKOUTS // 20, "too few waited to mean anything"
    assert line.served == sorted(line.served)
    await pool.close()
    assert not book.open


def test_threads_get_connections_in_the_order_they_asked(pool: ConnectionPool[Link]) -> None:
    """Told from outside: one comes after the other, and each that is returned goes to the next."""
    for _ in range(ROUNDS):
        held = [pool.getconn() for _ in range(3)]
        served = list[int]()

        def borrow(number: int, served: list[int] = served) -> None:
            with pool.connection():
                served.append(number)

        threads = [threading.Thread(target=borrow, args=(number,)) for number in range(WAITERS)]
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda number=number: pool.stats().waiting == number + 1, "it waits")
        pool.putconn(held.pop())  # one goes from hand to hand: else two would be served at once
        for thread in threads:
            thread.join()
        assert served == [*range(WAITERS)]
        for conn in held:
            pool.putconn(conn)


async def test_tasks_get_connections_in_the_order_they_asked(book: Book) -> None:
    """Those among them that are cancelled are left out, and nobody else loses his place."""
    pool = AsyncConnectionPool(book.alink, name="p", max_size=1, timeout=LONG)
    for _ in range(ROUNDS):
        served = list[int]()

        async def borrow(number: int, served: list[int] = served) -> None:
            async with pool.connection():
                served.append(number)

        held = await pool.getconn()
        tasks = []
        for number in range(WAITERS):
            tasks.append(asyncio.create_task(borrow(number)))
            await asyncio.sleep(0)
        assert pool.stats().waiting == WAITERS
        for task in tasks[::3]:
            task.cancel()
        await pool.putconn(held)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == [number for number in range(WAITERS) if number % 3]
    await pool.close()


RETURNS: dict[str, Callable[[ConnectionPool[Link], Any], object]] = {
    "returned": lambda pool, held: pool.putconn(held.pop()),
    "forgotten": lambda pool, held: (held.clear(), pool._core.round()),
}


@pytest.mark.parametrize("give_back", RETURNS.values(), ids=RETURNS)
def test_newcomer_never_gets_what_somebody_waits_for(
    pool: ConnectionPool[Link], give_back: Callable[[Any, Any], object]
) -> None:
    """As soon as somebody waits, who comes later is behind him, even if a connection comes free just then."""
    pool.resize(1)
    for _ in range(100 * ROUNDS):
        held, got = [pool.getconn()], threading.Event()

        def wait(got: threading.Event = got) -> None:
            with pool.connection():
                got.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_until(lambda: pool.stats().waiting == 1, "it waits")
        over = list[bool]()

        def barge(got: threading.Event = got, over: list[bool] = over) -> None:
            while not got.is_set():
                with contextlib.suppress(PoolTimeoutError), pool.connection(0.0):
                    over.append(got.is_set())

        newcomer = threading.Thread(target=barge)
        newcomer.start()
        give_back(pool, held)
        newcomer.join()
        waiter.join()
        assert False not in over
