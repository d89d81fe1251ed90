"""What is asked of a pool under stress: that all its connections are there, by their own account."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.stress.signals import within_seconds
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool

__all__ = [
    "SOAK",
    "Book",
    "Link",
    "LostError",
    "aassert_all_closed",
    "aassert_whole",
    "assert_all_closed",
    "assert_whole",
    "close_in_a_turn",
    "in_threads",
    "returns_everything",
]

SOAK = bool(os.environ.get("RESILIENT_SOAK"))


class LostError(Exception):
    """What a client library raises when its connection is gone."""


class Book:
    """Every connection that was ever made, by its own account. Interrupts leave it true, without a lock."""

    def __init__(self) -> None:
        self.made: list[Link] = []
        self.ended: list[Link] = []
        self.open: set[Link] = set()
        self.seen: list[int] = [0]  # by each that was made: how many were open then, itself included
        self.wrongs: list[str] = []

    @property
    def most(self) -> int:
        """The most there were open at once."""
        return max(self.seen)

    def link(self) -> Link:
        """Make a connection."""
        return Link(self)

    async def alink(self) -> Link:
        """Make one, in a turn of the loop."""
        await asyncio.sleep(0)
        return Link(self)


async def close_in_a_turn(link: Link) -> None:
    """Close a connection as asynchronous ones are closed."""
    await asyncio.sleep(0)
    link.close()


class Link:
    """A connection that knows whether it is open, and whether two have it."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._user: object = None
        book.made.append(self)
        book.open.add(self)
        book.seen.append(len(book.open))

    def close(self) -> None:
        """End it."""
        self._book.ended.append(self)
        self._book.open.discard(self)

    def use(self) -> None:
        """Talk to a server for as long as other threads need to have their turn."""
        me = self._begin()
        time.sleep(0.0)
        self._end(me)

    async def ause(self) -> None:
        """Talk to a server for a turn of the loop."""
        me = self._begin()
        await asyncio.sleep(0)
        self._end(me)

    def _begin(self) -> object:
        if self not in self._book.open:
            self._book.wrongs.append("lent though it was closed")
        self._user = me = object()
        return me

    def _end(self, me: object) -> None:
        if self._user is not me:
            self._book.wrongs.append("in two hands")
        if self not in self._book.open:
            self._book.wrongs.append("closed while it was used")


def assert_whole(pool: ConnectionPool[Link], book: Book) -> None:
    """Fail unless nobody has a connection, all can be lent at once, and no others are open."""
    gc.collect()
    wait_until(lambda: _is_at_rest(pool), "all connections come back")
    most = pool.stats().max_size
    assert _lendable(pool, most) == most
    assert within_seconds(20.0, lambda: _lendable(pool, most)) == most
    # Where they live short lives, some are on their way to their end.
    wait_until(lambda: len(book.open) == pool.stats().size, "all that are open are the pool's")
    assert not book.wrongs, book.wrongs[:10]


def assert_all_closed(pool: ConnectionPool[Link], book: Book) -> None:
    """Close the pool; fail unless every connection was closed then, once."""
    pool.close()
    assert not book.wrongs, book.wrongs[:10]
    fates = (len(book.open), len(book.ended), len(book.made))
    assert fates == (0, fates[2], fates[2]), fates
    stats = pool.stats()
    assert (stats.size, stats.idle, stats.used, stats.waiting) == (0, 0, 0, 0), stats
    assert (stats.connects, stats.closed) == (len(book.made), len(book.made)), stats


async def aassert_whole(pool: AsyncConnectionPool[Link], book: Book) -> None:
    """Do as `assert_whole`, in the pool's own loop."""
    gc.collect()
    await await_until(lambda: _is_at_rest(pool), "all connections come back")
    most = pool.stats().max_size
    for _ in range(2):
        async with contextlib.AsyncExitStack() as held:
            lent = [await held.enter_async_context(pool.connection(20.0)) for _ in range(most)]
            assert len({id(pool.unwrap(conn)) for conn in lent}) == most
            await asyncio.gather(*(conn.ause() for conn in lent))
    await await_until(lambda: len(book.open) == pool.stats().size, "all that are open are the pool's")
    assert not book.wrongs, book.wrongs[:10]


async def aassert_all_closed(pool: AsyncConnectionPool[Link], book: Book) -> None:
    """Do as `assert_all_closed`."""
    await pool.close()
    assert not book.wrongs, book.wrongs[:10]
    fates = (len(book.open), len(book.ended), len(book.made))
    assert fates == (0, fates[2], fates[2]), fates
    stats = pool.stats()
    assert (stats.size, stats.idle, stats.used, stats.waiting) == (0, 0, 0, 0), stats
    assert (stats.connects, stats.closed) == (len(book.made), len(book.made)), stats


@contextlib.contextmanager
def returns_everything(pool: ConnectionPool[Link], book: Book) -> Any:
    """Check, when the block ends, that the pool is whole, and close it."""
    try:
        yield
        assert_whole(pool, book)
    finally:
        pool.close()
    assert_all_closed(pool, book)


def in_threads(number: int, work: Callable[[int], object]) -> None:
    """Have so many threads do *work*, numbered, all at once; fail if it raises in one."""
    errors = list[BaseException]()
    together = threading.Barrier(number)

    def run(place: int) -> None:
        try:
            together.wait(20.0)
            work(place)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[:3]


def _is_at_rest(pool: Any) -> bool:
    stats = pool.stats()
    pool._core.round()  # what was lost is found, and what is due for a check goes out for one
    return bool(stats.idle == stats.size and not stats.used and not stats.waiting and not stats.connecting)


def _lendable(pool: ConnectionPool[Link], most: int) -> int:
    """Return how many connections are lent at once, when so many are asked for."""
    with contextlib.ExitStack() as held:
        lent = [held.enter_context(pool.connection(20.0)) for _ in range(most)]
        for conn in lent:
            conn.use()
        return len({id(pool.unwrap(conn)) for conn in lent})
