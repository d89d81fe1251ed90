"""Retry: try again, a little later, as long as it makes sense."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from tenacity import Future as Outcome
from tenacity import RetryAction, RetryCallState
from tenacity.retry import (
    retry_all,
    retry_any,
    retry_base,
    retry_if_exception,
    retry_if_exception_cause_type,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_fixed

from ..engine import params
from ..engine.clock import MONOTONIC, Sleep, asleep, sleep
from ..engine.deadline import time_left
from ..engine.drive.loops import loop
from ..engine.matching import Matcher, verdict_of
from ..engine.policy import Policy
from ..engine.shape import Shape
from ..engine.window import Tally
from ..errors import RejectedError
from ..events import Announcer, BudgetExhausted, RetriesExhausted, RetryScheduled, error_text
from ..typing import Clock, FailureRule, Predicate, Seconds
from .backoff import retry_after_of, wait_full_jitter
from .retry_budget import RetryBudget, checked_budget
from .timeout import Deadline

__all__ = ["Retry", "RetryStats"]


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
    """

    calls: int
    retries: int
    recovered: int
    exhausted: int
    over_budget: int

    @property
    def amplification(self) -> float:
        """Attempts per call."""
        return 1.0 + self.retries / self.calls if self.calls else 1.0


class Retry(Policy):
    """Call again after a failure that is likely to pass.

    The exception that ends the last attempt is raised as it is, with a note of how many attempts there were
    and why there was no other. Refusals (`RejectedError`) are not retried unless *on* names their class.
    Generators are begun anew only until they have yielded.

    Args:
        on: which failures to retry: exception types, predicates `(exc) -> bool`, or a tuple of both; a
            predicate may return a number of seconds to wait before the next attempt. A tenacity `retry_*`
            strategy is taken as it is.
        attempts: the most attempts, the first one included; at least 1. None for no limit by number.
        wait: seconds between attempts: a number, a `timedelta`, or any tenacity `wait_*` strategy. None is
            full jitter from 0.1 s, doubling, capped at 10 s.
        stop: any tenacity `stop_*` strategy that ends it earlier.
        timeout: seconds for everything, waits included; greater than 0. It is a deadline for what is inside;
            a coroutine is cut off by it. None for no limit of its own. No wait is begun that could not be
            followed by an attempt within it, or within the caller's deadline.
        on_result: which results to retry: a predicate `(result) -> bool`, or seconds. The last result is
            returned, whatever it is.
        retry_after: take a `Retry-After` (on the exception, its response, or a result) as the shortest wait.
        budget: how many retries there may be over all calls. None for no limit. By default each Retry has a
            `RetryBudget()` of its own.
        before_sleep: called before each wait with tenacity's `RetryCallState`.
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
        self.stop = _strategy("stop", stop, "tenacity stop strategy")
        self.timeout = params.optional_seconds("timeout", timeout)
        self.retry_after = params.flag("retry_after", retry_after)
        self.before_sleep = _strategy("before_sleep", before_sleep, "function of a RetryCallState")
        self.announcer = Announcer()
        self._judge = _Judge(on, on_result)
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
        self.lock = threading.RLock()
        self.retries = self.recovered = self.exhausted = self.over_budget = 0

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._name

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, retried."""
        retried = loop(self, fn, shape)
        if self.timeout is None:
            return retried
        # "Within the timeout" and "within the caller's deadline" are one rule: the timeout is a deadline.
        return Deadline(self.timeout, self._name, self.clock).wrap(retried, shape)

    def begin(self, fn: Any, args: Any, kwargs: Any, until: float | None = None) -> _Run:
        """Return the state of a call whose first attempt has just ended in vain."""
        return _Run(self, self._judge, (fn, args, kwargs), until)

    def stats(self) -> RetryStats:
        """Return what has been counted so far."""
        with self.lock:
            return RetryStats(
                self._calls.read(), self.retries, self.recovered, self.exhausted, self.over_budget
            )

    def __repr__(self) -> str:
        stats = self.stats()
        counts = f"{stats.calls} calls, {stats.retries} retries, {stats.exhausted} exhausted"
        return f"<Retry {self._name!r} {counts}>"

    def __iter__(self) -> Iterator[Attempt]:
        """Yield attempts: `for attempt in retry: with attempt: ...`."""
        block = _Block(self)
        while (attempt := block.next_attempt()) is not None:
            yield attempt
            if block.delay is not None:
                block.run.sleep(block.delay)

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        """Yield attempts: `async for attempt in retry: with attempt: ...`."""
        block = _Block(self)
        while (attempt := block.next_attempt()) is not None:
            yield attempt
            if block.delay is not None:
                await block.run.asleep(block.delay)


