"""Bulkheads with a slot to spare, with none, and with a crowd in front of them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from typing import Any

from bench import resources
from bench.subjects.model import Crowd, Outcome, Row, Subject, Work, family

SLOTS = 10
"""Calls at a time, where one thread or task calls: pyresilience's default."""

PATIENCE = 60.0
"""Seconds a call of a crowd waits for a slot: never that long."""

Build = Callable[[Work, int], Work]


def resilient(work: Work, slots: int = SLOTS, **settings: Any) -> Work:
    """Limit with ours."""
    from resilient import Bulkhead

    return Bulkhead("bench", slots, **settings)(work)


def resilient_waiting(work: Work, slots: int) -> Work:
    """Limit with ours, calls waiting for a slot in the order they came."""
    return resilient(work, slots, max_wait=PATIENCE)


def resilient_keys(work: Work) -> Work:
    """Limit with ours, so many slots for each key that is made of the arguments."""
    return resilient(work, key=_key_of)


def _key_of(argument: int) -> str:
    return str(argument)


def resilient_priority(work: Work) -> Work:
    """Limit with ours, the least important calls shed first."""
    from resilient import current_priority

    return resilient(work, priority=lambda _: current_priority(), shares={"sheddable": 0.7})


def resilient_threads(work: Work, slots: int = SLOTS) -> Work:
    """Run the call in a thread of ours."""
    return resilient(work, slots, threads=True)


def resilient_gradient(work: Work) -> Work:
    """Limit with ours, by how long calls take."""
    from resilient import Gradient

    return _adaptive(work, Gradient())


def resilient_vegas(work: Work) -> Work:
    """Limit with ours, by how many calls are taken to be queueing."""
    from resilient import Vegas

    return _adaptive(work, Vegas())


def resilient_aimd(work: Work) -> Work:
    """Limit with ours, by which calls fail."""
    from resilient import AIMD

    return _adaptive(work, AIMD())


def resilient_pressure(work: Work) -> Work:
    """Limit with ours, by how long calls take and how busy the process is."""
    from resilient import Gradient, Pressure

    return _adaptive(work, Gradient(pressure=Pressure()))


def _adaptive(work: Work, limit: Any) -> Work:
    from resilient import Bulkhead

    return Bulkhead("bench", limit)(work)


def bounded_semaphore(work: Work, slots: int = SLOTS) -> Work:
    """Limit with a semaphore, in as few words as one can."""
    semaphore = threading.BoundedSemaphore(slots)

    def guarded(x: int) -> Any:
        with semaphore:
            return work(x)

    return guarded


def asyncio_semaphore(work: Work, slots: int = SLOTS) -> Work:
    """Limit with a semaphore of asyncio's, in as few words as one can."""
    semaphore = asyncio.Semaphore(slots)

    async def guarded(x: int) -> Any:
        async with semaphore:
            return await work(x)

    return guarded


def executor(work: Work) -> Work:
    """Run the call in a thread of the standard library's, in the caller's context as ours does."""
    pool = ThreadPoolExecutor(SLOTS)
    closing = ExitStack()
    closing.callback(pool.shutdown)
    resources.close_at_the_end(closing, awaited=False)

    @functools.wraps(work)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return pool.submit(copy_context().run, work, *args, **kwargs).result()

    return guarded


def pyresilience(work: Work, slots: int = SLOTS) -> Work:
    """Limit with pyresilience."""
    from pyresilience import BulkheadConfig
    from pyresilience import resilient as guard

    guarded: Work = guard(bulkhead=BulkheadConfig(max_concurrent=slots))(work)
    return guarded


def interlock(work: Work, slots: int = SLOTS) -> Work:
    """Limit with interlock-cb's pipeline."""
    from interlock import Pipeline

    guarded: Work = Pipeline.builder().bulkhead(slots).build()(work)
    return guarded


def hyx(work: Work, slots: int = SLOTS) -> Work:
    """Limit with hyx, which has nobody wait here (asynchronous only)."""
    from hyx.bulkhead import bulkhead

    guarded: Work = bulkhead(max_concurrency=slots, max_capacity=slots)(work)
    return guarded


def aioresilience(work: Work, slots: int = SLOTS) -> Work:
    """Limit with a block of aioresilience's (asynchronous only)."""
    from aioresilience import Bulkhead, BulkheadConfig

    return _block(Bulkhead("bench", BulkheadConfig(max_concurrent=slots)), work)


def aioresilience_aimd(work: Work) -> Work:
    """Limit with a block of aioresilience's, by which calls fail."""
    from aioresilience import AdaptiveConcurrencyLimiter

    return _block(AdaptiveConcurrencyLimiter("bench"), work)


def _block(limiter: Any, work: Work) -> Work:
    async def guarded(x: int) -> Any:
        async with limiter:
            return await work(x)

    return guarded


# -- full ------------------------------------------------------------------------------------------------

OCCUPANT = -1
"""The argument of the call that fills the only slot."""

