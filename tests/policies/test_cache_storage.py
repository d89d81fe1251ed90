"""Other storages: caches with weights, cachetools caches of the user's, stores that fail."""

from __future__ import annotations

import gc
import logging
from typing import Any

import cachetools
import pytest

from resilient import Cache, SieveCache, freshness
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


def make_storages(clock: FakeClock) -> list[cachetools.Cache[Any, Any]]:
    return [
        cachetools.FIFOCache(5),
        cachetools.LFUCache(5),
        cachetools.LRUCache(5),
        cachetools.RRCache(5),
        cachetools.TTLCache(5, ttl=1000.0, timer=clock),
        cachetools.TLRUCache(5, ttu=lambda _key, _value, now: now + 1000.0, timer=clock),
        SieveCache(5),
    ]


NAMES = ["fifo", "lfu", "lru", "random", "ttl", "tlru", "sieve"]


@pytest.fixture(params=range(7), ids=NAMES)
def cache(request: pytest.FixtureRequest, clock: FakeClock) -> Cache:
    """A cache in each kind of storage."""
    return Cache(
        "c",
        ttl=10.0,
        stale_if_error=100.0,
        negative_ttl=5.0,
        jitter=0.0,
        storage=make_storages(clock)[request.param],
        clock=clock,
    )


def away() -> Any:
    raise ConnectionError("away")


class TestAnyCachetoolsCache:
    def test_keeps_and_expires(self, cache, clock):
        """Freshness is ours, whatever the storage."""
        values = iter(range(10))
        assert [cache.get("k", lambda: next(values)) for _ in range(3)] == [0, 0, 0]
        clock.advance(10.0)
        assert cache.get("k", lambda: next(values)) == 1

    def test_serves_the_last_known_good(self, cache, clock):
        """What is past its `ttl` stays in the storage, to answer for failures."""
        cache.put("k", "good")
        clock.advance(50.0)
        assert cache.get("k", away) == "good"
        assert freshness().state == "stale"

    def test_none_is_a_value(self, cache):
        """None is told from nothing."""
        assert cache.get("k", lambda: None) is None
        assert cache.get("k", away) is None

    def test_remembers_failures(self, cache, clock):
        """A remembered failure is no value, and passes."""
        for _ in range(2):
            with pytest.raises(ConnectionError):
                cache.get("k", away)
        assert cache.stats().loads == 1
        assert cache.peek("k", "nothing") == "nothing"
        clock.advance(5.0)
        assert cache.get("k", lambda: "well") == "well"

    def test_is_bounded(self, cache):
        """The storage's own bound holds, for what is noted beside it as well."""
        for key in range(1000):
            cache.put(key, key)
            with pytest.raises(ConnectionError):
                cache.get(-1 - key, away)
        assert len(cache) <= 5
        assert len(cache._core.store._entries) <= 5 + 64 + 5

    def test_forgets(self, cache):
        """`invalidate` and `clear` reach the storage."""
        cache.put("k", 1)
        cache.put("other", 2)
        cache.invalidate("k")
        assert cache.peek("k") is None
        cache.clear()
        assert len(cache) == 0
        assert cache.peek("other") is None


