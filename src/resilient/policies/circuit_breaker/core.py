"""How the breaker treats calls: whom it lets in, and what it learns from how they end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...engine.drive.gates import NO_RESULT
from ...engine.latency import BATCH
from ...errors import CircuitOpenError
from ...events import error_text
from .machine import BreakerMachine
from .probes import count_slow, get_off, leave, ride, rides_along, take_place
from .states import LOST, UNENFORCED, Mode, Period, Probe, Refused, Rules, State, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...events import Announcer
    from ...typing import Clock

__all__ = ["BreakerCore"]


class BreakerCore(BreakerMachine):
    """Admits calls and learns from their results.

    Concurrency: as for its base. While calm (closed, nothing by hand, the last call good) a call costs one
    increment and takes no lock.
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
        announcer: Announcer | None = None,
    ) -> None:
        super().__init__(name, rules, clock, judges_results=judge_result is not None, announcer=announcer)
        self._judge = judge
        self._judge_result = judge_result
        self._throw_new_error_on_trip = throw_new_error_on_trip
        self._durations = self.stopwatch.good.pending
        self._took = self.stopwatch.good.add

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
        if isinstance(ticket, Probe):
            ticket.timed_from = math.inf
            get_off(ticket)  # what its consumer calls between two items is no part of the probe
        return ticket[0] if isinstance(ticket, tuple) else ticket

    def success(self, ticket: Ticket, result: object) -> None:
        """Learn that the call with *ticket* returned *result*."""
        if ticket is self._pass and self._clock() < self._edge:
            next(self._ok)
            return
        if type(ticket) is tuple and ticket[0] is self._timed:
            now = self._clock()
            slow_after = self.rules.slow_after  # `_is_slow` in line: it would cost each timed call a frame
            took = now - ticket[1]
            if now < self._edge and (slow_after is None or took <= slow_after):
                next(self._ok)
                self._took(took)
                if len(self._durations) >= BATCH:
                    self._rest(now)
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

    # Admission.

    def _admit_carefully(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Ticket:
        slow_after = self.rules.slow_after
        if slow_after is not None and self._period.state is State.HALF_OPEN:
            self._give_up_on_slow_probes(slow_after)
        with self._lock:
            now = self._clock()
            admitted = self._decide(now)
        self.announcer.deliver()
        if isinstance(admitted, Refused):
            raise self._refusal(admitted)
        if isinstance(admitted, Probe):
            ride(admitted)
        if self.hooks is not None:
            self.hooks.before_call(fn, args, kwargs)
        return admitted

    def _give_up_on_slow_probes(self, slow_after: float) -> None:
        """Open again if a probe under way is slow already.

        Its result can only be bad. Until it came, one call after another would take the place that each slow
        probe loses, and a dependency that hangs would never be left in peace.
        """
        with self._lock:
            now, period = self._clock(), self._period
            slow = 0 if rides_along(period) else count_slow(period, now, slow_after)
            if slow:
                self.slow += slow
                self._trip(now, "a probe was slow")
        if slow:
            self._follow_up()

    def _decide(self, now: float) -> Ticket | Refused:
        self._expire_override(now)
        admitted = self._decide_by_state(now)
        if isinstance(admitted, Refused):
            if self._observes():
                self.unenforced += 1
                return (UNENFORCED, now)
            self.rejected += 1
        return admitted

    def _decide_by_state(self, now: float) -> Ticket | Refused:
        period = self._period
        if period.state is State.OPEN:
            if (refused := self._stay_open(period, now)) is not None:
                return refused
            period = self._half_open(now)
        if period.state is State.HALF_OPEN:
            if rides_along(period):
                return (UNENFORCED, now)
            return take_place(period, now, self.rules.probes, self.rules.probe_lifetime)
        if now < period.ramp_until:
            return self._admit_on_ramp(period, now)
        self._refresh(now)  # the ramp may just have ended
        return (period, now)

    def _stay_open(self, period: Period, now: float) -> Refused | None:
        override = self._override
        if override is not None and override.mode is Mode.FORCED_OPEN:
            return Refused(None if override.until == math.inf else override.until - now, str(override))
        return Refused(period.until - now) if now < period.until else None

    def _admit_on_ramp(self, period: Period, now: float) -> Ticket | Refused:
        # Credit instead of chance: the share is exact, and a test can count on it.
        period.credit += (now - period.since) / (period.ramp_until - period.since)
        if period.credit < 1.0:
            return Refused(period.ramp_until - now, "closed again and letting traffic back in bit by bit")
        period.credit -= 1.0
        return (period, now)

    def _refusal(self, refused: Refused) -> CircuitOpenError:
        retry_after, last_failure = refused.retry_after, self.last_failure
        wait = "" if retry_after is None else f", next try in {retry_after:.3g} s"
        last = "" if last_failure is None else f"; last failure: {last_failure}"
        message = f"circuit {self.name!r} is {refused.how}{wait}{last}"
        return CircuitOpenError(message, policy=self.name, retry_after=retry_after, last_failure=last_failure)

    # Results.

    def _succeed_carefully(self, ticket: Ticket, result: object) -> None:
        judge = self._judge_result
        if judge is not None and result is not NO_RESULT and (verdict := judge(result)):
            self._fail(ticket, None, verdict)
            return
        with self._lock:
            now = self._clock()
            self._expire_override(now)
            period, started = self._give_back(ticket)
            if started < math.inf:
                self.stopwatch.good.record(now - started)
            if period is not self._period:
                self._drop(period)
            else:
                self._record_success(period, now, self._is_slow(started, now))
        self._follow_up()
        if self.hooks is not None:
            self.hooks.success()  # after the change of state that it may have brought, as in pybreaker

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
            if started < math.inf:
                self.stopwatch.bad.record(now - started)
            if period is not self._period:
                self._drop(period)
            else:
                opened = self._record_failure(period, now, text, verdict, self._is_slow(started, now))
        if self.hooks is not None and exc is not None:
            self.hooks.failure(exc)
        self._follow_up()
        if opened is not None and self._throw_new_error_on_trip and not self._observes():
            raise self._refusal(Refused(max(0.0, opened.until - now))) from exc

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
            self._expire_override(now)
            period, started = self._give_back(ticket)
            if period is UNENFORCED:
                pass
            elif outcome == "ignored":
                self.ignored += 1
            else:
                self.abandoned += 1
                if self._is_slow(started, now) and period is self._period:
                    self._record_slow_abandoned(period, now)
        self._follow_up()

    def _record_slow_abandoned(self, period: Period, now: float) -> None:
        # Without this, a timeout outside the breaker would hide a hanging dependency from it for ever.
        self._window.roll(now)
        self._window.succeeded()
        self._record_slow()
        if period.state is State.HALF_OPEN:
            self._trip(now, "a probe was slow")
        else:
            self._evaluate(now)

    def _rest(self, now: float) -> None:
        """Put the durations into bins, and time no more calls for a while if they came too quickly."""
        self.stopwatch.rest(now)
        with self._lock:
            self._refresh(now)

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
        return (ticket.period if leave(ticket) else LOST), ticket.timed_from

    def _is_slow(self, started: float, now: float) -> bool:
        return self.rules.slow_after is not None and now - started > self.rules.slow_after
