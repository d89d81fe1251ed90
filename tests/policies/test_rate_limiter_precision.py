"""Numbers that are hard to count with: clocks far from zero, a million permits, thirds of seconds, leaps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.rate_limiter_support import STRATEGIES, each_strategy, limiter_of, per_seconds

from resilient import Decision, RateLimiter
from resilient.testing import FakeClock

DAY = 86_400.0
# A machine that was just started, one that has been up for months, and a clock that shows the date.
STARTS = st.sampled_from([0.0, 0.1, 98_765.4321, 1.5e7, 1e9, 1.8e9])
NEARLY = 2e-3  # of a permit


@dataclass
class Load:
    """A limiter, and what it let in."""

    clock: FakeClock
    limiter: RateLimiter
    taken: list[tuple[float, int]]

    def hit(self, cost: int) -> Decision:
        """Hit once, and note what was taken."""
        decision = self.limiter.hit(cost=cost)
        if decision:
            self.taken.append((self.clock(), cost))
        return decision


@st.composite
def loads(draw: st.DrawFn, strategies: tuple[str, ...] = STRATEGIES, most: int = 10**6) -> Load:
    """Make a limiter and hit it at odd moments, sometimes for a lot."""
    amount = draw(st.sampled_from([1, 2, 3, 7, 10, 999, 10**6]).filter(lambda number: number <= most))
    window = draw(st.sampled_from([1, 3, 60, 86_400]))
    clock = FakeClock(draw(STARTS))
    options: dict[str, Any] = {"strategy": draw(st.sampled_from(strategies))}
    if options["strategy"] == "token-bucket":
        options["burst"] = draw(st.sampled_from([None, 1, 10, 10**6]))
    elif options["strategy"] == "moving-window":
        amount = min(amount, 999)  # it remembers each
    limiter = limiter_of(per_seconds(amount, window), clock, **options)
    load = Load(clock, limiter, [])
    limit = limiter.quotas[0].burst
    for _ in range(draw(st.integers(1, 30))):
        clock.advance(draw(st.floats(0.0, 2.0 * window) | st.just(0.0) | st.floats(0.0, window / amount)))
        load.hit(draw(st.integers(1, limit) | st.just(1) | st.just(limit)))
    return load


@given(load=loads(), cost=st.integers(1, 10**6))
def test_whoever_waits_as_long_as_told_is_let_in(load: Load, cost: int):
    """To the last bit of the clock; and told 0 means now."""
    cost = min(cost, load.limiter.quotas[0].burst)
    decision = load.limiter.peek(cost=cost)
    if decision:
        assert load.limiter.hit(cost=cost)
        return

    load.clock.advance(decision.retry_after)
    assert load.limiter.hit(cost=cost)


@given(load=loads(), cost=st.integers(1, 10**6))
def test_whoever_waits_one_per_cent_less_is_not_let_in(load: Load, cost: int):
    """Unless that is less than what the clock, or a thousandth of a permit, can tell."""
    quota = load.limiter.quotas[0]
    decision = load.limiter.peek(cost=min(cost, quota.burst))
    blur = 10 * math.ulp(load.clock()) + NEARLY * quota.window / quota.amount
    if decision or decision.retry_after < 100 * blur:
        return

    load.clock.advance(0.99 * decision.retry_after)
    assert not load.limiter.hit(cost=min(cost, quota.burst))


@given(load=loads(strategies=("token-bucket",)))
def test_token_bucket_lets_in_the_burst_and_what_came_back(load: Load):
    """In any time: no more than it holds, and the rate times that time."""
    quota = load.limiter.quotas[0]
    rate = quota.amount / quota.window
    for first, (begin, _) in enumerate(load.taken):
        used = 0
        for number, (end, cost) in enumerate(load.taken[first:], start=1):
            used += cost
            # What the clock cannot tell apart, a bucket cannot either.
            blur = NEARLY + number * math.ulp(end) * rate
            assert used <= quota.burst + rate * (end - begin) + blur


@given(load=loads(strategies=("moving-window",)))
def test_moving_window_never_holds_more_than_its_amount(load: Load):
    """Wherever it is put."""
    quota = load.limiter.quotas[0]
    for end, _ in load.taken:
        begin = end - quota.window + 4 * math.ulp(end)
        assert sum(cost for at, cost in load.taken if begin < at <= end) <= quota.amount


@given(load=loads(strategies=("fixed-window", "sliding-window-counter")))
def test_window_lets_in_no_more_than_twice_its_amount(load: Load):
    """Wherever it is put; a fixed one may be met by its neighbour, and a sliding one only guesses."""
    quota = load.limiter.quotas[0]
    for end, _ in load.taken:
        assert sum(cost for at, cost in load.taken if end - quota.window < at <= end) <= 2 * quota.amount


@given(load=loads())
def test_idle_is_full(load: Load):
    """When nobody has called for as long as told, all of it is there."""
    decision = load.limiter.peek()
    load.clock.advance(decision.reset_after + 4 * math.ulp(load.clock() + decision.reset_after))

    decision = load.limiter.peek()
    assert decision.remaining == decision.limit
    assert decision.reset_after <= NEARLY * load.limiter.quotas[0].window
    assert load.limiter.hit(cost=decision.limit)


@given(load=loads(most=999))
def test_numbers_are_in_their_ranges(load: Load):
    """Whatever came before: permits between 0 and the limit, and no time that is negative or nan."""
    limit = load.limiter.quotas[0].burst
    for cost in (1, limit, limit + 1):
        decision = load.limiter.hit(cost=cost)
        assert 0 <= decision.remaining <= decision.limit == limit
        assert isinstance(decision.remaining, int)
        assert 0.0 <= decision.reset_after < math.inf
        assert decision.retry_after >= 0.0
        assert (decision.retry_after == 0.0) == decision.allowed
        assert (decision.retry_after == math.inf) == (cost > limit)


@each_strategy
@pytest.mark.parametrize("rate", ["1/second", "7/minute", "1000/day"])
def test_clock_that_stands_still_lets_in_the_limit(strategy: str, rate: str):
    """And not one more, however often it is asked."""
    limiter = limiter_of(rate, FakeClock(1e9), strategy=strategy)
    limit = limiter.quotas[0].burst

    assert sum(limiter.hit().allowed for _ in range(2 * limit)) == limit


@pytest.mark.parametrize(
    ("rate", "up"), [("10000/second", DAY), ("1000/second", 100 * DAY), ("1000/minute", 1.8e9)]
)
def test_limit_is_exact_however_long_the_machine_is_up(rate: str, up: float):
    """A permit is many times what the clock can tell apart: thousands of them lose or win none."""
    limiter = limiter_of(rate, FakeClock(up + 1 / 3))
    limit = limiter.quotas[0].burst

    assert sum(limiter.hit().allowed for _ in range(limit + 100)) == limit


@each_strategy
def test_clock_that_leaps_a_day_makes_it_full_once(strategy: str):
    """A laptop that slept: the limit is there again, and no more than that."""
    clock = FakeClock()
    limiter = limiter_of("5/minute", clock, strategy=strategy)
    assert sum(limiter.hit().allowed for _ in range(9)) == 5
    clock.advance(DAY)

    assert sum(limiter.hit().allowed for _ in range(9)) == 5


@each_strategy
def test_clock_that_is_set_back_neither_raises_nor_forgives(strategy: str):
    """It must not happen, and does: whoever is over the limit stays so; the times told stay sane."""
    times = [100.0]
    limiter = RateLimiter("5/minute", clock=lambda: times[0], strategy=strategy)
    assert sum(limiter.hit().allowed for _ in range(9)) == 5
    times[0] = 90.0

    decision = limiter.hit()
    assert not decision
    assert 60.0 / 5 <= decision.retry_after <= 120.0
    assert 0.0 < limiter.peek().reset_after <= 130.0
