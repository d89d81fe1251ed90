"""Handing slots on: nothing is lost, whoever goes away when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.policies.bulkhead_support import (
    Bell,
    Caller,
    fill,
    give,
    noting,
    patient,
    queue_threads,
    queue_up,
    turns,
)

from resilient import Bulkhead
from resilient.engine.waiting import ThreadWaiter


@pytest.fixture
def clock() -> Bell:
    """A clock that stands still until told."""
    return Bell()


# Who goes away


async def test_cancelled_task_leaves_the_line(clock: Bell):
    """Whoever stands behind it moves up; it is counted among those who gave up."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, *(noting(bulkhead, served, name) for name in range(3)))
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.wait((tasks[0], tasks[2]))
    assert bulkhead.stats().waiting == 1
    give(held)
    await tasks[1]

    assert served == [1]
    stats = bulkhead.stats()
    assert (stats.in_use, stats.waiting, stats.gave_up, stats.rejected) == (0, 0, 2, 1)


async def test_slot_of_a_task_cancelled_at_the_hand_off_goes_to_the_next(clock: Bell):
    """It was given the slot and has not run since: the slot must not go with it."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, *(noting(bulkhead, served, name) for name in range(4)))
    callers = queue_threads(bulkhead, clock, served, "thread")
    give(held)
    for task in tasks[:3]:
        task.cancel()  # the second and the third one have got nothing yet
    await asyncio.gather(*tasks, return_exceptions=True)

    assert callers[0].begun()
    assert served == [3, "thread"]
    assert callers[0].end() is None
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (0, 0)


async def test_each_of_those_cancelled_at_the_hand_off_passes_the_slot_on(clock: Bell):
    """One after the other has it for a moment, and in the end it is free."""
    bulkhead = patient(clock)
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, *[noting(bulkhead, [], None)] * 10)
    give(held)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (0, 0)
    assert len(fill(bulkhead)) == 1


@pytest.mark.parametrize("granted", [False, True])
def test_thread_interrupted_in_the_line_takes_nothing_along(
    clock: Bell, monkeypatch: pytest.MonkeyPatch, granted: bool
):
    """Neither its place nor, if it has just been given one, its slot."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)

    def interrupted(self: object, seconds: float | None) -> bool:
        patch.undo()
        callers.extend(queue_threads(bulkhead, clock, served, "behind"))
        if granted:
            give(held)
        raise KeyboardInterrupt

    callers: list[Caller] = []
    with monkeypatch.context() as patch:
        patch.setattr(ThreadWaiter, "park", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bulkhead.call(served.append, "interrupted")
    assert bulkhead.stats().waiting == (0 if granted else 1)
    give(held)

    assert callers[0].begun()
    assert served == ["behind"]
    assert callers[0].end() is None
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting, bulkhead.stats().gave_up) == (
        0,
        0,
        0 if granted else 1,
    )


async def test_turn_of_nobody_holds_up_nobody(clock: Bell):
    """Who was interrupted between getting in line and waiting has a turn that nobody knows of."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    bulkhead._desk._begin(None, (), {}, ThreadWaiter, timed=True)
    (task,) = await queue_up(bulkhead, noting(bulkhead, served, "behind"))
    assert bulkhead.stats().waiting == 2
    bulkhead.resize(2)

    await turns(task.done)
    assert served == ["behind"]
    give(held)
    assert (bulkhead.stats().waiting, bulkhead.stats().in_use) == (0, 0)
    assert len(fill(bulkhead)) == 2


def test_slot_given_back_while_somebody_gets_in_line_is_seen(clock: Bell):
    """By one who has looked whether anybody waits just before: so the one in line looks once more."""
    bulkhead = patient(clock)
    (held,) = fill(bulkhead)

    def put_back() -> ThreadWaiter:
        bulkhead._desk.free.append(held._permit)
        held._permit = None
        return ThreadWaiter()

    turn = bulkhead._desk._begin(None, (), {}, put_back, timed=True)
    assert turn.permit is not None
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (1, 0)


class Late(list[bool]):
    """What says that somebody waits, seen only by those who look for the *nth* time."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self._looks = itertools.count(1)
        self._nth = nth

    def __bool__(self) -> bool:
        return next(self._looks) >= self._nth


@pytest.mark.parametrize("shape", ["function", "coroutine"])
async def test_who_gives_back_looks_once_more_whether_somebody_waits(clock: Bell, shape: str):
    """One may have begun to since the first look, and have seen no slot yet."""
    bulkhead, served = patient(clock), []
    late = Late(3)  # looked at before the call, after it, and when the slot has been given back
    desk = bulkhead._desk
    with monkeypatched_alert(desk, late):
        guarded = bulkhead(lambda: None) if shape == "function" else bulkhead(asyncio.sleep)
    (held,) = fill(bulkhead)
    (task,) = await queue_up(bulkhead, noting(bulkhead, served, "waiter"))
    desk.free.append(held._permit)  # put back without a look
    held._permit = None

    if shape == "function":
        guarded()
    else:
        await guarded(0)
    await turns(task.done)
    assert served == ["waiter"]


