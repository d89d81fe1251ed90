"""Pools on a real PostgreSQL: what comes back, what is lost, and how soon all is well again."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import asyncpg
import psycopg
import pytest
from tests.pool.collecting import Metrics
from tests.pool.load import acallers, callers
from tests.support.postgres import PostgresServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool
from resilient.errors import ConnectionReclaimedError, PoolTimeoutError, PoolUnavailableError
from resilient.events import Event

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600.0 if SOAK else 60.0)]

RESTARTS = 20 if SOAK else 2
CANCELLED = 8_000 if SOAK else 400
LEEWAY = 0.25  # seconds; two slow cores, and everybody wants them
BACK_WITHIN = 1.5

Conn = psycopg.Connection[Any]
AsyncConn = psycopg.AsyncConnection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL; who stops it starts it again."""
    with PostgresServer() as server:
        server.query("CREATE TABLE orders (id int PRIMARY KEY)")
        yield server


@pytest.fixture(autouse=True)
def orders(server: PostgresServer) -> None:
    """No orders, and nobody connected."""
    wait_until(lambda: sessions(server) == 0, "nobody is connected")
    server.query("TRUNCATE orders")


def sessions(server: PostgresServer, condition: str = "true") -> int:
    """Return how many sessions there are, our own question not counted."""
    mine = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
    return int(server.query(f"SELECT count(*) FROM pg_stat_activity WHERE {mine} AND {condition}"))


def stored(server: PostgresServer) -> int:
    """Return how many orders there are."""
    return int(server.query("SELECT count(*) FROM orders"))


def connect(server: PostgresServer) -> Conn:
    return psycopg.connect(server.url, connect_timeout=5)


async def aconnect(server: PostgresServer) -> AsyncConn:
    return await psycopg.AsyncConnection.connect(server.url, connect_timeout=5)


def pool_of(server: PostgresServer, **options: Any) -> ConnectionPool[Conn]:
    return ConnectionPool(partial(connect, server), **{"name": "orders", "max_size": 4, **options})


def apool_of(server: PostgresServer, **options: Any) -> AsyncConnectionPool[AsyncConn]:
    return AsyncConnectionPool(partial(aconnect, server), **{"name": "orders", "max_size": 4, **options})


def say(pool: ConnectionPool[Conn], word: str) -> object:
    """Have the server say *word*."""
    with pool.connection() as conn:
        row = conn.execute("SELECT %s::text", (word,)).fetchone()
    return None if row is None else row[0]


async def asay(pool: AsyncConnectionPool[AsyncConn], word: str) -> object:
    async with pool.connection() as conn:
        row = await (await conn.execute("SELECT %s::text", (word,))).fetchone()
    return None if row is None else row[0]


def fail_after(pool: ConnectionPool[Conn], *statements: str) -> None:
    """Leave a block by an exception, after *statements*."""
    with pool.connection() as conn:
        assert conn.autocommit is False
        for statement in statements:
            conn.execute(statement)
        raise KeyError


async def afail_after(pool: AsyncConnectionPool[Any], *statements: str) -> None:
    async with pool.connection() as conn:
        for statement in statements:
            await conn.execute(statement)
        raise KeyError


def suffer(conn: Conn) -> None:
    """Have the session end, and handle the error."""
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def taken(work: Callable[[], object]) -> tuple[float, BaseException | None]:
    """Return how many seconds *work* took, and what it raised."""
    began = time.monotonic()
    try:
        work()
    except Exception as exc:
        return time.monotonic() - began, exc
    return time.monotonic() - began, None


