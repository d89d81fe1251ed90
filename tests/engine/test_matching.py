"""What counts as a failure: types, predicates, and exceptions that will not say what they are."""

from __future__ import annotations

from collections import deque

import pytest

from resilient import Cache, CircuitBreaker, Fallback, Retry
from resilient.engine.matching import Matcher
from resilient.testing import FakeClock


class ShyError(Exception):
    """Raises when it is asked for its class."""

    @property
    def __class__(self):
        raise LookupError("no class")


class _Untold(type):
    def __instancecheck__(cls, _instance: object) -> bool:
        raise LookupError("no telling")


class UntoldError(Exception, metaclass=_Untold):
    """A class that fails when asked whether something is of it."""


@pytest.mark.parametrize(
    ("rule", "kind", "verdict"),
    [
        (ShyError, ShyError, True),
        ((KeyError, ShyError), ShyError, True),
        (Exception, ShyError, True),
        (KeyError, ShyError, False),
        (UntoldError, KeyError, False),
        ((UntoldError, KeyError), KeyError, True),
        (UntoldError, UntoldError, True),
    ],
)
def test_exception_that_will_not_say_what_it_is_is_judged_by_its_type(rule, kind, verdict):
    """What `isinstance` raises never comes in place of the call's exception."""
    assert Matcher("on", rule).match(kind()) is verdict


def test_shy_exception_goes_through_every_policy():
    """The caller gets it, or the fallback's answer; each policy counts it."""
    failure, clock = ShyError(), FakeClock()

    def fail() -> None:
        raise failure

    breaker = CircuitBreaker("b", on=(KeyError, ShyError), fail_max=9, clock=clock)
    retry = Retry(on=(KeyError, ShyError), attempts=2, clock=clock, sleep=clock.sleep)
    for policy in (breaker, retry):
        with pytest.raises(ShyError) as caught:
            policy(fail)()
        assert caught.value is failure
    assert breaker.stats().consecutive_failures == 1
    assert retry.stats().retries == 1
    for policy in (Cache("c", ttl=60), Cache("d", ttl=60, negative_ttl=60, on=ShyError)):
        with pytest.raises(ShyError):
            policy(fail)()
    assert Fallback("answer", on=(KeyError, ShyError))(fail)() == "answer"


@pytest.mark.parametrize("several", [tuple, list, set, frozenset, deque])
def test_several_may_come_in_any_collection(several):
    """Tuples, lists, sets: what holds types and predicates."""
    matcher = Matcher("on", several([KeyError, IndexError]))
    assert matcher.match(KeyError())
    assert matcher.match(IndexError())
    assert not matcher.match(OSError())


def test_predicate_that_is_a_collection_too_is_a_predicate():
    """What can be called is called."""

    class Codes(list[int]):
        def __call__(self, exc: Exception) -> bool:
            return exc.args[0] in self

    matcher = Matcher("on", Codes([503]))
    assert matcher.match(OSError(503))
    assert not matcher.match(OSError(404))
