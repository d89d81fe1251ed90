"""Waiting for a slot: in order, for as long as is worth it, and not too many."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from tests.policies.bulkhead_support import (
    Bell,
    fill,
    give,
    no_time_left,
    noting,
    patient,
    queue_threads,
    queue_up,
    take,
    turns,
)
from tests.stress.crowd import CALLS, Crowd

from resilient import Bulkhead, BulkheadFullError, deadline


@pytest.fixture
def clock() -> Bell:
    """A clock that stands still until told."""
    return Bell()


# In order


def test_threads_get_slots_in_the_order_of_their_arrival(clock: Bell):
    """One hands its slot to the next."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    callers = queue_threads(bulkhead, clock, served, *range(20))
    assert bulkhead.stats().waiting == 20

    give(held)
    for place, caller in enumerate(callers):
        assert caller.begun()
        assert served == [*range(place + 1)]
        assert caller.end() is None
    stats = bulkhead.stats()
    assert (stats.in_use, stats.waiting, stats.calls, stats.gave_up) == (0, 0, 21, 0)


async def test_tasks_get_slots_in_the_order_of_their_arrival(clock: Bell):
    """The same for tasks."""
    bulkhead, served = patient(clock, 2), []
    blocks = fill(bulkhead)
    tasks = await queue_up(bulkhead, *(noting(bulkhead, served, name) for name in range(20)))
    for block in blocks:
        give(block)
    await asyncio.gather(*tasks)

    assert served == [*range(20)]


async def test_threads_and_tasks_of_several_loops_stand_in_one_line(clock: Bell):
    """Whoever gives a slot back need not know to whom."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    tasks, callers, loops = [], [], []
    for place in range(0, 9, 3):
        tasks += await queue_up(bulkhead, noting(bulkhead, served, place))
        callers += queue_threads(bulkhead, clock, served, place + 1)
        loops.append(threading.Thread(target=asyncio.run, args=(noting(bulkhead, served, place + 2)(),)))
        loops[-1].start()
        clock.until(lambda place=place: bulkhead.stats().waiting == place + 3)  # type: ignore[misc]
    for caller in callers:
        threading.Thread(target=caller.end).start()
    give(held)
    await asyncio.gather(*tasks)
    for thread in loops:
        await asyncio.to_thread(thread.join)

    assert served == [*range(9)]


async def test_newcomer_does_not_snatch_a_slot_that_is_handed_on(clock: Bell):
    """Between "given back" and "woken up" it belongs to the one who waits."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    (task,) = await queue_up(bulkhead, noting(bulkhead, served, "waiter"))
    give(held)

    assert bulkhead.stats().in_use == 1
    with no_time_left(), pytest.raises(BulkheadFullError):
        take(bulkhead)
    await task
    assert served == ["waiter"]


async def test_newcomer_goes_to_the_end_of_the_line(clock: Bell):
    """Also if a slot comes free in this very moment."""
    bulkhead, served = patient(clock), []
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, *(noting(bulkhead, served, name) for name in (1, 2)))
    give(held)
    await asyncio.gather(noting(bulkhead, served, 3)(), *tasks)
    assert served == [1, 2, 3]


async def test_slots_of_a_higher_limit_go_to_those_who_wait(clock: Bell):
    """As many of them, in order, and at once."""
    bulkhead, served = patient(clock), []
    blocks = fill(bulkhead)

    async def call(name: int) -> None:
        block = bulkhead.calling()
        await block.__aenter__()
        blocks.append(block)
        served.append(name)

    await queue_up(bulkhead, *(lambda name=name: call(name) for name in range(5)))
    bulkhead.resize(4)
    await turns(lambda: len(served) == 3)

    stats = bulkhead.stats()
    assert (served, stats.in_use, stats.waiting) == ([0, 1, 2], 4, 2)
    bulkhead.resize(2)
    for block in blocks[:2]:
        give(block)
    assert bulkhead.stats().waiting == 2
    give(blocks[2])
    await turns(lambda: len(served) == 4)
    assert (served, bulkhead.stats().waiting) == ([0, 1, 2, 3], 1)
    give(blocks[3])
    await turns(lambda: len(served) == 5)


def test_crowd_of_threads_and_tasks_is_served_to_the_last(clock: Bell):
    """Never more at a time than there are slots, nobody forgotten, nothing left."""
    bulkhead = Bulkhead("b", 3, max_wait=50.0)
    inside: set[int] = set()
    most: list[int] = []

    @bulkhead
    def call(number: int) -> None:
        inside.add(number)
        most.append(len(inside))
        inside.discard(number)

    @bulkhead
    async def acall(number: int) -> None:
        inside.add(number)
        await asyncio.sleep(0)
        most.append(len(inside))
        inside.discard(number)

    Crowd(call, acall).run()

    stats = bulkhead.stats()
    assert max(most) == 3
    assert (stats.calls, stats.in_use, stats.waiting, stats.rejected, stats.gave_up) == (CALLS, 0, 0, 0, 0)
    assert len(fill(bulkhead)) == 3


# For how long


def test_nobody_waits_unless_told(clock: Bell):
    """`max_wait=0`: refused at once, and counted so."""
    bulkhead = patient(clock, max_wait=0.0)
    blocks = fill(bulkhead)
    with pytest.raises(BulkheadFullError, match=r"^bulkhead 'b' is full: 1 of 1 slots are taken$"):
        take(bulkhead)
    stats = bulkhead.stats()
    assert (stats.rejected, stats.gave_up, stats.waiting) == (2, 0, 0)
    assert len(blocks) == 1


