"""Borrowers that forget: named at their place, once; their connections come back, or are taken."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.pool.support import AsyncConn, Conn, SteppedPool, World, patient

from resilient.errors import ConnectionReclaimedError, PoolTimeoutError
from resilient.events import (
    ConnectionCollected,
    ConnectionLeaked,
    ConnectionReclaimed,
    ConnectionReturnedLate,
)
from resilient.pool.members import Errand

HERE = Path(__file__)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def line_of(word: str) -> str:
    """Return "file:line" of the one line in this file that is marked with *word*."""
    lines = HERE.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {word}")]
    return f"{HERE}:{number} in "


class Cursor:
    """Something made of a connection, which it keeps."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn


class WithCursors(Conn):
    """A connection of which cursors are made."""

    def cursor(self) -> Cursor:
        return Cursor(self)

    def commit(self) -> None:
        """Nothing to be done."""

    def rollback(self) -> None:
        """Nothing to be done."""


# Held for too long.


def test_leak_is_reported_once_with_its_place(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """hikari#465, #871: as an event, in the log, in the statistics; with file and line, and not again."""
    pool = world.pool(leak_after=30.0)
    conn = pool.getconn()  # leak
    for _ in range(100):
        world.clock.advance(1.0)
        pool.round()

    (event,) = world.of(ConnectionLeaked)
    assert event.policy == "orders"
    assert event.held_for == pytest.approx(30.0)
    assert event.where.startswith(line_of("leak"))
    assert event.stack[0] == event.where
    assert (event.thread, event.task) == ("MainThread", None)
    (record,) = caplog.records
    assert record.name == "resilient"
    assert record.levelno == logging.WARNING
    assert f"Borrowed at {line_of('leak')}" in record.getMessage()
    assert "held for 30.0 s, by thread MainThread" in record.getMessage()
    stats = pool.stats()
    assert (stats.leaks, stats.leaked) == (1, 1)
    (borrower,) = pool.borrowers()
    assert borrower.leaked
    assert conn.ask() == "pong"


def test_return_after_all_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """hikari#522: whoever looks into a report has to know whether it was a false alarm."""
    pool = world.pool(leak_after=30.0)
    conn = pool.getconn()  # late
    world.clock.advance(31.0)
    pool.round()
    world.clock.advance(10.0)
    caplog.clear()
    with caplog.at_level(logging.INFO, "resilient"):
        pool.putconn(conn)

    (event,) = world.of(ConnectionReturnedLate)
    assert event.held_for == pytest.approx(41.0)
    assert event.where.startswith(line_of("late"))
    assert "has been returned after 41.0 s" in caplog.text
    stats = pool.stats()
    assert (stats.leaks, stats.leaked, stats.used) == (1, 0, 0)
    assert stats.use_seconds == pytest.approx(41.0)


def test_each_loan_is_reported_for_itself(world: World) -> None:
    """The next one of the same connection too, if it is too long; those that are not never are."""
    pool = world.pool(leak_after=5.0)
    for seconds in (6.0, 4.0, 6.0):
        with pool.connection():
            world.clock.advance(seconds)
            pool.round()
    assert [event.held_for for event in world.of(ConnectionLeaked)] == [6.0, 6.0]
    assert len(world.of(ConnectionReturnedLate)) == 2
    assert len(world.server.made) == 1


def test_no_report_where_none_is_wanted(world: World) -> None:
    """`leak_after=None`: for borrowers that are to hold theirs for long."""
    pool = world.pool(leak_after=None)
    conn = pool.getconn()
    world.clock.advance(1e5)
    pool.round()
    assert world.heard == []
    pool.putconn(conn)
    assert pool.stats().leaks == 0


def test_whoever_finds_the_pool_dry_is_told_who_leaked(world: World) -> None:
    """The report does not wait for the round: whoever waits looks himself."""
    pool = world.pool(max_size=1, leak_after=2.0, timeout=4.0)
    conn = pool.getconn()  # dry
    with pytest.raises(PoolTimeoutError) as refused:
        pool.getconn()
    (borrower,) = refused.value.borrowers
    assert borrower.where.startswith(line_of("dry"))
    assert borrower.leaked
    assert len(world.of(ConnectionLeaked)) == 1
    pool.putconn(conn)


def test_listener_and_log_that_fail_hurt_no_borrower(world: World) -> None:
    """What is reported of one is not another's failure."""
    pool = world.pool(leak_after=1.0)

    def fail(event: object) -> None:
        raise LookupError(event)

    pool.add_listener(fail)
    with pool.connection():
        world.clock.advance(2.0)
        pool.round()
    with pool.connection() as conn:
        assert conn.ask()
    pool.remove_listener(fail)


def test_listener_may_use_the_pool(world: World) -> None:
    """It is called without the lock."""
    pool = world.pool(leak_after=1.0)
    sizes: list[int] = []

    def look(_: object) -> None:
        with pool.connection():
            sizes.append(pool.stats().used)

    pool.add_listener(look)
    conn = pool.getconn()
    world.clock.advance(2.0)
    pool.round()
    assert sizes == [2]
    pool.putconn(conn)


# Garbage-collected.


def test_forgotten_connection_comes_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """B1: dropped without a return it is lent again, and the report names the place."""
    pool = world.pool(max_size=1)
    pool.getconn()  # forgotten
    gc.collect()

    with pool.connection() as conn:
        assert conn.number == 0
        assert conn.ask()

    (event,) = world.of(ConnectionCollected)
    assert event.where.startswith(line_of("forgotten"))
    assert event.reused
    assert (event.thread, event.task) == ("MainThread", None)
    assert f"Borrowed at {line_of('forgotten')}" in caplog.text
    assert "was garbage-collected" in caplog.text
    assert "it is back in the pool" in caplog.text
    assert pool.stats().collected == 1


def test_forgotten_in_a_cycle_comes_back(world: World) -> None:
    """SQLAlchemy does so for threads; whoever waits meanwhile is served when the collector has run."""
    pool = world.pool(max_size=1, timeout=10.0)

    class Request:
        """Refers to itself, as many do."""

        def __init__(self) -> None:
            self.me = self
            self.conn = pool.getconn()

    Request()
    world.meanwhile = [lambda: None, gc.collect]
    with pool.connection() as conn:
        assert conn.number == 0
    assert pool.stats().collected == 1


def test_forgotten_generator_gives_its_connection_back(world: World) -> None:
    """Its block ends with it."""
    pool = world.pool(max_size=1)

    def rows() -> Any:
        with pool.connection() as conn:
            yield conn.ask()

    assert next(rows()) == "pong"
    gc.collect()
    pool.round()
    assert pool.stats().used == 0
    with pool.connection() as conn:
        assert conn.ask()


def test_forgotten_transaction_is_rolled_back(world: World) -> None:
    """The next borrower does not find half of what the last one did."""
    log: list[str] = []

    class Session(WithCursors):
        def rollback(self) -> None:
            log.append("rollback")

        def commit(self) -> None:
            log.append("commit")

    world.server.kind = Session
    pool = world.pool()
    pool.getconn().ask()
    gc.collect()
    pool.round()
    assert log == ["rollback"]
    assert world.of(ConnectionCollected)[0].reused


@pytest.mark.parametrize("kept", ["method", "cursor", "connection"])
def test_connection_that_is_still_in_use_is_closed(kept: str, world: World) -> None:
    """Its borrower dropped the stand-in, and not all that was made of it: that would be in two hands."""
    world.server.kind = WithCursors
    pool = world.pool(max_size=1)

    def borrow() -> object:
        conn: Any = pool.getconn()  # in use
        if kept == "method":
            return conn.ask
        return conn.cursor() if kept == "cursor" else pool.unwrap(conn)

    still = borrow()
    gc.collect()
    with pool.connection() as conn:
        assert conn.number == 1

    (event,) = world.of(ConnectionCollected)
    assert not event.reused
    assert event.where.startswith(line_of("in use"))
    assert world.server.made[0].closed == 1
    del still


def test_connection_is_not_closed_while_a_call_runs_in_it(world: World) -> None:
    """`pool.getconn().ask()`: the stand-in goes before the call begins, and the call has to end well."""
    pool = world.pool(max_size=2)
    seen: list[bool] = []

    class Slow(Conn):
        def ask(self, what: object = "pong") -> object:
            gc.collect()
            pool.round()
            seen.append(self.is_open)
            return super().ask(what)

    world.server.kind = Slow
    assert pool.getconn().ask("answer") == "answer"
    assert seen == [True]
    pool.round()
    assert pool.stats().used == 0


def test_forgotten_while_the_server_hangs_is_reported_too(world: World) -> None:
    """It cannot be reset, so it is given up after a while; who forgot it is named all the same."""
    pool = world.pool(reset=Conn.reset, check_timeout=2.0)
    pool.getconn()
    pool.crew.at_once = False
    gc.collect()
    pool.round()
    assert pool.crew.waiting_for(Errand.RESET) == 1
    world.clock.advance(3.0)
    pool.round()

    (event,) = world.of(ConnectionCollected)
    assert not event.reused
    assert pool.stats().collected == 1
    assert pool.stats().size == 0
    pool.crew.do()
    assert not world.server.open


def test_leak_that_is_collected_later_is_told_twice_and_no_more(world: World) -> None:
    """Held too long, then collected; it was not returned."""
    pool = world.pool(leak_after=5.0)
    conn = pool.getconn()
    world.clock.advance(6.0)
    pool.round()
    del conn
    gc.collect()
    pool.round()
    pool.round()
    assert [type(event) for event in world.heard] == [ConnectionLeaked, ConnectionCollected]
    stats = pool.stats()
    assert (stats.leaks, stats.leaked, stats.collected, stats.used) == (1, 0, 1, 0)


def test_pool_may_be_forgotten_with_its_connections(world: World) -> None:
    """And a stand-in that outlives its pool goes on working until it goes."""
    pool: SteppedPool = world.pool()
    conn = pool.getconn()
    world.crews.clear()
    del pool
    gc.collect()
    assert conn.ask() == "pong"
    del conn
    gc.collect()


@patient
async def test_task_that_is_gone_loses_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """SQLAlchemy#8145: asynchronous connections too, which have to be awaited to be closed."""
    world.server.kind = AsyncConn
    pool = world.async_pool(max_size=1)

    async def forget() -> None:
        conn = await pool.getconn()  # forgotten by a task
        assert conn.ask()

    await asyncio.create_task(forget(), name="checkout-7")
    gc.collect()
    async with pool.connection() as conn:
        assert conn.number == 0

    (event,) = world.of(ConnectionCollected)
    assert event.where.startswith(line_of("forgotten by a task"))
    assert event.task == "checkout-7"
    assert event.reused
    assert f"task checkout-7 in thread {event.thread}" in caplog.text
    await pool.close()


@patient
async def test_task_in_a_cycle_that_never_ends_loses_nothing(world: World) -> None:
    """asyncio forgets tasks that nobody refers to."""
    pool = world.async_pool(max_size=1)

    async def forget() -> None:
        conn = await pool.getconn()
        me = [conn]
        me.append(me)  # type: ignore[arg-type]

    await asyncio.create_task(forget())
    gc.collect()
    async with pool.connection(timeout=5.0) as conn:
        assert conn.number == 0
    assert pool.stats().collected == 1
    await pool.close()


@patient
async def test_async_connection_that_is_still_in_use_is_closed(world: World) -> None:
    """By awaiting its own way of closing."""
    world.server.kind = AsyncConn
    pool = world.async_pool(max_size=1)
    ask = (await pool.getconn()).ask
    gc.collect()
    async with pool.connection() as conn:
        assert conn.number == 1
    assert world.server.made[0].closed == 1
    assert not world.of(ConnectionCollected)[0].reused
    del ask
    await pool.close()


# Taken away.


def reclaiming(world: World, **options: Any) -> SteppedPool:
    return world.pool(on_leak="reclaim", max_hold=20.0, leak_after=5.0, max_size=1, **options)


def test_connection_that_is_held_too_long_is_taken(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """C2: cut at once, so that the server is rid of it; the place is free; the late borrower is told."""
    pool = reclaiming(world)
    conn = pool.getconn()  # hold
    ask = conn.ask
    for _ in range(20):
        world.clock.advance(1.0)
        pool.round()

    made = world.server.made[0]
    assert (made.cut, made.closed) == (True, 0)
    with pool.connection() as other:
        assert other.number == 1
    for use in (lambda conn: conn.ask(), lambda conn: setattr(conn, "label", "x")):
        with pytest.raises(ConnectionReclaimedError) as told:
            use(conn)
        text = str(told.value)
        assert "after 20 s: it was held for longer than 20 s; what was not committed is lost" in text
        assert line_of("hold") in text
        assert told.value.policy == "orders"
    assert made.label == ""
    with pytest.raises(ConnectionError):
        ask()  # the server has ended it

    assert [type(event) for event in world.heard] == [ConnectionLeaked, ConnectionReclaimed]
    event = world.of(ConnectionReclaimed)[0]
    assert event.held_for == pytest.approx(20.0)
    assert event.where.startswith(line_of("hold"))
    assert "was taken from thread MainThread after 20.0 s" in caplog.text
    stats = pool.stats()
    assert (stats.reclaimed, stats.size, stats.used, stats.idle) == (1, 1, 0, 1)
    assert stats.use_seconds == pytest.approx(20.0)


def test_taken_connection_is_closed_when_nobody_is_inside_of_it(world: World) -> None:
    """Whoever still holds it may be in the middle of a call."""
    pool = reclaiming(world)
    conn = pool.getconn()
    world.clock.advance(20.0)
    pool.round()
    pool.round()
    assert world.server.made[0].closed == 0
    del conn
    gc.collect()
    pool.round()
    assert world.server.made[0].closed == 1
    assert pool.stats().closed == 1


def test_late_return_of_a_taken_connection_closes_it(world: World) -> None:
    """And harms nobody who has another by now."""
    pool = reclaiming(world)
    conn = pool.getconn()
    world.clock.advance(20.0)
    pool.round()
    other = pool.getconn()
    with pytest.raises(ConnectionReclaimedError):
        pool.putconn(conn)
    gc.collect()
    assert world.server.made[0].closed == 1
    assert other.ask() == "pong"
    assert pool.stats().used == 1
    pool.putconn(other)
    assert len(world.of(ConnectionReturnedLate)) == 0


def test_nothing_is_taken_in_time(world: World) -> None:
    """One that is back before is lent on, and its next borrower has the whole time."""
    pool = reclaiming(world)
    for _ in range(5):
        with pool.connection() as conn:
            world.clock.advance(19.0)
            pool.round()
            assert conn.number == 0
    assert pool.stats().reclaimed == 0
    assert pool.stats().leaks == 5


def test_whoever_waits_gets_the_place_of_one_that_was_taken(world: World) -> None:
    """C2: held sessions do not keep a pool dry."""
    pool = reclaiming(world, timeout=30.0)
    conn = pool.getconn()
    began = world.clock()
    with pool.connection() as other:
        assert other.number == 1
    assert world.clock() - began == pytest.approx(20.0, abs=1.0)
    del conn
