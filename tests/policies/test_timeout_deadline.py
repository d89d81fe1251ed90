"""Deadlines: how they nest, where they hold, and what they mean for streams."""
# ruff: noqa: PT012 - task groups, streams and blocks under test are more than one statement

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.policies.timeout_support import cancels_pending, hang

from resilient import (
    CallTimeoutError,
    DeadlineExceededError,
    Timeout,
    deadline,
    time_left,
)
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


# Deadlines


def test_no_deadline_by_default():
    """Where nobody set one, `time_left()` is None."""
    assert time_left() is None


def test_function_gets_a_deadline_and_is_not_interrupted(clock):
    """A function under a limit sees what is left; it may end late, and its result counts."""
    left: list[float | None] = []

    @Timeout(2.0, clock=clock)
    def work() -> str:
        left.append(time_left())
        clock.advance(5.0)
        left.append(time_left())
        return "late"

    assert work() == "late"
    assert left == [2.0, -3.0]
    assert time_left() is None


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_deadline_ends_with_its_call_however_that_ends(clock, kind):
    """After an exception or an interrupt the outer deadline holds again."""

    def fail() -> None:
        raise kind

    with deadline(9.0, clock=clock):
        with pytest.raises(kind):
            Timeout(2.0, clock=clock).call(fail)
        assert time_left() == 9.0


def test_deadlines_nest_and_the_earliest_wins(clock):
    """An inner deadline can only shorten; the outer one holds again after it."""
    with deadline(10.0, clock=clock):
        assert time_left() == 10.0
        with deadline(3.0, clock=clock):
            assert time_left() == 3.0
            with deadline(99.0, clock=clock):
                clock.advance(1.0)
                assert time_left() == 2.0
        assert time_left() == 9.0
        assert Timeout(99.0, clock=clock).call(time_left) == 9.0
    assert time_left() is None


def test_passed_deadline_refuses_calls(clock):
    """After the deadline no call is begun: a refusal, counted, with the time it is late."""
    timeout, called = Timeout(5.0, name="rates", clock=clock), []
    with deadline(1.0, clock=clock):
        clock.advance(1.5)
        with pytest.raises(
            DeadlineExceededError, match=r"passed 0.5 s ago, the call was not begun"
        ) as caught:
            timeout.call(called.append, 1)
        assert time_left() == -0.5
    assert called == []
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.policy == "rates"
    assert (timeout.stats().calls, timeout.stats().rejected) == (0, 1)


async def test_passed_deadline_refuses_coroutines(clock):
    """The same goes for coroutine functions and for blocks."""
    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            await Timeout(5.0).acall(hang)
        with pytest.raises(DeadlineExceededError):
            async with deadline(5.0):
                pass


async def test_limit_is_cut_short_by_an_outer_deadline():
    """An attempt gets what is left of the caller's deadline, whoever of the two raises."""
    begun = asyncio.get_running_loop().time()
    with pytest.raises(CallTimeoutError):
        async with deadline(0.02, name="request"):
            await Timeout(30).acall(hang)
    assert asyncio.get_running_loop().time() - begun < 5.0
    assert cancels_pending() == 0


async def test_sync_block_cuts_the_limits_inside_short():
    """`with deadline` interrupts nothing itself, but the limits inside obey it."""
    timeout = Timeout(30)
    with deadline(0.02), pytest.raises(CallTimeoutError) as caught:
        await timeout.acall(hang)
    assert caught.value.seconds == pytest.approx(0.02, abs=0.015)
    assert timeout.stats().timed_out == 1
    assert cancels_pending() == 0


async def test_nested_limits_take_back_their_own_cancels_only():
    """Several limits that run out at the same time leave no cancel behind, and raise once."""
    with pytest.raises(CallTimeoutError):
        await Timeout(0.01)(Timeout(0.01)(Timeout(0.01)(hang)))()
    assert cancels_pending() == 0
    await asyncio.sleep(0)


async def test_deadline_cuts_off_a_block():
    """`async with deadline` cancels what is inside, and raises `CallTimeoutError`."""
    with pytest.raises(CallTimeoutError, match=r"deadline 'deadline-0\.01s': no answer in 0\.01 s"):
        async with deadline(0.01):
            await hang()
    assert cancels_pending() == 0
    assert time_left() is None


async def test_deadline_follows_into_tasks():
    """A task begun inside sees the deadline; one that outlives the block is not bound by it any more."""
    seen: list[float | None] = []
    go_on = asyncio.Event()

    async def child() -> None:
        seen.append(time_left())
        await go_on.wait()
        seen.append(time_left())

    async with deadline(5):
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    go_on.set()
    await task
    assert seen[0] == pytest.approx(5, abs=0.5)
    assert seen[1] is None


async def test_tasks_do_not_see_each_others_deadlines(clock):
    """A deadline lives in its context: siblings have their own, on one and the same object too."""
    limit, seen = deadline(5.0, clock=clock), {}

    async def work(name: str, wait: asyncio.Event, signal: asyncio.Event) -> None:
        async with limit:
            signal.set()
            await wait.wait()
            seen[name] = time_left()
        assert time_left() is None

    first, second = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(work("a", second, first))
    await first.wait()
    clock.advance(2.0)
    await work("b", first, second)
    await task
    assert seen == {"a": 3.0, "b": 5.0}


