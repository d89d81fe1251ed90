"""Retry: try again, a little later, as long as it makes sense."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from tenacity import Future as Outcome
from tenacity import RetryAction, RetryCallState
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_fixed

from ..engine import params
from ..engine.clock import MONOTONIC, Sleep, asleep, sleep
from ..engine.deadline import time_left
from ..engine.drive.loops import loop
from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.latency import Latency, Recorder
from ..engine.living import remember
from ..engine.matching import verdict_of
from ..engine.measure import Measure
from ..engine.policy import Policy, callee_of
from ..engine.resends import Resend
from ..engine.shape import Shape, describe
from ..engine.window import Tally
from ..events import Announcer, BudgetExhausted, RetriesExhausted, RetryScheduled, error_text, log_fault
from ..typing import Clock, FailureRule, Predicate, Seconds
from .backoff import LONGEST_ASKED, retry_after_of, wait_full_jitter
from .measures import of_retry
from .retry_block import AsyncAttempts, Attempts
from .retry_budget import RetryBudget, checked_budget
from .retry_judge import Judge
from .timeout import Deadline

__all__ = ["Retry", "RetryStats"]

_DEFAULT_WAIT: Final = wait_full_jitter()


class _OwnBudget:
    def __repr__(self) -> str:
        return "RetryBudget()"


OWN_BUDGET: Final = _OwnBudget()
"""Stands for "a budget of its own" in the signature: a default instance would be shared by all."""


@dataclass(frozen=True, slots=True)
class RetryStats:
    """What a retry has counted.

    Attributes:
        calls: calls begun.
        retries: attempts after the first one.
        recovered: calls that ended well after a retry.
        exhausted: calls that failed for good after a failure that could have been retried.
        over_budget: retries not made because the budget was spent.
        waited: how long was waited lately before an attempt was made again.
    """

    calls: int
    retries: int
    recovered: int
    exhausted: int
    over_budget: int
    waited: Latency

    @property
    def amplification(self) -> float:
        """Attempts per call."""
        return 1.0 + self.retries / self.calls if self.calls else 1.0


class Retry(Policy):
    """Call again after a failure that is likely to pass.

    The exception that ends the last attempt is raised as it is; if it was worth a retry, or followed one,
    with a note of how many attempts there were and why there is no other. Refusals (`RejectedError`) are not
    retried unless *on* names their class. Generators are begun anew only until they have yielded.

    A block of code is retried by `for attempt in retry: with attempt: ...`, in a coroutine by `async for`.

    Args:
        on: which failures to retry: exception types, predicates `(exc) -> bool`, or a tuple of both; a
            predicate may return the seconds to wait before the next attempt, more than 0 of them. A tenacity
            `retry_*` strategy, or a mix of them, is taken as it is.
        attempts: the most attempts, the first one included; at least 1. None for no limit by number.
        wait: seconds between attempts: a number, a `timedelta`, or any tenacity `wait_*` strategy. None is
            full jitter from 0.1 s, doubling, capped at 10 s; so is a strategy that raises.
        stop: any tenacity `stop_*` strategy that ends it earlier; so does one that raises. Its time counts
            from the first failure.
        timeout: seconds for everything, waits included; greater than 0. It is a deadline for what is inside;
            a coroutine is cut off by it. None for no limit of its own. No wait is begun that could not be
            followed by an attempt within it, or within the caller's deadline.
        on_result: which results to retry: a predicate `(result) -> bool`, or seconds. The last result is
            returned, whatever it is. Not for generators and blocks: they have no result.
        retry_after: take a `Retry-After` (on the exception, its response, or a result) as the shortest wait.
            One of more than an hour ends the call.
        budget: how many retries there may be over all calls. None for no limit. By default each Retry has a
            `RetryBudget()` of its own.
        before_sleep: called before each wait with tenacity's `RetryCallState`. What it raises is logged.
        name: in errors, events and statistics.
        clock: a monotonic clock, in seconds.
        sleep: waits the given seconds; may return an awaitable in asynchronous code. None for the real wait.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop; the state of a call lives in the call.

    Source: M. Brooker, "Timeouts, retries, and backoff with jitter", Amazon Builders' Library; tenacity.
    """

    kind: ClassVar[str] = "Retry"

    def __init__(
        self,
        *,
        on: FailureRule | retry_base,
        attempts: int | None = 3,
        wait: Seconds | wait_base | None = None,
        stop: stop_base | None = None,
        timeout: Seconds | None = None,
        on_result: Predicate | None = None,
        retry_after: bool = True,
        budget: RetryBudget | _OwnBudget | None = OWN_BUDGET,
        before_sleep: Callable[[RetryCallState], object] | None = None,
        name: str | None = None,
        clock: Clock = MONOTONIC,
        sleep: Sleep | None = None,
    ) -> None:
        self._name = "retry" if name is None else params.named("name", name)
        self.clock = params.callback("clock", clock)
        self.sleep = None if sleep is None else params.callback("sleep", sleep)
        self.attempts = None if attempts is None else params.count("attempts", attempts)
        self.wait = _wait_strategy(wait)
        self.stop = None if stop is None else params.plain_function("stop", stop)
        self.timeout = params.optional_seconds("timeout", timeout)
        self.retry_after = params.flag("retry_after", retry_after)
        self.before_sleep = (
            None if before_sleep is None else params.plain_function("before_sleep", before_sleep)
        )
        self.announcer = Announcer()
        self._judge = Judge(on, on_result)
        self.refuses = self._judge.refuses
        self._calls = Tally()
        self.ticker = self._calls.ticker
        self.budget = (
            RetryBudget(name=f"{self._name}-budget", clock=self.clock)
            if isinstance(budget, _OwnBudget)
            else checked_budget(budget)
        )
        if self.budget is not None:
            self.budget.enrol(self, self._calls)
        self.waits = Recorder(self.clock)
        self.lock = threading.RLock()
        self.retries = self.recovered = self.exhausted = self.over_budget = 0
        renew_after_fork(self)
        remember(self)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._name

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, retried."""
        if self.refuses is not None and shape in {Shape.GENERATOR, Shape.ASYNC_GENERATOR}:
            msg = f"Retry {self._name!r} judges results, and {describe(fn)}, a {shape.value}, has none"
            raise TypeError(msg)
        retried = loop(self, fn, shape)
        # "Within the timeout" and "within the caller's deadline" are one rule: the timeout is a deadline.
        return retried if self.timeout is None else self.limit(self.timeout).wrap(retried, shape)

    def limit(self, seconds: float) -> Deadline:
        """Return a deadline in *seconds* that speaks with this policy's voice."""
        return Deadline(seconds, self._name, self.clock, self.announcer)

    def begin(self, fn: Any, args: Any, kwargs: Any, until: float | None = None) -> Run:
        """Return the state of a call whose first attempt has just ended in vain."""
        return Run(self, self._judge, (*callee_of(fn, args), kwargs), until)

    def stats(self) -> RetryStats:
        """Return what has been counted so far."""
        with self.lock:
            return RetryStats(
                self._calls.read(),
                self.retries,
                self.recovered,
                self.exhausted,
                self.over_budget,
                self.waits.lately(),
            )

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_retry(self.stats(), self.waits.histogram())

    def finding(self) -> Finding:
        """Return how it stands, for health. A warning: its budget is spent."""
        stats = self.stats()
        found = None if self.budget is None else self.budget.finding()
        return Finding(
            Status.PASS if found is None else found.status,
            f"budget {found.output}" if found is not None and found.output else "",
            value=stats.amplification,
            unit="attempts",
            facts={"calls": stats.calls, "retries": stats.retries, "exhausted": stats.exhausted},
        )

    def __repr__(self) -> str:
        stats = self.stats()
        counts = f"{stats.calls} calls, {stats.retries} retries, {stats.exhausted} exhausted"
        return f"<Retry {self._name!r} {counts}>"

    def __iter__(self) -> Attempts:
        """Begin a block: `for attempt in retry: with attempt: ...`."""
        return Attempts(self)

    def __aiter__(self) -> AsyncAttempts:
        """Begin a block in a coroutine: `async for attempt in retry: with attempt: ...`."""
        return AsyncAttempts(self)

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self.lock = threading.RLock()
        self.announcer.after_fork()


