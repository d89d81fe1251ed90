"""Databases: whether a connection can be had, and whether the server answers on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Final

from ...engine import params
from ...engine.finding import Fact, Finding, Status
from ...errors import PoolTimeoutError
from ...typing import Seconds
from .base import Check, Watchdog, duration, in_time, reason, seconds_of
from .sources import AsyncSource, Source, Watch, cut, source_of

__all__ = ["Database"]

_QUERY: Final = "SELECT 1"
_WRITABLE: Final = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
_LEAST: Final = 0.01  # seconds that are left for the server to answer, however late a connection came
_GRACE: Final = 0.25  # of the time: to end what was cut
_MOST_BORROWERS: Final = 3
_FORBIDDEN: Final = frozenset(
    {"InsufficientPrivilege", "InsufficientPrivilegeError", "InvalidPassword", "InvalidPasswordError"}
)


class Database(Check):
    """Ask a database something simple, on a connection as the application has them.

    What is borrowed is returned, and what was connected is closed, whatever happens. A connection whose
    server does not answer in time is cut, so that neither it nor the thread is lost to a server that hangs.

    Args:
        source: a pool of resilient, psycopg_pool or asyncpg; an `Engine` or `AsyncEngine` of SQLAlchemy; what
            `watch` returned; or a function or coroutine function that connects, by PEP 249 or with asyncpg.
            Where its connections are awaited, the check is asynchronous, too.
        query: what to ask, as short as can be.
        writable: ask PostgreSQL, instead, whether it takes writes: it fails for one that is a replica, or
            read-only.
        slow_after: seconds above 0 that it may take, or it warns. None: any time.
        timeout: seconds above 0 to wait for a connection and the answer together. An engine waits for a
            connection as long as its own `pool_timeout`, and a function that connects for as long as it does.
        name: in reports.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any thread; with an asynchronous source, from any task of the loop that has it.
    """

    external: ClassVar[bool] = True

    def __init__(
        self,
        source: Any,
        *,
        query: str = _QUERY,
        writable: bool = False,
        slow_after: Seconds | None = 0.5,
        timeout: Seconds = 1.0,
        name: str = "database",
    ) -> None:
        super().__init__(name)
        self._source: Any = source_of(source)
        self._query = params.named("query", query)
        self._writable = params.flag("writable", writable)
        self._slow_after = params.optional_seconds("slow_after", slow_after)
        self._timeout = seconds_of(timeout)
        if query != _QUERY and (writable or isinstance(self._source, Watch)):
            rule = "goes neither with writable=True nor with a watch, which ask in their own way"
            params.refuse(ValueError, "query", rule, query)
        if writable and isinstance(self._source, Watch):
            rule = "does not go with a watch: give the check what is watched"
            params.refuse(ValueError, "writable", rule, writable)
        if self._writable:
            self._query = _WRITABLE
        # Not in `__new__`: that would hide these arguments from whoever asks for the signature.
        object.__setattr__(self, "__class__", _kind_for(self._source))

    def __call__(self) -> Finding | Awaitable[Finding]:
        """Ask the database.

        Returns:
            The time it took, in seconds. It fails where there is no connection, or no answer, in time, and
            says who has the connections where that is known.
        """
        raise NotImplementedError  # each kind has its own

    def _subject(self) -> str:
        if isinstance(self._source, Watch):
            return str(self._source.watched.name)
        pool = self._source.pool
        return str(getattr(pool, "url", "") or getattr(pool, "name", "") or "")

    def _judge(self, row: Any, took: float) -> Finding:
        facts: dict[str, Fact] = {}
        if self._writable:
            replica, read_only = bool(row[0]), row[1] == "on"
            facts |= {"replica": replica, "read_only": read_only}
            if replica or read_only:
                what = "is a replica" if replica else "is read-only"
                return Finding(Status.FAIL, f"it {what}: it refuses writes", round(took, 6), "s", facts)
        if self._slow_after is not None and took >= self._slow_after:
            return Finding(Status.WARN, f"it took {duration(took)}", round(took, 6), "s", facts)
        return Finding(Status.PASS, "", round(took, 6), "s", facts)

    def _failed(self, error: BaseException, seconds: float, *, connected: bool, late: bool) -> Finding:
        """Tell why there is no answer: the pool has no connection, or the server does not give one."""
        names = {kind.__name__ for kind in type(error).__mro__}
        if not connected and names & self._source.exhausted:
            status = Status.WARN if self._is_busy(error) else Status.FAIL
            return Finding(status, self._exhausted(error, seconds), facts={"pool_exhausted": True})
        if late or isinstance(error, TimeoutError):
            what = "no answer" if connected else "no connection"
            return Finding(Status.FAIL, f"{what} within {seconds:.3g} s")
        told = reason(error)
        if names & _FORBIDDEN or "authentication failed" in told:
            return Finding(Status.FAIL, f"it refuses the credentials: {told}", facts={"permission": False})
        return Finding(Status.FAIL, told)

    def _is_busy(self, error: BaseException) -> bool:
        """Tell whether all connections are in use, and none for too long.

        Then there is much to do, and other processes have as much: if each of them failed, the next one would
        have to do it. Pools of others say the same where their server is down, and are not believed.
        """
        used, size = getattr(error, "used", None), getattr(error, "size", None)
        return (
            isinstance(error, PoolTimeoutError) and bool(size) and used == size and not self._source.leaks()
        )

    def _exhausted(self, error: BaseException, seconds: float) -> str:
        borrowers = _borrowers(error)
        if borrowers:  # one of our own errors, which says the same, and is longer than a reason may be
            return f"no connection came free within {seconds:.3g} s; {borrowers}"
        with suppress(Exception):  # the watch may have ended
            borrowers = _told(self._source.watched().borrowers())
        return f"no connection came free: {reason(error)}{'; ' if borrowers else ''}{borrowers}"


class _SyncDatabase(Database):
    def __call__(self) -> Finding:
        source: Source = self._source
        begun, seconds = time.perf_counter(), in_time(self._timeout)
        connected, dog = False, None
        try:
            with source.borrow(seconds) as conn:
                connected = True
                left = max(_LEAST, seconds - (time.perf_counter() - begun))
                dog = Watchdog(left, partial(_cut, source, conn))
                with dog:
                    row = source.ask(conn, self._query)
            return self._judge(row, time.perf_counter() - begun)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is why there is no answer
            return self._failed(exc, seconds, connected=connected, late=dog is not None and dog.bit)


class _AsyncDatabase(Database):
    async def __call__(self) -> Finding:
        source: AsyncSource = self._source
        loop = asyncio.get_running_loop()
        begun, seconds = time.perf_counter(), in_time(self._timeout)
        connected, late = False, False

        def bite(conn: Any) -> None:
            nonlocal late
            late = True
            _cut(source, conn)

        try:
            # The connection is cut in time; what waits for more than its end is cancelled a little later.
            async with asyncio.timeout(seconds * (1.0 + _GRACE)), source.borrow(seconds) as conn:
                connected = True
                left = max(_LEAST, seconds - (time.perf_counter() - begun))
                dog = loop.call_later(left, bite, conn)
                try:
                    row = await source.ask(conn, self._query)
                finally:
                    dog.cancel()
            return self._judge(row, time.perf_counter() - begun)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is why there is no answer
            return self._failed(exc, seconds, connected=connected, late=late)


class _SyncWatch(Database):
    def __call__(self) -> Finding:
        begun = time.perf_counter()
        try:
            self._source.watched.check(in_time(self._timeout))
        except Exception as exc:  # noqa: BLE001 - it says all there is to say
            return _failed_watch(exc)
        return self._judge(None, time.perf_counter() - begun)


class _AsyncWatch(Database):
    async def __call__(self) -> Finding:
        begun = time.perf_counter()
        try:
            await self._source.watched.acheck(in_time(self._timeout))
        except Exception as exc:  # noqa: BLE001 - it says all there is to say
            return _failed_watch(exc)
        return self._judge(None, time.perf_counter() - begun)


def _kind_for(source: Source | AsyncSource | Watch) -> type[Database]:
    if isinstance(source, Watch):
        return _AsyncWatch if source.asynchronous else _SyncWatch
    return _AsyncDatabase if isinstance(source, AsyncSource) else _SyncDatabase


def _failed_watch(error: Exception) -> Finding:
    borrowers = _borrowers(error)
    told = reason(error).partition("; the oldest borrowers: ")[0]
    return Finding(Status.FAIL, f"{told}; {borrowers}" if borrowers else told)


def _borrowers(error: BaseException) -> str:
    """Return the borrowers that an error of a pool, or of the check of a watched one, names."""
    return _told(getattr(error, "borrowers", None) or ())


def _told(borrowers: Iterable[Any]) -> str:
    oldest = [str(borrower) for borrower in islice(borrowers, _MOST_BORROWERS)]
    return f"the oldest borrowers: {'; '.join(oldest)}" if oldest else ""


def _cut(source: Source | AsyncSource, conn: Any) -> None:
    with suppress(Exception):  # it is closed by now
        cut(source.raw(conn))
