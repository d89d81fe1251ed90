"""What the tests of the circuit breaker share."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from resilient import CircuitBreaker, CircuitOpenError
from resilient.testing import FakeClock


class DependencyError(Exception):
    """A failure."""


class ByShape(type(Exception)):
    """A metaclass of its own, as ORMs and RPC libraries have it."""


class OrderNotFoundError(Exception, metaclass=ByShape):
    """A business exception with an unusual metaclass."""


def answer(value: object = "fresh") -> object:
    """Succeed."""
    return value


def down(reason: str = "down") -> object:
    """Fail."""
    raise DependencyError(reason)


def maker(clock: FakeClock) -> Callable[..., CircuitBreaker]:
    """Return what makes breakers that open at the second failure in a row, unless told otherwise."""

    def make(**settings: Any) -> CircuitBreaker:
        settings = (
            settings if {"failure_ratio", "slow_after"} & set(settings) else {"fail_max": 2, **settings}
        )
        return CircuitBreaker("rates", clock=clock, **settings)

    return make


def fail(breaker: CircuitBreaker, times: int = 1, reason: str = "down") -> None:
    """Make calls that fail with their own exception."""
    for _ in range(times):
        with pytest.raises(DependencyError, match=reason):
            breaker.call(down, reason)


def refused(breaker: CircuitBreaker) -> CircuitOpenError:
    """Make a call that is refused, and return the refusal."""
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(answer)
    return caught.value


def traceback_depth(exc: BaseException) -> int:
    """Count the frames of a traceback."""
    depth, traceback = 0, exc.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    return depth


def outside_the_probe(breaker: CircuitBreaker) -> CircuitOpenError:
    """Make a call that is refused from a context that has nothing to do with the present probe."""
    return contextvars.Context().run(refused, breaker)


def in_context(fn: Callable[..., Any], *args: Any) -> Any:
    """Call *fn* in a context of its own, as if in another task."""
    return contextvars.Context().run(fn, *args)


def is_let_in(breaker: CircuitBreaker) -> bool:
    """Make one good call and tell whether it was let through."""
    try:
        breaker.call(answer)
    except CircuitOpenError:
        return False
    return True