class Run:
    """The further attempts of one call. Lives in the call's frame; nothing of it is shared.

    It lets go of each exception as soon as it is judged: the exception's traceback refers to the frame that
    refers to this object, and together they would outlive the call.
    """

    __slots__ = ("_grant", "_judge", "_policy", "_started", "_state", "_until")

    def __init__(
        self, policy: Retry, judge: Judge, call: tuple[Any, Any, Any], until: float | None = None
    ) -> None:
        self._policy = policy
        self._judge = judge
        self._started = policy.clock()
        self._until = until
        self._grant = 0
        # Not a controller of tenacity's, but what stands for one in a log line about a block.
        self._state = RetryCallState(policy, *call)  # type: ignore[arg-type]
        self._state.start_time = self._started

    def failed(self, exc: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *exc* is final."""
        self._note_outcome(exc, failed=True)
        try:
            if verdict := self._judge.exception(exc, self._state):
                reason, delay = self._plan(verdict, exc)
            elif self._state.attempt_number == 1:
                return None
            else:
                reason, delay = "this failure is not one to retry", None
            if delay is None:
                _annotate(
                    exc, f"resilient: {self._policy.name!r} gave up", f"after {self._length()}: {reason}"
                )
            return self._proceed(delay, reason, error_text(exc))
        finally:
            self._state.outcome = None

    def returned(self, result: Any) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *result* is the answer."""
        if self._judge.refuses is not None:
            self._note_outcome(result, failed=False)
            if verdict := self._judge.result(result, self._state):
                return self.refused(result, verdict)
        self.recovered()
        return None

    def refused(self, result: Any, verdict: bool | float) -> float | None:
        """Return the seconds to wait after *result*, which was judged, or None if it has to do after all."""
        self._note_outcome(result, failed=False)
        try:
            reason, delay = self._plan(verdict, result)
            return self._proceed(delay, reason, "a result that will not do")
        finally:
            self._state.outcome = None

    def recovered(self) -> None:
        """Note that the call ended well after all."""
        with self._policy.lock:
            self._policy.recovered += 1

    def sleep(self, delay: float) -> None:
        """Wait in a thread."""
        try:
            sleep(delay, self._policy.sleep)
        except BaseException:
            self.unsent()
            raise
        self._sent(delay)

    async def asleep(self, delay: float) -> None:
        """Wait in a task."""
        try:
            await asleep(delay, self._policy.sleep)
        except BaseException:
            self.unsent()
            raise
        self._sent(delay)

    def again(self) -> Resend:
        """Return a block around the attempt that was granted."""
        return Resend(self._state.attempt_number - 1)

    def unsent(self) -> None:
        """Give back what the budget granted: the attempt will not be made."""
        if self._policy.budget is not None:
            self._policy.budget.refund(self._grant)

    def _plan(self, verdict: bool | float, subject: Any) -> tuple[str, float | None]:
        """Decide about another attempt: ("", seconds until it) or (why not, None)."""
        policy, state = self._policy, self._state
        if policy.attempts is not None and state.attempt_number >= policy.attempts:
            return f"attempts={policy.attempts}", None
        asked = (retry_after_of(subject) or 0.0) if policy.retry_after else 0.0
        if asked > LONGEST_ASKED:
            return f"asked to wait {asked:.3g} s, more than {LONGEST_ASKED:g} s", None
        delay = state.upcoming_sleep = self._delay(verdict, asked)
        if policy.stop is not None and verdict_of(policy.stop, state, default=True):
            return "its stop strategy said so", None
        left = self._time_left()
        if left is not None and delay >= left:
            return f"the next attempt would begin in {delay:.3g} s, the deadline is in {left:.3g} s", None
        if policy.budget is not None and not self._withdraw(policy.budget):
            return f"the retry budget {policy.budget.name!r} is spent", None
        return "", delay

    def _delay(self, verdict: bool | float, asked: float) -> float:
        delay = self._own_wait() if isinstance(verdict, bool) else verdict
        # No platform can wait longer than that; nobody will see the end of it.
        return min(max(0.0, delay, asked), threading.TIMEOUT_MAX)

    def _own_wait(self) -> float:
        try:
            return float(self._policy.wait(self._state))
        except Exception:  # noqa: BLE001 - a bug in the user's strategy must not hide the failure
            log_fault("wait strategy %r failed; the default is used", self._policy.wait)
            return float(_DEFAULT_WAIT(self._state))

    def _withdraw(self, budget: RetryBudget) -> bool:
        self._grant = budget.withdraw()
        if self._grant:
            return True
        with self._policy.lock:
            self._policy.over_budget += 1
        if self._policy.announcer.heard:
            self._policy.announcer.announce(BudgetExhausted(self._policy.name, budget.name))
        return False

    def _time_left(self) -> float | None:
        left = time_left()
        if self._until is None:
            return left
        own: float = self._until - self._policy.clock()
        return own if left is None else min(own, left)

    def _proceed(self, delay: float | None, reason: str, error: str) -> float | None:
        if delay is None:
            self._give_up(reason, error)
        else:
            self._schedule(delay, error)
        return delay

    def _schedule(self, delay: float, error: str) -> None:
        policy, state = self._policy, self._state
        state.next_action = RetryAction(delay)
        state.idle_for += delay
        if policy.announcer.heard:
            policy.announcer.announce(RetryScheduled(policy.name, state.attempt_number, delay, error))
        if policy.before_sleep is not None:
            try:
                policy.before_sleep(state)
            except Exception:  # noqa: BLE001
                log_fault("before_sleep %r failed; the retry goes on", policy.before_sleep)
            except BaseException:
                self.unsent()
                raise
        state.attempt_number += 1

    def _give_up(self, reason: str, error: str) -> None:
        policy = self._policy
        with policy.lock:
            policy.exhausted += 1
        if policy.announcer.heard:
            event = RetriesExhausted(policy.name, self._state.attempt_number, reason, error)
            policy.announcer.announce(event)

    def _length(self) -> str:
        attempts, elapsed = self._state.attempt_number, self._policy.clock() - self._started
        plural = "attempt" if attempts == 1 else "attempts"
        return f"{attempts} {plural}, {elapsed:.3g} s after the first failure"

    def _note_outcome(self, value: Any, *, failed: bool) -> None:
        self._state.outcome = Outcome.construct(self._state.attempt_number, value, has_exception=failed)
        self._state.outcome_timestamp = self._policy.clock()

    def _sent(self, waited: float) -> None:
        self._policy.waits.record(waited)
        with self._policy.lock:
            self._policy.retries += 1


def _annotate(exc: Exception, head: str, rest: str) -> None:
    """Add a note to *exc* in place of an earlier one: an instance raised again and again must not grow."""
    with contextlib.suppress(Exception):  # somebody else's class may not take notes
        others = [line for line in getattr(exc, "__notes__", ()) if not line.startswith(head)]
        exc.__notes__ = [*others, f"{head} {rest}"]


def _wait_strategy(wait: Any) -> wait_base:
    if wait is None:
        return _DEFAULT_WAIT
    if isinstance(wait, int | float | timedelta):
        return wait_fixed(params.seconds("wait", wait))
    if not callable(wait):
        rule = "must be a number of seconds, a timedelta, a tenacity wait strategy or None"
        params.refuse(TypeError, "wait", rule, wait)
    return params.plain_function("wait", wait)  # type: ignore[return-value]  # any function of the state will do
