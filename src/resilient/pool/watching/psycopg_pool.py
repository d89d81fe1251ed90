"""Watch over the pools of psycopg_pool: `ConnectionPool`, `AsyncConnectionPool` and their null pools."""

# ruff: noqa: D102 - documented in `Adapter`, once

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import psycopg_pool

from .disguise import Disguise, Hook, take_off
from .ledger import Ledger, frame_at
from .watched import GO_BETWEENS, Adapter, Levels

__all__ = ["PsycopgPool"]


class PsycopgPool(Adapter):
    """How psycopg_pool is spoken to.

    Its pools do not refer to what they have lent. A connection that nobody refers to any more is closed, and
    the pool is smaller by one from then on.
    """

    skip: ClassVar[frozenset[str]] = GO_BETWEENS | {"psycopg_pool", "psycopg"}

    def __init__(self, pool: Any) -> None:
        self.asynchronous = isinstance(pool, psycopg_pool.AsyncConnectionPool)
        self._pool = weakref.ref(pool)

    def name(self) -> str:
        return str(self.pool.name)

    def install(self, ledger: Ledger, mark: object) -> None:
        hooks = _async_hooks(ledger) if self.asynchronous else _hooks(ledger)
        Disguise(type(self.pool), hooks, mark).put_on(self.pool)

    def uninstall(self) -> None:
        pool = self._pool()
        if pool is not None:
            take_off(pool)

    def levels(self) -> Levels | None:
        pool = self._pool()
        if pool is None:
            return None
        stats: dict[str, int] = pool.get_stats()
        return Levels(
            idle=stats["pool_available"],
            idle_min=stats["pool_min"],
            limit=stats["pool_max"] or None,  # a null pool may have no limit
        )

    def probe(self, seconds: float, /) -> None:
        with self.pool.connection(seconds) as connection:
            connection.execute("")

    async def aprobe(self, seconds: float, /) -> None:
        async with self.pool.connection(seconds) as connection:
            await connection.execute("")

    def is_timeout(self, error: BaseException) -> bool:
        return isinstance(error, psycopg_pool.PoolTimeout)

    @property
    def pool(self) -> Any:
        """The pool; raises ReferenceError if it is no more."""
        pool = self._pool()
        if pool is None:
            raise ReferenceError("there is no pool any more")
        return pool


def _hooks(ledger: Ledger) -> dict[str, Hook]:
    def getconn(original: Callable[..., Any]) -> Callable[..., Any]:
        def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ledger.ask()
            try:
                connection = original(self, *args, **kwargs)
            except BaseException as exc:
                ledger.give_up(asked, late=exc if isinstance(exc, psycopg_pool.PoolTimeout) else None)
                raise
            ledger.lend(asked, connection, frame_at())
            return connection

        return getconn

    def putconn(original: Callable[..., Any]) -> Callable[..., Any]:
        def putconn(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
            ledger.take_back(conn)
            return original(self, conn, *args, **kwargs)

        return putconn

    def connect(original: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
            begun = ledger.begin()
            connection = original(self, *args, **kwargs)
            ledger.created(begun)
            return connection

        return connect

    return {"getconn": getconn, "putconn": putconn, "_connect": connect}


def _async_hooks(ledger: Ledger) -> dict[str, Hook]:
    def getconn(original: Callable[..., Any]) -> Callable[..., Any]:
        async def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ledger.ask()
            try:
                connection = await original(self, *args, **kwargs)
            except BaseException as exc:
                ledger.give_up(asked, late=exc if isinstance(exc, psycopg_pool.PoolTimeout) else None)
                raise
            ledger.lend(asked, connection, frame_at())
            return connection

        return getconn

    def putconn(original: Callable[..., Any]) -> Callable[..., Any]:
        async def putconn(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
            loan = ledger.take_back(conn)
            try:
                return await original(self, conn, *args, **kwargs)
            except BaseException:
                ledger.keep(loan)  # cancelled on the way: the pool does not have it
                raise

        return putconn

    def connect(original: Callable[..., Any]) -> Callable[..., Any]:
        async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
            begun = ledger.begin()
            connection = await original(self, *args, **kwargs)
            ledger.created(begun)
            return connection

        return connect

    return {"getconn": getconn, "putconn": putconn, "_connect": connect}