START = 5.0
"""Seconds in which that call must have begun."""


def full(build: Build, work: Work) -> Work:
    """Limit to one slot, in which a thread stays for as long as the run lasts."""
    inside, leave = threading.Event(), threading.Event()

    def stays(x: int) -> Any:
        if x != OCCUPANT:
            return work(x)
        inside.set()
        return leave.wait()

    guarded = build(stays, 1)
    occupant = threading.Thread(target=guarded, args=(OCCUPANT,), daemon=True)
    occupant.start()
    if not inside.wait(START):
        raise TimeoutError("the call that fills the slot does not begin")
    closing = ExitStack()
    closing.callback(occupant.join)
    closing.callback(leave.set)
    resources.close_at_the_end(closing, awaited=False)
    return guarded


async def full_async(build: Build, work: Work) -> Work:
    """Limit to one slot, in which a task stays for as long as the run lasts."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def stays(x: int) -> Any:
        if x != OCCUPANT:
            return await work(x)
        inside.set()
        return await leave.wait()

    @asynccontextmanager
    async def occupied() -> AsyncIterator[None]:
        occupant = asyncio.create_task(guarded(OCCUPANT))
        await asyncio.wait_for(inside.wait(), START)
        yield
        leave.set()
        await occupant

    guarded = build(stays, 1)
    await resources.keep_open(occupied())
    return guarded


# -- tables ----------------------------------------------------------------------------------------------

Library = tuple[str, str | None, Build]

_SEMAPHORE = "threading.BoundedSemaphore"

_BOTH: tuple[Library, ...] = (
    ("resilient", "resilient-py", resilient),
    ("pyresilience", "pyresilience", pyresilience),
    ("interlock-cb", "interlock-cb", interlock),
)
_ASYNC: tuple[Library, ...] = (
    *_BOTH,
    ("hyx", "hyx", hyx),
    ("aioresilience", "aioresilience", aioresilience),
)

_VARIANTS: tuple[Row, ...] = (
    ("resilient (key of the arguments)", "resilient-py", resilient_keys),
    ("resilient (priority of the context)", "resilient-py", resilient_priority),
    ("resilient (AIMD)", "resilient-py", resilient_aimd),
    ("resilient (Vegas)", "resilient-py", resilient_vegas),
    ("resilient (Gradient)", "resilient-py", resilient_gradient),
    ("resilient (Gradient, pressure)", "resilient-py", resilient_pressure),
)

# A semaphore turns nobody away, so ours has everybody wait. The peers that have threads wait use a semaphore.
_PATIENT: tuple[Library, ...] = (
    ("resilient", "resilient-py", resilient_waiting),
    (_SEMAPHORE, None, bounded_semaphore),
)

THREADS = 32

_ROOM = Crowd(THREADS, slots=THREADS)
_QUEUE = Crowd(THREADS, slots=4)
_QUEUE_RESTING = Crowd(THREADS, slots=4, rest=0.0001)
_QUEUE_RESTING_LONGER = Crowd(THREADS, slots=4, rest=0.001)


def _rows(libraries: tuple[Library, ...], slots: int = SLOTS) -> list[Row]:
    return [(name, package, functools.partial(_limit, build, slots)) for name, package, build in libraries]


def _limit(build: Build, slots: int, work: Work) -> Work:
    return build(work, slots)


def _full(libraries: tuple[Library, ...], fill: Callable[[Build, Work], Any]) -> list[Row]:
    return [(name, package, functools.partial(fill, build)) for name, package, build in libraries]


def _crowded(title: str, crowd: Crowd) -> tuple[Subject, ...]:
    return family(title, *_rows(_PATIENT, crowd.slots), crowd=crowd)


SUBJECTS = (
    *family("bulkhead", *_rows(_BOTH), (_SEMAPHORE, None, bounded_semaphore), *_VARIANTS),
    *family("bulkhead, full", *_full(_BOTH, full), outcome=Outcome.REJECTS),
    *family(
        "bulkhead, own threads",
        ("resilient", "resilient-py", resilient_threads),
        ("ThreadPoolExecutor", None, executor),
    ),
    *_crowded("bulkhead, 32 threads, a slot for each", _ROOM),
    *_crowded("bulkhead, 32 threads, 4 slots", _QUEUE),
    *_crowded("bulkhead, 32 threads, 4 slots, calls of 0.1 ms", _QUEUE_RESTING),
    *_crowded("bulkhead, 32 threads, 4 slots, calls of 1 ms", _QUEUE_RESTING_LONGER),
    *family(
        "async bulkhead",
        *_rows(_ASYNC),
        ("asyncio.Semaphore", None, asyncio_semaphore),
        ("aioresilience (AIMD)", "aioresilience", aioresilience_aimd),
        *_VARIANTS,
        awaited=True,
    ),
    *family("async bulkhead, full", *_full(_ASYNC, full_async), awaited=True, outcome=Outcome.REJECTS),
)
