"""What is done with a pool's connections: as its user says, and beyond that, as their kind asks for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from ..engine.matching import Matcher
from .drivers import Driver, Steps, driver_of

__all__ = ["Act", "Handling", "through"]

Act = Callable[[Any], Any]
"""Does something with a connection; may return an awaitable in an asynchronous pool."""


class Handling:
    """Does what there is to do with a connection.

    The kind of the connections is known with the first of them.

    Concurrency: safe from any thread; all connections of a pool are of one kind.
    """

    __slots__ = ("_broken", "_check", "_close", "_driver", "_reset", "commits", "dirty")

    def __init__(
        self,
        *,
        close: Act | None,
        check: Act | None,
        reset: Act | None,
        broken: Matcher | None,
        commits: bool,
    ) -> None:
        self._close = close
        self._check = check
        self._reset = reset
        self._broken = broken
        self._driver = Driver()
        self.commits = commits
        self.dirty: Callable[[Any], bool] | None = None
        """Whether a connection has to be reset before it is lent again. None: none ever has."""

    def meet(self, conn: Any) -> None:
        """Get to know the kind of the pool's connections."""
        self._driver = driver = driver_of(conn)
        if self._reset is not None:
            self.dirty = _always
        elif type(driver).dirty is not Driver.dirty:
            self.dirty = driver.dirty

    @property
    def checks(self) -> bool:
        """Whether there is a way to find out that a connection is good."""
        return self._check is not None or type(self._driver).check is not Driver.check

    @property
    def closes_at_once(self) -> bool:
        """Whether closing is known to wait for nothing."""
        return self._close is None and type(self._driver) is not Driver

    @property
    def transactional(self) -> bool:
        """Whether what is done on a connection is committed, or undone."""
        return self._driver.transactional

    def is_at_rest(self, conn: Any) -> bool:
        """Tell whether it is known to be between two commands."""
        return self._driver.at_rest(conn) is True

    def is_broken(self, conn: Any, exc: BaseException) -> bool:
        """Tell whether a connection must not be used again, after *exc* came from where it was used."""
        if self._driver.broken(conn, exc):
            return True
        return self._broken is not None and isinstance(exc, Exception) and bool(self._broken.match(exc))

    def close(self, conn: Any) -> Steps:
        """Close it in good order."""
        return self._driver.close(conn) if self._close is None else _one(self._close, conn)

    def check(self, conn: Any) -> Steps:
        """Raise if it is dead."""
        if self._check is None:
            yield from through(self._driver.check(conn) or ())
        else:
            yield from through(_one(self._check, conn))
            if self._driver.transactional and self._driver.dirty(conn):
                yield from through(self._driver.rollback(conn))

    def reset(self, conn: Any) -> Steps:
        """Have it as new; raise if that cannot be."""
        if self._driver.dirty(conn):
            yield from through(self._driver.reset(conn))
        if self._reset is not None:
            yield self._reset(conn)
            yield from through(self.settle(conn))

    def settle(self, conn: Any) -> Steps:
        """Have kept what was set up on a connection that nobody has borrowed, by code of the user's."""
        if self._driver.transactional and self._driver.tells and self._driver.dirty(conn):
            yield from through(self._driver.commit(conn))

    def ending(self, conn: Any, *, well: bool) -> Steps | None:
        """Return what the borrower has to do to end a transaction, *well* or not; None if that is nothing.

        What is not to be kept is undone by whoever does the chores, in limited time, unless that takes none.
        """
        driver = self._driver
        if not driver.transactional or not driver.dirty(conn):
            return None
        if well and self.commits:
            return driver.commit(conn)
        return driver.rollback(conn) if driver.local else None

    def abort(self, conn: Any) -> None:
        """Cut it, without waiting and from any thread."""
        self._driver.abort(conn)

    def fileno(self, conn: Any) -> int | None:
        """Return its descriptor, if it has one."""
        return self._driver.fileno(conn)


def _always(conn: Any) -> bool:  # noqa: ARG001
    return True


def _one(act: Act, conn: Any) -> Steps:
    if (yield act(conn)) is False:
        raise ConnectionError(f"{act!r} returned False")


def through(steps: Iterable[Any]) -> Generator[Any, Any, None]:
    """Take each of *steps*, and send back what came of it to whoever makes them."""
    if isinstance(steps, Generator):
        yield from steps
    else:
        for step in steps:  # noqa: UP028 - what is sent back would be sent to something that takes nothing
            yield step
