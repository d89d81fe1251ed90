"""SQLAlchemy: engines that are disposed of, connections that leave the pool in other ways, greenlets."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, exc, orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool
from tests.pool.watching.conftest import Clock
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until

from resilient.errors import PoolUnavailableError
from resilient.events import ConnectionCollected, ConnectionLeaked, Event
from resilient.pool.watching import Watched, watch

MakeEngine = Callable[..., sqlalchemy.Engine]


@pytest.fixture
def engines(postgres: PostgresServer) -> Iterator[MakeEngine]:
    """Make engines that are disposed of in the end."""
    made: list[sqlalchemy.Engine] = []

    def make(url: str = postgres.url, **words: Any) -> sqlalchemy.Engine:
        made.append(sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), **words))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


def rounds(watching: Watched) -> None:
    """Make rounds enough for whatever is to be reported."""
    for _ in range(2):
        watching._ledger.round()


def test_pool_that_follows_a_disposed_one_is_watched(engines: MakeEngine) -> None:
    """What was lent by the old one is still known, and so is its return."""
    engine = engines()
    old = engine.pool
    watching = watch(engine)
    before = engine.connect()

    engine.dispose()
    engine.dispose(close=False)
    after = engine.connect()
    assert engine.pool is not old
    assert (watching.stats().used, watching.stats().checkouts) == (2, 2)
    before.close()
    assert watching.stats().used == 1
    after.close()
    assert (watching.stats().used, watching.stats().idle) == (0, 1)

    for _ in range(5):
        engine.dispose()
    gc.collect()
    assert len(watching._adapter._pools) < 4, "those that are no more are not kept"  # type: ignore[attr-defined]

    watching.unwatch()
    assert type(engine.pool) is type(old) is QueuePool
    assert [*engine.pool.dispatch.checkin, *engine.pool.dispatch.detach] == []
    engine.dispose()
    engine.connect().close()
    assert type(engine.pool) is QueuePool
    assert watching.stats().checkouts == 2
    old.dispose()


def test_pool_recreated_by_hand_is_watched_while_it_is_used(engines: MakeEngine) -> None:
    """Without an engine nobody says that there is a new pool; it is made of the old one."""
    pool = engines().pool
    watching = watch(pool)
    new = pool.recreate()

    connection = new.connect()
    assert watching.stats().used == 1
    connection.close()
    assert watching.stats().used == 0

    watching.unwatch()
    assert type(new) is type(pool) is QueuePool
    new.dispose()


@pytest.mark.parametrize("same", [True, False])
def test_subclass_may_have_its_own_way_to_follow_itself(
    engines: MakeEngine, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By a pool of a class that it names; if that is another one, it is used as it is, and said so once."""

    class Mine(QueuePool):
        def recreate(self) -> QueuePool:
            kind = Mine if same else QueuePool
            return kind(self._creator, dialect=self._dialect, _dispatch=self.dispatch)

    engine = engines(poolclass=Mine)
    watching = watch(engine)
    engine.dispose()

    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 7")) == 7
        assert watching.stats().used == same
    assert ("cannot be watched" in caplog.text) is not same
    watching.unwatch()
    assert type(engine.pool) is (Mine if same else QueuePool)


def test_forgotten_connection_is_reported_as_back_in_the_pool(engines: MakeEngine, clock: Clock) -> None:
    """SQLAlchemy returns what the garbage collector finds; who forgot it is named."""
    heard: list[Event] = []
    engine = engines(pool_size=1, max_overflow=0)
    watching = watch(engine, name="orders", clock=clock, listeners=[heard.append], leak_after=30.0)
    connection = engine.raw_connection()
    clock.now += 31.0
    rounds(watching)

    del connection
    gc.collect()
    rounds(watching)

    assert [type(event) for event in heard] == [ConnectionLeaked, ConnectionCollected]
    assert isinstance(heard[1], ConnectionCollected)
    assert heard[1].reused
    assert "test_forgotten_connection" in heard[1].where
    assert (watching.stats().used, watching.stats().collected, watching.stats().returned_late) == (0, 1, 0)
    engine.connect().close()


async def test_forgotten_awaited_connection_is_reported_as_closed(postgres: PostgresServer) -> None:
    """Nobody can await its return: SQLAlchemy terminates it, and warns."""
    heard: list[Event] = []
    engine = create_async_engine(postgres.url.replace("postgresql:", "postgresql+asyncpg:"))
    watching = watch(engine, listeners=[heard.append])

    connection = await engine.raw_connection()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del connection
        gc.collect()
    assert any("non-checked-in connection" in str(warning.message) for warning in told)

    rounds(watching)
    assert [getattr(event, "reused", None) for event in heard] == [False]
    assert watching.stats().used == 0
    await engine.dispose()


