"""The cache users hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar, cast
from weakref import WeakValueDictionary

import cachetools

from ...engine import params
from ...engine.clock import MONOTONIC
from ...engine.drive.lookups import aload, load, lookup
from ...engine.finding import Finding
from ...engine.latency import Latency
from ...engine.living import remember
from ...engine.matching import Matcher
from ...engine.measure import Measure
from ...engine.policy import Policy
from ...engine.shape import Shape, describe
from ...typing import Clock, FailureRule, Seconds
from ..measures import of_cache
from .core import CacheCore, Lifetimes
from .desk import Desk
from .keys import hands_on, is_same, normal
from .store import BorrowedStore, SieveCache, Store

__all__ = ["Cache", "CacheStats"]

V = TypeVar("V")
D = TypeVar("D")

_DEFAULT_SIZE: Final = 1024

_lent: WeakValueDictionary[int, cachetools.Cache[Any, Any]] = WeakValueDictionary()  # by identity


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has counted.

    Attributes:
        hits: calls answered with a fresh value.
        stale: calls answered at once with a value past its time.
        misses: calls that had to load, or to wait for a load.
        rescued: of the misses, those that the last known good answered.
        loads: loads begun, refreshes in the background included.
        load_failures: loads that failed.
        joined: calls that waited for the load of another one.
        negative: calls answered with a remembered failure.
        evictions: entries that had to make room; 0 where the store is the user's own.
        size: entries kept now.
        stale_age: the age, in seconds, of the oldest value past its time that was served in the last minute;
            0 if none was.
        latency: how long loads took lately, in seconds, those that failed included.
    """

    hits: int
    stale: int
    misses: int
    rescued: int
    loads: int
    load_failures: int
    joined: int
    negative: int
    evictions: int
    size: int
    stale_age: float
    latency: Latency

    @property
    def hit_ratio(self) -> float:
        """Share of the calls that were answered without waiting for a load."""
        answered = self.hits + self.stale
        calls = answered + self.misses + self.negative
        return answered / calls if calls else 0.0


