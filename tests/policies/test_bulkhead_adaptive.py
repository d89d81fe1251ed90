"""What an adaptive limit is shown of the calls in a bulkhead: which of them count, as what, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.policies.bulkhead_support import fill, give, queue_up, take

from resilient import (
    AIMD,
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    DeadlineExceededError,
    Gradient,
    RejectedError,
    Vegas,
)
from resilient.policies.bulkhead.pressure import Pressure, PressureMeter, Reading
from resilient.policies.bulkhead.sampler import LimitStats
from resilient.testing import FakeClock

EAGER = AIMD(initial=10, window=1.0, min_samples=1, timeout=5.0)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock(100.0)


def adaptive_of(bulkhead: Bulkhead) -> LimitStats:
    """Return where the adaptive limit stands."""
    adaptive = bulkhead.stats().adaptive
    assert adaptive is not None
    return adaptive


def close_window(bulkhead: Bulkhead, clock: FakeClock) -> LimitStats:
    """Let the window end, which the next call notices; return where the limit stands then."""
    clock.advance(10.0)
    block = take(bulkhead)
    adaptive = adaptive_of(bulkhead)
    give(block, GeneratorExit())
    return adaptive


def last(bulkhead: Bulkhead, clock: FakeClock, seconds: float, error: BaseException | None = None) -> None:
    """Make a call that lasts for *seconds*."""
    block = take(bulkhead)
    clock.advance(seconds)
    give(block, error)


def test_good_calls_tell_how_long_they_took(clock: FakeClock):
    """Their mean, and how many there were at once."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    blocks = [take(bulkhead) for _ in range(3)]
    for block in blocks:
        clock.advance(0.125)
        give(block)

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.peak, adaptive.dropped) == (0.25, 3, 0)


def test_limit_is_enforced_as_it_moves(clock: FakeClock):
    """Up and down; calls beyond a lower one are let end."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    assert bulkhead.limit == 10
    blocks = fill(bulkhead)
    for block in blocks:
        give(block)
    adaptive = close_window(bulkhead, clock)
    assert adaptive.limit > 10.0
    blocks = fill(bulkhead)
    assert bulkhead.limit == int(adaptive.limit) == len(blocks)

    for _ in range(3):
        give(blocks.pop(), TimeoutError())
        clock.advance(1.0)
    give(blocks.pop())
    stats = bulkhead.stats()
    assert stats.limit == int(adaptive_of(bulkhead).limit) < len(blocks) == stats.in_use
    with pytest.raises(BulkheadFullError):
        take(bulkhead)


@pytest.mark.parametrize("error", [TimeoutError(), CallTimeoutError()], ids=repr)
def test_calls_that_time_out_are_drops(clock: FakeClock, error: Exception):
    """The service's own timeouts, and those of this library."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    last(bulkhead, clock, 0.5, error)

    assert adaptive_of(bulkhead).dropped == 1
    assert close_window(bulkhead, clock).limit < 10.0


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ConnectionError(),
        RejectedError(),
        BulkheadFullError(),
        DeadlineExceededError(),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_other_failures_tell_nothing(clock: FakeClock, error: BaseException):
    """Neither that there is too much to do, nor how long a call takes: a refusal is quick under overload."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    last(bulkhead, clock, 0.5, error)

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.limit, adaptive.rtt, adaptive.dropped, adaptive.windows) == (10.0, None, 0, 0)


@pytest.mark.parametrize(
    ("drops", "error", "dropped"),
    [
        (ConnectionError, ConnectionResetError(), 1),
        (ConnectionError, TimeoutError(), 0),
        ((ConnectionError, lambda exc: "busy" in str(exc)), ValueError("busy"), 1),
        ((ConnectionError, lambda exc: "busy" in str(exc)), ValueError("bad"), 0),
        (lambda exc: 1 / 0, ValueError(), 0),
        (Exception, RejectedError(), 0),
        (Exception, KeyboardInterrupt(), 0),
        (lambda exc: True, asyncio.CancelledError(), 0),
        (BulkheadFullError, BulkheadFullError(), 1),
        ((), TimeoutError(), 0),
    ],
)
def test_which_failures_are_drops_can_be_told(
    clock: FakeClock, drops: Any, error: BaseException, dropped: int
):
    """By types and predicates; one that fails has seen no drop; a refusal is one only if it is named."""
    bulkhead = Bulkhead("b", EAGER, drops=drops, clock=clock)
    last(bulkhead, clock, 0.5, error)
    assert adaptive_of(bulkhead).dropped == dropped
    assert bulkhead.stats().in_use == 0


async def test_streams_are_no_samples(clock: FakeClock):
    """They last as long as their consumer likes."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)

    @bulkhead
    def stream() -> Iterator[int]:
        yield 1

    @bulkhead
    async def astream() -> AsyncIterator[int]:
        yield 1

    for _ in stream():
        clock.advance(20.0)
        assert bulkhead.stats().in_use == 1
    async for _ in astream():
        clock.advance(20.0)
    long = stream()
    next(long)

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.dropped, adaptive.overdue, adaptive.windows) == (None, 0, 0, 0)
    assert bulkhead.stats().in_use == 1
    long.close()


