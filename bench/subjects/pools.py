"""Connection pools, with connections that are connected to nothing: what it costs to borrow one."""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from bench import resources
from bench.subjects.model import Row, Work, family

CONNECTIONS = 10
"""The most there are, where one thread or task borrows."""

PATIENCE = 10.0
"""Seconds a borrower waits for a connection: never that long."""

DEPTH = 30
"""Frames between the bottom of a stack and the borrower, where that matters; a web framework has as many."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What each pool is made with, whatever it calls that.

    Args:
        most: The most connections.
        least: How many are kept open; None: as many as the library keeps by itself.
        connect: Called for each new connection; awaited by the pools for tasks.
    """

    most: int = CONNECTIONS
    least: int | None = None
    connect: Callable[[], Any] = int

    def kept(self, name: str) -> dict[str, Any]:
        """Return the argument *name* with how many are kept open; none if the library is to say."""
        return {} if self.least is None else {name: self.least}


Build = Callable[[Work, Setting], Any]
"""Makes a pool, and of a function one that borrows a connection for each call."""

DEFAULT = Setting()


class Link:
    """A connection that is connected to nothing."""

    def __init__(self, work: Work = int) -> None:
        self._work = work

    def run(self, x: int) -> Any:
        """Do what is asked of it."""
        return self._work(x)

    def close(self) -> None:
        """End."""


class Database(Link):
    """A connection that has transactions, and none open."""

    in_transaction = False

    def cursor(self) -> None:
        """Have no cursor."""

    def commit(self) -> None:
        """Commit nothing."""

    def rollback(self) -> None:
        """Undo nothing."""


# -- of any kind of connection ---------------------------------------------------------------------------


def resilient(work: Work, setting: Setting = DEFAULT, *, link: type[Link] = Link, **options: Any) -> Work:
    """Borrow from ours."""
    pool = resilient_pool(link, setting, **options)

    def guarded(x: int) -> Any:
        with pool.connection():
            return work(x)

    return guarded


def resilient_pool(link: Callable[[], Any], setting: Setting = DEFAULT, **options: Any) -> Any:
    """Return one of ours, closed when the run ends."""
    from resilient import ConnectionPool

    def connect() -> Any:
        setting.connect()
        return link()

    pool: ConnectionPool[Any] = ConnectionPool(
        connect, name="bench", max_size=setting.most, timeout=PATIENCE, **setting.kept("min_size"), **options
    )
    resources.close_at_the_end(pool, awaited=False)
    return pool


def resilient_full_stacks(work: Work) -> Work:
    """Borrow from ours, which keeps the whole stack of each borrower."""
    return resilient(work, full_stacks=True)


def resilient_by_hand(work: Work) -> Work:
    """Borrow from ours and return it without a block."""
    pool = resilient_pool(Link)

    def guarded(x: int) -> Any:
        conn = pool.getconn()
        try:
            return work(x)
        finally:
            pool.putconn(conn)

    return guarded


def sqlalchemy(
    work: Work, setting: Setting = DEFAULT, *, link: type[Link] = Link, reset: str | None = None
) -> Work:
    """Borrow from SQLAlchemy's; *reset* is what it does to each connection that is returned."""
    from sqlalchemy.pool import QueuePool

    def connect() -> Any:
        setting.connect()
        return link()

    least = setting.most if setting.least is None else setting.least
    overflow = setting.most - least
    pool = QueuePool(connect, pool_size=least, max_overflow=overflow, timeout=PATIENCE, reset_on_return=reset)
    _at_the_end(pool.dispose)
    if setting.least:  # it connects when asked, and keeps what comes back
        with ThreadPoolExecutor(setting.least) as threads:
            for conn in list(threads.map(lambda _: pool.connect(), range(setting.least))):
                conn.close()

    def guarded(x: int) -> Any:
        conn = pool.connect()
        try:
            return work(x)
        finally:
            conn.close()

    return guarded


def sqlalchemy_rollback(work: Work) -> Work:
    """Borrow from SQLAlchemy's as it comes: each connection that is returned is rolled back."""
    return sqlalchemy(work, link=Database, reset="rollback")


def connpool(work: Work, setting: Setting = DEFAULT, *, link: type[Link] = Link) -> Work:
    """Borrow from connpool's."""
    from connpool import ConnectionPool, PoolConfig

    def connect() -> Any:
        setting.connect()
        return link()

    config = PoolConfig(max_size=setting.most, acquire_timeout=PATIENCE, **setting.kept("min_size"))
    reset = Database.rollback if link is Database else None
    pool: ConnectionPool[Any] = ConnectionPool.from_callables(connect, reset=reset, config=config)
    _at_the_end(pool.open().close)

    def guarded(x: int) -> Any:
        with pool.connection():
            return work(x)

    return guarded


