"""Where a cache keeps its entries: a bounded store that evicts by SIEVE, or a cachetools cache of the user's.

SIEVE keeps entries in the order in which they came and one hand that goes from old to new: what was read
since the hand last passed is spared once, the first that was not goes. A hit sets one bit; nothing moves, so
a hit needs no lock, and scans do not flush the store as they do with LRU.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

import cachetools

from ...engine.fork import renew_after_fork

if TYPE_CHECKING:
    from .core import CacheCore

__all__ = ["BorrowedStore", "Entry", "SieveCache", "Store"]


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
    def __len__(self) -> int: ...


class _Node:
    """A key's place in the order of arrival."""

    __slots__ = ("key", "newer", "older")

    def __init__(self, key: Hashable, older: _Node | None) -> None:
        self.key = key
        self.older = older
        self.newer: _Node | None = None


class SieveCache(cachetools.Cache[Any, Entry]):
    """Keep at most *maxsize* entries and evict by SIEVE.

    Args:
        maxsize: the most entries, or, with *getsizeof*, the most weight.
        getsizeof: the weight of a cached value; 1 for each where it is None.

    Raises:
        ValueError: *maxsize* is negative.

    Concurrency: reads (`find`) need no lock; changes need the cache's.

    Source: Y. Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024.
    """

    def __init__(self, maxsize: float, getsizeof: Callable[[Any], float] | None = None) -> None:
        super().__init__(maxsize, None if getsizeof is None else lambda entry: getsizeof(entry.value))
        self._entries: dict[Hashable, Entry] = {}
        self._nodes: dict[Hashable, _Node] = {}
        self._oldest: _Node | None = None
        self._newest: _Node | None = None
        self._hand: _Node | None = None
        self.find = self._entries.get
        self.evictions = 0

    def keep(self, key: Hashable, entry: Entry) -> None:
        """Store *entry*; an entry that is heavier than the whole store is not kept."""
        try:
            self[key] = entry
        except ValueError:
            self.pop(key, None)

    def drop(self, key: Hashable) -> None:
        """Forget *key*."""
        self.pop(key, None)

    def __setitem__(self, key: Hashable, entry: Entry) -> None:
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

    def popitem(self) -> tuple[Hashable, Entry]:
        """Evict one entry and return it with its key."""
        victim = self._next_victim()
        if victim is None:
            msg = f"{type(self).__name__} is empty"
            raise KeyError(msg)
        entry = self._entries[victim.key]
        self._hand = victim
        del self[victim.key]
        self.evictions += 1
        return victim.key, entry

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._entries.clear()
        self._nodes.clear()
        self._oldest = self._newest = self._hand = None

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


class BorrowedStore:
    """Keeps entries in a cachetools cache of the user's; under a lock throughout, as reads move things."""

    evictions = 0  # the cache does not tell

    def __init__(self, cache: cachetools.Cache[Any, Any]) -> None:
        self._cache = cache
        self._lock = threading.RLock()
        renew_after_fork(self)

    def find(self, key: Hashable) -> Entry | None:
        """Return the entry of *key*, if the cache still has it."""
        with self._lock:
            entry = self._cache.get(key)
        return entry if isinstance(entry, Entry) else None

    def keep(self, key: Hashable, entry: Entry) -> None:
        """Store *entry*, unless the cache will not have it."""
        with self._lock:
            try:
                self._cache[key] = entry
            except ValueError:
                self._cache.pop(key, None)

    def drop(self, key: Hashable) -> None:
        """Forget *key*."""
        with self._lock:
            self._cache.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._cache.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._cache)

    def after_fork(self) -> None:
        self._lock = threading.RLock()
