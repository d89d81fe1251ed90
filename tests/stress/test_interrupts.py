"""Interrupts at any moment: real signals, raised between any two bytecodes of a guarded call.

Whatever the call held must come back, and the interrupt must come out: one that a finalizer swallows is a
warning, and so a failure.

Only in threads' code: asyncio itself does not survive an exception between two of its bytecodes, and turns
Ctrl-C into a cancellation.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.stress.signals import Interrupter, within_seconds

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
    time_left,
)
from resilient.events import CircuitOpened, Event
from resilient.testing import FakeClock

SECONDS = float(os.environ.get("RESILIENT_STRESS_SECONDS", "0.4"))

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(60.0 + SECONDS, method="thread"),  # its other method needs the signal used here
]


def fail() -> None:
    """Fail as a dependency does."""
    raise ConnectionError


def test_half_open_breaker_gives_all_its_places_back(interrupter: Interrupter) -> None:
    """Interrupted probes: afterwards as many probes as configured may run at once, no fewer and no more."""
    clock = FakeClock()
    breaker = CircuitBreaker("b", probes=3, reset_timeout=1.0, success_threshold=10**9, clock=clock)
    breaker.open()
    clock.advance(1.0)

    interrupter.storm(lambda: breaker.call(int), seconds=SECONDS)

    assert breaker.current_state == "half-open"
    assert len(breaker._core._period.probes) == 0
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(_apart(breaker))
        assert _is_rejected(breaker)


@contextlib.contextmanager
def _apart(breaker: CircuitBreaker) -> Iterator[None]:
    """Hold a probe from a thread of its own: from this one, the next would ride along."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with breaker.calling():
            inside.set()
            done.wait(10.0)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10.0)
    yield
    done.set()
    thread.join()


def _is_rejected(breaker: CircuitBreaker) -> bool:
    rejected = breaker.stats().rejected
    with contextlib.suppress(Exception):
        breaker.call(int)
    return breaker.stats().rejected == rejected + 1


def test_breaker_goes_on_opening_and_closing(interrupter: Interrupter) -> None:
    """Interrupted transitions: it still opens on failures, refuses, and recovers."""
    clock = FakeClock()
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=1.0, clock=clock)
    heard: list[Event] = []
    breaker.add_listener(heard.append)

    def cycle() -> None:
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)
        clock.advance(1.0)
        breaker.call(int)

    def storm() -> None:
        with contextlib.suppress(Exception):
            cycle()

    interrupter.storm(storm, seconds=SECONDS)
    clock.advance(1000.0)
    breaker.close()
    heard.clear()

    with pytest.raises(ConnectionError):
        breaker.call(fail)
    assert breaker.current_state == "open"
    assert _is_rejected(breaker)
    assert [type(event) for event in heard[-1:]] == [CircuitOpened]  # listeners are not cut off for good
    clock.advance(1.0)
    breaker.call(int)
    assert breaker.current_state == "closed"


def test_cache_loads_again_after_interrupted_loads(interrupter: Interrupter) -> None:
    """No key is left with a load that nobody makes."""
    clock = FakeClock()
    cache = Cache("c", ttl=1.0, stale_while_revalidate=0.0, load_timeout=5.0, clock=clock)
    answers = cache(lambda key: [key])

    def miss() -> None:
        clock.advance(2.0)
        answers("key")

    interrupter.storm(miss, seconds=SECONDS)

    clock.advance(2.0)
    assert within_seconds(5.0, lambda: answers("key")) == ["key"]
    assert not cache._core._flights


def test_deadline_does_not_outlive_its_call(interrupter: Interrupter) -> None:
    """Interrupted on its way in or out, a call leaves no deadline to the thread it ran in."""
    guarded = Pipeline(deadline(30.0), Retry(on=OSError, timeout=20.0), Timeout(10.0))(lambda: None)

    interrupter.storm(guarded, seconds=SECONDS)

    assert time_left() is None


@pytest.mark.parametrize(
    "strategy", ["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]
)
def test_limiter_lets_in_no_more_than_its_limit(interrupter: Interrupter, strategy: Any) -> None:
    """Interrupted decisions, with too little room: who is over the limit stays so, and others get answers."""
    limiter = RateLimiter("50/hour", strategy=strategy, max_keys=20, clock=FakeClock())
    abusers = [f"abuser {number}" for number in range(10)]
    assert all(limiter.hit(abuser, cost=50) for abuser in abusers)
    numbers, allowed = itertools.count(), []

    def decide() -> None:
        number = next(numbers)
        limiter.hit(f"new {number}")
        if limiter.hit(abusers[number % 10]):
            allowed.append(number)

    interrupter.storm(decide, seconds=SECONDS)

    assert not allowed
    assert limiter.stats().keys <= 20
    assert not any(within_seconds(5.0, lambda: [limiter.hit(abuser).allowed for abuser in abusers]))


def test_interrupted_wait_for_a_turn_takes_no_turn(interrupter: Interrupter) -> None:
    """Each wait that is cut short gives its permits back, but for those cut off on the way out or in."""
    limiter = RateLimiter("1/second", max_wait=86_400, clock=FakeClock(), sleep=_sleep_for_long)
    limiter.hit()

    interrupter.storm(limiter.acquire, seconds=SECONDS)

    # A signal may come before the wait begins: in that moment nobody could give anything back.
    assert limiter.peek().reset_after < interrupter.interrupts / 2


def _sleep_for_long(_seconds: float) -> None:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pass


def test_threads_of_a_timeout_do_not_get_fewer(interrupter: Interrupter) -> None:
    """Interrupted callers leave; the threads they would have used go on serving.

    Both are there beforehand: Python's own `Thread.start` does not survive an interrupt.
    """
    limit = Timeout(5.0, threads=2)
    _call_twice_at_once(limit)

    interrupter.storm(lambda: limit.call(int), seconds=SECONDS)

    _call_twice_at_once(limit)
    assert limit.stats().abandoned == 0


def _call_twice_at_once(limit: Timeout) -> None:
    meeting = threading.Barrier(2)
    callers = [threading.Thread(target=limit.call, args=(meeting.wait, 5.0)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not meeting.broken


def test_no_lock_is_left_held(interrupter: Interrupter) -> None:
    """After a storm through all policies, another thread gets through all of them too."""
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    pipeline = Pipeline(
        Fallback("instead"),
        Cache("c", ttl=1.0, stale_if_error=1.0, clock=clock),
        deadline(30.0),
        Retry(on=OSError, attempts=2, budget=budget, sleep=clock.sleep, clock=clock),
        CircuitBreaker("b", reset_timeout=1.0, clock=clock),
        RateLimiter("100/second", clock=clock),
        Timeout(10.0),
    )
    pipeline.add_listener(lambda _: None)

    @pipeline
    def work() -> Any:
        return fail()

    interrupter.storm(work, seconds=SECONDS)

    assert within_seconds(5.0, work) == "instead"
    assert within_seconds(5.0, pipeline.stats)
