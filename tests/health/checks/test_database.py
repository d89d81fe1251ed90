"""A real PostgreSQL that is up, down, frozen, read-only or locked, behind every kind of source."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import redis.asyncio
import sqlalchemy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool
from resilient.health import Finding, Status
from resilient.health.checks import Database
from resilient.pool import watch

PATIENT = 20.0  # seconds; the machine may be slow
BRIEF = 0.2


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL; who changes it changes it back."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection that looks at the others."""
    with psycopg.connect(server.url, autocommit=True) as conn:
        yield conn


@pytest.fixture(autouse=True)
def no_session_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test gives back or closes whatever its checks had."""
    if "server" not in request.fixturenames:
        yield
    else:
        server, admin = (request.getfixturevalue(name) for name in ("server", "admin"))
        yield
        server.resume()
        wait_until(lambda: sessions(admin) == 0, "no connection is left")


def sessions(admin: psycopg.Connection[Any], condition: str = "true") -> int:
    """Return how many sessions there are, that of *admin* not counted."""
    mine = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
    found = admin.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {mine} AND {condition}").fetchone()
    assert found is not None
    return int(found[0])


def alchemy(url: str, driver: str = "psycopg") -> str:
    return url.replace("postgresql:", f"postgresql+{driver}:")


@contextmanager
def psycopg_pooled(url: str, **options: Any) -> Generator[Any]:
    with psycopg_pool.ConnectionPool(url, min_size=1, max_size=1, open=True, **options) as pool:
        yield pool


@asynccontextmanager
async def apsycopg_pooled(url: str) -> AsyncGenerator[Any]:
    async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        yield pool


@contextmanager
def engine(url: str, **options: Any) -> Generator[Any]:
    made = sqlalchemy.create_engine(alchemy(url), pool_size=1, max_overflow=0, **options)
    try:
        yield made
    finally:
        made.dispose()


@asynccontextmanager
async def aengine(url: str, driver: str, **options: Any) -> AsyncGenerator[Any]:
    made = create_async_engine(alchemy(url, driver), pool_size=1, max_overflow=0, **options)
    try:
        yield made
    finally:
        await made.dispose()


@contextmanager
def watched(url: str) -> Generator[Any]:
    with engine(url) as made, watch(made) as seen:
        yield seen


@asynccontextmanager
async def psycopg_awatched(url: str) -> AsyncGenerator[Any]:
    async with apsycopg_pooled(url) as pool:
        with watch(pool) as seen:
            yield seen


@asynccontextmanager
async def engine_awatched(url: str) -> AsyncGenerator[Any]:
    async with aengine(url, "psycopg") as made:
        with watch(made) as seen:
            yield seen


@asynccontextmanager
async def awatched(url: str) -> AsyncGenerator[Any]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        with watch(pool) as seen:
            yield seen


def ours(url: str) -> Any:
    connect = partial(psycopg.connect, url, connect_timeout=5)
    return ConnectionPool(connect, name="orders", max_size=1)


def aours(url: str, connect: Any) -> Any:
    return AsyncConnectionPool(partial(connect, url), name="orders", max_size=1)


@contextmanager
def connecting(url: str) -> Generator[Any]:
    yield partial(psycopg.connect, url, connect_timeout=2)


@asynccontextmanager
async def aconnecting(url: str, connect: Any) -> AsyncGenerator[Any]:
    yield partial(connect, url)


SYNC: dict[str, Callable[[str], Any]] = {
    "connect": connecting,
    "ours": ours,
    "psycopg_pool": psycopg_pooled,
    "engine": engine,
    "watched": watched,
}
ASYNC: dict[str, Callable[[str], Any]] = {
    "psycopg.connect": partial(aconnecting, connect=psycopg.AsyncConnection.connect),
    "asyncpg.connect": partial(aconnecting, connect=asyncpg.connect),
    "ours, psycopg": partial(aours, connect=psycopg.AsyncConnection.connect),
    "ours, asyncpg": partial(aours, connect=asyncpg.connect),
    "psycopg_pool": apsycopg_pooled,
    "asyncpg": partial(asyncpg.create_pool, min_size=1, max_size=1),
    "engine, psycopg": partial(aengine, driver="psycopg"),
    "engine, asyncpg": partial(aengine, driver="asyncpg"),
    "watched asyncpg": awatched,
    "watched psycopg_pool": psycopg_awatched,
    "watched engine": engine_awatched,
}
ALL = [*(("sync", name) for name in SYNC), *(("async", name) for name in ASYNC)]
IDS = [f"{name} {colour}" for colour, name in ALL]
TELLING = [one for one in ALL if one != ("sync", "watched")]
QUERYING = [one for one in TELLING if one[0] == "async"]

Ask = Callable[..., Awaitable[Finding]]
every_source = pytest.mark.parametrize(("colour", "name"), ALL, ids=IDS)


@asynccontextmanager
async def asking(server: PostgresServer, colour: str, name: str) -> AsyncGenerator[tuple[Any, Ask]]:
    """Open a source; give it, and how to check it."""
    async with AsyncExitStack() as stack:
        if colour == "sync":
            # Its threads are not this loop's, and it waits for them when it is closed.
            inner = ExitStack()
            source = await asyncio.to_thread(inner.enter_context, SYNC[name](server.url))
            stack.push_async_callback(asyncio.to_thread, inner.close)
        else:
            source = await stack.enter_async_context(ASYNC[name](server.url))

        async def ask(**options: Any) -> Finding:
            options.setdefault("timeout", PATIENT)
            options.setdefault("slow_after", None)
            check: Any = Database(source, **options)
            if inspect.iscoroutinefunction(type(check).__call__):
                found: Finding = await check()
            else:
                found = await asyncio.to_thread(check)
            return found

        yield source, ask


class TestEverySource:
    """The same answers, whatever the connections come from."""

    @pytest.mark.faults
    @every_source
    async def test_well_frozen_and_well_again(self, server: PostgresServer, colour: str, name: str) -> None:
        """It passes, fails in its time while the server hangs, and passes when that goes on."""
        async with asking(server, colour, name) as (_, ask):
            found = await ask()
            assert (found.status, found.output) == (Status.PASS, "")
            assert found.value is not None
            assert 0.0 < found.value < PATIENT
            assert found.unit == "s"
            server.pause()
            begun = time.monotonic()
            found = await ask(timeout=BRIEF)
            took = time.monotonic() - begun
            server.resume()
            assert found.status is Status.FAIL
            assert "no answer" in found.output or "no connection" in found.output or "timeout" in found.output
            assert took < 10.0
            assert (await ask()).status is Status.PASS

    @pytest.mark.faults
    @pytest.mark.parametrize(
        ("colour", "name"), TELLING, ids=[f"{name} {colour}" for colour, name in TELLING]
    )
    async def test_writable(
        self, server: PostgresServer, admin: psycopg.Connection[Any], colour: str, name: str
    ) -> None:
        """A server that takes writes, and one that was set to read-only."""
        async with asking(server, colour, name) as (_, ask):
            found = await ask(writable=True)
            assert found.status is Status.PASS
            assert found.facts == {"replica": False, "read_only": False}
            admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        try:
            async with asking(server, colour, name) as (_, ask):
                assert (await ask()).status is Status.PASS
                found = await ask(writable=True)
                assert (found.status, found.output) == (Status.FAIL, "it is read-only: it refuses writes")
        finally:
            admin.execute("ALTER DATABASE postgres RESET ALL")

    @pytest.mark.faults
    async def test_down_and_up_again(self) -> None:
        """Every source fails while there is nobody, and passes when there is."""
        with PostgresServer() as server:
            async with AsyncExitStack() as stack:
                asks = [(await stack.enter_async_context(asking(server, *one)))[1] for one in ALL]
                server.stop()
                for one, ask in zip(ALL, asks, strict=True):
                    found = await ask(timeout=0.5)
                    assert found.status is Status.FAIL, one
                    assert found.output, one
                server.start()
                for one, ask in zip(ALL, asks, strict=True):
                    give_up_at = time.monotonic() + 20.0  # a pool may wait before it tries again
                    while (found := await ask(timeout=1.0)).status is not Status.PASS:
                        assert time.monotonic() < give_up_at, (one, found)
                        await asyncio.sleep(0.05)

    @pytest.mark.faults
    @pytest.mark.parametrize(("colour", "name"), QUERYING, ids=[name for _, name in QUERYING])
    async def test_cancelled_check_returns_what_it_borrowed(
        self, server: PostgresServer, admin: psycopg.Connection[Any], colour: str, name: str
    ) -> None:
        """Cancelled in the middle of a query: the next one has a connection."""
        async with asking(server, colour, name) as (_, ask):
            assert (await ask()).status is Status.PASS
            task = asyncio.ensure_future(ask(query="SELECT pg_sleep(0.5)"))
            await await_until(lambda: sleeping(admin) == 1, "it asks")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await ask()).status is Status.PASS
            await await_until(lambda: sleeping(admin) == 0, "its query has ended")

    @every_source
    async def test_many_checks_keep_no_connection(
        self, server: PostgresServer, admin: psycopg.Connection[Any], colour: str, name: str
    ) -> None:
        """Twenty checks, with one connection at most."""
        async with asking(server, colour, name) as (_, ask):
            for _ in range(20):
                assert (await ask()).status is Status.PASS
            await await_until(lambda: sessions(admin) <= 1, "no more than one is left")


def sleeping(admin: psycopg.Connection[Any]) -> int:
    return sessions(admin, "query LIKE 'SELECT pg_sleep%' AND state = 'active'")


class TestExhausted:
    """All connections are lent: the server is well, the application is not."""

    def check(self, source: Any, status: Status = Status.FAIL) -> Finding:
        found: Any = Database(source, timeout=BRIEF)()
        assert isinstance(found, Finding)
        assert found.status is status
        return found

    def test_ours_names_the_borrower(self, server: PostgresServer) -> None:
        """As its error does; to be busy is no failure, as long as nobody forgets to return his."""
        with ours(server.url) as pool, pool.connection():
            found = self.check(pool, Status.WARN)
        assert found.output.startswith("no connection came free within 0.2 s; the oldest borrowers: ")
        assert "test_database.py" in found.output
        assert found.facts["pool_exhausted"] is True

    def test_a_pool_that_leaks_fails(self) -> None:
        """What is held for too long may never come back."""
        pool = ConnectionPool(
            lambda: sqlite3.connect(":memory:", check_same_thread=False),
            name="orders",
            max_size=1,
            leak_after=0.01,
        )
        kept = pool.getconn()
        wait_until(lambda: pool.stats().leaked == 1, "it is reported")
        assert "no connection came free" in self.check(pool, Status.FAIL).output
        pool.putconn(kept)
        pool.close()

    def test_psycopg_pool(self, server: PostgresServer) -> None:
        """It gives up in the check's time, and not in the pool's 30 seconds."""
        with psycopg_pooled(server.url) as pool, pool.connection():
            begun = time.monotonic()
            found = self.check(pool)
            assert time.monotonic() - begun < 10.0
        assert found.output.startswith("no connection came free: PoolTimeout")

    def test_engine_that_is_watched_names_the_borrower(self, server: PostgresServer) -> None:
        """SQLAlchemy does not know who has them; the watch does."""
        with engine(server.url, pool_timeout=BRIEF) as made, watch(made), made.connect():
            found = self.check(made)
        assert found.output.startswith("no connection came free: TimeoutError: QueuePool limit")
        assert "; the oldest borrowers: " in found.output
        assert "test_database.py" in found.output

    def test_watch_names_the_borrower(self, server: PostgresServer) -> None:
        """As its own check does."""
        with watched(server.url) as seen, seen._adapter._target().connect():
            found = self.check(seen)
        assert found.output.startswith("PoolTimeoutError")
        assert "; the oldest borrowers: " in found.output
        assert "test_database.py" in found.output

    @pytest.mark.parametrize("name", ["ours, psycopg", "psycopg_pool", "asyncpg"])
    async def test_asynchronous_pools(self, server: PostgresServer, name: str) -> None:
        """They too give up in time."""
        async with ASYNC[name](server.url) as pool:
            block = pool.acquire() if name == "asyncpg" else pool.connection()
            async with block:
                check: Any = Database(pool, timeout=BRIEF)
                found = await check()
            assert found.status is (Status.WARN if name.startswith("ours") else Status.FAIL)
            assert found.output.startswith("no connection came free")
            assert (await Database(pool, timeout=PATIENT)()).status is Status.PASS  # type: ignore[misc]

    async def test_asynchronous_engine(self, server: PostgresServer) -> None:
        """With the borrower's name where it is watched."""
        async with aengine(server.url, "psycopg", pool_timeout=BRIEF) as made:
            with watch(made):
                async with made.connect():
                    check: Any = Database(made, timeout=PATIENT)
                    found = await check()
        assert found.output.startswith("no connection came free: TimeoutError")
        assert "test_database.py" in found.output