async def test_time_in_the_line_is_no_time_of_the_call(clock: FakeClock):
    """That is the bulkhead's own doing."""
    bulkhead = Bulkhead("b", AIMD(initial=1, window=1.0, min_samples=2), max_wait=60.0, clock=clock)
    block = take(bulkhead)

    async def call() -> None:
        async with bulkhead.calling():
            clock.advance(0.25)

    (task,) = await queue_up(bulkhead, call)
    clock.advance(4.0)
    give(block, GeneratorExit())
    clock.advance(0.25)
    await task
    last(bulkhead, clock, 0.5)

    assert close_window(bulkhead, clock).rtt == 0.5


async def test_call_cancelled_with_its_slot_just_handed_on_tells_nothing(clock: FakeClock):
    """It never began."""
    bulkhead = Bulkhead("b", AIMD(initial=2, window=1.0, min_samples=1), max_wait=60.0, clock=clock)
    block, other = fill(bulkhead)
    (task,) = await queue_up(bulkhead, lambda: bulkhead.acall(asyncio.sleep, 0))
    give(block, GeneratorExit())
    clock.advance(0.25)
    task.cancel()
    await asyncio.wait([task])
    give(other, GeneratorExit())

    assert bulkhead.stats().in_use == 0
    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.overdue, adaptive.windows) == (None, 0, 0)


async def test_stream_that_waited_for_its_slot_is_no_sample_either(clock: FakeClock):
    """It is handed a slot by somebody else, who does not know what for."""
    bulkhead = Bulkhead("b", AIMD(initial=1, window=1.0, min_samples=1), max_wait=60.0, clock=clock)
    block = take(bulkhead)

    @bulkhead
    async def stream() -> AsyncIterator[int]:
        yield 1

    async def consume() -> None:
        async for _ in stream():
            clock.advance(20.0)

    (task,) = await queue_up(bulkhead, consume)
    give(block, GeneratorExit())
    await task
    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.dropped, adaptive.windows) == (None, 0, 0)


def test_refused_calls_tell_nothing(clock: FakeClock):
    """They were not made."""
    bulkhead = Bulkhead("b", AIMD(initial=1, window=1.0, min_samples=1), clock=clock)
    block = take(bulkhead)
    for _ in range(5):
        with pytest.raises(BulkheadFullError):
            take(bulkhead)
    give(block, GeneratorExit())

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.dropped, adaptive.windows) == (None, 0, 0)


def test_calls_that_do_not_end_count_before_they_do(clock: FakeClock):
    """Where half of what is in flight hangs, there is no waiting for samples."""
    bulkhead = Bulkhead("b", AIMD(initial=10, window=1.0, min_samples=100, timeout=5.0), clock=clock)
    blocks = [take(bulkhead) for _ in range(6)]
    clock.advance(6.0)
    with pytest.raises(BulkheadFullError, match="6 of 5 slots are taken"):
        take(bulkhead)  # who comes now is met by what these have shown

    adaptive = adaptive_of(bulkhead)
    assert (adaptive.overdue, adaptive.windows, adaptive.dropped) == (6, 1, 0)
    assert adaptive.limit < 10.0
    for block in blocks:
        give(block)
    assert adaptive_of(bulkhead).dropped == 6


def test_call_that_takes_longer_than_the_timeout_is_a_drop_however_it_ends(clock: FakeClock):
    """AIMD has no other use for how long calls take."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    last(bulkhead, clock, 5.0)
    assert adaptive_of(bulkhead).dropped == 0
    last(bulkhead, clock, 5.5)
    assert adaptive_of(bulkhead).dropped == 1
    last(bulkhead, clock, 5.5, ValueError())
    assert adaptive_of(bulkhead).dropped == 1


def test_call_begun_before_a_measurement_is_discarded(clock: FakeClock):
    """It went through a queue that is to be measured without."""
    bulkhead = Bulkhead("b", Vegas(window=1.0, min_samples=1, remeasure=5.0), clock=clock)
    block = take(bulkhead)
    for _ in range(50):
        last(bulkhead, clock, 0.5)
    assert adaptive_of(bulkhead).measurements > 0
    give(block)

    assert adaptive_of(bulkhead).discarded == 1


def test_answer_that_has_begun_is_learnt_from_at_once(clock: FakeClock):
    """The slot is kept for what is still sent; that tells nothing any more."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    block = take(bulkhead)
    clock.advance(0.25)
    block.answered(None)
    clock.advance(50.0)
    assert bulkhead.stats().in_use == 1
    give(block)
    block.answered(TimeoutError())  # it has no slot any more, and nothing to say

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.overdue, adaptive.dropped) == (0.25, 0, 0)


