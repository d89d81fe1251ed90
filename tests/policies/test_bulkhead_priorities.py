"""When there is not room for all: who gets in, who waits in front, and who has to go."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction
from typing import Any

import pytest
from tests.policies.bulkhead_support import fill, give, no_time_left, queue_up, take, turns

from resilient import (
    AIMD,
    Bulkhead,
    BulkheadFullError,
    Priority,
    current_priority,
    priority,
    service_criticality,
)
from resilient.engine.drive.holds import HoldBlock
from resilient.testing import FakeClock

LEVELS = ("probe", "critical", "default", "sheddable")


def ranked(limit: Any = 10, **options: Any) -> Bulkhead:
    """Make a bulkhead that tells calls apart."""
    options = {"priority": current_priority, "max_wait": 60.0, "clock": FakeClock()} | options
    return Bulkhead("b", limit, **options)


class Line:
    """Tasks that wait in front of a bulkhead, and what became of them."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self.served: list[str] = []
        self.put_out: list[str] = []
        self.refusal = ""
        self.blocks: list[HoldBlock] = []
        self.tasks: list[asyncio.Task[Any]] = []

    async def join(self, *names: str) -> None:
        """Have a task wait for each name: a priority, and what tells it from its equals."""
        for name in names:
            self.tasks += await queue_up(self._bulkhead, lambda name=name: self._call(name))

    async def _call(self, name: str) -> None:
        block = self._bulkhead.calling(name.partition(" ")[0])
        try:
            await block.__aenter__()
        except BulkheadFullError as exc:
            self.put_out.append(name)
            self.refusal = str(exc)
        else:
            self.blocks.append(block)
            self.served.append(name)

    async def serve_all(self) -> list[str]:
        """Hand on slot after slot, one at a time; return the order."""
        while not all(task.done() for task in self.tasks):
            give(self.blocks.pop())
            for _ in range(5):
                await asyncio.sleep(0)
        return self.served


# Shares


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 9, 10, 11, 20, 30, 100, 110])
@pytest.mark.parametrize("shares", [None, {"default": 0.55, "sheddable": 0.3}, {"sheddable": 0.07}])
def test_each_priority_fills_its_share_of_the_slots(limit: int, shares: Any):
    """To the nearest whole number, of two the lower, but one at least; and 0.55 of 100 is 55."""
    bulkhead = ranked(limit, shares=shares)
    told = {"default": 0.9, "sheddable": 0.7} | (shares or {}) | {"critical": 1}

    for level in ("critical", "default", "sheddable"):
        slots = Fraction(str(told[level])) * limit
        assert len(fill(bulkhead, level)) == max(1, math.ceil(slots - Fraction(1, 2))), level


def test_slots_taken_by_anybody_count_against_a_share():
    """What is left over for the less important grows less as the more important take more."""
    bulkhead = ranked(10)
    critical = fill(bulkhead, "critical")[:8]
    for level, more in [("sheddable", 0), ("default", 1), ("critical", 1), ("default", 0)]:
        assert len(critical) <= 10
        blocks = fill(bulkhead, level)
        assert len(blocks) == more, level
        critical += blocks


def test_shares_follow_the_limit():
    """Whoever sets it."""
    bulkhead = ranked(10)
    bulkhead.resize(20)
    assert len(fill(bulkhead, "sheddable")) == 14
    bulkhead.resize(5)
    assert len(fill(bulkhead, "sheddable")) == 3
    bulkhead.resize(AIMD(initial=40))
    assert len(fill(bulkhead, "default")) == 36


def test_share_of_default_calls_is_also_the_most_for_sheddable_ones():
    """Who gives default calls less need not say that the sheddable ones have no more."""
    bulkhead = Bulkhead("fraction", 10, priority=current_priority, shares={"default": 0.5})
    assert len(fill(bulkhead, "sheddable")) == 5


def test_shares_may_be_told_by_priority():
    """As well as by its name."""
    bulkhead = ranked(10, shares={Priority.DEFAULT: 0.5, "sheddable": 0.2})
    assert [len(fill(bulkhead, level)) for level in LEVELS] == [11, 10, 5, 2]


# The reserve


@pytest.mark.parametrize("reserve", [None, 0, 1, 3])
def test_probes_have_slots_beyond_the_limit(reserve: int | None):
    """One, unless told; nobody else gets them."""
    bulkhead = ranked(2, reserve=reserve)
    ordinary = fill(bulkhead, "critical")
    probes = fill(bulkhead, "probe")

    assert len(ordinary) == 2
    assert len(probes) == (1 if reserve is None else reserve)
    stats = bulkhead.stats()
    assert (stats.limit, stats.in_use) == (2, 2 + len(probes))
    give(ordinary.pop())
    assert len(fill(bulkhead, "critical")) == 1


