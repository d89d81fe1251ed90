"""What holds for every library: who has a connection is known, and nothing else is changed."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.pool.collecting import Metrics
from tests.pool.watching.conftest import Clock
from tests.pool.watching.libraries import (
    LIBRARIES,
    AsyncPsycopg,
    EnginePool,
    Library,
    Psycopg,
    PsycopgNull,
)

from resilient.errors import PoolTimeoutError, PoolUnavailableError
from resilient.events import ConnectionLeaked, ConnectionReturnedLate, Event
from resilient.pool.watching import Watched, ledger, watch
from resilient.telemetry.connections import ConnectionCounts

every_library = pytest.mark.parametrize("library", LIBRARIES, indirect=True, ids=lambda kind: kind.__name__)


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def watching(library: Library, clock: Clock, heard: list[Event]) -> Iterator[Watched]:
    """The watch over the pool of the library."""
    with watch(library.pool, name="orders", leak_after=30.0, clock=clock, listeners=[heard.append]) as made:
        yield made


def rounds(watching: Watched, number: int = 2) -> None:
    """Make rounds, as the thread does about once a second."""
    for _ in range(number):
        watching._ledger.round()


@every_library
async def test_borrowers_are_known(library: Library, watching: Watched, clock: Clock) -> None:
    """Where, by which way, by whom, and for how long; the oldest first."""
    first = await library.borrow()
    clock.now += 2.0
    second = await library.borrow()
    clock.now += 1.0

    old, young = watching.borrowers()
    assert (old.held_for, young.held_for) == (3.0, 1.0)
    for borrower in (old, young):
        assert "/libraries.py:" in borrower.where
        assert borrower.where.endswith(".borrow")
        assert borrower.where == borrower.stack[0]
        assert "test_borrowers_are_known" in borrower.stack[1]
        assert borrower.thread == threading.current_thread().name
        assert borrower.task is not None
        assert not borrower.leaked

    await library.give_back(first)
    assert watching.borrowers() == [young]
    await library.give_back(second)
    assert watching.borrowers() == []


@every_library
async def test_leak_is_reported_once_and_so_is_its_return(
    library: Library,
    watching: Watched,
    clock: Clock,
    heard: list[Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log and as events; the gauge says how many there are now."""
    caplog.set_level(logging.INFO, "resilient")
    connection = await library.borrow()
    clock.now += 29.9
    rounds(watching)
    assert (heard, watching.stats().leaked) == ([], 0)

    clock.now += 0.2
    rounds(watching)
    assert watching.stats().leaked == 1
    (borrower,) = watching.borrowers()
    assert borrower.leaked
    (leak,) = heard
    assert isinstance(leak, ConnectionLeaked)
    assert (leak.policy, leak.where, leak.stack) == ("orders", borrower.where, borrower.stack)
    assert leak.held_for == pytest.approx(30.1)

    clock.now += 10.0
    await library.give_back(connection)
    del connection
    clock.now += 10.0
    rounds(watching)
    (_, late) = heard
    assert isinstance(late, ConnectionReturnedLate)
    assert late.held_for == pytest.approx(40.1)
    assert (watching.stats().leaked, watching.stats().leaks, watching.stats().returned_late) == (0, 1, 1)
    assert [(record.levelno, "libraries.py" in record.message) for record in caplog.records] == [
        (logging.WARNING, True),
        (logging.INFO, True),
    ]


@every_library
async def test_who_returns_in_time_is_not_mentioned(
    library: Library, watching: Watched, clock: Clock, heard: list[Event]
) -> None:
    """A thousand times is not a long time."""
    for _ in range(5):
        connection = await library.borrow()
        clock.now += 20.0
        await library.give_back(connection)
        rounds(watching)
    del connection
    gc.collect()
    rounds(watching)

    assert heard == []
    assert (watching.stats().checkouts, watching.stats().leaks, watching.stats().collected) == (5, 0, 0)


