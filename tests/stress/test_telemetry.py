"""Metrics under load: exact whatever goes on, and never a reason why memory grows or a collection is slow."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from tests.stress.memory import assert_flat
from tests.support.collected import instrumented, key, provided, series, values

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ConnectionPool,
    Fallback,
    RateLimiter,
    Retry,
    Timeout,
)
from resilient.engine.measure import Instrument, defined
from resilient.errors import RejectedError
from resilient.testing import FakeClock

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
THREADS = 32
CALLS = 1_500 if SOAK else 120  # by each thread
MANY = 10_000_000 if SOAK else 300_000  # calls


class UpstreamError(Exception):
    """What calls fail with."""


class Everything:
    """All policies at once, and what was done with them."""

    def __init__(self, name: str) -> None:
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.judged = (
            CircuitBreaker(name, fail_max=10**9),
            AdaptiveThrottle(name, min_calls=10**9),
            Retry(on=UpstreamError, attempts=2, wait=0.0, budget=None, name=name),
            Timeout(60.0, name=name),
            Fallback("instead", on=UpstreamError, name=name),
            Bulkhead(name, THREADS, priority="critical", reserve=0),
        )
        self.limiter = RateLimiter(f"{THREADS * CALLS // 2}/day", name=name)
        self.open_one = CircuitBreaker(f"{name}-open")
        self.open_one.force_open()
        self.full = Bulkhead(f"{name}-full", 1, priority="critical", reserve=0)
        self.cache: Cache = Cache(name, ttl=3600.0)
        self.pool = ConnectionPool(object, name=name, max_size=4)

    def work(self, number: int) -> None:
        """Do the share of a thread, with the fortune of its *number*."""
        own: Counter[str] = Counter()
        dice = random.Random(number)
        for turn in range(CALLS):
            fails = dice.random() < 0.3
            own["failed"] += fails
            for policy in self.judged:
                self._attempt(policy, _fail if fails else int, own)
            for policy in (self.limiter, self.open_one, self.full):
                self._attempt(policy, int, own)
            self.cache.get(turn % 50, int)
            with self.pool.connection():
                pass
        with self._lock:
            self.done.update(own)

    def _attempt(self, policy: Any, function: Callable[[], object], own: Counter[str]) -> None:
        try:
            policy.call(function)
        except UpstreamError:
            pass
        except RejectedError:
            own[f"{policy.kind} {policy.name} rejected"] += 1

    def expected(self, name: str) -> dict[str, float]:
        """Return what there is to be told, without what depends on who came first."""
        total, failed = THREADS * CALLS, self.done["failed"]
        refused = self.done[f"RateLimiter {name} rejected"]
        return {
            "circuit_breaker calls success": total - failed,
            "circuit_breaker calls failure": failed,
            "circuit_breaker calls rejected": 0,
            "adaptive_throttle calls success": total - failed,
            "adaptive_throttle calls failure": failed,
            "retry retry.attempts original": total,
            "retry retry.attempts retry": failed,
            "retry retry.calls exhausted": failed,
            "retry wait.duration": failed,
            "timeout calls admitted": total,
            "fallback calls fallback": failed,
            "rate_limiter calls admitted": total - refused,
            "rate_limiter calls rejected": refused,
            "bulkhead calls admitted": total,
            "bulkhead calls rejected": 0,
            "cache cache.loads": 50,
            "connection_pool pool.checkouts": total,
        }


def watch(reader: InMemoryMetricReader, name: str, over: threading.Event) -> None:
    """Collect all the time; fail if a counter falls."""
    stood_at: dict[str, float] = {}
    while not over.is_set():
        found = counters(reader, name)
        assert {key: value for key, value in stood_at.items() if found.get(key, 0) < value} == {}
        stood_at = found


def counters(reader: InMemoryMetricReader, name: str) -> dict[str, float]:
    """Return what only grows."""
    growing = {one.name for one in defined() if one.instrument in {Instrument.COUNTER, Instrument.HISTOGRAM}}
    return {
        f"{one.attributes['resilient.policy.kind']} {key(one)}": one.value
        for one in series(reader)
        if one.metric in growing and one.attributes.get("resilient.policy.name") == name
    }


@pytest.mark.usefixtures("restless")
def test_counters_agree_exactly_with_what_was_done() -> None:
    """By 32 threads, with all policies at once, while two readers collect all the time; none ever falls."""
    name = "exactly"
    everything, over = Everything(name), threading.Event()
    readers = (InMemoryMetricReader(), InMemoryMetricReader())
    with instrumented(*readers):
        watchers = [threading.Thread(target=watch, args=(reader, name, over)) for reader in readers]
        threads = [threading.Thread(target=everything.work, args=(number,)) for number in range(THREADS)]
        with everything.full.calling():  # nobody else gets in
            for thread in (*watchers, *threads):
                thread.start()
            for thread in threads:
                thread.join()
        over.set()
        for thread in watchers:
            thread.join()
        found = counters(readers[0], name)
        assert counters(readers[1], name) == found
        refused = [counters(readers[0], f"{name}-{which}") for which in ("open", "full")]
    everything.pool.close()

    total, expected = THREADS * CALLS, everything.expected(name)
    assert 0.2 * total < everything.done["failed"] < 0.4 * total
    assert 0 < expected["rate_limiter calls rejected"] <= total // 2
    assert {key: found.get(key) for key in expected} == expected
    assert sum(value for key, value in found.items() if key.startswith("cache cache.requests")) == total
    for outcome in ("success", "failure"):  # of so many at once, a sample
        timed = found[f"circuit_breaker call.duration {outcome}"]
        assert 0 < timed <= found[f"circuit_breaker calls {outcome}"]
    assert refused[0]["circuit_breaker calls rejected"] == refused[1]["bulkhead calls rejected"] == total


def _fail() -> None:
    raise UpstreamError


@pytest.mark.timeout(1_200 if SOAK else 60)
def test_calls_that_are_told_of_leave_no_memory_behind() -> None:
    """300,000 of them, ten million in a soak, and a collection now and then."""
    clock, reader = FakeClock(), InMemoryMetricReader()
    breaker = CircuitBreaker("flat", fail_max=10**9, clock=clock)
    timeout = Timeout(60.0, name="flat", clock=clock)
    bulkhead = Bulkhead("flat", 10, clock=clock)
    retry = Retry(on=UpstreamError, attempts=2, name="flat", clock=clock, sleep=clock.advance, budget=None)

    @breaker
    @timeout
    @bulkhead
    def work() -> None:
        clock.advance(0.0001)

    @retry
    @breaker
    def fail() -> None:
        clock.advance(0.001)
        raise UpstreamError

    def calls(number: int) -> None:
        for turn in range(number):
            work()
            if not turn % 1000:
                with contextlib.suppress(UpstreamError):
                    fail()
                clock.advance(1.0)
            if not turn % 10_000:
                found = values(reader, "flat")
                assert found["calls admitted"] > 0

    with instrumented(reader):
        assert_flat(calls, MANY // 3)  # three times
        assert breaker.stats().calls >= MANY


def test_policies_that_come_and_go_leave_no_memory_behind() -> None:
    """One for each request, of a few names, and each collected before it is gone."""
    reader = InMemoryMetricReader()

    def come_and_go(number: int) -> None:
        for turn in range(number // 25):
            some = [CircuitBreaker(f"fleeting {place}") for place in range(25)]
            for breaker in some:
                breaker.call(int)
            assert values(reader, f"fleeting {turn % 25}")["calls success"] > turn
            del some, breaker
        gc.collect()

    with instrumented(reader):
        assert_flat(come_and_go, 250)


async def test_loops_are_told_of_too() -> None:
    """Tasks of one loop, some of which are cancelled or cut off, while a thread collects."""
    breaker, timeout = CircuitBreaker("looped", fail_max=10**9), Timeout(0.05, name="looped")
    reader, over = InMemoryMetricReader(), threading.Event()

    @breaker
    @timeout
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)

    def collect() -> None:
        while not over.is_set():
            values(reader)

    with instrumented(reader):
        thread = threading.Thread(target=collect)
        thread.start()
        try:
            tasks = [asyncio.create_task(work(30.0 if number % 3 else 0.0)) for number in range(300)]
            await asyncio.sleep(0)
            for task in tasks[1::3]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            over.set()
            await asyncio.to_thread(thread.join)
        found = values(reader, "looped")

    outcomes = Counter(type(one).__name__ for one in ended)
    assert outcomes == {"NoneType": 100, "CancelledError": 100, "CallTimeoutError": 100}
    assert (found["calls success"], found["calls abandoned"], found["calls failure"]) == (100, 100, 100)
    assert (found["calls admitted"], found["timeout.overruns"]) == (300, 100)


@pytest.mark.skipif(not SOAK, reason="compares how long things take: in `make soak`")
def test_collection_of_a_thousand_policies_costs_little_more_than_the_sdk_itself() -> None:
    """At most 1.3 times what the SDK needs for as many points that somebody has at hand."""
    breakers = [CircuitBreaker(f"b{number}") for number in range(1000)]
    for breaker in breakers:
        breaker.call(int)
    views = (View(instrument_name="*", aggregation_cardinality_limit=100_000),)
    ours, theirs = InMemoryMetricReader(), InMemoryMetricReader()
    with instrumented(ours, views=views):
        by_metric: dict[str, list[Observation]] = {}
        for one in series(ours):
            if one.kind != "Histogram":
                by_metric.setdefault(one.metric, []).append(Observation(one.value, one.attributes))
        with provided(theirs, views=views) as provider:
            meter = provider.get_meter("theirs")
            for metric, observations in by_metric.items():
                meter.create_observable_up_down_counter(metric, [_at_hand(observations)])
            gc.collect()
            gc.freeze()  # what pytest has made is nobody's cost
            pairs = [(_cost(ours), _cost(theirs)) for _ in range(12)]

    ratio = median(one / other for one, other in pairs[2:])
    assert ratio < 1.3, pairs


def _at_hand(observations: list[Observation]) -> Callable[[CallbackOptions], list[Observation]]:
    return lambda _options: observations


def _cost(reader: InMemoryMetricReader) -> float:
    gc.collect()
    begun = time.process_time()
    reader.get_metrics_data()
    return time.process_time() - begun
