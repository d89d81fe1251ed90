"""The libraries whose pools are watched: each with a pool of two connections, borrowed in one way."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import asyncpg
import psycopg
import psycopg_pool
import redis
import redis.asyncio
import redis.backoff
import redis.retry
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.ext.asyncio
import sqlalchemy.pool

PATIENT, QUICK = 20.0, 0.1  # seconds that a caller waits for a connection


class Library(ABC):
    """A pool of at most two connections to the servers at these addresses."""

    asynchronous: ClassVar[bool] = False
    exhausted: ClassVar[type[Exception]]

    def __init__(self, postgres: str, valkey: str) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.pool: Any = None  # what is given to `watch`
        self.patience = PATIENT

    @property
    def bare(self) -> Any:
        """The pool itself, where an engine or a client is given."""
        return self.pool

    def hurry(self) -> None:
        """Let nobody wait long from now on."""
        self.patience = QUICK

    @abstractmethod
    async def open(self) -> None:
        """Make the pool."""

    @abstractmethod
    async def borrow(self) -> Any:
        """Take a connection from the pool."""

    @abstractmethod
    async def give_back(self, connection: Any) -> None:
        """Return it."""

    @abstractmethod
    async def close(self) -> None:
        """Close the pool."""


class Engine(Library):
    exhausted = sqlalchemy.exc.TimeoutError
    driver = "psycopg"

    @property
    def bare(self) -> Any:
        return self.pool.pool

    @property
    def url(self) -> str:
        return self.postgres.replace("postgresql://", f"postgresql+{self.driver}://")

    def hurry(self) -> None:
        self.bare._timeout = QUICK

    async def open(self) -> None:
        self.pool = sqlalchemy.create_engine(self.url, pool_size=1, max_overflow=1, pool_timeout=PATIENT)

    async def borrow(self) -> Any:
        return self.pool.connect()

    async def give_back(self, connection: Any) -> None:
        connection.close()

    async def close(self) -> None:
        self.pool.dispose()


class EnginePool(Engine):
    @property
    def bare(self) -> Any:
        return self.pool

    async def open(self) -> None:
        connect: Any = lambda: psycopg.connect(self.postgres)  # noqa: E731
        self.pool = sqlalchemy.pool.QueuePool(connect, pool_size=1, max_overflow=1, timeout=PATIENT)


class AsyncEngine(Engine):
    asynchronous = True
    driver = "asyncpg"

    @property
    def bare(self) -> Any:
        return self.pool.sync_engine.pool

    async def open(self) -> None:
        self.pool = sqlalchemy.ext.asyncio.create_async_engine(
            self.url, pool_size=1, max_overflow=1, pool_timeout=PATIENT
        )

    async def borrow(self) -> Any:
        return await self.pool.connect()

    async def give_back(self, connection: Any) -> None:
        await connection.close()

    async def close(self) -> None:
        await self.pool.dispose()


class Psycopg(Library):
    exhausted = psycopg_pool.PoolTimeout
    kind: ClassVar[Any] = psycopg_pool.ConnectionPool
    smallest = 1

    async def open(self) -> None:
        self.pool = self.kind(self.postgres, min_size=self.smallest, max_size=2, open=False)
        self.pool.open(wait=True)

    async def borrow(self) -> Any:
        return self.pool.getconn(self.patience)

    async def give_back(self, connection: Any) -> None:
        self.pool.putconn(connection)

    async def close(self) -> None:
        self.pool.close()


class PsycopgNull(Psycopg):
    kind = psycopg_pool.NullConnectionPool
    smallest = 0


class AsyncPsycopg(Psycopg):
    asynchronous = True
    kind = psycopg_pool.AsyncConnectionPool

    async def open(self) -> None:
        self.pool = self.kind(self.postgres, min_size=self.smallest, max_size=2, open=False)
        await self.pool.open(wait=True)

    async def borrow(self) -> Any:
        return await self.pool.getconn(self.patience)

    async def give_back(self, connection: Any) -> None:
        await self.pool.putconn(connection)

    async def close(self) -> None:
        await self.pool.close()


class Redis(Library):
    """The pool of redis-py that fails at once where no connection is free; a client is given to `watch`."""

    exhausted = redis.ConnectionError

    @property
    def bare(self) -> Any:
        return self.pool.connection_pool

    async def open(self) -> None:
        pool = redis.ConnectionPool.from_url(
            self.valkey, max_connections=2, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        )
        self.pool = redis.Redis(connection_pool=pool)

    async def borrow(self) -> Any:
        return self.bare.get_connection()

    async def give_back(self, connection: Any) -> None:
        self.bare.release(connection)

    async def close(self) -> None:
        self.pool.close()
        self.bare.disconnect()


class RedisBlocking(Redis):
    def hurry(self) -> None:
        self.bare.timeout = QUICK

    @property
    def bare(self) -> Any:
        return self.pool

    async def open(self) -> None:
        self.pool = redis.BlockingConnectionPool.from_url(self.valkey, max_connections=2, timeout=PATIENT)

    async def close(self) -> None:
        self.bare.disconnect()


class AsyncRedis(Redis):
    asynchronous = True

    async def open(self) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(self.valkey, max_connections=2)
        self.pool = redis.asyncio.Redis(connection_pool=pool)

    async def borrow(self) -> Any:
        return await self.bare.get_connection()

    async def give_back(self, connection: Any) -> None:
        await self.bare.release(connection)

    async def close(self) -> None:
        await self.pool.aclose()
        await self.bare.aclose()


class AsyncRedisBlocking(AsyncRedis):
    def hurry(self) -> None:
        self.bare.timeout = QUICK

    @property
    def bare(self) -> Any:
        return self.pool

    async def open(self) -> None:
        kind: Any = redis.asyncio.BlockingConnectionPool
        self.pool = kind.from_url(self.valkey, max_connections=2, timeout=PATIENT)

    async def close(self) -> None:
        await self.bare.aclose()


class Asyncpg(Library):
    asynchronous = True
    exhausted = asyncio.TimeoutError

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.postgres, min_size=1, max_size=2)

    async def borrow(self) -> Any:
        return await self.pool.acquire(timeout=self.patience)

    async def give_back(self, connection: Any) -> None:
        await self.pool.release(connection)

    async def close(self) -> None:
        await self.pool.close()


LIBRARIES: tuple[type[Library], ...] = (
    Engine,
    EnginePool,
    AsyncEngine,
    Psycopg,
    PsycopgNull,
    AsyncPsycopg,
    Redis,
    RedisBlocking,
    AsyncRedis,
    AsyncRedisBlocking,
    Asyncpg,
)