def lifo_queue(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from a queue, in as few words as one can."""
    free: queue.LifoQueue[Link] = queue.LifoQueue()
    for _ in range(setting.most):
        setting.connect()
        free.put(Link())

    def guarded(x: int) -> Any:
        conn = free.get(timeout=PATIENCE)
        try:
            return work(x)
        finally:
            free.put(conn)

    return guarded


def _at_the_end(close: Callable[[], Any]) -> None:
    closing = ExitStack()
    closing.callback(close)
    resources.close_at_the_end(closing, awaited=False)


# -- of psycopg's own ------------------------------------------------------------------------------------


class _PsycopgLink(Link):
    """Has what psycopg_pool looks at, in the state of a connection on which nothing is going on."""

    def __init__(self) -> None:
        super().__init__()
        from psycopg.pq import TransactionStatus

        self.pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE)

    def __enter__(self) -> None:
        """Begin nothing."""

    def __exit__(self, *exc_info: object) -> None:
        """Commit nothing."""

    async def __aenter__(self) -> None:
        """Begin nothing."""

    async def __aexit__(self, *exc_info: object) -> None:
        """Commit nothing."""


def psycopg_pool(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from psycopg_pool's."""
    from psycopg_pool import ConnectionPool

    class Connection(_PsycopgLink):
        @classmethod
        def connect(cls, conninfo: str, **kwargs: Any) -> Any:
            setting.connect()
            return cls()

    pool: Any = ConnectionPool(
        connection_class=Connection,
        max_size=setting.most,
        timeout=PATIENCE,
        open=False,
        **setting.kept("min_size"),
    )
    pool.open(wait=True)
    _at_the_end(pool.close)

    def guarded(x: int) -> Any:
        with pool.connection():
            return work(x)

    return guarded


# -- for tasks -------------------------------------------------------------------------------------------


async def resilient_async(work: Work, setting: Setting = DEFAULT, **options: Any) -> Work:
    """Borrow from ours."""
    pool = await resilient_async_pool(Link, setting, **options)

    async def guarded(x: int) -> Any:
        async with pool.connection():
            return await work(x)

    return guarded


async def resilient_async_pool(link: Callable[[], Any], setting: Setting = DEFAULT, **options: Any) -> Any:
    """Return one of ours, closed when the run ends."""
    from resilient import AsyncConnectionPool

    async def connect() -> Any:
        await _connected(setting)
        return link()

    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        connect, name="bench", max_size=setting.most, timeout=PATIENCE, **setting.kept("min_size"), **options
    )
    await resources.keep_open(pool)
    return pool


async def resilient_async_full_stacks(work: Work) -> Work:
    """Borrow from ours, which keeps the whole stack of each borrower."""
    return await resilient_async(work, full_stacks=True)


