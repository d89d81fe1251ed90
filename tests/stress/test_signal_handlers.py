"""A signal handler may use the very policies that it interrupted: no lock is waited for by its own thread."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from resilient import (
    Cache,
    CircuitBreaker,
    Fallback,
    Pipeline,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
    deadline,
)
from resilient.events import Event
from resilient.testing import FakeClock

SECONDS = 0.5
EVERY = 50e-6  # seconds

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(30, method="thread"),  # its other method needs the signal used here
]


@pytest.fixture
def work() -> Callable[[str], object]:
    """A call through all policies that goes the long way: failing, retried, announced, answered for."""
    clock = FakeClock()
    pipeline = Pipeline(
        Fallback("instead"),
        Cache("c", ttl=1.0, stale_if_error=1.0, clock=clock),
        deadline(30.0),
        Retry(on=OSError, attempts=2, budget=RetryBudget(clock=clock), sleep=clock.sleep, clock=clock),
        CircuitBreaker("b", fail_max=3, reset_timeout=1.0, clock=clock),
        RateLimiter("5/second", key=lambda key: key, max_keys=1, clock=clock),
        Timeout(10.0),
    )
    pipeline.add_listener(_listen)

    @pipeline
    def fail(_key: str) -> object:
        raise ConnectionError

    def call(key: str) -> object:
        clock.advance(0.5)
        assert pipeline.stats()
        return fail(key)

    return call


def _listen(_event: Event) -> None: ...


@pytest.fixture
def interrupting(work: Callable[[str], object]) -> Iterator[list[object]]:
    """Have *work* called by a signal handler, over and over; the answers."""
    answers: list[object] = []

    def handle(_number: int, _frame: FrameType | None) -> None:
        answers.append(work("handler"))  # a load of its own: that of the interrupted call waits for it
        signal.setitimer(signal.ITIMER_REAL, EVERY)

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, EVERY)
    yield answers
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, previous)


def test_handler_that_calls_what_it_interrupted_does_not_hang(
    work: Callable[[str], object], interrupting: list[object]
) -> None:
    """In the middle of a call through all policies, the handler makes the same call."""
    until, calls = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        assert work("call") == "instead"
        calls += 1

    signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert calls > 10
    assert len(interrupting) > 10
    assert set(interrupting) == {"instead"}
