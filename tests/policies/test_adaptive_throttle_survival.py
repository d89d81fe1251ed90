"""Adaptive throttling: what it tells, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from tests.policies.adaptive_throttle_support import DependencyError, Dice, call, call_on, maker
from tests.stress.crowd import CALLS, Crowd

from resilient import AdaptiveThrottle
from resilient.errors import RateLimitedError, ThrottledError
from resilient.events import ThrottlingStarted, ThrottlingStopped
from resilient.testing import FakeClock, capture_events, describe

WINDOW = 120.0


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


@pytest.fixture
def dice() -> Dice:
    """Dice that refuse whatever may be refused, until told."""
    return Dice()


@pytest.fixture
def make(clock: FakeClock, dice: Dice) -> Callable[..., AdaptiveThrottle]:
    """Make a throttle whose time and chance are known."""
    return maker(clock, dice)


# What it tells.


def test_tells_when_it_begins_and_ends_to_refuse(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """One event for the first refusal, one for a whole tenth of the window without any."""
    throttle = make(window=10.0)
    with capture_events() as events:
        call_on(throttle, 4, DependencyError())
        call_on(throttle, 3)
        assert [*events] == [ThrottlingStarted("search", 0.5, 1, 0)]

        clock.advance(10.0)
        call(throttle)  # nothing is left in the window, but the tenth after the refusals is over as well
        call_on(throttle, 100)
        clock.advance(10.0)
        call(throttle)

    assert [*events] == [ThrottlingStarted("search", 0.5, 1, 0), ThrottlingStopped("search", 6)]


def test_probability_that_hovers_around_0_is_one_spell(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock, dice: Dice
) -> None:
    """An event for each time that it touches 0 would be one for every few calls."""
    throttle = make(window=10.0)
    with capture_events() as events:
        for _ in range(200):
            call(throttle, DependencyError())
            call(throttle)
            clock.advance(0.2)
        assert throttle.stats().rejected > 10
        assert len(events) == 1

        dice.number = 1.0
        for _ in range(60):
            call(throttle)
            clock.advance(0.2)

    assert [type(event) for event in events] == [ThrottlingStarted, ThrottlingStopped]
    assert events.of(ThrottlingStopped)[0].rejected == throttle.stats().rejected


def test_stops_after_a_whole_tenth_without_a_refusal(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """Not with the next tenth: the refusal may have been at the very end of the one before."""
    throttle = make(window=10.0, min_calls=2)
    answered = [throttle.calling() for _ in range(4)]
    for block in answered:
        block.__enter__()
    with capture_events() as events:
        call_on(throttle, 3, DependencyError())
        for block in answered:
            block.__exit__(None, None, None)
        assert throttle.stats().probability == 0.0

        told = []
        for _ in range(3):
            told.append(len(events))
            clock.advance(1.0)
            call(throttle)

    assert told == [1, 1, 2]


def test_stop_is_told_by_whoever_finds_it(make: Callable[..., AdaptiveThrottle], clock: FakeClock) -> None:
    """Without calls, reading the statistics does."""
    throttle = make(window=10.0)
    call_on(throttle, 5, DependencyError())
    told: list[object] = []
    throttle.add_listener(told.append)

    clock.advance(20.0)
    assert told == []
    throttle.stats()

    assert told == [ThrottlingStopped("search", 4)]


def test_repr_tells_what_it_does(make: Callable[..., AdaptiveThrottle]) -> None:
    """The name, the share it refuses, and why."""
    throttle = make()
    assert repr(throttle) == (
        "<AdaptiveThrottle 'search' refuses nothing, 0 of 0 attempts accepted, 0 rejected>"
    )

    call(throttle)
    call_on(throttle, 9, DependencyError())

    assert repr(throttle) == (
        "<AdaptiveThrottle 'search' refuses 73% of calls, 1 of 10 attempts accepted, 7 rejected>"
    )


def test_settings_can_be_described(make: Callable[..., AdaptiveThrottle]) -> None:
    """For users' tests of how something is put together."""
    assert describe(make(k=1.5)) == [
        {
            "kind": "AdaptiveThrottle",
            "name": "search",
            "k": 1.5,
            "window": 120.0,
            "max_rejection": 0.9,
            "min_calls": 1,
        }
    ]


def test_refusal_travels_between_processes(make: Callable[..., AdaptiveThrottle]) -> None:
    """With all it carries; and each is a new one."""
    throttle, errors = make(), []
    call(throttle, DependencyError())
    for _ in range(2):
        with pytest.raises(ThrottledError) as caught:
            throttle.call(int)
        errors.append(caught.value)

    copy = pickle.loads(pickle.dumps(errors[0]))

    assert errors[0] is not errors[1]
    assert type(copy) is ThrottledError
    assert (str(copy), copy.policy, copy.retry_after) == (str(errors[0]), "search", None)
    assert copy.probability == errors[0].probability == 0.5


# What it survives.


