"""What becomes of a call: its own exception, an abandoned call, a refusal. Every policy, every form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest
from tests.contract.forms import COROUTINE, PLAIN, Driver, Form
from tests.contract.policies import (
    BREAKERS,
    FULL_BULKHEADS,
    LIMITERS,
    Mode,
    UnrelatedError,
    UpstreamError,
    breakers_in,
    each_case,
    evidence,
    left_behind,
    open_circuits,
)

from resilient import Bulkhead, Cache, RateLimiter
from resilient.errors import BulkheadFullError, CircuitOpenError, RateLimitedError, RejectedError
from resilient.testing import FakeClock

INTERRUPTS = (KeyboardInterrupt, SystemExit)
ABANDONMENTS = (*INTERRUPTS, GeneratorExit, asyncio.CancelledError)


class Raising:
    """A body that raises a new exception at each call, and remembers them."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self._make = make
        self.raised: list[BaseException] = []

    def __call__(self, _value: object) -> Any:
        exc = self._make()
        self.raised.append(exc)
        raise exc


@each_case()
def test_exception_of_the_call_is_raised_as_it_is(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """The very object that left the last attempt arrives, its traceback leading into the call."""
    for error in (UpstreamError, UnrelatedError):
        policy, body = mode.make(clock), Raising(error)
        guarded = form.guard(policy, body)

        with pytest.raises(error) as caught:
            drive(form, guarded, "argument")

        assert caught.value is body.raised[-1]
        assert caught.traceback[-1].name == "__call__"
        # Streams are retried until they have yielded, and these have.
        attempts = mode.attempts if error is UpstreamError and form.kind in {PLAIN, COROUTINE} else 1
        assert len(body.raised) == attempts
        assert not left_behind(policy)


@each_case()
def test_abandoned_call_is_no_evidence_and_keeps_its_exception(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """Cancelled, closed, interrupted: never retried, replaced, answered for, or counted for or against."""
    for kind in ABANDONMENTS:
        if kind in INTERRUPTS and mode.loads_in_tasks and form.kind == COROUTINE:
            continue  # an interrupt in a task of its own ends the whole loop: see the next test
        policy, body = mode.make(clock), Raising(kind)
        guarded = form.guard(policy, body)

        with pytest.raises(kind) as caught:
            drive(form, guarded, "argument")

        assert caught.value is body.raised[0]
        assert len(body.raised) == 1
        assert {what for what, count in evidence(policy).items() if count} <= {"Retry calls", "Timeout calls"}
        assert all(breaker.stats().abandoned == 1 for breaker in breakers_in(policy))
        assert not left_behind(policy)


@pytest.mark.parametrize("kind", INTERRUPTS)
def test_interrupt_in_a_shared_load_ends_the_loop_and_leaves_nothing(
    kind: type[BaseException], clock: FakeClock
) -> None:
    """asyncio hands interrupts straight to whoever runs the loop; the cache loads again afterwards."""
    cache, body = Cache("c", ttl=60.0, clock=clock), Raising(kind)

    async def load(_exc: object) -> Any:
        return body(None)

    with pytest.raises(kind) as caught:
        asyncio.run(cache(load)("argument"))

    assert caught.value is body.raised[0]
    assert not left_behind(cache)
    assert asyncio.run(cache.aget("argument", AsyncMock(return_value="loaded"))) == "loaded"


@each_case()
def test_refusal_from_further_inside_is_neither_counted_nor_retried(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """Our own refusals are not evidence: a breaker ignores them, a retry does not repeat them."""
    policy = mode.make(clock)
    body = Raising(lambda: RejectedError("no", policy="elsewhere", retry_after=1.0))
    guarded = form.guard(policy, body)

    with pytest.raises(RejectedError) as caught:
        drive(form, guarded, "argument")

    assert caught.value is body.raised[0]
    assert len(body.raised) == 1
    assert all(breaker.stats().calls == 0 for breaker in breakers_in(policy))
    assert not left_behind(policy)


@each_case(modes=BREAKERS)
def test_rejected_call_does_not_reach_the_function(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """An open breaker raises a new CircuitOpenError each time, at the first step of a stream."""
    breaker, body = mode.make(clock), Raising(UpstreamError)
    guarded = form.guard(breaker, body)
    open_circuits(breaker)

    errors = [_refusal(CircuitOpenError, drive, form, guarded) for _ in range(2)]

    assert not body.raised
    assert errors[0] is not errors[1]


@each_case(modes=LIMITERS)
def test_call_over_the_limit_does_not_reach_the_function(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """A limit that is used up raises a new RateLimitedError each time, at the first step of a stream."""
    limiter, body = mode.make(clock), Raising(UpstreamError)
    assert isinstance(limiter, RateLimiter)
    guarded = form.guard(limiter, body)
    limiter.settle(limiter.acquire(), 10**9)

    errors = [_refusal(RateLimitedError, drive, form, guarded) for _ in range(2)]

    assert not body.raised
    assert errors[0] is not errors[1]


@each_case(modes=FULL_BULKHEADS)
def test_call_without_a_slot_does_not_reach_the_function(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """A full bulkhead raises a new BulkheadFullError each time, at the first step of a stream."""
    bulkhead, body = mode.make(clock), Raising(UpstreamError)
    assert isinstance(bulkhead, Bulkhead)
    guarded = form.guard(bulkhead, body)
    key = "tenant" if mode.name == "bulkhead-keyed" else None

    with contextlib.ExitStack() as held:
        with contextlib.suppress(BulkheadFullError):
            while True:
                held.enter_context(bulkhead.calling(key=key))
        errors = [_refusal(BulkheadFullError, drive, form, guarded) for _ in range(2)]

    assert not body.raised
    assert errors[0] is not errors[1]
    assert not left_behind(bulkhead)


def _refusal(kind: type[RejectedError], drive: Driver, form: Form, guarded: Any) -> RejectedError:
    with pytest.raises(kind) as caught:
        drive(form, guarded, "argument")
    return caught.value
