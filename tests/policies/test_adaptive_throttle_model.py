"""The throttle against a naive model, step by step: calls that overlap, time that jumps, dice that are known.

The model keeps every call in a list and applies the formula of the book to those begun within the window. It
shares no code with the throttle. All moments are whole seconds and a window has ten parts of a second, so
that both must agree exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from resilient import AdaptiveThrottle, RejectedError, ThrottledError
from resilient.events import Event, ThrottlingStarted, ThrottlingStopped
from resilient.testing import FakeClock

# RESILIENT_HYPOTHESIS=deep takes minutes.
pytestmark = pytest.mark.timeout(1_800)

WINDOW = 10


class DependencyError(Exception):
    """A failure."""


class BusinessError(Exception):
    """Excluded: an answer."""


class UnrelatedError(BaseException):
    """No exception that a dependency could raise."""


OUTCOMES: dict[str, BaseException | None] = {
    "good": None,
    "bad": DependencyError(),
    "excluded": BusinessError(),
    "refused inside": RejectedError("by a limiter further inside"),
    "abandoned": UnrelatedError(),
}


class Call:
    """A guarded call under way: a block, or a stream that stands between two items."""

    def __init__(self, throttle: AdaptiveThrottle, stream: bool) -> None:
        self._stream = throttle(self._items)() if stream else None
        self._block = None if stream else throttle.calling()
        if self._stream is not None:
            next(self._stream)
        if self._block is not None:
            self._block.__enter__()

    def end(self, outcome: str) -> None:
        """End as *outcome* says."""
        exc = OUTCOMES[outcome]
        if self._block is not None:
            self._block.__exit__(type(exc), exc, None)
        elif self._stream is not None:
            with pytest.raises(StopIteration if exc is None else type(exc)):
                next(self._stream) if exc is None else self._stream.throw(exc)

    @staticmethod
    def _items() -> Generator[int, Any, None]:
        yield 1


@dataclass
class NaiveCall:
    """When it began, what became of it, and whether it counts only when it ends."""

    began: float
    outcome: str
    stream: bool


@dataclass
class Naive:
    """The throttle's rules, in the most literal way."""

    k: float
    max_rejection: float
    min_calls: int
    calls: list[NaiveCall] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    throttles: bool = False
    rejected_since: int = 0
    last_refusal: float = 0.0
    looked: float = -1.0

    def window(self, now: float) -> list[NaiveCall]:
        return [call for call in self.calls if now - call.began <= WINDOW - 1]

    def accepts(self, now: float) -> int:
        return sum(call.outcome == "accepted" for call in self.window(now))

    def probability(self, now: float) -> float:
        window = self.window(now)
        if sum(call.outcome != "under way" for call in window) < self.min_calls:
            return 0.0
        attempts, accepts = len(window), self.accepts(now)
        return min(self.max_rejection, max(0.0, (attempts - self.k * accepts) / (attempts + 1)))

    def begin(self, now: float, dice: float, stream: bool) -> NaiveCall | None:
        self.look(now)
        probability = self.probability(now)
        if dice < probability:
            self.refuse(now, probability)
            return None
        call = NaiveCall(now, "under way", stream)
        if not stream:
            self.calls.append(call)
        return call

    def refuse(self, now: float, probability: float) -> None:
        if not self.throttles:
            attempts, accepts = len(self.window(now)), self.accepts(now)
            self.events.append(ThrottlingStarted("t", probability, attempts, accepts))
            self.throttles, self.rejected_since = True, 0
        self.last_refusal = now
        self.rejected_since += 1
        self.counts["rejected"] += 1
        self.calls.append(NaiveCall(now, "refused", stream=False))

    def look(self, now: float) -> None:
        """Notice once in each second whether a whole one has passed in which nothing was refused."""
        quiet = now >= self.last_refusal + 2
        if now > self.looked and self.throttles and quiet and not self.probability(now):
            self.throttles = False
            self.events.append(ThrottlingStopped("t", self.rejected_since))
        self.looked = now

    def end(self, call: NaiveCall, outcome: str, now: float) -> None:
        if outcome in {"refused inside", "abandoned"}:
            self.counts["ignored" if outcome == "refused inside" else "abandoned"] += 1
            self.calls = [one for one in self.calls if one is not call]
            return
        if call.stream:
            self.look(now)
            call.began = now
            self.calls.append(call)
        if call not in self.window(self.looked):
            self.counts["late"] += 1
            return
        call.outcome = "failed" if outcome == "bad" else "accepted"
        self.counts["calls"] += 1
        self.counts["failures"] += outcome == "bad"

    def stats(self, now: float) -> dict[str, Any]:
        counted = ("calls", "failures", "rejected", "abandoned", "ignored", "late")
        return {
            **{name: self.counts[name] for name in counted},
            "attempts": len(self.window(now)),
            "accepts": self.accepts(now),
            "probability": self.probability(now),
        }


