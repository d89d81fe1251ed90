"""Timeout and deadlines: who is cut off, whose cancellation it was, and how deadlines nest."""
# ruff: noqa: PT012 - task groups, streams and blocks under test are more than one statement

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import math
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from resilient import (
    CallTimeoutError,
    DeadlineExceededError,
    Retry,
    Timeout,
    deadline,
    time_left,
)
from resilient.events import CallTimedOut
from resilient.testing import FakeClock, capture_events


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


async def hang() -> None:
    """Wait far longer than any limit here."""
    await asyncio.sleep(30)


def cancels_pending() -> int:
    """Return how often the current task was asked to cancel and the cancel not taken back."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


# Cutting off


async def test_hung_coroutine_is_cut_off():
    """A call that takes too long is cancelled; `CallTimeoutError` names policy and limit."""
    timeout = Timeout(0.01, name="rates")
    with capture_events() as seen, pytest.raises(CallTimeoutError) as caught:
        await timeout.acall(hang)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.policy, caught.value.seconds) == ("rates", 0.01)
    assert str(caught.value) == "Timeout 'rates': no answer in 0.01 s"
    assert seen == [CallTimedOut("rates", 0.01, running=False)]
    assert cancels_pending() == 0
    assert (timeout.stats().calls, timeout.stats().timed_out) == (1, 1)


async def test_quick_coroutine_is_left_alone():
    """A call in time returns its result and leaves no cancel, deadline or queue entry behind."""
    timeout = Timeout(5)

    @timeout
    async def fetch(code: str) -> str:
        await asyncio.sleep(0)
        return code

    assert [await fetch(code) for code in ("CHF", "USD")] == ["CHF", "USD"]
    assert cancels_pending() == 0
    assert time_left() is None
    assert queue_length(timeout) == 0
    assert timeout.stats().calls == 2


def queue_length(timeout: Timeout) -> int:
    """Return how many entries, blanks included, stand in the queue of the loop that runs."""
    queue = timeout._cutoff_gate._queues.queue
    return 0 if queue is None else len(queue.entries)


async def test_callers_cancellation_stays_one():
    """A cancellation from outside is handed on as it is and counts as nothing."""
    timeout = Timeout(5)
    task = asyncio.create_task(timeout.acall(hang))
    await asyncio.sleep(0)
    task.cancel("shutdown")
    with pytest.raises(asyncio.CancelledError, match="shutdown"):
        await task
    assert timeout.stats().timed_out == 0
    assert queue_length(timeout) == 0


async def test_callers_cancellation_wins_over_a_timeout_at_the_same_time():
    """When both cancel before the task runs, the caller's cancellation is not replaced by our error."""
    timeout = Timeout(0.01)
    task = asyncio.create_task(timeout.acall(hang))
    await asyncio.sleep(0)
    queue = timeout._cutoff_gate._queues.queue
    queue.entries.popleft().fire()
    task.cancel("shutdown")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert timeout.stats().timed_out == 0


async def test_answer_that_arrives_in_spite_of_the_cancellation_is_kept():
    """A call that catches the cancel and answers keeps its answer, and no cancel stays behind."""

    @Timeout(0.01)
    async def stubborn() -> str:
        try:
            await hang()
        except asyncio.CancelledError:
            return "the answer"
        return ""

    assert await stubborn() == "the answer"
    assert cancels_pending() == 0
    await asyncio.sleep(0)


async def test_error_raised_on_the_way_out_is_the_calls_own():
    """A call that answers the cancel with another exception keeps that."""

    @Timeout(0.01)
    async def untidy() -> None:
        try:
            await hang()
        finally:
            raise ValueError("while cleaning up")

    with pytest.raises(ValueError, match="while cleaning up"):
        await untidy()
    assert cancels_pending() == 0


async def test_users_own_timeout_error_is_not_ours():
    """A `TimeoutError` of the call's own passes as it is and is not counted."""
    timeout, own = Timeout(5), TimeoutError("the server's")

    async def fetch() -> None:
        raise own

    with pytest.raises(TimeoutError) as caught:
        await timeout.acall(fetch)
    assert caught.value is own
    assert timeout.stats().timed_out == 0


