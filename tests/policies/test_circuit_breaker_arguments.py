"""What a circuit breaker refuses to be made of."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta

import pybreaker
import pytest
from tests.policies.circuit_breaker_support import (
    DependencyError,
)

from resilient import Calls, CircuitBreaker, CircuitOpenError

BAD_ARGUMENTS: list[tuple[str, object, type[Exception], str]] = [
    *[
        (parameter, value, error, rule)
        for parameter in ("min_calls", "fail_max", "probes", "success_threshold")
        for value, error, rule in [
            (0, ValueError, "must be at least 1"),
            (-3, ValueError, "must be at least 1"),
            (2.0, TypeError, "must be a whole number"),
            (math.nan, TypeError, "must be a whole number"),
            (math.inf, TypeError, "must be a whole number"),
            (True, TypeError, "must be a whole number"),
            ("5", TypeError, "must be a whole number"),
        ]
    ],
    *[
        (parameter, value, error, rule)
        for parameter in ("failure_ratio", "slow_ratio")
        for value, error, rule in [
            (0, ValueError, "must be greater than 0"),
            (-0.1, ValueError, "must be greater than 0"),
            (1.01, ValueError, "must be at most 1"),
            (50, ValueError, "must be at most 1"),
            (math.nan, ValueError, "must be a ratio that is finite"),
            (math.inf, ValueError, "must be a ratio that is finite"),
            (True, TypeError, "must be a ratio"),
            ("50%", TypeError, "must be a ratio"),
        ]
    ],
    *[
        (parameter, value, error, rule)
        for parameter in ("window", "slow_after", "reset_timeout", "probe_timeout", "ramp")
        for value, error, rule in [
            (-1, ValueError, "must be (greater than|at least) 0"),
            (timedelta(seconds=-1), ValueError, "must be (greater than|at least) 0"),
            (math.nan, ValueError, "must be a number of seconds or a timedelta that is finite"),
            (math.inf, ValueError, "must be a number of seconds or a timedelta that is finite"),
            (True, TypeError, "must be a number of seconds or a timedelta"),
            ("30s", TypeError, "must be a number of seconds or a timedelta"),
        ]
    ],
    *[
        (parameter, 0, ValueError, "must be greater than 0")
        for parameter in ("window", "slow_after", "probe_timeout")
    ],
    *[
        (parameter, None, TypeError, "must be")
        for parameter in ("window", "reset_timeout", "ramp", "min_calls")
    ],
    *[
        (parameter, None, TypeError, "must be")
        for parameter in ("slow_ratio", "probes", "success_threshold", "name")
    ],
    ("name", "", ValueError, "must not be empty"),
    ("name", "  ", ValueError, "must not be empty"),
    ("name", 5, TypeError, "must be text"),
    ("failure_ratio", None, ValueError, "must be given where fail_max and slow_after are not"),
    ("throw_new_error_on_trip", 1, TypeError, "must be True or False"),
    ("on", 5, TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("on", "DependencyError", TypeError, "must be an exception type, a predicate"),
    ("on", (DependencyError, 5), TypeError, "must be an exception type, a predicate"),
    ("on", None, TypeError, "must be an exception type, a predicate"),
    ("on", int, TypeError, "must name types below Exception"),
    ("on", asyncio.CancelledError, ValueError, "must name types below Exception"),
    ("on", (KeyError, KeyboardInterrupt), ValueError, "must name types below Exception"),
    ("on", (), ValueError, "must name at least one type or predicate"),
    ("exclude", 5, TypeError, "must be a type, a predicate or several of them"),
    ("exclude", "KeyError", TypeError, "must be a type, a predicate or several of them"),
    ("exclude", [5], TypeError, "must be an exception type, a predicate"),
    ("exclude", [int], TypeError, "must name types below Exception"),
    ("on_result", 5, TypeError, "must be callable"),
    ("clock", 5, TypeError, "must be callable"),
    ("listeners", 5, TypeError, "must be several"),
    ("state_storage", "redis://", TypeError, "must be a pybreaker.CircuitBreakerStorage"),
]


@pytest.mark.parametrize(("parameter", "value", "error", "rule"), BAD_ARGUMENTS)
def test_bad_argument_is_refused(parameter, value, error, rule):
    """By name, rule and value."""
    with pytest.raises(error, match=f"^{parameter} {rule}") as caught:
        CircuitBreaker(**{parameter: value})

    assert str(caught.value).endswith(f", got {value!r}") or not isinstance(value, int | float | str)


def test_min_calls_above_the_window_of_calls_is_refused():
    """It could never be reached."""
    with pytest.raises(ValueError, match=r"^min_calls must be at most the 5 calls of the window, got 10$"):
        CircuitBreaker("b", window=Calls(5))


def test_listener_that_is_none_is_refused():
    """In the constructor as in add_listener."""
    with pytest.raises(TypeError, match="listener must be callable, got 5"):
        CircuitBreaker("b", listeners=[5])


def test_interrupts_may_be_excluded_and_never_count():
    """Users of pybreaker have to name them; here they have no say anyway."""
    breaker = CircuitBreaker("b", fail_max=1, exclude=[KeyboardInterrupt, asyncio.CancelledError])
    with pytest.raises(KeyboardInterrupt), breaker.calling():
        raise KeyboardInterrupt

    assert breaker.current_state == "closed"
    assert breaker.excluded_exceptions == (KeyboardInterrupt, asyncio.CancelledError)


def test_breaker_is_a_pybreaker():
    """For all who ask."""
    breaker = CircuitBreaker("b")

    assert isinstance(breaker, pybreaker.CircuitBreaker)
    assert issubclass(CircuitOpenError, pybreaker.CircuitBreakerError)


def test_nothing_on_its_own_may_be_a_failure_where_results_are():
    """A breaker may go by results alone."""
    breaker = CircuitBreaker("b", fail_max=1, on=(), on_result=lambda answer: answer is None)
    breaker.call(lambda: None)
    assert breaker.current_state == "open"
