"""Frames per call, counted: they are most of what a call in pure Python costs, and do not wobble like times.

The wrapper's and the guarded function's own frames are counted in. A coroutine that waits is entered once
more for each time it is resumed; these here answer at once. `asyncio.current_task` is a frame on Python 3.11
and none from 3.12 on, where it is written in C: it is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    Calls,
    CircuitBreaker,
    Fallback,
    Gradient,
    Pipeline,
    RateLimiter,
    Retry,
    Timeout,
    deadline,
)
from resilient.engine.policy import Policy
from resilient.testing import FakeClock

PLENTY = "1000000/second"

WARM_UP_CALLS = 50
"""Calls before one is counted: what is made at the first is made then, and a throttle has seen enough."""

POLICIES: dict[str, Callable[[], Policy]] = {
    "breaker": lambda: CircuitBreaker("b"),
    "breaker, slow_after": lambda: CircuitBreaker("b", slow_after=5.0),
    "breaker, last calls": lambda: CircuitBreaker("b", window=Calls(100)),
    "breaker, fail_max": lambda: CircuitBreaker("b", fail_max=5),
    "retry": lambda: Retry(on=OSError),
    "fallback": lambda: Fallback("instead"),
    "timeout": lambda: Timeout(5.0),
    "deadline": lambda: deadline(5.0),
    "cache": lambda: Cache("c", ttl=60.0),
    "limiter": lambda: RateLimiter(PLENTY),
    "limiter, fixed window": lambda: RateLimiter(PLENTY, strategy="fixed-window"),
    "limiter, patient": lambda: RateLimiter(PLENTY, max_wait=5.0),
    "bulkhead": lambda: Bulkhead("b", 10),
    "bulkhead, patient": lambda: Bulkhead("b", 10, max_wait=5.0),
    "bulkhead, by key": lambda: Bulkhead("b", 10, key=lambda: "k"),
    "bulkhead, Gradient": lambda: Bulkhead("b", Gradient(window=60.0)),
    "throttle": lambda: AdaptiveThrottle("t"),
    "four": lambda: Pipeline(Fallback("instead"), Retry(on=OSError), CircuitBreaker("b"), Timeout(5.0)),
    "four, bulkhead": lambda: Pipeline(
        Retry(on=OSError), CircuitBreaker("b"), Bulkhead("b", 10), Timeout(5.0)
    ),
}

# What a call enters, its own frame and the guarded function's included.
FUNCTION = {
    "breaker": 4,
    "breaker, slow_after": 4,
    "breaker, last calls": 4,
    "breaker, fail_max": 4,
    "retry": 2,
    "fallback": 2,
    "timeout": 5,
    "deadline": 5,
    "cache": 1,
    "limiter": 5,
    "limiter, fixed window": 17,
    "limiter, patient": 18,
    "bulkhead": 2,
    "bulkhead, patient": 2,
    "bulkhead, by key": 24,
    "bulkhead, Gradient": 20,
    "throttle": 4,
    "four": 10,
    "four, bulkhead": 10,
}
_CURRENT_TASK = getattr(asyncio.current_task, "__code__", None)

COROUTINE = FUNCTION | {
    "timeout": 4,
    "deadline": 4,
    "four": 9,
    "four, bulkhead": 9,
    "limiter": 6,
    "limiter, fixed window": 18,
    "limiter, patient": 19,
}


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Collect the name of every Python function entered inside the block."""
    entered: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is not _CURRENT_TASK:
            entered.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}")

    former = sys.getprofile()  # coverage may be there
    sys.setprofile(profile)
    try:
        yield entered
    finally:
        sys.setprofile(former)
    entered[:] = [
        name for name in entered if not name.startswith(("test_frames.py:counted", "contextlib.py"))
    ]


def answer() -> str:
    return "answer"


async def aanswer() -> str:
    return "answer"


@pytest.mark.parametrize("name", FUNCTION)
def test_a_function(name):
    """A call that succeeds enters exactly this many frames."""
    guarded = POLICIES[name]()(answer)
    for _ in range(WARM_UP_CALLS):
        guarded()
    with counted() as entered:
        guarded()
    assert len(entered) == FUNCTION[name], entered


@pytest.mark.parametrize("name", COROUTINE)
async def test_a_coroutine_function(name):
    """A call that is answered without waiting enters exactly this many frames."""
    guarded = POLICIES[name]()(aanswer)
    for _ in range(WARM_UP_CALLS):
        await guarded()
    with counted() as entered:
        await guarded()
    assert len(entered) == COROUTINE[name], entered


@pytest.mark.parametrize("keys", [1, 1_000])
def test_a_decision(keys):
    """A permit of a token bucket, and its denial, cost one frame each, of one key or many; the denial two."""
    limiter = RateLimiter("2/hour")
    for key in range(keys):
        limiter.hit(str(key))
    for expected in (1, 2):
        for key in range(keys):
            with counted() as entered:
                limiter.hit(str(key))
            assert len(entered) == expected, entered


def test_a_window_moves_on_at_a_bounded_price():
    """After a pause the window moves on, once, in a bounded number of frames however long it was."""
    clock = FakeClock()
    guarded = CircuitBreaker("b", window=30.0, clock=clock)(answer)

    def after(pause: float) -> int:
        guarded()
        clock.advance(pause)
        with counted() as entered:
            guarded()
        return len(entered)

    steady = FUNCTION["breaker"] + 2  # the fake clock is a Python function, asked before and after
    assert after(0.0) == steady
    assert steady < after(3.0) <= after(1e9) == after(1e6) < 100


def test_counting_counts():
    """The measure itself: a function that calls another is two."""

    def outer() -> str:
        return answer()

    with counted() as entered:
        outer()
    assert entered == ["test_frames.py:outer", "test_frames.py:answer"]
