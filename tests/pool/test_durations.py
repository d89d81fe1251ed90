"""How long connections are made, waited for and lent: exactly, and at no cost where it is next to nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.pool.collecting import Metrics
from tests.pool.support import AsyncConn, World, patient

from resilient.errors import PoolTimeoutError
from resilient.pool.durations import BRIEF, Durations
from resilient.testing import FakeClock


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_brief_ones_are_only_counted() -> None:
    """As 0 s, which is within the bin that they belong to."""
    durations = Durations(FakeClock())
    for seconds in (0.5, BRIEF, 2.0):
        durations.add(seconds)
    for _ in range(4):
        next(durations.brief.ticker)

    seen = durations.histogram()
    assert (seen.count, seen.total, seen.shortest, seen.longest) == (7, 2.5 + BRIEF, 0.0, 2.0)
    assert (seen.bins[0], sum(seen.bins)) == (5, 7)
    assert (durations.count, durations.total) == (7, 2.5 + BRIEF)
    assert durations.lately().histogram == seen


def test_latency_is_that_of_the_last_one_to_two_minutes() -> None:
    """Of the brief ones, too."""
    clock = FakeClock()
    durations = Durations(clock)
    for _ in range(4):
        durations.add(1.0)
        next(durations.brief.ticker)
        clock.advance(59.0)
        durations.fold()
        clock.advance(1.0)
        durations.fold()

    assert durations.histogram().count == 8
    latency = durations.lately()
    assert (latency.count, latency.histogram.bins[0]) == (2, 1)
    clock.advance(60.0)
    durations.fold()
    assert durations.lately().count == 0
    assert durations.lately().p50 is None


def test_durations_that_nobody_puts_into_bins_do_not_pile_up() -> None:
    """Where there is no thread for rounds; none is lost."""
    durations = Durations(FakeClock())
    for _ in range(50_001):
        durations.record(0.5)

    assert len(durations._recorder.pending) < 20_000
    assert durations.count == 50_001


def test_rounds_put_into_bins_what_has_piled_up(world: World) -> None:
    """Though nobody asks for it."""
    pool = world.pool()
    with pool.connection():
        world.clock.advance(1.0)
    timings = pool.core.stock.timings.by_name().values()
    assert any(durations._recorder.pending for durations in timings)

    pool.round()
    assert not any(durations._recorder.pending for durations in timings)


def test_threads_have_each_duration_told_once_in_exact_numbers(world: World) -> None:
    """Lent at once, after a wait, and not at all."""
    with Metrics() as metrics:
        pool = world.pool(name="of threads", max_size=2, min_size=1, timeout=4.0)
        with pool.connection():  # waits for it to be made, which takes no time here
            world.clock.advance(2.0)
            with pool.connection():
                world.clock.advance(1.0)
                with pytest.raises(PoolTimeoutError):
                    pool.getconn()
        held = [pool.getconn(), pool.getconn()]

        def return_one() -> None:
            world.clock.advance(1.5)
            pool.putconn(held[0])

        world.meanwhile.append(return_one)
        pool.putconn(pool.getconn())

        told, stats = metrics.durations("of threads"), pool.stats()
        assert told["create"] == (2, 0.0, 0.0, 0.0)
        assert told["wait"] == (5, 1.5, 0.0, 1.5)
        assert told["use"] == (4, 7.0 + 5.0 + 1.5, 0.0, 7.0)
        assert (stats.checkouts, stats.use_seconds, stats.waited) == (5, 13.5, 4)
        assert stats.use_latency.histogram.bins[0] == 1
        assert (stats.wait_latency.count, stats.create_latency.count) == (5, 2)


@patient
async def test_tasks_have_each_duration_told_once_in_exact_numbers(world: World) -> None:
    """The same, of a pool for tasks, with a server that takes its time."""

    async def connect() -> AsyncConn:
        await asyncio.sleep(0.25)
        return AsyncConn(world.server, 0)

    async def borrow(seconds: float) -> None:
        async with pool.connection():
            await asyncio.sleep(seconds)

    with Metrics() as metrics:
        pool = world.async_pool(name="of tasks", connect=connect, max_size=1)
        await asyncio.gather(borrow(1.0), borrow(2.0), borrow(0.0))
        await borrow(4.0)
        with pytest.raises(PoolTimeoutError):
            await asyncio.gather(borrow(6.0), borrow(0.0))
        await asyncio.sleep(2.0)

        told = metrics.durations("of tasks")
        assert told["create"] == (1, 0.25, 0.25, 0.25)
        assert told["wait"] == (5, 0.25 + 1.25 + 3.25, 0.0, 3.25)
        assert told["use"] == (5, 13.0, 0.0, 6.0)
        await pool.close()


def test_connection_that_is_taken_away_was_lent_until_then(world: World) -> None:
    """Once: not again when the borrower returns it after all, nor less when connections are closed."""
    pool = world.pool(on_leak="reclaim", max_hold=5.0)
    conn = pool.getconn()
    world.clock.advance(5.0)
    pool.round()
    world.clock.advance(5.0)
    del conn
    pool.round()
    with pool.connection():
        world.clock.advance(1.0)
    pool.drain()
    pool.round()

    stats = pool.stats()
    assert (stats.reclaimed, stats.size, stats.use_seconds) == (1, 0, 6.0)
    assert (stats.use_latency.count, stats.use_latency.histogram.longest) == (2, 5.0)


def test_clock_that_was_set_back_spoils_nothing(world: World) -> None:
    """What took less than no time counts as none."""
    pool = world.pool()
    with pool.connection():
        world.clock._now -= 3.0

    stats = pool.stats()
    assert (stats.checkouts, stats.use_seconds, stats.use_latency.count) == (1, 0.0, 1)


def test_reading_and_lending_wait_for_nothing_of_one_another(world: World) -> None:
    """A garbage collection may return a connection in the midst of reading, under the lock of that."""
    pool = world.pool()
    with pool.connection():
        world.clock.advance(1.0)
    done = threading.Event()
    recorder = pool.core.stock.timings.use._recorder

    def use_it() -> None:
        with pool.connection():
            world.clock.advance(1.0)
        with pool.connection(), pytest.raises(ZeroDivisionError), pool.connection():
            raise ZeroDivisionError
        done.set()

    with recorder._lock:
        user = threading.Thread(target=use_it)
        user.start()
        user.join(20.0)
        assert done.is_set(), "whoever returns a connection waits for who reads"
    assert pool.stats().use_latency.count == 4
