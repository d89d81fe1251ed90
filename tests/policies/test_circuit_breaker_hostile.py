"""A circuit breaker among threads, finalizers, listeners and signal handlers that mean it no good."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pybreaker
import pytest
from tests.policies.circuit_breaker_support import DependencyError, answer, down, fail, in_context, refused

from resilient import CircuitBreaker, CircuitOpenError, events
from resilient.testing import FakeClock, capture_events


def together(*works: Callable[[], object]) -> None:
    """Run *works* at the same time, each in a thread, and raise what any of them raised."""
    start, raised = threading.Barrier(len(works)), []

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def attempt(breaker: CircuitBreaker, fn: Callable[..., object]) -> None:
    """Make a call that may fail or be refused."""
    with contextlib.suppress(DependencyError, CircuitOpenError):
        breaker.call(fn)


def test_no_more_probes_than_places_between_threads():
    """Eight threads, two places, again and again."""
    clock = FakeClock()
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=1, probes=2, success_threshold=10**6, clock=clock)
    running, most = [], []

    def probe() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0)
        running.pop()

    breaker.half_open()
    together(*[lambda: [attempt(breaker, probe) for _ in range(300)]] * 8)

    assert max(most) <= 2
    assert breaker.stats().calls == breaker.success_counter == len(most)
    assert breaker.stats().rejected == 8 * 300 - len(most)
    assert not breaker._core._period.probes


def test_one_opening_asks_for_one_reset_timeout():
    """However many threads come by while the answer is being thought about."""
    asked = []

    def slow_answer(times: int) -> float:
        asked.append(times)
        time.sleep(0.02)
        return 60.0

    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=slow_answer)
    with capture_events() as captured:
        together(*[lambda: attempt(breaker, down)] * 8)

    assert asked == [1]
    assert captured == [events.CircuitOpened("b", "1 failures in a row", 60.0, 1)]


def test_refusing_while_overrides_come_and_go():
    """A refusal describes one moment; it must not trip over the next."""
    breaker = CircuitBreaker("b", fail_max=1)
    stop = threading.Event()

    def meddle() -> None:
        for _ in range(300):
            breaker.force_open(reason="a")
            breaker.resume()
            breaker.open()
        stop.set()

    def call() -> None:
        while not stop.is_set():
            attempt(breaker, answer)

    together(meddle, call, call, call)
    assert breaker.stats().override is None


def test_storage_in_memory_agrees_after_a_storm():
    """Several threads change what is mirrored; in the end both say the same."""
    storage = pybreaker.CircuitMemoryStorage("closed")
    breaker = CircuitBreaker("b", fail_max=10**6, state_storage=storage)
    for _ in range(5):
        together(*[lambda: [attempt(breaker, down) for _ in range(50)]] * 6)
        assert storage.counter == breaker.fail_counter
        breaker.open()
        breaker.close()
        assert (storage.state, storage.counter) == ("closed", 0)


def test_statistics_are_of_one_moment():
    """Calls that failed are never more than calls that were."""
    breaker = CircuitBreaker("b", fail_max=10**6)
    stop = threading.Event()
    odd: list[Any] = []

    def look() -> None:
        while not stop.is_set():
            stats = breaker.stats()
            if stats.failures != stats.calls or stats.consecutive_failures != stats.failures:
                odd.append(stats)

    def call() -> None:
        for _ in range(2_000):
            attempt(breaker, down)
        stop.set()

    together(look, call)
    assert not odd


def test_garbage_collection_frees_places_at_any_moment():
    """Probes in reference cycles die while places are being counted."""
    breaker = CircuitBreaker("b", fail_max=1, probes=50, success_threshold=10**6)
    breaker.half_open()
    admitted, threshold = 0, gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(500):
            block = breaker.calling()
            cycle = [block]
            cycle.append(cycle)
            try:
                in_context(block.__enter__)
                admitted += 1
            except CircuitOpenError:
                gc.collect()  # the oldest cycles are looked at only now and then
            del block, cycle
    finally:
        gc.set_threshold(*threshold)
    gc.collect()

    assert admitted > 50
    assert not breaker._core._period.probes


def test_listener_that_calls_through_the_breaker_is_served():
    """Whatever it hears: no deadlock, no endless recursion."""
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=0)
    heard: list[type] = []

    def probe_at_once(event: events.Event) -> None:
        heard.append(type(event))
        if isinstance(event, events.CircuitOpened):
            assert breaker.call(answer) == "fresh"

    breaker.add_listener(probe_at_once)
    fail(breaker)

    assert heard == [events.CircuitOpened, events.CircuitHalfOpened, events.CircuitClosed]


def test_pybreaker_listener_that_acts_on_the_breaker_is_served():
    """Also from within the report of a single call."""

    class Reopens(pybreaker.CircuitBreakerListener):
        def success(self, cb: Any) -> None:
            cb.open()

    breaker = CircuitBreaker("b", listeners=[Reopens()])
    assert breaker.call(answer) == "fresh"
    refused(breaker)


def test_predicates_may_use_the_breaker():
    """They run without the lock."""
    seen = []
    breaker = CircuitBreaker("b", fail_max=1, on=lambda exc: seen.append(breaker.stats().failures) or True)
    worker = threading.Thread(target=lambda: attempt(breaker, down))
    worker.start()
    worker.join(5)

    assert not worker.is_alive()
    assert seen == [0]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_signal_handler_may_call_through_the_breaker():
    """Even when it comes while the same thread is inside it: the lock is re-entrant."""
    breaker = CircuitBreaker("b", fail_max=10**6)
    handled = []

    def handler(number: int, frame: object) -> None:
        attempt(breaker, down)
        breaker.stats()
        handled.append(number)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        give_up_at = time.monotonic() + 5
        calls = 0
        while len(handled) < 50 and time.monotonic() < give_up_at:
            attempt(breaker, down)
            calls += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert breaker.stats().failures == calls + len(handled)


def test_interrupted_probe_gives_its_place_back():
    """An interrupt between the admission and the call's `try` loses nothing."""
    breaker = CircuitBreaker("b", fail_max=1)
    breaker.half_open()

    class Interrupts(pybreaker.CircuitBreakerListener):
        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    listener = Interrupts()
    breaker.add_listener(listener)
    with pytest.raises(KeyboardInterrupt):
        breaker.call(answer)
    breaker.remove_listener(listener)

    assert breaker.call(answer) == "fresh"
    assert breaker.current_state == "closed"


def test_breaker_that_nobody_uses_is_collected():
    """With listeners, a storage and a fallback: nothing global holds it."""
    breaker = CircuitBreaker(
        "b",
        fail_max=1,
        fallback="stale",
        listeners=[pybreaker.CircuitBreakerListener(), lambda event: None],
        state_storage=pybreaker.CircuitMemoryStorage("closed"),
    )
    breaker(answer)()
    breaker.call(down)
    gone = weakref.ref(breaker)
    del breaker
    gc.collect()

    assert gone() is None
