"""The test rigs themselves: a fault they claim to make must be the fault a client sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from limits.storage import storage_from_string
from redis.cluster import RedisCluster
from redis.exceptions import AskError, MovedError, TryAgainError
from tests.support.cluster import ClusterFleet
from tests.support.postgres import PostgresServer
from tests.support.sentinel import SentinelFleet
from tests.support.server import ServerError
from tests.support.tcp_proxy import Bandwidth, Latency, ResetPeer, Slicer, Stream, TcpProxy, Timeout
from tests.support.valkey import ValkeyServer, client_for

pytestmark = pytest.mark.faults

# Longer than a hop on loopback takes on a busy machine, shorter than a test may take.
DELAY = 0.2


class TestValkey:
    def test_started_server_answers(self, valkey: ValkeyServer) -> None:
        with valkey.client() as client:
            client.set("key", "value")

            assert client.get("key") == b"value"

    def test_killed_server_refuses_until_restarted_on_the_same_port(self, valkey: ValkeyServer) -> None:
        with valkey.client() as client:
            client.set("key", "value")

            valkey.kill()
            with pytest.raises(redis.ConnectionError):
                client.get("key")

            valkey.start()
            assert client.get("key") is None, "nothing is kept on disk"

    def test_paused_server_hangs_until_resumed(self, valkey: ValkeyServer) -> None:
        with valkey.client(timeout=DELAY) as client:
            valkey.pause()
            with pytest.raises(redis.TimeoutError):
                client.ping()

            valkey.resume()
            assert client.ping()

    def test_paused_server_can_be_restarted(self, valkey: ValkeyServer) -> None:
        before = valkey.pid
        valkey.pause()

        valkey.restart()

        assert valkey.pid != before
        with valkey.client() as client:
            assert client.ping()

    def test_stop_twice_is_harmless(self, valkey: ValkeyServer) -> None:
        valkey.stop()
        valkey.stop()

        assert not valkey.running

    def test_second_start_is_refused(self, valkey: ValkeyServer) -> None:
        with pytest.raises(ServerError, match="already running"):
            valkey.start()

    def test_server_that_cannot_start_says_why(self) -> None:
        with pytest.raises(ServerError, match="no-such-option"), ValkeyServer("--no-such-option", "1"):
            pass

    def test_closed_server_leaves_no_directory(self) -> None:
        with ValkeyServer() as server:
            directory = server.directory
            assert directory.exists()

        assert not directory.exists()

    def test_shared_server_answers(self, shared_valkey: ValkeyServer) -> None:
        with shared_valkey.client() as client:
            assert client.ping()

    def test_server_dies_with_a_test_run_that_was_killed(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", _START_AND_HANG], stdout=subprocess.PIPE, text=True, cwd=_ROOT
        ) as run:
            assert run.stdout is not None
            pid, directory = run.stdout.readline().split()
            server = psutil.Process(int(pid))

            run.send_signal(signal.SIGKILL)

            server.wait(5)
            assert not server.is_running()
        _wait_until_gone(Path(directory))


_ROOT = Path(__file__).parents[2]
_START_AND_HANG = """
import signal
from tests.support.valkey import ValkeyServer

