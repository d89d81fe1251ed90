"""The breaker against a naive model, step by step: calls that overlap, time that jumps, hands that meddle.

The model keeps every call it ever recorded in a list and asks all rules again after each one. It shares no
code with the breaker. All moments are whole seconds and a window has ten parts of a second, so that both must
agree exactly.
"""

from __future__ import annotations

import contextvars
import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilient import Calls, CircuitBreaker, CircuitOpenError
from resilient.testing import FakeClock

# RESILIENT_HYPOTHESIS=deep takes minutes.
pytestmark = pytest.mark.timeout(1_800)

WINDOW = 10

COUNTS = (
    "calls",
    "failures",
    "slow",
    "rejected",
    "abandoned",
    "ignored",
    "stale",
    "unenforced",
    "times_opened",
)


class DependencyError(Exception):
    """A failure."""


class BusinessError(Exception):
    """Excluded: no failure."""


class GoAwayError(Exception):
    """A failure that says for how long to stay away."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"for {seconds:g} s")
        self.seconds = seconds


def judge(exc: Exception) -> bool | float:
    """Judge as a user might: open at once if told to, else count."""
    return exc.seconds if isinstance(exc, GoAwayError) else True


def longer_each_time(times: int) -> float:
    """Back off."""
    return min(5.0 * times, 20.0)


def is_bad(result: object) -> bool:
    """Judge a result."""
    return result == "bad"


class Pause:
    """Wait for the test to say how the call ends."""

    def __await__(self) -> Generator[None, Any, Any]:
        return (yield)


async def dependency() -> Any:
    """Answer what the test says."""
    return await Pause()


class RealCall:
    """A guarded call under way, in a context of its own, as in a task."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._context = contextvars.Context()
        self._coroutine = breaker(dependency)()
        self._context.run(self._coroutine.send, None)

    def end(self, outcome: object) -> None:
        """Let the call raise *outcome*, be cancelled by "cancel", or return it."""
        try:
            if outcome == "cancel":
                self._context.run(self._coroutine.close)
            elif isinstance(outcome, Exception):
                self._context.run(self._coroutine.throw, outcome)
            else:
                self._context.run(self._coroutine.send, outcome)
        except StopIteration as stop:
            self._came_out(stop.value, outcome)
        except Exception as exc:
            self._came_out(exc, outcome)

    @staticmethod
    def _came_out(what: object, outcome: object) -> None:
        assert what is outcome, "the breaker put something else in place of the call's own outcome"


@dataclass
class NaiveCall:
    """What the model knows of a call: when it began, in which stay in a state, and as what."""

    since: float
    era: int
    kind: str


