"""Rolling windows against a list of everything that ever happened."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from resilient import Calls
from resilient.engine.window import BUCKETS, CallWindow, NoWindow, Tally, TimeWindow, Window
from resilient.testing import FakeClock

# RESILIENT_HYPOTHESIS=deep takes minutes.
pytestmark = pytest.mark.timeout(1_800)

# Sums of floats: an event may fall on either side of the edge of a bucket.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Ended:
    """A call that ended, as the naive models keep it."""

    at: float
    failed: bool
    slow: bool


def count(events: list[Ended]) -> tuple[int, int, int]:
    """Count calls, failures and slow calls one by one."""
    return len(events), sum(event.failed for event in events), sum(event.slow for event in events)


class WindowMachine(RuleBasedStateMachine):
    """Feed a window as the breaker does, good calls past the lock where it may, and keep a plain list."""

    clock: FakeClock
    tally: Tally
    window: Window

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Ended] = []

    def begin(self, window: Window) -> None:
        self.window = window

    @rule(slow=st.booleans())
    def succeed(self, slow: bool) -> None:
        """End a call well, with the window moved on first."""
        self.window.roll(self.clock())
        self.window.succeeded()
        self._end(failed=False, slow=slow)

    @rule(times=st.integers(1, 5))
    def succeed_in_passing(self, times: int) -> None:
        """End calls the fast way: one increment each, as long as the window says that this will do."""
        if self.clock() < self.window.edge:
            for _ in range(times):
                next(self.tally.ticker)
                self.events.append(Ended(self.clock(), failed=False, slow=False))

    @rule(slow=st.booleans())
    def fail(self, slow: bool) -> None:
        """End a call badly."""
        self.window.roll(self.clock())
        self.window.failed()
        self._end(failed=True, slow=slow)

    @rule()
    def read(self) -> None:
        """Look without a call: reading moves nothing but time."""
        self.window.roll(self.clock())

    @rule()
    def restart(self) -> None:
        """Forget everything."""
        self.window.restart(self.clock())
        self.events.clear()

    def _end(self, *, failed: bool, slow: bool) -> None:
        if slow:
            self.window.was_slow()
        self.events.append(Ended(self.clock(), failed, slow))


class TimeWindowMachine(WindowMachine):
    """A time window holds a latest part of all events: none that is too old, each that is young enough."""

    @initialize(
        length=st.sampled_from([0.01, 1.0, 30.0, 86_400.0]),
        start=st.sampled_from([0.0, 12_345.678, 3e6]),
    )
    def make(self, length: float, start: float) -> None:
        self.length = length
        self.clock = FakeClock(start)
        self.tally = Tally()
        self.begin(TimeWindow(length, self.tally, start))

    @rule(parts=st.floats(0.0, 3.0))
    def pass_a_little(self, parts: float) -> None:
        """Move on by a part of the window or a few."""
        self.clock.advance(parts * self.length / BUCKETS)

    @rule(parts=st.integers(1, BUCKETS + 2))
    def pass_whole_parts(self, parts: int) -> None:
        """Move on to where parts end, if the clock started there."""
        self.clock.advance(parts * self.length / BUCKETS)

    @rule(hours=st.floats(0.1, 100.0))
    def sleep_for_hours(self, hours: float) -> None:
        """Wake up much later, as a laptop does."""
        self.clock.advance(hours * 3600.0)

    @invariant()
    def holds_the_latest_events(self) -> None:
        """Equal the count of all events since some moment between 0.9 and 1 lengths ago."""
        now = self.clock()
        self.window.roll(now)
        counts = self.window.counts()
        assert counts in self._acceptable(now)
        assert 0 <= self.window.edge - now + self._slack <= self.length / BUCKETS + 2 * self._slack

    @property
    def _slack(self) -> float:
        return self.length * ROUNDING + 1e-9

    def _acceptable(self, now: float) -> list[tuple[int, int, int]]:
        slack = self._slack
        oldest = now - self.length - slack
        newest = now - self.length * (1 - 1 / BUCKETS) + slack
        cuts = [oldest, *(event.at + slack for event in self.events if oldest <= event.at <= newest), newest]
        return [
            count([event for event in self.events if event.at > cut]) for cut in cuts if cut <= newest + slack
        ]


class CallWindowMachine(WindowMachine):
    """A call window holds exactly the last calls, whatever the clock does."""

    LENGTHS: ClassVar = [1, 2, 7, 100, 10_000]

    @initialize(length=st.sampled_from(LENGTHS))
    def make(self, length: int) -> None:
        self.length = length
        self.clock = FakeClock()
        self.tally = Tally()
        self.begin(CallWindow(length, self.tally, 0.0))

    @rule(seconds=st.floats(0.0, 1e6))
    def pass_time(self, seconds: float) -> None:
        """Let time pass, which is nothing to this window."""
        self.clock.advance(seconds)

    @invariant()
    def holds_the_last_calls(self) -> None:
        """Equal the count of the last calls, and keep no more than those."""
        assert self.window.counts() == count(self.events[-self.length :])
        assert isinstance(self.window, CallWindow)
        assert len(self.window._failures) <= self.length
        assert len(self.window._slow) <= self.length


TestTimeWindow = TimeWindowMachine.TestCase
TestCallWindow = CallWindowMachine.TestCase


class TallyMachine(RuleBasedStateMachine):
    """A tally counts what was raised, however often it is read."""

    tallies = Bundle("tallies")

    @initialize()
    def make(self) -> None:
        self.tally, self.raised = Tally(), 0

    @rule(times=st.integers(0, 5))
    def raise_it(self, times: int) -> None:
        for _ in range(times):
            next(self.tally.ticker)
        self.raised += times

    @invariant()
    def reads_what_was_raised(self) -> None:
        assert self.tally.read() == self.raised


TestTally = TallyMachine.TestCase


def test_time_window_is_forgotten_in_steps_of_a_tenth():
    """What happened in the first tenth leaves when the window is over, the rest stays."""
    window = TimeWindow(10.0, Tally(), 0.0)
    window.failed()
    window.roll(5.0)
    window.failed()

    window.roll(9.999)
    assert window.counts() == (2, 2, 0)
    window.roll(10.0)
    assert window.counts() == (1, 1, 0)
    window.roll(15.0)
    assert window.counts() == (0, 0, 0)


def test_time_window_stays_as_it_is_while_the_clock_stands_still():
    """No amount of calls at one moment makes it forget."""
    tally = Tally()
    window = TimeWindow(1.0, tally, 7.0)
    for _ in range(1_000):
        window.roll(7.0)
        window.failed()
        window.succeeded()

    assert window.counts() == (2_000, 1_000, 0)


@pytest.mark.parametrize("now", [math.nan, math.inf, 1e300])
def test_time_window_survives_a_broken_clock(now):
    """An absurd reading empties the window instead of looping for ever."""
    window = TimeWindow(1.0, Tally(), 0.0)
    window.failed()

    window.roll(now)

    assert window.counts() == (0, 0, 0)


def test_no_window_counts_successes_and_holds_nothing():
    """A breaker of consecutive failures alone still knows how many calls were good."""
    tally = Tally()
    window = NoWindow(tally)
    window.succeeded()
    window.failed()
    window.was_slow()
    window.roll(math.inf)
    window.restart(0.0)

    assert window.counts() == (0, 0, 0)
    assert tally.read() == 1
    assert window.edge == math.inf


@pytest.mark.parametrize(
    "make", [lambda tally: TimeWindow(3600.0, tally, 0.0), lambda tally: CallWindow(10**6, tally, 0.0)]
)
def test_no_success_is_lost_between_threads(make):
    """Increments without a lock all arrive, while another thread reads and moves the window."""
    tally = Tally()
    window = make(tally)
    done = threading.Event()

    def call() -> None:
        for _ in range(5_000):
            next(tally.ticker)

    def look() -> None:
        now = 0.0
        while not done.is_set():
            now += 1e-6
            window.roll(now)
            window.counts()

    reader = threading.Thread(target=look)
    callers = [threading.Thread(target=call) for _ in range(8)]
    for thread in (reader, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    reader.join()

    assert window.counts() == (40_000, 0, 0)
    assert tally.read() == 40_000


def test_calls_shows_and_checks_its_count():
    """`Calls(n)` says what it is and takes whole numbers from 1."""
    assert repr(Calls(5)) == "Calls(5)"
    assert Calls(5).count == 5
    with pytest.raises(ValueError, match=r"^count must be at least 1, got 0"):
        Calls(0)
    for bad in (1.5, True, "5", None):
        with pytest.raises(TypeError, match=r"^count must be a whole number, got "):
            Calls(bad)