def test_detached_connection_is_no_longer_the_pools(engines: MakeEngine) -> None:
    """Whoever detached it may keep it for ever; closing it is no return."""
    heard: list[Event] = []
    engine = engines()
    watching = watch(engine, listeners=[heard.append])
    connection = engine.raw_connection()

    connection.detach()
    assert (watching.stats().used, watching.stats().checkouts) == (0, 1)

    connection.close()
    del connection
    gc.collect()
    rounds(watching)
    assert heard == []


def test_invalidated_connection_is_back(engines: MakeEngine) -> None:
    """The pool has its place again, whatever becomes of the connection."""
    engine = engines()
    watching = watch(engine)
    connection = engine.connect()

    connection.invalidate()
    assert watching.stats().used == 0
    connection.rollback()
    connection.execute(sqlalchemy.text("SELECT 1"))  # with another one
    assert watching.stats().used == 1
    connection.close()

    assert (watching.stats().used, watching.stats().checkouts) == (0, 2)


def test_checkout_that_a_listener_refuses_lends_nothing(engines: MakeEngine) -> None:
    """The error of somebody else's listener is theirs."""
    engine = engines()
    watching = watch(engine)

    def refuse(*_: object) -> None:
        raise LookupError("not today")

    event.listen(engine, "checkout", refuse)
    with pytest.raises(LookupError, match="not today"):
        engine.connect()
    event.remove(engine, "checkout", refuse)

    assert (watching.stats().used, watching.stats().waiting, watching.stats().checkouts) == (0, 0, 0)
    assert watching.stats().timeouts == 0
    engine.connect().close()
    assert watching.stats().checkouts == 1


def test_checkout_that_is_tried_again_lends_once(engines: MakeEngine) -> None:
    """A listener that found the connection dead has SQLAlchemy make another one."""
    engine = engines()
    watching = watch(engine)
    refusals = [exc.DisconnectionError("stale")]

    @event.listens_for(engine, "checkout")
    def refuse_once(*_: object) -> None:
        if refusals:
            raise refusals.pop()

    engine.connect().close()

    assert (watching.stats().used, watching.stats().checkouts) == (0, 1)


def test_borrower_is_the_line_that_made_the_session_connect(engines: MakeEngine) -> None:
    """Not one of SQLAlchemy's own, of which there are many in between."""
    engine = engines()
    watching = watch(engine)

    with orm.Session(engine) as session:
        session.execute(sqlalchemy.text("SELECT 1"))
        (borrower,) = watching.borrowers()

    assert borrower.where.startswith(f"{__file__}:")
    assert borrower.where.endswith("test_borrower_is_the_line_that_made_the_session_connect")
    assert not any("site-packages/sqlalchemy" in line for line in borrower.stack[:1])


async def test_borrower_of_an_async_session_is_the_line_that_awaits(postgres: PostgresServer) -> None:
    """Which is in another greenlet than the pool."""
    engine = create_async_engine(postgres.url.replace("postgresql:", "postgresql+asyncpg:"))
    watching = watch(engine)

    async with AsyncSession(engine) as session:
        await session.execute(sqlalchemy.text("SELECT 1"))
        (awaiting,) = watching.borrowers()

    def work(session: orm.Session) -> Any:
        session.execute(sqlalchemy.text("SELECT 1"))
        return watching.borrowers()[0]

    async with AsyncSession(engine) as session:
        inside = await session.run_sync(work)

    assert awaiting.where.endswith("test_borrower_of_an_async_session_is_the_line_that_awaits")
    assert inside.where.endswith("work")
    await engine.dispose()