async def test_limits_of_asyncio_around_and_inside_keep_their_balance():
    """`asyncio.timeout` outside or inside fires as itself; each takes back only its own cancel."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await Timeout(5).acall(hang)
    assert not isinstance(caught.value, CallTimeoutError)
    assert cancels_pending() == 0

    @Timeout(5)
    async def inside() -> None:
        async with asyncio.timeout(0.01):
            await hang()

    with pytest.raises(TimeoutError) as caught:
        await inside()
    assert not isinstance(caught.value, CallTimeoutError)

    @Timeout(0.01)
    async def outlasted() -> None:
        async with asyncio.timeout(5):
            await hang()

    with pytest.raises(CallTimeoutError):
        async with asyncio.timeout(5):
            await outlasted()
    assert cancels_pending() == 0


async def test_task_group_inside_is_cut_off_with_its_children():
    """A group inside the call is cancelled with all its children, and the error is ours."""
    ended: list[str] = []

    async def child() -> None:
        try:
            await hang()
        finally:
            ended.append("child")

    @Timeout(0.01)
    async def fetch() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())

    with pytest.raises(CallTimeoutError):
        await fetch()
    assert ended == ["child", "child"]
    assert cancels_pending() == 0


async def test_task_group_around_reports_our_error_as_a_failure():
    """In a group, a cut-off call is a failure; a sibling's failure cancels our call as a caller does."""
    timeout = Timeout(0.01)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(timeout.acall(hang))
    assert caught.group_contains(CallTimeoutError)

    patient = Timeout(5)

    async def fail() -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(patient.acall(hang))
            group.create_task(fail())
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError]
    assert patient.stats().timed_out == 0


async def test_sibling_and_timeout_in_the_groups_own_body():
    """A limit in the body of a group, cancelled by the group because a child failed, is not a timeout."""

    async def fail() -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await Timeout(5).acall(hang)
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError]
    assert cancels_pending() == 0


