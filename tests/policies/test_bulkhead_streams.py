"""Slots that are held for long, or that nobody gives back: streams, and what was forgotten."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.policies.bulkhead_support import give, slots_left, take

from resilient import Bulkhead, BulkheadFullError

# Slots that nobody gives back


def test_slot_of_a_forgotten_block_comes_back():
    """Statistics say so at once, and the next call has it."""
    bulkhead = Bulkhead("b", 1)
    block = take(bulkhead)
    del block

    assert bulkhead.stats().in_use == 0
    assert bulkhead.call(str) == ""
    assert slots_left(bulkhead) == 1


def test_block_entered_twice_holds_one_slot():
    """It is good for one use; the slot of the first one is not lost."""
    bulkhead = Bulkhead("b", 2)
    block = take(bulkhead)
    block.__enter__()

    assert bulkhead.stats().in_use == 1
    give(block)
    assert slots_left(bulkhead) == 2


@pytest.mark.parametrize("shape", ["function", "coroutine", "generator"])
def test_exception_that_is_kept_keeps_no_slot_of_later_calls(shape: str):
    """Its traceback leads through our wrapper: what that had held belongs to others by then."""
    bulkhead = Bulkhead("b", 1)

    @bulkhead
    def fail() -> None:
        raise LookupError

    @bulkhead
    async def afail() -> None:
        raise LookupError

    @bulkhead
    def stream() -> Iterator[None]:
        yield None
        raise LookupError

    calls: dict[str, Callable[[], object]] = {
        "function": fail,
        "coroutine": lambda: asyncio.run(afail()),
        "generator": lambda: list(stream()),
    }
    with pytest.raises(LookupError) as kept:
        calls[shape]()
    block = take(bulkhead)
    del block

    assert slots_left(bulkhead) == 1
    assert kept.value is not None


# Streams


def test_generator_holds_its_slot_from_its_first_step_to_its_end():
    """Between the steps, too; and none before."""
    bulkhead = Bulkhead("b", 1)

    @bulkhead
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    idle, stream = numbers(), numbers()
    assert bulkhead.stats().in_use == 0
    for _ in stream:
        assert bulkhead.stats().in_use == 1
        with pytest.raises(BulkheadFullError):
            next(numbers())
    assert bulkhead.stats().in_use == 0
    assert list(idle) == [1, 2]


@pytest.mark.parametrize("end", ["closed", "forgotten", "in a cycle"])
def test_unfinished_generator_gives_its_slot_back(end: str):
    """When it is closed, and when it is collected."""
    bulkhead = Bulkhead("b", 1)

    @bulkhead
    def endless(*_held: object) -> Iterator[int]:
        while True:
            yield 1

    cycle: list[Any] = []
    stream = endless(cycle)
    cycle.append(stream)
    next(stream)
    assert bulkhead.stats().in_use == 1
    if end == "closed":
        stream.close()
    elif end == "forgotten":
        cycle.clear()
    del stream, cycle
    if end == "in a cycle":
        assert bulkhead.stats().in_use == 1
        gc.collect()
    assert slots_left(bulkhead) == 1


@pytest.mark.parametrize("end", ["finished", "closed", "forgotten"])
async def test_asynchronous_generator_gives_its_slot_back(end: str):
    """At its end, however it comes; the loop closes what is forgotten."""
    bulkhead = Bulkhead("b", 1)

    @bulkhead
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    stream = numbers()
    assert bulkhead.stats().in_use == 0
    assert await anext(stream) == 1
    assert bulkhead.stats().in_use == 1
    with pytest.raises(BulkheadFullError):
        await anext(numbers())
    if end == "finished":
        assert [number async for number in stream] == [2]
    elif end == "closed":
        await stream.aclose()  # type: ignore[attr-defined]
    del stream
    for _ in range(5):
        await asyncio.sleep(0)
    assert slots_left(bulkhead) == 1