def test_who_waits_is_counted(engines: MakeEngine) -> None:
    """While the pool is empty, and no longer."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=20)
    watching = watch(engine)
    held = engine.connect()
    waiter = threading.Thread(target=lambda: engine.connect().close())

    waiter.start()
    wait_until(lambda: watching.stats().waiting == 1, "a caller that waits")
    held.close()
    waiter.join(20)

    assert (watching.stats().waiting, watching.stats().used, watching.stats().checkouts) == (0, 0, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (dict(pool_size=3, max_overflow=4), (0, 3, 7)),
        (dict(pool_size=3, max_overflow=-1), (0, 3, None)),
        (dict(pool_size=0), (0, None, None)),
        (dict(poolclass=NullPool), (0, None, None)),
        (dict(poolclass=StaticPool), (None, None, None)),
        (dict(poolclass=SingletonThreadPool), (None, None, None)),
    ],
    ids=str,
)
def test_limits_are_those_of_the_kind_of_pool(
    engines: MakeEngine, words: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    """Every kind can be watched; where there is no limit, none is reported."""
    engine = engines(**words)
    with watch(engine) as watching:
        counts = watching.counts()
        assert (counts.idle, counts.idle_max, counts.limit) == expected
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
            assert watching.stats().used == 1
        assert watching.stats().used == 0


def test_options_of_an_engine_may_be_watched_and_dropped(engines: MakeEngine) -> None:
    """An engine with options shares the pool of another."""
    engine = engines()
    watching = watch(engine.execution_options(isolation_level="AUTOCOMMIT"))
    gc.collect()

    with engine.connect():
        assert watching.counts().used == 1
    with pytest.raises(ValueError, match="watched already"):
        watch(engine)


@pytest.mark.parametrize(
    ("url", "words", "name"),
    [
        ("postgresql://me:secret@db.example:5433/orders", {}, "db.example:5433/orders"),
        ("postgresql://me:secret@db.example/orders", {}, "db.example/orders"),
        ("sqlite://", {}, "sqlite:"),
        ("postgresql://me@db.example/orders", {"logging_name": "main"}, "main"),
        ("postgresql://me@db.example/orders", {"pool_logging_name": "pool"}, "pool"),
    ],
)
def test_name_is_where_it_connects_to(
    engines: MakeEngine, url: str, words: dict[str, str], name: str
) -> None:
    """Or what the engine or its pool is called; never the password."""
    with watch(engines(url, **words)) as watching:
        assert watching.name == name


def test_server_that_is_not_there_is_said_so(engines: MakeEngine) -> None:
    """In a few words, with the driver's reason."""
    engine = engines(f"postgresql://me@127.0.0.1:{free_port()}/orders")
    watching = watch(engine, name="orders")

    with pytest.raises(PoolUnavailableError, match="pool 'orders' failed: OperationalError") as told:
        watching.check(timeout=20.0)

    assert told.value.last_failure is not None
    assert len(str(told.value)) < 300
    assert watching.stats().used == 0


def test_connection_that_failed_a_check_is_not_used_again(
    engines: MakeEngine, postgres: PostgresServer
) -> None:
    """The server has ended it; the next one is new."""
    engine = engines(pool_size=1, max_overflow=0)
    watching = watch(engine)
    with engine.connect() as connection:
        pid = connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()"))
    assert postgres.query(f"SELECT pg_terminate_backend({pid}, 5000)") == "t"

    with pytest.raises(PoolUnavailableError, match="failed"):
        watching.check(timeout=20.0)
    watching.check(timeout=20.0)
    assert watching.stats().used == 0


async def test_awaited_connection_that_failed_a_check_is_not_used_again(postgres: PostgresServer) -> None:
    """Nor left to the garbage collector, of which SQLAlchemy would warn."""
    engine = create_async_engine(postgres.url.replace("postgresql:", "postgresql+asyncpg:"), pool_size=1)
    watching = watch(engine)
    async with engine.connect() as connection:
        pid = await connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()"))
    await asyncio.to_thread(postgres.query, f"SELECT pg_terminate_backend({pid}, 5000)")

    with pytest.raises(PoolUnavailableError, match="failed"):
        await watching.acheck(timeout=20.0)
    gc.collect()
    await watching.acheck(timeout=20.0)
    assert (watching.stats().used, watching.stats().collected) == (0, 0)
    await engine.dispose()


def test_count_is_left_to_the_instrumentation_that_reports_it(engines: MakeEngine) -> None:
    """OpenTelemetry's instrumentation listens to the engine; what it does not report is reported here."""
    engine = engines()
    tracer = type("EngineTracer", (), {"hear": lambda self, *_: None})
    tracer.__module__ = "opentelemetry.instrumentation.sqlalchemy.engine"
    listener: Any = tracer().hear

    with watch(engine) as watching:
        assert watching.counts().used == 0
        event.listen(engine, "checkout", listener)
        counts = watching.counts()
        assert (counts.idle, counts.used) == (None, None)
        assert (counts.limit, counts.leaked, counts.timeouts) == (15, 0, 0)
        engine.dispose()
        assert watching.counts().used is None, "the new pool has the same listeners"
    with watch(engine, metrics=True) as watching:
        assert watching.counts().used == 0
    event.remove(engine, "checkout", listener)