class _Judge:
    """What is retried: a rule of ours or a tenacity strategy, for exceptions and for results."""

    def __init__(self, on: FailureRule | retry_base, on_result: Predicate | None) -> None:
        self._strategy = on if isinstance(on, retry_base) else None
        self._matcher = None if isinstance(on, retry_base) else Matcher("on", on)
        self._on_result = None if on_result is None else params.callback("on_result", on_result)
        judges = self._on_result is not None or (
            self._strategy is not None and not _is_about_exceptions_only(self._strategy)
        )
        self.refuses: Callable[[Any], bool] | None = self._refuses if judges else None

    def exception(self, exc: Exception, state: RetryCallState) -> bool | float:
        if self._matcher is not None:
            return self._matcher.match(exc)
        if isinstance(exc, RejectedError):
            return False
        return self._ask_strategy(state)

    def result(self, result: Any, state: RetryCallState) -> bool | float:
        if self._on_result is not None and (verdict := verdict_of(self._on_result, result, default=False)):
            return verdict
        return self._strategy is not None and self._ask_strategy(state)

    def _refuses(self, result: Any) -> bool:
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # a strategy looks at the outcome
        state.outcome = Outcome.construct(1, result, has_exception=False)
        return bool(self.result(result, state))

    def _ask_strategy(self, state: RetryCallState) -> bool:
        return bool(verdict_of(self._strategy, state, default=False))  # type: ignore[arg-type]  # checked by callers


def _is_about_exceptions_only(strategy: object) -> bool:
    """Whether *strategy* lets every result pass, so that results need not be shown to it."""
    if isinstance(strategy, retry_any | retry_all):
        return all(_is_about_exceptions_only(part) for part in strategy.retries)
    return isinstance(strategy, retry_if_exception | retry_if_exception_cause_type)


