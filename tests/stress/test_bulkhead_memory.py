"""A million calls leave nothing behind, and nobody's exception keeps a slot, or what belongs to others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.stress.bulkheads import assert_whole
from tests.stress.memory import aassert_flat, assert_flat

from resilient import AIMD, Bulkhead, BulkheadFullError, Gradient, Vegas, deadline
from resilient.engine.permits import Permit
from resilient.policies.bulkhead.line import Turn

LIMIT = 3
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
CALLS = 1_000_000 if SOAK else 20_000
CALLS_THAT_COST_MORE = CALLS // 10  # that wait, or go through a thread

pytestmark = pytest.mark.timeout(600.0 if SOAK else 60.0)


class UpstreamError(Exception):
    """What a dependency raises."""


KINDS: dict[str, Callable[[], Bulkhead]] = {
    "fixed": lambda: Bulkhead("b", LIMIT),
    "priorities": lambda: Bulkhead("b", LIMIT, priority="critical"),
    "aimd": lambda: Bulkhead("b", AIMD(window=0.001), drops=UpstreamError),
    "vegas": lambda: Bulkhead("b", Vegas(window=0.001, remeasure=0.01)),
    "gradient": lambda: Bulkhead("b", Gradient(window=0.001, remeasure=0.01)),
}


def fail() -> None:
    raise UpstreamError


@pytest.mark.parametrize("kind", KINDS)
def test_calls_leave_nothing_behind(kind: str) -> None:
    """Good ones and failing ones."""
    bulkhead = KINDS[kind]()
    good, bad = bulkhead(lambda: None), bulkhead(fail)

    def calls(number: int) -> None:
        for _ in range(number // 2):
            good()
            with contextlib.suppress(UpstreamError):
                bad()

    assert_flat(calls, CALLS)


def test_refused_calls_leave_nothing_behind() -> None:
    """At once, after a wait, and for want of room for another key."""
    full = Bulkhead("b", 1)
    keyed = Bulkhead("b", 1, key=lambda key: key, max_keys=100)
    impatient = Bulkhead("b", 1, max_wait=1e-6)

    def calls(number: int) -> None:
        with full.calling(), impatient.calling(), keyed.calling(key="key"):
            for turn in range(number // 3):
                for bulkhead in (full, impatient):
                    with contextlib.suppress(BulkheadFullError):
                        bulkhead.call(int)
                keyed.call(lambda key: key, str(turn))

    assert_flat(calls, CALLS_THAT_COST_MORE)
    assert keyed.stats().keys == 100


async def test_cancelled_waits_leave_nothing_behind() -> None:
    """Each second task is cancelled, while it waits or as it is given a slot."""
    bulkhead = Bulkhead("b", 1, max_wait=60.0)

    @bulkhead
    async def work() -> None:
        await asyncio.sleep(0)

    async def calls(number: int) -> None:
        for _ in range(number // 10):
            tasks = [asyncio.create_task(work()) for _ in range(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks)

    await aassert_flat(calls, CALLS_THAT_COST_MORE)
    assert_whole(bulkhead, 1)


def test_calls_in_threads_leave_nothing_behind() -> None:
    """Good ones and failing ones, through one thread."""
    bulkhead = Bulkhead("b", LIMIT, threads=True)
    good, bad = bulkhead(lambda: None), bulkhead(fail)

    def calls(number: int) -> None:
        for _ in range(number // 2):
            good()
            with contextlib.suppress(UpstreamError):
                bad()

    assert_flat(calls, CALLS_THAT_COST_MORE)


def caught(call: Callable[[], object]) -> BaseException:
    """Return what *call* raises."""
    try:
        call()
    except UpstreamError as exc:
        return exc
    raise AssertionError("it did not fail")


def in_a_function(bulkhead: Bulkhead) -> BaseException:
    return caught(bulkhead(fail))


def in_a_block(bulkhead: Bulkhead) -> BaseException:
    def block() -> None:
        with bulkhead.calling():
            fail()

    return caught(block)


def in_a_generator(bulkhead: Bulkhead) -> BaseException:
    @bulkhead
    def stream() -> Iterator[None]:
        yield fail()

    return caught(lambda: [*stream()])


def in_a_coroutine(bulkhead: Bulkhead) -> BaseException:
    @bulkhead
    async def afail() -> None:
        await asyncio.sleep(0)
        fail()

    return caught(lambda: asyncio.run(afail()))


def in_an_async_block(bulkhead: Bulkhead) -> BaseException:
    async def ablock() -> None:
        async with bulkhead.calling():
            fail()

    return caught(lambda: asyncio.run(ablock()))


def in_an_async_generator(bulkhead: Bulkhead) -> BaseException:
    @bulkhead
    async def astream() -> AsyncIterator[None]:
        yield fail()

    async def consume() -> None:
        async for _ in astream():
            pass

    return caught(lambda: asyncio.run(consume()))


FORMS = (in_a_function, in_a_block, in_a_generator, in_a_coroutine, in_an_async_block, in_an_async_generator)
SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": LIMIT},
    "waiting": {"limit": LIMIT, "max_wait": 60.0},
    "priorities": {"limit": LIMIT, "priority": "critical", "reserve": 0},
    "adaptive": {"limit": Gradient(initial=LIMIT, min_limit=LIMIT, max_limit=LIMIT)},
    "threads": {"limit": LIMIT, "threads": True},
}


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_kept_exception_keeps_no_slot(form: Callable[[Bulkhead], BaseException], options: Any) -> None:
    """Nor what is somebody else's by then: a slot that its next holder loses is noticed all the same."""
    bulkhead = Bulkhead("b", **options)
    kept = [form(bulkhead) for _ in range(LIMIT)]

    for _ in range(2 * LIMIT):
        bulkhead.calling().__enter__()  # and forgotten

    assert len(kept) == LIMIT
    assert_whole(bulkhead, LIMIT)


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_calls_leave_no_cycle_that_holds_a_slot(options: Any) -> None:
    """Whatever became of them, slots and places in the line are gone, or free, without any collection."""
    bulkhead = Bulkhead("b", **options)
    for form in FORMS:
        form(bulkhead)
    asyncio.run(_wait_in_vain(bulkhead))

    assert _alive(bulkhead) == LIMIT
    assert_whole(bulkhead, LIMIT)


async def _wait_in_vain(bulkhead: Bulkhead) -> None:
    """Be refused, give up, be cancelled in the line and with a slot in hand."""

    @bulkhead
    async def hold(over: asyncio.Event) -> None:
        await over.wait()

    over = asyncio.Event()
    tasks = [asyncio.create_task(hold(over)) for _ in range(3 * LIMIT)]
    await asyncio.sleep(0)
    with contextlib.suppress(BulkheadFullError), deadline(1e-3):
        await hold(over)
    tasks[-1].cancel()
    over.set()
    await asyncio.sleep(0)
    tasks[LIMIT].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _alive(bulkhead: Bulkhead) -> int:
    """Return how many permits and turns there are of *bulkhead*, free ones included."""
    homes = bulkhead._desk.all()
    return sum(isinstance(one, Permit | Turn) and one.home in homes for one in gc.get_objects())