server = ValkeyServer()
server.start()
print(server.pid, server.directory, flush=True)
signal.pause()
"""


def _wait_until_gone(path: Path, within: float = 5.0) -> None:
    give_up_at = time.monotonic() + within
    while path.exists():
        assert time.monotonic() < give_up_at, f"{path} is still there"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.mark.slow
class TestPostgres:
    def test_started_server_answers(self, postgres: PostgresServer) -> None:
        assert postgres.query("select 6 * 7") == "42"

    def test_killed_server_recovers_what_was_committed(self, postgres: PostgresServer) -> None:
        postgres.query("create table kept (value int)")
        backends = psutil.Process(postgres.pid).children()

        postgres.kill()
        psutil.wait_procs(backends, timeout=5)
        with pytest.raises(ServerError, match="refused"):
            postgres.query("select 1")

        postgres.start()
        assert postgres.query("select count(*) from kept") == "0"

    def test_stopped_server_restarts_on_the_same_port(self, postgres: PostgresServer) -> None:
        url = postgres.url

        postgres.restart()

        assert postgres.url == url
        assert postgres.query("select 1") == "1"


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelFleet]:
    with SentinelFleet() as fleet:
        yield fleet


@pytest.mark.slow
class TestSentinelFleet:
    def test_limits_reaches_the_primary_by_the_uri(self, sentinels: SentinelFleet) -> None:
        storage = storage_from_string(sentinels.uri)

        assert storage.incr("rig:sentinel", 60) == 1
        with sentinels.primary.client() as client:
            assert client.get("LIMITS:rig:sentinel") == b"1"

    def test_failover_by_command_leaves_a_replica_that_refuses_writes(self, sentinels: SentinelFleet) -> None:
        former = sentinels.primary

        sentinels.failover()

        assert sentinels.primary is not former
        sentinels.wait_until_ready()
        with former.client() as client, pytest.raises(redis.ReadOnlyError):
            client.set("rig:sentinel", 1)

    def test_killed_primary_is_replaced_and_comes_back_as_a_replica(self, sentinels: SentinelFleet) -> None:
        sentinels.wait_until_ready()

        dead = sentinels.kill_primary()
        sentinels.wait_until_primary_is_not(dead)
        with sentinels.primary.client() as client:
            client.set("rig:kept", "value")

        dead.start()
        sentinels.wait_until_ready()
        with dead.client() as client:
            assert client.get("rig:kept") == b"value"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterFleet]:
    with ClusterFleet() as fleet:
        yield fleet


@pytest.mark.slow
class TestClusterFleet:
    def test_every_node_serves_its_share(self, cluster: ClusterFleet) -> None:
        first = cluster.nodes[0]
        with RedisCluster(host=first.host, port=first.port) as client:
            for number in range(100):
                client.set(f"rig:{number}", number)

        assert all(_keys(node) for node in cluster.nodes)

    def test_limits_reaches_the_cluster_by_the_uri(self, cluster: ClusterFleet) -> None:
        storage = storage_from_string(cluster.uri)

        assert storage.incr("rig:cluster", 60) == 1
        storage.storage.close()

    def test_moved_slot_redirects(self, cluster: ClusterFleet) -> None:
        key = "rig:moved"
        former = cluster.owner(key)
        with former.client() as client:
            client.set(key, "value")

            target = cluster.move(key)

            with pytest.raises(MovedError):
                client.get(key)
        assert cluster.owner(key) is target
        with target.client() as client:
            assert client.get(key) == b"value"

    def test_slot_on_the_move_asks_for_keys_that_do_not_exist(self, cluster: ClusterFleet) -> None:
        here, nowhere = "{rig}:here", "{rig}:nowhere"
        with cluster.owner(here).client() as client:
            client.set(here, "value")

            with cluster.moving(here) as target:
                assert client.get(here) == b"value"
                with pytest.raises(AskError):
                    client.get(nowhere)
                with pytest.raises(TryAgainError):
                    client.mget(here, nowhere)

        assert cluster.owner(here) is target

    def test_killed_node_takes_only_its_slots_and_comes_back(self, cluster: ClusterFleet) -> None:
        victim, survivor = cluster.owner("rig:1"), cluster.owner("rig:2")
        assert victim is not survivor

        victim.kill()
        with survivor.client() as client:
            assert client.set("rig:2", "value")

        victim.start()
        cluster.wait_until_ready()
        assert cluster.owner("rig:1") is victim


def _keys(node: ValkeyServer) -> int:
    with node.client() as client:
        return int(client.dbsize())


class TestTcpProxy:
    @pytest.fixture
    def proxy(self, shared_valkey: ValkeyServer) -> Iterator[TcpProxy]:
        with TcpProxy(shared_valkey.port) as proxy:
            yield proxy

    @pytest.fixture
    def client(self, proxy: TcpProxy) -> Iterator[redis.Redis]:
        with client_for(f"redis://{proxy.host}:{proxy.port}/0", timeout=2.0) as client:
            client.ping()
            yield client

    def test_without_toxics_data_passes(self, client: redis.Redis, proxy: TcpProxy) -> None:
        value = os.urandom(300_000)

        client.set("rig:big", value)

        assert client.get("rig:big") == value
        assert proxy.connections == 1

    @pytest.mark.parametrize("stream", ["upstream", "downstream"])
    def test_latency_delays_while_it_lasts(
        self, client: redis.Redis, proxy: TcpProxy, stream: Stream
    ) -> None:
        with proxy.toxic(Latency(DELAY), stream=stream):
            assert _seconds(client.ping) >= DELAY

        assert _seconds(client.ping) < DELAY

    def test_toxics_add_up(self, client: redis.Redis, proxy: TcpProxy) -> None:
        with proxy.toxic(Latency(DELAY)), proxy.toxic(Latency(DELAY), stream="upstream"):
            assert _seconds(client.ping) >= 2 * DELAY

    def test_timeout_is_a_black_hole(self, proxy: TcpProxy) -> None:
        with (
            client_for(f"redis://{proxy.host}:{proxy.port}/0", timeout=DELAY) as client,
            proxy.toxic(Timeout()),
            pytest.raises(redis.TimeoutError),
        ):
            client.ping()

    def test_timeout_with_seconds_ends_the_connection(self, client: redis.Redis, proxy: TcpProxy) -> None:
        with proxy.toxic(Timeout(DELAY)), pytest.raises(redis.ConnectionError):
            client.ping()

    def test_reset_peer_resets_the_connection(self, client: redis.Redis, proxy: TcpProxy) -> None:
        with proxy.toxic(ResetPeer()), pytest.raises(redis.ConnectionError, match="reset"):
            client.ping()

        assert client.ping()

    def test_bandwidth_slows_what_is_large(self, client: redis.Redis, proxy: TcpProxy) -> None:
        client.set("rig:slow", bytes(10_000))

        with proxy.toxic(Bandwidth(10_000 / DELAY)):
            assert _seconds(lambda: client.get("rig:slow")) >= DELAY

    def test_slicer_sends_byte_by_byte(self, client: redis.Redis, proxy: TcpProxy) -> None:
        client.set("rig:sliced", "value")

        with proxy.toxic(Slicer(size=1)):
            assert client.get("rig:sliced") == b"value"

    def test_down_refuses_old_and_new_connections(self, client: redis.Redis, proxy: TcpProxy) -> None:
        with proxy.down():
            assert proxy.connections == 0
            with pytest.raises(redis.ConnectionError):
                client.ping()
            with pytest.raises(redis.ConnectionError, match="refused"):
                client.ping()

        assert client.ping()

    def test_deaf_proxy_lets_connecting_hang(self, client: redis.Redis, proxy: TcpProxy) -> None:
        with proxy.deaf(), client_for(f"redis://{proxy.host}:{proxy.port}/0", timeout=DELAY) as late:
            assert proxy.connections == 0
            with pytest.raises(redis.TimeoutError, match="connecting"):
                late.ping()

        assert client.ping()

    def test_dead_upstream_shows_as_a_lost_connection(self, valkey: ValkeyServer) -> None:
        with TcpProxy(valkey.port) as proxy, client_for(f"redis://{proxy.host}:{proxy.port}/0") as client:
            client.ping()

            valkey.kill()
            with pytest.raises(redis.ConnectionError):
                client.ping()

            valkey.start()
            assert client.ping()


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started
