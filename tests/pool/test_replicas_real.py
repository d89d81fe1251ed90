"""Replica sets before a PostgreSQL primary and its standbys, which die, hang, lag and take over."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import psycopg
import pytest
from tests.support.postgres import PostgresServer
from tests.support.server import ServerError
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, AsyncReplicaSet, ConnectionPool, ReplicaSet

THREADS = 8
LAG = """SELECT CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
         ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END"""


class Standby(PostgresServer):
    """A PostgreSQL that follows another one."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary

    def _make_cluster(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody")
        source = f"--dbname={self._primary.url}"
        done = self._run("pg_basebackup", source, f"--pgdata={self._data}", "-R", "-c", "fast", "-N")
        if done.returncode != 0:
            raise ServerError(f"pg_basebackup failed:\n{done.stdout}")


class Cluster:
    """A primary with two standbys."""

    def __init__(self, primary: PostgresServer, first: Standby, second: Standby) -> None:
        self.primary, self.first, self.second = primary, first, second
        self.servers = {"primary": primary, "first": first, "second": second}

    def url(self, name: str) -> str:
        return f"{self.servers[name].url}?connect_timeout=2"

    def port(self, name: str) -> int:
        return self.servers[name].port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for all of these; each leaves it as it was, but for the last ones."""
    with PostgresServer() as primary:
        primary.query("CREATE TABLE orders (number int)")
        # One standby's copy must not make the primary throw away what the other one needs.
        primary.query("ALTER SYSTEM SET wal_keep_size = '256MB'")
        primary.query("SELECT pg_reload_conf()")
        standbys = [Standby(primary), Standby(primary)]
        try:
            with ThreadPoolExecutor(len(standbys)) as threads:
                list(threads.map(Standby.start, standbys))
            yield Cluster(primary, *standbys)
        finally:
            for standby in standbys:
                standby.close()


@contextmanager
def replica_set(cluster: Cluster, **settings: Any) -> Iterator[ReplicaSet[psycopg.Connection[Any]]]:
    """Make a replica set of pools that are filled."""
    primary, *replicas = [
        ConnectionPool(partial(psycopg.connect, cluster.url(name)), name=name, min_size=1, max_size=THREADS)
        for name in cluster.servers
    ]
    with ReplicaSet(primary, replicas, **{"name": "orders", "sticky": 0, **settings}) as orders:
        orders.wait()
        yield orders


def port_of(conn: psycopg.Connection[Any]) -> int:
    """Ask the server of a connection which one it is."""
    row = conn.execute("SELECT inet_server_port()").fetchone()
    assert row is not None
    port: int = row[0]
    return port


class Load:
    """Threads that read one after the other, and count what they get."""

    def __init__(self, orders: ReplicaSet[psycopg.Connection[Any]]) -> None:
        self.served: Counter[int] = Counter()
        self.errors: list[Exception] = []
        self._orders = orders
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(THREADS)]

    def _read(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._orders.reading() as conn:
                    port = port_of(conn)
            except Exception as exc:
                self.errors.append(exc)
            else:
                self.served[port] += 1  # one thread may overwrite another's; it is about who serves at all
            self._stopped.wait(0.001)

    def rises(self, port: int, by: int = 50) -> None:
        """Wait until a server has served so many reads more."""
        least = self.served[port] + by
        wait_until(lambda: self.served[port] >= least, f"port {port} serves reads")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20.0)


class TestUnderLoad:
    def test_reads_are_spread_evenly_and_none_goes_to_the_primary(self, cluster):
        """Two replicas that do equally well get the same share of the reads, give or take a fifth."""
        with replica_set(cluster) as orders:
            with Load(orders) as load:
                wait_until(lambda: sum(load.served.values()) > 4000, "4000 reads")
            stats = orders.stats()
            reads = [replica.pool.checkouts for replica in stats.replicas]
            assert load.errors == []
            assert load.served.keys() == {cluster.port("first"), cluster.port("second")}
            assert all(0.8 < number / (sum(reads) / len(reads)) < 1.2 for number in reads)
            assert (stats.primary.checkouts, stats.on_primary) == (0, 0)

    def test_a_replica_is_killed_and_comes_back(self, cluster):
        """Nobody but those who are reading from it notices, and it is read from again when it is back."""
        with replica_set(cluster) as orders, Load(orders) as load:
            load.rises(cluster.port("first"))
            cluster.first.kill()
            wait_until(lambda: orders.breakers["first"].current_state == "open", "left alone")
            load.rises(cluster.port("second"), 200)
            assert len(load.errors) <= THREADS
            assert all(isinstance(error, psycopg.OperationalError) for error in load.errors)
            assert load.served.keys() == {cluster.port("first"), cluster.port("second")}
            began = time.monotonic()
            cluster.first.start()
            load.rises(cluster.port("first"))
            # Its pool tries every second, if it was not there a read would find it within 15 s.
            assert time.monotonic() - began < 10.0
            assert len(load.errors) <= THREADS
            assert orders.stats().on_primary == 0

    def test_a_replica_is_frozen_and_goes_on(self, cluster):
        """Those who read from it wait, all others read elsewhere; no error, and no read on the primary."""
        with replica_set(cluster) as orders, Load(orders) as load:
            load.rises(cluster.port("first"))
            cluster.first.pause()
            try:
                load.rises(cluster.port("second"), 500)
            finally:
                cluster.first.resume()
            load.rises(cluster.port("first"))
            assert load.errors == []
            assert orders.stats().on_primary == 0

    def test_the_only_replica_is_frozen(self, cluster):
        """Once all of its connections hang, reads come from the primary, and wait no longer for it."""
        pools = [
            ConnectionPool(partial(psycopg.connect, cluster.url(name)), name=name, min_size=1, max_size=4)
            for name in ("primary", "first")
        ]
        with ReplicaSet(pools[0], pools[1:], sticky=0, timeout=3.0, name="orders") as orders:
            orders.wait()
            with Load(orders) as load:  # twice as many threads as connections
                load.rises(cluster.port("first"))
                cluster.first.pause()
                try:
                    wait_until(lambda: orders.breakers["first"].current_state == "open", "left alone")
                    load.rises(cluster.port("primary"))
                finally:
                    cluster.first.resume()
                load.rises(cluster.port("first"))
        assert len(load.errors) <= THREADS

    def test_a_replica_is_restarted_in_good_order(self, cluster):
        """So few errors as there are reads that the server breaks off."""
        with replica_set(cluster) as orders, Load(orders) as load:
            load.rises(cluster.port("first"))
            cluster.first.restart()
            load.rises(cluster.port("first"))
            assert len(load.errors) <= THREADS

    def test_without_any_replica_the_primary_serves_its_share(self, cluster):
        """While all replicas are away the primary serves reads, no more of them at a time than it may."""
        most = 0
        with replica_set(cluster, primary_share=0.5) as orders:
            for breaker in orders.breakers.values():
                breaker.force_open()
            with Load(orders) as load:
                while load.served[cluster.port("primary")] < 200:
                    most = max(most, orders.stats().primary.used)
            assert load.served.keys() == {cluster.port("primary")}
            assert most <= THREADS // 2


class TestLag:
    def test_one_that_is_behind_is_left_out(self, cluster):
        """A standby that has stopped to replay is left out, and read from again when it has caught up."""

        def lag(conn: psycopg.Connection[Any]) -> Any:
            row = conn.execute(LAG).fetchone()
            assert row is not None
            return row[0]

        with replica_set(cluster, lag=lag, max_lag=0.2, lag_every=0.5) as orders:
            with orders.reading() as conn:
                assert port_of(conn) != cluster.port("primary")
            # It can tell once it has replayed something since it was started.
            cluster.primary.query("INSERT INTO orders VALUES (1)")
            wait_until(
                lambda: cluster.first.query("SELECT pg_last_xact_replay_timestamp()") != "", "replayed"
            )
            cluster.first.query("SELECT pg_wal_replay_pause()")
            try:
                cluster.primary.query("INSERT INTO orders VALUES (1)")
                wait_until(lambda: orders.breakers["first"].current_state == "open", "left out")
                assert (orders.stats().replicas[0].lag or 0.0) > 0.2
                with orders.reading() as conn:
                    assert port_of(conn) == cluster.port("second")
            finally:
                cluster.first.query("SELECT pg_wal_replay_resume()")
            wait_until(lambda: orders.breakers["first"].current_state == "half-open", "let in again")


class TestAsync:
    async def test_a_replica_is_killed_and_comes_back(self, cluster):
        """Tasks that read go on reading, from the other one."""

        def pool(name: str) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
            url = cluster.url(name)
            return AsyncConnectionPool(
                lambda: psycopg.AsyncConnection.connect(url), name=name, min_size=1, max_size=THREADS
            )

        served: Counter[int] = Counter()
        errors: list[Exception] = []
        stopped = asyncio.Event()

        async def read(orders: AsyncReplicaSet[psycopg.AsyncConnection[Any]]) -> None:
            while not stopped.is_set():
                try:
                    async with orders.reading() as conn:
                        row = await (await conn.execute("SELECT inet_server_port()")).fetchone()
                    assert row is not None
                    served[row[0]] += 1
                except psycopg.OperationalError as exc:
                    errors.append(exc)
                await asyncio.sleep(0.001)

        async def rises(port: int) -> None:
            least = served[port] + 50
            await await_until(lambda: served[port] >= least, f"port {port} serves reads")

        orders = AsyncReplicaSet(pool("primary"), [pool("first"), pool("second")], name="orders")
        async with orders:
            await orders.wait()
            tasks = [asyncio.create_task(read(orders)) for _ in range(THREADS)]
            await rises(cluster.port("first"))
            await asyncio.to_thread(cluster.first.kill)
            await rises(cluster.port("second"))
            await asyncio.to_thread(cluster.first.start)
            await rises(cluster.port("first"))
            stopped.set()
            await asyncio.gather(*tasks)
            assert len(errors) <= THREADS
            assert orders.stats().primary.checkouts == 0


class TestFailover:
    def test_a_standby_takes_over(self, cluster):
        """Writes find the new primary, by `connect`, though the old one is still there, but read-only."""
        # Last: from here on nothing is as the other tests need it.
        hosts = f"127.0.0.1:{cluster.port('primary')},127.0.0.1:{cluster.port('second')}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&connect_timeout=2"
        primary = ConnectionPool(lambda: psycopg.connect(url), name="primary")
        replica = ConnectionPool(lambda: psycopg.connect(cluster.url("first")), name="first")

        def write(orders: ReplicaSet[psycopg.Connection[Any]]) -> int:
            with orders.writing() as conn:
                conn.execute("INSERT INTO orders VALUES (2)")
                return port_of(conn)

        with ReplicaSet(primary, [replica], sticky=0) as orders:
            for _ in range(3):
                assert write(orders) == cluster.port("primary")
            cluster.primary.query("ALTER SYSTEM SET default_transaction_read_only = on")
            cluster.primary.query("SELECT pg_reload_conf()")
            cluster.second.query("SELECT pg_promote()")
            failed = _write_until(lambda: write(orders) == cluster.port("second"))
            assert set(failed) == {psycopg.errors.ReadOnlySqlTransaction}
            assert orders.stats().demotions >= 1
            assert {write(orders) for _ in range(3)} == {cluster.port("second")}


def _write_until(succeeded: Callable[[], bool]) -> list[type[Exception]]:
    """Write until that succeeds, and return what came in between."""
    failures: list[type[Exception]] = []

    def tried() -> bool:
        try:
            return succeeded()
        except Exception as exc:
            failures.append(type(exc))
            return False

    wait_until(tried, "written")
    return failures
