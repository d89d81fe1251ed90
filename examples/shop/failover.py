"""What keeps the carts when Valkey dies or is replaced: this file is the whole difference between the runs.

To look at a cart, the replica will do, and if need be what was last seen of it. A change is written down, and
stored as soon as that is possible. But nobody is charged for what only a replica says, or a memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import redis
from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry as ClientRetry
from redis.backoff import NoBackoff

from examples.shop.carts import Cart, Carts, client, note, put, read, take
from examples.shop.store import SERVICE, Address
from resilient import (
    AsyncConnectionPool,
    Cache,
    CircuitBreaker,
    Fallback,
    Pipeline,
    Retry,
    Timeout,
    deadline,
    freshness,
    wait_full_jitter,
)
from resilient.errors import CircuitOpenError, PoolTimeoutError, PoolUnavailableError, RejectedError
from resilient.health import Health, RedisServer

# Seconds. Who fills a cart or looks at it does not wait for a server; who is about to buy does, for a while.
LOOK_WITHIN, BUY_WITHIN = 1.0, 8.0
# For so long, what was stored is remembered, and stored again in a server that may lack it.
REPEATED_FOR = 30.0
MOST_CHANGES = 10_000
# The client is to try once, and not for long; whether to try again is for those to say who know what for.
ONE_TRY: dict[str, Any] = {
    "socket_connect_timeout": 0.25,
    "socket_timeout": 0.25,
    "retry": ClientRetry(NoBackoff(), 0),
    "protocol": 2,
}
REFUSALS = (CircuitOpenError, PoolUnavailableError, PoolTimeoutError)


def is_away(error: BaseException) -> bool:
    """Say whether the server is not there, or not the one it was."""
    away = redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError, RejectedError
    return isinstance(error, away)


primary = CircuitBreaker("carts-primary", on=is_away, min_calls=5, window=10, reset_timeout=0.5)
last_seen = Cache("last-seen-carts", ttl=0.05, stale_if_error=600, max_size=10_000, key=lambda user: user)
soon = wait_full_jitter(0.02, max=0.1)

changing = Pipeline(
    deadline(LOOK_WITHIN), Retry(on=is_away, attempts=3, wait=soon, name="change"), primary, Timeout(0.3)
)
# No breaker, and attempts without number: a customer who waits for the server is the one to ask it again.
buying = Pipeline(
    deadline(BUY_WITHIN),
    Retry(on=(is_away, *REFUSALS), attempts=None, wait=soon, budget=None, name="buy"),
    Timeout(0.3),
)


def looking(elsewhere: Callable[[str], Awaitable[Cart]]) -> Pipeline:
    """Return what guards looking at a cart, given where to look if the primary is away."""
    return Pipeline(
        last_seen,
        Fallback(Timeout(0.3)(elsewhere), on=is_away, name="replica"),
        deadline(LOOK_WITHIN / 2),
        Retry(on=is_away, attempts=3, wait=soon, name="look"),
        primary,
        Timeout(0.3),
        # A cache around a fallback is refused elsewhere: it would keep an emergency answer as a good one. The
        # replica's is a good one, and to be remembered.
        order="as-given",
    )


async def read_replica(redis: Redis, user: str) -> Cart:
    """Return what is in a cart, as the replica knows it."""
    return (await read(redis, user)).said_by("replica")


@dataclass(eq=False, slots=True)
class Change:
    """Something put into a cart, or taken out if there is no product; and whether the store has it."""

    user: str
    entries: Collection[str]
    product: str | None = None
    at: float = field(default_factory=time.monotonic)
    stored: bool = False


async def carry_out(redis: Redis, change: Change) -> None:
    """Have the store make a change; to do so twice is no harm."""
    if change.product is None:
        await take(redis, change.user, change.entries)
    for entry in change.entries:
        if change.product is not None:
            await put(redis, change.user, entry, change.product)


class Changes:
    """What was changed lately: what the store does not have yet, and what another one may not have."""

    def __init__(self) -> None:
        self._latest: dict[str, Change] = {}

    def add(self, change: Change) -> None:
        """Write a change down; `RejectedError` if too many are owed already."""
        for entry in change.entries:
            self._latest.pop(entry, None)
        while self._latest and self._may_go(oldest := next(iter(self._latest))):
            del self._latest[oldest]
        if len(self._latest) >= MOST_CHANGES:
            raise RejectedError("too many changes wait for the store", policy="carts", retry_after=1.0)
        self._latest.update(dict.fromkeys(change.entries, change))

    def has(self, change: Change) -> bool:
        """Say whether a change stands, and no later one has taken its place."""
        return any(self._latest.get(entry) is change for entry in change.entries)

    def owed(self) -> list[Change]:
        """Return what the store does not have, for all that is known."""
        return list(dict.fromkeys(change for change in self._latest.values() if not change.stored))

    def repeat(self) -> None:
        """Owe everything again, to a server that was not there before."""
        for change in self._latest.values():
            change.stored = False

    def _may_go(self, entry: str) -> bool:
        change = self._latest[entry]
        is_old = time.monotonic() - change.at >= REPEATED_FOR
        return change.stored and (is_old or len(self._latest) >= MOST_CHANGES)

    def over(self, user: str, cart: Cart) -> Cart:
        """Return a cart as it is with what is owed."""
        entries = dict(cart.entries)
        for change in self.owed():
            for entry in change.entries if change.user == user else ():
                if change.product is None:
                    entries.pop(entry, None)
                else:
                    entries[entry] = change.product
        return Cart(entries, cart.source)


class ProtectedCarts(Carts):
    """All carts, whatever becomes of the store.

    Args:
        address: Where its sentinels are; they know where the primary is.
    """

    def __init__(self, address: Address) -> None:
        self._sentinels = Sentinel(address.sentinels, sentinel_kwargs=ONE_TRY)  # type: ignore[no-untyped-call]
        self._primary = AsyncConnectionPool(
            self._dial_primary,
            name="carts",
            check=self._recognise,
            max_size=10,
            timeout=0.25,
            connect_timeout=0.5,
        )
        self._replica = AsyncConnectionPool(
            self._dial_replica, name="carts-replica", max_size=10, timeout=0.25, connect_timeout=0.5
        )
        self._look = looking(self._replica(read_replica))(self._primary(read))
        self._buy = buying(self._primary(read))
        self._change = changing(self._primary(carry_out))
        self._changes = Changes()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._courier: asyncio.Task[None] | None = None
        self._met = ""

    def observe(self, health: Health) -> None:
        """Have the primary asked; there are carts without it, too."""
        health.watch(self._primary, self._replica)
        primary = self._sentinels.master_for(SERVICE)
        health.add(RedisServer(primary, role="master", name="store"))

    async def read(self, user: str) -> Cart:
        """Return what is in a cart, to look at it: at worst what was last seen, and what is to be stored."""
        cart = await self._look(user)
        known = freshness()
        return self._changes.over(user, cart.said_by("memory") if known and known.state == "stale" else cart)

    async def read_to_buy(self, user: str) -> Cart:
        """Return what is in a cart, to be charged for it: as the primary says, and what is to be stored."""
        return self._changes.over(user, await self._buy(user))

    async def put(self, user: str, entry: str, product: str) -> str:
        """Put a product into a cart, "stored" or for now only "noted"."""
        return await self._make(Change(user, [entry], product))

    async def take(self, user: str, entries: Collection[str]) -> str:
        """Take entries out of a cart, "stored" or for now only "noted"."""
        return await self._make(Change(user, entries))

    async def aclose(self) -> None:
        """Close all connections; what is owed then is lost."""
        if self._courier is not None:
            self._courier.cancel()
        await self._primary.close(drain=0.5)
        await self._replica.close(drain=0.5)
        for sentinel in self._sentinels.sentinels:
            await sentinel.aclose()

    async def _make(self, change: Change) -> str:
        self._changes.add(change)
        stored = await self._deliver(change)
        if not stored:
            self._send_courier()
        return "stored" if stored else "noted"

    async def _deliver(self, change: Change) -> bool:
        """Have a change stored, after those that the same customer made before; tell whether it is."""
        met = self._met
        try:
            async with deadline(LOOK_WITHIN), self._turns.setdefault(change.user, asyncio.Lock()):
                if self._changes.has(change):
                    await self._change(change)
        except Exception as error:
            if is_away(error):
                return False
            # The store does not want it, and will not later.
            change.stored = True
            raise
        # If another server was met meanwhile, this may have gone to the one before.
        change.stored = met in {"", self._met}
        last_seen.invalidate(change.user)
        return change.stored

    def _send_courier(self) -> None:
        if self._courier is None or self._courier.done():
            self._courier = asyncio.create_task(self._carry())

    async def _carry(self) -> None:
        """Bring what is owed, until nothing is."""
        while owed := self._changes.owed():
            for change in owed:
                try:
                    if not await self._deliver(change):
                        break  # nor would it take the others
                except redis.ResponseError as error:
                    note("given up", entries=list(change.entries), error=str(error))
            await asyncio.sleep(0.1)

    async def _dial_primary(self) -> Redis:
        host, port = await self._sentinels.discover_master(SERVICE)
        return await _dialled(host, port, self._meet)

    async def _dial_replica(self) -> Redis:
        replicas = await self._sentinels.discover_slaves(SERVICE)
        if not replicas:
            raise redis.ConnectionError("the sentinels know of no replica that is up")
        host, port = random.choice(replicas)
        return await _dialled(host, port, Redis.ping)

    async def _meet(self, server: Redis) -> None:
        """See that a server is the primary; another one than before may lack what was stored there."""
        now = await _primary_id(server)
        before, self._met = self._met, now
        if now != before:
            if before:
                # The old one takes changes until it is told, and nobody will ever see them.
                self._primary.drain()
            self._changes.repeat()
            self._send_courier()

    async def _recognise(self, server: Redis) -> None:
        """See that a server is the primary still."""
        if await _primary_id(server) != self._met:
            raise redis.ConnectionError("another server is the primary now")


async def _primary_id(server: Redis) -> str:
    """Return the name of this life of the primary; raise `redis.ConnectionError` if it is none."""
    told = await server.info()
    if told["role"] != "master":
        raise redis.ConnectionError("this server is not the primary, whatever a sentinel says")
    return str(told["run_id"])


async def _dialled(host: Any, port: Any, meet: Callable[[Redis], Awaitable[object]]) -> Redis:
    server = client(host, port, single_connection_client=True, **ONE_TRY)
    try:
        await meet(server)
    except BaseException:
        await server.aclose()
        raise
    return server
