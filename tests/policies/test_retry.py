"""Retry on functions and coroutine functions: what is repeated, how long it waits, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from tenacity import before_sleep_log, stop_after_attempt, stop_after_delay, stop_before_delay, wait_fixed

from resilient import (
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    DeadlineExceededError,
    RejectedError,
    Retry,
    RetryBudget,
    Timeout,
    deadline,
    time_left,
    wait_full_jitter,
)
from resilient.events import CallTimedOut, RetriesExhausted, RetryScheduled
from resilient.testing import FakeClock, capture_events, no_waiting


class Flaky:
    """A function that raises or returns what it was given, in turn; the last one again and again."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = outcomes
        self.calls = 0

    def __call__(self) -> Any:
        outcome = self.outcomes[min(self.calls, len(self.outcomes) - 1)]
        self.calls += 1
        if isinstance(outcome, BaseException) or (
            isinstance(outcome, type) and issubclass(outcome, Exception)
        ):
            raise outcome
        return outcome


class WeakError(ConnectionError):
    """A failure that can be referred to weakly, as the built-in classes cannot."""


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


def make(clock: FakeClock, **options: Any) -> Retry:
    """Return a retry on *clock*, which never really waits."""
    return Retry(**{"on": ConnectionError, "wait": 1.0, "clock": clock, "sleep": clock.sleep, **options})


# Attempts


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_count_the_first_one(clock, attempts):
    """`attempts` is the most there are, and nothing is slept after the last failure."""
    flaky = Flaky(ConnectionError)
    with pytest.raises(ConnectionError):
        make(clock, attempts=attempts).call(flaky)
    assert flaky.calls == attempts
    assert clock.sleeps == [1.0] * (attempts - 1)


def test_defaults_are_three_attempts_with_full_jitter(clock):
    """By default there are three attempts, and full jitter from 0.1 s between them."""
    flaky, retry = Flaky(ConnectionError), Retry(on=ConnectionError, clock=clock, sleep=clock.sleep)
    with pytest.raises(ConnectionError):
        retry.call(flaky)
    assert flaky.calls == 3
    assert isinstance(retry.wait, wait_full_jitter)
    assert 0.0 <= clock.sleeps[0] <= 0.1
    assert 0.0 <= clock.sleeps[1] <= 0.2


def test_success_is_returned_and_counted(clock):
    """A call that ends well at its third attempt returns its result."""
    retry = make(clock)
    assert retry.call(Flaky(ConnectionError, ConnectionError, "rates")) == "rates"
    stats = retry.stats()
    assert (stats.calls, stats.retries, stats.recovered, stats.exhausted, stats.over_budget) == (
        1,
        2,
        1,
        0,
        0,
    )
    assert stats.amplification == 3.0
    assert make(clock).stats().amplification == 1.0


def test_first_success_neither_sleeps_nor_recovers(clock):
    """A call that succeeds at once is only counted."""
    retry = make(clock)
    assert retry.call(Flaky(None)) is None
    assert (retry.stats().calls, retry.stats().recovered, clock.sleeps) == (1, 0, [])


def test_no_limit_by_number(clock):
    """`attempts=None` goes on until something else ends it."""
    flaky = Flaky(*[ConnectionError] * 50, "at last")
    assert make(clock, attempts=None, budget=None).call(flaky) == "at last"
    assert flaky.calls == 51


def test_arguments_reach_every_attempt(clock):
    """Each attempt is called with the same arguments, and the method's self."""
    seen: list[Any] = []

    class Service:
        @make(clock)
        def get(self, code: str, *, base: str) -> None:
            seen.append((self, code, base))
            raise ConnectionError

    service = Service()
    with pytest.raises(ConnectionError):
        service.get("CHF", base="EUR")
    assert seen == [(service, "CHF", "EUR")] * 3


# What is raised


def test_last_exception_itself_is_raised_with_a_note(clock):
    """The exception of the last attempt leaves as it is: same object, no cause, no context, one note."""
    errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("third")]

    def fail() -> None:
        clock.advance(0.25)
        raise errors[len(clock.sleeps)]

    with pytest.raises(ConnectionError) as caught:
        make(clock, name="rates").call(fail)
    assert caught.value is errors[2]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == [
        "resilient: 'rates' gave up after 3 attempts, 2.5 s after the first failure: attempts=3"
    ]