@pytest.mark.parametrize(
    ("limit", "name"), [(AIMD(), "aimd"), (Vegas(), "vegas"), (Gradient(), "gradient")], ids=repr
)
def test_each_algorithm_tells_where_it_stands(clock: FakeClock, limit: Any, name: str):
    """From the beginning."""
    bulkhead = Bulkhead("b", limit, clock=clock)

    adaptive = adaptive_of(bulkhead)
    assert (adaptive.algorithm, adaptive.limit, bulkhead.limit) == (name, 20.0, 20)
    assert (adaptive.rtt, adaptive.baseline, adaptive.peak, adaptive.windows) == (None, None, 0, 0)
    assert (adaptive.dropped, adaptive.discarded, adaptive.overdue, adaptive.measurements) == (0, 0, 0, 0)
    assert (adaptive.lag, adaptive.cpu, adaptive.pressure) == (0.0, 0.0, 1.0)


def test_settings_serve_several_bulkheads(clock: FakeClock):
    """Each follows its own calls."""
    one, other = (Bulkhead(name, EAGER, clock=clock) for name in "ab")
    last(one, clock, 0.5, TimeoutError())
    assert close_window(one, clock).limit < close_window(other, clock).limit == 10.0


def test_limit_learns_with_priorities_too(clock: FakeClock):
    """From the others: probes are quick whatever else is slow."""
    limit = AIMD(initial=2, window=1.0, min_samples=1)
    bulkhead = Bulkhead("b", limit, priority="critical", reserve=1, clock=clock)
    blocks = [*fill(bulkhead), take(bulkhead, "probe")]
    assert len(blocks) == 3
    clock.advance(0.5)
    for block in blocks:
        give(block)

    adaptive = close_window(bulkhead, clock)
    assert (adaptive.rtt, adaptive.peak) == (0.5, 2)


def test_critical_calls_have_their_slots_while_the_limit_is_lowered_to_measure(clock: FakeClock):
    """Those that matter less make the room that is needed for it."""
    bulkhead = Bulkhead("b", Vegas(window=1.0, min_samples=1, remeasure=5.0), priority="default", clock=clock)
    for _ in range(50):
        last(bulkhead, clock, 0.5)
        if bulkhead.limit < 20:
            break
    assert bulkhead.limit == int(adaptive_of(bulkhead).limit) == 10

    assert len(fill(bulkhead, "default")) == 9
    assert len(fill(bulkhead, "critical")) == 20
    assert len(fill(bulkhead, "probe")) == 21


def test_child_process_learns_nothing_from_a_call_of_its_parent(clock: FakeClock):
    """That call holds no slot of the child's."""
    bulkhead = Bulkhead("b", EAGER, clock=clock)
    inherited = take(bulkhead)

    bulkhead.after_fork()  # as in a child

    give(inherited, TimeoutError())
    assert adaptive_of(bulkhead).dropped == 0


@pytest.mark.parametrize(
    "limit", [Gradient(initial=20), Vegas(initial=20), AIMD(initial=20)], ids=lambda limit: limit.name
)
def test_those_that_stay_do_not_keep_all_others_out(limit: AIMD, clock: FakeClock):
    """Streams may hold more slots than a lowered limit has: without other calls it could never rise again."""
    bulkhead = Bulkhead("door", limit, clock=clock)
    streams = [take(bulkhead) for _ in range(14)]
    clock.advance(0.05)
    for stream in streams:
        stream.answered(None)
    served = [_serve_or_fail(bulkhead, clock, slow=100 < number < 200) for number in range(1200)]

    assert sum(served[:100]) == 100
    assert sum(served[-600:]) == 600
    for stream in streams:
        give(stream)


def _serve_or_fail(bulkhead: Bulkhead, clock: FakeClock, *, slow: bool) -> bool:
    """Tell whether there is a slot; of calls that are *slow*, all time out."""
    block = bulkhead.calling()
    try:
        block.__enter__()
    except BulkheadFullError:
        clock.advance(0.05)
        return False
    clock.advance(0.05)
    give(block, TimeoutError() if slow else None)
    return True


def test_pressure_that_lasts_does_not_wear_a_limit_down(clock: FakeClock, monkeypatch: pytest.MonkeyPatch):
    """It holds the limit to what it was when it began: what is lost to a stall comes back."""
    monkeypatch.setattr(PressureMeter, "read", lambda _: Reading(lag=0.0, cpu=0.95, factor=0.95))
    limit = AIMD(initial=40, window=0.1, min_samples=1, pressure=Pressure(lag=None))
    bulkhead = Bulkhead("door", limit, clock=clock)
    for number in range(400):
        blocks = fill(bulkhead)
        clock.advance(0.2)
        for block in blocks:
            give(block, TimeoutError() if number % 100 == 50 else None)

    assert adaptive_of(bulkhead).limit == 40
    assert bulkhead.limit == 38
