"""What a pool knows about kinds of connections, as far as it takes no server to see it."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest
import redis
import redis.asyncio
from tests.pool.stepping import atake, take

from resilient.errors import CircuitOpenError, PoolUnavailableError
from resilient.pool.drivers import Driver, driver_of
from resilient.pool.drivers.base import evidence

ABANDONMENTS = [asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit(), SystemExit()]


def made_in(module: str, name: str, *bases: type, **members: Any) -> type:
    """Make a class that looks as if it came from *module*, which need not be installed."""
    return type(name, bases or (object,), {"__module__": module, **members})


def proxy_of(kind: type) -> Any:
    """Return an object that says it is a *kind*."""
    return type("Proxy", (), {"__class__": property(lambda self: kind)})()


class Recorder:
    """A connection by PEP 249 that notes what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cursor(self) -> Recorder:
        return self

    def execute(self, query: str) -> None:
        self.calls.append(query)

    def fetchone(self) -> None:
        self.calls.append("fetchone")

    def commit(self) -> None:
        self.calls.append("commit")

    def rollback(self) -> None:
        self.calls.append("rollback")

    def close(self) -> None:
        self.calls.append("close")


class MySqlError(Exception):
    """What MySQL's clients raise: the code comes first."""


Error = type("Error", (MySqlError,), {})
OperationalError = type("OperationalError", (Error,), {})
InterfaceError = type("InterfaceError", (Error,), {})


class SqlStateError(Error):  # type: ignore[misc,valid-type]
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets, each the other's peer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    """A database in memory."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as conn:
        yield conn


class TestRecognition:
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (psycopg.Connection, "psycopg"),
            (psycopg.AsyncConnection, "psycopg"),
            (asyncpg.Connection, "asyncpg"),
            (redis.Redis, "redis"),
            (redis.asyncio.Redis, "redis"),
            (redis.connection.Connection, "redis"),
            (redis.connection.SSLConnection, "redis"),
            (redis.asyncio.connection.Connection, "redis"),
            (sqlite3.Connection, "sqlite3"),
            (socket.socket, "socket"),
            (ssl.SSLSocket, "ssl"),
            (made_in("psycopg2.extensions", "connection"), "psycopg2"),
            (Recorder, "DB-API"),
            (object, "generic"),
        ],
    )
    def test_kind_is_known_by_its_class_and_by_those_derived_from_it(self, kind: type, name: str) -> None:
        """Each kind has its driver, and so has what users make of it."""
        derived = type("Theirs", (kind,), {"__module__": "shop.database"})

        assert driver_of(proxy_of(kind)).name == name
        assert driver_of(proxy_of(derived)).name == name

    def test_a_proxy_is_what_it_says_it_is(self) -> None:
        """Instrumentation wraps connections; what is inside of the wrapper decides."""
        proxy = proxy_of(sqlite3.Connection)

        assert type(proxy) is not sqlite3.Connection
        assert driver_of(proxy).name == "sqlite3"

    def test_nothing_is_imported(self) -> None:
        """Knowing of seven libraries loads none of them."""
        code = (
            "import sys, resilient.pool.drivers as d; d.driver_of(object());"
            "print({'psycopg', 'psycopg2', 'asyncpg', 'sqlite3', 'valkey'} & set(sys.modules))"
        )

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout.strip() == "set()"

    def test_every_driver_answers_all_questions(self) -> None:
        """A pool need not ask first whether a driver can do something."""
        for driver in [driver_of(object()), driver_of(Recorder())]:
            assert {"note", "close", "abort", "check", "dirty", "reset", "broken", "fileno"} <= set(
                dir(driver)
            )
            assert isinstance(driver.name, str)
            assert isinstance(driver.transactional, bool)


