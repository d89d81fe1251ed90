"""The four strategies, step by step at random, against models that are too simple to be wrong."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.policies.rate_limiter_support import MODELS, STRATEGIES, Model, Taken, limiter_of, per_seconds

from resilient import Decision
from resilient.testing import FakeClock

# Moments are multiples of 1/64 s, so that sums and differences of them are exact, and that a window ends
# to the moment. What is left of a token bucket is a quotient all the same.
PAUSES = st.one_of(
    st.sampled_from([0.0, 1 / 64, 0.5, 1.0, 7.0, 10.0, 60.0, 120.0, 86_400.0]),
    st.integers(1, 64 * 30).map(lambda number: number / 64),
)
COSTS = st.one_of(st.just(1), st.integers(1, 12))
QUOTAS = st.tuples(st.integers(1, 10), st.sampled_from([1, 3, 10, 60]))
KEYS = st.sampled_from(["ann", "bob"])
NEARLY = 2e-3  # of a permit: by this much, sums of quotients may miss one


class Life(RuleBasedStateMachine):
    """Hit, wait, give back, correct: with two keys, and one rate or several."""

    @initialize(
        strategy=st.sampled_from(STRATEGIES),
        quotas=st.lists(QUOTAS, min_size=1, max_size=3, unique=True),
        burst=st.none() | st.integers(1, 20),
        start=st.sampled_from([0.0, 1.0, 12_345.0, 2.0**24]),
    )
    def begin(self, strategy: Any, quotas: list[tuple[int, int]], burst: int | None, start: float) -> None:
        if strategy != "token-bucket" or len(quotas) > 1:
            burst = None
        self.strategy, self.clock = strategy, FakeClock(start)
        self.limiter = limiter_of(
            [per_seconds(*quota) for quota in quotas], self.clock, strategy=strategy, burst=burst
        )
        self.models: dict[str, list[Model]] = {
            key: [MODELS[strategy](amount, window, burst or amount) for amount, window in quotas]
            for key in ("ann", "bob")
        }
        self.open: list[tuple[Decision, list[Taken]]] = []
        self.allowed = self.denied = 0

    @property
    def now(self) -> Fraction:
        return Fraction(self.clock())

    @rule(key=KEYS, cost=COSTS)
    def hit(self, key: str, cost: int) -> None:
        models, now = self.models[key], self.now
        peeked = self.limiter.peek(key, cost)
        decision = self.limiter.hit(key, cost)
        self.expect(decision, models, cost)
        assert (peeked.allowed, peeked.retry_after) == (decision.allowed, decision.retry_after)
        if decision:
            self.allowed += 1
            self.open.append((decision, [model.take(now, cost) for model in models]))
        else:
            self.denied += 1
            self.expect_a_true_promise(key, decision, cost)
        self.expect_a_true_level(decision, models)
        self.expect_the_quota_that_matters(decision, models, cost)

    def expect(self, decision: Decision, models: list[Model], cost: int) -> None:
        """Check the verdict against the models, as they were before."""
        short = max(cost - model.room(self.now) for model in models)
        nearly = NEARLY if self.strategy == "token-bucket" else 0
        if not 0 < short < nearly:
            assert decision.allowed == (short <= 0), f"{short} permits short"
        if not decision:
            wait = max(model.wait(self.now, cost) for model in models)
            assert math.isclose(decision.retry_after, wait, rel_tol=1e-6, abs_tol=1e-6)
        else:
            assert decision.retry_after == 0.0

    def expect_a_true_level(self, decision: Decision, models: list[Model]) -> None:
        """Check what is left, and when all of it is back, of the quota that is told of."""
        names = [quota.name for quota in self.limiter.quotas]
        model = models[names.index(decision.quota)]
        room = max(Fraction(0), model.room(self.now))
        assert decision.limit == model.burst
        assert decision.remaining in {math.floor(room), math.floor(room + Fraction(NEARLY))}
        assert math.isclose(decision.reset_after, model.reset(self.now), rel_tol=1e-6, abs_tol=1e-6)

    def expect_the_quota_that_matters(self, decision: Decision, models: list[Model], cost: int) -> None:
        """Check of which of several quotas is told: the fullest, or the one that denied the longest."""
        names = [quota.name for quota in self.limiter.quotas]
        told = models[names.index(decision.quota)]
        if decision:
            least = min(model.room(self.now) for model in models)
            assert told.room(self.now) < least + 1
        else:
            longest = max(model.wait(self.now, cost) for model in models)
            assert math.isclose(told.wait(self.now, cost), longest, rel_tol=1e-6, abs_tol=1e-6)

    def expect_a_true_promise(self, key: str, decision: Decision, cost: int) -> None:
        """Whoever waits `retry_after` is let in, and nobody before who waits one per cent less."""
        if decision.retry_after == math.inf:
            return
        book = self.limiter._book
        state = book.shelf.find(key)

        def wait_at(share: float) -> float:
            later = self.clock() + share * decision.retry_after
            return book.algorithm.wait(copy.deepcopy(state), later, cost)

        assert wait_at(1.0) == 0.0
        if decision.retry_after > 1e-3 and self.strategy != "token-bucket":
            assert wait_at(0.99) > 0.0

    @rule(seconds=PAUSES)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(data=st.data(), to=st.integers(0, 15))
    def settle(self, data: st.DataObject, to: int) -> None:
        if not self.open:
            return
        decision, taken = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        models = self.models[decision.key]
        self.limiter.settle(decision, to)
        for model, one in zip(models, taken, strict=True):
            if to > decision.cost:
                model.take(self.now, to - decision.cost)
            else:
                model.give(one, decision.cost - to, self.now)
        self.limiter.refund(decision)
        self.limiter.settle(decision, 0)

    @invariant()
    def counts_every_call(self) -> None:
        stats = self.limiter.stats()
        assert (stats.allowed, stats.denied) == (self.allowed, self.denied)

    @invariant()
    def tells_what_is_left(self) -> None:
        for key, models in self.models.items():
            self.expect_a_true_level(self.limiter.peek(key), models)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=max(100, settings.default.max_examples))