async def test_calls_are_cut_off_in_the_order_in_which_they_began():
    """One queue and one timer serve all calls: each is cut off at its own time, first come first."""
    timeout, order = Timeout(0.02), []

    async def work(number: int) -> None:
        try:
            await timeout.acall(hang)
        except CallTimeoutError:
            order.append(number)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(work(number)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert timeout.stats().timed_out == 5
    assert queue_length(timeout) == 0


async def test_calls_behind_one_that_ended_are_still_cut_off():
    """The head of the queue ends early; the timer goes on to the next one."""
    timeout = Timeout(0.02)
    first = asyncio.create_task(timeout.acall(asyncio.sleep, 0.005))
    await asyncio.sleep(0.001)
    with pytest.raises(CallTimeoutError):
        await timeout.acall(hang)
    await first


async def test_queue_stays_short_behind_a_long_call():
    """100,000 short calls behind one that hangs leave no trace in the queue."""
    timeout, longest = Timeout(30), 0
    task = asyncio.create_task(timeout.acall(hang))
    await asyncio.sleep(0)

    @timeout
    async def quick() -> None: ...

    for number in range(100_000):
        await quick()
        if number % 1_000 == 0:
            longest = max(longest, queue_length(timeout))
    assert longest <= 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert queue_length(timeout) == 0


def test_one_limit_serves_several_loops_at_once():
    """Loops in four threads each have their own queue: every call is cut off in its own loop."""
    timeout, cut = Timeout(0.01), []

    async def work() -> None:
        results = await asyncio.gather(*(timeout.acall(hang) for _ in range(5)), return_exceptions=True)
        cut.extend(type(result) for result in results)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cut == [CallTimeoutError] * 20
    assert timeout.stats().calls == timeout.stats().timed_out == 20


def test_new_loop_in_the_same_thread_gets_a_new_queue():
    """A loop that is closed, with a call still in it, does not hinder the next one in the same thread."""
    timeout = Timeout(0.01)
    for _ in range(3):
        with pytest.raises(CallTimeoutError):
            asyncio.run(timeout.acall(hang))

    dead = leave_pending(timeout)
    with pytest.raises(CallTimeoutError):
        asyncio.run(timeout.acall(hang))
    dead.close()


def leave_pending(timeout: Timeout) -> Any:
    """Return a call under *timeout* whose loop was closed in the middle of it."""
    call = timeout.acall(hang)
    loop = asyncio.new_event_loop()
    task = loop.create_task(call)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # what asyncio says about it is no news here
    return call


def test_call_that_is_dropped_elsewhere_leaves_that_place_alone(clock):
    """A call that is closed by whoever drops it, a collector even, does not change the deadline there."""
    dead = leave_pending(Timeout(5))
    with deadline(3.0, clock=clock):
        dead.close()
        assert time_left() == 3.0
    assert time_left() is None


async def test_needs_a_task():
    """Code that runs in no task cannot be cut off; the error says so."""
    refused: list[str] = []

    def run() -> None:
        with pytest.raises(RuntimeError, match="can only cut off code that runs in a task") as caught:
            Timeout(5).acall(hang).send(None)
        refused.append(str(caught.value))

    asyncio.get_running_loop().call_soon(run)
    await asyncio.sleep(0)
    assert len(refused) == 1


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


# With retries


async def test_outer_deadline_ends_retries_of_attempts_that_time_out():
    """Attempts that time out are retried until the caller's deadline leaves no time for another one."""
    attempts: list[int] = []

    @deadline(0.1)
    @Retry(on=TimeoutError, attempts=None, wait=0.01)
    @Timeout(0.02)
    async def fetch() -> None:
        attempts.append(1)
        await hang()

    with pytest.raises(CallTimeoutError):
        await fetch()
    assert 2 <= len(attempts) <= 4
    assert cancels_pending() == 0


# Names, repr, bad arguments


def test_names_and_repr():
    """A name is made from the limit where none is given; `repr` shows the live state."""
    timeout = Timeout(timedelta(milliseconds=1500))
    assert (timeout.name, timeout.seconds) == ("Timeout-1.5s", 1.5)
    assert repr(timeout) == "<Timeout 'Timeout-1.5s' 1.5 s, 0 timed out, 0 abandoned>"
    assert repr(deadline(2, name="request")) == "<deadline 'request' 2 s>"


def test_nothing_is_kept_alive_by_a_limit_that_has_ended():
    """A call's exception, and the frames in its traceback, go when the caller lets go of them."""
    gc.collect()
    gc.disable()
    try:
        frames_gone: list[bool] = []

        class Token:
            def __del__(self) -> None:
                frames_gone.append(True)

        @Timeout(5)
        def fail() -> None:
            token = Token()  # noqa: F841 - it shows when the frame goes
            raise ValueError

        with contextlib.suppress(ValueError):
            fail()
        assert frames_gone == [True]
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [Timeout, deadline])
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"seconds": 0}, ValueError, "seconds must be greater than 0, got 0"),
        ({"seconds": -1}, ValueError, "seconds must be greater than 0, got -1"),
        (
            {"seconds": math.nan},
            ValueError,
            "seconds must be a number of seconds or a timedelta that is finite",
        ),
        (
            {"seconds": math.inf},
            ValueError,
            "seconds must be a number of seconds or a timedelta that is finite",
        ),
        (
            {"seconds": 10**400},
            ValueError,
            "seconds must be a number of seconds or a timedelta that is finite",
        ),
        ({"seconds": True}, TypeError, "seconds must be a number of seconds or a timedelta, got True"),
        ({"seconds": None}, TypeError, "seconds must be a number of seconds or a timedelta, got None"),
        ({"seconds": "5"}, TypeError, "seconds must be a number of seconds or a timedelta, got '5'"),
        ({"seconds": timedelta(seconds=-1)}, ValueError, "seconds must be greater than 0, got -1.0"),
        ({"seconds": 1, "name": ""}, ValueError, "name must not be empty, got ''"),
        ({"seconds": 1, "name": 5}, TypeError, "name must be text, got 5"),
        ({"seconds": 1, "clock": 5}, TypeError, "clock must be callable, got 5"),
    ],
)
def test_bad_arguments_are_refused(make, arguments, kind, message):
    """Each message names the parameter, the rule and the value."""
    with pytest.raises(kind) as caught:
        make(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("threads", "kind", "message"),
    [
        (0, ValueError, "threads must be at least 1, got 0"),
        (-1, ValueError, "threads must be at least 1, got -1"),
        (True, TypeError, "threads must be a whole number, got True"),
        (2.0, TypeError, "threads must be a whole number, got 2.0"),
        ("4", TypeError, "threads must be a whole number, got '4'"),
    ],
)
def test_bad_numbers_of_threads_are_refused(threads, kind, message):
    """The number of threads is a whole number of at least 1."""
    with pytest.raises(kind) as caught:
        Timeout(1, threads=threads)
    assert message in str(caught.value)