async def test_asynchronous_last_exception_has_no_context(clock):
    """Attempts of a coroutine do not become each other's context either."""
    errors = [ConnectionError("first"), ConnectionError("second")]

    async def fail() -> None:
        raise errors[len(clock.sleeps)]

    with pytest.raises(ConnectionError) as caught:
        await make(clock, attempts=2).acall(fail)
    assert caught.value is errors[1]
    assert caught.value.__context__ is None


def test_note_does_not_pile_up_on_a_shared_instance(clock):
    """An instance that is raised again and again carries one note, and keeps those of others."""
    shared = ConnectionError("down")
    shared.add_note("see the runbook")
    for _ in range(5):
        with pytest.raises(ConnectionError):
            make(clock, name="rates").call(Flaky(shared))
    assert len(shared.__notes__) == 2
    assert shared.__notes__[0] == "see the runbook"


def test_nested_retries_leave_a_note_each(clock):
    """Each policy replaces its own note only."""
    inner, outer = make(clock, name="inner", attempts=2), make(clock, name="outer", attempts=2)
    with pytest.raises(ConnectionError) as caught:
        outer.call(inner(Flaky(ConnectionError("down"))))
    assert [note.split("'")[1] for note in caught.value.__notes__] == ["inner", "outer"]


def test_exception_that_takes_no_notes_is_raised_all_the_same(clock):
    """A class whose attributes cannot be set keeps its exception."""

    class FrozenError(ConnectionError):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    with pytest.raises(FrozenError):
        make(clock).call(Flaky(FrozenError))


def test_failure_that_is_not_retried_passes_untouched(clock):
    """What `on` does not name is raised at once, without a note and without a wait."""
    flaky, retry = Flaky(ValueError("bad input")), make(clock)
    with pytest.raises(ValueError, match="bad input") as caught:
        retry.call(flaky)
    assert flaky.calls == 1
    assert not hasattr(caught.value, "__notes__")
    assert retry.stats().exhausted == 0


def test_final_failure_after_a_retry_says_so(clock):
    """A failure that is not worth a retry, after one that was, ends the call: noted, counted, announced."""
    retry = make(clock)
    with capture_events() as seen, pytest.raises(ValueError, match="bad input") as caught:
        retry.call(Flaky(ConnectionError("down"), ValueError("bad input")))
    assert "gave up after 2 attempts" in caught.value.__notes__[0]
    assert "not one to retry" in caught.value.__notes__[0]
    assert retry.stats().exhausted == 1
    assert seen.of(RetriesExhausted)[0].attempts == 2


@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_nothing_keeps_the_exceptions_alive(clock, colour):
    """No cycle holds on to an exception once the call has ended: none needs the garbage collector."""
    refs: list[weakref.ref[Exception]] = []

    def fail() -> None:
        exc = WeakError("down")
        refs.append(weakref.ref(exc))
        try:
            raise exc
        finally:
            del exc

    async def afail() -> None:
        fail()

    retry = make(clock)
    gc.disable()
    try:
        try:
            if colour == "function":
                retry.call(fail)
            else:
                _drive(retry.acall(afail))
        except ConnectionError:
            pass
        assert [ref() for ref in refs] == [None, None, None]
    finally:
        gc.enable()


