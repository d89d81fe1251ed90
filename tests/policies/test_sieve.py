"""SIEVE: against the algorithm as the paper gives it, against LRU on the same traffic, and under threads."""

from __future__ import annotations

import bisect
import itertools
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import cachetools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient import SieveCache


class NaiveSieve:
    """The algorithm of the paper (NSDI 2024, algorithm 1) on a plain list, newest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queue: list[Any] = []
        self.visited: dict[Any, bool] = {}
        self.hand: Any = None  # the key under the hand

    def read(self, key: Any) -> bool:
        if key in self.visited:
            self.visited[key] = True
            return True
        return False

    def write(self, key: Any) -> None:
        if self.read(key):
            return
        if len(self.queue) == self.size:
            self.evict()
        self.queue.insert(0, key)
        self.visited[key] = False

    def evict(self) -> None:
        place = len(self.queue) - 1 if self.hand is None else self.queue.index(self.hand)
        while self.visited[self.queue[place]]:
            self.visited[self.queue[place]] = False
            place = place - 1 if place > 0 else len(self.queue) - 1
        self._take_out(place, self.queue[place])
        self.hand = self.queue[place - 1] if place > 0 else None

    def delete(self, key: Any) -> None:
        place = self.queue.index(key)
        if key == self.hand:
            self.hand = self.queue[place - 1] if place > 0 else None
        self._take_out(place, key)

    def _take_out(self, place: int, key: Any) -> None:
        del self.queue[place]
        del self.visited[key]


KEYS = st.integers(0, 9)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), KEYS),
        st.tuples(st.just("write"), KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("evict"), st.just(0)),
    ),
    max_size=120,
)


@given(size=st.integers(1, 6), steps=STEPS)
def test_keeps_what_the_paper_keeps(size, steps):
    """After any reads, writes, deletions and evictions it holds the very keys the algorithm holds."""
    naive, ours = NaiveSieve(size), SieveCache(size)
    for step, key in steps:
        if step == "read":
            assert naive.read(key) == (ours.get(key) is not None)
        elif step == "write":
            naive.write(key)
            ours[key] = ("value of", key)
        elif step == "delete" and key in naive.visited:
            naive.delete(key)
            del ours[key]
        elif step == "evict" and naive.queue:
            naive.evict()
            ours.popitem()
        assert set(ours) == set(naive.queue)
        assert {key: ours.find(key).visited for key in ours} == naive.visited
        assert len(ours) == ours.currsize == len(naive.queue)


@given(
    st.lists(st.tuples(KEYS, st.integers(0, 12)), max_size=80),
    st.integers(5, 10),
)
def test_weights_stay_in_bounds(items, bound):
    """Whatever is written over whatever, the weight is at most the bound, and the sums agree."""
    cache = SieveCache(bound, getsizeof=len)
    for key, weight in items:
        if weight > bound:
            with pytest.raises(ValueError, match="too large"):
                cache[key] = "x" * weight
        else:
            cache[key] = "x" * weight
            assert cache[key] == "x" * weight
        assert cache.currsize == sum(len(value) for value in cache.values()) <= bound
        assert _in_order(cache) == len(cache)


def _in_order(cache: SieveCache) -> int:
    """Count the nodes from the oldest to the newest, and check that the way back is the same."""
    nodes, node = 0, cache._oldest
    while node is not None:
        nodes += 1
        assert node.newer is not None or node is cache._newest
        assert node.older is None or node.older.newer is node
        node = node.newer
    return nodes


def zipf(keys: int, requests: int, skew: float, seed: int) -> Iterator[int]:
    """Draw keys as often as Zipf's law says, most popular first."""
    weights = list(itertools.accumulate(1.0 / rank**skew for rank in range(1, keys + 1)))
    draw = random.Random(seed)
    for _ in range(requests):
        yield bisect.bisect_left(weights, draw.random() * weights[-1])


def hit_ratio(cache: cachetools.Cache[Any, Any], trace: list[Any]) -> float:
    """Play *trace*: read, and write what is not there."""
    hits = 0
    for key in trace:
        if cache.get(key) is None:
            cache[key] = True
        else:
            hits += 1
    return hits / len(trace)


@pytest.mark.parametrize("skew", [0.7, 0.9, 1.1])
@pytest.mark.parametrize("size", [50, 500])
def test_hits_no_less_than_lru(skew, size):
    """On popularity as the web has it, it finds at least as much as LRU on the same trace."""
    trace = list(zipf(5000, 50_000, skew, seed=size))
    assert hit_ratio(SieveCache(size), trace) >= hit_ratio(cachetools.LRUCache(size), trace)