def test_counts_are_exact_with_many_threads_and_loops() -> None:
    """Ten thousand calls from eight threads and two loops: every one of them is in every sum."""
    outcomes: list[BaseException | None] = [None, DependencyError(), RateLimitedError(), GeneratorExit()]
    expected = contextlib.suppress(DependencyError, RateLimitedError, GeneratorExit)
    throttle = AdaptiveThrottle("t", min_calls=CALLS, clock=FakeClock())

    async def aact(number: int) -> None:
        await asyncio.sleep(0)
        act(number)

    def act(number: int) -> None:
        if (exc := outcomes[number % 4]) is not None:
            raise exc

    def quietly(number: int) -> None:
        with expected:
            throttle.call(act, number)

    async def aquietly(number: int) -> None:
        with expected:
            await throttle.acall(aact, number)

    Crowd(quietly, aquietly).run()

    stats, each = throttle.stats(), CALLS // 4
    assert (stats.attempts, stats.accepts, stats.calls) == (2 * each, each, 2 * each)
    assert (stats.failures, stats.ignored, stats.abandoned, stats.rejected) == (each, each, each, 0)


def test_every_call_is_let_through_or_refused_with_many_threads(dice: Dice) -> None:
    """While all of them race for what chance refuses, no call is counted twice or not at all."""
    throttle = AdaptiveThrottle("t", min_calls=1, clock=FakeClock(), random=dice)
    seen: Counter[bool] = Counter()
    lock = threading.Lock()

    def make_call(number: int) -> None:
        let_through = call(throttle, DependencyError() if number % 3 else None)
        with lock:
            seen[let_through] += 1

    async def amake_call(number: int) -> None:
        await asyncio.sleep(0)
        make_call(number)

    Crowd(make_call, amake_call).run()

    stats = throttle.stats()
    assert (stats.calls, stats.rejected) == (seen[True], seen[False])
    assert stats.attempts == CALLS
    assert sum(part.under_way for part in throttle._core._parts) == 0


def test_signal_handler_may_use_it_at_its_most_delicate_moments(clock: FakeClock) -> None:
    """Calls from within the clock and the dice: in the midst of moving the window on, and of refusing."""
    depth = 0

    def interrupted(answer: Callable[[], float]) -> Callable[[], float]:
        def ask() -> float:
            nonlocal depth
            if depth < 2:
                depth += 1
                call(throttle, DependencyError())
                throttle.stats()
                depth -= 1
            return answer()

        return ask

    throttle = AdaptiveThrottle(
        "t", window=10.0, min_calls=1, clock=interrupted(clock), random=interrupted(float)
    )
    for _ in range(30):
        call(throttle, DependencyError())
        clock.advance(0.7)

    depth = 2  # no more interrupts
    assert sum(part.under_way for part in throttle._core._parts) == 0
    clock.advance(10.0)
    stats = throttle.stats()
    assert (stats.attempts, stats.calls) == (0, stats.failures)


def test_interrupt_between_counting_and_calling_is_forgotten(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """What an interrupt leaves behind is an attempt too many, and gone with the window."""

    def interrupted() -> float:
        raise KeyboardInterrupt

    throttle = make(random=interrupted, min_calls=1)
    call(throttle, DependencyError())
    with pytest.raises(KeyboardInterrupt):
        throttle.call(int)
    assert throttle.stats().attempts == 2

    clock.advance(WINDOW)

    assert throttle.stats().attempts == 0
    assert throttle.call(int) == 0


def test_forked_child_begins_afresh(make: Callable[..., AdaptiveThrottle]) -> None:
    """Nothing is waited for that a thread of the parent held at the fork, or was doing."""
    throttle, held, over = make(), threading.Event(), threading.Event()
    blocks = [throttle.calling() for _ in range(10)]
    for block in blocks:
        block.__enter__()

    def hold() -> None:
        with throttle._core._lock:
            held.set()
            over.wait(10.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10.0)
    throttle._core.after_fork()  # as in the child, where that thread is not

    assert call(throttle)
    assert (throttle.stats().attempts, throttle.stats().accepts) == (1, 1)
    blocks[0].__exit__(None, None, None)
    assert throttle.stats().late == 1
    over.set()
    thread.join()


def test_clock_that_made_no_sense_for_a_while_does_no_harm(dice: Dice) -> None:
    """Meanwhile the window is empty; afterwards everything is as before."""
    now = 5.0
    throttle = AdaptiveThrottle("t", min_calls=2, clock=lambda: now, random=dice)
    call_on(throttle, 2, DependencyError())

    now = math.nan
    for _ in range(30):
        call(throttle)
    now = 1_000.0
    throttle.stats()
    now = 2_000.0

    assert call(throttle)
    assert (throttle.stats().attempts, throttle.stats().accepts) == (1, 1)


def test_idle_throttle_holds_no_more_than_its_window(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """Parts that have left it are freed, however many there were."""
    throttle = make()
    for _ in range(100):
        call(throttle)
        clock.advance(12.0)

    assert len(throttle._core._parts) == 10
    assert throttle.stats().calls == 100
