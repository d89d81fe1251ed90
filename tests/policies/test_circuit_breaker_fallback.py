"""`CircuitBreaker(fallback=...)`: answers for its own refusals and failures, and for nothing else."""

from __future__ import annotations

import pytest

from resilient import CircuitBreaker
from resilient.errors import CircuitOpenError


def fail_with(exc: Exception) -> None:
    raise exc


def test_its_failures_and_its_refusals_are_answered() -> None:
    """While calls fail, and once it is open."""
    breaker = CircuitBreaker("rates", fail_max=1, fallback="shipped")
    guarded = breaker(fail_with)

    assert [guarded(ConnectionError()), guarded(ConnectionError())] == ["shipped", "shipped"]
    assert breaker.stats().rejected == 1


def test_an_ignored_exception_is_not_answered() -> None:
    """What counts as nothing is nobody's to answer for."""
    breaker = CircuitBreaker("rates", exclude=ValueError, fallback="shipped")

    with pytest.raises(ValueError, match="bad"):
        breaker(fail_with)(ValueError("bad"))


def test_the_refusal_of_another_breaker_inside_is_not_answered() -> None:
    """It is about another dependency, and counts as nothing here."""
    inner = CircuitBreaker("currency")
    inner.force_open()
    outer = CircuitBreaker("checkout", fallback="shipped")

    with pytest.raises(CircuitOpenError) as refusal:
        outer(inner(fail_with))(ConnectionError())

    assert refusal.value.policy == "currency"
    assert outer.stats().ignored == 1