def _drive(coroutine: Any) -> Any:
    """Run a coroutine that never really waits, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waited")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_interrupts_are_never_retried(clock, interrupt):
    """What is no `Exception` passes through at once, whatever `on` says."""
    flaky = Flaky(interrupt())
    with pytest.raises(interrupt):
        make(clock, on=lambda exc: True).call(flaky)
    with pytest.raises(interrupt):
        make(clock, on=tenacity.retry_always).call(flaky)
    assert flaky.calls == 2


# on=


@pytest.mark.parametrize(
    ("on", "retried"),
    [
        (ConnectionError, True),
        (OSError, True),
        (Exception, True),
        ((ValueError, ConnectionError), True),
        (ValueError, False),
        (lambda exc: "down" in str(exc), True),
        (lambda exc: False, False),
        (lambda exc: None, False),
        (lambda exc: 0.0, False),
        ((ValueError, lambda exc: True), True),
        ((ConnectionError, lambda exc: False), True),
        (tenacity.retry_if_exception_type(OSError), True),
        (tenacity.retry_if_exception_type(ValueError), False),
        (tenacity.retry_if_exception_message(match="do"), True),
        (tenacity.retry_if_exception_type(ValueError) | tenacity.retry_if_exception_message("down"), True),
        (tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_exception_message("up"), False),
        (tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_exception_message("down"), True),
        (tenacity.retry_if_not_exception_type(ValueError), True),
        (tenacity.retry_never, False),
    ],
)
def test_on_says_which_failures_are_retried(clock, on, retried):
    """Types, predicates, tuples of both, tenacity's strategies and their mixes."""
    flaky = Flaky(ConnectionError("down"))
    with pytest.raises(ConnectionError):
        make(clock, on=on, attempts=2).call(flaky)
    assert flaky.calls == 1 + retried


def test_predicate_may_return_the_wait(clock):
    """A number of seconds from the predicate takes the place of `wait`."""
    waits = iter([4.0, 2, True])
    with pytest.raises(ConnectionError):
        make(clock, on=lambda exc: next(waits), attempts=4).call(Flaky(ConnectionError))
    assert clock.sleeps == [4.0, 2.0, 1.0]


def test_predicate_that_fails_is_logged_and_taken_as_yes(clock, caplog):
    """A predicate's own fault does not take the failure's place."""
    with pytest.raises(ConnectionError):
        make(clock, on=lambda exc: 1 / 0, attempts=2).call(Flaky(ConnectionError))
    assert clock.sleeps == [1.0]
    assert "predicate" in caplog.text


# Refusals


