"""Watch over the pools of redis-py, `ConnectionPool` and `BlockingConnectionPool`, of either kind."""

# ruff: noqa: D102 - documented in `Adapter`, once

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from .disguise import Disguise, Hook, take_off
from .ledger import Ask, Ledger, frame_at
from .watched import GO_BETWEENS, NOTHING, Adapter, Levels

__all__ = ["RedisPool"]

_UNLIMITED: Final = 2**31
"""What `max_connections` is where nobody set it, up to redis-py 7."""

# What redis-py reports by which group of its metrics.
_EMITTED: Final = {
    "CONNECTION_BASIC": frozenset({"count", "create"}),
    "CONNECTION_ADVANCED": frozenset({"timeouts", "wait"}),
}

_begun: ContextVar[float | None] = ContextVar("resilient_redis_begun", default=None)
"""When the connection was begun that `get_connection` is about to return; None if it is not a new one."""


class RedisPool(Adapter):
    """How redis-py is spoken to. Its pools refer to what they have lent: no borrower is ever collected."""

    skip: ClassVar[frozenset[str]] = GO_BETWEENS | {"redis"}

    def __init__(self, pool: Any) -> None:
        self.asynchronous = _is_async(pool)
        self._pool = weakref.ref(pool)
        # Of these redis-py counts returns only (8.1): what it reports as used is less than nothing.
        blocking = any(kind.__name__ == "BlockingConnectionPool" for kind in type(pool).__mro__)
        self._miscounted = self.asynchronous and blocking

    def name(self) -> str:
        words: dict[str, Any] = self.pool.connection_kwargs
        if "path" in words:
            return f"{words['path']}/{words.get('db') or 0}"
        where = f"{words.get('host', 'localhost')}:{words.get('port', 6379)}"
        service = getattr(self.pool, "service_name", None)  # of a sentinel, which tells host and port later
        return f"{service or where}/{words.get('db') or 0}"

    def install(self, ledger: Ledger, mark: object) -> None:
        hooks = _async_hooks(ledger) if self.asynchronous else _hooks(ledger)
        hooks["make_connection"] = _making(ledger)
        Disguise(type(self.pool), hooks, mark).put_on(self.pool)

    def uninstall(self) -> None:
        pool = self._pool()
        if pool is not None:
            take_off(pool)

    def levels(self) -> Levels | None:
        pool = self._pool()
        if pool is None:
            return None
        limit: int = pool.max_connections
        return Levels(idle=_idle(pool), limit=None if limit >= _UNLIMITED else limit)

    def emitted(self) -> frozenset[str]:
        """Return what redis-py reports itself, since its version 7.2, once that is switched on."""
        providers = sys.modules.get("redis.observability.providers")
        manager = None if providers is None else providers.get_observability_instance().get_provider_manager()
        if manager is None or not manager.config.enabled_telemetry:
            return NOTHING
        groups = manager.config.metric_groups
        kinds = NOTHING.union(
            *(kinds for name, kinds in _EMITTED.items() if getattr(type(groups), name) in groups)
        )
        return kinds - {"count"} if self._miscounted else kinds

    def probe(self, _seconds: float, /) -> None:
        pool = self.pool
        connection = pool.get_connection()
        try:
            connection.send_command("PING")
            connection.read_response()  # what fails here disconnects: no answer comes too late
        finally:
            pool.release(connection)

    async def aprobe(self, _seconds: float, /) -> None:
        pool = self.pool
        connection = await pool.get_connection()
        try:
            await connection.send_command("PING")
            await connection.read_response()
        finally:
            await pool.release(connection)

    def is_timeout(self, error: BaseException) -> bool:
        return _is_exhausted(error)

    @property
    def pool(self) -> Any:
        """The pool; raises ReferenceError if it is no more."""
        pool = self._pool()
        if pool is None:
            raise ReferenceError("there is no pool any more")
        return pool


def _is_async(pool: Any) -> bool:
    """Return whether *pool* is for asyncio: of a class of `redis.asyncio`, or of a subclass of one."""
    return any(kind.__module__.startswith("redis.asyncio") for kind in type(pool).__mro__)


def _is_exhausted(error: BaseException) -> bool:
    """Return whether *error* says that no connection was free; a blocking pool says so by words only."""
    if not isinstance(error, RedisConnectionError):
        return False
    return type(error).__name__ == "MaxConnectionsError" or error.args == ("No connection available.",)


def _idle(pool: Any) -> int | None:
    """Return how many idle connections there are. Not by the pool's methods: they wait for its lock."""
    available: list[Any] | None = getattr(pool, "_available_connections", None)
    if available is not None:
        return len(available)
    queue = getattr(getattr(pool, "pool", None), "queue", None)  # of a blocking pool for threads
    return None if queue is None else sum(connection is not None for connection in queue.copy())


def _making(ledger: Ledger) -> Hook:
    def make_connection(original: Callable[..., Any]) -> Callable[..., Any]:
        def make_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            _begun.set(ledger.begin())
            return original(self, *args, **kwargs)

        return make_connection

    return make_connection


def _got(ledger: Ledger, asked: Ask | None, connection: Any, frame: Any) -> None:
    begun = _begun.get()
    if begun is not None:
        _begun.set(None)
        ledger.created(begun)
    ledger.lend(asked, connection, frame)


def _missed(ledger: Ledger, asked: Ask | None, error: BaseException) -> None:
    _begun.set(None)
    ledger.give_up(asked, late=error if _is_exhausted(error) else None)


def _hooks(ledger: Ledger) -> dict[str, Hook]:
    def get_connection(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ledger.ask()
            try:
                connection = original(self, *args, **kwargs)
            except BaseException as exc:
                _missed(ledger, asked, exc)
                raise
            _got(ledger, asked, connection, frame_at())
            return connection

        return get_connection

    def release(original: Callable[..., Any]) -> Callable[..., Any]:
        def release(self: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
            ledger.take_back(connection)
            return original(self, connection, *args, **kwargs)

        return release

    return {"get_connection": get_connection, "release": release}


def _async_hooks(ledger: Ledger) -> dict[str, Hook]:
    def get_connection(original: Callable[..., Any]) -> Callable[..., Any]:
        async def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ledger.ask()
            try:
                connection = await original(self, *args, **kwargs)
            except BaseException as exc:
                _missed(ledger, asked, exc)
                raise
            _got(ledger, asked, connection, frame_at())
            return connection

        return get_connection

    def release(original: Callable[..., Any]) -> Callable[..., Any]:
        async def release(self: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
            loan = ledger.take_back(connection)
            try:
                return await original(self, connection, *args, **kwargs)
            except BaseException:
                # Cancelled while it waited for its turn: the pool counts the connection as used for ever.
                if connection in getattr(self, "_in_use_connections", ()):
                    ledger.keep(loan)
                raise

        return release

    return {"get_connection": get_connection, "release": release}