def test_probe_takes_no_slot_of_others_while_the_reserve_has_one():
    """A probe under way keeps no call out, and is answered however much the limit has been lowered."""
    bulkhead = ranked(4)
    probe = take(bulkhead, "probe")
    others = fill(bulkhead, "critical")
    assert len(others) == 4
    give(probe)
    bulkhead.resize(1)
    give(take(bulkhead, "probe"))
    assert bulkhead.stats().in_use == len(others)


def test_reserve_stays_through_other_limits():
    """Also the smallest."""
    bulkhead = ranked(50, reserve=2)
    for limit in (1, 7, AIMD(initial=3)):
        bulkhead.resize(limit)
        assert len(fill(bulkhead, "critical")) == bulkhead.limit
        assert len(fill(bulkhead, "probe")) == bulkhead.limit + 2


# Whose priority


def test_call_has_the_priority_of_its_context():
    """Functions and blocks, where the context is asked."""
    bulkhead = ranked(10)
    guarded = bulkhead(lambda: None)
    blocks = fill(bulkhead, "sheddable")

    for call in (guarded, lambda: bulkhead.call(int), lambda: give(take(bulkhead))):
        call()
        with priority("sheddable"), no_time_left(), pytest.raises(BulkheadFullError):
            call()
    assert len(blocks) == 7


async def test_priority_of_the_context_goes_along_into_tasks_and_threads():
    """Into those of asyncio, and into those of a bulkhead."""
    bulkhead = ranked(10, threads=True)

    async def task() -> Priority:
        return await bulkhead.acall(asyncio.sleep, 0, current_priority())

    with priority("sheddable"):
        assert await asyncio.create_task(task()) is Priority.SHEDDABLE
        assert await asyncio.to_thread(current_priority) is Priority.SHEDDABLE
        assert bulkhead.call(current_priority) is Priority.SHEDDABLE


def test_function_tells_the_priority_of_a_call():
    """Of its arguments, as they were given; by name or itself."""
    seen: list[Any] = []

    def of_order(*args: Any, **kwargs: Any) -> Priority | str:
        seen.append((args, kwargs))
        return "sheddable" if kwargs.get("draft") else Priority.CRITICAL

    bulkhead = ranked(10, priority=of_order)
    guarded = bulkhead(lambda *_args, **_kwargs: None)
    blocks = fill(bulkhead, "sheddable")

    guarded(1, draft=False)
    bulkhead.call(dict, a=2)
    with no_time_left(), pytest.raises(BulkheadFullError):
        guarded(3, draft=True)
    assert seen == [((1,), {"draft": False}), ((), {"a": 2}), ((3,), {"draft": True})]
    assert len(blocks) == 7