@dataclass
class Naive:
    """The breaker's rules, in the most literal way."""

    rules: dict[str, Any]
    state: str = "closed"
    since: float = 0.0
    open_for: float = 0.0
    era: int = 0
    override: str | None = None
    override_until: float = math.inf
    record: list[tuple[float, bool, bool]] = field(default_factory=list)
    failures_in_a_row: int = 0
    openings_in_a_row: int = 0
    probes: list[NaiveCall] = field(default_factory=list)
    good_probes: int = 0
    ramp: float = 0.0
    credit: float = 1.0
    counts: Counter[str] = field(default_factory=Counter)
    last_failure: str | None = None

    # Calls.

    def begin(self, now: float) -> NaiveCall | tuple[str, float | None]:
        self.notice_expiry(now)
        refusal = self.refusal(now)
        kind = "probe" if self.state == "half-open" else "call"
        if refusal is not None:
            if self.override != "observe only":
                self.counts["rejected"] += 1
                return refusal
            self.counts["unenforced"] += 1
            kind = "unenforced"
        call = NaiveCall(now, self.era, kind)
        if kind == "probe":
            self.probes.append(call)
        return call

    def refusal(self, now: float) -> tuple[str, float | None] | None:
        if self.state == "open":
            if self.override == "forced open":
                left = self.override_until - now
                return "refused", None if left == math.inf else left
            if now < self.since + self.open_for:
                return "refused", self.since + self.open_for - now
            self.enter("half-open", now)
        if self.state == "half-open":
            slow = [probe for probe in self.probes if self.is_slow(probe, now)]
            if slow:
                self.counts["slow"] += len(slow)
                self.open(now)
                return self.refusal(now)
            lifetime = self.probe_lifetime()
            self.probes = [probe for probe in self.probes if now - probe.since <= lifetime]
            if len(self.probes) >= self.rules["probes"]:
                return "refused", min(probe.since for probe in self.probes) + lifetime - now
        elif now - self.since < self.ramp:
            self.credit += (now - self.since) / self.ramp
            if self.credit < 1:
                return "refused", self.since + self.ramp - now
            self.credit -= 1
        return None

    def probe_lifetime(self) -> float:
        timeout = self.rules["reset_timeout"]
        fallback = 30.0 if callable(timeout) or timeout == 0 else timeout
        return self.rules["probe_timeout"] or self.rules["slow_after"] or fallback

    def is_slow(self, call: NaiveCall, now: float) -> bool:
        return self.rules["slow_after"] is not None and now - call.since > self.rules["slow_after"]

    def end(self, call: NaiveCall, outcome: object, now: float) -> None:
        self.notice_expiry(now)
        counts_here = call.era == self.era and (call.kind == "call" or call in self.probes)
        self.probes = [probe for probe in self.probes if probe is not call]
        if call.kind == "unenforced":
            return
        slow = self.is_slow(call, now)
        if isinstance(outcome, BusinessError):
            self.counts["ignored"] += 1
        elif outcome == "cancel":
            self.counts["abandoned"] += 1
            if slow and counts_here:
                self.note(now, failed=False, slow=True)
                self.decide(now, bad_probe=True)
        elif not counts_here:
            self.counts["stale"] += 1
        elif isinstance(outcome, Exception) or (outcome == "bad" and self.rules["on_result"]):
            self.fail(outcome, slow, now)
        else:
            self.failures_in_a_row = 0
            self.note(now, failed=False, slow=slow)
            self.decide(now, bad_probe=slow)

    def fail(self, outcome: object, slow: bool, now: float) -> None:
        self.failures_in_a_row += 1
        self.note(now, failed=True, slow=slow)
        judged = "a result was judged a failure"
        self.last_failure = (
            f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else judged
        )
        if isinstance(outcome, GoAwayError) and self.override != "forced closed":
            self.open(now, outcome.seconds)
        else:
            self.decide(now, bad_probe=True)

    def note(self, now: float, *, failed: bool, slow: bool) -> None:
        self.record.append((now, failed, slow))
        self.counts["calls"] += 1
        self.counts["failures"] += failed
        self.counts["slow"] += slow

    def decide(self, now: float, *, bad_probe: bool) -> None:
        if self.state == "half-open":
            if bad_probe:
                self.open(now)
                return
            self.good_probes += 1
            if self.good_probes >= self.rules["success_threshold"]:
                self.close(now, self.rules["ramp"])
        elif self.override != "forced closed" and self.should_open(now):
            self.open(now)

    def should_open(self, now: float) -> bool:
        rules = self.rules
        if rules["fail_max"] is not None and self.failures_in_a_row >= rules["fail_max"]:
            return True
        calls, failures, slow = self.window(now)
        if calls < rules["min_calls"]:
            return False
        return bool(
            (rules["failure_ratio"] is not None and failures >= rules["failure_ratio"] * calls)
            or (rules["slow_after"] is not None and slow >= rules["slow_ratio"] * calls)
        )

    def window(self, now: float) -> tuple[int, int, int]:
        if self.rules["failure_ratio"] is None and self.rules["slow_after"] is None:
            return 0, 0, 0
        window = self.rules["window"]
        if isinstance(window, Calls):
            held = self.record[-window.count :]
        else:
            held = [one for one in self.record if now - one[0] <= WINDOW - 1]
        return len(held), sum(failed for _, failed, _ in held), sum(slow for _, _, slow in held)

    # Changes of state.

    def enter(self, state: str, now: float) -> None:
        self.state, self.since = state, now
        self.era += 1
        self.probes, self.good_probes, self.ramp, self.credit = [], 0, 0.0, 1.0

    def open(self, now: float, seconds: float | None = None) -> None:
        self.counts["times_opened"] += 1
        self.openings_in_a_row += 1
        timeout = self.rules["reset_timeout"]
        if seconds is None:
            seconds = timeout(self.openings_in_a_row) if callable(timeout) else timeout
        self.enter("open", now)
        self.open_for = seconds

    def close(self, now: float, ramp: float = 0.0) -> None:
        self.openings_in_a_row = self.failures_in_a_row = 0
        self.record.clear()
        self.enter("closed", now)
        self.ramp = ramp

    # By hand.

    def notice_expiry(self, now: float) -> None:
        if now >= self.override_until:
            self.resume(now)

    def resume(self, now: float) -> None:
        mode = self.override
        self.release()
        if mode == "forced open":
            self.enter("half-open", now)

    def release(self) -> None:
        self.override, self.override_until = None, math.inf

    def set_by_hand(self, mode: str, seconds: float | None, now: float) -> None:
        before, self.override = self.override, mode
        self.override_until = math.inf if seconds is None else now + seconds
        if mode == "forced open":
            self.enter("open", now)
        elif mode == "forced closed":
            self.ramp = 0.0
            if self.state != "closed":
                self.close(now)
        elif before == "forced open":
            self.enter("half-open", now)

    def stats(self, now: float) -> dict[str, Any]:
        calls, failures, slow = self.window(now)
        return {
            **{name: self.counts[name] for name in COUNTS},
            "state": self.state,
            "override": None if now >= self.override_until else self.override,
            "window_calls": calls,
            "failure_ratio": failures / calls if calls else 0.0,
            "slow_ratio": slow / calls if calls else 0.0,
            "consecutive_failures": self.failures_in_a_row,
            "opened_for": now - self.since if self.state == "open" else 0.0,
            "last_failure": self.last_failure,
        }


