"""Where a check of a database has its connection from: a function that connects, or one of many pools."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Final

from ...engine import params
from ...engine.shape import Shape, shape_of
from ...pool.drivers import driver_of
from ...pool.watching.disguise import mark_of

__all__ = ["AsyncSource", "Source", "Watch", "cut", "source_of"]

_RULE: Final = (
    "must be a function that connects, a pool of resilient, psycopg_pool or asyncpg, an Engine or AsyncEngine"
    " of SQLAlchemy, or what `watch` returned"
)


class _Pool:
    """What is known of a pool, whatever its colour."""

    exhausted: frozenset[str] = frozenset({"PoolTimeoutError", "PoolTimeout"})
    """The names of errors that say that no connection came free."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def raw(self, conn: Any) -> Any:
        """Return the connection itself that *conn* stands for; for whoever cuts it."""
        return conn

    def watched(self) -> Any:
        """Return who knows the borrowers, if the pool is watched."""
        return mark_of(self.pool)

    def leaks(self) -> bool:
        """Tell whether somebody is known to keep a connection for too long."""
        try:
            return bool(self.watched().stats().leaked)
        except Exception:  # noqa: BLE001 - nobody knows: it is not watched, or is no more
            return False


class Source(_Pool):
    """A function that connects, as PEP 249 has it: each connection is closed after its use."""

    def borrow(self, _seconds: float, /) -> AbstractContextManager[Any]:
        """Return a block with a connection, for which it waits for at most so long where it can."""
        return self._connected()

    def ask(self, conn: Any, query: str, /) -> Any:
        """Return the first row of what *query* finds; None where it finds nothing."""
        cursor = conn.cursor()
        try:
            cursor.execute(query)
            return cursor.fetchone() if cursor.description else None
        finally:
            cursor.close()

    @contextmanager
    def _connected(self) -> Generator[Any]:
        conn = self.pool()
        try:
            yield conn
        finally:
            conn.close()


class _OurPool(Source):
    def watched(self) -> Any:
        return self.pool

    def borrow(self, seconds: float, /) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = self.pool.connection(seconds)
        return block

    def raw(self, conn: Any) -> Any:
        return self.pool.unwrap(conn)


class _PsycopgPool(Source):
    def borrow(self, seconds: float, /) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = self.pool.connection(timeout=seconds)
        return block


class _Engine(Source):
    exhausted = frozenset({"TimeoutError"})

    def borrow(self, _seconds: float, /) -> AbstractContextManager[Any]:
        # It waits for as long as the engine's `pool_timeout` says: nobody can tell it otherwise.
        block: AbstractContextManager[Any] = self.pool.connect()
        return block

    def raw(self, conn: Any) -> Any:
        return conn.connection.driver_connection

    def watched(self) -> Any:
        return mark_of(self.pool.pool)

    def ask(self, conn: Any, query: str, /) -> Any:
        return conn.exec_driver_sql(query).first()


class AsyncSource(_Pool):
    """A coroutine function that connects: each connection is closed after its use."""

    def borrow(self, _seconds: float, /) -> AbstractAsyncContextManager[Any]:
        """Return a block with a connection, for which it waits for at most so long where it can."""
        return self._connected()

    async def ask(self, conn: Any, query: str, /) -> Any:
        """Return the first row of what *query* finds; None where it finds nothing."""
        if callable(getattr(conn, "fetchrow", None)):  # asyncpg's way
            return await conn.fetchrow(query)
        cursor = await _awaited(conn.cursor())
        try:
            await _awaited(cursor.execute(query))
            return await _awaited(cursor.fetchone()) if cursor.description else None
        finally:
            await _awaited(cursor.close())

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Any]:
        conn = await self.pool()
        try:
            yield conn
        except BaseException:
            # Without a word to the server, which may not answer.
            cut(conn)
            if callable(getattr(conn, "terminate", None)):
                conn.terminate()
            else:
                await _awaited(conn.close())
            raise
        await _awaited(conn.close())


