"""Pools of connections without a database server: SQLite's files, sockets, and asyncio's streams."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.pool.load import acallers, callers
from tests.support.tcp_proxy import Latency, ResetPeer, Slicer, TcpProxy
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool
from resilient.errors import ConnectionReclaimedError

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600.0 if SOAK else 60.0)]

TRANSFERS = 2_000 if SOAK else 60
ACCOUNTS = 10
_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(x) FROM n"

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def assert_nothing_leaked(pool: ConnectionPool[Any] | AsyncConnectionPool[Any]) -> None:
    """See that a closed pool has accounted for every connection that it had."""
    stats = pool.stats()
    assert (stats.size, stats.used, stats.idle, stats.waiting, stats.connecting) == (0, 0, 0, 0, 0)
    assert stats.closed == stats.connects


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A bank: ten accounts with a hundred each."""
        path = tmp_path / "bank.sqlite"
        conn = sqlite3.connect(path)
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, money INTEGER, moves INTEGER)")
        conn.executemany("INSERT INTO accounts VALUES (?, 100, 0)", [(number,) for number in range(ACCOUNTS)])
        conn.commit()
        conn.close()
        return path

    def pool_of(self, path: Path, **options: Any) -> ConnectionPool[sqlite3.Connection]:
        # Each connection serves whichever thread has it, one at a time.
        connect = partial(
            sqlite3.connect, path, check_same_thread=False, timeout=options.pop("patience", 10.0)
        )
        return ConnectionPool(connect, **{"name": "bank", "max_size": 4, **options})

    def test_threads_that_fail_half_way_leave_the_books_balanced(self, path: Path) -> None:
        """Leaving a block well commits, an exception rolls back: no money is made or lost."""
        with self.pool_of(path) as pool:

            @pool
            def transfer(conn: sqlite3.Connection, turn: int) -> None:
                conn.execute("BEGIN IMMEDIATE")
                conn.execute(
                    "UPDATE accounts SET money = money - 1, moves = moves + 1 WHERE id = ?", (turn % 10,)
                )
                if turn % 3 == 0:
                    raise KeyError(turn)
                conn.execute("UPDATE accounts SET money = money + 1 WHERE id = ?", (turn * 7 % 10,))

            def run() -> None:
                for turn in range(TRANSFERS):
                    with suppress(KeyError):
                        transfer(turn)

            crowd = [threading.Thread(target=run) for _ in range(8)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()

            with pool.connection() as conn:
                done = 8 * sum(turn % 3 != 0 for turn in range(TRANSFERS))
                sums = conn.execute("SELECT sum(money), sum(moves) FROM accounts").fetchone()
                assert sums == (100 * ACCOUNTS, done)
            assert pool.stats().discarded == 0
        assert_nothing_leaked(pool)

    def test_a_locked_database_costs_no_connection(self, path: Path) -> None:
        """Somebody else writes: that is an error for who asked, and no reason to part."""
        with self.pool_of(path, patience=0.0) as pool:
            writer = pool.getconn()
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"), pool.connection() as conn:
                conn.execute("UPDATE accounts SET money = 0")

            pool.putconn(writer)
            wait_until(lambda: pool.stats().idle == 2, "it was rolled back, and the lock is free")
            with pool.connection() as conn:
                conn.execute("UPDATE accounts SET money = 1")
            assert pool.stats().discarded == 0

    def test_forgotten_in_a_transaction_gives_up_its_lock(self, path: Path) -> None:
        """Or nobody could ever write again."""
        with self.pool_of(path) as pool:

            def forget() -> None:
                pool.getconn().execute("UPDATE accounts SET money = 0")

            forget()
            with pool.connection() as conn:
                conn.execute("UPDATE accounts SET money = money + 1")
            assert pool.stats().collected == 1
            with pool.connection() as conn:
                assert conn.execute("SELECT sum(money) FROM accounts").fetchone() == (101 * ACCOUNTS,)

    def test_a_query_without_end_is_interrupted_when_its_time_is_over(self, path: Path) -> None:
        """Its thread gets an error, and then goes on."""
        raised: list[BaseException] = []
        with self.pool_of(path, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:

            def hold() -> None:
                try:
                    with pool.connection() as conn:
                        conn.execute(_ENDLESS)
                except Exception as exc:
                    raised.append(exc)

            holder = threading.Thread(target=hold)
            holder.start()
            wait_until(lambda: pool.stats().used == 1, "it is lent")
            with pool.connection() as conn:
                assert conn.execute("SELECT count(*) FROM accounts").fetchone() == (ACCOUNTS,)
            holder.join(10.0)

        assert [type(exc) for exc in raised] in (
            [sqlite3.OperationalError],
            [ConnectionReclaimedError],
        )


@contextmanager
def echo_server() -> Iterator[int]:
    """Serve each connection in a thread: what comes in goes out. Yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def echo(conn: socket.socket) -> None:
            with conn, suppress(OSError):
                while data := conn.recv(4096):
                    conn.sendall(data)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    conn, _ = listener.accept()
                    threads.append(threading.Thread(target=echo, args=(conn,), daemon=True))
                    threads[-1].start()

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join(5.0)
    for thread in threads:
        thread.join(5.0)


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    """What stands before an echo server."""
    with echo_server() as port, TcpProxy(port) as proxy:
        yield proxy


def say(pool: ConnectionPool[socket.socket], word: str) -> str:
    """Send a line, and return the one that comes back."""
    with pool.connection() as conn:
        conn.sendall(word.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = conn.recv(4096)
            if not data:
                raise ConnectionResetError("the server hung up")
            answer += data
    return answer.decode().rstrip("\n")


async def asay(pool: AsyncConnectionPool[Streams], word: str, patience: float = 5.0) -> str:
    async with pool.connection() as (reader, writer):
        writer.write(word.encode() + b"\n")
        await writer.drain()
        async with asyncio.timeout(patience):
            answer = await reader.readuntil(b"\n")
    return answer.decode().rstrip("\n")


class TestSockets:
    def pool_of(self, proxy: TcpProxy, **options: Any) -> ConnectionPool[socket.socket]:
        connect = partial(
            socket.create_connection, (proxy.host, proxy.port), timeout=options.pop("patience", 5.0)
        )
        return ConnectionPool(connect, **{"name": "echo", "max_size": 4, **options})

    def test_lines_come_back_to_who_sent_them(self, proxy: TcpProxy) -> None:
        """Eight threads on four sockets, in pieces of three bytes."""
        with proxy.toxic(Slicer(3)), self.pool_of(proxy) as pool:
            with callers(partial(say, pool), threads=8) as outcomes:
                wait_until(lambda: len(outcomes.good) > 300, "all is well")
            assert pool.stats().connects <= 4

        assert not outcomes.mixed
        assert not outcomes.failed
        assert not outcomes.refused
        assert_nothing_leaked(pool)

    def test_sockets_that_the_server_closed_are_replaced_unnoticed(self, proxy: TcpProxy) -> None:
        """An idle connection that was ended is seen to be, without a byte being sent."""
        with self.pool_of(proxy, min_size=3, check_after_idle=0.05) as pool:
            pool.wait()
            wait_until(lambda: proxy.connections == 3, "the server has them, too")
            with proxy.down():
                time.sleep(0.05)  # idle for so long that they are asked first

            assert [say(pool, f"word-{turn}") for turn in range(5)] == [f"word-{turn}" for turn in range(5)]
            assert 1 <= pool.stats().discarded <= 3
            assert pool.stats().connects > 3

    def test_a_late_answer_is_nobodys(self, proxy: TcpProxy) -> None:
        """Who stopped waiting for it does not leave it to the next one."""
        timed_out = 0
        with proxy.toxic(Latency(0.01, 0.01)), self.pool_of(proxy, max_size=2, patience=0.012) as pool:
            for turn in range(100 if SOAK else 20):
                try:
                    assert say(pool, f"word-{turn}") == f"word-{turn}"
                except TimeoutError:
                    timed_out += 1
            assert pool.stats().discarded == timed_out
        assert timed_out > 0

    def test_reset_under_load_and_there_again(self, proxy: TcpProxy) -> None:
        """Connections reset in the middle of answers, and then refused for a while."""
        with self.pool_of(proxy, timeout=2.0) as pool, callers(partial(say, pool), threads=8) as outcomes:
            wait_until(lambda: len(outcomes.good) > 100, "all is well")
            with proxy.toxic(ResetPeer()):
                wait_until(lambda: len(outcomes.failed) > 20, "answers are cut off")
            at = time.monotonic()
            wait_until(lambda: outcomes.first_good_after(at) is not None, "all is well again")
            failed = len(outcomes.failed)
            with proxy.down():
                wait_until(lambda: bool(outcomes.refused), "callers are refused")
            back = time.monotonic()
            wait_until(lambda: outcomes.first_good_after(back) is not None, "all is well again")

        soon = outcomes.first_good_after(back)
        assert soon is not None
        assert soon <= 1.5
        assert len(outcomes.failed) - failed <= 8 + 4
        assert not outcomes.mixed
        assert_nothing_leaked(pool)

    def test_held_for_too_long_is_closed(self, proxy: TcpProxy) -> None:
        """Who waits for an answer that never comes is woken by the end of the stream."""
        got: list[bytes] = []
        with self.pool_of(proxy, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:

            def hold() -> None:
                with suppress(ConnectionReclaimedError), pool.connection() as conn:
                    got.append(conn.recv(1))

            holder = threading.Thread(target=hold)
            holder.start()
            wait_until(lambda: pool.stats().used == 1, "it is lent")
            assert say(pool, "well") == "well"
            holder.join(5.0)

            assert got == [b""]
            assert pool.stats().reclaimed == 1
            wait_until(lambda: proxy.connections == 1, "its other side is closed")


class TestStreams:
    def pool_of(self, proxy: TcpProxy, **options: Any) -> AsyncConnectionPool[Streams]:
        connect = partial(asyncio.open_connection, proxy.host, proxy.port)
        return AsyncConnectionPool(connect, **{"name": "echo", "max_size": 4, **options})

    async def test_lines_come_back_to_who_sent_them(self, proxy: TcpProxy) -> None:
        """Twenty tasks on four connections, some of them cancelled while they wait for their answer."""
        with proxy.toxic(Slicer(3)):
            async with self.pool_of(proxy) as pool:

                async def call(word: str) -> str:
                    if word.endswith("7"):
                        with suppress(TimeoutError):
                            await asay(pool, "given up", patience=0.0)
                    return await asay(pool, word)

                async with acallers(call, tasks=20) as outcomes:
                    await await_until(lambda: len(outcomes.good) > 300, "all is well")

        assert not outcomes.mixed
        assert not outcomes.failed
        assert pool.stats().discarded > 0
        assert_nothing_leaked(pool)

    async def test_streams_that_the_server_closed_are_replaced_unnoticed(self, proxy: TcpProxy) -> None:
        """The end of the stream has been read when somebody asks for it."""
        async with self.pool_of(proxy, min_size=3, check_after_idle=0.05) as pool:
            await pool.wait()
            await await_until(lambda: proxy.connections == 3, "the server has them, too")

            def restart() -> None:
                with proxy.down():
                    time.sleep(0.05)  # idle for so long that they are asked first

            await asyncio.to_thread(restart)

            assert [await asay(pool, f"word-{turn}") for turn in range(5)] == [
                f"word-{turn}" for turn in range(5)
            ]
            assert 1 <= pool.stats().discarded <= 3
            assert pool.stats().connects > 3