class TestAnyObject:
    def test_nothing_is_done_to_it(self) -> None:
        """An object nothing is known of is not reset, committed or checked."""
        conn = SimpleNamespace()
        driver = driver_of(conn)

        assert driver.check(conn) is None
        assert not driver.dirty(conn)
        assert not driver.transactional
        for steps in (driver.close(conn), driver.reset(conn), driver.commit(conn), driver.rollback(conn)):
            take(steps)
        driver.abort(conn)
        assert driver.fileno(conn) is None
        assert vars(conn) == {}

    @pytest.mark.parametrize("name", ["close", "disconnect"])
    def test_close_finds_the_method(self, name: str) -> None:
        """What libraries call their end differs."""
        closed = []
        conn = made_in("somewhere", "Link", **{name: lambda self: closed.append(name)})()

        take(driver_of(conn).close(conn))

        assert closed == [name]

    async def test_an_asynchronous_close_comes_before_one_that_is_not(self) -> None:
        """Clients that can do both are closed as an asynchronous pool can wait for."""

        class Link:
            closed = False

            async def aclose(self) -> None:
                self.closed = True

            def close(self) -> None:
                raise AssertionError

        conn = Link()

        await atake(driver_of(conn).close(conn))

        assert conn.closed

    def test_abort_cuts_the_socket_inside(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Clients keep their socket under a few well-known names."""
        ours, theirs = pair
        conn = SimpleNamespace(sock=ours)
        driver = driver_of(conn)

        assert driver.fileno(conn) == ours.fileno()
        driver.abort(conn)

        assert theirs.recv(1) == b""
        assert ours.fileno() >= 0  # not closed under somebody's feet

    def test_what_stands_for_something_remote_is_not_called(self) -> None:
        """An object that has every attribute, because each is a remote call, is asked for none."""

        class Remote:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(name)

        conn = Remote()
        driver = driver_of(conn)

        take(driver.close(conn))
        driver.abort(conn)
        assert driver.fileno(conn) is None

    @pytest.mark.parametrize(
        ("exc", "broken"),
        [
            (ConnectionResetError(), True),
            (BrokenPipeError(), True),
            (TimeoutError(), True),
            (EOFError(), True),
            (asyncio.IncompleteReadError(b"", 1), True),
            (ssl.SSLError("bad record mac"), True),
            (ValueError("theirs"), False),
            (KeyError(2006), False),
            (FileNotFoundError(), False),
            (CircuitOpenError(), False),
            (PoolUnavailableError(), False),  # is a ConnectionError, too
            *((exc, True) for exc in ABANDONMENTS),
        ],
        ids=repr,
    )
    def test_broken_by_what_came_out(self, exc: BaseException, broken: bool) -> None:
        """Lost connections and calls given up in the middle; neither users' mistakes nor our refusals."""
        conn = object()

        assert driver_of(conn).broken(conn, exc) is broken

    def test_broken_by_the_cause_of_what_came_out(self) -> None:
        """An application's own error tells what it was raised from."""
        conn = object()
        error = ValueError("no order")
        error.__cause__ = ConnectionResetError()

        assert driver_of(conn).broken(conn, error)

    def test_not_broken_by_what_was_handled_before(self) -> None:
        """A second attempt inside of an `except` does not suffer from what the first one met."""
        conn = object()
        error = ValueError("no order")
        error.__context__ = ConnectionResetError()

        assert not driver_of(conn).broken(conn, error)

    def test_not_broken_by_what_caused_a_refusal(self) -> None:
        """A refusal says nothing, whatever it carries."""
        conn = object()
        error = CircuitOpenError("open")
        error.__cause__ = ConnectionResetError()

        assert not driver_of(conn).broken(conn, error)

    def test_broken_by_one_of_a_group(self) -> None:
        """A task group around the calls hides nothing."""
        conn = object()
        group = ExceptionGroup("calls", [ValueError(), ExceptionGroup("more", [ConnectionResetError()])])

        assert driver_of(conn).broken(conn, group)
        assert not driver_of(conn).broken(conn, ExceptionGroup("calls", [ValueError()]))
        assert driver_of(conn).broken(conn, BaseExceptionGroup("calls", [asyncio.CancelledError()]))

    def test_a_ring_of_causes_has_an_end(self) -> None:
        """Two errors that name each other as their cause are both looked at, once."""
        one, other = ValueError("one"), ValueError("other")
        one.__cause__, other.__cause__ = other, one

        assert list(evidence(one)) == [one, other]


class TestDbApi:
    def test_checked_by_a_query_that_leaves_nothing_open(self) -> None:
        """Without a ping there is a query, and a rollback of the transaction it may have begun."""
        conn = Recorder()

        take(driver_of(conn).check(conn) or ())

        assert conn.calls == ["SELECT 1", "fetchone", "close", "rollback"]

    def test_ping_is_told_not_to_reconnect(self) -> None:
        """PyMySQL's ping makes another connection by default, which would hide that the first is dead."""

        class Client(Recorder):
            def ping(self, reconnect: bool = True) -> None:
                self.calls.append(f"ping reconnect={reconnect}")

        conn = Client()

        take(driver_of(conn).check(conn) or ())

        assert conn.calls == ["ping reconnect=False"]

    def test_ping_without_arguments_is_asked_so(self) -> None:
        """Others have a ping that takes none."""

        class Client(Recorder):
            def ping(self) -> None:
                self.calls.append("ping")

        conn = Client()

        take(driver_of(conn).check(conn) or ())

        assert conn.calls == ["ping"]

    async def test_checked_asynchronously(self) -> None:
        """An asynchronous client's steps are awaited, and its cursor is what came of awaiting."""
        made = Recorder()

        class Client:
            async def cursor(self) -> Any:
                async def do(*args: Any) -> None:
                    made.calls.append(str(args))

                return SimpleNamespace(execute=do, fetchone=do, close=do)

            async def commit(self) -> None: ...

            async def rollback(self) -> None:
                made.rollback()

            async def close(self) -> None: ...

        conn = Client()

        await atake(driver_of(conn).check(conn) or ())

        assert made.calls == ["('SELECT 1',)", "()", "()", "rollback"]

    def test_transactions_end_as_asked(self) -> None:
        """Commit commits, rollback rolls back, and so does reset."""
        conn = Recorder()
        driver = driver_of(conn)

        assert driver.transactional
        take(driver.commit(conn))
        take(driver.rollback(conn))
        take(driver.reset(conn))
        take(driver.close(conn))

        assert conn.calls == ["commit", "rollback", "rollback", "close"]

    @pytest.mark.parametrize(
        ("members", "dirty"),
        [
            ({}, True),  # nobody knows
            ({"in_transaction": property(lambda self: True)}, True),
            ({"in_transaction": property(lambda self: False)}, False),
            ({"transaction_in_progress": property(lambda self: False)}, False),
            ({"server_status": 0}, True),  # a SELECT without autocommit begins a transaction that is not told
            ({"server_status": 1}, True),
            ({"server_status": 2}, False),
            ({"server_status": 3}, True),
            ({"in_transaction": property(lambda self: 1 / 0)}, True),  # closed, in somebody's own way
        ],
    )
    def test_dirty_unless_it_is_known_that_no_transaction_is_open(
        self, members: dict[str, Any], dirty: bool
    ) -> None:
        """What a client tells without asking its server is believed."""
        conn = made_in("mysql.connector", "Client", Recorder, **members)()

        assert driver_of(conn).dirty(conn) is dirty

    @pytest.mark.parametrize("code", [2006, 2013, 2014, 2045, 2055, 4031, 1053, 1927, 1836])
    def test_broken_by_the_codes_of_mysql(self, code: int) -> None:
        """Gone, lost, out of step, timed out, killed, shut down, read-only."""
        conn = Recorder()

        assert driver_of(conn).broken(conn, OperationalError(code, "MySQL server has gone away"))
        assert not driver_of(conn).broken(conn, KeyError(code))

    @pytest.mark.parametrize(
        ("error", "broken"),
        [
            (OperationalError(1213, "Deadlock found"), False),
            (OperationalError(1205, "Lock wait timeout exceeded"), False),
            (OperationalError(1290, "running with the --read-only option"), True),
            (OperationalError(1290, "running with the --secure-file-priv option"), False),
            (OperationalError(), False),
            (InterfaceError(0, ""), True),
            (OperationalError("08S01", "[08S01] Communication link failure"), True),
            (OperationalError("42S02", "[42S02] no such table"), False),
            (TimeoutError("timed out"), True),
        ],
        ids=repr,
    )
    def test_broken_by_other_errors(self, error: Exception, broken: bool) -> None:
        """A deadlock is no reason to part; a closed or read-only connection is."""
        conn = Recorder()

        assert driver_of(conn).broken(conn, error) is broken

    @pytest.mark.parametrize(
        ("state", "broken"),
        [
            ("08000", True),
            ("08006", True),
            ("57P01", True),
            ("57P02", True),
            ("57P03", True),
            ("57P05", True),
            ("25006", True),
            ("25P03", True),
            ("01002", True),
            ("57014", False),  # a query was cancelled
            ("40001", False),
            ("23505", False),
            ("42P01", False),
            ("0A000", False),
            ("25P02", False),
        ],
    )
    def test_broken_by_sqlstate(self, state: str, broken: bool) -> None:
        """HikariCP's list, and what PostgreSQL says when it ends a session or is a primary no longer."""
        conn = Recorder()
        error = SqlStateError(state)
        older = Error("pgcode")
        older.pgcode = state  # type: ignore[attr-defined]

        assert driver_of(conn).broken(conn, error) is broken
        assert driver_of(conn).broken(conn, older) is broken

    @pytest.mark.parametrize("exc", ABANDONMENTS, ids=repr)
    def test_broken_when_abandoned(self, exc: BaseException) -> None:
        """Whether it was in the middle of a command, nobody can tell."""
        conn = Recorder()

        assert driver_of(conn).broken(conn, exc)


class TestPsycopgOfAnotherVersion:
    def test_without_the_settings_only_the_transaction_is_looked_at(self) -> None:
        """Where its attributes are called something else, what was changed of them stays."""
        conn = made_in("psycopg", "BaseConnection")()
        conn.pgconn = SimpleNamespace(transaction_status=2)
        conn.closed = conn.broken = False

        def rollback() -> None:
            conn.pgconn.transaction_status = 0

        conn.rollback = rollback
        driver = driver_of(conn)

        assert driver.dirty(conn)
        take(driver.reset(conn))
        assert not driver.dirty(conn)
        conn.pgconn.transaction_status = 4  # closed
        assert driver.dirty(conn)
        assert driver.broken(conn, ValueError())


class TestPsycopg2:
    class Connection:
        """As much of psycopg2's connection as is asked."""

        def __init__(self) -> None:
            self.closed = 0
            self.status = 0
            self.autocommit = False
            self.seen: list[Any] = []

        def get_transaction_status(self) -> int:
            return self.status

        def rollback(self) -> None:
            self.seen.append("rollback")
            self.status = 0

        def cursor(self) -> Any:
            return nullcontext(
                SimpleNamespace(execute=lambda query: self.seen.append((query, self.autocommit)))
            )

    @pytest.fixture
    def conn(self) -> Any:
        return made_in("psycopg2.extensions", "connection", self.Connection)()

    def test_checked_without_a_transaction(self, conn: Any) -> None:
        """The query is sent as a transaction of its own, and the setting is what it was."""
        take(driver_of(conn).check(conn) or ())

        assert conn.seen == [("SELECT 1", True)]
        assert conn.autocommit is False

    @pytest.mark.parametrize(("status", "calls"), [(0, []), (2, ["rollback"]), (3, ["rollback"])])
    def test_reset_rolls_back_what_is_open(self, conn: Any, status: int, calls: list[str]) -> None:
        """What is not in a transaction costs nothing."""
        conn.status = status
        driver = driver_of(conn)

        assert driver.dirty(conn) is (status != 0)
        take(driver.reset(conn))

        assert conn.seen == calls

    @pytest.mark.parametrize(("closed", "status"), [(0, 1), (0, 4), (1, 0), (2, 0)])
    def test_reset_refuses_what_is_closed_or_busy(self, conn: Any, closed: int, status: int) -> None:
        """In the middle of a command, or ended: it is thrown away, whatever the exception was."""
        conn.closed, conn.status = closed, status
        driver = driver_of(conn)

        assert driver.dirty(conn)
        assert driver.broken(conn, ValueError())
        with pytest.raises(ConnectionError, match="closed, or in the middle"):
            take(driver.reset(conn))

    def test_commit_of_what_its_borrower_closed_is_no_error(self, conn: Any) -> None:
        """Of what was lost it is: what was to be committed is lost as well."""
        conn.commit = lambda: conn.seen.append("commit")
        driver = driver_of(conn)

        for conn.closed in (1, 0, 2):
            take(driver.commit(conn))

        assert conn.seen == ["commit", "commit"]

    def test_not_broken_by_an_interrupt_between_two_commands(self, conn: Any) -> None:
        """It tells by itself whether it is in the middle of one."""
        assert not driver_of(conn).broken(conn, KeyboardInterrupt())


class TestSqlite:
    def test_interrupted_at_once_by_another_thread(self, database: sqlite3.Connection) -> None:
        """A query that would take for ever ends with an error, and the connection stays good."""
        driver = driver_of(database)
        begun = threading.Event()
        database.create_function("begun", 0, begun.set)
        endless = "WITH RECURSIVE n(x) AS (SELECT begun() UNION ALL SELECT 1 FROM n) SELECT count(x) FROM n"

        def cut() -> None:
            assert begun.wait(10.0)
            driver.abort(database)

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(sqlite3.OperationalError, match="interrupted") as caught:
            database.execute(endless)
        cutter.join()

        assert not driver.broken(database, caught.value)
        take(driver.check(database) or ())

    def test_dirty_in_a_transaction_only(self, database: sqlite3.Connection) -> None:
        """What has nothing open need not be rolled back."""
        driver = driver_of(database)
        database.execute("CREATE TABLE orders (id)")

        assert not driver.dirty(database)
        database.execute("INSERT INTO orders VALUES (1)")
        assert driver.dirty(database)

        take(driver.reset(database))
        assert not driver.dirty(database)
        assert database.execute("SELECT count(*) FROM orders").fetchone() == (0,)

    def test_committed(self, database: sqlite3.Connection) -> None:
        """Commit keeps what rollback would not."""
        driver = driver_of(database)
        database.execute("CREATE TABLE orders (id)")
        database.execute("INSERT INTO orders VALUES (1)")

        take(driver.commit(database))
        take(driver.rollback(database))

        assert database.execute("SELECT count(*) FROM orders").fetchone() == (1,)

    @pytest.mark.parametrize("exc", [*ABANDONMENTS, TimeoutError(), ConnectionError()], ids=repr)
    def test_not_broken_by_what_it_cannot_be_broken_by(
        self, database: sqlite3.Connection, exc: BaseException
    ) -> None:
        """It is always between two commands, and has no server."""
        assert not driver_of(database).broken(database, exc)

    @pytest.mark.parametrize(
        ("code", "broken"),
        [
            (sqlite3.SQLITE_BUSY, False),
            (sqlite3.SQLITE_LOCKED, False),
            (sqlite3.SQLITE_CONSTRAINT_UNIQUE, False),
            (sqlite3.SQLITE_READONLY, False),
            (sqlite3.SQLITE_READONLY_DBMOVED, True),
            (sqlite3.SQLITE_IOERR_READ, True),
            (sqlite3.SQLITE_CORRUPT, True),
            (sqlite3.SQLITE_NOTADB, True),
        ],
    )
    def test_broken_by_what_is_wrong_with_the_file(
        self, database: sqlite3.Connection, code: int, broken: bool
    ) -> None:
        """A locked database is only busy; a file that cannot be read is opened anew."""
        error = sqlite3.OperationalError("whatever")
        error.sqlite_errorcode = code

        assert driver_of(database).broken(database, error) is broken

    def test_closed_is_good_for_nothing(self, database: sqlite3.Connection) -> None:
        """It is dead, dirty and broken; to cut it again does no harm."""
        driver = driver_of(database)
        take(driver.close(database))

        assert driver.dirty(database)
        assert driver.broken(database, ValueError())
        take(driver.commit(database))
        driver.abort(database)
        assert driver.fileno(database) is None
        with pytest.raises(sqlite3.ProgrammingError):
            take(driver.check(database) or ())
        with pytest.raises(sqlite3.ProgrammingError):
            take(driver.reset(database))


class TestRedisErrors:
    """What redis-py raises. Its connections are in `test_drivers_real`."""

    @pytest.fixture
    def client(self) -> Iterator[redis.Redis]:
        with redis.Redis() as client:
            yield client

    @pytest.mark.parametrize(
        ("exc", "broken"),
        [
            (redis.ConnectionError("reset"), True),
            (redis.TimeoutError("no answer yet"), True),
            (redis.ReadOnlyError("a replica now"), True),
            (redis.BusyLoadingError("loading"), True),
            (redis.InvalidResponse("out of step"), True),
            (TimeoutError("asyncio.timeout()"), True),
            (redis.ResponseError("WRONGTYPE"), False),
            (redis.WatchError(), False),
            (redis.DataError(), False),
            (redis.exceptions.NoScriptError(), False),
            (ValueError(), False),
            (CircuitOpenError(), False),
            *((exc, True) for exc in ABANDONMENTS),
        ],
        ids=repr,
    )
    def test_broken_by(self, client: redis.Redis, exc: BaseException, broken: bool) -> None:
        """Lost, timed out, given up, or a replica now; not an answer that is an error."""
        assert driver_of(client).broken(client, exc) is broken

    def test_a_connection_that_fails_when_it_is_looked_at_is_lost(self) -> None:
        """What reads ahead may find the end of the stream."""

        def can_read(self: Any, timeout: float) -> bool:
            raise redis.ConnectionError

        conn = made_in("redis.connection", "AbstractConnection", is_connected=True, can_read=can_read)()
        driver = driver_of(conn)

        assert driver.dirty(conn)
        assert driver.broken(conn, ValueError())
        with pytest.raises(ConnectionError, match="closed"):
            take(driver.reset(conn))


class TestSockets:
    def test_quiet_is_alive_and_nothing_is_waited_for(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """A socket with a timeout of a minute is looked at in no time, and has it still."""
        ours, _ = pair
        ours.settimeout(60.0)
        driver = driver_of(ours)

        take(driver.check(ours) or ())

        assert ours.gettimeout() == 60.0
        assert not driver.broken(ours, ValueError())

    def test_ended_by_the_other_side_is_dead(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """The end of the stream is seen without reading."""
        ours, theirs = pair
        theirs.close()
        driver = driver_of(ours)

        with pytest.raises(ConnectionError, match="ended by the other side"):
            take(driver.check(ours) or ())
        assert driver.broken(ours, ValueError())

    def test_an_answer_nobody_asked_for_is_out_of_step(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """It would be taken for the answer to the next question. It is still there to be read."""
        ours, theirs = pair
        theirs.sendall(b"late")
        driver = driver_of(ours)

        with pytest.raises(ConnectionError, match="nobody asked for"):
            take(driver.check(ours) or ())
        assert driver.broken(ours, ValueError())
        assert ours.recv(4) == b"late"

    def test_abort_wakes_who_waits(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """A thread in the middle of a read gets the end of the stream; the peer, too."""
        ours, theirs = pair
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(ours.recv(1)))
        reader.start()

        driver_of(ours).abort(ours)
        reader.join(10.0)

        assert got == [b""]
        assert theirs.recv(1) == b""

    def test_abort_of_what_is_closed_does_nothing(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """It may have been closed just before."""
        ours, _ = pair
        driver = driver_of(ours)
        take(driver.close(ours))

        driver.abort(ours)

        assert driver.fileno(ours) is None
        assert driver.broken(ours, ValueError())

    def test_abort_does_not_hit_who_has_the_number_next(
        self, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """A descriptor that was closed between two looks, and means another socket now, is left alone."""
        ours, theirs = pair

        class Closing:
            """Is closed right after it was asked for its descriptor."""

            def __init__(self) -> None:
                self.numbers = [ours.fileno(), -1]

            def fileno(self) -> int:
                return self.numbers.pop(0)

        conn = Closing()
        driver_of(conn).abort(conn)

        assert conn.numbers == []
        theirs.sendall(b"still there")
        assert ours.recv(11) == b"still there"

    def test_abort_leaves_files_alone(self, tmp_path: Any) -> None:
        """A descriptor that is no socket's cannot be cut, and nothing is raised."""
        with (tmp_path / "file").open("wb") as file:
            driver_of(file).abort(file)
            file.write(b"goes on")

        assert (tmp_path / "file").read_bytes() == b"goes on"


class TestStreams:
    async def test_checked_cut_and_closed(self) -> None:
        """What `asyncio.open_connection` returns is a connection, too."""
        spoke = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while await reader.readline():
                    writer.write(b"one\ntwo\n")
                    await writer.drain()
                    spoke.set()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            conn = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = conn
            driver = driver_of(conn)
            assert driver.name == "streams"
            await atake(driver.check(conn) or ())

            writer.write(b"?\n")
            assert await reader.readline() == b"one\n"
            with pytest.raises(ConnectionError, match="nobody asked for"):
                await atake(driver.check(conn) or ())
            assert driver.broken(conn, ValueError())
            assert await reader.readline() == b"two\n"

            assert driver.fileno(conn) == writer.get_extra_info("socket").fileno()
            driver.abort(conn)
            assert await reader.read() == b""
            with pytest.raises(ConnectionError, match="ended by the other side"):
                await atake(driver.check(conn) or ())
            await atake(driver.close(conn))
            assert driver.fileno(conn) is None


def test_drivers_have_no_state() -> None:
    """One driver serves every connection of its kind, in every pool."""
    driver = driver_of(object())

    assert driver is driver_of(object())
    assert type(driver) is Driver
    assert not hasattr(driver, "__dict__")
