"""Adaptive throttling: what counts, when it refuses, and whom."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from tests.policies.adaptive_throttle_support import DependencyError, Dice, call, call_on, maker

from resilient import AdaptiveThrottle, CircuitBreaker, Pipeline, RateLimiter, Retry
from resilient.errors import BulkheadFullError, RateLimitedError, RejectedError, ThrottledError
from resilient.testing import FakeClock

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


# The formula.


@pytest.mark.parametrize(("k", "accepts"), [(1.0, 10), (1.5, 6), (2.0, 5), (4.0, 2)])
def test_refuses_nothing_up_to_k_attempts_for_each_accept(
    make: Callable[..., AdaptiveThrottle], dice: Dice, k: float, accepts: int
) -> None:
    """At the last attempt that *k* allows for, P is 0 and chance was not asked; one more, and it is."""
    throttle = make(k=k, min_calls=10)

    assert call_on(throttle, accepts) == accepts
    assert call_on(throttle, 10 - accepts, DependencyError()) == 10 - accepts

    stats = throttle.stats()
    assert (stats.attempts, stats.probability) == (10, max(0.0, 10 - k * accepts) / 11)
    assert dice.asked == 0
    assert call(throttle, DependencyError()) == (k * accepts >= 10)
    assert not call(throttle)


def test_refuses_with_the_probability_of_the_book(make: Callable[..., AdaptiveThrottle], dice: Dice) -> None:
    """60 attempts, 10 accepts, k = 2: (60 - 20) / 61."""
    throttle = make(min_calls=60)
    call_on(throttle, 10)
    call_on(throttle, 50, DependencyError())
    expected = 40 / 61

    assert throttle.stats().probability == expected
    dice.number = expected
    assert call(throttle)
    dice.number = math.nextafter(throttle.stats().probability, 0.0)
    with pytest.raises(ThrottledError) as caught:
        throttle.call(int)

    assert caught.value.probability == (61 - 22) / 62
    assert (caught.value.policy, caught.value.retry_after) == ("search", None)
    assert str(caught.value) == (
        "throttle 'search' refuses 63% of the calls: 11 of 61 calls of the last 120 s were accepted"
    )


def test_refused_calls_are_attempts(make: Callable[..., AdaptiveThrottle]) -> None:
    """Otherwise P would go with what is left of the traffic, and settle at letting half of it through."""
    throttle = make(max_rejection=1.0)
    call(throttle, DependencyError())

    probabilities = []
    for _ in range(3):
        assert not call(throttle)
        probabilities.append(throttle.stats().probability)

    assert throttle.stats().attempts == 4
    assert throttle.stats().calls == 1
    assert probabilities == [2 / 3, 3 / 4, 4 / 5]


def test_never_refuses_more_than_the_cap(make: Callable[..., AdaptiveThrottle], dice: Dice) -> None:
    """However dead the dependency is, every tenth call finds out whether it still is."""
    throttle = make()
    call_on(throttle, 1000, DependencyError())

    assert throttle.stats().probability == 0.9
    dice.number = 0.9
    assert call(throttle)


def test_little_traffic_is_exempt(make: Callable[..., AdaptiveThrottle], dice: Dice) -> None:
    """With one call less than `min_calls` nothing is refused, whatever became of them."""
    throttle = make(min_calls=20)

    assert call_on(throttle, 20, DependencyError()) == 20
    assert dice.asked == 0
    assert not call(throttle)


def test_burst_into_an_idle_dependency_is_not_refused(
    make: Callable[..., AdaptiveThrottle], dice: Dice
) -> None:
    """A hundred calls at once after a start: not one of them has had time to be answered."""
    throttle = make(min_calls=20)
    blocks = [throttle.calling() for _ in range(100)]

    for block in blocks:
        block.__enter__()

    assert dice.asked == 0
    for block in blocks:
        block.__exit__(None, None, None)
    assert throttle.stats().accepts == 100


def test_refused_calls_are_decided(make: Callable[..., AdaptiveThrottle], clock: FakeClock) -> None:
    """The window stays full enough for a judgement while few of the calls are let through."""
    throttle = make(min_calls=10)
    call_on(throttle, 10, DependencyError())
    clock.advance(WINDOW / 2)
    assert call_on(throttle, 10) == 0

    clock.advance(WINDOW / 2)

    assert throttle.stats().attempts == 10
    assert not call(throttle)


# Traps.


def test_calls_that_hang_are_seen_while_they_hang(make: Callable[..., AdaptiveThrottle]) -> None:
    """The trap of counting at completion: nobody would notice before the first of them timed out."""
    throttle = make(min_calls=20)
    call_on(throttle, 20)
    hanging = [throttle.calling() for _ in range(21)]

    for block in hanging[:-1]:
        block.__enter__()
    throttle.calling().__enter__()

    with pytest.raises(ThrottledError):
        hanging[-1].__enter__()
    assert throttle.stats().failures == 0


def test_timeout_longer_than_the_window_hides_nothing(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """Calls time out when the window has forgotten them: they counted against the dependency before that."""
    throttle = make(window=10.0, min_calls=5)
    for _ in range(5):
        call(throttle, DependencyError())
    hanging = []
    for _ in range(30):
        block = throttle.calling()
        try:
            block.__enter__()
        except ThrottledError:
            continue
        hanging.append(block)
    clock.advance(60.0)

    for block in hanging:
        block.__exit__(DependencyError, DependencyError(), None)

    stats = throttle.stats()
    assert stats.rejected == 30 - len(hanging) > 0
    assert (stats.late, stats.failures, stats.attempts) == (len(hanging), 5, 0)


def test_late_answers_are_no_credit_for_failures(
    make: Callable[..., AdaptiveThrottle], clock: FakeClock
) -> None:
    """A hundred answers to questions that the window has forgotten do not pay for two hundred new ones."""
    throttle = make(window=10.0, min_calls=4)
    slow = [throttle.calling() for _ in range(100)]
    for block in slow:
        block.__enter__()
    clock.advance(11.0)
    call_on(throttle, 4, DependencyError())

    for block in slow:
        block.__exit__(None, None, None)

    stats = throttle.stats()
    assert (stats.late, stats.attempts, stats.accepts) == (100, 4, 0)
    assert not call(throttle)


def test_answer_counts_where_its_call_began(make: Callable[..., AdaptiveThrottle], clock: FakeClock) -> None:
    """Attempt and accept leave the window together."""
    throttle = make(window=10.0)
    block = throttle.calling()
    block.__enter__()
    clock.advance(9.0)
    block.__exit__(None, None, None)
    assert (throttle.stats().attempts, throttle.stats().accepts) == (1, 1)

    clock.advance(1.0)

    assert (throttle.stats().attempts, throttle.stats().accepts) == (0, 0)
    assert throttle.stats().calls == 1


def test_window_forgets_in_steps_of_a_tenth(make: Callable[..., AdaptiveThrottle], clock: FakeClock) -> None:
    """What was counted in the first twelve seconds is gone after a hundred and twenty."""
    throttle = make()
    for _ in range(10):
        call(throttle)
        clock.advance(12.0)

    attempts = []
    for _ in range(11):
        attempts.append(throttle.stats().attempts)
        clock.advance(12.0)

    assert attempts == [*range(9, -1, -1), 0]


# What is a failure.


@pytest.mark.parametrize(
    ("settings", "outcome", "accepted"),
    [
        pytest.param({}, ValueError(), False, id="any"),
        pytest.param({"on": OSError}, ConnectionError(), False, id="named"),
        pytest.param({"on": OSError}, ValueError(), True, id="not-named"),
        pytest.param({"on": lambda exc: "429" in str(exc)}, ValueError("429"), False, id="predicate"),
        pytest.param({"on": lambda exc: "429" in str(exc)}, ValueError("404"), True, id="predicate-says-no"),
        pytest.param({"exclude": LookupError}, KeyError(), True, id="excluded"),
        pytest.param({"exclude": LookupError}, ValueError(), False, id="not-excluded"),
        pytest.param({"on": BulkheadFullError}, BulkheadFullError(), False, id="refusal-by-name"),
    ],
)
def test_accepts_are_calls_that_did_not_fail(
    make: Callable[..., AdaptiveThrottle], settings: dict[str, Any], outcome: Exception, accepted: bool
) -> None:
    """An exception that is no failure is an answer: the dependency worked for it."""
    throttle = make(**settings)

    assert call(throttle, outcome)

    stats = throttle.stats()
    assert (stats.attempts, stats.accepts, stats.failures) == (1, int(accepted), int(not accepted))


@pytest.mark.parametrize(
    "outcome",
    [RateLimitedError(), BulkheadFullError(), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()],
    ids=repr,
)
def test_refused_inside_and_abandoned_calls_are_taken_back(
    make: Callable[..., AdaptiveThrottle], outcome: BaseException
) -> None:
    """They say nothing about the dependency: neither attempts nor accepts."""
    throttle = make()

    assert call_on(throttle, 10, outcome) == 10

    stats = throttle.stats()
    assert (stats.attempts, stats.accepts, stats.calls, stats.probability) == (0, 0, 0, 0.0)
    assert (stats.ignored, stats.abandoned) == ((10, 0) if isinstance(outcome, RejectedError) else (0, 10))


# Every form.


async def test_guards_every_shape(make: Callable[..., AdaptiveThrottle]) -> None:
    """A function, a coroutine function, both generators, a method, direct calls, blocks: one object."""
    throttle = make()

    @throttle
    async def aanswer() -> int:
        return 2

    @throttle
    def stream() -> Generator[int, None, None]:
        yield 4

    @throttle
    async def astream() -> AsyncGenerator[int, None]:
        yield 5

    class Client:
        @throttle
        def answer(self) -> int:
            return 1

    assert Client().answer() == 1
    assert await aanswer() == 2
    assert throttle.call(int, "3") == 3
    assert await throttle.acall(aanswer.__wrapped__) == 2  # type: ignore[attr-defined]
    assert list(stream()) == [4]
    assert [item async for item in astream()] == [5]
    with throttle.calling():
        pass
    async with throttle.calling():
        pass
    assert (throttle.stats().attempts, throttle.stats().accepts) == (8, 8)

    call_on(throttle, 100, DependencyError())
    for refused in (Client().answer, stream().__next__, throttle.calling().__enter__):
        with pytest.raises(ThrottledError):
            refused()
    with pytest.raises(ThrottledError):
        await aanswer()
    with pytest.raises(ThrottledError):
        await anext(astream())
    with pytest.raises(ThrottledError):
        await throttle.calling().__aenter__()


def test_stream_counts_when_it_ends(make: Callable[..., AdaptiveThrottle], clock: FakeClock) -> None:
    """How long it is open is up to its consumer: it is neither under way nor late."""
    throttle = make()

    @throttle
    def stream() -> Generator[int, None, None]:
        yield 1

    opened = stream()
    next(opened)
    assert throttle.stats().attempts == 0
    clock.advance(10 * WINDOW)
    assert list(opened) == []

    stats = throttle.stats()
    assert (stats.attempts, stats.accepts, stats.late) == (1, 1, 0)


def test_stands_between_breaker_and_limiter(make: Callable[..., AdaptiveThrottle]) -> None:
    """Its refusals are no failures to a breaker outside, and are not retried; those inside are none to it."""
    throttle, breaker, sleeps = make(), CircuitBreaker("b"), FakeClock()
    limiter = RateLimiter("1/hour", clock=FakeClock())
    guard = Pipeline(Retry(on=Exception, sleep=sleeps.sleep), breaker, throttle, limiter)

    guard.call(int)
    with pytest.raises(RateLimitedError):
        guard.call(int)
    assert (throttle.stats().attempts, throttle.stats().ignored) == (1, 1)

    call_on(throttle, 9, DependencyError())
    with pytest.raises(ThrottledError):
        guard.call(int)
    assert (breaker.stats().failures, sleeps.sleeps) == (0, [])
