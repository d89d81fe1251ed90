"""The scripts on a real server, step by step beside the strategies in memory: both say the same.

The server runs each script as it stands in its file; only its clock is ours, or a window could not pass in a
test.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.rate_limiter_support import STRATEGIES
from tests.support.valkey import ValkeyServer

from resilient import Decision, Quota
from resilient.fleet.rates import SharedRates
from resilient.policies.rate_limiter.book import Book, open_book
from resilient.testing import FakeClock

pytestmark = pytest.mark.faults

SECOND = 1_000_000  # microseconds
TICK = 1 / 64  # seconds: a whole number of microseconds, and exact in binary fractions too
# The last two arguments are the time; the script does not look at them.
CLOCK = """
local server = redis
local redis = {call = function(command, ...)
  if command == 'TIME' then return {ARGV[#ARGV - 1], ARGV[#ARGV]} end
  return server.call(command, ...)
end, pcall = server.pcall}
"""
NEARLY = 2e-3  # of a permit: by this much, sums of quotients may miss one in memory
AS_GOOD_AS = 1e-5  # seconds

numbers = itertools.count()


class Store:
    """A limit as the server counts it, at the time of *clock*."""

    def __init__(self, client: Any, clock: FakeClock, strategy: str, quotas: list[Quota]) -> None:
        self.client, self.clock = client, clock
        self.rates = SharedRates(f"scripts-{next(numbers)}", strategy, quotas)

    def decide(self, key: str, cost: int, patience: float, *, spend: bool) -> Decision:
        """Ask as a limiter does."""
        return self.ask("hit" if spend else "peek", key, cost, patience * SECOND)

    def give(self, decision: Decision, amount: int) -> None:
        """Correct as a limiter does."""
        self.ask("give", decision.key, amount, decision.at + decision.retry_after * SECOND)

    def ask(self, what: str, key: str, cost: int, extra: float) -> Decision:
        """Have the script run, and return what its answer means."""
        asked = self.rates.ask(what, key, cost, extra)
        command, _digest, *rest = next(asked)
        assert command == "EVALSHA"
        moment = divmod(round(self.clock() * SECOND), SECOND)
        answer = self.client.execute_command("EVAL", CLOCK + self.rates.script.source, *rest, *moment)
        with pytest.raises(StopIteration) as done:
            asked.send(answer)
        return self.rates.decision(done.value.value, key, cost)

    def hit(self, cost: int = 1) -> Decision:
        """Take permits of the only key."""
        return self.decide("", cost, 0.0, spend=True)

    def seconds_kept(self, key: str) -> float:
        """Return for how long the server keeps the last of what *key* has used."""
        return max(self.client.pttl(name) for name in self.rates.keys_of(key)) / 1_000


@dataclass(frozen=True)
class Step:
    """A pause, and what is done after it."""

    ticks: int
    what: str
    key: str
    cost: int
    which: int
    patience: float


QUOTAS = st.tuples(st.integers(1, 12), st.sampled_from([60, 90, 3_600]))
STEPS = st.lists(
    st.builds(
        Step,
        ticks=st.one_of(
            st.just(0), st.integers(0, 30 * 64), st.sampled_from([60 * 64, 90 * 64 - 1, 7_200 * 64])
        ),
        what=st.sampled_from(["hit", "hit", "hit", "peek", "settle"]),
        key=st.sampled_from(["ann", "bob"]),
        cost=st.one_of(st.just(1), st.integers(1, 14)),
        which=st.integers(0, 100),
        patience=st.sampled_from([0.0, 0.0, 2.5, 60.0]),
    ),
    min_size=15,
    max_size=40,
)


class Twins:
    """The same limit twice, asked the same."""

    def __init__(self, store: Store, book: Book, *, is_bucket: bool) -> None:
        self.store, self.book, self.is_bucket = store, book, is_bucket
        self.open: list[tuple[Decision, Decision]] = []

    def take(self, step: Step) -> bool:
        """Do *step* with both; return False where both are right and go apart."""
        if step.what == "settle":
            self.settle(step)
            return True
        patience = step.patience if self.is_bucket and step.what == "hit" else 0.0
        shared, local = (
            one.decide(step.key, step.cost, patience, spend=step.what == "hit")
            for one in (self.store, self.book)
        )
        if shared.allowed != local.allowed and self.is_within_rounding(shared, local, patience):
            return False
        self.compare(shared, local)
        if shared and step.what == "hit":
            self.open.append((shared, local))
            assert self.store.seconds_kept(step.key) >= shared.reset_after - 1.0, "forgotten too early"
        return True

    def settle(self, step: Step) -> None:
        """Correct a call, of which both know, to the cost of *step*."""
        if not self.open:
            return
        shared, local = self.open.pop(step.which % len(self.open))
        if step.cost != shared.cost:
            self.store.give(shared, shared.cost - step.cost)
            self.book.give(local, local.cost - step.cost)

    def is_within_rounding(self, shared: Decision, local: Decision, patience: float) -> bool:
        """Tell whether a token bucket's permit is missed by less than sums of quotients may be wrong."""
        late = max(shared.retry_after, local.retry_after) - patience
        return self.is_bucket and late < NEARLY * max(
            quota.window / quota.amount for quota in (shared.source.quota, local.source.quota)
        )

    def compare(self, shared: Decision, local: Decision) -> None:
        """Check that both say the same."""
        assert shared.allowed == local.allowed
        assert math.isclose(shared.retry_after, local.retry_after, abs_tol=AS_GOOD_AS)
        if self.is_bucket and shared.quota != local.quota:
            # One more permit, just there, and another quota is the tightest.
            assert abs(shared.remaining - local.remaining) <= 1
            return
        assert (shared.quota, shared.limit) == (local.quota, local.limit)
        assert math.isclose(shared.reset_after, local.reset_after, abs_tol=AS_GOOD_AS)
        if self.is_bucket:
            quota = shared.source.quota
            exact = quota.burst - shared.reset_after * quota.amount / quota.window
            told = {max(0, math.floor(exact + miss)) for miss in (-NEARLY, NEARLY)}
            assert {shared.remaining, local.remaining} <= told
        else:
            assert shared.remaining == local.remaining


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=max(100, settings.default.max_examples))
@given(quotas=st.lists(QUOTAS, min_size=1, max_size=2, unique=True), extra=st.integers(0, 5), steps=STEPS)
def test_script_says_what_the_strategy_in_memory_says(
    shared_valkey: ValkeyServer, strategy: str, quotas: list[tuple[int, int]], extra: int, steps: list[Step]
):
    """Every decision, in every field, for any row of hits, peeks, refunds and corrections."""
    is_bucket = strategy == "token-bucket"
    named = [
        Quota(f"{amount}/{window}", amount, float(window), amount + extra * is_bucket)
        for amount, window in quotas
    ]
    clock = FakeClock(2.0**20)
    with shared_valkey.client() as client:
        store, book = Store(client, clock, strategy, named), open_book(strategy, named, "local", 100, clock)
        twins = Twins(store, book, is_bucket=is_bucket)
        for step in steps:
            clock.advance(step.ticks * TICK)
            if not twins.take(step):
                return


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("windows", [[60.0], [60.0, 3_600.0]])
def test_refund_after_the_clock_of_the_server_was_set_back(
    shared_valkey: ValkeyServer, strategy: str, windows: list[float]
):
    """It is by the time under which the permits are kept."""
    quotas = [Quota(f"9/{window}", 9, window, 9) for window in windows]
    with shared_valkey.client() as client:
        store = Store(client, FakeClock(2.0**20), strategy, quotas)
        store.hit(2)
        store.clock = FakeClock(2.0**20 - 30.0)
        decision = store.hit(3)
        assert decision.remaining == 4
        store.give(decision, 3)

        assert store.decide("", 1, 0.0, spend=False).remaining == 7