class _Run:
    """The further attempts of one call. Lives in the call's frame; nothing of it is shared.

    It lets go of each exception as soon as it is judged: the exception's traceback refers to the frame that
    refers to this object, and together they would outlive the call.
    """

    __slots__ = ("_judge", "_policy", "_started", "_state", "_until")

    def __init__(
        self, policy: Retry, judge: _Judge, call: tuple[Any, Any, Any], until: float | None = None
    ) -> None:
        self._policy = policy
        self._judge = judge
        self._started = policy.clock()
        self._until = until
        self._state = RetryCallState(None, *call)  # type: ignore[arg-type]  # no tenacity controller
        self._state.start_time = self._started

    def failed(self, exc: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *exc* is final."""
        self._note_outcome(exc, failed=True)
        try:
            verdict = self._judge.exception(exc, self._state)
            if not verdict:
                return None
            reason, delay = self._plan(verdict, exc)
            if delay is None:
                self._give_up(reason, error_text(exc))
                _annotate(exc, f"{self._summary()}: {reason}")
            else:
                self._schedule(delay, error_text(exc))
            return delay
        finally:
            self._state.outcome = None

    def returned(self, result: Any) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *result* is the answer."""
        if self._judge.refuses is None:
            self.recovered()
            return None
        self._note_outcome(result, failed=False)
        try:
            verdict = self._judge.result(result, self._state)
            if not verdict:
                self.recovered()
                return None
            reason, delay = self._plan(verdict, result)
            if delay is None:
                self._give_up(reason, "a result that will not do")
            else:
                self._schedule(delay, "a result that will not do")
            return delay
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
            self._unsent()
            raise
        self._sent()

    async def asleep(self, delay: float) -> None:
        """Wait in a task."""
        try:
            await asleep(delay, self._policy.sleep)
        except BaseException:
            self._unsent()
            raise
        self._sent()

    def _plan(self, verdict: bool | float, subject: Any) -> tuple[str, float | None]:
        """Decide about another attempt: ("", seconds until it) or (why not, None)."""
        policy, state = self._policy, self._state
        if policy.attempts is not None and state.attempt_number >= policy.attempts:
            return f"{policy.attempts} attempts are the limit", None
        delay = self._delay(verdict, subject)
        state.upcoming_sleep = delay
        if policy.stop is not None and policy.stop(state):
            return "its stop strategy said so", None
        left = self._time_left()
        if left is not None and delay >= left:
            return f"the next attempt would begin in {delay:.3g} s, the deadline is in {left:.3g} s", None
        if policy.budget is not None and not policy.budget.withdraw():
            self._over_budget(policy.budget)
            return f"the retry budget {policy.budget.name!r} is spent", None
        return "", delay

    def _delay(self, verdict: bool | float, subject: Any) -> float:
        delay = float(self._policy.wait(self._state)) if isinstance(verdict, bool) else verdict
        if self._policy.retry_after and (asked := retry_after_of(subject)) is not None:
            delay = max(delay, asked)
        return max(0.0, delay)

    def _time_left(self) -> float | None:
        left = time_left()
        if self._until is None:
            return left
        own: float = self._until - self._policy.clock()
        return own if left is None else min(own, left)

    def _schedule(self, delay: float, error: str) -> None:
        policy, state = self._policy, self._state
        state.next_action = RetryAction(delay)
        state.idle_for += delay
        if policy.announcer.heard:
            policy.announcer.announce(RetryScheduled(policy.name, state.attempt_number, delay, error))
        if policy.before_sleep is not None:
            try:
                policy.before_sleep(state)
            except BaseException:
                self._unsent()
                raise
        state.attempt_number += 1

    def _give_up(self, reason: str, error: str) -> None:
        policy = self._policy
        with policy.lock:
            policy.exhausted += 1
        if policy.announcer.heard:
            event = RetriesExhausted(policy.name, self._state.attempt_number, reason, error)
            policy.announcer.announce(event)

    def _over_budget(self, budget: RetryBudget) -> None:
        with self._policy.lock:
            self._policy.over_budget += 1
        if self._policy.announcer.heard:
            self._policy.announcer.announce(BudgetExhausted(self._policy.name, budget.name))

    def _summary(self) -> str:
        attempts, elapsed = self._state.attempt_number, self._policy.clock() - self._started
        plural = "attempt" if attempts == 1 else "attempts"
        when = f"{elapsed:.3g} s after the first failure"
        return f"{self._policy.name!r} gave up after {attempts} {plural}, {when}"

    def _note_outcome(self, value: Any, *, failed: bool) -> None:
        self._state.outcome = Outcome.construct(self._state.attempt_number, value, has_exception=failed)
        self._state.outcome_timestamp = self._policy.clock()

    def _sent(self) -> None:
        with self._policy.lock:
            self._policy.retries += 1

    def _unsent(self) -> None:
        if self._policy.budget is not None:
            self._policy.budget.refund()


class _Block:
    """The attempts of one `for attempt in retry` loop."""

    def __init__(self, policy: Retry) -> None:
        if policy.refuses is not None:
            msg = f"Retry {policy.name!r} judges results, and a block has none: decorate a function instead"
            raise TypeError(msg)
        next(policy.ticker)
        until = None if policy.timeout is None else policy.clock() + policy.timeout
        self.run = policy.begin(None, (), {}, until)
        self.delay: float | None = 0.0
        self._attempt = 0

    def next_attempt(self) -> Attempt | None:
        if self.delay is None:
            return None
        self._attempt += 1
        self.delay = None  # a block that is left without `with attempt` ends the loop
        return Attempt(self, self._attempt)


class Attempt(AbstractContextManager["Attempt", bool]):
    """One attempt of a retried block.

    Attributes:
        number: the number of the attempt; the first one is 1.
    """

    __slots__ = ("_block", "number")

    def __init__(self, block: _Block, number: int) -> None:
        self._block = block
        self.number = number

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if exc is None:
            if self.number > 1:
                self._block.run.recovered()
            return False
        if not isinstance(exc, Exception):
            return False
        self._block.delay = self._block.run.failed(exc)
        return self._block.delay is not None


def _annotate(exc: Exception, note: str) -> None:
    """Add *note* to *exc*, once: an instance that is raised again and again must not grow."""
    mark = "resilient: "
    with contextlib.suppress(Exception):  # somebody else's class may not take notes
        notes = [line for line in getattr(exc, "__notes__", ()) if not line.startswith(mark)]
        exc.__notes__ = [*notes, mark + note]


def _wait_strategy(wait: Any) -> wait_base:
    if wait is None:
        return wait_full_jitter()
    if isinstance(wait, int | float | timedelta):
        return wait_fixed(params.seconds("wait", wait))
    return params.callback("wait", wait)  # type: ignore[return-value]  # tenacity takes any function of the state


def _strategy(parameter: str, value: Any, what: str) -> Any:
    if value is not None and not callable(value):
        params.refuse(TypeError, parameter, f"must be a {what} or None", value)
    return value