class Cache(Policy):
    """Keep answers for a while, and the last good one for when there is no new one.

    Until *ttl* an answer is fresh. For *stale_while_revalidate* seconds more it is served at once while one
    load runs in the background. After that, one call loads and the others wait for it, in whatever thread,
    task or loop they are. When the load fails, the last known good answer serves up to *stale_if_error*
    seconds past its *ttl*; `freshness()` tells.

    A load that needs its own key again, itself or in a circle through others, is not made to wait for
    itself: it calls the function, as it would without a cache.

    None is an answer like any other. A coroutine that waits can be cancelled without harm to the others; the
    load is cancelled when nobody waits for it any more.

    Args:
        name: in errors, events and statistics.
        ttl: seconds an answer is fresh; above 0.
        stale_while_revalidate: seconds after *ttl* in which it is served while it is loaded anew; 0 or more.
        stale_if_error: seconds after *ttl* in which it may answer for a load that failed; 0 or more,
            `math.inf` for as long as it is kept. None or 0: never.
        negative_ttl: seconds a failure is remembered, so that the next calls do not load again; above 0.
            Refusals are not remembered, nor is a failure at the cost of a value that may still answer.
            None: not at all.
        max_size: the most entries; at least 1. Not together with *storage*.
        key: makes the key from the arguments of the call. None: the positional arguments and keywords
            themselves, which must be hashable. Without it, a cache serves one function.
        jitter: the share of *ttl* by which it may be shortened at random, so that entries do not expire
            together; 0 to 1.
        load_timeout: seconds to wait for a load that somebody else runs, or that runs as a task; above 0;
            after it the next caller loads anew. None: without end.
        on: which failures of a load the last known good may answer for: exception types, predicates, or a
            tuple of both. Refusals always are.
        storage: a cachetools cache to keep entries in instead; None for a `SieveCache` of *max_size*.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop. A fresh hit takes no lock.

    Source: RFC 5861 for the two kinds of staleness; SIEVE (NSDI 2024) for eviction.
    """

    kind: ClassVar[str] = "Cache"

    def __init__(
        self,
        name: str,
        *,
        ttl: Seconds,
        stale_while_revalidate: Seconds = 0.0,
        stale_if_error: Seconds | None = None,
        negative_ttl: Seconds | None = None,
        max_size: int = _DEFAULT_SIZE,
        key: Callable[..., Hashable] | None = None,
        jitter: float = 0.1,
        load_timeout: Seconds | None = None,
        on: FailureRule = Exception,
        storage: cachetools.Cache[Any, Any] | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._name = params.named("name", name)
        lifetimes = Lifetimes(
            ttl=params.seconds("ttl", ttl, above=True),
            stale_while_revalidate=params.seconds("stale_while_revalidate", stale_while_revalidate),
            stale_if_error=params.seconds(
                "stale_if_error", 0.0 if stale_if_error is None else stale_if_error, infinite=True
            ),
            negative_ttl=params.optional_seconds("negative_ttl", negative_ttl) or 0.0,
            jitter=params.ratio("jitter", jitter, zero=True),
        )
        make_key = None if key is None else params.plain_function("key", key, classes=True)
        load_timeout = params.optional_seconds("load_timeout", load_timeout)
        store = _store(storage, params.count("max_size", max_size))
        clock = params.callback("clock", clock)
        self._core = CacheCore(self._name, lifetimes, store, Matcher("on", on), clock)
        self._desk = Desk(self._core, make_key, load_timeout)
        self._subject: Callable[..., Any] | None = None
        self.announcer = self._core.announcer
        remember(self)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._name

    @property
    def lifetimes(self) -> Lifetimes:
        """How long answers are good for, in seconds."""
        return self._core.lifetimes

    @property
    def enabled(self) -> bool:
        """Whether the cache is used. Set to False, every call loads for itself; what is kept stays kept."""
        return self._core.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._core.enabled = params.flag("enabled", enabled)

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, with its answers kept.

        Raises:
            TypeError: *fn* is a generator function.
            ValueError: this cache serves another function already, and has no *key* to tell the two apart.
        """
        wrapper = lookup(self._desk, fn, shape)
        self._claim(fn)
        return wrapper

    def get(self, key: Hashable, loader: Callable[[], V]) -> V:
        """Return the answer for *key*, and call *loader* if there is none that is fresh.

        Args:
            key: a tuple of the arguments of a guarded call, or a bare value `k` for `(k,)`.
            loader: makes the value.

        Returns:
            The value.

        Raises:
            CallTimeoutError: somebody else's load took longer than `load_timeout`.
            Exception: what *loader* raises.
        """
        key = normal(key)
        fresh, value = self._desk.fresh(key)
        return cast("V", value if fresh else load(self._desk, key, loader))

    async def aget(self, key: Hashable, loader: Callable[[], Awaitable[V]]) -> V:
        """Return the answer for *key*, and await *loader* if there is none that is fresh.

        Args:
            key: a tuple of the arguments of a guarded call, or a bare value `k` for `(k,)`.
            loader: a coroutine function that makes the value.

        Returns:
            The value.

        Raises:
            CallTimeoutError: the load took longer than `load_timeout`.
            Exception: what *loader* raises.
        """
        key = normal(key)
        fresh, value = self._desk.fresh(key)
        return cast("V", value if fresh else await aload(self._desk, key, loader))

    def peek(self, key: Hashable, default: D | None = None) -> Any | D | None:
        """Return what is kept for *key*, fresh or not, without loading.

        Args:
            key: as for `get`.
            default: the answer if nothing is kept.

        Returns:
            The value, or *default*.
        """
        entry = self._core.held(normal(key))
        return default if entry is None else entry.value

    def put(self, key: Hashable, value: object) -> None:
        """Keep *value* for *key* as if it had just been loaded.

        Args:
            key: as for `get`.
            value: the value; None is one.
        """
        self._core.put(normal(key), value)

    def invalidate(self, key: Hashable) -> None:
        """Forget *key*. A load that is under way answers those who wait for it, and is not kept.

        Args:
            key: as for `get`.
        """
        self._core.invalidate(normal(key))

    def clear(self) -> None:
        """Forget everything."""
        self._core.clear()

    def stats(self) -> CacheStats:
        """Return what has been counted so far."""
        core = self._core
        return CacheStats(
            hits=core.hits.read(),
            stale=core.stale,
            misses=core.led + core.joined,
            rescued=core.rescued,
            loads=core.led + core.refreshes,
            load_failures=core.load_failures,
            joined=core.joined,
            negative=core.negative,
            evictions=core.store.evictions,
            size=len(core.store),
            stale_age=core.stale_age,
            latency=core.loads.lately(),
        )

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_cache(self.stats(), self._core.loads)

    def finding(self) -> Finding:
        """Return how it stands, for health. A warning: it is switched off, or the last load failed."""
        status, output = self._core.standing()
        stats = self.stats()
        facts = {"size": stats.size, "stale": stats.stale, "load_failures": stats.load_failures}
        return Finding(status, output, value=stats.hit_ratio, unit="ratio", facts=facts)

    def __len__(self) -> int:
        return len(self._core.store)

    def __bool__(self) -> bool:
        return True  # an empty cache is no missing cache

    def __repr__(self) -> str:
        stats = self.stats()
        switched = "" if self.enabled else " off,"
        counts = f"{stats.size} kept, {stats.hit_ratio:.0%} hits, {stats.stale} stale"
        return f"<Cache {self._name!r}{switched} {counts}>"

    def _claim(self, fn: Callable[..., Any]) -> None:
        """Refuse a second function: its arguments would meet the first one's answers."""
        if not self._desk.plain_keys or hands_on(fn):
            return
        if self._subject is not None and not is_same(fn, self._subject):
            msg = (
                f"cache {self._name!r} serves {describe(self._subject)} already; {describe(fn)} would get "
                "its answers: give each function a Cache of its own, or one key= that tells them apart"
            )
            raise ValueError(msg)
        self._subject = fn


def _store(storage: Any, max_size: int) -> Store:
    if storage is None:
        return SieveCache(max_size)
    if not isinstance(storage, cachetools.Cache):
        params.refuse(TypeError, "storage", "must be a cachetools.Cache or None", storage)
    if max_size != _DEFAULT_SIZE:
        params.refuse(ValueError, "max_size", "must not be given with storage, which has its own", max_size)
    if _lent.get(id(storage)) is storage:  # their keys would meet, and their locks would not
        params.refuse(ValueError, "storage", "must not be another cache's, too", storage)
    _lent[id(storage)] = storage
    return storage if isinstance(storage, SieveCache) else BorrowedStore(storage)
