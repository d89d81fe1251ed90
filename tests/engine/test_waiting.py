"""Waiting without colour: woken once, by anybody, or gone when the time is up."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from resilient.engine.waiting import TaskWaiter, ThreadWaiter


def test_thread_woken_before_it_waits_does_not_wait() -> None:
    """A wake-up is not lost by coming early."""
    waiter = ThreadWaiter()

    waiter.wake()

    assert waiter.park(None)


def test_thread_is_woken_by_another_one() -> None:
    """And waking it again does nothing."""
    waiter = ThreadWaiter()
    waker = threading.Timer(0.005, lambda: (waiter.wake(), waiter.wake()))
    waker.start()

    assert waiter.park(5.0)
    waker.join()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001])
def test_thread_stops_waiting_when_its_time_is_up(seconds: float) -> None:
    """Waking it afterwards does nothing."""
    waiter = ThreadWaiter()

    assert not waiter.park(seconds)
    waiter.wake()


def test_thread_may_wait_longer_than_a_lock_can() -> None:
    """`inf` and other huge numbers of seconds are no error."""
    waiter = ThreadWaiter()
    waiter.wake()

    assert waiter.park(float("inf"))


async def test_task_woken_before_it_waits_does_not_wait() -> None:
    """A wake-up is not lost by coming early."""
    waiter = TaskWaiter()

    waiter.wake()
    waiter.wake()

    assert await waiter.park(None)


async def test_task_is_woken_from_another_thread() -> None:
    """The loop of the task is told, not touched."""
    waiter = TaskWaiter()
    waker = threading.Timer(0.005, waiter.wake)
    waker.start()

    assert await waiter.park(5.0)
    waker.join()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001])
async def test_task_stops_waiting_when_its_time_is_up(seconds: float) -> None:
    """Waking it afterwards does nothing."""
    waiter = TaskWaiter()

    assert not await waiter.park(seconds)
    waiter.wake()
    await asyncio.sleep(0)


async def test_cancelled_task_stops_waiting() -> None:
    """A cancel stays one, whether or not there is a limit, and waking afterwards does nothing."""
    for seconds in (None, 5.0):
        waiter = TaskWaiter()
        task = asyncio.create_task(waiter.park(seconds))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        waiter.wake()
        await asyncio.sleep(0)


async def test_end_of_the_time_is_no_cancel_in_a_task_that_is_being_cancelled() -> None:
    """A task that cleans up after a cancellation may wait with a limit like any other."""

    async def clean_up() -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await TaskWaiter().park(0.001)
        raise AssertionError

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()

    assert await task is False


def test_waking_a_task_of_a_closed_loop_does_nothing() -> None:
    """Nobody waits there any more."""

    async def make() -> TaskWaiter:
        return TaskWaiter()

    waiter = asyncio.run(make())

    waiter.wake()


def test_waiting_takes_as_long_as_it_says() -> None:
    """Not less: what is due afterwards must not come early."""
    began = time.monotonic()

    ThreadWaiter().park(0.01)

    assert time.monotonic() - began >= 0.009
