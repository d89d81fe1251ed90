"""Where a cache keeps its entries: a bounded store that evicts by SIEVE, or a cachetools cache of the user's.

SIEVE keeps entries in the order in which they came and one hand that goes from old to new: what was read
since the hand last passed is spared once, the first that was not goes. A hit sets one bit; nothing moves, so
a hit needs no lock, and scans do not flush the store as they do with LRU.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import cachetools

if TYPE_CHECKING:
    from .core import CacheCore

__all__ = ["BorrowedStore", "Entry", "SieveCache", "Store"]

_ABSENT: Final = object()
_SLACK: Final = 64  # notes about values that a borrowed cache has evicted, before they are swept out


class Entry:
    """A value and how long it is good for, as moments on the cache's clock."""

    __slots__ = (
        "error",
        "error_until",
        "fresh_until",
        "origin",
        "retry_at",
        "stale_until",
        "stored_at",
        "value",
        "visited",
    )

    def __init__(self, origin: CacheCore, value: Any, stored_at: float) -> None:
        self.origin = origin
        self.value = value
        self.stored_at = stored_at
        self.fresh_until = -math.inf  # until then it is the answer
        self.stale_until = -math.inf  # until then it is the answer while one load runs
        self.error_until = -math.inf  # until then it is the answer when a load fails
        self.retry_at = -math.inf  # after a failed load: no other before this
        self.error: Exception | None = None  # an entry that remembers a failure instead of a value
        self.visited = False


class Store(Protocol):
    """What the cache asks of a store. All but `find` is called under the cache's lock."""

    evictions: int

    def find(self, key: Hashable, /) -> Entry | None: ...
    def keep(self, key: Hashable, entry: Entry, /) -> None: ...
    def drop(self, key: Hashable, /) -> None: ...
    def clear(self) -> None: ...
    def after_fork(self, *, torn: bool) -> None: ...
    def __len__(self) -> int: ...


class _Node:
    """A key's place in the order of arrival."""

    __slots__ = ("key", "newer", "older")

    def __init__(self, key: Hashable, older: _Node | None) -> None:
        self.key = key
        self.older = older
        self.newer: _Node | None = None


