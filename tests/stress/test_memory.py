"""Nothing grows with the number of calls, and a failing call leaves no cycle for the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.contract.forms import ASYNC_GENERATOR, COROUTINE, GENERATOR, PLAIN
from tests.contract.policies import MODES, Mode, UpstreamError, each_mode
from tests.stress.memory import aassert_flat, assert_flat

from resilient import Cache, CircuitBreaker, Pipeline, Timeout
from resilient.errors import CallTimeoutError, CircuitOpenError, RejectedError
from resilient.testing import FakeClock

CALLS = 100_000 if os.environ.get("RESILIENT_SOAK") else 20_000  # one block in 60 calls would be found
CALLS_THAT_COST_MORE = 5_000  # into threads, on a loop
TOGETHER = 8  # fewer than a bulkhead's slots for calls that are not critical


class Tracked:
    """An object in the frame of a failing call."""


class ThrownError(Exception):
    """What a consumer throws into a stream."""


@pytest.fixture
def alive() -> list[weakref.ref[Tracked]]:
    """Tracked objects, seen from outside."""
    return []


def failing(kind: str, alive: list[weakref.ref[Tracked]]) -> Callable[[], Any]:
    """Return a callable of *kind* that fails, at the first step."""

    def fail() -> None:
        local = Tracked()
        alive.append(weakref.ref(local))
        raise UpstreamError

    async def afail() -> None:
        await asyncio.sleep(0)
        fail()

    def stream() -> Iterator[None]:
        yield fail()

    async def astream() -> Any:
        await asyncio.sleep(0)
        yield fail()

    return {PLAIN: fail, COROUTINE: afail, GENERATOR: stream, ASYNC_GENERATOR: astream}[kind]


async def run_once(kind: str, guarded: Callable[[], Any]) -> None:
    """Run a call that fails, and let go of its exception."""
    with contextlib.suppress(UpstreamError):
        if kind == COROUTINE:
            await guarded()
        elif kind == GENERATOR:
            next(guarded())
        elif kind == ASYNC_GENERATOR:
            await anext(guarded())
        else:
            guarded()
    await asyncio.sleep(0)  # a load of a cache is a task, and ends a turn later
    await asyncio.sleep(0)


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("kind", [PLAIN, COROUTINE, GENERATOR, ASYNC_GENERATOR])
@each_mode()
async def test_failing_call_leaves_no_cycle(mode: Mode, kind: str, alive: list[weakref.ref[Tracked]]) -> None:
    """Frames, and all that a failing call had in hand, are gone when its exception is."""
    if kind in {GENERATOR, ASYNC_GENERATOR} and not mode.takes_streams:
        kind = PLAIN
    guarded = mode.make(FakeClock())(failing(kind, alive))

    await run_once(kind, guarded)

    assert len(alive) == mode.attempts
    assert [one for one in alive if one() is not None] == []


@pytest.mark.usefixtures("without_collector")
@each_mode(tuple(mode for mode in MODES if mode.takes_streams))
async def test_exception_thrown_into_a_stream_leaves_no_cycle(mode: Mode) -> None:
    """As `contextlib` does with the exception of a block."""
    policy = mode.make(FakeClock())

    @policy
    def stream() -> Iterator[None]:
        yield

    @policy
    async def astream() -> Any:
        yield

    thrown: list[weakref.ref[ThrownError]] = []

    # No name is given to the exception: a frame of this test's own would be in a cycle with it.
    def new_error() -> ThrownError:
        error = ThrownError()
        thrown.append(weakref.ref(error))
        return error

    def throw() -> None:
        opened = stream()
        next(opened)
        with contextlib.suppress(ThrownError):
            opened.throw(new_error())

    async def athrow() -> None:
        opened = astream()
        await anext(opened)
        with contextlib.suppress(ThrownError):
            await opened.athrow(new_error())

    throw()
    await athrow()

    assert [one for one in thrown if one() is not None] == []


@pytest.mark.usefixtures("without_collector")
async def test_timed_out_call_leaves_no_cycle(alive: list[weakref.ref[Tracked]]) -> None:
    """The cancellation is the cause of the timeout; neither refers back."""

    @Timeout(0.001)
    async def hang() -> None:
        local = Tracked()
        alive.append(weakref.ref(local))
        await asyncio.Event().wait()

    with contextlib.suppress(CallTimeoutError):
        await hang()
    await asyncio.sleep(0)  # the loop itself holds the cancelled future until its next turn

    assert alive[0]() is None


@pytest.mark.usefixtures("without_collector")
def test_open_circuit_keeps_no_frame_of_the_failure_it_tells_of(alive: list[weakref.ref[Tracked]]) -> None:
    """The last failure is kept as text: an exception would keep all that the call had in hand."""
    breaker = CircuitBreaker("b", fail_max=1)
    guarded = breaker(failing(PLAIN, alive))

    with contextlib.suppress(UpstreamError):
        guarded()
    with contextlib.suppress(CircuitOpenError):
        guarded()

    assert breaker.current_state == "open"
    assert alive[0]() is None


@pytest.mark.usefixtures("without_collector")
def test_remembered_failure_of_a_cache_keeps_no_frame(alive: list[weakref.ref[Tracked]]) -> None:
    """`negative_ttl` remembers the exception, not where it came from."""
    guarded = Cache("c", ttl=1.0, negative_ttl=60.0, clock=FakeClock())(failing(PLAIN, alive))

    for _ in range(2):
        with contextlib.suppress(UpstreamError):
            guarded()

    assert len(alive) == 1
    assert alive[0]() is None


@each_mode()
def test_calls_leave_no_memory_behind(mode: Mode) -> None:
    """Good ones and failing ones, by the hundred thousand."""
    clock = FakeClock()
    fail = mode.make(clock)(failing(PLAIN, _Nowhere()))
    work = mode.make(clock)(lambda: None)

    def calls(number: int) -> None:
        for turn in range(number):
            work()
            if not turn % 100:
                clock.sleeps.clear()
                with contextlib.suppress(UpstreamError, RejectedError):
                    fail()

    assert_flat(calls, CALLS_THAT_COST_MORE if "threads" in mode.name else CALLS)


class _Nowhere(list[Any]):
    """A list that keeps nothing."""

    def append(self, _item: object) -> None: ...


@each_mode()
async def test_coroutine_calls_leave_no_memory_behind(mode: Mode) -> None:
    """The same on a loop, cut-offs and tasks of loads included."""
    clock = FakeClock()

    @mode.make(clock)
    async def work(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def calls(number: int) -> None:
        for turn in range(0, number, TOGETHER):
            clock.advance(1.0)
            await asyncio.gather(*(work((turn + n) % 2000) for n in range(TOGETHER)))

    await calls(2 * 2000)
    await aassert_flat(calls, CALLS_THAT_COST_MORE)


def test_pipeline_of_two_hundred_functions_is_freed() -> None:
    """A policy does not keep what it was put on."""
    breaker = CircuitBreaker("b")
    pipeline = Pipeline(breaker)

    def decorated() -> weakref.ref[Any]:
        def work() -> None: ...

        return weakref.ref(pipeline(work))

    left = [decorated() for _ in range(200)]
    gc.collect()

    assert [one for one in left if one() is not None] == []