OUTCOMES = st.one_of(
    st.just("good"),
    st.just("good"),
    st.sampled_from(["bad", "cancel"]),
    st.builds(DependencyError, st.sampled_from(["down", "still down"])),
    st.builds(BusinessError, st.just("no such order")),
    st.builds(GoAwayError, st.integers(1, 8).map(float)),
)
TTLS = st.none() | st.integers(1, 12).map(float)


@st.composite
def settings(draw: Callable[..., Any]) -> dict[str, Any]:
    """Draw the arguments of a breaker that can open."""
    window = draw(st.just(float(WINDOW)) | st.integers(4, 6).map(Calls))
    rules = {
        "failure_ratio": draw(st.sampled_from([None, 0.25, 0.5, 1.0])),
        "min_calls": draw(st.integers(1, 4)),
        "window": window,
        "fail_max": draw(st.sampled_from([None, None, 1, 3])),
        "slow_after": draw(st.sampled_from([None, 2.0])),
        "slow_ratio": draw(st.sampled_from([0.5, 1.0])),
        "reset_timeout": draw(st.sampled_from([0.0, 3.0, 3.0, 20.0, longer_each_time])),
        "probes": draw(st.integers(1, 2)),
        "success_threshold": draw(st.integers(1, 3)),
        "probe_timeout": draw(st.sampled_from([None, 4.0])),
        "ramp": draw(st.sampled_from([0.0, 8.0])),
        "on_result": draw(st.sampled_from([None, None, is_bad])),
    }
    if rules["failure_ratio"] is rules["fail_max"] is rules["slow_after"] is None:
        rules["failure_ratio"] = 0.5
    return rules