class TestUse:
    def test_a_block_commits_or_rolls_back(self, server: PostgresServer) -> None:
        """As with psycopg_pool: left well, what was done stays; left by an exception, it does not."""
        with pool_of(server, max_size=1) as pool:
            with pool.connection() as conn:
                assert isinstance(conn, psycopg.Connection)
                conn.execute("INSERT INTO orders VALUES (1)")
            assert stored(server) == 1

            with pytest.raises(KeyError):
                fail_after(pool, "INSERT INTO orders VALUES (2)")

            with pytest.raises(psycopg.errors.UniqueViolation), pool.connection() as conn:
                conn.execute("INSERT INTO orders VALUES (1)")
            with pool.connection() as conn:
                assert conn.execute("SELECT count(*) FROM orders").fetchone() == (1,)
            assert pool.stats().connects == 1
        assert sessions(server) == 0

    def test_putconn_rolls_back_what_is_open(self, server: PostgresServer) -> None:
        """Who returns a connection in a transaction leaves nothing of it to the next one."""
        with pool_of(server, max_size=1) as pool:
            conn = pool.getconn()
            pid = conn.info.backend_pid
            conn.execute("INSERT INTO orders VALUES (1)")
            pool.putconn(conn)

            with pool.connection() as conn:
                assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                assert conn.info.backend_pid == pid
        assert stored(server) == 0

    def test_settings_of_one_borrower_are_not_the_next_ones(self, server: PostgresServer) -> None:
        """Autocommit that somebody switched on would make the next one's rollback void."""
        with pool_of(server, max_size=1) as pool:
            with pool.connection() as conn:
                conn.autocommit = True

            with pytest.raises(KeyError):
                fail_after(pool, "INSERT INTO orders VALUES (1)")
        assert stored(server) == 0

    def test_a_block_that_closes_its_connection_is_no_error(self, server: PostgresServer) -> None:
        """`with conn` does, in psycopg: it has committed before, and the pool makes another."""
        with pool_of(server, max_size=1) as pool:
            with pool.connection() as conn, conn:
                conn.execute("INSERT INTO orders VALUES (1)")

            assert say(pool, "well") == "well"
            assert pool.stats().discarded == 1
        assert stored(server) == 1

    def test_a_decorated_function_is_given_a_connection(self, server: PostgresServer) -> None:
        """And it commits, as a block does."""
        with pool_of(server) as pool:

            @pool
            def store(conn: Conn, order: int) -> int:
                return conn.execute("INSERT INTO orders VALUES (%s)", (order,)).rowcount

            assert store(7) == 1
        assert stored(server) == 1

    async def test_asynchronous_blocks_commit_or_roll_back(self, server: PostgresServer) -> None:
        """The same in the other world; a cancelled one, too, rolls back."""
        async with apool_of(server, max_size=1) as pool:
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO orders VALUES (1)")

            with pytest.raises(KeyError):
                await afail_after(pool, "INSERT INTO orders VALUES (2)")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(
                    afail_after(pool, "INSERT INTO orders VALUES (3)", "SELECT pg_sleep(30)"), 0.2
                )

            conn = await pool.getconn()
            await conn.execute("INSERT INTO orders VALUES (4)")
            await pool.putconn(conn)
            async with pool.connection() as conn:
                assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert stored(server) == 1
            # psycopg has the server cancel the query, and the connection goes on.
            assert pool.stats().connects == 1
        assert sessions(server) == 0

    async def test_asyncpg(self, server: PostgresServer) -> None:
        """Its blocks are its own; a connection whose command was cancelled is replaced."""
        async with AsyncConnectionPool(
            partial(asyncpg.connect, server.url), name="asyncpg", max_size=1
        ) as pool:
            async with pool.connection() as conn, conn.transaction():
                await conn.execute("INSERT INTO orders VALUES (1)")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(afail_after(pool, "SELECT pg_sleep(30)"), 0.2)
            async with pool.connection() as conn:
                assert await conn.fetchval("SELECT count(*) FROM orders") == 1
            assert pool.stats().discarded == 1

    async def test_transactions_begun_by_hand_on_asyncpg(self, server: PostgresServer) -> None:
        """They end as its blocks do, and none is left to the next borrower."""
        async with AsyncConnectionPool(
            partial(asyncpg.connect, server.url), name="asyncpg", max_size=1
        ) as pool:
            async with pool.connection() as conn:
                await conn.execute("BEGIN; INSERT INTO orders VALUES (1)")
            assert stored(server) == 1
            with pytest.raises(KeyError):
                await afail_after(pool, "BEGIN", "INSERT INTO orders VALUES (2)")
            conn = await pool.getconn()
            await conn.transaction().start()
            await conn.execute("INSERT INTO orders VALUES (3)")
            await pool.putconn(conn)

            async with pool.connection() as conn, conn.transaction():
                assert await conn.fetchval("SELECT count(*) FROM orders") == 1
            assert pool.stats().connects == 1
        assert stored(server) == 1

    def test_old_ones_are_replaced_unnoticed(self, server: PostgresServer) -> None:
        """psycopg#584, #1018: also those that are lent again and again."""
        with pool_of(server, max_lifetime=0.2) as pool, callers(partial(say, pool), threads=6) as outcomes:
            wait_until(lambda: pool.stats().expired >= 4, "all were replaced once")
            good = len(outcomes.good)
            wait_until(lambda: len(outcomes.good) > good + 50, "all is well")
            assert sessions(server) <= 5  # one more may be on its way out

        assert not outcomes.failed
        assert not outcomes.refused
        assert not outcomes.mixed
        assert_nothing_leaked(pool)