@every_library
async def test_counts_follow_the_pool(library: Library, watching: Watched) -> None:
    """Idle and used, the limit, and who wants one."""
    first, second = await library.borrow(), await library.borrow()
    full = watching.stats()
    await library.give_back(first)
    half = watching.stats()
    await library.give_back(second)
    del first, second

    assert (full.used, full.idle, full.max_size, full.waiting) == (2, 0, 2, 0)
    assert (half.used, half.waiting, half.checkouts) == (1, 0, 2)
    empty = watching.stats()
    assert empty.used == 0
    assert watching.counts() == ConnectionCounts(
        idle=empty.idle,
        used=0,
        idle_max=watching.counts().idle_max,
        idle_min=watching.counts().idle_min,
        limit=2,
        pending=0,
        timeouts=0,
        leaked=0,
    )


@every_library
async def test_exhausted_pool_fails_as_before_and_is_counted(library: Library, watching: Watched) -> None:
    """The error is the library's own, with a note of who has the connections."""
    held = [await library.borrow(), await library.borrow()]
    library.hurry()

    with pytest.raises(library.exhausted) as caught:
        await library.borrow()

    (note,) = caught.value.__notes__
    assert note.count("libraries.py") == 2

    stats = watching.stats()
    assert (stats.timeouts, stats.used, stats.waiting, stats.checkouts) == (1, 2, 0, 2)
    for connection in held:
        await library.give_back(connection)
    assert watching.stats().used == 0


@every_library
async def test_many_at_once_add_up(library: Library, watching: Watched) -> None:
    """Those who got a connection, and those who got none in time."""
    got: list[bool] = []
    library.hurry()

    async def work() -> None:
        for _ in range(10):
            try:
                connection = await library.borrow()
            except library.exhausted:
                got.append(False)
                continue
            got.append(True)
            await asyncio.sleep(0)
            await library.give_back(connection)

    if library.asynchronous:
        await asyncio.gather(*(work() for _ in range(8)))
    else:
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, work()) for _ in range(8)))

    stats = watching.stats()
    assert (stats.checkouts, stats.timeouts) == (got.count(True), got.count(False))
    assert (stats.used, stats.waiting, len(got)) == (0, 0, 80)
    await library.give_back(await library.borrow())


@every_library
async def test_check_asks_the_server(library: Library, watching: Watched) -> None:
    """With a connection of the pool, which is back afterwards; those of either kind can be awaited."""
    await watching.acheck(timeout=20.0)
    if library.asynchronous:
        with pytest.raises(TypeError, match="acheck"):
            watching.check()
    else:
        watching.check(timeout=20.0)

    assert watching.stats().checkouts == 1 + (not library.asynchronous)
    assert watching.stats().used == 0
    await library.give_back(await library.borrow())


@every_library
async def test_check_of_an_exhausted_pool_names_who_has_the_connections(
    library: Library, watching: Watched, clock: Clock
) -> None:
    """It ends in time, and says where to look."""
    first = await library.borrow()
    clock.now += 5.0
    second = await library.borrow()
    library.hurry()

    with pytest.raises(
        PoolTimeoutError, match=r"check of pool 'orders' failed: no .* within 0\.5 s; 2 conn"
    ) as told:
        await watching.acheck(timeout=0.5)

    assert [borrower.held_for for borrower in told.value.borrowers] == [5.0, 0.0]
    assert "libraries.py" in str(told.value)
    assert (told.value.used, told.value.idle, told.value.policy) == (2, 0, "orders")
    await library.give_back(first)
    await library.give_back(second)


@every_library
async def test_pool_is_left_as_it_was(library: Library, clock: Clock) -> None:
    """Its class, its attributes; it can be watched again, but not twice."""
    bare = library.bare
    kind, own = type(bare), dict(getattr(bare, "__dict__", {}))

    for _ in range(2):
        watching = watch(library.pool, clock=clock)
        assert isinstance(bare, kind)
        assert type(bare) is not kind
        assert repr(type(bare)) == repr(kind)
        with pytest.raises(ValueError, match=r"pool is watched already, as '.+': unwatch\(\) it first"):
            watch(library.pool)

        held = await library.borrow()
        watching.unwatch()
        watching.unwatch()

        assert library.bare is bare
        assert type(bare) is kind
        if own:
            assert {name: bare.__dict__[name] for name in own}.keys() == own.keys()
            assert all(bare.__dict__.get(name) is value for name, value in own.items() if callable(value))
        await library.give_back(held)
        await library.give_back(await library.borrow())
        assert (watching.stats().checkouts, watching.borrowers()) == (1, [])
        rounds(watching)


