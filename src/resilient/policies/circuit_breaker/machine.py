"""The breaker's state: what it is made of, how it changes, and by whose hand.

No I/O, no waiting, no user code under the lock. A *period* is one stay in a state; it is what a ticket
refers to, so a result that belongs to an earlier period is recognised by identity and moves nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from functools import partial
from typing import TYPE_CHECKING

from ...engine.finding import Fact, Finding, Status
from ...engine.fork import renew_after_fork
from ...engine.latency import Stopwatch
from ...engine.window import Calls, CallWindow, NoWindow, Tally, TimeWindow, Window
from ...events import (
    Announcer,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitOverridden,
    CircuitResumed,
    log_fault,
)
from .states import DEFAULT_RESET_TIMEOUT, BreakerStats, CallHooks, Mode, Override, Period, Rules, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...typing import Clock

__all__ = ["BreakerMachine"]

_log = logging.getLogger("resilient")


class BreakerMachine:
    """Where a breaker stands, and how it gets from one state to another.

    Concurrency: safe from any thread, task and loop, under a short lock. It is re-entrant, so that a signal
    handler may use the breaker too.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        clock: Clock,
        *,
        judges_results: bool,
        announcer: Announcer | None = None,
    ) -> None:
        self.name = name
        self.rules = rules
        self.announcer = announcer or Announcer()
        self.hooks: CallHooks | None = None
        self.on_count: Callable[[], None] | None = None
        self._judges_results = judges_results
        self._clock = clock
        self._lock = threading.RLock()
        self._successes = Tally()
        self._ok = self._successes.ticker
        self.stopwatch = Stopwatch(clock)
        now = clock()
        self._window = self._new_window(now)
        self._override: Override | None = None
        self.failures = self.slow = self.rejected = self.abandoned = self.ignored = self.stale = 0
        self.unenforced = self.times_opened = self.times_half_opened = self.times_closed = 0
        self.consecutive = 0
        self.in_a_row = 0
        self.last_failure: str | None = None
        # What the fast path reads. `_pass` is the ticket of a calm breaker, `_timed` the same while each call
        # is to know when it began; `_edge` is until when a success need not look at anything.
        self._pass: Period | None = None
        self._timed: Period | None = None
        self._edge = -math.inf
        self._period = self._first_period = Period(State.CLOSED, now)
        self._refresh(now)
        renew_after_fork(self)

    # By hand.

    def open_now(self, reason: str) -> None:
        """Open now, for one reset timeout."""
        with self._lock:
            self._clear_override()
            self._trip(self._clock(), reason)
        self._follow_up()

    def half_open(self) -> None:
        """Go to half-open now."""
        with self._lock:
            self._clear_override()
            self._half_open(self._clock())
        self.announcer.deliver()

    def close(self) -> None:
        """Close now, with an empty window and no ramp."""
        with self._lock:
            self._clear_override()
            self._close(self._clock(), ramp=0.0)
        self.announcer.deliver()

    def override(self, mode: Mode, seconds: float | None, reason: str | None) -> None:
        """Set *mode* by hand until `resume`, or for *seconds*."""
        with self._lock:
            now = self._clock()
            before = self._override
            self._override = Override(mode, math.inf if seconds is None else now + seconds, reason)
            if mode is Mode.FORCED_OPEN:
                self._enter(Period(State.OPEN, now), now)
            elif mode is Mode.FORCED_CLOSED and self._period.state is not State.CLOSED:
                self._close(now, ramp=0.0)
            elif mode is Mode.FORCED_CLOSED:
                self._period.ramp_until = -math.inf
            elif before is not None and before.mode is Mode.FORCED_OPEN:
                self._half_open(now)
            self._refresh(now)
            self.announcer.post(CircuitOverridden(self.name, mode, seconds, reason))
        self.announcer.deliver()

    def resume(self) -> None:
        """End an override; what was forced open goes on half-open, so that a probe decides."""
        with self._lock:
            self._end_override(self._clock())
        self.announcer.deliver()

    def adopt(self, state: State, elapsed: float | None = None) -> bool:
        """Begin in *state*, entered *elapsed* seconds ago elsewhere; refuse if something has happened here.

        An open state of unknown age ends with the first call, as pybreaker has it.
        """
        with self._lock:
            if self._period is not self._first_period or self._override is not None or self.failures:
                return False
            now = self._clock()
            if state is State.OPEN:
                left = 0.0 if elapsed is None else max(0.0, self.rules.stay_open - max(0.0, elapsed))
                self._open(now, left, "its state storage said so").since -= elapsed or 0.0
            elif state is State.HALF_OPEN:
                self._half_open(now)
        self.announcer.deliver()
        return True

    # What can be seen.

    def stats(self) -> BreakerStats:
        """Return everything that is counted, as of one moment."""
        with self._lock:
            now = self._clock()
            period, override = self._period, self._override
            self._window.roll(now)
            calls, failures, slow = self._window.counts()
            return BreakerStats(
                state=period.state.value,
                override=override.mode.value if override is not None and now < override.until else None,
                calls=self._successes.read() + self.failures,
                failures=self.failures,
                slow=self.slow,
                rejected=self.rejected,
                abandoned=self.abandoned,
                ignored=self.ignored,
                stale=self.stale,
                unenforced=self.unenforced,
                window_calls=calls,
                failure_ratio=failures / calls if calls else 0.0,
                slow_ratio=slow / calls if calls else 0.0,
                consecutive_failures=self.consecutive,
                opened_for=max(0.0, now - period.since) if period.state is State.OPEN else 0.0,
                times_opened=self.times_opened,
                times_half_opened=self.times_half_opened,
                times_closed=self.times_closed,
                last_failure=self.last_failure,
                latency=self.stopwatch.lately(),
            )

    def finding(self) -> Finding:
        """Tell how what this guards is doing, as far as the calls have shown."""
        with self._lock:
            stats = self.stats()
            status, output = self._standing(self._clock())
            window = self._window
        if status is not Status.PASS and stats.last_failure is not None:
            output += f"; last failure: {stats.last_failure}"
        has_ratio = not isinstance(window, NoWindow)
        facts: dict[str, Fact] = {
            "state": stats.state,
            "consecutive_failures": stats.consecutive_failures,
            "rejected": stats.rejected,
            "times_opened": stats.times_opened,
        }
        if self.rules.slow_after is not None:
            facts["slow_ratio"] = stats.slow_ratio
        return Finding(
            status,
            output,
            value=stats.failure_ratio if has_ratio else None,
            unit="ratio" if has_ratio else None,
            facts=facts,
            calls=stats.calls,
        )

    def _standing(self, now: float) -> tuple[Status, str]:
        override = self._override
        if override is None or now >= override.until:
            return self._standing_by_itself(now)
        left = "" if override.until == math.inf else f", for another {override.until - now:.3g} s"
        by_hand = f"{override}{left}"
        if override.mode is not Mode.OBSERVE_ONLY:
            return (Status.FAIL if override.mode is Mode.FORCED_OPEN else Status.WARN), by_hand
        if self._period.state is State.CLOSED:
            return Status.PASS, by_hand
        return Status.WARN, f"{by_hand}; it would be {self._period.state} by itself"

    def _standing_by_itself(self, now: float) -> tuple[Status, str]:
        period = self._period
        if period.state is State.HALF_OPEN:
            good = f"{period.successes} of {self.rules.success_threshold} probes succeeded"
            return Status.WARN, f"half-open, {good}"
        if period.state is State.CLOSED:
            if now >= period.ramp_until:
                return Status.PASS, ""
            left = f"for another {period.ramp_until - now:.3g} s"
            return Status.WARN, f"closed again, and letting traffic back in bit by bit {left}"
        since = f"open for {max(0.0, now - period.since):.3g} s"
        # One whose time is up refuses nobody. If it said that it fails, and that kept the traffic away, there
        # would never be a probe. The end of what was forced open by hand is no other.
        left_open = 0.0 if self._override is not None else period.until - now
        if left_open <= 0.0:
            return Status.WARN, f"{since}, lets the next call in as a probe"
        return Status.FAIL, f"{since}, lets a probe in after {left_open:.3g} s"

    @property
    def outline(self) -> tuple[Period, int, int]:
        """The period, failures in a row and good probes: what a storage mirrors. Equal: nothing to copy."""
        return self._period, self.consecutive, self._period.successes

    @property
    def state(self) -> State:
        """The state, as the last call left it."""
        return self._period.state

    @property
    def probe_successes(self) -> int:
        """Successes in the present half-open period."""
        return self._period.successes

    def watch(self, hooks: CallHooks | None) -> None:
        """Report every single call to *hooks*; costs the fast path."""
        with self._lock:
            self.hooks = hooks
            self._refresh(self._clock())

    def apply(self, rules: Rules) -> None:
        """Go by other *rules* from now on; state, window and tickets stay as they are."""
        with self._lock:
            self.rules = rules
            self._refresh(self._clock())

    # Transitions. All require the lock.

    def _evaluate(self, now: float) -> Period | None:
        """Open if the rules say so; else tell the fast path until when it need not ask."""
        if self._may_trip() and self._period.state is State.CLOSED:
            reason = self.rules.reason_to_open(self._window.counts(), self.consecutive)
            if reason is not None:
                return self._trip(now, reason)
        self._refresh(now)
        return None

    def _may_trip(self) -> bool:
        return self._override is None or self._override.mode is not Mode.FORCED_CLOSED

    def _observes(self) -> bool:
        return self._override is not None and self._override.mode is Mode.OBSERVE_ONLY

    def _trip(self, now: float, reason: str) -> Period:
        timeout = self.rules.reset_timeout
        if not callable(timeout):
            return self._open(now, timeout, reason)
        # The user's function is not called under the lock; the default holds until it has answered.
        period = self._open(now, DEFAULT_RESET_TIMEOUT, reason, announced=False)
        period.ask = partial(timeout, self.in_a_row)
        return period

    def _open(self, now: float, seconds: float, reason: str, *, announced: bool = True) -> Period:
        self.times_opened += 1
        self.in_a_row += 1
        period = Period(State.OPEN, now, now + seconds)
        period.reason = reason
        self._enter(period, now)
        if announced:
            self.announcer.post(CircuitOpened(self.name, reason, seconds, self.in_a_row))
        return period

    def _settle_reset_timeout(self) -> None:
        """Ask the user's function, once, how long to stay open: without the lock, as it is not ours.

        If the breaker has moved on before it answers, the answer is dropped.
        """
        if self._period.ask is None:
            return
        with self._lock:
            period = self._period
            ask, period.ask = period.ask, None
        if ask is None:  # another thread has it
            return
        seconds = DEFAULT_RESET_TIMEOUT
        try:
            seconds = _answer(ask)
        finally:  # also if an interrupt came instead of an answer
            with self._lock:
                if period is self._period:
                    period.until = period.since + seconds
                    self.announcer.post(CircuitOpened(self.name, period.reason, seconds, *ask.args))

    def _half_open(self, now: float) -> Period:
        self.times_half_opened += 1
        period = self._enter(Period(State.HALF_OPEN, now), now)
        self.announcer.post(CircuitHalfOpened(self.name))
        return period

    def _close(self, now: float, ramp: float) -> Period:
        self.times_closed += 1
        self.in_a_row = 0
        self.consecutive = 0
        self._window.restart(now)
        period = self._enter(Period(State.CLOSED, now, ramp_until=now + ramp if ramp else -math.inf), now)
        self.announcer.post(CircuitClosed(self.name))
        return period

    def _enter(self, period: Period, now: float) -> Period:
        # First, so that an interrupt half-way leaves the path that looks at everything: with the pass of a
        # period that is over, all calls would go through and none of their results would count, for ever.
        self._pass = self._timed = None
        self._period = period
        self._refresh(now)
        return period

    def _refresh(self, now: float) -> None:
        """Set what the fast path reads, from everything it must not have to look at."""
        period, rules = self._period, self.rules
        calm = period.state is State.CLOSED and now >= period.ramp_until and self.hooks is None
        resting = now < self.stopwatch.resumes
        timed = not resting or rules.slow_after is not None
        self._pass = period if calm and not timed else None
        self._timed = period if calm and timed else None
        self._edge = -math.inf
        if calm and not self._judges_results and self._settled():
            self._edge = self._window.edge
            if resting:
                self._edge = min(self._edge, self.stopwatch.resumes)
            if self._override is not None:
                self._edge = min(self._edge, self._override.until)

    def _settled(self) -> bool:
        """Whether another success could change nothing before the window moves on."""
        if self.consecutive:
            return False
        calls, failures, slow = window = self._window.counts()
        if not (failures or slow):
            return True
        # Enough calls and still no reason to open: more successes make one less likely. There may be one,
        # and the breaker closed, where somebody kept it closed by hand or changed the rules.
        return calls >= self.rules.min_calls and self.rules.reason_to_open(window, 0) is None

    def _follow_up(self) -> None:
        """Do what has to be done after a result without the lock: it may call user code."""
        self._settle_reset_timeout()
        self.announcer.deliver()
        if self.on_count is not None:
            self.on_count()

    def _expire_override(self, now: float) -> None:
        if self._override is not None and now >= self._override.until:
            self._end_override(now)

    def _end_override(self, now: float) -> None:
        if self._override is None:
            return
        mode = self._clear_override()
        if mode is Mode.FORCED_OPEN:
            self._half_open(now)
        self._refresh(now)

    def _clear_override(self) -> Mode | None:
        if self._override is None:
            return None
        mode, self._override = self._override.mode, None
        self.announcer.post(CircuitResumed(self.name, mode))
        return mode

    def _new_window(self, now: float) -> Window:
        rules = self.rules
        if rules.failure_ratio is None and rules.slow_after is None:
            return NoWindow(self._successes)
        if isinstance(rules.window, Calls):
            return CallWindow(rules.window.count, self._successes, now)
        return TimeWindow(rules.window, self._successes, now)

    def after_fork(self) -> None:
        """Begin afresh in a forked child."""
        self._lock = threading.RLock()
        self.announcer.after_fork()
        self._period.probes.clear()  # their calls belong to threads of the parent


def _answer(ask: Callable[[], float]) -> float:
    """Return what a user's `reset_timeout` says; the default if it raises or says nonsense."""
    try:
        seconds = float(ask())
    except Exception:  # noqa: BLE001 - the user's code, in the middle of a failing call
        log_fault("reset_timeout failed: %r; %g s taken", ask, DEFAULT_RESET_TIMEOUT)
        return DEFAULT_RESET_TIMEOUT
    if 0.0 <= seconds < math.inf:
        return seconds
    _log.error("reset_timeout returned %r: %r; %g s taken", seconds, ask, DEFAULT_RESET_TIMEOUT)
    return DEFAULT_RESET_TIMEOUT
