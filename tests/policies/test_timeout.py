"""Timeout: who is cut off, whose cancellation it was, and bad arguments."""
# ruff: noqa: PT012 - task groups, streams and blocks under test are more than one statement

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
from datetime import timedelta
from typing import Any

import pytest
from tests.policies.timeout_support import cancels_pending, hang

from resilient import (
    CallTimeoutError,
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
