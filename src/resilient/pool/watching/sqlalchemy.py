"""Watch over the pools of SQLAlchemy, by way of an engine or without."""

# ruff: noqa: D102, SLF001 - documented in `Adapter`, once; what a pool keeps to itself is what is watched

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import NullPool, Pool, QueuePool

from ...events import log_fault
from .disguise import Disguise, Hook, mark_of, take_off
from .ledger import Ledger, frame_at
from .watched import GO_BETWEENS, NOTHING, Adapter, Levels

__all__ = ["SQLAlchemyPool"]

_INSTRUMENTATION = "opentelemetry.instrumentation.sqlalchemy"


class SQLAlchemyPool(Adapter):
    """How SQLAlchemy is spoken to.

    Its events tell when a connection is returned, detached, or given up by the garbage collector. They do not
    tell how long somebody waited, nor who waits in vain: `connect` does. An engine that is disposed of has a
    new pool, made of the old one, which is watched too.
    """

    skip: ClassVar[frozenset[str]] = GO_BETWEENS | {"sqlalchemy", "flask_sqlalchemy", "sqlmodel"}

    def __init__(self, target: Any) -> None:
        self._target = weakref.ref(target)
        self._pools: list[weakref.ref[Pool]] = []
        self._disguise: Disguise | None = None
        self._ledger: Ledger | None = None
        self.asynchronous = bool(self.pool._dialect.is_async)

    def name(self) -> str:
        target, pool = self._target(), self.pool
        given = getattr(target, "logging_name", None) or getattr(pool, "logging_name", None)
        if given or not isinstance(target, Engine):
            return str(given or "sqlalchemy")
        url = target.url
        if url.host is None:
            return f"{url.get_backend_name()}:{url.database or ''}"
        return f"{url.host}{'' if url.port is None else f':{url.port}'}/{url.database or ''}"

    def install(self, ledger: Ledger, mark: object) -> None:
        target, pool = self._target(), self.pool
        hooks: dict[str, Hook] = {
            "connect": _connecting(ledger),
            "recreate": self._recreating,
        }
        self._ledger = ledger
        self._disguise = Disguise(type(pool), hooks, mark)
        self._dress(pool)
        event.listen(target, "checkin", self._on_checkin)
        event.listen(target, "detach", self._on_detach)

    def uninstall(self) -> None:
        target = self._target()
        if target is not None:
            for name, listener in (("checkin", self._on_checkin), ("detach", self._on_detach)):
                if event.contains(target, name, listener):
                    event.remove(target, name, listener)
        for reference in self._pools:
            pool = reference()
            if pool is not None:
                self._undress(pool)
        self._pools.clear()

    def levels(self) -> Levels | None:
        pool = self._pool()
        if pool is None:
            return None
        if isinstance(pool, NullPool):
            return Levels(idle=0)
        if not isinstance(pool, QueuePool):
            return Levels()
        size, overflow = pool.size(), getattr(pool, "_max_overflow", -1)
        limited = size > 0 and overflow >= 0
        return Levels(
            idle=pool.checkedin(), idle_max=size or None, limit=size + overflow if limited else None
        )

    def emitted(self) -> frozenset[str]:
        """Return what OpenTelemetry's instrumentation reports of pools that it listens to."""
        pool = self._pool()
        listeners = () if pool is None else pool.dispatch.checkout
        listens = any(
            type(getattr(listener, "__self__", None)).__module__.startswith(_INSTRUMENTATION)
            for listener in listeners
        )
        return frozenset({"count"}) if listens else NOTHING

    def probe(self, _seconds: float, /) -> None:
        pool: Any = self.pool
        connection = pool.connect()
        try:
            _ping(pool, connection)
        except BaseException as error:
            connection.invalidate(error)
            raise
        connection.close()

    async def aprobe(self, seconds: float, /) -> None:
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415 - it needs greenlet, as such pools do

        await greenlet_spawn(self.probe, seconds)

    def is_timeout(self, error: BaseException) -> bool:
        return isinstance(error, exc.TimeoutError)

    def elsewhere(self) -> FrameType | None:
        """Return the coroutine that waits for what SQLAlchemy does in a greenlet of its own."""
        greenlet = sys.modules.get("greenlet") if self.asynchronous else None
        parent = None if greenlet is None else greenlet.getcurrent().parent
        return None if parent is None else parent.gr_frame

    @property
    def pool(self) -> Any:
        """The pool there is now; raises ReferenceError if it is no more."""
        pool = self._pool()
        if pool is None:
            raise ReferenceError("there is no pool any more")
        return pool

    def _pool(self) -> Pool | None:
        target = self._target()
        if target is None:  # an engine that only options were given to; its pool is another's too
            return self._pools[-1]() if self._pools else None
        return target.pool if isinstance(target, Engine) else target

    def _dress(self, pool: Any) -> None:
        disguise, ledger = self._disguise, self._ledger
        if disguise is None or ledger is None:
            return
        self._pools = [reference for reference in self._pools if reference() is not None]
        self._pools.append(weakref.ref(pool))
        if mark_of(pool) is None:  # made by a method that names its class
            disguise.put_on(pool)
        vars(pool)["_invoke_creator"] = _Creator(pool._invoke_creator, ledger)

    def _undress(self, pool: Pool) -> None:
        take_off(pool)
        creator = vars(pool).get("_invoke_creator")
        if isinstance(creator, _Creator):
            vars(pool)["_invoke_creator"] = creator.original

    def _recreating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def recreate(pool: Pool) -> Pool:
            new: Pool = original(pool)
            try:
                self._dress(new)
            except Exception:  # noqa: BLE001 - a pool of another kind; it is used as it is
                log_fault("the pool that follows %r cannot be watched", pool)
            return new

        return recreate

    def _on_checkin(self, _connection: Any, record: Any) -> None:
        if self._ledger is not None:
            self._ledger.take_back_by(id(record))

    def _on_detach(self, _connection: Any, record: Any) -> None:
        if self._ledger is not None:
            self._ledger.take_back_by(id(record), returned=False)


class _Creator:
    """Makes connections as *original* does, and has it noted how long that takes."""

    __slots__ = ("_ledger", "original")

    def __init__(self, original: Callable[..., Any], ledger: Ledger) -> None:
        self.original = original
        self._ledger = ledger

    def __call__(self, record: Any) -> Any:
        begun = self._ledger.begin()
        connection = self.original(record)
        self._ledger.created(begun)
        return connection


def _connecting(ledger: Ledger) -> Hook:
    def connect(original: Callable[..., Any]) -> Callable[..., Any]:
        def connect(pool: Any) -> Any:
            asked = ledger.ask()
            try:
                fairy = original(pool)
            except BaseException as error:
                ledger.give_up(asked, late=error if isinstance(error, exc.TimeoutError) else None)
                raise
            record = getattr(fairy, "_connection_record", None)
            ledger.lend(asked, fairy, frame_at(), id(record))
            return fairy

        return connect

    return connect


def _ping(pool: Any, connection: Any) -> None:
    ping = getattr(pool._dialect, "do_ping", None)
    if ping is not None:
        if not ping(connection.dbapi_connection):
            raise ConnectionError("the server has closed the connection")
        return
    cursor = connection.cursor()  # the pool stands alone, without a dialect
    try:
        cursor.execute("SELECT 1")
    finally:
        cursor.close()