class BreakerMachine(RuleBasedStateMachine):
    """Do the same to a breaker and to the model, and compare."""

    breaker: CircuitBreaker
    naive: Naive

    @initialize(rules=settings())
    def make(self, rules: dict[str, Any]) -> None:
        self.clock = FakeClock()
        self.breaker = CircuitBreaker(
            "b",
            **rules,
            on=judge,
            exclude=BusinessError,
            clock=self.clock,
        )
        self.naive = Naive(rules)
        self.under_way: list[tuple[RealCall, NaiveCall]] = []

    @rule()
    def begin(self) -> None:
        """Begin a call that ends later, or is refused."""
        expected = self.naive.begin(self.clock())
        got: RealCall | tuple[object, ...]
        try:
            got = RealCall(self.breaker)
        except CircuitOpenError as refusal:
            got = ("refused", refusal.retry_after)
        if isinstance(got, RealCall) and isinstance(expected, NaiveCall):
            self.under_way.append((got, expected))
        else:
            assert got == expected

    @rule(failures=st.integers(0, 4), successes=st.integers(1, 12))
    def fail_and_recover(self, failures: int, successes: int) -> None:
        """Make some calls that fail, and then some that do not: the share falls, and calls grow in number."""
        self.call_on_and_on([DependencyError("flaky")] * failures + ["good"] * successes)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 99), outcome=OUTCOMES)
    def end(self, which: int, outcome: object) -> None:
        """End any of the calls under way."""
        real, naive = self.under_way.pop(which % len(self.under_way))
        real.end(outcome)
        self.naive.end(naive, outcome, self.clock())

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=6))
    def call_on_and_on(self, outcomes: list[object]) -> None:
        """Make calls one after another that take no time."""
        for outcome in outcomes:
            before = len(self.under_way)
            self.begin()
            if len(self.under_way) > before:
                self.end(-1, outcome)

    @rule(seconds=st.integers(1, 12))
    def pass_time(self, seconds: int) -> None:
        """Move on by some seconds."""
        self.clock.advance(seconds)

    @rule(seconds=st.integers(0, 9))
    def recover(self, seconds: int) -> None:
        """Wait until it is half-open and bring good probes, then go on: into the ramp, if there is one."""
        self.clock.advance(20)
        self.call_on_and_on(["good"] * 3)
        self.clock.advance(seconds)
        self.begin()

    @rule(hours=st.integers(1, 48))
    def pass_hours(self, hours: int) -> None:
        """Wake up much later."""
        self.clock.advance(hours * 3600)

    @rule(seconds=TTLS)
    def force_open(self, seconds: float | None) -> None:
        self.breaker.force_open(seconds, "maintenance")
        self.naive.set_by_hand("forced open", seconds, self.clock())

    @rule(seconds=TTLS)
    def force_closed(self, seconds: float | None) -> None:
        self.breaker.force_closed(seconds)
        self.naive.set_by_hand("forced closed", seconds, self.clock())

    @rule(seconds=TTLS)
    def observe_only(self, seconds: float | None) -> None:
        self.breaker.observe_only(seconds)
        self.naive.set_by_hand("observe only", seconds, self.clock())

    @rule()
    def resume(self) -> None:
        self.breaker.resume()
        self.naive.resume(self.clock())

    @rule(change=st.sampled_from(["open", "half_open", "close"]))
    def change_by_hand(self, change: str) -> None:
        """Use pybreaker's words, which end an override too."""
        getattr(self.breaker, change)()
        self.naive.release()
        now = self.clock()
        {
            "open": self.naive.open,
            "half_open": lambda now: self.naive.enter("half-open", now),
            "close": self.naive.close,
        }[change](now)

    @rule()
    def look(self) -> None:
        """Compare all that can be seen."""
        stats = self.breaker.stats()
        expected = self.naive.stats(self.clock())
        assert {name: getattr(stats, name) for name in expected} == expected

    @invariant()
    def stands_where_the_model_does(self) -> None:
        """Compare what can be seen without moving the window on."""
        assert self.breaker.current_state == self.naive.state
        assert self.breaker.fail_counter == self.naive.failures_in_a_row
        assert self.breaker.success_counter == self.naive.good_probes

    def teardown(self) -> None:
        """End what is under way, so that no coroutine is left."""
        if hasattr(self, "breaker"):
            self.look()
            while self.under_way:
                self.end(0, "good")
            self.look()


TestBreaker = BreakerMachine.TestCase
# An example is a few milliseconds, and the rules have many corners.
TestBreaker.settings = hypothesis_settings(max_examples=max(500, hypothesis_settings.default.max_examples))