def test_wait_is_over_when_its_time_is_up():
    """The refusal says how long it was; the call counts as one that waited in vain."""
    bulkhead = Bulkhead("b", 1, max_wait=0.02)
    blocks = fill(bulkhead)
    began = time.monotonic()
    with pytest.raises(BulkheadFullError, match=r"1 of 1 slots are taken, and none came free in 0\.02 s$"):
        bulkhead.call(int)
    took = time.monotonic() - began

    assert 0.019 <= took < 5.0
    stats = bulkhead.stats()
    assert (stats.gave_up, stats.rejected, stats.waiting, stats.calls) == (1, 1, 0, 1)
    assert len(blocks) == 1


async def test_task_waits_as_long_as_a_thread():
    """And is refused in the same words."""
    bulkhead = Bulkhead("b", 1, max_wait=0.02)
    blocks = fill(bulkhead)
    with pytest.raises(BulkheadFullError, match=r"and none came free in 0\.02 s$"):
        async with bulkhead.calling():
            pass
    assert bulkhead.stats().gave_up == 1
    assert len(blocks) == 1


@pytest.mark.parametrize(("left", "waited"), [(5.0, "5 s"), (500.0, "60 s")])
async def test_earliest_of_deadline_and_max_wait_counts(clock: Bell, left: float, waited: str):
    """Nobody waits for a slot to which no caller would be left."""
    bulkhead = patient(clock)
    blocks = fill(bulkhead)

    async def call() -> None:
        with deadline(left, clock=clock):
            await bulkhead.acall(asyncio.sleep, 0)

    (task,) = await queue_up(bulkhead, call)
    clock.advance(min(left, 60.0) - 0.5)
    bulkhead.resize(1)
    await asyncio.sleep(0)
    assert not task.done()
    clock.advance(0.5)
    bulkhead.resize(1)  # who waits is seen to, whatever the occasion
    with pytest.raises(BulkheadFullError, match=f"none came free in {waited}$"):
        await task
    assert len(blocks) == 1


def test_deadline_that_has_passed_leaves_nothing_to_wait_for(clock: Bell):
    """Refused at once; but a slot that is free is taken: what the call makes of it is its own affair."""
    bulkhead = patient(clock)
    with no_time_left():
        held = take(bulkhead)
        with pytest.raises(BulkheadFullError, match=r"slots are taken$"):
            take(bulkhead)
    assert bulkhead.stats().rejected == 1
    give(held)


# How many


def test_queue_of_no_places_refuses_at_once(clock: Bell):
    """`max_queue=0`, whatever `max_wait` says."""
    bulkhead = patient(clock, max_queue=0)
    blocks = fill(bulkhead)
    with pytest.raises(BulkheadFullError, match=r"slots are taken$"):
        take(bulkhead)
    assert bulkhead.stats().rejected == 2
    assert len(blocks) == 1


@pytest.mark.parametrize(
    ("limit", "max_queue", "places"), [(1, None, 100), (10, None, 100), (11, None, 110), (2, 3, 3)]
)
async def test_queue_has_so_many_places(clock: Bell, limit: int, max_queue: int | None, places: int):
    """Those who wait are as many as said; by itself ten for each slot, and a hundred at least."""
    bulkhead = patient(clock, limit, max_queue=max_queue)
    blocks = fill(bulkhead)
    tasks = await queue_up(bulkhead, *[noting(bulkhead, [], None)] * places)

    with pytest.raises(BulkheadFullError, match=rf"slots are taken and {places} calls wait$") as caught:
        await bulkhead.acall(asyncio.sleep, 0)
    assert caught.value.waiting == bulkhead.stats().waiting == places
    assert bulkhead.stats().rejected == 2
    blocks.clear()
    bulkhead.resize(limit)
    await asyncio.gather(*tasks)
    assert bulkhead.stats().calls == limit + places


# Newest first


async def test_newest_is_served_first_once_the_oldest_has_waited_for_half_of_its_time(clock: Bell):
    """Before that, and when the line is short again, it is the oldest."""
    bulkhead, served = patient(clock, order="newest-first", max_wait=10.0), []
    blocks = fill(bulkhead)

    async def call(name: str) -> None:
        block = bulkhead.calling()
        await block.__aenter__()
        blocks.append(block)
        served.append(name)

    async def hand_on() -> str:
        give(blocks.pop())
        count = len(served)
        await turns(lambda: len(served) > count)
        return served[-1]

    tasks = []
    for name in "abcde":  # at 0, 1, 2, 3, 4
        tasks += await queue_up(bulkhead, lambda name=name: call(name))
        clock.advance(1.0)
    assert await hand_on() == "a"  # at 5: it has waited for half of its time, not for longer
    clock.advance(1.5)
    assert await hand_on() == "e"  # at 6.5: "b", of 1, has waited for more
    assert await hand_on() == "d"
    tasks += await queue_up(bulkhead, lambda: call("f"))
    assert await hand_on() == "f"
    clock.advance(4.75)  # at 11.25: "b" has waited in vain, and "c" is the last
    assert await hand_on() == "c"

    ends = [type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)]
    assert ends == [type(None), BulkheadFullError, *[type(None)] * 4]
    assert (bulkhead.stats().waiting, bulkhead.stats().gave_up) == (0, 1)


async def test_oldest_is_served_first_unless_told(clock: Bell):
    """However long it has waited."""
    bulkhead, served = patient(clock, max_wait=10.0), []
    (held,) = fill(bulkhead)
    tasks = await queue_up(bulkhead, *(noting(bulkhead, served, name) for name in "ab"))
    clock.advance(9.5)
    give(held)
    await asyncio.gather(*tasks)
    assert served == ["a", "b"]
