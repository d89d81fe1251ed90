"""Interrupts at any moment of a throttled call: what they leave behind is gone with the window."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import pytest
from tests.stress.signals import Interrupter, interrupting, within_seconds

from resilient import AdaptiveThrottle, ThrottledError
from resilient.testing import FakeClock

SECONDS = float(os.environ.get("RESILIENT_STRESS_SECONDS", "0.4"))
WINDOW = 10.0

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(60.0 + SECONDS, method="thread"),  # its other method needs the signal used here
]


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """Interrupt calls of this test."""
    with interrupting() as made:
        yield made


def test_interrupts_leave_nothing_that_outlives_the_window(interrupter: Interrupter) -> None:
    """Calls that are let through, fail or are refused, while the window moves on: no lock, no count stays."""
    clock, numbers = FakeClock(), itertools.count()
    throttle = AdaptiveThrottle("t", window=WINDOW, min_calls=5, clock=clock)
    throttle.add_listener(lambda _: None)

    @throttle
    def work(number: int) -> int:
        if number % 4:
            raise ConnectionError
        return number

    def call() -> None:
        clock.advance(0.05)
        with contextlib.suppress(ConnectionError, ThrottledError):
            work(next(numbers))

    interrupter.storm(call, seconds=SECONDS)
    assert within_seconds(5.0, throttle.stats).rejected
    clock.advance(WINDOW)
    before = within_seconds(5.0, throttle.stats)
    for _ in range(10):
        call()

    after = throttle.stats()
    assert (before.attempts, before.accepts, before.probability) == (0, 0, 0.0)
    assert after.attempts == 10 == after.calls - before.calls + after.rejected - before.rejected
    assert len(throttle._core._parts) <= 10