class TestBorrowed:
    def test_holds_plain_values(self):
        """The user's cache has the user's values in it, under the keys of the calls."""
        storage = cachetools.LRUCache(10)
        Cache("c", ttl=10.0, storage=storage).put("k", "v")
        assert dict(storage) == {("k",): "v"}

    def test_its_own_weights_are_of_values(self):
        """`getsizeof` is asked about values, not about what we keep beside them."""
        storage = cachetools.LRUCache(10, getsizeof=len)
        cache = Cache("c", ttl=10.0, negative_ttl=10.0, storage=storage)
        cache.put("a", "123456")
        cache.put("b", "123456")
        assert list(storage) == [("b",)]
        cache.put("b", "x" * 11)
        assert cache.peek("b") is None, "too heavy: not kept, nor is what it replaced"
        with pytest.raises(ConnectionError):
            cache.get("c", away)
        assert storage.currsize == 0

    def test_its_own_expiry_is_obeyed(self, clock):
        """What a TTLCache or a `ttu` gives up is gone, last known good or not."""
        storage = cachetools.TLRUCache(10, ttu=lambda _key, value, now: now + value, timer=clock)
        cache = Cache("c", ttl=1.0, stale_if_error=1e6, jitter=0.0, storage=storage, clock=clock)
        cache.put("k", 20.0)
        clock.advance(19.0)
        assert cache.get("k", away) == 20.0
        clock.advance(1.0)
        with pytest.raises(ConnectionError):
            cache.get("k", away)

    def test_what_its_owner_writes_is_no_answer(self):
        """Nothing is known of a value that was put there by hand, so it is loaded anew."""
        storage = cachetools.LRUCache(10)
        storage["k",] = "by hand"
        cache = Cache("c", ttl=10.0, storage=storage)
        assert cache.get("k", lambda: "loaded") == "loaded"
        storage["k",] = "by hand"
        assert cache.get("k", lambda: "loaded again") == "loaded again"

    def test_counts_no_evictions(self):
        """A cachetools cache does not tell, so the count stays 0."""
        cache = Cache("c", ttl=10.0, storage=cachetools.LRUCache(1))
        for key in range(5):
            cache.put(key, key)
        assert cache.stats().evictions == 0

    @pytest.mark.parametrize("kind", [cachetools.LRUCache, SieveCache])
    def test_two_caches_on_one_storage_are_refused(self, kind):
        """Their keys would meet, and one would serve the other's answers."""
        storage = kind(10)
        first = Cache("one", ttl=10.0, storage=storage)
        with pytest.raises(ValueError, match="storage must not be another cache's, too"):
            Cache("two", ttl=10.0, storage=storage)
        assert first.get("k", lambda: 1) == 1

    def test_two_sizes_are_refused(self):
        """A storage has its own: the other one would be ignored."""
        with pytest.raises(ValueError, match=r"^max_size must not be given with storage, .*, got 5$"):
            Cache("c", ttl=10.0, max_size=5, storage=cachetools.LRUCache(10))

    def test_a_storage_may_go(self):
        """What was lent once is not kept alive by that."""
        import weakref

        storage = cachetools.LRUCache(10)
        cache = Cache("one", ttl=10.0, storage=storage)
        gone = weakref.ref(storage)
        del storage, cache
        gc.collect()
        assert gone() is None


class TestWeights:
    def test_bound_is_of_weight(self):
        """With `getsizeof`, `maxsize` is the most weight."""
        cache = Cache("c", ttl=10.0, storage=SieveCache(10, getsizeof=len))
        for key in range(5):
            cache.put(key, "xxxx")
        assert len(cache) == 2
        assert cache._core.store.currsize == 8
        assert cache.stats().evictions == 3

    def test_too_heavy_is_answered_and_not_kept(self):
        """A value heavier than the whole store is returned; the one it replaces is gone."""
        cache = Cache("c", ttl=10.0, storage=SieveCache(10, getsizeof=len))
        cache.put("k", "small")
        cache.invalidate("k")
        assert cache.get("k", lambda: "x" * 11) == "x" * 11
        assert cache.peek("k") is None

    def test_a_heavier_value_makes_room(self):
        """A value that grew may push out others, even itself, and the sums stay right."""
        storage = SieveCache(10, getsizeof=len)
        for key, value in [("a", "1"), ("b", "12345"), ("a", "123456789"), ("b", "12"), ("a", "1")]:
            storage[key] = value
            assert storage.currsize == sum(len(storage[k]) for k in storage) <= 10

    def test_remembered_failures_weigh_one(self):
        """`getsizeof` is not asked about a failure, which has no value."""
        cache = Cache("c", ttl=10.0, negative_ttl=5.0, storage=SieveCache(10, getsizeof=len))
        with pytest.raises(ConnectionError):
            cache.get("k", away)
        assert cache._core.store.currsize == 1

    @pytest.mark.parametrize("kind", [cachetools.LRUCache, SieveCache])
    def test_a_getsizeof_that_fails_costs_no_answer(self, kind, caplog):
        """The caller has its value, the log the error, and nothing is kept."""
        cache = Cache("c", ttl=10.0, storage=kind(10, getsizeof=len))
        with caplog.at_level(logging.ERROR, logger="resilient"):
            assert cache.get("k", lambda: 42) == 42
        assert "could not keep a value" in caplog.text
        assert cache.peek("k") is None
        assert not cache._core._flights
