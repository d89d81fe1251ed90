"""One object, eight threads, two event loops, ten thousand calls: every count adds up, no place is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from typing import Any

import pytest
from tests.stress.crowd import CALLS, Crowd

from resilient import (
    Cache,
    Calls,
    CircuitBreaker,
    Decision,
    Fallback,
    Pipeline,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
)
from resilient.engine.policy import Policy
from resilient.errors import CircuitOpenError
from resilient.testing import FakeClock

pytestmark = pytest.mark.usefixtures("restless")

INSTEAD = "instead"  # a fallback's answer


class GoneError(BaseException):
    """A caller that went away."""


OUTCOMES = ("good", "bad", "ignored", "abandoned")
ERRORS = {"bad": ConnectionError, "ignored": LookupError, "abandoned": GoneError}
expected = contextlib.suppress(*ERRORS.values())


class Ledger:
    """What the calls did, counted by themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def note(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1


class Work:
    """Calls of either colour under a policy, whose outcome depends on their number."""

    def __init__(self, policy: Policy) -> None:
        self._ledger = Ledger()
        self.counts = self._ledger.counts
        self._work = policy(self._act)
        self._awork = policy(self._aact)

    def call(self, number: int) -> None:
        with expected:
            self._check(number, self._work(number))

    async def acall(self, number: int) -> None:
        with expected:
            self._check(number, await self._awork(number))

    def _act(self, number: int) -> int:
        outcome = OUTCOMES[number % 4]
        self._ledger.note(outcome)
        if outcome != "good":
            raise ERRORS[outcome]
        return number

    async def _aact(self, number: int) -> int:
        await asyncio.sleep(0)
        return self._act(number)

    def _check(self, number: int, answer: object) -> None:
        assert answer == (number if OUTCOMES[number % 4] == "good" else INSTEAD)


BREAKERS: dict[str, dict[str, Any]] = {
    "time-window": {},
    "last-calls": {"window": Calls(10**6)},
    "slow-after": {"slow_after": 5.0},
    "fail-max": {"fail_max": 10**9},
}


@pytest.mark.parametrize("options", BREAKERS.values(), ids=BREAKERS)
def test_breaker_counts_every_call_once(options: dict[str, Any]) -> None:
    """Successes without a lock, failures, ignored and abandoned calls: the sums are exact."""
    breaker = CircuitBreaker("b", on=ConnectionError, min_calls=10**6, clock=FakeClock(), **options)
    work = Work(breaker)

    Crowd(work.call, work.acall).run()

    stats = breaker.stats()
    assert stats.state == "closed"
    assert (stats.calls, stats.failures) == (CALLS // 2, CALLS // 4)
    assert (stats.ignored, stats.abandoned) == (CALLS // 4, CALLS // 4)
    assert (stats.rejected, stats.stale) == (0, 0)
    assert work.counts == dict.fromkeys(OUTCOMES, CALLS // 4)


def test_half_open_breaker_lets_no_more_than_its_probes_run_at_once() -> None:
    """Across threads and loops, and in the end no place is missing."""
    clock, lock = FakeClock(), threading.Lock()
    breaker = CircuitBreaker("b", probes=3, reset_timeout=1.0, success_threshold=10**9, clock=clock)
    breaker.open()
    clock.advance(1.0)
    running, most, admitted, refused = 0, 0, 0, itertools.count()

    def enter() -> None:
        nonlocal running, most, admitted
        with lock:
            running += 1
            admitted += 1
            most = max(most, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    @breaker
    def work() -> None:
        enter()
        for _ in range(20):  # threads take turns here
            pass
        leave()

    @breaker
    async def awork() -> None:
        enter()
        await asyncio.sleep(0)
        leave()

    def call(_number: int) -> None:
        try:
            work()
        except CircuitOpenError:
            next(refused)

    async def acall(_number: int) -> None:
        try:
            await awork()
        except CircuitOpenError:
            next(refused)

    Crowd(call, acall).run()

    assert 1 <= most <= 3
    assert admitted + next(refused) == CALLS
    assert breaker.stats().rejected == CALLS - admitted
    assert breaker.stats().calls == admitted
    assert not breaker._core._period.probes


def test_retries_share_a_budget_to_the_last_retry() -> None:
    """Two policies, one budget: no more retries than it grants, and each is counted."""
    clock, attempts = FakeClock(), itertools.count()
    budget = RetryBudget(ratio=0.0, min_per_second=10.0, window=10.0, clock=clock)
    retries = [
        Retry(on=ConnectionError, attempts=3, wait=0.0, budget=budget, sleep=lambda _: None, clock=clock)
        for _ in range(2)
    ]

    def fail() -> None:
        next(attempts)
        raise ConnectionError

    async def afail() -> None:
        await asyncio.sleep(0)
        fail()

    works, aworks = [retry(fail) for retry in retries], [retry(afail) for retry in retries]

    def call(number: int) -> None:
        with expected:
            works[number % 2]()

    async def acall(number: int) -> None:
        with expected:
            await aworks[number % 2]()

    Crowd(call, acall).run()

    stats = [retry.stats() for retry in retries]
    assert sum(each.calls for each in stats) == CALLS
    assert sum(each.retries for each in stats) == 100
    assert sum(each.exhausted for each in stats) == CALLS
    assert next(attempts) == CALLS + 100
    assert budget.stats().retries == 100


def test_cache_answers_every_call_and_loads_each_key_once() -> None:
    """Single flight over threads and loops together."""
    loads: Counter[int] = Counter()
    cache = Cache("c", ttl=60.0, clock=FakeClock())
    lock = threading.Lock()

    def load(key: int) -> list[int]:
        with lock:
            loads[key] += 1
        return [key]

    async def aload(key: int) -> list[int]:
        await asyncio.sleep(0)
        return load(key)

    def call(number: int) -> None:
        key = number % 100
        assert cache.get(key, lambda: load(key)) == [key]

    async def acall(number: int) -> None:
        key = number % 100
        assert await cache.aget(key, lambda: aload(key)) == [key]

    Crowd(call, acall).run()

    stats = cache.stats()
    assert loads == dict.fromkeys(range(100), 1)
    assert (stats.loads, stats.size) == (100, 100)
    assert stats.hits + stats.misses >= CALLS  # who comes as a load ends may be counted as both
    assert not cache._core._flights


def test_timeout_counts_every_call() -> None:
    """In threads it sets deadlines, on loops it cuts off: one object, one count."""
    limit = Timeout(30.0)
    work = Work(limit)

    Crowd(work.call, work.acall).run()

    assert limit.stats().calls == CALLS
    assert limit.stats().timed_out == 0


STRATEGIES = ("token-bucket", "fixed-window", "sliding-window-counter", "moving-window")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_limiter_lets_in_exactly_its_limit(strategy: Any) -> None:
    """Of ten thousand calls on a key, in whatever form: so many, and not one more or less."""
    limiter = RateLimiter("2500/hour", strategy=strategy, clock=FakeClock())
    ledger = Ledger()

    def note(decision: Decision) -> None:
        ledger.note("allowed" if decision else "denied")

    async def acall(number: int) -> None:
        await asyncio.sleep(0)
        note(await limiter.ahit("key"))

    Crowd(lambda number: note(limiter.hit("key")), acall).run()

    assert ledger.counts == {"allowed": 2_500, "denied": CALLS - 2_500}
    assert (limiter.stats().allowed, limiter.stats().denied) == (2_500, CALLS - 2_500)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_limiter_of_many_keys_lets_in_exactly_its_limit_for_each(strategy: Any) -> None:
    """A hundred keys in room for a hundred, with costs and refunds: none gets another's permits."""
    limiter = RateLimiter("60/hour", strategy=strategy, max_keys=100, clock=FakeClock())
    ledger = Ledger()

    def use(number: int, decision: Decision) -> None:
        if decision and number % 7 == 0:
            limiter.refund(decision)
        elif decision:
            for _ in range(decision.cost):
                ledger.note(decision.key)

    def call(number: int) -> None:
        use(number, limiter.hit(str(number % 100), 1 + number % 3))

    async def acall(number: int) -> None:
        await asyncio.sleep(0)
        use(number, await limiter.ahit(str(number % 100), 1 + number % 3))

    Crowd(call, acall).run()
    for key in range(100):
        while decision := limiter.hit(str(key)):
            use(1, decision)

    assert ledger.counts == {str(key): 60 for key in range(100)}


def test_waiting_calls_each_get_a_turn_of_their_own() -> None:
    """Nobody shares a moment with another, and none is skipped."""
    clock = FakeClock()
    lock, turns = threading.Lock(), []
    limiter = RateLimiter("1/second", max_wait=CALLS, clock=clock, sleep=lambda _: None)

    def take(decision: Decision) -> None:
        with lock:
            turns.append(round(decision.retry_after))

    async def acall(number: int) -> None:
        await asyncio.sleep(0)
        take(await limiter.aacquire())

    Crowd(lambda number: take(limiter.acquire()), acall).run()

    assert sorted(turns) == [*range(CALLS)]


def test_corrections_of_one_decision_count_once() -> None:
    """Eight threads and two loops give the same decisions back."""
    limiter = RateLimiter("1000/hour", clock=FakeClock())
    limiter.hit(cost=500)
    decisions = [limiter.hit() for _ in range(100)]

    async def acall(number: int) -> None:
        await limiter.arefund(decisions[number % 100])

    Crowd(lambda number: limiter.refund(decisions[number % 100]), acall).run()

    assert limiter.peek().remaining == 500


def test_pipeline_loses_nothing_between_its_policies() -> None:
    """What one policy hands on, the next one counts."""
    clock = FakeClock()
    fallback = Fallback(INSTEAD, on=ConnectionError)
    retry = Retry(on=ConnectionError, attempts=2, wait=0.0, budget=None, sleep=lambda _: None, clock=clock)
    breaker = CircuitBreaker("b", on=ConnectionError, min_calls=10**6, clock=clock)
    limit = Timeout(30.0)
    work = Work(Pipeline(fallback, retry, breaker, limit))

    Crowd(work.call, work.acall).run()

    quarter = CALLS // 4
    assert work.counts == {"good": quarter, "bad": 2 * quarter, "ignored": quarter, "abandoned": quarter}
    assert fallback.stats().used == quarter
    assert (retry.stats().calls, retry.stats().retries, retry.stats().exhausted) == (CALLS, quarter, quarter)
    assert (breaker.stats().calls, breaker.stats().failures) == (3 * quarter, 2 * quarter)
    assert limit.stats().calls == CALLS + quarter
