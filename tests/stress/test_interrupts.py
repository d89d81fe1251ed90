"""Interrupts at any moment: real signals, raised between any two bytecodes of a guarded call.

A timer of 1 to 120 microseconds runs out somewhere in the call, and its handler raises, as Ctrl-C and a
worker's `SoftTimeLimitExceeded` do. Whatever the call held must come back, and the interrupt must come out:
one that a finalizer swallows is a warning, and so a failure.

Only in threads' code: asyncio itself does not survive an exception between two of its bytecodes, and turns
Ctrl-C into a cancellation.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

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
    time_left,
)
from resilient.events import CircuitOpened, Event
from resilient.testing import FakeClock

SECONDS = float(os.environ.get("RESILIENT_STRESS_SECONDS", "0.4"))
LONGEST = 120e-6  # seconds

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(60.0 + SECONDS, method="thread"),  # its other method needs the signal used here
]


class Interrupted(BaseException):
    """What the signal handler raises."""


class Interrupter:
    """Interrupts calls again and again, for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._random = random.Random(2)
        self._armed = False
        self.interrupts = 0

    def storm(self, call: Callable[[], object]) -> None:
        """Run *call* over and over, most times interrupted once at a random moment."""
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            try:
                self._armed = True
                signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, LONGEST))
                call()
                self._armed = False
            except Interrupted:
                self.interrupts += 1
            finally:
                self._armed = False
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Raise, but for a signal that comes after the call."""
        if self._armed:
            self._armed = False
            raise Interrupted


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """A handler in place of SIGALRM's, and a count of how often it struck."""
    made = Interrupter(SECONDS)
    previous = signal.signal(signal.SIGALRM, made.handle)
    gc.disable()  # Hypothesis listens to the collector in Python, and an interrupt would strike there
    yield made
    gc.enable()
    signal.signal(signal.SIGALRM, previous)
    assert made.interrupts > 100, "too few interrupts to mean anything"


def fail() -> None:
    """Fail as a dependency does."""
    raise ConnectionError


def test_half_open_breaker_gives_all_its_places_back(interrupter: Interrupter) -> None:
    """Interrupted probes: afterwards as many probes as configured may run at once, no fewer and no more."""
    clock = FakeClock()
    breaker = CircuitBreaker("b", probes=3, reset_timeout=1.0, success_threshold=10**9, clock=clock)
    breaker.open()
    clock.advance(1.0)

    interrupter.storm(lambda: breaker.call(int))

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

    interrupter.storm(storm)
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

    interrupter.storm(miss)

    clock.advance(2.0)
    assert _within_seconds(5.0, lambda: answers("key")) == ["key"]
    assert not cache._core._flights


def test_deadline_does_not_outlive_its_call(interrupter: Interrupter) -> None:
    """Interrupted on its way in or out, a call leaves no deadline to the thread it ran in."""
    guarded = Pipeline(deadline(30.0), Retry(on=OSError, timeout=20.0), Timeout(10.0))(lambda: None)

    interrupter.storm(guarded)

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

    interrupter.storm(decide)

    assert not allowed
    assert limiter.stats().keys <= 20
    assert not any(_within_seconds(5.0, lambda: [limiter.hit(abuser).allowed for abuser in abusers]))


def test_interrupted_wait_for_a_turn_takes_no_turn(interrupter: Interrupter) -> None:
    """Each wait that is cut short gives its permits back, but for those cut off on the way out or in."""
    limiter = RateLimiter("1/second", max_wait=86_400, clock=FakeClock(), sleep=_sleep_for_long)
    limiter.hit()

    interrupter.storm(limiter.acquire)

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

    interrupter.storm(lambda: limit.call(int))

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

    interrupter.storm(work)

    assert _within_seconds(5.0, work) == "instead"
    assert _within_seconds(5.0, pipeline.stats)


def _within_seconds(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what *call* returns in another thread; fail if it does not end."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert answers, "the call hangs or failed"
    return answers[0]
