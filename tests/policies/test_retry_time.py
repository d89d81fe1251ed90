"""Retry within time limits, and cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tenacity
from tests.policies.retry_support import Flaky, make

from resilient import (
    CallTimeoutError,
    DeadlineExceededError,
    Retry,
    RetryBudget,
    Timeout,
    deadline,
    time_left,
)
from resilient.events import CallTimedOut
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


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