@every_library
async def test_what_fails_here_reaches_nobody(
    library: Library, watching: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once; whoever borrows notices nothing."""

    def fail(*args: Any) -> Any:
        raise LookupError("broken")

    with caplog.at_level(logging.ERROR, "resilient"), monkeypatch.context() as patched:
        patched.setattr(ledger, "nearest", fail)
        patched.setattr(watching._ledger, "_clock", fail)
        for _ in range(2):
            await library.give_back(await library.borrow())

    assert [record.message for record in caplog.records if record.name == "resilient"] == [
        "watching pool 'orders' failed; that will not be reported again"
    ]
    assert watching.stats().used == 0
    assert watching.stats().waiting == 0


@every_library
async def test_durations_are_recorded(library: Library, clock: Clock) -> None:
    """How long it took to get a connection, to make one, and how long each was used."""
    with Metrics() as metrics:
        with watch(library.pool, name="timed", clock=clock):
            held = [await library.borrow(), await library.borrow()]
            clock.now += 3.0
            for connection in held:
                await library.give_back(connection)
            seen, counted = metrics.durations("timed"), metrics.of("timed")["count"]
            assert seen["wait"] == (2, 0.0, 0.0, 0.0)
            assert seen["use"] == (2, 6.0, 3.0, 3.0)
            assert seen["create"] in {(1, 0.0, 0.0, 0.0), (2, 0.0, 0.0, 0.0)}
            assert counted["used",] == 0

        assert "count" not in metrics.of("timed"), "the watch has ended"


@every_library
async def test_metrics_may_be_switched_off(library: Library, clock: Clock) -> None:
    """Then there are none of this pool, and nothing piles up."""
    with Metrics() as metrics, watch(library.pool, name="untimed", clock=clock, metrics=False) as watching:
        await library.give_back(await library.borrow())

        assert metrics.of("untimed") == {}
        assert watching._ledger.timings is None
        assert watching.stats().checkouts == 1


WITHOUT_CYCLES = (EnginePool, Psycopg, PsycopgNull, AsyncPsycopg)


@pytest.mark.parametrize("library", WITHOUT_CYCLES, indirect=True, ids=lambda kind: kind.__name__)
async def test_pool_goes_with_its_last_reference(library: Library) -> None:
    """A watch keeps no pool alive, nor leaves it to the garbage collector if it was not left to it before."""
    watching = watch(library.pool, name="orders")
    await library.give_back(await library.borrow())
    await library.close()
    gone = weakref.ref(library.bare)
    gc.collect()  # what the library itself left in cycles
    gc.disable()
    try:
        library.pool = None
        at_once = gone() is None
    finally:
        gc.enable()
        await library.open()  # for the fixture to close

    assert at_once
    assert watching.counts() == ConnectionCounts()
    assert watching.stats().idle is None
    with pytest.raises(PoolUnavailableError, match="there is no pool any more"):
        await watching.acheck()
    watching.unwatch()


@every_library
async def test_watch_goes_with_its_pool(library: Library) -> None:
    """Nothing of it is left, not in the thread that makes rounds nor where metrics are collected."""
    watching = watch(library.pool)
    await library.give_back(await library.borrow())
    await library.close()
    gone: list[Callable[[], object]] = [weakref.ref(watching), weakref.ref(watching._ledger)]

    del watching
    library.pool = None
    gc.collect()
    await library.open()  # for the fixture to close

    assert [reference() for reference in gone] == [None, None]


@every_library
async def test_nobody_need_keep_the_watch(library: Library, clock: Clock, heard: list[Event]) -> None:
    """It lives as long as the pool."""
    watch(library.pool, clock=clock, listeners=[heard.append])
    gc.collect()

    with pytest.raises(ValueError, match="is watched already"):
        watch(library.pool)
    connection = await library.borrow()
    assert type(library.bare).__resilient_watched__.stats().used == 1
    await library.give_back(connection)


@every_library
async def test_full_stacks_are_kept_on_request(library: Library, clock: Clock) -> None:
    """With them the way leads back to where the program began."""
    with watch(library.pool, full_stacks=True, clock=clock) as watching:
        connection = await library.borrow()
        (borrower,) = watching.borrowers()
        await library.give_back(connection)

    assert len(borrower.stack) > 10
    assert any("pytest" in line for line in borrower.stack)