def test_deadline_is_a_decorator_and_may_be_open_in_itself(clock):
    """One object serves as decorator and as block, re-entered as often as one likes."""
    limit = deadline(5.0, clock=clock)

    @limit
    def work(depth: int) -> list[float | None]:
        clock.advance(1.0)
        return [time_left(), *(work(depth - 1) if depth else [])]

    assert work(2) == [4.0, 3.0, 2.0]
    with limit, limit:
        clock.advance(1.0)
        assert time_left() == 4.0
    assert time_left() is None


def test_blocks_in_generators_may_end_in_any_order(clock):
    """Blocks that do not end last in, first out each end their own deadline."""

    def open_for(seconds: float) -> Iterator[None]:
        with deadline(seconds, clock=clock):
            yield

    long, short = open_for(9.0), open_for(4.0)
    next(long), next(short)
    assert time_left() == 4.0
    long.close()
    assert time_left() == 4.0
    short.close()
    assert time_left() is None


def test_block_left_in_another_context_says_so():
    """Entered in one context and left in another, a block cannot end: the error says what to do."""
    limit = deadline(5.0)
    contextvars.copy_context().run(limit.__enter__)
    with pytest.raises(RuntimeError, match="must be left in the context"):
        limit.__exit__(None, None, None)


# Streams


def test_stream_has_one_limit_for_all_its_steps(clock):
    """Each step sees what is left of the whole; between the steps the consumer is not bound by it."""
    left: list[float | None] = []

    @Timeout(5.0, clock=clock)
    def pages() -> Iterator[int]:
        for page in range(3):
            left.append(time_left())
            yield page

    for _ in pages():
        assert time_left() is None
        clock.advance(2.0)
    assert left == [5.0, 3.0, 1.0]


def test_stream_hands_everything_through(clock):
    """Sent values, thrown exceptions, the close and the return value reach and leave the generator."""
    closed: list[str] = []

    @Timeout(5.0, clock=clock)
    def echo() -> Any:
        try:
            got = yield "ready"
            try:
                yield got
            except ValueError as exc:
                yield str(exc)
            return "done"
        finally:
            closed.append("closed")

    stream = echo()
    assert (next(stream), stream.send("hello"), stream.throw(ValueError("oops"))) == (
        "ready",
        "hello",
        "oops",
    )
    with pytest.raises(StopIteration) as stop:
        next(stream)
    assert stop.value.value == "done"
    unfinished = echo()
    next(unfinished)
    unfinished.close()
    assert closed == ["closed", "closed"]


async def test_async_stream_is_cut_off_in_the_step_that_takes_too_long():
    """The consumer's time counts; the step that is under way at the end is cut off."""
    timeout = Timeout(0.05)
    seen: list[int] = []

    @timeout
    async def pages() -> AsyncIterator[int]:
        yield 1
        yield 2
        await hang()
        yield 3

    with pytest.raises(CallTimeoutError):
        async for page in pages():
            assert time_left() is None
            seen.append(page)
    assert seen == [1, 2]
    assert (timeout.stats().calls, timeout.stats().timed_out) == (1, 1)
    assert cancels_pending() == 0


async def test_async_stream_keeps_a_timeout_error_of_its_own():
    """A `TimeoutError` that the stream raises is not ours."""
    own, timeout = TimeoutError("the server's"), Timeout(5)

    @timeout
    async def pages() -> AsyncIterator[int]:
        yield 1
        raise own

    with pytest.raises(TimeoutError) as caught:
        [page async for page in pages()]
    assert caught.value is own
    assert timeout.stats().timed_out == 0


async def test_blocks_leave_no_timers_behind():
    """A timer for every request of the last minute would be a leak."""
    loop = asyncio.get_running_loop()
    before = len(loop._scheduled)
    for _ in range(500):
        async with deadline(60):
            pass

    live = [handle for handle in loop._scheduled if not handle.cancelled()]
    assert len(live) <= before + 1


def test_work_left_behind_by_a_thread_is_not_bound(clock):
    """The deadline ends with the work, also for what the work has started."""
    left = []

    def work():
        left.append(contextvars.copy_context())
        return time_left()

    assert Timeout(5, threads=1, clock=clock)(work)() == 5.0
    clock.advance(10)
    assert left[0].run(time_left) is None


def test_work_left_behind_by_a_stream_is_not_bound(clock):
    """Once the stream has ended, its deadline has too."""
    left = []

    @Timeout(5, clock=clock)
    def stream():
        left.append(contextvars.copy_context())
        yield time_left()

    assert list(stream()) == [5.0]
    half = stream()
    next(half)
    half.close()
    clock.advance(10)
    assert [context.run(time_left) for context in left] == [None, None]


async def test_work_left_behind_by_an_async_stream_is_not_bound(clock):
    """Once the stream has ended, its deadline has too."""
    left = []

    @Timeout(5, clock=clock)
    async def stream():
        left.append(contextvars.copy_context())
        yield time_left()

    assert [item async for item in stream()] == [5.0]
    half = stream()
    await anext(half)
    await half.aclose()
    clock.advance(10)
    assert [context.run(time_left) for context in left] == [None, None]
