"""The lag of real event loops: blocked, ended, run in pieces, several at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from resilient.policies.bulkhead.pressure import BEAT, KEEP, Pressure, PressureMeter, Reading

pytestmark = pytest.mark.faults

BLOCK = 0.3  # seconds
PATIENCE = 10.0


@pytest.fixture
def meter() -> PressureMeter:
    """A meter that goes by the lag alone: what else this machine does is not the question."""
    return Pressure(cpu=None).meter(time.monotonic)


def in_thread(main: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=main)
    thread.start()
    return thread


async def beats(number: int) -> None:
    await asyncio.sleep(number * BEAT)


async def test_blocked_loop_has_been_late(meter: PressureMeter) -> None:
    """Read on the loop itself, before its timer could run, and after."""
    meter.touch()
    await beats(2)
    time.sleep(BLOCK)  # noqa: ASYNC251 - the fault
    during = meter.read()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    after = meter.read()

    assert during.lag > BLOCK - 2 * BEAT
    assert after.lag > 0.8 * during.lag
    assert (during.factor, after.factor) == (0.5, 0.5)


def test_blocked_loop_shows_from_another_thread_while_it_is(meter: PressureMeter) -> None:
    """Where one loop hangs, the others hear of it."""
    blocked, release = threading.Event(), threading.Event()

    async def hang() -> None:
        meter.touch()
        blocked.set()
        release.wait(PATIENCE)

    thread = in_thread(lambda: asyncio.run(hang()))
    assert blocked.wait(PATIENCE)
    lags = []
    for _ in range(3):
        time.sleep(2 * BEAT)
        lags.append(meter.read().lag)
    release.set()
    thread.join()

    assert 0.0 < lags[0] < lags[1] < lags[2]
    assert meter.read() == Reading(lag=0.0, cpu=pytest.approx(0.5, abs=0.6), factor=1.0)


def test_loop_ends_without_waiting_for_the_timer(meter: PressureMeter) -> None:
    """Nothing keeps it running, and a closed loop is forgotten; debug mode has nothing to complain about."""

    async def touch() -> None:
        meter.touch()

    begun = time.monotonic()
    for _ in range(3):
        asyncio.run(touch(), debug=True)
        assert meter.read().lag == 0.0

    assert time.monotonic() - begun < KEEP
    assert not meter.watched


def test_loop_run_in_pieces_is_not_late_for_the_time_between(meter: PressureMeter) -> None:
    """As with `run_until_complete` for each request: nobody looks between two of them."""

    async def request() -> float:
        meter.touch()
        await asyncio.sleep(BEAT / 10)
        return meter.read().lag

    loop = asyncio.new_event_loop()
    loop.run_until_complete(request())
    time.sleep(BLOCK)
    lag = loop.run_until_complete(request())
    loop.close()

    assert lag < BLOCK / 2


def test_loops_in_several_threads_are_watched_at_once(meter: PressureMeter) -> None:
    """Five of them in time, and one that is not."""
    together = threading.Barrier(7)

    async def serve(block: float) -> None:
        meter.touch()
        await beats(1)
        time.sleep(block)  # noqa: ASYNC251 - the fault
        await asyncio.to_thread(together.wait, PATIENCE)
        await asyncio.to_thread(together.wait, PATIENCE)

    threads = [
        in_thread(lambda block=block: asyncio.run(serve(block))) for block in (0.0, 0.0, BLOCK, 0.0, 0.0, 0.0)
    ]
    together.wait(PATIENCE)
    lag, watched = meter.read().lag, len(meter.watched)
    together.wait(PATIENCE)
    for thread in threads:
        thread.join()

    assert watched == 6
    assert lag > BLOCK / 3