@contextlib.contextmanager
def monkeypatched_alert(desk: Any, alert: list[bool]) -> Iterator[None]:
    """Have what is decorated inside the block see *alert* in place of the real one."""
    real, desk.alert = desk.alert, alert
    yield
    desk.alert = real


@pytest.mark.parametrize("shape", ["function", "coroutine", "generator", "async generator", "block"])
async def test_end_of_a_call_of_each_shape_hands_its_slot_on_at_once(clock: Bell, shape: str):
    """To somebody who has begun to wait while it ran."""
    bulkhead, served = patient(clock), []
    opened = asyncio.Event()

    @bulkhead
    async def awork() -> None:
        await opened.wait()

    @bulkhead
    def stream() -> Iterator[int]:
        yield 1

    @bulkhead
    async def astream() -> AsyncIterator[int]:
        yield 1

    async def end(waiting: Callable[[], Any]) -> None:
        if shape == "coroutine":
            work = asyncio.ensure_future(awork())
            await asyncio.sleep(0)
            await waiting()
            opened.set()
            await work
        elif shape == "generator":
            items = stream()
            next(items)
            await waiting()
            items.close()
        elif shape == "async generator":
            aitems = astream()
            await anext(aitems)
            await waiting()
            await aitems.aclose()  # type: ignore[attr-defined]
        elif shape == "block":
            async with bulkhead.calling():
                await waiting()
        else:
            begun, over = threading.Event(), threading.Event()
            work = asyncio.ensure_future(
                asyncio.to_thread(bulkhead.call, lambda: (begun.set(), over.wait(10.0)))
            )
            await asyncio.to_thread(begun.wait, 10.0)
            await waiting()
            over.set()
            await work

    tasks: list[asyncio.Task[Any]] = []

    async def waiting() -> None:
        tasks.extend(await queue_up(bulkhead, noting(bulkhead, served, "waiter")))

    await end(waiting)
    await turns(tasks[0].done)
    assert served == ["waiter"]
    assert bulkhead.stats().in_use == 0


async def test_those_behind_a_loop_that_was_closed_are_served(clock: Bell):
    """A loop that ends without ending its tasks cannot be told anything any more."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, noting(bulkhead, served, "before"))
    stranded = await asyncio.to_thread(_strand, bulkhead)
    tasks += await queue_up(bulkhead, noting(bulkhead, served, "behind"))
    assert bulkhead.stats().waiting == 3
    give(held)
    await asyncio.gather(*tasks)

    assert served == ["before", "behind"]
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (0, 0)
    _forget(stranded)
    assert len(fill(bulkhead)) == 1


async def test_slot_handed_to_a_loop_that_is_closed_before_it_runs_comes_back(clock: Bell):
    """With the task, at the latest when that is collected."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    stranded = await asyncio.to_thread(_strand, bulkhead, lambda: give(held))
    assert bulkhead.stats().in_use == 1
    (task,) = await queue_up(bulkhead, noting(bulkhead, served, "alive"))
    _forget(stranded)
    await task

    assert served == ["alive"]


def _strand(bulkhead: Bulkhead, last: Callable[[], None] = lambda: None) -> list[Any]:
    """Return a task that waits for a slot, whose loop was closed after *last*."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(noting(bulkhead, [], None)())
    task._log_destroy_pending = False  # that it is forgotten is the point here
    before = bulkhead.stats().waiting
    loop.run_until_complete(asyncio.sleep(0))
    assert bulkhead.stats().waiting == before + 1
    last()
    loop.close()
    return [task]


def _forget(stranded: list[Any]) -> None:
    """Forget the task, which closes its coroutine."""
    coroutine = stranded.pop().get_coro()
    coroutine.close()


# Slots whose holder vanishes


@pytest.mark.slow
def test_thread_gets_the_slot_of_a_holder_that_vanished_within_a_second():
    """Nobody gave it back, and nobody was told."""
    bulkhead = Bulkhead("b", 1, max_wait=30.0)
    blocks = fill(bulkhead)
    vanishing = threading.Timer(0.05, blocks.clear)
    vanishing.start()
    began = time.monotonic()

    assert bulkhead.call(str) == ""
    assert time.monotonic() - began < 5.0
    vanishing.join()


@pytest.mark.slow
async def test_task_gets_the_slot_of_a_holder_that_vanished_within_a_second():
    """The same for tasks."""
    bulkhead = Bulkhead("b", 1, max_wait=30.0)
    blocks = fill(bulkhead)
    asyncio.get_running_loop().call_later(0.05, blocks.clear)
    began = time.monotonic()

    assert await bulkhead.acall(asyncio.sleep, 0, "slept") == "slept"
    assert time.monotonic() - began < 5.0
