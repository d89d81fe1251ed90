"""What a pool knows about kinds of connections, on real servers."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import redis
import redis.asyncio
from psycopg.rows import dict_row
from tests.pool.stepping import atake, take
from tests.support.postgres import PostgresServer
from tests.support.tcp_proxy import Latency, TcpProxy
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until, wait_until

from resilient.pool.drivers import driver_of

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
CANCELLED = 5_000 if SOAK else 100

pytestmark = pytest.mark.timeout(600.0 if SOAK else 60.0)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all of these."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def conn(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection that a pool has just made."""
    with closing(psycopg.connect(postgres.url)) as conn:
        driver_of(conn)
        yield conn


@pytest.fixture
async def aconn(postgres: PostgresServer) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """One for an asynchronous pool."""
    conn = await psycopg.AsyncConnection.connect(postgres.url)
    driver_of(conn)
    yield conn
    await conn.close()


@pytest.fixture
async def pgconn(postgres: PostgresServer) -> AsyncIterator[Any]:
    """One of asyncpg's."""
    conn = await asyncpg.connect(postgres.url)
    driver_of(conn)
    yield conn
    conn.terminate()


def backends(server: PostgresServer, pid: int) -> int:
    """Return whether the backend *pid* is still there: 1 or 0."""
    return int(server.query(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"))


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Do *work* in a thread, and keep what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


class TestPsycopg:
    def test_check_takes_one_round_trip_and_leaves_no_transaction(
        self, conn: psycopg.Connection[Any]
    ) -> None:
        """The connection is as it was: not in a transaction, and autocommit as it was set."""
        driver = driver_of(conn)

        take(driver.check(conn) or ())

        assert not driver.dirty(conn)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert conn.autocommit is False

    def test_check_of_what_the_server_ended_fails(
        self, conn: psycopg.Connection[Any], postgres: PostgresServer
    ) -> None:
        """A backend that was terminated while idle is noticed, and then known."""
        driver = driver_of(conn)
        postgres.query(f"SELECT pg_terminate_backend({conn.info.backend_pid})")

        with pytest.raises(psycopg.OperationalError) as caught:
            take(driver.check(conn) or ())

        assert driver.broken(conn, caught.value)
        assert driver.broken(conn, ValueError())
        assert driver.dirty(conn)
        with pytest.raises(ConnectionError, match="closed"):
            take(driver.reset(conn))

    def test_reset_brings_back_what_was_changed(self, conn: psycopg.Connection[Any]) -> None:
        """Somebody else's autocommit, read-only or rows that are dicts would be a nasty surprise."""
        driver = driver_of(conn)
        rows = conn.row_factory
        conn.autocommit = True
        conn.read_only = True
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.deferrable = True
        conn.row_factory = dict_row  # type: ignore[assignment]
        assert driver.dirty(conn)

        take(driver.reset(conn))

        assert not driver.dirty(conn)
        assert (conn.autocommit, conn.read_only, conn.isolation_level, conn.deferrable) == (
            False,
            None,
            None,
            None,
        )
        assert conn.row_factory is rows

    def test_what_connecting_set_is_kept(self, postgres: PostgresServer) -> None:
        """What it was set to when it was new is what it is set back to."""
        with closing(psycopg.connect(postgres.url, autocommit=True)) as conn:
            driver = driver_of(conn)
            assert driver_of(conn) is driver  # and asking again changes nothing
            conn.autocommit = False
            assert driver_of(conn).dirty(conn)

            take(driver.reset(conn))

            assert conn.autocommit is True
            assert not driver.dirty(conn)

    def test_transactions_are_rolled_back_or_committed(self, conn: psycopg.Connection[Any]) -> None:
        """In a transaction or in a failed one, it is dirty; afterwards it is not."""
        driver = driver_of(conn)
        conn.execute("SELECT 1")
        assert driver.dirty(conn)
        take(driver.commit(conn))
        assert not driver.dirty(conn)

        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            conn.execute("SELECT 1 / 0")
        assert driver.dirty(conn)
        assert not driver.broken(conn, caught.value)
        take(driver.reset(conn))
        assert not driver.dirty(conn)

        take(driver.rollback(conn))  # with nothing open
        assert conn.execute("SELECT 1").fetchone() == (1,)

    def test_left_in_the_middle_is_broken(self, conn: psycopg.Connection[Any]) -> None:
        """Rows that were not fetched would come to whoever asks next."""
        driver = driver_of(conn)
        rows = conn.cursor().stream("SELECT generate_series(1, 1000)")
        next(rows)

        assert driver.broken(conn, ValueError())
        assert driver.dirty(conn)
        with pytest.raises(ConnectionError, match="in the middle"):
            take(driver.reset(conn))
        rows.close()

    @pytest.mark.parametrize("exc", [KeyboardInterrupt(), GeneratorExit(), TimeoutError()], ids=repr)
    def test_between_two_commands_nothing_is_broken(
        self, conn: psycopg.Connection[Any], exc: BaseException
    ) -> None:
        """The status of the transaction tells that there is no answer to come."""
        driver = driver_of(conn)
        conn.execute("SELECT 1")

        assert not driver.broken(conn, exc)

    def test_a_terminated_session_is_broken_by_its_sqlstate(
        self, conn: psycopg.Connection[Any], postgres: PostgresServer
    ) -> None:
        """57P01, in the middle of a query."""
        driver = driver_of(conn)
        pid = conn.info.backend_pid
        thread, raised = in_thread(lambda: conn.execute("SELECT pg_sleep(30)"))
        wait_until(
            lambda: postgres.query(f"SELECT state FROM pg_stat_activity WHERE pid = {pid}") == "active",
            "busy",
        )

        postgres.query(f"SELECT pg_terminate_backend({pid})")
        thread.join(10.0)

        assert [type(exc) for exc in raised] == [psycopg.errors.AdminShutdown]
        assert driver.broken(conn, raised[0])

    def test_a_write_on_a_replica_is_broken(self, conn: psycopg.Connection[Any]) -> None:
        """25006: after a failover, the server that was the primary takes no writes."""
        driver = driver_of(conn)
        conn.execute("SET TRANSACTION READ ONLY")

        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            conn.execute("CREATE TABLE t (id int)")

        assert driver.broken(conn, caught.value)

    def test_a_stale_plan_is_broken(self, conn: psycopg.Connection[Any], postgres: PostgresServer) -> None:
        """A statement that was prepared before the table changed would fail for everybody who comes."""
        driver = driver_of(conn)
        postgres.query("CREATE TABLE stale (id int)")
        conn.execute("SELECT * FROM stale", prepare=True)
        conn.commit()
        postgres.query("ALTER TABLE stale ADD name text")

        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            conn.execute("SELECT * FROM stale", prepare=True)

        assert driver.broken(conn, caught.value)

    def test_what_is_not_supported_is_not_broken(self, conn: psycopg.Connection[Any]) -> None:
        """The same SQLSTATE, for a mistake in the statement."""
        driver = driver_of(conn)

        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            conn.execute("SELECT 1 UNION SELECT 2 FOR UPDATE")

        assert not driver.broken(conn, caught.value)

    def test_abort_wakes_who_waits_for_an_answer(self, conn: psycopg.Connection[Any]) -> None:
        """The thread in the middle of a query gets an error at once; the object stays whole."""
        driver = driver_of(conn)
        thread, raised = in_thread(lambda: conn.execute("SELECT pg_sleep(30)"))
        wait_until(lambda: conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE, "busy")

        driver.abort(conn)
        thread.join(5.0)

        assert [type(exc) for exc in raised] == [psycopg.OperationalError]
        assert driver.broken(conn, raised[0])
        take(driver.close(conn))
        assert driver.fileno(conn) is None
        driver.abort(conn)

    def test_abort_ends_the_session_on_the_server(
        self, conn: psycopg.Connection[Any], postgres: PostgresServer
    ) -> None:
        """Idle in a transaction with locks held: they are gone, though nobody closed the object (C2)."""
        driver = driver_of(conn)
        pid = conn.info.backend_pid
        conn.execute("SELECT pg_advisory_lock(1)")

        driver.abort(conn)

        wait_until(lambda: not backends(postgres, pid), "its backend ends")
        assert postgres.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")

    def test_abort_while_another_thread_works_is_safe(self, postgres: PostgresServer) -> None:
        """Threads in the middle of queries are cut at any moment: each gets an error, none crashes."""
        for _ in range(200 if SOAK else 15):
            with closing(psycopg.connect(postgres.url)) as conn:
                begun = threading.Event()

                def work(conn: psycopg.Connection[Any] = conn, begun: threading.Event = begun) -> None:
                    while True:
                        conn.execute("SELECT 1")
                        begun.set()

                thread, raised = in_thread(work)
                begun.wait(5.0)
                driver_of(conn).abort(conn)
                thread.join(5.0)

                assert [isinstance(exc, psycopg.OperationalError) for exc in raised] == [True]

    def test_fileno_is_its_sockets(self, conn: psycopg.Connection[Any]) -> None:
        """A forked child finds by it what it must not touch."""
        number = driver_of(conn).fileno(conn)

        assert number == conn.pgconn.socket

    def test_one_that_was_cut_and_forgotten_is_no_reason_to_warn(self, postgres: PostgresServer) -> None:
        """psycopg leaves it to pools to know who closes their connections."""
        conn = psycopg.connect(postgres.url)
        pid = conn.info.backend_pid
        driver_of(conn).abort(conn)
        del conn
        gc.collect()

        wait_until(lambda: not backends(postgres, pid), "its backend ends")


class TestAsyncPsycopg:
    async def test_checked_reset_and_closed(self, aconn: psycopg.AsyncConnection[Any]) -> None:
        """The steps are the same; here they are awaited."""
        driver = driver_of(aconn)
        await atake(driver.check(aconn) or ())
        assert not driver.dirty(aconn)
        assert aconn.autocommit is False

        await aconn.execute("SELECT 1")
        assert driver.dirty(aconn)
        await atake(driver.reset(aconn))
        await aconn.set_autocommit(True)
        assert driver.dirty(aconn)
        await atake(driver.reset(aconn))
        assert not driver.dirty(aconn)
        assert aconn.autocommit is False

        await aconn.execute("SELECT 1")
        await atake(driver.commit(aconn))
        assert not driver.dirty(aconn)
        await atake(driver.close(aconn))
        assert aconn.closed

    async def test_cancelled_is_not_broken_when_the_command_has_been(
        self, aconn: psycopg.AsyncConnection[Any]
    ) -> None:
        """psycopg has the server cancel the query and reads the answer: the connection goes on."""
        driver = driver_of(aconn)

        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await aconn.execute("SELECT pg_sleep(30)")

        assert not driver.broken(aconn, caught.value)
        await atake(driver.reset(aconn))
        cursor = await aconn.execute("SELECT 7")
        assert await cursor.fetchone() == (7,)

    async def test_abort_wakes_the_task_that_waits(
        self, aconn: psycopg.AsyncConnection[Any], postgres: PostgresServer
    ) -> None:
        """From another thread, as the pool's janitor does it."""
        driver = driver_of(aconn)
        pid = aconn.info.backend_pid
        await aconn.execute("SELECT 1")
        task = asyncio.ensure_future(aconn.execute("SELECT pg_sleep(30)"))
        await await_until(lambda: aconn.pgconn.transaction_status == 1, "busy")

        await asyncio.to_thread(driver.abort, aconn)
        with pytest.raises(psycopg.OperationalError) as caught:
            await task

        assert driver.broken(aconn, caught.value)
        postgres.query(f"SELECT pg_cancel_backend({pid})")


class TestAsyncpg:
    async def test_checked_reset_and_closed(self, pgconn: Any) -> None:
        """A transaction left open is rolled back, and the next one is not taken for its savepoint."""
        driver = driver_of(pgconn)
        await atake(driver.check(pgconn) or ())
        assert not driver.dirty(pgconn)

        await pgconn.execute("CREATE TEMP TABLE t (id int)")
        await pgconn.transaction().start()
        await pgconn.execute("INSERT INTO t VALUES (1)")
        assert driver.dirty(pgconn)
        await atake(driver.reset(pgconn))
        assert not driver.dirty(pgconn)
        async with pgconn.transaction():
            await pgconn.execute("INSERT INTO t VALUES (2)")
        assert [row["id"] for row in await pgconn.fetch("SELECT id FROM t")] == [2]

        await atake(driver.close(pgconn))
        assert driver.dirty(pgconn)
        assert driver.broken(pgconn, ValueError())
        with pytest.raises(ConnectionError, match="closed"):
            await atake(driver.reset(pgconn))

    async def test_broken_while_a_command_is_being_cancelled(self, pgconn: Any) -> None:
        """Only when the server has been told, and has answered, is it between two commands again."""
        driver = driver_of(pgconn)
        assert not driver.broken(pgconn, asyncio.CancelledError())
        assert driver.broken(pgconn, GeneratorExit())

        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await pgconn.execute("SELECT pg_sleep(30)")

        assert driver.broken(pgconn, caught.value)

    async def test_broken_by_sqlstate_and_by_a_stale_plan_only(self, pgconn: Any) -> None:
        """asyncpg keeps the SQLSTATE in the class."""
        driver = driver_of(pgconn)

        with pytest.raises(asyncpg.DivisionByZeroError) as divided:
            await pgconn.execute("SELECT 1 / 0")
        assert not driver.broken(pgconn, divided.value)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as read_only:
            await pgconn.execute("BEGIN READ ONLY; CREATE TABLE t (id int)")
        assert driver.broken(pgconn, read_only.value)

    async def test_abort_wakes_the_task_that_waits(self, pgconn: Any) -> None:
        """From another thread; the loop finds the end of the stream."""
        driver = driver_of(pgconn)
        task = asyncio.ensure_future(pgconn.execute("SELECT pg_sleep(30)"))
        await asyncio.sleep(0)
        assert driver.fileno(pgconn) is not None

        await asyncio.to_thread(driver.abort, pgconn)
        with pytest.raises((asyncpg.PostgresError, OSError)) as caught:
            await task

        assert driver.broken(pgconn, caught.value)
        assert driver.fileno(pgconn) is None


class TestRedis:
    @pytest.fixture
    def client(self, shared_valkey: ValkeyServer) -> Iterator[redis.Redis]:
        """One connection, as a pool would be given."""
        client = redis.Redis.from_url(shared_valkey.url, single_connection_client=True, protocol=2)
        driver_of(client)
        with closing(client):
            yield client

    @pytest.fixture
    def link(self, shared_valkey: ValkeyServer) -> Iterator[redis.Connection]:
        """Without a client around it."""
        link = redis.Connection(host=shared_valkey.host, port=shared_valkey.port, protocol=2)
        link.connect()
        yield link
        link.disconnect()

    def test_client_is_checked_and_closed(self, client: redis.Redis) -> None:
        """PING is answered; after the end, its owner would connect anew, so it is not lent again."""
        driver = driver_of(client)

        take(driver.check(client) or ())
        assert not driver.dirty(client)
        assert isinstance(driver.fileno(client), int)
        take(driver.reset(client))
        take(driver.close(client))

        assert driver.dirty(client)
        assert driver.broken(client, ValueError())
        with pytest.raises(ConnectionError, match="closed"):
            take(driver.reset(client))

    def test_check_sees_that_answers_are_out_of_step(self, client: redis.Redis) -> None:
        """A command whose answer nobody took: PING gets that answer, and fails."""
        assert client.connection is not None
        client.connection.send_command("SET", "answer", "1")

        with pytest.raises(ConnectionError, match="somebody else"):
            take(driver_of(client).check(client) or ())

    def test_abort_wakes_who_waits(self, client: redis.Redis, shared_valkey: ValkeyServer) -> None:
        """A blocked command ends with an error, and the client is known to be lost."""
        driver = driver_of(client)
        client.ping()
        thread, raised = in_thread(lambda: client.blpop(["none"], 30))
        with shared_valkey.client() as other:
            wait_until(lambda: other.info("clients")["blocked_clients"] == 1, "it waits")

        driver.abort(client)
        thread.join(5.0)

        assert [isinstance(exc, redis.ConnectionError) for exc in raised] == [True]
        assert driver.broken(client, raised[0])
        assert driver.dirty(client)

    def test_abort_cuts_what_is_inside_of_a_client(self, shared_valkey: ValkeyServer) -> None:
        """Subscriptions and pipelines have connections of their own, from the pool in the client."""
        with closing(redis.Redis.from_url(shared_valkey.url, protocol=2)) as client:
            subscription = client.pubsub()
            subscription.subscribe("news")
            assert subscription.get_message(timeout=5.0) is not None
            inside = subscription.connection._get_socket()  # type: ignore[union-attr]
            assert inside is not None

            driver_of(client).abort(client)

            assert inside.recv(1) == b""
            subscription.close()

    def test_connection_with_an_unread_answer_is_broken(self, link: redis.Connection) -> None:
        """Its user reads by hand, and may have left something."""
        driver = driver_of(link)
        take(driver.check(link) or ())
        assert not driver.dirty(link)

        link.send_command("GET", "somebody-elses")
        assert select.select([link._sock], [], [], 5.0)[0]

        assert driver.dirty(link)
        assert driver.broken(link, ValueError())
        with pytest.raises(ConnectionError, match="nobody had read"):
            take(driver.reset(link))
        take(driver.close(link))
        assert driver.dirty(link)
        assert driver.fileno(link) is None

    async def test_async_client(self, shared_valkey: ValkeyServer) -> None:
        """Checked, cut from another thread, and closed, as the other."""
        client = redis.asyncio.Redis.from_url(shared_valkey.url, single_connection_client=True, protocol=2)
        driver = driver_of(client)
        assert not driver.dirty(client)  # it has not connected yet
        assert driver.fileno(client) is None
        await client.initialize()
        await atake(driver.check(client) or ())
        await atake(driver.reset(client))
        assert isinstance(driver.fileno(client), int)

        task = asyncio.ensure_future(client.blpop(["none"], 30))
        with shared_valkey.client() as other:
            await await_until(lambda: other.info("clients")["blocked_clients"] == 1, "it waits")
        await asyncio.to_thread(driver.abort, client)
        with pytest.raises(redis.ConnectionError) as caught:
            await task

        assert driver.broken(client, caught.value)
        await atake(driver.close(client))

    async def test_async_connection(self, shared_valkey: ValkeyServer) -> None:
        """The same for the connection itself, which may have answers left."""
        link = redis.asyncio.Connection(host=shared_valkey.host, port=shared_valkey.port, protocol=2)
        await link.connect()
        driver = driver_of(link)
        await atake(driver.check(link) or ())
        assert not driver.dirty(link)

        await link.send_command("GET", "somebody-elses")
        await await_until(lambda: driver.dirty(link), "its answer has come")
        await atake(driver.close(link))

        assert driver.dirty(link)

    async def test_cancelled_commands_never_hand_their_answers_on(self, shared_valkey: ValkeyServer) -> None:
        """redis-py#2624, #2665: a connection that was abandoned in the middle is not used again."""
        tags = count()
        with TcpProxy(shared_valkey.port) as proxy, proxy.toxic(Latency(0.002, 0.002)):
            client = None
            kept = mixed = replaced = 0
            for _ in range(CANCELLED):
                if client is None:
                    client = redis.asyncio.Redis(
                        host=proxy.host, port=proxy.port, single_connection_client=True, protocol=2
                    )
                    await client.initialize()
                tag = f"tag-{next(tags)}".encode()
                try:
                    async with asyncio.timeout(0.004):
                        mixed += await client.echo(tag) != tag
                except TimeoutError as exc:
                    kept += not driver_of(client).broken(client, exc)
                    await client.aclose()
                    client, replaced = None, replaced + 1
            if client is not None:
                await client.aclose()

        assert (mixed, kept) == (0, 0)
        assert replaced > 0


class TestTls:
    def test_session_tickets_are_no_answer(self, tls_pair: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
        """TLS 1.3 servers send tickets unasked; what is an answer is told from them."""
        ours, theirs = tls_pair
        driver = driver_of(ours)
        assert driver.name == "ssl"
        assert select.select([ours], [], [], 5.0)[0]  # the tickets

        take(driver.check(ours) or ())
        assert not driver.broken(ours, ValueError())

        theirs.sendall(b"late")
        wait_until(lambda: driver.broken(ours, ValueError()), "an answer nobody asked for")

    def test_abort_wakes_who_waits(self, tls_pair: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
        """It is cut below TLS, whose state belongs to the thread that reads."""
        ours, theirs = tls_pair
        driver = driver_of(ours)
        reader, raised = in_thread(lambda: ours.recv(1))

        driver.abort(ours)
        reader.join(5.0)

        assert not reader.is_alive()
        assert [driver.broken(ours, exc) for exc in raised] in ([], [True])
        with pytest.raises(ConnectionError, match="ended by the other side"):
            take(driver.check(ours) or ())
        with suppress(OSError):
            assert theirs.recv(1) == b""


@pytest.fixture
def tls_pair(tmp_path: Path) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Two sockets with TLS 1.3 between them, ours first."""
    (tmp_path / "key.pem").write_text(_KEY_AND_CERTIFICATE)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "key.pem")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_mode = ssl.CERT_NONE
    near, far = socket.socketpair()
    wrapped: list[ssl.SSLSocket] = []
    handshake, raised = in_thread(lambda: wrapped.append(server_side.wrap_socket(far, server_side=True)))
    with client_side.wrap_socket(near) as ours:
        handshake.join()
        assert not raised
        with wrapped[0] as theirs:
            assert ours.version() == "TLSv1.3"
            yield ours, theirs


_KEY_AND_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgng5s3RTiku6DRQGY
1paFpxbI9o+2k3Y9fc4WYoKWLsyhRANCAATziZ5Wc00EKeok3YG/Dx8bne+k2Epk
SswOjrjBxfTGdgxByMbuoPtiJe7ybg16PTm7YhyJ7rMTSwcqMCRR8pzm
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUdnq3q8438z/Y2R4NMy+ZMkLrhYQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTE3MDA0NVoYDzIxMjYxMDI4
MTcwMDQ1WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATziZ5Wc00EKeok3YG/Dx8bne+k2EpkSswOjrjBxfTGdgxByMbuoPti
Je7ybg16PTm7YhyJ7rMTSwcqMCRR8pzmo1MwUTAdBgNVHQ4EFgQUCPPT+A3TdapR
OP6RwhpNaRy0LnQwHwYDVR0jBBgwFoAUCPPT+A3TdapROP6RwhpNaRy0LnQwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA/C+Myr28vszmu0/4MU8j
Of+y7+3FLBBAQsmYA8IgxVECIGveWmzhX6S6xpsOwZS/jFEMxjTZ9kP0FI2IrwdO
Qiwt
-----END CERTIFICATE-----
"""
