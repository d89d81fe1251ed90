"""Watch over the pools of asyncpg."""

# ruff: noqa: D102, SLF001 - documented in `Adapter`, once; what a pool keeps to itself is what is watched

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import urlsplit

from asyncpg.pool import PoolConnectionHolder  # pyright: ignore[reportMissingTypeStubs]

from .disguise import Disguise, take_off
from .ledger import Ledger, frame_at
from .watched import GO_BETWEENS, Adapter, Levels

__all__ = ["AsyncpgPool"]


class AsyncpgPool(Adapter):
    """How asyncpg is spoken to. Its pool has holders, as many as there may be connections, which are lent.

    A pool cannot be referred to weakly; it and its watch are collected together. It refers to what it has
    lent: no borrower is ever collected.
    """

    skip: ClassVar[frozenset[str]] = GO_BETWEENS | {"asyncpg"}

    def __init__(self, pool: Any) -> None:
        self.asynchronous = True
        self._pool = pool

    def name(self) -> str:
        words: dict[str, Any] = self._pool._connect_kwargs
        url = next((word for word in self._pool._connect_args if isinstance(word, str)), "")
        parts = urlsplit(url)
        host, port = words.get("host") or parts.hostname, words.get("port") or parts.port or 5432
        database = words.get("database") or parts.path.strip("/") or words.get("user") or parts.username
        if not isinstance(host, str):  # None: the environment says; or several
            return f"asyncpg/{database or ''}"
        return f"{host}:{port}/{database or ''}"

    def install(self, ledger: Ledger, mark: object) -> None:
        holder = Disguise(PoolConnectionHolder, {"_release": _releasing(ledger)}, mark)
        hooks = {
            "_acquire": _acquiring(ledger),
            "_get_new_connection": _connecting(ledger),
            "_initialize": _initializing(holder),
        }
        pool = Disguise(type(self._pool), hooks, mark)
        for one in self._pool._holders:  # none, where the pool has not been awaited yet
            holder.put_on(one)
        pool.put_on(self._pool)

    def uninstall(self) -> None:
        take_off(self._pool)
        for one in self._pool._holders:
            take_off(one)

    def levels(self) -> Levels | None:
        pool = self._pool
        return Levels(idle=pool.get_idle_size(), idle_min=pool.get_min_size(), limit=pool.get_max_size())

    async def aprobe(self, _seconds: float, /) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute("SELECT 1")

    def is_timeout(self, error: BaseException) -> bool:
        return isinstance(error, TimeoutError)


def _acquiring(ledger: Ledger) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def _acquire(original: Callable[..., Any]) -> Callable[..., Any]:
        async def _acquire(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ledger.ask()
            try:
                proxy = await original(self, *args, **kwargs)
            except BaseException as exc:
                ledger.give_up(asked, late=exc if isinstance(exc, TimeoutError) else None)
                raise
            ledger.lend(asked, getattr(proxy, "_holder", None), frame_at())
            return proxy

        return _acquire

    return _acquire


def _releasing(ledger: Ledger) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def _release(original: Callable[..., Any]) -> Callable[..., Any]:
        def _release(self: Any) -> None:
            # Also where a connection that was lent is closed, by whomever.
            ledger.take_back(self)
            original(self)

        return _release

    return _release


def _connecting(ledger: Ledger) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def _get_new_connection(original: Callable[..., Any]) -> Callable[..., Any]:
        async def _get_new_connection(self: Any) -> Any:
            begun = ledger.begin()
            connection = await original(self)
            ledger.created(begun)
            return connection

        return _get_new_connection

    return _get_new_connection


def _initializing(holder: Disguise) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def _initialize(original: Callable[..., Any]) -> Callable[..., Any]:
        async def _initialize(self: Any) -> None:
            try:
                await original(self)
            finally:
                for one in self._holders:
                    holder.put_on(one)

        return _initialize

    return _initialize
