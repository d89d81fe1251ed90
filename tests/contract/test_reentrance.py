"""Calls inside calls of the same policy, and results that come after the state has changed."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.forms import ASYNC_GENERATOR, COROUTINE, GENERATOR, Driver, Form
from tests.contract.policies import BREAKERS, Mode, UpstreamError, each_case, left_behind

from resilient import CircuitBreaker
from resilient.testing import FakeClock


@each_case("plain", "generator")
def test_call_inside_a_call_of_the_same_policy_works(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """Recursion through a guarded function neither deadlocks nor leaves anything behind."""
    policy = mode.make(clock)

    def body(depth: int) -> list[int]:
        return [depth, *(drive(form, guarded, depth - 1) if depth else [])]

    guarded = form.guard(policy, body)

    assert drive(form, guarded, 1) == [1, 0]
    assert not left_behind(policy)


@each_case(COROUTINE)
def test_asynchronous_call_inside_a_call_of_the_same_policy_works(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """The same for coroutines: the inner call is awaited within the outer one."""
    policy = mode.make(clock)

    async def climb(depth: int) -> list[int]:
        return [depth, *(await guarded(depth - 1) if depth else [])]

    guarded = policy(climb)

    assert drive.wait_for(guarded(3)) == [3, 2, 1, 0]
    assert not left_behind(policy)


@each_case("plain", COROUTINE, modes=BREAKERS)
def test_call_made_from_within_a_probe_rides_along(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """The probe that the inner call would have to wait for is the one that makes it."""
    breaker = mode.make(clock)
    assert isinstance(breaker, CircuitBreaker)

    def body(depth: int) -> str:
        return breaker.call(body, depth - 1) if depth else "inside"

    guarded = form.guard(breaker, body)
    half_open(breaker, clock)

    assert drive(form, guarded, 2) == "inside"
    assert breaker.current_state == "closed"
    assert not left_behind(breaker)


# A change of state while a call is under way.
CHANGES: dict[str, Callable[[CircuitBreaker], None]] = {
    "opened": lambda breaker: breaker.force_open(),
    "opened-and-half-open": lambda breaker: (breaker.force_open(), breaker.resume()),  # type: ignore[func-returns-value]
    "opened-and-closed": lambda breaker: (breaker.open(), breaker.close()),  # type: ignore[func-returns-value]
}


@each_case(modes=BREAKERS)
@pytest.mark.parametrize(("change", "fails"), [*itertools.product(CHANGES, [False, True])])
def test_result_that_comes_after_a_change_of_state_moves_nothing(
    mode: Mode, form: Form, change: str, fails: bool, clock: FakeClock
) -> None:
    """Neither a late success nor a late failure closes, opens or counts in a later period."""
    breaker = mode.make(clock)
    assert isinstance(breaker, CircuitBreaker)

    def body(_value: object) -> str:
        CHANGES[change](breaker)
        states.append(breaker.current_state)
        if fails:
            raise UpstreamError
        return "late"

    states: list[str] = []
    with contextlib.closing(Driver()) as drive, contextlib.suppress(UpstreamError):
        assert drive(form, form.guard(breaker, body), "argument") == "late"

    stats = breaker.stats()
    assert [stats.state] == states
    assert (stats.stale, stats.calls, stats.failures, stats.window_calls) == (1, 0, 0, 0)


# With `slow_after`, a hanging probe is slow and opens the circuit again.
PATIENT = tuple(mode for mode in BREAKERS if mode.name != "breaker-slow-after")


@each_case(COROUTINE, GENERATOR, ASYNC_GENERATOR, modes=PATIENT)
def test_probe_that_outlived_its_time_loses_its_place_and_its_say(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """A probe that hangs does not wedge half-open, and its late result counts for nothing."""
    breaker = mode.make(clock)
    assert isinstance(breaker, CircuitBreaker)

    def hang(_value: object) -> Any:
        clock.advance(1000.0)
        elsewhere = contextvars.Context()  # a call from here would be a part of this probe
        assert elsewhere.run(breaker.call, str, "next probe") == "next probe"
        raise UpstreamError

    half_open(breaker, clock)
    with pytest.raises(UpstreamError):
        drive(form, form.guard(breaker, hang), "argument")

    assert breaker.current_state == "closed"
    assert not left_behind(breaker)


def half_open(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Bring *breaker* to where its next call is a probe."""
    breaker.open()
    clock.advance(30.0)
