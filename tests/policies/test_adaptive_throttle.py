"""Adaptive throttling: what counts, when it refuses, what it tells, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from tests.stress.crowd import CALLS, Crowd

from resilient import AdaptiveThrottle, CircuitBreaker, Pipeline, RateLimiter, Retry
from resilient.errors import BulkheadFullError, RateLimitedError, RejectedError, ThrottledError
from resilient.events import ThrottlingStarted, ThrottlingStopped
from resilient.testing import FakeClock, capture_events, describe

WINDOW = 120.0


class DependencyError(Exception):
    """A failure."""


class Dice:
    """Give the numbers it is told to, and count how often it is asked."""

    def __init__(self, number: float = 0.0) -> None:
        self.number = number
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.number


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

    def make(**settings: Any) -> AdaptiveThrottle:
        return AdaptiveThrottle("search", **{"clock": clock, "random": dice, "min_calls": 1, **settings})

    return make


def fail(exc: BaseException | None = None) -> None:
    """Fail."""
    raise DependencyError if exc is None else exc


def call(throttle: AdaptiveThrottle, outcome: BaseException | None = None) -> bool:
    """Make a call that ends in *outcome*; tell whether it was let through."""
    try:
        throttle.call(fail, outcome) if outcome else throttle.call(int)
    except ThrottledError:
        return False
    except BaseException as exc:
        if exc is not outcome:
            raise
    return True


def call_on(throttle: AdaptiveThrottle, times: int, outcome: BaseException | None = None) -> int:
    """Make *times* calls; return how many were let through."""
    return sum(call(throttle, outcome) for _ in range(times))


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