def test_a_scan_does_not_flush_what_is_popular():
    """After a pass over ten times as many keys as fit, what was read before is still there; LRU has none."""
    popular = list(range(50))
    trace = [*popular, *popular, *range(1000, 2000)]
    kept = {}
    for kind in (SieveCache, cachetools.LRUCache):
        cache = kind(100)
        hit_ratio(cache, trace)
        kept[kind] = sum(key in cache for key in popular)
    assert kept == {SieveCache: 50, cachetools.LRUCache: 0}


@pytest.mark.slow
def test_is_bounded_under_a_million_keys():
    """A million distinct keys leave `maxsize` of them, and not one block of memory more."""
    cache = SieveCache(1024)
    blocks = 0
    for number in range(1_000_000):
        cache[number, "a key of its own"] = None
        if number == 10_000:
            blocks = sys.getallocatedblocks()
    assert len(cache) == len(cache._nodes) == len(cache._entries) == 1024
    assert cache.evictions == 1_000_000 - 1024
    # The process has other things to do as well: a tenth of a block an entry is noise.
    assert sys.getallocatedblocks() - blocks < 1024 / 10


def test_an_entry_weighs_some_400_bytes():
    """That is what an entry costs beside its key and value; dictionaries grow in steps."""
    cache, keys = SieveCache(1024), list(range(100_000, 101_024))
    tracemalloc.start()
    try:
        for key in keys:
            cache[key] = None
        weight, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 250 < weight / 1024 < 500, f"{weight / 1024:.0f} bytes an entry"


def test_evicting_takes_the_same_time_at_any_size():
    """The hand walks on from where it stood: the steps per eviction do not grow with the store."""

    class Counting(SieveCache):
        steps = 0

        def _next_victim(self) -> Any:
            before = sum(entry.visited for entry in self._entries.values())
            victim = super()._next_victim()
            type(self).steps += before - sum(entry.visited for entry in self._entries.values())
            return victim

    draw = random.Random(1)
    for size in (10, 100):
        Counting.steps = 0
        cache = Counting(size)
        for _ in range(2000):
            hit_ratio(cache, [draw.randrange(3 * size)])
        assert Counting.steps <= 2000, "no more bits cleared than reads have set"


def test_reads_need_no_lock_while_others_write():
    """Threads that read while others write see values under their keys, or nothing."""
    cache, lock = SieveCache(64), threading.Lock()
    stop, wrong = threading.Event(), []

    def read() -> None:
        draw = random.Random(threading.get_ident())
        while not stop.is_set():
            key = draw.randrange(256)
            entry = cache.find(key)
            if entry is not None:
                entry.visited = True
                if entry.value != (key, key):
                    wrong.append(key)

    def write(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(5000):
            key = draw.randrange(256)
            with lock:
                if draw.random() < 0.1:
                    cache.drop(key)
                else:
                    cache[key] = (key, key)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        _run([read, read], [lambda: write(1), lambda: write(2)], stop)
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert _in_order(cache) == len(cache) == len(cache._entries) <= 64


def _run(background: list[Callable[[], None]], work: list[Callable[[], None]], stop: threading.Event) -> None:
    readers = [threading.Thread(target=task) for task in background]
    writers = [threading.Thread(target=task) for task in work]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()


class TestAsACachetoolsCache:
    def test_is_one(self):
        """It takes any value, and works where a cachetools cache does."""
        calls: list[int] = []
        storage = SieveCache(10)

        @cachetools.cached(storage)
        def double(number: int) -> int:
            calls.append(number)
            return 2 * number

        assert [double(4), double(4)] == [8, 8]
        assert calls == [4]
        assert list(storage.values()) == [8]

    def test_pops_like_one(self):
        """`popitem`, `pop` and `setdefault` speak of values."""
        cache = SieveCache(10)
        cache["a"] = 1
        assert cache.setdefault("b", 2) == 2
        assert cache.pop("a") == 1
        assert cache.popitem() == ("b", 2)
        with pytest.raises(KeyError, match="SieveCache is empty"):
            cache.popitem()
        with pytest.raises(KeyError, match="'a'"):
            cache["a"]

    @pytest.mark.parametrize("method", ["get", "__getitem__"])
    def test_a_read_spares(self, method):
        """What was read is not the next to go."""
        cache = SieveCache(2)
        cache["a"], cache["b"] = 1, 2
        getattr(cache, method)("a")
        cache["c"] = 3
        assert set(cache) == {"a", "c"}

    def test_clear_counts_no_evictions(self):
        """What is forgotten on request was not evicted."""
        cache = SieveCache(3)
        for key in range(3):
            cache[key] = key
        cache.clear()
        assert (len(cache), cache.currsize, cache.evictions) == (0, 0, 0)
        cache["a"] = 1
        assert dict(cache) == {"a": 1}

    def test_negative_size_is_refused(self):
        """As cachetools does."""
        with pytest.raises(ValueError, match="non-negative"):
            SieveCache(-1)
