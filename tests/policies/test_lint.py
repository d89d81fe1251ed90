"""Lint: numbers that cannot work together, each with its figures, and nothing where all is well."""

from __future__ import annotations

from typing import Any

import pytest
from tenacity import wait_fixed, wait_random

from resilient import (
    Bulkhead,
    Cache,
    Calls,
    CircuitBreaker,
    Fallback,
    Pipeline,
    RateLimiter,
    Retry,
    Timeout,
    deadline,
)


def sane() -> Pipeline:
    """Return a pipeline whose numbers fit together."""
    return Pipeline(
        Fallback("old rates"),
        Cache("rates", ttl=60, stale_if_error=3600),
        deadline(10),
        Retry(on=OSError, attempts=3),
        CircuitBreaker("rates", window=30, slow_after=1.5),
        Timeout(2),
    )


def found(*policies: Any) -> dict[str, str]:
    """Return what lint finds, by code."""
    return {finding.code: finding.message for finding in Pipeline(*policies).lint()}


def retry(**options: Any) -> Retry:
    """Return a retry."""
    return Retry(on=OSError, **options)


def test_sane_pipeline_is_clean():
    """Where all is well nothing is found."""
    assert sane().lint() == ()


@pytest.mark.parametrize(
    "outer", [deadline(3, name="total"), Timeout(3, name="total"), retry(timeout=3, name="total")]
)
def test_attempt_longer_than_everything(outer):
    """The limit of one attempt above the limit of all of them can never be reached."""
    findings = found(outer, Timeout(4, name="attempt"))
    assert "Timeout 'attempt' allows an attempt 4 s" in findings["attempt-above-deadline"]
    assert f"{outer.kind} 'total' allows all of them 3 s" in findings["attempt-above-deadline"]
    assert "attempt-above-deadline" not in found(outer, Timeout(3))


@pytest.mark.parametrize(
    ("outer", "policy", "waits", "limit"),
    [
        (deadline(5, name="total"), retry(wait=3), "6", "deadline 'total' allows 5 s"),
        (
            deadline(5, name="total"),
            retry(wait=wait_fixed(1), attempts=7),
            "6",
            "deadline 'total' allows 5 s",
        ),
        (Timeout(1, name="total"), retry(attempts=5), "1.5", "Timeout 'total' allows 1 s"),
        (None, retry(wait=2, timeout=3), "4", "Retry 'retry' allows 3 s"),
    ],
)
def test_back_offs_that_outlast_the_deadline(outer, policy, waits, limit):
    """Waits that may add up to more than there is leave no time for the last attempt."""
    findings = found(*[layer for layer in (outer, policy) if layer is not None])
    assert f"may add up to {waits} s, {limit}" in findings["backoff-outlasts-deadline"]
    assert f"the last of its {policy.attempts} attempts" in findings["backoff-outlasts-deadline"]


@pytest.mark.parametrize(
    "policy",
    [retry(wait=1), retry(attempts=1, wait=99), retry(attempts=None), retry(wait=wait_random(0, 99))],
)
def test_back_offs_that_fit_or_are_not_known(policy):
    """Nothing is said about waits that fit, and none about those nobody can reckon."""
    assert found(deadline(5), policy) == {}


def test_window_shorter_than_two_timeouts():
    """A breaker that forgets before it has seen enough is told how long its window should be."""
    findings = found(CircuitBreaker("rates", window=10), Timeout(6))
    message = findings["window-below-timeout"]
    assert "CircuitBreaker 'rates' looks back 10 s, a call may take 6 s" in message
    assert "make it at least 12 s" in message


@pytest.mark.parametrize(
    "breaker",
    [
        CircuitBreaker("rates", window=12),
        CircuitBreaker("rates", window=Calls(10)),
        CircuitBreaker("rates", window=10, fail_max=3),
    ],
)
def test_window_that_is_long_enough_or_does_not_matter(breaker):
    """A window of calls, one that is not looked at, and one of two timeouts are fine."""
    assert found(breaker, Timeout(6)) == {}


def test_slow_calls_that_never_come_to_be():
    """A call that is cut off before it is slow can never be slow."""
    findings = found(CircuitBreaker("rates", slow_after=3), Timeout(2, name="attempt"))
    message = findings["slow-never-seen"]
    assert "calls a call slow after 3 s, Timeout 'attempt' ends it after 2 s" in message
    assert "slow-never-seen" not in found(CircuitBreaker("rates", slow_after=1.9), Timeout(2))