@pytest.mark.parametrize(
    ("answer", "error", "rule"),
    [
        (
            None,
            TypeError,
            "priority must be a Priority or one of 'probe', 'critical', 'default', 'sheddable'",
        ),
        (1, TypeError, "priority must be a Priority or one of"),
        ("urgent", ValueError, "priority must be one of 'probe', .*, got 'urgent'"),
    ],
)
def test_function_that_tells_no_priority_is_a_mistake(answer: Any, error: type[Exception], rule: str):
    """It takes no slot."""
    bulkhead = ranked(1, priority=lambda: answer)
    with pytest.raises(error, match=f"^{rule}"):
        bulkhead(lambda: None)()
    assert (bulkhead.stats().in_use, bulkhead.stats().calls) == (0, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_bulkhead_of_one_priority_gives_it_to_all_calls(level: str):
    """Whatever the context says; a block may have another, each of them."""
    bulkhead = ranked(10, priority=level)
    with priority("critical"):
        room = len(fill(bulkhead))
        assert room == {"probe": 11, "critical": 10, "default": 9, "sheddable": 7}[level]
        assert [len(fill(bulkhead, other)) for other in LEVELS] == [11, 10, 9, 7]


def test_service_says_how_much_it_matters():
    """By its OpenTelemetry resource."""
    low = service_criticality({"OTEL_RESOURCE_ATTRIBUTES": "service.criticality=low"})
    assert len(fill(ranked(10, priority=low))) == 7


# The line


async def test_most_important_is_served_first_and_among_equals_the_oldest():
    """In whatever order they came."""
    bulkhead = ranked(1)
    line = Line(bulkhead)
    line.blocks += fill(bulkhead, "probe")
    await line.join(
        *("sheddable 1", "critical 1", "default 1", "sheddable 2"),
        *("critical 2", "probe 1", "default 2", "probe 2"),
    )

    assert await line.serve_all() == [
        *("probe 1", "probe 2", "critical 1", "critical 2"),
        *("default 1", "default 2", "sheddable 1", "sheddable 2"),
    ]


async def test_newcomer_overtakes_only_those_who_matter_less():
    """Not those who matter as much, also where a slot is free that these may not have."""
    bulkhead = ranked(10)
    line = Line(bulkhead)
    line.blocks += fill(bulkhead, "default")
    await line.join("default 1", "sheddable 1")
    assert bulkhead.stats().in_use == 9

    for level in ("default", "sheddable"):
        with no_time_left(), pytest.raises(BulkheadFullError):
            take(bulkhead, level)
    line.blocks.append(take(bulkhead, "critical"))
    assert bulkhead.stats().in_use == 10
    give(line.blocks.pop())
    assert bulkhead.stats().waiting == 2
    assert await line.serve_all() == ["default 1", "sheddable 1"]


async def test_those_of_a_share_that_is_full_wait_while_slots_are_free():
    """And are served as soon as so many are taken no more."""
    bulkhead = ranked(10)
    line = Line(bulkhead)
    line.blocks += fill(bulkhead, "sheddable")
    await line.join("sheddable 1", "sheddable 2")
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (7, 2)
    give(take(bulkhead, "default"))
    assert bulkhead.stats().waiting == 2

    bulkhead.resize(13)
    await asyncio.gather(*line.tasks)
    assert line.served == ["sheddable 1", "sheddable 2"]


# A full line


async def test_least_important_and_newest_makes_room_in_a_full_line():
    """For whoever matters more than it; and is told so, and counted."""
    bulkhead = ranked(1, max_queue=3)
    line = Line(bulkhead)
    line.blocks.append(take(bulkhead, "critical"))
    await line.join("sheddable 1", "default 1", "sheddable 2")

    async def push_in(name: str, out: list[str]) -> None:
        line.tasks.append(asyncio.ensure_future(line._call(name)))
        await turns(lambda: line.put_out == out)
        assert bulkhead.stats().waiting == 3

    await push_in("default 2", ["sheddable 2"])
    await push_in("critical 1", ["sheddable 2", "sheddable 1"])
    await push_in("critical 2", ["sheddable 2", "sheddable 1", "default 2"])
    assert line.refusal == (
        "bulkhead 'b' is full: 1 of 1 slots are taken and 3 calls wait, "
        "and its place in the queue went to a more important call"
    )
    assert await line.serve_all() == ["critical 1", "critical 2", "default 1"]
    stats = bulkhead.stats()
    assert (stats.put_out, stats.gave_up, stats.rejected) == (3, 0, 0)


async def test_nobody_makes_room_for_those_who_matter_no_more():
    """They are refused at once."""
    bulkhead = ranked(1, max_queue=2)
    line = Line(bulkhead)
    line.blocks.append(take(bulkhead, "critical"))
    await line.join("default 1", "default 2")

    for level in ("default", "sheddable"):
        with pytest.raises(BulkheadFullError, match=r"slots are taken and 2 calls wait$"):
            take(bulkhead, level)
    assert (bulkhead.stats().rejected, bulkhead.stats().put_out) == (2, 0)
    assert await line.serve_all() == ["default 1", "default 2"]


async def test_who_does_not_wait_puts_nobody_out():
    """With no time to wait there is no use for the place."""
    bulkhead = ranked(1, max_queue=1)
    line = Line(bulkhead)
    line.blocks.append(take(bulkhead, "critical"))
    await line.join("sheddable")

    with no_time_left(), pytest.raises(BulkheadFullError):
        take(bulkhead, "critical")
    assert (bulkhead.stats().put_out, bulkhead.stats().waiting) == (0, 1)
    assert await line.serve_all() == ["sheddable"]


async def test_who_is_cancelled_while_put_out_is_cancelled():
    """Both happen at once: the cancel is what the task hears of, and nothing is lost."""
    bulkhead = ranked(1, max_queue=1)
    line = Line(bulkhead)
    line.blocks.append(take(bulkhead, "critical"))
    await line.join("sheddable")
    loser = line.tasks.pop()
    line.tasks.append(asyncio.ensure_future(line._call("default")))
    await turns(lambda: bulkhead.stats().put_out == 1)
    assert bulkhead.stats().waiting == 1
    loser.cancel()
    await asyncio.wait([loser])

    assert loser.cancelled()
    assert line.put_out == []
    assert (bulkhead.stats().put_out, bulkhead.stats().gave_up) == (1, 0)
    assert await line.serve_all() == ["default"]


@pytest.mark.parametrize("order", ["fifo", "newest-first"])
async def test_newest_first_is_a_matter_among_equals(order: Any):
    """A more important call goes first all the same."""
    clock = FakeClock()
    bulkhead = ranked(1, order=order, max_wait=10.0, clock=clock)
    line = Line(bulkhead)
    line.blocks.append(take(bulkhead, "critical"))
    await line.join("default 1", "critical 1")
    clock.advance(1.0)
    await line.join("default 2", "critical 2")
    clock.advance(5.0)

    oldest = ["critical 1", "critical 2", "default 1", "default 2"]
    newest = ["critical 2", "critical 1", "default 2", "default 1"]
    assert await line.serve_all() == (oldest if order == "fifo" else newest)