class TestLocked:
    """A server that wants a password."""

    @pytest.fixture(scope="module")
    @staticmethod
    def locked(server: PostgresServer) -> str:
        """The address of a user with another password."""
        server.query("CREATE ROLE shop LOGIN PASSWORD 'right'")
        rules = server.directory / "data" / "pg_hba.conf"
        rules.write_text(f"host all shop 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        server.query("SELECT pg_reload_conf()")
        return server.url.replace("postgres@", "shop:wrong-Zq7@")

    def test_wrong_password(self, server: PostgresServer, locked: str) -> None:
        """It is told as what it is, without the password; and it is not tried again."""
        found: Any = Database(partial(psycopg.connect, locked, connect_timeout=5), timeout=PATIENT)()
        assert found.status is Status.FAIL
        assert found.output.startswith("it refuses the credentials: ")
        assert found.facts["permission"] is False
        assert "Zq7" not in found.output

    async def test_wrong_password_asyncpg(self, server: PostgresServer, locked: str) -> None:
        """By its own error."""
        check: Any = Database(partial(asyncpg.connect, locked), timeout=PATIENT)
        found = await check()
        assert found.output.startswith("it refuses the credentials: InvalidPasswordError")
        assert "Zq7" not in found.output

    def test_repr_has_no_password(self, locked: str) -> None:
        """Nor has what it is called in logs."""
        with engine(locked) as made:
            assert "Zq7" not in repr(Database(made))
            assert "127.0.0.1" in repr(Database(made))
        assert repr(Database(partial(psycopg.connect, locked))) == "<Database 'database'>"


class Connections:
    """Connects to SQLite, and knows what was closed."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        self.path = path
        self.opened: list[sqlite3.Connection] = []

    def __call__(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, check_same_thread=False)
        self.opened.append(conn)
        return conn

    @property
    def all_closed(self) -> bool:
        for conn in self.opened:
            try:
                conn.execute("SELECT 1")
            except sqlite3.ProgrammingError:
                continue
            return False
        return True


def found_by(source: Any, **options: Any) -> Finding:
    answer: Any = Database(source, **options)()
    assert isinstance(answer, Finding)
    return answer


class TestAnyDatabase:
    """Whatever PEP 249 describes."""

    def test_connects_asks_and_closes(self) -> None:
        """One connection for each check."""
        connect = Connections()
        assert found_by(connect, slow_after=None).status is Status.PASS
        assert found_by(connect, slow_after=None).status is Status.PASS
        assert len(connect.opened) == 2
        assert connect.all_closed

    def test_query_that_fails(self) -> None:
        """The reason is told, and the connection closed."""
        connect = Connections()
        found = found_by(connect, query="SELECT * FROM nowhere")
        assert (found.status, found.output) == (
            Status.FAIL,
            "OperationalError: no such table: nowhere",
        )
        assert connect.all_closed

    def test_query_without_rows(self) -> None:
        """Nothing to fetch is no failure."""
        assert found_by(Connections(), query="CREATE TABLE x (y int)", slow_after=None).status is Status.PASS

    def test_not_postgresql(self) -> None:
        """`writable` is for PostgreSQL: others say that they do not understand."""
        found = found_by(Connections(), writable=True)
        assert found.status is Status.FAIL
        assert "pg_is_in_recovery" in found.output

    def test_connecting_fails(self) -> None:
        """Secrets in what it raises are masked."""

        def connect() -> sqlite3.Connection:
            raise sqlite3.OperationalError("cannot reach postgresql://shop:Zq7@db/x with password=Zq7")

        found = found_by(connect)
        assert found.status is Status.FAIL
        assert found.output == ("OperationalError: cannot reach postgresql://shop:***@db/x with password=***")

    def test_reason_is_cut_short_when_secrets_are_out_of_it(self) -> None:
        """Where a password is in the middle of what is too long, no half of it is told."""

        def connect() -> sqlite3.Connection:
            raise sqlite3.OperationalError(f"{'x' * 150} postgresql://shop:{'Zq7' * 20}@db/x is not there")

        found = found_by(connect)
        assert "Zq7" not in found.output
        assert " postgresql://shop:***@db/x is" in found.output

    def test_slow_one_warns(self) -> None:
        """It answers, and somebody should look at it."""
        found = found_by(Connections(), slow_after=0.000_001)
        assert found.status is Status.WARN
        assert found.output.startswith("it took ")

    def test_replica_is_told(self) -> None:
        """PostgreSQL in recovery, by what it answers."""
        check: Any = Database(Connections(), writable=True)
        found = check._judge((True, "on"), 0.001)
        assert (found.status, found.output) == (Status.FAIL, "it is a replica: it refuses writes")

    def test_watchdog_does_not_bite_what_was_returned(self) -> None:
        """A check that ended in time cuts nothing, however long one waits."""
        with ConnectionPool(Connections(), name="one", max_size=1) as pool:
            assert found_by(pool, timeout=0.05, slow_after=None).status is Status.PASS
            before = pool.stats().discarded
            wait_until(lambda: not watchdogs(), "its thread has ended")
            assert pool.stats().discarded == before


def watchdogs() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


class TestArguments:
    """What is refused, when it is made."""

    @pytest.mark.parametrize("source", [None, "postgresql://shop:Zq7@db/x", 3])
    def test_no_source(self, source: Any) -> None:
        """And not shown: an address may have a password."""
        with pytest.raises(TypeError, match="source must be a function that connects") as refusal:
            Database(source)
        assert "Zq7" not in str(refusal.value)

    def test_query_and_writable(self) -> None:
        """One question is asked."""
        with pytest.raises(ValueError, match="query goes neither with writable=True"):
            Database(Connections(), query="SELECT 2", writable=True)

    def test_watch_has_its_own_way(self) -> None:
        """Whoever wants another gives the check the pool itself."""
        with engine("postgresql://nowhere/x") as made, watch(made) as seen:
            with pytest.raises(ValueError, match="writable does not go with a watch"):
                Database(seen, writable=True)
            with pytest.raises(ValueError, match="query goes neither"):
                Database(seen, query="SELECT 2")

    async def test_watch_over_redis(self) -> None:
        """Whatever has a check."""
        never = Retry(NoBackoff(), 0)
        async with redis.asyncio.Redis(port=free_port(), retry=never) as client:
            with watch(client) as seen:
                check: Any = Database(seen, name="cache", timeout=PATIENT)
                found = await check()
                assert repr(check).startswith("<Database 'cache' of ")
        assert found.status is Status.FAIL
        assert found.output.startswith("PoolUnavailableError")

    def test_timeout_is_above_zero(self) -> None:
        """By name."""
        with pytest.raises(ValueError, match="timeout must be greater than 0, got 0"):
            Database(Connections(), timeout=0)

    def test_signature_tells_the_arguments(self) -> None:
        """Though its class is chosen by the source."""
        assert list(inspect.signature(Database).parameters)[:2] == ["source", "query"]