def test_nested_retries_multiply():
    """Retries inside retries are told with the amplification they give."""
    message = found(retry(attempts=3), retry(attempts=4, name="inner"))["nested-retries"]
    assert "2 retries are nested (3 x 4): one call may reach the dependency up to 12 times" in message
    message = found(retry(attempts=None), retry())["nested-retries"]
    assert "(unlimited x 3): one call may reach the dependency without a limit" in message


def test_policies_a_function_is_under_already_are_looked_at():
    """`lint(fn)` takes in what is on the function; findings read as one line."""
    inner = retry(attempts=5, name="client")(lambda: None)
    findings = Pipeline(retry(attempts=2)).lint(inner)
    assert [finding.code for finding in findings] == ["nested-retries"]
    assert str(findings[0]).startswith("nested-retries: 2 retries are nested (2 x 5)")
    assert Pipeline(retry()).lint(len) == ()


def test_nested_pipelines_are_looked_into():
    """What stands in a pipeline in a pipeline is found as well."""
    whole = Pipeline(deadline(1), Pipeline(retry(wait=1), Pipeline(Timeout(2))))
    assert {finding.code for finding in whole.lint()} == {
        "attempt-above-deadline",
        "backoff-outlasts-deadline",
    }


@pytest.mark.parametrize("outer", [deadline(8, name="total"), retry(timeout=8, name="total")])
def test_hanging_calls_that_are_never_counted(outer):
    """A breaker that cannot see slowness, under a limit that cuts calls off outside it, is told so."""
    message = found(outer, CircuitBreaker("rates"))["hang-never-seen"]
    assert message.startswith(f"{outer.kind} 'total' ends a call that hangs after 8 s")
    assert "CircuitBreaker 'rates' inside it never counts; put a Timeout inside the breaker" in message


@pytest.mark.parametrize(
    "policies",
    [
        [CircuitBreaker("rates")],
        [retry(), CircuitBreaker("rates")],
        [deadline(8), CircuitBreaker("rates", slow_after=2)],
        [deadline(8), CircuitBreaker("rates"), Timeout(2)],
        [deadline(8), CircuitBreaker("rates"), deadline(2)],
    ],
)
def test_hanging_calls_that_are_counted_or_not_cut_off(policies):
    """A limit inside, `slow_after`, and nothing outside that cuts calls off are fine."""
    assert "hang-never-seen" not in found(*policies)


def test_wait_for_a_turn_that_the_breaker_takes_for_slowness():
    """A limiter inside a breaker may have its calls wait longer than the breaker calls slow."""
    breaker = CircuitBreaker("rates", slow_after=1.0)
    message = found(breaker, RateLimiter("5/second", name="quota", max_wait=2))["wait-taken-for-slowness"]
    assert "RateLimiter 'quota' may have a call wait 2 s" in message
    assert "CircuitBreaker 'rates' around it calls a call slow after 1 s" in message

    message = found(breaker, Bulkhead("slots", 5, max_wait=2))["wait-taken-for-slowness"]
    assert "Bulkhead 'slots' may have a call wait 2 s" in message

    for sane_pair in (
        (breaker, RateLimiter("5/second", max_wait=0.9)),
        (breaker, Bulkhead("slots", 5)),
        (CircuitBreaker("untimed"), RateLimiter("5/second", max_wait=2)),
        (RateLimiter("5/second", max_wait=2), breaker),
    ):
        assert "wait-taken-for-slowness" not in found(*sane_pair)


def test_wait_for_a_turn_that_holds_a_slot():
    """A limiter inside a bulkhead may have its calls hold slots while they wait."""
    slots = Bulkhead("slots", 5)
    message = found(slots, RateLimiter("5/second", name="quota", max_wait=2))["slot-held-while-waiting"]
    assert "RateLimiter 'quota' may have a call wait 2 s" in message
    assert "a slot of Bulkhead 'slots' meanwhile; put the limiter outside" in message

    assert "slot-held-while-waiting" not in found(slots, RateLimiter("5/second"))
    assert "slot-held-while-waiting" not in found(RateLimiter("5/second", max_wait=2), slots)