@pytest.mark.parametrize(
    "on",
    [
        Exception, (Exception,), TimeoutError, OSError, lambda exc: True, tenacity.retry_always,
        tenacity.retry_if_exception_type(), tenacity.retry_if_not_exception_type(ValueError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("refusal", [CircuitOpenError("open"), DeadlineExceededError("late")])
def test_refusals_are_not_retried_by_a_broad_rule(clock, on, refusal):
    """Our own refusals are no failures that pass: only naming their class has them retried."""
    flaky = Flaky(refusal)
    with pytest.raises(RejectedError):
        make(clock, on=on).call(flaky)
    assert flaky.calls == 1


@pytest.mark.parametrize(
    "on",
    [
        CircuitOpenError, RejectedError, (ValueError, CircuitOpenError),
        tenacity.retry_if_exception_type(CircuitOpenError),
        tenacity.retry_if_exception_type((ValueError, RejectedError)),
        tenacity.retry_if_exception_type(ValueError) | tenacity.retry_if_exception_type(CircuitOpenError),
    ],
)  # fmt: skip
def test_refusals_are_retried_when_named_after_the_time_they_ask_for(clock, on):
    """A refusal whose class is named is retried, and its `retry_after` is the shortest wait."""
    with pytest.raises(CircuitOpenError):
        make(clock, on=on).call(Flaky(CircuitOpenError("open", policy="rates", retry_after=30.0)))
    assert clock.sleeps == [30.0, 30.0]


def test_open_circuit_ends_the_attempts(clock):
    """Retry outside a breaker stops as soon as the breaker opens."""
    breaker = CircuitBreaker("rates", fail_max=2, clock=clock)
    flaky = Flaky(ConnectionError)
    with pytest.raises(CircuitOpenError) as caught:
        make(clock, attempts=5).call(breaker(flaky))
    assert flaky.calls == 2
    assert "gave up after 3 attempts" in caught.value.__notes__[0]


# wait=, stop=, before_sleep=


@pytest.mark.parametrize(
    ("wait", "sleeps"),
    [
        (2, [2.0, 2.0]),
        (0, [0.0, 0.0]),
        (0.25, [0.25, 0.25]),
        (timedelta(seconds=3), [3.0, 3.0]),
        (wait_fixed(1) + wait_fixed(2), [3.0, 3.0]),
        (tenacity.wait_exponential(multiplier=1), [1.0, 2.0]),
        (tenacity.wait_chain(wait_fixed(5), wait_fixed(7)), [5.0, 7.0]),
        (wait_fixed(1) + wait_full_jitter(random=lambda: 0.5), [1.05, 1.1]),
        (lambda state: state.attempt_number * 10, [10.0, 20.0]),
        (lambda state: -3, [0.0, 0.0]),
        (lambda state: float("nan"), [0.0, 0.0]),
    ],
)
def test_wait_takes_numbers_and_strategies(clock, wait, sleeps):
    """A number, a `timedelta`, any tenacity wait and any mix; never less than 0."""
    with pytest.raises(ConnectionError):
        make(clock, wait=wait).call(Flaky(ConnectionError))
    assert clock.sleeps == pytest.approx(sleeps)


def test_endless_wait_is_as_long_as_the_platform_allows(clock):
    """A wait beyond what a thread can wait is cut to that, and is no error."""
    with pytest.raises(ConnectionError):
        make(clock, wait=1e300, attempts=2).call(Flaky(ConnectionError))
    assert clock.sleeps == [threading.TIMEOUT_MAX]


@pytest.mark.parametrize(
    ("stop", "calls"),
    [
        (stop_after_attempt(2), 2),
        (stop_after_attempt(9) | stop_after_attempt(3), 3),
        (stop_after_attempt(2) & stop_after_attempt(4), 4),
        (stop_after_delay(2.5), 4),
        (stop_before_delay(2.5), 3),
        (tenacity.stop_never | stop_after_attempt(5), 5),
        (lambda state: state.attempt_number == 2, 2),
    ],
)
def test_stop_takes_strategies_and_mixes(clock, stop, calls):
    """Any tenacity stop and any mix ends it; its time counts from the first failure."""
    flaky = Flaky(ConnectionError)
    with pytest.raises(ConnectionError) as caught:
        make(clock, stop=stop, attempts=6).call(flaky)
    assert flaky.calls == calls
    assert "its stop strategy said so" in caught.value.__notes__[0]


def test_before_sleep_sees_tenacitys_state(clock, caplog):
    """`before_sleep` gets a `RetryCallState`: tenacity's own `before_sleep_log` works as it is."""
    states: list[Any] = []

    def note(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        states.append((state.attempt_number, state.outcome.exception(), state.upcoming_sleep, state.idle_for,
                       state.args, state.kwargs))  # fmt: skip

    exc = ConnectionError("down")

    def fetch(code: str, base: str = "EUR") -> None:
        raise exc

    with pytest.raises(ConnectionError):
        make(clock, before_sleep=note).call(fetch, "CHF", base="USD")
    assert states == [
        (1, exc, 1.0, 1.0, ("CHF",), {"base": "USD"}),
        (2, exc, 1.0, 2.0, ("CHF",), {"base": "USD"}),
    ]
    log = logging.getLogger("shop")
    with caplog.at_level(logging.INFO, "shop"), pytest.raises(ConnectionError):
        make(clock, before_sleep=before_sleep_log(log, logging.INFO))(fetch)("CHF")
    assert [record.message.split("fetch")[1] for record in caplog.records] == [
        " in 1 seconds as it raised ConnectionError: down."
    ] * 2


def test_before_sleep_that_raises_ends_the_call_and_refunds(clock):
    """What `before_sleep` raises leaves the call, with the failure as context; the retry is given back."""

    def refuse(state: object) -> None:
        raise RuntimeError("shutting down")

    retry = make(clock, before_sleep=refuse)
    with pytest.raises(RuntimeError, match="shutting down") as caught:
        retry.call(Flaky(ConnectionError("down")))
    assert isinstance(caught.value.__context__, ConnectionError)
    assert retry.budget.stats().retries == 0


# Retry-After


@pytest.mark.parametrize(
    "attributes",
    [
        {"retry_after": 7},
        {"headers": {"Retry-After": "7"}},
        {"response": SimpleNamespace(headers={"Retry-After": b"7"})},
    ],
)
def test_retry_after_is_the_shortest_wait(clock, attributes):
    """What a server asks for is a floor; a longer back-off stays, and it can be switched off."""
    exc = ConnectionError("busy")
    exc.__dict__.update(attributes)
    for options in ({"wait": 1}, {"wait": 9}, {"wait": 1, "retry_after": False}, {"on": lambda exc: 2.0}):
        with pytest.raises(ConnectionError):
            make(clock, attempts=2, **options).call(Flaky(exc))
    assert clock.sleeps == [7.0, 9.0, 1.0, 7.0]


def test_garbled_retry_after_is_ignored(clock):
    """A header that cannot be read leaves the back-off as it is."""
    exc = ConnectionError("busy")
    exc.headers = {"Retry-After": "soon"}  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        make(clock, attempts=2).call(Flaky(exc))
    assert clock.sleeps == [1.0]


@pytest.mark.parametrize("asked", [3601, 86_400, 1e18])
def test_retry_after_beyond_an_hour_ends_the_call(clock, asked):
    """No server makes a caller wait for a day: the failure is raised at once."""
    exc = ConnectionError("busy")
    exc.retry_after = asked  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError) as caught:
        make(clock).call(Flaky(exc))
    assert clock.sleeps == []
    assert "more than 3600 s" in caught.value.__notes__[0]


def test_retry_after_beyond_the_deadline_ends_the_call(clock):
    """A wait that would outlast the deadline is not begun."""
    exc = ConnectionError("busy")
    exc.retry_after = 5  # type: ignore[attr-defined]
    with deadline(5.0, clock=clock), pytest.raises(ConnectionError) as caught:
        make(clock).call(Flaky(exc))
    assert clock.sleeps == []
    assert "would begin in 5 s, the deadline is in 5 s" in caught.value.__notes__[0]


def test_retry_after_of_a_result_is_respected(clock):
    """A result that is a response may ask for a wait too."""
    busy = SimpleNamespace(status=429, headers={"Retry-After": "6"})
    good = SimpleNamespace(status=200, headers={})
    retry = make(clock, on_result=lambda answer: answer.status == 429)
    assert retry.call(Flaky(busy, good)) is good
    assert clock.sleeps == [6.0]


# on_result=


def test_results_are_retried_and_the_last_one_is_returned(clock):
    """A result that will not do is retried; the last one is returned whatever it is."""
    retry = make(clock, on_result=lambda answer: answer is None)
    assert retry.call(Flaky(None, None, "rates")) == "rates"
    with capture_events() as seen:
        assert retry.call(Flaky(None)) is None
    assert (retry.stats().recovered, retry.stats().exhausted, retry.stats().retries) == (1, 1, 4)
    assert seen.of(RetriesExhausted)[0].error == "a result that will not do"


async def test_asynchronous_results_are_retried(clock):
    """The same goes for coroutine functions."""
    flaky = Flaky(ConnectionError, None, "rates")

    async def fetch() -> Any:
        return flaky()

    assert await make(clock, on_result=lambda answer: answer is None).acall(fetch) == "rates"
    assert flaky.calls == 3


def test_result_predicate_is_asked_once_per_result(clock):
    """Each result is judged once, the first one included; a number of seconds is the wait."""
    asked: list[Any] = []

    def judge(answer: Any) -> bool | float:
        asked.append(answer)
        return 2.5 if answer < 2 else False

    assert make(clock, on_result=judge).call(Flaky(0, 1, 2)) == 2
    assert asked == [0, 1, 2]
    assert clock.sleeps == [2.5, 2.5]


def test_result_predicate_that_fails_lets_the_result_pass(clock, caplog):
    """A predicate's own fault is logged; the result stands."""
    assert make(clock, on_result=lambda answer: 1 / 0).call(Flaky("rates")) == "rates"
    assert "predicate" in caplog.text


@pytest.mark.parametrize(
    "on",
    [
        tenacity.retry_if_result(lambda answer: answer is None),
        tenacity.retry_if_not_result(lambda answer: answer is not None),
        tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_result(lambda answer: answer is None),
        tenacity.retry_if_not_result(bool) & tenacity.retry_if_result(lambda answer: answer is None),
    ],
)
def test_tenacity_result_strategies_are_asked(clock, on):
    """A strategy about results decides about results, in a mix too."""
    flaky = Flaky(None, "rates")
    assert make(clock, on=on).call(flaky) == "rates"
    assert flaky.calls == 2


@pytest.mark.parametrize(
    "on",
    [
        tenacity.retry_unless_exception_type(ValueError),
        tenacity.retry_if_not_exception_message("stop"),
        tenacity.retry_unless_exception_type(ValueError) | tenacity.retry_if_exception_type(ValueError),
    ],
)
def test_until_strategies_repeat_on_results(clock, on):
    """Tenacity's "until it raises" strategies retry results, though by class they are about exceptions."""
    flaky = Flaky("running")
    assert make(clock, on=on).call(flaky) == "running"
    assert flaky.calls == 3


@pytest.mark.parametrize(
    "on",
    [
        ConnectionError,
        tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_message("down"),
        tenacity.retry_if_exception_cause_type(OSError),
    ],
)
def test_rules_about_exceptions_are_not_shown_results(clock, on):
    """Where no result can be refused, none is looked at: the success path has nothing to ask."""
    assert make(clock, on=on).refuses is None


# Time limits


def test_no_wait_is_begun_that_the_timeout_would_cut(clock):
    """A wait that reaches the timeout is not begun: the failure is raised early instead."""
    flaky = Flaky(ConnectionError)
    with pytest.raises(ConnectionError) as caught:
        make(clock, timeout=2.5, attempts=9).call(flaky)
    assert flaky.calls == 3
    assert clock() == 2.0
    assert "the deadline is in 0.5 s" in caught.value.__notes__[0]


def test_callers_deadline_bounds_the_waits(clock):
    """The caller's deadline counts as the timeout does; the earlier one wins."""
    for outer, timeout, calls in ((3.5, None, 4), (3.5, 1.5, 2), (1.5, 9.0, 2)):
        flaky = Flaky(ConnectionError)
        with deadline(outer, clock=clock), pytest.raises(ConnectionError):
            make(clock, timeout=timeout, attempts=9).call(flaky)
        assert flaky.calls == calls


def test_timeout_is_a_deadline_for_what_is_inside(clock):
    """Inside, `time_left()` tells what is left of the timeout, less from attempt to attempt."""
    left: list[float | None] = []

    def fail() -> None:
        left.append(time_left())
        raise ConnectionError

    with pytest.raises(ConnectionError):
        make(clock, timeout=10).call(fail)
    assert left == [10.0, 9.0, 8.0]
    assert time_left() is None


def test_passed_deadline_refuses_the_call(clock):
    """With a timeout of its own, a retry does not begin after the caller's deadline."""
    flaky = Flaky("rates")
    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            make(clock, timeout=5).call(flaky)
    assert flaky.calls == 0


async def test_coroutine_is_cut_off_at_the_timeout():
    """An attempt that hangs is cut off when the whole call's time is up, and listeners hear of it."""
    retry = Retry(on=TimeoutError, timeout=0.02, wait=0, name="rates")
    heard: list[Any] = []
    retry.add_listener(heard.append)
    attempts: list[int] = []

    @retry
    async def hang() -> None:
        attempts.append(1)
        await asyncio.sleep(30)

    with pytest.raises(CallTimeoutError, match="'rates'"):
        await hang()
    assert attempts == [1]
    assert [type(event) for event in heard] == [CallTimedOut]


async def test_attempt_timeouts_are_retried_within_the_whole_timeout():
    """A per-attempt `Timeout` inside is a failure like any other, retried until the whole time is up."""
    attempts: list[int] = []

    @Retry(on=TimeoutError, attempts=100, timeout=0.08, wait=0.001)
    @Timeout(0.02)
    async def hang() -> None:
        attempts.append(1)
        await asyncio.sleep(30)

    with pytest.raises(CallTimeoutError):
        await hang()
    assert 2 <= len(attempts) <= 5


async def test_cancellation_during_back_off_ends_the_call_and_refunds():
    """A caller's cancellation is never swallowed, and the retry that was not sent is given back."""
    budget = RetryBudget(0.0, 1.0, 10.0)
    retry = Retry(on=ConnectionError, wait=30, budget=budget)
    flaky = Flaky(ConnectionError)

    async def fetch() -> Any:
        return flaky()

    task = asyncio.create_task(retry.acall(fetch))
    await asyncio.sleep(0)
    assert budget.stats().retries == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flaky.calls == 1
    assert budget.stats().retries == 0


async def test_cancellation_during_an_attempt_is_never_retried(clock):
    """A cancelled attempt ends the call."""
    begun: list[int] = []

    async def hang() -> None:
        begun.append(1)
        await asyncio.sleep(30)

    task = asyncio.create_task(make(clock, on=tenacity.retry_always).acall(hang))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun == [1]


async def test_custom_sleep_may_be_a_coroutine_function(clock):
    """In asynchronous code `sleep` may return an awaitable."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    flaky = Flaky(ConnectionError, "rates")

    async def fetch() -> Any:
        return flaky()

    assert await make(clock, sleep=sleep).acall(fetch) == "rates"
    assert slept == [1.0]


def test_coroutine_sleep_is_refused_in_synchronous_code(clock):
    """A sleep that would never be awaited is an error that says so, and not a wait of nothing."""

    async def sleep(seconds: float) -> None: ...

    retry = make(clock, sleep=sleep)
    with pytest.raises(TypeError, match="sleep must be an ordinary function"):
        retry.call(Flaky(ConnectionError))
    assert retry.budget.stats().retries == 0


# Many at once


def test_threads_do_not_mix_their_calls():
    """Calls in eight threads each keep their own attempts; the totals add up."""
    retry = Retry(on=ConnectionError, attempts=3, wait=0, budget=None)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(200):
            flaky = Flaky(*[ConnectionError] * (turn % 3), (number, turn))
            if retry.call(flaky) != (number, turn) or flaky.calls != turn % 3 + 1:
                wrong.append((number, turn))

    with no_waiting(), _threads(8, work):
        pass
    assert wrong == []
    stats = retry.stats()
    each = [turn % 3 for turn in range(200)]
    assert (stats.calls, stats.retries) == (1600, 8 * sum(each))
    assert stats.recovered == 8 * sum(1 for retries in each if retries)


@contextmanager
def _threads(count: int, work: Callable[[int], None]) -> Iterator[None]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


async def test_tasks_do_not_mix_their_calls():
    """Calls in many tasks at once each keep their own attempts."""
    retry = Retry(on=ConnectionError, attempts=4, wait=0, budget=None)

    async def work(number: int) -> int:
        flaky = Flaky(*[ConnectionError] * (number % 4), number)

        @retry
        async def fetch() -> int:
            await asyncio.sleep(0)
            return int(flaky())

        return await fetch()

    assert await asyncio.gather(*map(work, range(40))) == list(range(40))
    assert retry.stats().retries == 10 * (1 + 2 + 3)


# Events, statistics, repr


def test_events_tell_each_retry_and_the_end(clock):
    """Each wait is an event, and so is giving up."""
    with capture_events() as seen, pytest.raises(ConnectionError):
        make(clock, name="rates").call(Flaky(ConnectionError("down")))
    text = "ConnectionError: down"
    assert seen == [
        RetryScheduled("rates", 1, 1.0, text),
        RetryScheduled("rates", 2, 1.0, text),
        RetriesExhausted("rates", 3, "attempts=3", text),
    ]


def test_repr_shows_live_state(clock):
    """`repr` shows the name and the counts."""
    retry = make(clock, name="rates")
    with pytest.raises(ConnectionError):
        retry.call(Flaky(ConnectionError))
    assert repr(retry) == "<Retry 'rates' 1 calls, 2 retries, 1 exhausted>"


# Bad arguments


async def _coroutine_function(*_: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"on": "ConnectionError"},
            TypeError,
            "on must be an exception type, a predicate, or a tuple of these",
        ),
        ({"on": None}, TypeError, "on must be an exception type, a predicate, or a tuple of these, got None"),
        (
            {"on": (OSError, 5)},
            TypeError,
            "on must be an exception type, a predicate, or a tuple of these, got 5",
        ),
        ({"on": int}, TypeError, "on must name types below Exception"),
        ({"on": KeyboardInterrupt}, ValueError, "on must name types below Exception"),
        ({"on": asyncio.CancelledError}, ValueError, "on must name types below Exception"),
        (
            {"on": (OSError, tenacity.retry_always)},
            TypeError,
            "on must hold no tenacity strategies: mix those with |",
        ),
        ({"on": _coroutine_function}, TypeError, "on must be an ordinary function, not a coroutine function"),
        (
            {"on": tenacity.asyncio.retry.retry_if_exception(_coroutine_function)},
            TypeError,
            "on must not be one of tenacity's asynchronous strategies",
        ),
        ({"attempts": 0}, ValueError, "attempts must be at least 1, got 0"),
        ({"attempts": 2.0}, TypeError, "attempts must be a whole number, got 2.0"),
        ({"attempts": True}, TypeError, "attempts must be a whole number, got True"),
        ({"wait": -1}, ValueError, "wait must be at least 0, got -1"),
        (
            {"wait": float("nan")},
            ValueError,
            "wait must be a number of seconds or a timedelta that is finite",
        ),
        (
            {"wait": float("inf")},
            ValueError,
            "wait must be a number of seconds or a timedelta that is finite",
        ),
        ({"wait": True}, TypeError, "wait must be a number of seconds or a timedelta, got True"),
        (
            {"wait": "1"},
            TypeError,
            "wait must be a number of seconds, a timedelta, a tenacity wait strategy or None",
        ),
        ({"wait": wait_full_jitter}, TypeError, "wait must be an instance or a function, not a class"),
        ({"stop": 3}, TypeError, "stop must be callable, got 3"),
        ({"stop": stop_after_attempt}, TypeError, "stop must be an instance or a function, not a class"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0, got 0"),
        ({"timeout": -1.5}, ValueError, "timeout must be greater than 0, got -1.5"),
        (
            {"timeout": float("inf")},
            ValueError,
            "timeout must be a number of seconds or a timedelta that is finite",
        ),
        ({"timeout": "5"}, TypeError, "timeout must be a number of seconds or a timedelta, got '5'"),
        ({"on_result": 5}, TypeError, "on_result must be callable, got 5"),
        ({"on_result": _coroutine_function}, TypeError, "on_result must be an ordinary function"),
        ({"retry_after": 1}, TypeError, "retry_after must be True or False, got 1"),
        ({"budget": 0.2}, TypeError, "budget must be a RetryBudget or None, got 0.2"),
        ({"before_sleep": "log"}, TypeError, "before_sleep must be callable, got 'log'"),
        ({"before_sleep": _coroutine_function}, TypeError, "before_sleep must be an ordinary function"),
        ({"name": " "}, ValueError, "name must not be empty, got ' '"),
        ({"name": 5}, TypeError, "name must be text, got 5"),
        ({"clock": 0.0}, TypeError, "clock must be callable, got 0.0"),
        ({"sleep": 1}, TypeError, "sleep must be callable, got 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    """Each message names the parameter, the rule and the value."""
    with pytest.raises(kind) as caught:
        Retry(**{"on": OSError, **arguments})
    assert message in str(caught.value)
    assert ", got " in str(caught.value)


def test_on_is_required():
    """What is retried has to be said."""
    with pytest.raises(TypeError, match="'on'"):
        Retry()  # type: ignore[call-arg]


# The rest of the wrappers' ways


async def test_single_attempt_is_final_in_every_form(clock):
    """With one attempt a result that will not do is returned, and a failure is raised, at once."""
    retry = make(clock, attempts=1, on_result=lambda answer: answer is None)

    async def fetch() -> None: ...

    assert retry.call(Flaky(None)) is None
    assert await retry.acall(fetch) is None
    assert retry.stats().exhausted == 2


async def test_asynchronous_failure_that_is_not_retried_passes_untouched(clock):
    """What `on` does not name is raised at once from a coroutine, too."""
    retry = make(clock)

    async def fetch() -> None:
        raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input") as caught:
        await retry.acall(fetch)
    assert not hasattr(caught.value, "__notes__")


def test_default_budget_shows_as_what_it_is():
    """The signature tells what a policy gets by default."""
    assert "budget: 'RetryBudget | _OwnBudget | None' = RetryBudget()" in str(inspect.signature(Retry))