class TestCancellation:
    async def test_cancelled_at_any_moment(self, server: PostgresServer) -> None:
        """asyncpg#467, psycopg#1401, sqlalchemy#8145: no connection is lost, no cancellation swallowed."""
        chance, loop = random.Random(43), asyncio.get_running_loop()
        mixed: list[object] = []
        ends: Counter[str] = Counter()

        async with apool_of(server) as pool:

            async def call(word: str) -> None:
                task = asyncio.create_task(asay(pool, word))
                asked = loop.call_later(chance.random() * 0.004, task.cancel)
                await asyncio.wait([task])
                asked.cancel()
                if task.cancelled():
                    ends["cancelled"] += 1
                else:
                    assert not task.cancelling(), "a cancellation was swallowed"
                    ends["good"] += 1
                    mixed.extend([] if task.result() == word else [task.result()])

            async def caller(number: int) -> None:
                for turn in range(CANCELLED // 8):
                    await call(f"word-{number}-{turn}")

            async with asyncio.TaskGroup() as crowd:
                for number in range(8):
                    crowd.create_task(caller(number))

            held = [await pool.getconn() for _ in range(4)]  # all of them are there, and good
            for conn in held:
                await conn.execute("SELECT 1")
                await pool.putconn(conn)

        assert not mixed
        assert ends["cancelled"] > 10
        assert ends["good"] > 10
        assert_nothing_leaked(pool)


class TestMetrics:
    async def test_what_took_long_is_in_the_buckets_of_that(self, server: PostgresServer) -> None:
        """One waits for the only connection while the server takes 60 ms, in both kinds of pool."""
        query = "SELECT pg_sleep(0.06)"
        with Metrics() as metrics:
            with pool_of(server, name="threads", max_size=1, timeout=60.0) as pool:
                with pool.connection() as conn:
                    other = asyncio.create_task(asyncio.to_thread(say, pool, "word"))
                    await await_until(lambda: pool.stats().waiting == 1, "the other waits")
                    conn.execute(query)
                await other
                threads = metrics.of("threads")
            async with apool_of(server, name="tasks", max_size=1, timeout=60.0) as apool:
                async with apool.connection() as aconn:
                    other = asyncio.create_task(asay(apool, "word"))
                    await await_until(lambda: apool.stats().waiting == 1, "the other waits")
                    await aconn.execute(query)
                await other
                tasks = metrics.of("tasks")

        for seen in (threads, tasks):
            assert seen["count"] == {("idle",): 1, ("used",): 0}
            points = {what: seen[f"{what}_time"][()] for what in ("create", "wait", "use")}
            assert {what: point.count for what, point in points.items()} == {"create": 1, "wait": 2, "use": 2}
            assert 0.0 < points["create"].sum < 60.0
            for what in ("wait", "use"):
                assert points[what].max > 0.05
                beyond = points[what].explicit_bounds.index(0.05) + 1
                assert sum(points[what].bucket_counts[beyond:]) >= 1


class TestFork:
    def test_a_child_leaves_the_parents_sessions_alone(self, server: PostgresServer) -> None:
        """It has none of them, and ends in good order without saying goodbye in the parent's name."""
        done = subprocess.run(
            [sys.executable, "-c", _FORK, server.url],
            capture_output=True,
            text=True,
            timeout=30.0,
            check=False,
        )

        assert done.stderr == ""
        assert done.stdout.splitlines() == ["child has its own", "parent has the same"]


_FORK = """
import os, sys, psycopg
from resilient import ConnectionPool

pool = ConnectionPool(lambda: psycopg.connect(sys.argv[1]), name="orders", max_size=2)

def pid():
    with pool.connection() as conn:
        return conn.execute("SELECT pg_backend_pid()").fetchone()[0]

mine = pid()
child = os.fork()
if child == 0:
    assert pid() != mine
    print("child has its own", flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert pid() == mine
print("parent has the same")
pool.close()
"""


class TestLostConnections:
    def test_killed_under_load_and_started_again(self, server: PostgresServer) -> None:
        """Calls in flight fail, once; the others are refused at once; and it goes on by itself."""
        with pool_of(server, timeout=2.0) as pool, callers(partial(say, pool), threads=8) as outcomes:
            wait_until(lambda: len(outcomes.good) > 200, "all is well")
            server.kill()
            wait_until(lambda: not pool.available, "the pool knows")
            wait_until(
                lambda: any(isinstance(e, PoolUnavailableError) for _, e in outcomes.refused), "refused"
            )
            server.start()
            back = time.monotonic()
            wait_until(lambda: outcomes.first_good_after(back) is not None, "all is well again")
            wait_until(lambda: len(outcomes.good) > 1000, "and stays so")

        soon = outcomes.first_good_after(back)
        assert soon is not None
        assert soon <= BACK_WITHIN
        assert len(outcomes.failed) <= 8 + 4
        assert {type(exc) for _, exc in outcomes.refused} <= {PoolUnavailableError}
        assert not outcomes.mixed
        assert_nothing_leaked(pool)

    async def test_killed_under_load_and_started_again_asynchronously(self, server: PostgresServer) -> None:
        """The same with fifty tasks on one loop."""
        async with (
            apool_of(server, timeout=2.0) as pool,
            acallers(partial(asay, pool), tasks=50) as outcomes,
        ):
            await await_until(lambda: len(outcomes.good) > 200, "all is well")
            await asyncio.to_thread(server.kill)
            await await_until(lambda: not pool.available, "the pool knows")
            await asyncio.to_thread(server.start)
            back = time.monotonic()
            await await_until(lambda: outcomes.first_good_after(back) is not None, "all is well again")

        soon = outcomes.first_good_after(back)
        assert soon is not None
        assert soon <= BACK_WITHIN
        assert len(outcomes.failed) <= 4 + 4
        assert not outcomes.mixed
        assert_nothing_leaked(pool)

    def test_restarted_again_and_again(self, server: PostgresServer) -> None:
        """Each time it is filled again by itself, without a storm of attempts to connect."""
        attempts: list[float] = []

        def counted() -> Conn:
            attempts.append(time.monotonic())
            return connect(server)

        with (
            ConnectionPool(counted, name="orders", min_size=2, max_size=4, timeout=2.0) as pool,
            callers(partial(say, pool), threads=6) as outcomes,
        ):
            for _ in range(RESTARTS):
                good = len(outcomes.good)
                wait_until(lambda good=good: len(outcomes.good) > good + 100, "all is well")  # type: ignore[misc]
                before, began = len(attempts), time.monotonic()
                server.restart()
                back = time.monotonic()
                wait_until(lambda at=back: outcomes.first_good_after(at) is not None, "all is well again")  # type: ignore[misc]
                # Three at once, then one at a time, each after a longer pause; four to fill it again.
                assert len(attempts) - before <= 3 + 8 * (time.monotonic() - began) + 4
            pool.wait(5.0)

        assert not outcomes.mixed
        assert_nothing_leaked(pool)

    def test_idle_ones_that_were_ended_are_replaced_unnoticed(self, server: PostgresServer) -> None:
        """A server, or what is in between, that ends idle sessions costs no borrower an error."""
        discarded: list[Event] = []
        with pool_of(server, min_size=3, check_after_idle=0.05) as pool:
            pool.add_listener(discarded.append)
            pool.wait()
            server.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            wait_until(lambda: sessions(server) == 0, "they are gone")
            time.sleep(0.05)  # idle for so long that they are asked first

            assert [say(pool, f"word-{number}") for number in range(5)] == [
                f"word-{number}" for number in range(5)
            ]

            assert 1 <= pool.stats().discarded <= 3
        assert {type(event).__name__ for event in discarded} == {"ConnectionDiscarded"}

    def test_one_that_is_broken_in_use_is_replaced(self, server: PostgresServer) -> None:
        """Who had it gets the error; who comes next gets another connection."""
        with pool_of(server, max_size=1) as pool:
            with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
                conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

            assert say(pool, "well") == "well"
            assert pool.stats().discarded == 1

    def test_one_that_the_borrower_broke_and_said_nothing_of_is_replaced(
        self, server: PostgresServer
    ) -> None:
        """An error that was handled inside is found out all the same, and that nothing was committed told."""
        with pool_of(server, max_size=1) as pool:
            conn = pool.getconn()
            suffer(conn)
            pool.putconn(conn)
            assert say(pool, "well") == "well"

            with pytest.raises(psycopg.OperationalError, match="lost"), pool.connection() as conn:
                suffer(conn)
            assert say(pool, "well") == "well"
            assert pool.stats().discarded == 2


class TestHangingServer:
    def test_checkouts_and_close_end_in_time(self, server: PostgresServer) -> None:
        """Frozen with all connections idle: nobody waits longer than was said, whatever the checks do."""
        timeout = 0.4
        with pool_of(server, min_size=3, check_after_idle=0.01, check_timeout=0.3, timeout=timeout) as pool:
            pool.wait()
            time.sleep(0.02)  # so that each is asked first
            server.pause()
            try:
                tries: list[tuple[float, BaseException | None]] = []
                crowd = [
                    threading.Thread(target=lambda: tries.append(taken(lambda: say(pool, "word"))))
                    for _ in range(6)
                ]
                for thread in crowd:
                    thread.start()
                for thread in crowd:
                    thread.join(10.0)
                closing, _ = taken(lambda: pool.close(drain=0.2))
            finally:
                server.resume()

        assert len(tries) == 6
        assert {type(exc) for _, exc in tries} <= {PoolTimeoutError, PoolUnavailableError}
        assert max(seconds for seconds, _ in tries) <= timeout + LEEWAY
        assert closing <= 0.2 + LEEWAY
        wait_until(lambda: sessions(server) == 0, "nothing is left behind")

    async def test_checkouts_and_close_end_in_time_asynchronously(self, server: PostgresServer) -> None:
        """The same on an event loop, which goes on meanwhile."""
        timeout = 0.4
        pool = apool_of(server, min_size=3, check_after_idle=0.01, check_timeout=0.3, timeout=timeout)
        await pool.wait()
        await asyncio.sleep(0.02)  # so that each is asked first
        server.pause()
        try:
            began = time.monotonic()
            raised = await asyncio.gather(*(asay(pool, "word") for _ in range(20)), return_exceptions=True)
            took = time.monotonic() - began
            began = time.monotonic()
            await pool.close(drain=0.2)
            closing = time.monotonic() - began
        finally:
            server.resume()

        assert {type(exc) for exc in raised} <= {PoolTimeoutError, PoolUnavailableError}
        assert took <= timeout + LEEWAY
        assert closing <= 0.2 + LEEWAY
        await asyncio.to_thread(wait_until, lambda: sessions(server) == 0, "nothing is left behind")

    def test_late_answers_reach_nobody_else(self, server: PostgresServer) -> None:
        """Frozen under load, and its connections taken away: what it says later is not heard."""
        with (
            pool_of(server, on_leak="reclaim", max_hold=0.3, timeout=1.0, check_timeout=0.3) as pool,
            callers(partial(say, pool), threads=8) as outcomes,
        ):
            for _ in range(3 if SOAK else 1):
                good = len(outcomes.good)
                wait_until(lambda good=good: len(outcomes.good) > good + 200, "all is well")  # type: ignore[misc]
                before = pool.stats().reclaimed
                server.pause()
                try:
                    wait_until(lambda before=before: pool.stats().reclaimed > before, "some are taken away")  # type: ignore[misc]
                    wait_until(lambda: pool.stats().used == 0, "nobody is stuck")
                finally:
                    server.resume()
                back = time.monotonic()
                wait_until(lambda at=back: outcomes.first_good_after(at) is not None, "all is well again")  # type: ignore[misc]

        assert not outcomes.mixed
        assert outcomes.failed
        assert_nothing_leaked(pool)
        wait_until(lambda: sessions(server) == 0, "nothing is left behind")


class TestBlackHole:
    def test_who_has_connections_does_not_notice(self, server: PostgresServer) -> None:
        """New connections hang; those there are go on being lent at once, and there are few attempts."""
        attempts: list[float] = []
        where = {"port": server.port}

        def connect_there() -> Conn:
            attempts.append(time.monotonic())
            url = server.url.replace(str(server.port), str(where["port"]))
            return psycopg.connect(url, connect_timeout=2)

        with ExitStack() as stack:
            proxy = stack.enter_context(TcpProxy(server.port))
            pool = stack.enter_context(
                ConnectionPool(
                    connect_there, name="orders", min_size=2, max_size=6, timeout=2.0, connect_timeout=0.3
                )
            )
            pool.wait()
            where["port"] = proxy.port
            stack.enter_context(proxy.deaf())
            attempts.clear()
            began = time.monotonic()

            with callers(partial(say, pool), threads=6) as outcomes:
                time.sleep(1.5)
            seconds = time.monotonic() - began
            assert len(outcomes.good) > 100
            assert not outcomes.failed
            assert not outcomes.refused
            assert len(attempts) <= 3 + 4 * seconds

            held = [pool.getconn() for _ in range(2)]
            took, exc = taken(partial(pool.getconn, timeout=0.5))
            assert isinstance(exc, PoolTimeoutError | PoolUnavailableError)
            assert took <= 0.5 + LEEWAY
            # From here on there are none that might come back.
            pool.drain()
            for conn in held:
                pool.putconn(conn)
            wait_until(lambda: not pool.available, "it is known that there are no more to be had")
            took, exc = taken(pool.getconn)
            assert isinstance(exc, PoolUnavailableError)
            assert exc.retry_after is not None
            assert took <= LEEWAY


class TestReclaim:
    def test_held_for_too_long_is_taken_away(self, server: PostgresServer) -> None:
        """C2: idle in a transaction with locks held. The session ends, and its late borrower is told."""
        with pool_of(server, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:
            conn = pool.getconn()
            pid = conn.info.backend_pid
            conn.execute("INSERT INTO orders VALUES (1)")
            assert sessions(server, f"pid = {pid} AND state = 'idle in transaction'") == 1

            assert say(pool, "well") == "well"  # waits its turn, which comes by itself

            wait_until(lambda: sessions(server, f"pid = {pid}") == 0, "its session has ended")
            with pytest.raises(ConnectionReclaimedError, match=r"test_real_postgres\.py"):
                conn.commit()
            with pytest.raises(ConnectionReclaimedError):
                pool.putconn(conn)
            assert stored(server) == 0
            assert pool.stats().reclaimed == 1

    async def test_held_for_too_long_is_taken_away_asynchronously(self, server: PostgresServer) -> None:
        """Here the borrower waits for an answer when it happens, and is woken with an error."""
        async with apool_of(server, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:

            async def hold() -> None:
                async with pool.connection() as conn:
                    await conn.execute("INSERT INTO orders VALUES (1)")
                    await conn.execute("SELECT pg_sleep(5)")

            holder = asyncio.create_task(hold())
            await await_until(lambda: pool.stats().used == 1, "it is lent")

            assert await asay(pool, "well") == "well"
            with pytest.raises((psycopg.OperationalError, ConnectionReclaimedError)):
                await holder
            assert pool.stats().reclaimed == 1
        assert stored(server) == 0
        server.query("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")

    def test_forgotten_comes_back(self, server: PostgresServer) -> None:
        """B1: who forgets to return it loses it, and the transaction with it."""
        with pool_of(server, max_size=1) as pool:

            def forget() -> None:
                pool.getconn().execute("INSERT INTO orders VALUES (1)")

            for _ in range(5):
                forget()

            assert say(pool, "well") == "well"
            assert pool.stats().collected == 5
        assert stored(server) == 0


def assert_nothing_leaked(pool: ConnectionPool[Any] | AsyncConnectionPool[Any]) -> None:
    """See that a closed pool has accounted for every connection that it had."""
    stats = pool.stats()
    assert (stats.size, stats.used, stats.idle, stats.waiting, stats.connecting) == (0, 0, 0, 0, 0)
    assert stats.closed == stats.connects