class _OurAsyncPool(AsyncSource):
    def watched(self) -> Any:
        return self.pool

    def borrow(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        block: AbstractAsyncContextManager[Any] = self.pool.connection(seconds)
        return block

    def raw(self, conn: Any) -> Any:
        return self.pool.unwrap(conn)


class _AsyncPsycopgPool(AsyncSource):
    def borrow(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        block: AbstractAsyncContextManager[Any] = self.pool.connection(timeout=seconds)
        return block


class _AsyncpgPool(AsyncSource):
    exhausted = frozenset({"TimeoutError"})

    def borrow(self, seconds: float, /) -> AbstractAsyncContextManager[Any]:
        block: AbstractAsyncContextManager[Any] = self.pool.acquire(timeout=seconds)
        return block

    def raw(self, conn: Any) -> Any:
        return getattr(conn, "_con", conn)  # it lends proxies


class _AsyncEngine(AsyncSource):
    exhausted = frozenset({"TimeoutError"})

    def borrow(self, _seconds: float, /) -> AbstractAsyncContextManager[Any]:
        block: AbstractAsyncContextManager[Any] = self.pool.connect()
        return block

    def raw(self, conn: Any) -> Any:
        return conn.sync_connection.connection.driver_connection

    def watched(self) -> Any:
        return mark_of(self.pool.sync_engine.pool)

    async def ask(self, conn: Any, query: str, /) -> Any:
        return (await conn.exec_driver_sql(query)).first()


class Watch:
    """A watch over a pool, which has a check of its own."""

    def __init__(self, watched: Any) -> None:
        self.watched = watched

    @property
    def asynchronous(self) -> bool:
        """Whether its connections are awaited."""
        return bool(self.watched._adapter.asynchronous)  # noqa: SLF001 - it is ours


def _watched(watched: Any) -> Source | AsyncSource | Watch:
    """Return how a watched pool is asked: by the watch, whose check ends in time since it has its own thread.

    One that is awaited ends when its library lets it, which is never where the server hangs: only who has the
    connection can cut it. So what is watched is asked itself, where it is known.
    """
    adapter = watched._adapter  # noqa: SLF001 - it is ours
    kind = type(adapter).__name__ if adapter.asynchronous else ""
    if kind == "PsycopgPool":
        return source_of(adapter.pool)
    if kind == "AsyncpgPool":
        return source_of(adapter._pool)  # noqa: SLF001
    engine: Any = adapter._target() if kind == "SQLAlchemyPool" else None  # noqa: SLF001
    if ("sqlalchemy", "Engine") not in _names(type(engine)):
        return Watch(watched)
    from sqlalchemy.ext.asyncio import AsyncEngine  # noqa: PLC0415 - it is there, since that is one

    return source_of(AsyncEngine(engine))


def _names(kind: type) -> list[tuple[str, str]]:
    """Return the package and the name of *kind* and of what it derives from."""
    return [(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__]


_KNOWN: Final[dict[tuple[str, str], Callable[[Any], Source | AsyncSource | Watch]]] = {
    ("resilient", "Watched"): _watched,
    ("resilient", "ConnectionPool"): _OurPool,
    ("resilient", "AsyncConnectionPool"): _OurAsyncPool,
    ("psycopg_pool", "ConnectionPool"): _PsycopgPool,
    ("psycopg_pool", "AsyncConnectionPool"): _AsyncPsycopgPool,
    ("sqlalchemy", "Engine"): _Engine,
    ("sqlalchemy", "AsyncEngine"): _AsyncEngine,
    ("asyncpg", "Pool"): _AsyncpgPool,
}


def source_of(source: Any) -> Source | AsyncSource | Watch:
    """Return how *source* is asked for a connection. It is known by name: no library is imported.

    Raises:
        TypeError: nobody knows how.
    """
    known = next((_KNOWN[name] for name in _names(type(source)) if name in _KNOWN), None)
    if known is not None:
        return known(source)
    if not callable(source):
        # Not as it is: an address may have a password in it.
        params.refuse(TypeError, "source", _RULE, type(source))
    if isinstance(source, type):  # a class of connections
        return Source(source)
    return AsyncSource(source) if shape_of(source) is Shape.COROUTINE else Source(source)


async def _awaited(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made


def cut(conn: Any) -> None:
    """Cut a connection: whoever waits for an answer gets an error. Safe from any thread."""
    driver_of(conn).abort(conn)
