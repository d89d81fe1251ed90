"""Blocks of code that hold a connection: `with pool.connection() as conn`, and its asynchronous twin."""

# A block is a part of its pool.
# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ConnectionReturnedError
from .borrowed import held_by
from .core import Core
from .members import Token

__all__ = ["AsyncConnectionBlock", "ConnectionBlock"]

C = TypeVar("C")


class _Pool(Protocol):
    """What a block asks of the pool it belongs to."""

    _core: Core

    def _twice(self, what: str) -> ConnectionReturnedError: ...


class _SyncPool(_Pool, Protocol):
    def _checkout(self, seconds: float | None) -> Any: ...
    def _finish(self, token: Token, exc: BaseException | None) -> None: ...


class _AsyncPool(_Pool, Protocol):
    def _settle(self) -> None: ...
    def _checkout(self, seconds: float | None) -> Awaitable[Any]: ...
    def _finish(self, token: Token, exc: BaseException | None) -> Awaitable[None]: ...


class ConnectionBlock(Generic[C]):
    """A block of code that holds a connection, for `with`. Good for one use at a time."""

    __slots__ = ("_conn", "_pool", "_seconds")

    def __init__(self, pool: _SyncPool, seconds: float | None) -> None:
        self._pool = pool
        self._seconds = seconds

    def __enter__(self) -> C:
        pool = self._pool
        conn = pool._core.take()
        if conn is None:
            conn = pool._checkout(self._seconds)
        self._conn = conn
        return conn  # type: ignore[no-any-return]

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        pool = self._pool
        try:
            token = held_by(self._conn).pop()
        except IndexError:  # it was returned in between
            if exc is not None:
                return  # which is what matters
            raise pool._twice("returned") from None
        finally:
            del self._conn
        if exc is not None or not pool._core.put(token):
            pool._finish(token, exc)


class AsyncConnectionBlock(Generic[C]):
    """A block of code that holds a connection, for `async with`. Good for one use at a time."""

    __slots__ = ("_conn", "_pool", "_seconds")

    def __init__(self, pool: _AsyncPool, seconds: float | None) -> None:
        self._pool = pool
        self._seconds = seconds

    async def __aenter__(self) -> C:
        pool = self._pool
        pool._settle()
        conn = pool._core.take()
        if conn is None:
            conn = await pool._checkout(self._seconds)
        self._conn = conn
        return conn  # type: ignore[no-any-return]

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        pool = self._pool
        try:
            token = held_by(self._conn).pop()
        except IndexError:  # it was returned in between
            if exc is not None:
                return  # which is what matters
            raise pool._twice("returned") from None
        finally:
            del self._conn
        if exc is not None or not pool._core.put(token):
            await pool._finish(token, exc)