async def connpool_async(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from connpool's."""
    from connpool import AsyncConnectionPool, PoolConfig

    async def connect() -> Any:
        await _connected(setting)
        return Link()

    config = PoolConfig(max_size=setting.most, acquire_timeout=PATIENCE, **setting.kept("min_size"))
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool.from_callables(connect, config=config)
    await resources.keep_open(pool)

    async def guarded(x: int) -> Any:
        async with pool.connection():
            return await work(x)

    return guarded


async def psycopg_pool_async(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from psycopg_pool's."""
    from psycopg_pool import AsyncConnectionPool

    class Connection(_PsycopgLink):
        @classmethod
        async def connect(cls, conninfo: str, **kwargs: Any) -> Any:
            await _connected(setting)
            return cls()

        async def close(self) -> None:  # type: ignore[override]
            """End."""

    pool: Any = AsyncConnectionPool(
        connection_class=Connection,
        max_size=setting.most,
        timeout=PATIENCE,
        open=False,
        **setting.kept("min_size"),
    )
    await resources.keep_open(pool)
    await pool.wait()

    async def guarded(x: int) -> Any:
        async with pool.connection():
            return await work(x)

    return guarded


async def asyncpg(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from asyncpg's."""
    import asyncpg

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        def __init__(self) -> None:
            self._protocol = SimpleNamespace(queries_count=0, _is_cancelling=bool)
            self._pool_release_ctr = 0
            self._proxy = self._pool_holder = None
            self._listeners: dict[str, Any] = {}
            self._log_listeners = self._termination_listeners = ()

        def __del__(self) -> None:
            """Leave nothing open."""

        def is_closed(self) -> bool:
            return False

        async def reset(self, *, timeout: float | None = None) -> None:
            """Do what takes a round trip to the server."""

        def terminate(self) -> None:
            """End."""

    async def connect(*args: Any, **kwargs: Any) -> Any:
        await _connected(setting)
        return Connection()

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        await pool
        yield
        pool.terminate()

    least = min(setting.most, 10) if setting.least is None else setting.least
    pool = asyncpg.create_pool(
        connect=connect, connection_class=Connection, min_size=least, max_size=setting.most
    )
    await resources.keep_open(opened())

    async def guarded(x: int) -> Any:
        async with pool.acquire(timeout=PATIENCE):
            return await work(x)

    return guarded


async def asyncio_queue(work: Work, setting: Setting = DEFAULT) -> Work:
    """Borrow from a queue, in as few words as one can; it has no time limit."""
    free: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
    for _ in range(setting.most):
        await _connected(setting)
        free.put_nowait(Link())

    async def guarded(x: int) -> Any:
        conn = await free.get()
        try:
            return await work(x)
        finally:
            free.put_nowait(conn)

    return guarded


async def _connected(setting: Setting) -> None:
    made = setting.connect()
    if isinstance(made, Awaitable):
        await made


# -- what borrowers notice -------------------------------------------------------------------------------


def deep(build: Callable[[Work], Work], work: Work) -> Work:
    """Borrow where many functions have called one another."""
    guarded = build(work)

    def dive(x: int, left: int = DEPTH) -> Any:
        return dive(x, left - 1) if left else guarded(x)

    return dive


def no_pool(work: Work) -> Work:
    """Borrow nothing."""

    def guarded(x: int) -> Any:
        return work(x)

    return guarded


def calling(conn: Any) -> Work:
    """Look the method up for each call, as users do."""

    def guarded(x: int) -> Any:
        return conn.run(x)

    return guarded


def call_bare(work: Work) -> Work:
    """Call a method of the connection itself."""
    return calling(Link(work))


def call_resilient(work: Work) -> Work:
    """Call it through what a borrower of ours has."""
    pool = resilient_pool(lambda: Link(work))
    conn = pool.getconn()
    _at_the_end(lambda: pool.putconn(conn))
    return calling(conn)


def call_sqlalchemy(work: Work) -> Work:
    """Call it through what a borrower of SQLAlchemy's has."""
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(lambda: Link(work), reset_on_return=None)  # type: ignore[arg-type]
    conn: Any = pool.connect()
    _at_the_end(conn.close)
    return calling(conn)


# -- tables ----------------------------------------------------------------------------------------------

Library = tuple[str, str | None, Build]

THREADED: tuple[Library, ...] = (
    ("resilient", "resilient-py", resilient),
    ("SQLAlchemy QueuePool", "SQLAlchemy", sqlalchemy),
    ("psycopg_pool", "psycopg-pool", psycopg_pool),
    ("connpool", "connpool", connpool),
)
"""The pools for threads."""

TASKED: tuple[Library, ...] = (
    ("resilient", "resilient-py", resilient_async),
    ("asyncpg", "asyncpg", asyncpg),
    ("psycopg_pool", "psycopg-pool", psycopg_pool_async),
    ("connpool", "connpool", connpool_async),
)
"""The pools for tasks. SQLAlchemy's is one for greenlets."""


def _rows(libraries: tuple[Library, ...]) -> list[Row]:
    return [(name, package, functools.partial(_default, build)) for name, package, build in libraries]


def _default(build: Build, work: Work) -> Any:
    return build(work, DEFAULT)


SUBJECTS = (
    *family(
        "pool",
        *_rows(THREADED),
        ("resilient (getconn, putconn)", "resilient-py", resilient_by_hand),
        ("resilient (full stacks)", "resilient-py", resilient_full_stacks),
        ("queue.LifoQueue", None, functools.partial(_default, lifo_queue)),
    ),
    *family(
        "pool of DB-API connections",
        ("resilient", "resilient-py", functools.partial(resilient, link=Database)),
        ("SQLAlchemy QueuePool", "SQLAlchemy", sqlalchemy_rollback),
        ("connpool", "connpool", functools.partial(connpool, link=Database)),
    ),
    *family(
        f"pool, {DEPTH} frames deep",
        ("resilient", "resilient-py", functools.partial(deep, resilient)),
        ("resilient (full stacks)", "resilient-py", functools.partial(deep, resilient_full_stacks)),
        ("SQLAlchemy QueuePool", "SQLAlchemy", functools.partial(deep, sqlalchemy)),
        ("no pool", None, functools.partial(deep, no_pool)),
    ),
    *family(
        "pool, a call on the connection",
        ("resilient", "resilient-py", call_resilient),
        ("SQLAlchemy QueuePool", "SQLAlchemy", call_sqlalchemy),
        ("the connection itself", None, call_bare),
    ),
    *family(
        "async pool",
        *_rows(TASKED),
        ("resilient (full stacks)", "resilient-py", resilient_async_full_stacks),
        ("asyncio.LifoQueue", None, functools.partial(_default, asyncio_queue)),
        awaited=True,
    ),
)
