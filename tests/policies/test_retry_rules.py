"""Retry: which failures, refusals and results are retried, `Retry-After`, and bad arguments."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from tenacity import stop_after_attempt
from tests.policies.retry_support import Flaky, make

from resilient import (
    CircuitBreaker,
    CircuitOpenError,
    DeadlineExceededError,
    RejectedError,
    Retry,
    deadline,
    wait_full_jitter,
)
from resilient.events import RetriesExhausted
from resilient.testing import FakeClock, capture_events


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


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
        ({"on": ()}, ValueError, "on must name at least one type or predicate, got ()"),
        ({"on": []}, ValueError, "on must name at least one type or predicate, got []"),
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
