"""The breaker's state machine: decides, and does nothing else.

No I/O, no waiting, no user code under the lock. A *period* is one stay in a state; it is what a ticket
refers to, so a result that belongs to an earlier period is recognised by identity and moves nothing.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import weakref
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.fork import renew_after_fork
from ...engine.window import Calls, CallWindow, Counts, NoWindow, Tally, TimeWindow, Window
from ...errors import CircuitOpenError
from ...events import (
    Announcer,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitOverridden,
    CircuitResumed,
    error_text,
)
from .states import (
    DEFAULT_RESET_TIMEOUT,
    LOST,
    UNENFORCED,
    CallHooks,
    Mode,
    Override,
    Period,
    Probe,
    Refused,
    Rules,
    State,
    Ticket,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...typing import Clock

__all__ = ["BreakerCore"]

_log = logging.getLogger("resilient")


# The probe this context runs inside, so that a guarded call made from within a probe rides along instead of
# being refused by the probe that waits for it. Weak: the variable must not keep a lost probe's place.
_riding: ContextVar[weakref.ref[Probe] | None] = ContextVar("resilient_probe", default=None)


class BreakerCore:
    """Admits calls and learns from their results.

    Concurrency: safe from any thread, task and loop. While calm (closed, nothing by hand, the last call
    good) a call costs one increment and takes no lock; everything else happens under a short re-entrant
    lock, so that a signal handler may use the breaker too.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        clock: Clock,
        judge: Callable[[Exception], bool | float],
        judge_result: Callable[[Any], bool | float] | None = None,
        *,
        throw_new_error_on_trip: bool = False,
    ) -> None:
        self.name = name
        self.rules = rules
        self.announcer = Announcer()
        self.hooks: CallHooks | None = None
        self.on_count: Callable[[], None] | None = None
        self._judge = judge
        self._judge_result = judge_result
        self._throw_new_error_on_trip = throw_new_error_on_trip
        self._clock = clock
        self._lock = threading.RLock()
        self._successes = Tally()
        self._ok = self._successes.ticker
        now = clock()
        self._window = self._new_window(now)
        self._serial = itertools.count()
        self._override: Override | None = None
        self.failures = self.slow = self.rejected = self.abandoned = self.abandoned_slow = 0
        self.ignored = self.stale = self.unenforced = self.times_opened = 0
        self.consecutive = 0
        self.in_a_row = 0
        self.last_failure: str | None = None
        # What the fast path reads. `_pass` is the ticket of a calm breaker, `_timed` the same for one that
        # has to know when each call began; `_edge` is until when a success need not look at anything.
        self._pass: Period | None = None
        self._timed: Period | None = None
        self._edge = -math.inf
        self._period = Period(State.CLOSED, now)
        self._refresh(now)
        renew_after_fork(self)

    # The gate: what the wrappers call.

    def admit(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Ticket:
        """Return a ticket for a call, or raise `CircuitOpenError`."""
        ticket = self._pass
        if ticket is not None:
            return ticket
        if (timed := self._timed) is not None:
            return (timed, self._clock())
        return self._admit_carefully(fn, args, kwargs)

    def admit_stream(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Ticket:
        """Admit a generator. How long it lives is up to its consumer, so it is never slow."""
        ticket = self.admit(fn, args, kwargs)
        return ticket[0] if isinstance(ticket, tuple) else ticket

    def success(self, ticket: Ticket, result: object) -> None:
        """Learn that the call with *ticket* returned *result*."""
        if ticket is self._pass and self._clock() < self._edge:
            next(self._ok)
            return
        if type(ticket) is tuple and ticket[0] is self._timed:
            now = self._clock()
            slow_after = self.rules.slow_after  # `_is_slow` in line: it would cost each timed call a frame
            if now < self._edge and (slow_after is None or now - ticket[1] <= slow_after):
                next(self._ok)
                return
        self._succeed_carefully(ticket, result)

    def failure(self, ticket: Ticket, exc: Exception) -> None:
        """Learn that the call with *ticket* raised *exc*; may raise `CircuitOpenError` in its place."""
        verdict = self._judge(exc)
        if not verdict:
            self._release(ticket, "ignored")
            return
        self._fail(ticket, exc, verdict)

    def abandon(self, ticket: Ticket, exc: BaseException) -> None:  # noqa: ARG002 - any exception will do
        """Learn that nobody waits for the result of the call with *ticket* any more."""
        self._release(ticket, "abandoned")

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
            elif mode is Mode.OBSERVE_ONLY and before is not None and before.mode is Mode.FORCED_OPEN:
                self._half_open(now)
            self._refresh(now)
            self.announcer.post(CircuitOverridden(self.name, mode, seconds, reason))
        self.announcer.deliver()

    def resume(self) -> None:
        """End an override; what was forced open goes on half-open, so that a probe decides."""
        with self._lock:
            self._end_override(self._clock())
        self.announcer.deliver()

    def adopt_open(self, elapsed: float) -> None:
        """Open for the rest of a stay that began *elapsed* seconds ago, unless calls have failed by now."""
        timeout = self.rules.reset_timeout
        left = (DEFAULT_RESET_TIMEOUT if callable(timeout) else timeout) - max(0.0, elapsed)
        with self._lock:
            if left > 0.0 and self._period.state is State.CLOSED and not self.failures:
                self._open(self._clock(), left, "its state storage said so")
        self.announcer.deliver()

    # What can be seen.

    def look(self) -> tuple[Period, Override | None, Counts, int, float]:
        """Return period, override, window, successes so far, and now, as of one moment."""
        with self._lock:
            now = self._clock()
            self._expire_override(now)
            self._window.roll(now)
            return self._period, self._override, self._window.counts(), self._successes.read(), now

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

    # Admission.

    def _admit_carefully(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Ticket:
        with self._lock:
            now = self._clock()
            admitted = self._decide(now)
        self.announcer.deliver()
        if not isinstance(admitted, Period | tuple | Probe):
            raise self._refusal(admitted.retry_after)
        if isinstance(admitted, Probe):
            admitted.above = _riding.get()
            _riding.set(weakref.ref(admitted))
        if self.hooks is not None:
            self.hooks.before_call(fn, args, kwargs)
        return admitted

    def _decide(self, now: float) -> Ticket | Refused:
        self._expire_override(now)
        admitted = self._decide_by_state(now)
        if isinstance(admitted, Refused):
            if self._override is not None and self._override.mode is Mode.OBSERVE_ONLY:
                self.unenforced += 1
                return (UNENFORCED, now)
            self.rejected += 1
        return admitted

    def _decide_by_state(self, now: float) -> Ticket | Refused:
        period = self._period
        if period.state is State.OPEN:
            forced = self._override is not None and self._override.mode is Mode.FORCED_OPEN
            until = self._override.until if self._override and forced else period.until
            if forced or now < until:
                return Refused(None if until == math.inf else until - now)
            period = self._half_open(now)
        if period.state is State.HALF_OPEN:
            return self._admit_probe(period, now)
        if now < period.ramp_until:
            return self._admit_on_ramp(period, now)
        self._refresh(now)  # the ramp may just have ended
        return (period, now)

    def _admit_probe(self, period: Period, now: float) -> Ticket | Refused:
        if self._inside_probe(period):
            return (UNENFORCED, now)
        oldest = self._expire_probes(period, now)
        if len(period.probes) >= self.rules.probes:
            return Refused(max(0.0, oldest + self._probe_timeout() - now))
        probe = Probe(period, now, next(self._serial))
        # `dict.pop` and `partial` are C: a callback in Python could itself be interrupted and swallowed.
        period.probes[probe.key] = weakref.ref(probe, partial(period.probes.pop, probe.key))
        return probe

    def _inside_probe(self, period: Period) -> bool:
        above = _riding.get()
        while above is not None and (probe := above()) is not None:
            if probe.period is period and probe.key in period.probes:
                return True
            above = probe.above
        return False

    def _expire_probes(self, period: Period, now: float) -> float:
        """Take the place of probes that outlived their time; return when the oldest one left began."""
        oldest = now
        for key, place in list(period.probes.items()):
            probe = place()
            if probe is None or now - probe.started >= self._probe_timeout():
                period.probes.pop(key, None)
            else:
                oldest = min(oldest, probe.started)
        return oldest

    def _probe_timeout(self) -> float:
        rules = self.rules
        if rules.probe_timeout is not None:
            return rules.probe_timeout
        if rules.slow_after is not None:
            return rules.slow_after
        return DEFAULT_RESET_TIMEOUT if callable(rules.reset_timeout) else rules.reset_timeout

    def _admit_on_ramp(self, period: Period, now: float) -> Ticket | Refused:
        # Credit instead of chance: the share is exact, and a test can count on it.
        period.credit += (now - period.since) / (period.ramp_until - period.since)
        if period.credit < 1.0:
            return Refused(period.ramp_until - now)
        period.credit = min(period.credit - 1.0, 1.0)
        return (period, now)

    def _refusal(self, retry_after: float | None) -> CircuitOpenError:
        wait = "" if retry_after is None else f", next try in {retry_after:.3g} s"
        last = "" if self.last_failure is None else f"; last failure: {self.last_failure}"
        how = (
            "open"
            if self._override is None
            else f"{self._override.mode} ({self._override.reason or 'no reason given'})"
        )
        message = f"circuit {self.name!r} is {how}{wait}{last}"
        return CircuitOpenError(
            message, policy=self.name, retry_after=retry_after, last_failure=self.last_failure
        )

    # Results.

    def _succeed_carefully(self, ticket: Ticket, result: object) -> None:
        if self._judge_result is not None and (verdict := self._judge_result(result)):
            self._fail(ticket, None, verdict)
            return
        with self._lock:
            now = self._clock()
            period, started = self._give_back(ticket)
            slow = self._is_slow(started, now)
            if period is not self._period:
                self._drop(period)
            else:
                self._record_success(period, now, slow)
        if self.hooks is not None:
            self.hooks.success()
        self._follow_up()

    def _record_success(self, period: Period, now: float, slow: bool) -> None:
        self._window.roll(now)
        self._window.succeeded()
        self.consecutive = 0
        if slow:
            self._record_slow()
        if period.state is not State.HALF_OPEN:
            self._evaluate(now)
        elif slow:
            self._trip(now, "a probe was slow")
        else:
            period.successes += 1
            if period.successes >= self.rules.success_threshold:
                self._close(now, self.rules.ramp)

    def _fail(self, ticket: Ticket, exc: Exception | None, verdict: bool | float) -> None:
        text = "a result was judged a failure" if exc is None else error_text(exc)
        opened: Period | None = None
        with self._lock:
            now = self._clock()
            self._expire_override(now)
            period, started = self._give_back(ticket)
            if period is not self._period:
                self._drop(period)
            else:
                opened = self._record_failure(period, now, text, verdict, self._is_slow(started, now))
        if self.hooks is not None and exc is not None:
            self.hooks.failure(exc)
        self._follow_up()
        if opened is not None and self._throw_new_error_on_trip:
            raise self._refusal(max(0.0, opened.until - now)) from exc

    def _record_failure(
        self, period: Period, now: float, text: str, verdict: bool | float, slow: bool
    ) -> Period | None:
        self.failures += 1
        self.consecutive += 1
        self.last_failure = text
        self._window.roll(now)
        self._window.failed()
        if slow:
            self._record_slow()
        if verdict is not True and verdict and self._may_trip():
            return self._open(now, float(verdict), f"told to by {text}")
        if period.state is State.HALF_OPEN:
            return self._trip(now, f"a probe failed: {text}")
        return self._evaluate(now)

    def _release(self, ticket: Ticket, outcome: str) -> None:
        """End a call that says nothing, unless it was slow before it was given up."""
        with self._lock:
            now = self._clock()
            period, started = self._give_back(ticket)
            if period is UNENFORCED:
                return
            if outcome == "ignored":
                self.ignored += 1
            else:
                self.abandoned += 1
                if self._is_slow(started, now) and period is self._period:
                    self._record_slow_abandoned(period, now)
        self._follow_up()

    def _follow_up(self) -> None:
        """Do what has to be done after a result without the lock: it may call user code."""
        self._settle_reset_timeout()
        self.announcer.deliver()
        if self.on_count is not None:
            self.on_count()

    def _record_slow_abandoned(self, period: Period, now: float) -> None:
        # Without this, a timeout outside the breaker would hide a hanging dependency from it for ever.
        self._window.roll(now)
        self._window.succeeded()
        self.abandoned_slow += 1
        self._record_slow()
        if period.state is State.HALF_OPEN:
            self._trip(now, "a probe was slow")
        else:
            self._evaluate(now)

    def _record_slow(self) -> None:
        self.slow += 1
        self._window.was_slow()

    def _drop(self, period: Period) -> None:
        if period is not UNENFORCED:
            self.stale += 1

    def _give_back(self, ticket: Ticket) -> tuple[Period, float]:
        """Return the ticket's period and start; a probe gives its place back, and none if it lost it."""
        if isinstance(ticket, Period):
            return ticket, math.inf
        if isinstance(ticket, tuple):
            return ticket
        above = _riding.get()
        if above is not None and above() is ticket:
            _riding.set(ticket.above)
        held = ticket.period.probes.pop(ticket.key, None)
        return (ticket.period if held is not None else LOST), ticket.started

    def _is_slow(self, started: float, now: float) -> bool:
        return self.rules.slow_after is not None and now - started > self.rules.slow_after

    # Transitions. All require the lock.

    def _evaluate(self, now: float) -> Period | None:
        """Open if the rules say so; else tell the fast path until when it need not ask."""
        reason = self._reason_to_open() if self._may_trip() and self._period.state is State.CLOSED else None
        if reason is not None:
            return self._trip(now, reason)
        self._refresh(now)
        return None

    def _may_trip(self) -> bool:
        return self._override is None or self._override.mode is not Mode.FORCED_CLOSED

    def _reason_to_open(self) -> str | None:
        rules = self.rules
        if rules.fail_max is not None and self.consecutive >= rules.fail_max:
            return f"{self.consecutive} failures in a row"
        calls, failures, slow = self._window.counts()
        if not calls or calls < rules.min_calls:
            return None
        if rules.failure_ratio is not None and failures / calls >= rules.failure_ratio:
            return f"{failures} of {calls} calls failed"
        if rules.slow_after is not None and slow / calls >= rules.slow_ratio:
            return f"{slow} of {calls} calls were slow"
        return None

    def _trip(self, now: float, reason: str) -> Period:
        timeout = self.rules.reset_timeout
        return self._open(now, math.inf if callable(timeout) else timeout, reason)

    def _open(self, now: float, seconds: float, reason: str) -> Period:
        self.times_opened += 1
        self.in_a_row += 1
        period = Period(State.OPEN, now, now + seconds)
        period.reason = reason
        self._enter(period, now)
        if seconds != math.inf:
            self.announcer.post(CircuitOpened(self.name, reason, seconds, self.in_a_row))
        return period

    def _settle_reset_timeout(self) -> None:
        """Ask the user's function how long to stay open: outside the lock, as it is not ours.

        Until it has answered, the period is open without an end. If the breaker has moved on by then, the
        answer is dropped.
        """
        period, in_a_row, timeout = self._period, self.in_a_row, self.rules.reset_timeout
        if period.until != math.inf or period.state is not State.OPEN or not callable(timeout):
            return
        seconds = _asked(timeout, in_a_row)
        with self._lock:
            if period is self._period and period.until == math.inf and self._override is None:
                period.until = period.since + seconds
                self.announcer.post(CircuitOpened(self.name, period.reason, seconds, in_a_row))

    def _half_open(self, now: float) -> Period:
        period = self._enter(Period(State.HALF_OPEN, now), now)
        self.announcer.post(CircuitHalfOpened(self.name))
        return period

    def _close(self, now: float, ramp: float) -> Period:
        self.in_a_row = 0
        self.consecutive = 0
        self._window.restart(now)
        period = self._enter(Period(State.CLOSED, now, ramp_until=now + ramp if ramp else -math.inf), now)
        self.announcer.post(CircuitClosed(self.name))
        return period

    def _enter(self, period: Period, now: float) -> Period:
        self._period = period
        self._refresh(now)
        return period

    def _refresh(self, now: float) -> None:
        """Set what the fast path reads, from everything it must not have to look at."""
        period, rules = self._period, self.rules
        calm = period.state is State.CLOSED and now >= period.ramp_until and self.hooks is None
        self._pass = period if calm and rules.slow_after is None else None
        self._timed = period if calm and rules.slow_after is not None else None
        self._edge = (
            self._window.edge if calm and self._judge_result is None and self._settled() else -math.inf
        )

    def _settled(self) -> bool:
        """Whether another success could change nothing before the window moves on."""
        if self.consecutive:
            return False
        calls, failures, slow = self._window.counts()
        return calls >= self.rules.min_calls or not (failures or slow)

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


def _asked(timeout: Callable[[int], float], times_opened: int) -> float:
    """Return what a user's `reset_timeout` says; the default if it raises or says nonsense."""
    try:
        seconds = float(timeout(times_opened))
    except Exception:  # noqa: BLE001 - the user's code, in the middle of a failing call
        _log.exception("reset_timeout %r failed; %g s taken", timeout, DEFAULT_RESET_TIMEOUT)
        return DEFAULT_RESET_TIMEOUT
    if 0.0 <= seconds < math.inf:
        return seconds
    _log.error("reset_timeout %r returned %r; %g s taken", timeout, seconds, DEFAULT_RESET_TIMEOUT)
    return DEFAULT_RESET_TIMEOUT