class SieveCache(cachetools.Cache[Any, Any]):
    """Keep at most *maxsize* values and evict by SIEVE.

    For `Cache(storage=...)`, where values have a weight; a cachetools cache like any other, too.

    Args:
        maxsize: the most values, or, with *getsizeof*, the most weight.
        getsizeof: the weight of a value; 1 for each where it is None.

    Raises:
        TypeError: *maxsize* is no number.
        ValueError: *maxsize* is negative.

    Concurrency: reads need no lock; changes need the caller's, and a `Cache` brings its own.

    Source: Y. Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024.
    """

    def __init__(self, maxsize: float, getsizeof: Callable[[Any], float] | None = None) -> None:
        self._weigh = None if getsizeof is None else functools.partial(_weight, getsizeof)
        self._entries: dict[Hashable, Entry] = {}
        self._nodes: dict[Hashable, _Node] = {}
        self.find = self._entries.get
        self._oldest: _Node | None = None
        self._newest: _Node | None = None
        self._hand: _Node | None = None
        self.evictions = 0
        super().__init__(maxsize, self._weigh)

    def keep(self, key: Hashable, entry: Entry) -> None:
        """Store *entry*; an entry that is heavier than the whole store is not kept.

        Args:
            key: its key.
            entry: what a `Cache` knows about a value.
        """
        try:
            self[key] = entry
        except ValueError:
            self.pop(key, None)

    def drop(self, key: Hashable) -> None:
        """Forget *key*.

        Args:
            key: the key; nothing happens if it is not kept.
        """
        self.pop(key, None)

    def __getitem__(self, key: Hashable) -> Any:
        entry = self.find(key)
        if entry is None:
            return self.__missing__(key)
        entry.visited = True
        return entry.value

    def __setitem__(self, key: Hashable, value: Any) -> None:
        # What its owner keeps here by hand is never fresh to a `Cache`.
        entry = value if isinstance(value, Entry) else Entry(cast("CacheCore", None), value, -math.inf)
        known = key in self._nodes
        super().__setitem__(key, entry)  # makes room first, by `popitem`
        if known and key in self._nodes:
            entry.visited = True  # it keeps its place; that it was loaded again speaks for it
        else:
            self._append(key)
        self._entries[key] = entry

    def __delitem__(self, key: Hashable) -> None:
        super().__delitem__(key)
        del self._entries[key]
        self._unlink(self._nodes.pop(key))

    def popitem(self) -> tuple[Hashable, Any]:
        """Evict one value and return it with its key.

        Returns:
            The key and the value.

        Raises:
            KeyError: there is none.
        """
        victim = self._next_victim()
        if victim is None:
            msg = f"{type(self).__name__} is empty"
            raise KeyError(msg)
        entry = self._entries[victim.key]
        self._hand = victim
        del self[victim.key]
        self.evictions += 1
        return victim.key, entry.value

    def clear(self) -> None:
        """Forget everything."""
        # Not by `clear` of the base: before cachetools 8 that pops one by one, which would count as evicting.
        super().__init__(self.maxsize, self._weigh)
        self._entries.clear()
        self._nodes.clear()
        self._oldest = self._newest = self._hand = None

    def after_fork(self, *, torn: bool) -> None:
        """Begin afresh in a forked child if the fork came in the middle of a change.

        Args:
            torn: whether it did.
        """
        if torn:
            self.clear()

    def _next_victim(self) -> _Node | None:
        node = self._hand or self._oldest
        # Readers set bits while the hand moves: twice round is enough, then somebody has to go.
        for _ in range(2 * len(self._nodes)):
            if node is None or not self._entries[node.key].visited:
                break
            self._entries[node.key].visited = False
            node = node.newer or self._oldest
        return node

    def _append(self, key: Hashable) -> None:
        node = self._nodes[key] = _Node(key, self._newest)
        if self._newest is None:
            self._oldest = node
        else:
            self._newest.newer = node
        self._newest = node

    def _unlink(self, node: _Node) -> None:
        if self._hand is node:
            self._hand = node.newer
        if node.older is None:
            self._oldest = node.newer
        else:
            node.older.newer = node.newer
        if node.newer is None:
            self._newest = node.older
        else:
            node.newer.older = node.older


def _weight(getsizeof: Callable[[Any], float], entry: Entry) -> float:
    return 1.0 if entry.error is not None else getsizeof(entry.value)


class BorrowedStore:
    """Keeps values in a cachetools cache of the user's; under a lock throughout, as reads move things.

    The user's cache holds the plain values, so that its own `getsizeof` or `ttu` work as they are. What we
    know about each value stands beside it, and remembered failures stand only there.
    """

    evictions = 0  # the cache does not tell

    def __init__(self, cache: cachetools.Cache[Any, Any]) -> None:
        self._cache = cache
        self._entries: dict[Hashable, Entry] = {}
        self._lock = threading.RLock()

    def find(self, key: Hashable) -> Entry | None:
        """Return the entry of *key*, if the cache still has its value."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.error is not None or self._cache.get(key, _ABSENT) is entry.value:
                return entry
            del self._entries[key]  # evicted, expired, or written over by the owner
            return None

    def keep(self, key: Hashable, entry: Entry) -> None:
        """Store *entry*, unless the cache will not have its value."""
        with self._lock:
            try:
                if entry.error is None:
                    self._cache[key] = entry.value
                else:
                    self._cache.pop(key, None)
            except ValueError:
                self.drop(key)
                return
            self._entries[key] = entry
            if len(self._entries) > 2 * len(self._cache) + _SLACK:
                self._sweep()

    def drop(self, key: Hashable) -> None:
        """Forget *key*."""
        with self._lock:
            self._entries.pop(key, None)
            self._cache.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._cache.clear()

    def after_fork(self, *, torn: bool) -> None:
        """Renew the lock in a forked child; begin afresh if the fork came in the middle of a change."""
        torn = torn or not self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        if torn:
            self.clear()

    def _sweep(self) -> None:
        self._entries = {key: entry for key, entry in self._entries.items() if key in self._cache}

    def __len__(self) -> int:
        with self._lock:
            return len(self._cache)
