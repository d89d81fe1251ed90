"""Leak reports, metrics and a health check for pools of other libraries, which stay as they are."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable
from typing import Any, Final

from ...engine import params
from ...events import Announcer, Listener
from ...typing import Clock, Seconds
from ..borrowers import ALL_FRAMES, FEW_FRAMES
from .disguise import mark_of
from .ledger import Ledger
from .watched import Adapter, Watched, WatchStats

__all__ = ["WatchStats", "Watched", "watch"]

# By the class of what is given, or of what it inherits from: how to come from it to what is watched, and who
# speaks to that. Named, not imported: none of these libraries need be there.
_KNOWN: Final[dict[tuple[str, str], tuple[str | None, str, str]]] = {
    ("sqlalchemy", "AsyncEngine"): ("sync_engine", "sqlalchemy", "SQLAlchemyPool"),
    ("sqlalchemy", "Engine"): (None, "sqlalchemy", "SQLAlchemyPool"),
    ("sqlalchemy", "Pool"): (None, "sqlalchemy", "SQLAlchemyPool"),
    ("psycopg_pool", "ConnectionPool"): (None, "psycopg_pool", "PsycopgPool"),
    ("psycopg_pool", "AsyncConnectionPool"): (None, "psycopg_pool", "PsycopgPool"),
    ("redis", "Redis"): ("connection_pool", "redis", "RedisPool"),
    ("redis", "ConnectionPool"): (None, "redis", "RedisPool"),
    ("asyncpg", "Pool"): (None, "asyncpg", "AsyncpgPool"),
}


def watch(
    pool: Any,
    *,
    name: str | None = None,
    leak_after: Seconds | None = 30.0,
    full_stacks: bool = False,
    metrics: bool | None = None,
    listeners: Iterable[Listener] = (),
    clock: Clock = time.monotonic,
) -> Watched:
    """Watch a pool of another library: who has its connections, and who has forgotten to return one.

    The pool is used as before, and stays what it is. Its methods tell who borrows and who returns, for as
    long as it lives or until `unwatch()`; nothing of that can fail for those who use the pool.

    Args:
        pool: an `Engine`, `AsyncEngine` or `Pool` of SQLAlchemy, a pool of psycopg_pool or asyncpg, a
            `ConnectionPool` or `BlockingConnectionPool` of redis-py, of either kind, or a client with one.
        name: what it is called in events, metrics and the log; None: what the library calls it, or where it
            connects to.
        leak_after: seconds after which a connection that is still lent is reported, once. None: none is.
        full_stacks: whether to keep 100 frames of each borrower's stack, and not 4.
        metrics: whether to report `db.client.connection.*` metrics. None: those that the library or an
            instrumentation of it does not report itself.
        listeners: called with every event of this pool, in a background thread.
        clock: tells the time in seconds.

    Returns:
        What is known of the pool. Nobody need keep it.

    Raises:
        TypeError: this is no pool that can be watched.
        ValueError: the pool is watched already.

    Concurrency: to be called before the pool is used: who has a connection by then is not seen. Borrowing and
        returning take no lock; leaks are looked for about once a second, by one thread for all pools of the
        process.
    """
    adapter = _adapter_of(pool)
    if name is not None:
        params.named("name", name)
    announcer = Announcer()
    for listener in listeners:
        announcer.listeners.add(listener)
    ledger = Ledger(
        name or adapter.name(),
        leak_after=params.optional_seconds("leak_after", leak_after),
        depth=ALL_FRAMES if params.flag("full_stacks", full_stacks) else FEW_FRAMES,
        skip=adapter.skip,
        elsewhere=adapter.elsewhere,
        clock=params.callback("clock", clock),
        announcer=announcer,
        timed=metrics is None or params.flag("metrics", metrics),
    )
    return Watched(adapter, ledger, announcer, metrics=metrics)


def _adapter_of(given: Any) -> Adapter:
    for kind in type(given).__mro__:
        known = _KNOWN.get((kind.__module__.partition(".")[0], kind.__name__))
        if known is None:
            continue
        way, module, speaker = known
        target = given if way is None else getattr(given, way)
        watched = mark_of(getattr(target, "pool", target) if module == "sqlalchemy" else target)
        if watched is not None:
            raise ValueError(f"pool is watched already, as {watched.name!r}: unwatch() it first")
        adapter: Adapter = getattr(importlib.import_module(f".{module}", __name__), speaker)(target)
        return adapter
    rule = "must be a pool of SQLAlchemy, psycopg_pool, redis-py or asyncpg, or an engine or client with one"
    return params.refuse(TypeError, "pool", rule, given)