class ThrottleMachine(RuleBasedStateMachine):
    """Do the same to a throttle and to the model, and compare."""

    @initialize(
        k=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
        max_rejection=st.sampled_from([0.5, 0.9, 1.0]),
        min_calls=st.sampled_from([1, 3, 6]),
    )
    def make(self, k: float, max_rejection: float, min_calls: int) -> None:
        self.clock = FakeClock()
        self.dice: list[float] = []
        self.naive = Naive(k, max_rejection, min_calls)
        self.throttle = AdaptiveThrottle(
            "t",
            k=k,
            window=WINDOW,
            max_rejection=max_rejection,
            min_calls=min_calls,
            exclude=BusinessError,
            clock=self.clock,
            random=self.roll,
        )
        self.events: list[Event] = []
        self.throttle.add_listener(self.events.append)
        self.under_way: list[tuple[Call, NaiveCall]] = []

    def roll(self) -> float:
        """Give the dice; to be asked once at most."""
        return self.dice.pop()

    @rule(dice=st.sampled_from([0.0, 0.2, 0.5, 0.95]), stream=st.booleans())
    def begin(self, dice: float, stream: bool) -> None:
        """Begin a call that ends later, or is refused."""
        self.dice = [dice]
        asks = self.naive.probability(self.clock()) > 0.0
        expected = self.naive.begin(self.clock(), dice, stream)
        if expected is None:
            with pytest.raises(ThrottledError):
                Call(self.throttle, stream)
        else:
            self.under_way.append((Call(self.throttle, stream), expected))
        assert not self.dice if asks else self.dice == [dice]

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 99), outcome=st.sampled_from(sorted(OUTCOMES)))
    def end(self, which: int, outcome: str) -> None:
        """End any of the calls under way."""
        real, naive = self.under_way.pop(which % len(self.under_way))
        real.end(outcome)
        self.naive.end(naive, outcome, self.clock())

    @rule(
        dice=st.sampled_from([0.0, 0.2, 0.5, 0.95]),
        outcomes=st.lists(st.sampled_from(["good", "good", *sorted(OUTCOMES)]), min_size=1, max_size=15),
    )
    def call_on_and_on(self, dice: float, outcomes: list[str]) -> None:
        """Make calls one after another that take no time."""
        for outcome in outcomes:
            before = len(self.under_way)
            self.begin(dice, stream=False)
            if len(self.under_way) > before:
                self.end(before, outcome)

    @rule(seconds=st.sampled_from([1, 1, 1, 2, 5, 9, 10, 11, 100]))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    @rule()
    def agree(self) -> None:
        """Compare every count, the probability, and what listeners have heard.

        Not after each step: looking makes the throttle look, and what it has not looked at is a case, too.
        """
        now, stats = self.clock(), self.throttle.stats()
        self.naive.look(now)
        assert {name: getattr(stats, name) for name in self.naive.stats(now)} == self.naive.stats(now)
        assert self.events == self.naive.events

    def teardown(self) -> None:
        """Compare at last."""
        if hasattr(self, "throttle"):
            self.agree()


TestThrottle = ThrottleMachine.TestCase
