"""The carts in Valkey, as first written: one client with a pool of ten connections, at a fixed address.

`failover.py` holds the same commands with policies on, and what it takes to do without an answer.

A cart is a hash: for each entry, its product. Every entry has a name of its own, so that to put it there
twice, or to take it away twice, is the same as once. The name begins with the customer's, so that one that is
a stranger's is seen to be so.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import uuid4

from redis.asyncio import Connection, Redis

from examples.shop.journal import say
from examples.shop.store import Address
from resilient.health import Health, RedisServer

# Seconds. Customers do come back for what they left in their carts.
KEPT_FOR = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Cart:
    """What is in a customer's cart, the product of each entry; and who says so."""

    entries: dict[str, str]
    source: str = "primary"

    def said_by(self, source: str) -> Cart:
        """Return the same, said by somebody else."""
        return replace(self, source=source)


def new_entry(user: str) -> str:
    """Return a name for an entry in a user's cart."""
    return f"{user}/{uuid4().hex}"


def is_of(user: str, entry: str) -> bool:
    """Say whether an entry belongs into a user's cart."""
    return entry.startswith(f"{user}/")


async def read(redis: Redis, user: str) -> Cart:
    """Return what is in a cart."""
    return Cart(cast("dict[str, str]", await redis.hgetall(_key(user))))


async def put(redis: Redis, user: str, entry: str, product: str) -> None:
    """Put a product into a cart."""
    await redis.hset(_key(user), entry, product)
    await redis.expire(_key(user), KEPT_FOR)
    note("stored")


async def take(redis: Redis, user: str, entries: Collection[str]) -> None:
    """Take entries out of a cart."""
    await redis.hdel(_key(user), *entries)
    note("stored")


def _key(user: str) -> str:
    return f"cart:{user}"


class Carts:
    """All carts.

    Args:
        address: Where the store is.
    """

    def __init__(self, address: Address) -> None:
        self._place = address.primary
        self._redis = client(*self._place, max_connections=10)

    def observe(self, health: Health) -> None:
        """Have the store asked how it is; without it there are no carts."""
        host, port = self._place
        health.add(RedisServer(Redis(host=host, port=port), name="store"), critical=True)

    async def read(self, user: str) -> Cart:
        """Return what is in a cart, to look at it."""
        return await read(self._redis, user)

    async def read_to_buy(self, user: str) -> Cart:
        """Return what is in a cart, to be charged for it."""
        return await read(self._redis, user)

    async def put(self, user: str, entry: str, product: str) -> str:
        """Put a product into a cart, and say what has become of it."""
        await put(self._redis, user, entry, product)
        return "stored"

    async def take(self, user: str, entries: Collection[str]) -> str:
        """Take entries out of a cart, and say what has become of that."""
        await take(self._redis, user, entries)
        return "stored"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


class NotedConnection(Connection):
    """A connection as it comes, but for a note in the journal of each attempt to connect."""

    async def _connect(self) -> None:
        note("dial", port=self.port)
        await super()._connect()  # type: ignore[no-untyped-call]


def client(host: str, port: int, **options: Any) -> Redis:
    """Return a client that is as redis-py makes it, unless *options* say otherwise."""
    redis = Redis(host=host, port=port, decode_responses=True, **options)
    redis.connection_pool.connection_class = NotedConnection
    return redis


def note(what: str, **told: object) -> None:
    """Write into the journal what the incident is about."""
    say(json.dumps({"note": what, **told}))
