"""A real Valkey that is well, full, frozen, killed, a replica or locked; for each client and colour."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.cluster
import valkey
import valkey.asyncio
from tests.support.tcp_proxy import TcpProxy
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until, wait_until

from resilient.health import Finding, Status
from resilient.health.checks import RedisServer

pytestmark = pytest.mark.faults

MB = 1024 * 1024
KINDS = [redis.Redis, valkey.Valkey, redis.asyncio.Redis, valkey.asyncio.Valkey]
NAMES = ["redis-py", "valkey-py", "redis-py async", "valkey-py async"]


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """One Valkey; who changes it changes it back."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def admin(server: ValkeyServer) -> Iterator[redis.Redis]:
    """A client that sets the server right again."""
    with server.client() as client:
        yield client
        server.resume()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxclients", 10_000)


async def find(client: Any, **options: Any) -> Finding:
    """Check the server that *client* is of, in its colour, and close the client."""
    options.setdefault("timeout", 10.0)  # the machine may be slow
    check = RedisServer(client, **options)
    if inspect.iscoroutinefunction(type(check).__call__):
        answer: Any = check()
        try:
            return await answer  # type: ignore[no-any-return]
        finally:
            await client.aclose()
    try:
        return await asyncio.to_thread(check)  # type: ignore[arg-type]
    finally:
        client.close()


def check(url: str, **options: Any) -> Finding:
    """Do so with redis-py."""
    options.setdefault("timeout", 10.0)
    with redis.Redis.from_url(url) as client:
        found: Any = RedisServer(client, **options)()
        assert isinstance(found, Finding)
        return found


def clients_of(admin: redis.Redis) -> int:
    """Return how many there are, *admin* not counted."""
    return len(admin.client_list()) - 1


class TestKinds:
    """The same answers, whoever asks."""

    @pytest.mark.parametrize("kind", KINDS, ids=NAMES)
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_healthy(self, server: ValkeyServer, admin: redis.Redis, kind: Any, protocol: int) -> None:
        """It passes with its figures, and leaves no connection behind."""
        finding = await find(kind(port=server.port, protocol=protocol), slow_after=None)
        assert (finding.status, finding.output) == (Status.PASS, "")
        assert finding.value is not None
        assert 0.0 < finding.value < 10.0
        assert finding.unit == "s"
        assert finding.facts["role"] == "master"
        assert finding.facts["maxclients"] == 10_000
        assert isinstance(used := finding.facts["used_memory"], float)
        assert used > 1000
        await await_until(lambda: clients_of(admin) == 0, "no connection is left")

    @pytest.mark.parametrize("kind", KINDS, ids=NAMES)
    async def test_frozen(self, server: ValkeyServer, admin: redis.Redis, kind: Any) -> None:
        """It fails in its time, though the client would wait for longer and try again."""
        server.pause()
        begun = time.monotonic()
        finding = await find(kind(port=server.port), timeout=0.1)
        assert time.monotonic() - begun < 3.0
        assert (finding.status, finding.output) == (Status.FAIL, "no answer within 0.1 s")
        server.resume()
        await await_until(lambda: clients_of(admin) == 0, "no connection is left")

    @pytest.mark.parametrize("kind", KINDS, ids=NAMES)
    async def test_killed(self, kind: Any) -> None:
        """It fails at once, and says where there is nobody."""
        with ValkeyServer() as mortal:
            mortal.kill()
            finding = await find(kind(port=mortal.port, password="Zq7"), timeout=5.0)
            assert finding.status is Status.FAIL
            assert "Connection" in finding.output
            assert str(mortal.port) in finding.output
            assert "Zq7" not in finding.output

    @pytest.mark.parametrize("kind", KINDS, ids=NAMES)
    async def test_wrong_password(self, server: ValkeyServer, admin: redis.Redis, kind: Any) -> None:
        """It fails, and tells neither the right one nor the wrong one."""
        admin.execute_command("ACL SETUSER shop on >right +@all ~*")
        finding = await find(kind(port=server.port, username="shop", password="wrong!"), timeout=5.0)
        assert finding.status is Status.FAIL
        assert finding.output.startswith("it refuses the credentials: AuthenticationError")
        assert "wrong!" not in finding.output
        await await_until(lambda: clients_of(admin) == 0, "no connection is left")

    @pytest.mark.parametrize("kind", KINDS, ids=NAMES)
    async def test_info_not_permitted(self, server: ValkeyServer, admin: redis.Redis, kind: Any) -> None:
        """The server answers: it passes, and says why that is all."""
        admin.execute_command("ACL SETUSER guest on nopass +ping +client +hello +select")
        finding = await find(kind(port=server.port, username="guest", password="x"), slow_after=None)
        assert (finding.status, finding.output) == (
            Status.PASS,
            "its figures are not known: INFO is not permitted",
        )

    async def test_ping_not_permitted(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """Even that is an answer."""
        admin.execute_command("ACL SETUSER mute on nopass -@all +client +hello +select")
        finding = await find(redis.Redis(port=server.port, username="mute", password="x"), slow_after=None)
        assert finding.status is Status.PASS

    async def test_decoded_answers_and_a_unix_socket(self) -> None:
        """However the client's connections are set."""
        with ValkeyServer("--unixsocket", "valkey.sock") as own:
            path = str(own.directory / "valkey.sock")
            for client in (
                redis.Redis(unix_socket_path=path, decode_responses=True),
                redis.asyncio.Redis(unix_socket_path=path, decode_responses=True),
            ):
                assert repr(RedisServer(client)) == f"<RedisServer 'redis' of {path}>"
                finding = await find(client, slow_after=None)
                assert (finding.status, finding.facts["role"]) == (Status.PASS, "master")

    @pytest.mark.parametrize("kind", [fakeredis.FakeRedis, fakeredis.FakeAsyncRedis])
    async def test_fake_server(self, kind: Any) -> None:
        """In users' tests, too."""
        assert (await find(kind(), slow_after=None)).status is Status.PASS


class TestWaiting:
    """What it does with time."""

    async def test_cancelled_check_leaves_nothing(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """Whoever gives up takes the connection along."""
        server.pause()
        client = redis.asyncio.Redis(port=server.port)
        answer: Any = RedisServer(client, timeout=60.0)()
        task = asyncio.ensure_future(answer)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.resume()
        await await_until(lambda: clients_of(admin) == 0, "no connection is left")
        await client.aclose()

    def test_host_that_drops_packets(self, server: ValkeyServer) -> None:
        """Connecting is bounded, too."""
        with TcpProxy(server.port) as proxy, proxy.deaf():
            begun = time.monotonic()
            finding = check(f"redis://127.0.0.1:{proxy.port}", timeout=0.1)
            assert time.monotonic() - begun < 3.0
        assert (finding.status, finding.output) == (Status.FAIL, "no answer within 0.1 s")

    def test_slow_answer_warns(self, server: ValkeyServer) -> None:
        """It answers, and somebody should look at it."""
        finding = check(server.url, slow_after=0.000_001)
        assert finding.status is Status.WARN
        assert finding.output.startswith("answered after ")

    def test_nothing_of_the_client_is_used(self, server: ValkeyServer) -> None:
        """A pool without a connection left is seen elsewhere."""
        with redis.Redis.from_url(server.url, max_connections=1) as client:
            taken = client.connection_pool.get_connection()
            found: Any = RedisServer(client, slow_after=None)()
            assert found.status is Status.PASS
            client.connection_pool.release(taken)


class TestMemory:
    """How full it is, and what that means."""

    def fill(self, admin: redis.Redis, share: float, policy: str = "noeviction") -> None:
        used = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory-policy", policy)
        admin.config_set("maxmemory", int(used / share))

    def test_nearly_full_warns(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """From 80 % on."""
        self.fill(admin, 0.9, "volatile-lru")
        finding = check(server.url)
        assert finding.status is Status.WARN
        assert "of memory in use, 9" in finding.output

    def test_full_fails_where_nothing_is_evicted(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """Each write is refused then."""
        self.fill(admin, 2.0)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            admin.set("x", "y")
        finding = check(server.url)
        assert finding.status is Status.FAIL
        assert finding.output.endswith(": it refuses writes")

    def test_full_cache_is_as_it_should_be(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """A server that evicts any key is full for the rest of its life."""
        self.fill(admin, 0.99, "allkeys-lru")
        finding = check(server.url, slow_after=None)
        assert finding.status is Status.PASS
        assert finding.facts["maxmemory_policy"] == "allkeys-lru"

    def test_room_enough(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """Half of it is free."""
        self.fill(admin, 0.5)
        assert check(server.url, slow_after=None).status is Status.PASS

    def test_too_many_clients_warn(self, server: ValkeyServer, admin: redis.Redis) -> None:
        """Before the server refuses one."""
        admin.config_set("maxclients", 2)
        finding = check(server.url)
        assert finding.status is Status.WARN
        assert finding.output == "2 of 2 clients connected, 100%"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """Both, connected."""
    with (
        ValkeyServer("--repl-diskless-sync-delay", "0") as master,
        ValkeyServer("--replicaof", f"127.0.0.1 {master.port}") as replica,
        replica.client() as client,
    ):
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "it is connected")
        yield master, replica


class TestReplication:
    """A master and its replica."""

    @pytest.mark.parametrize(
        ("which", "role", "status"),
        [
            (0, None, Status.PASS),
            (0, "master", Status.PASS),
            (0, "replica", Status.FAIL),
            (1, None, Status.PASS),
            (1, "replica", Status.PASS),
            (1, "master", Status.FAIL),
        ],
    )
    def test_role(
        self, pair: tuple[ValkeyServer, ValkeyServer], which: int, role: str, status: Status
    ) -> None:
        """It fails where it is not what it must be."""
        finding = check(pair[which].url, role=role, slow_after=None)
        assert finding.status is status
        assert finding.facts["role"] == ("master", "slave")[which]

    def test_replica_taken_for_a_master_refuses_writes(self, pair: tuple[ValkeyServer, ValkeyServer]) -> None:
        """As a failover leaves clients that were not told: the check says what their writes get."""
        with pair[1].client() as client, pytest.raises(redis.exceptions.ReadOnlyError):
            client.set("x", "y")
        assert "READONLY" in check(pair[1].url, role="master").output

    def test_master_gone(self) -> None:
        """A replica without its master still answers, with old data."""
        with ValkeyServer("--repl-diskless-sync-delay", "0") as master:
            options = ("--replicaof", f"127.0.0.1 {master.port}")
            with ValkeyServer(*options) as replica, replica.client() as client:
                wait_until(
                    lambda: client.info("replication")["master_link_status"] == "up", "it is connected"
                )
                master.kill()
                wait_until(lambda: client.info("replication")["master_link_status"] == "down", "it is alone")
                finding = check(replica.url, slow_after=None)
        assert finding.status is Status.WARN
        assert finding.output.startswith("its link to the master has been down")


class TestJudgement:
    """What INFO may say, without a server that can be brought to say it."""

    def judge(self, info: str, ping: str | Exception = "PONG", **options: Any) -> Finding:
        with redis.Redis() as client:
            return RedisServer(client, **options)._judge([ping, info], 0.001)

    def test_loading(self) -> None:
        """It is there, and cannot answer yet; when it will."""
        error = redis.exceptions.BusyLoadingError("is loading the dataset in memory")
        finding = self.judge("loading:1\r\nloading_loaded_perc:43.7\r\nloading_eta_seconds:12\r\n", error)
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "it loads its data, 44% of them; 12 s left",
        )

    def test_loading_without_figures(self) -> None:
        """Its own words, then."""
        error = redis.exceptions.BusyLoadingError("is loading")
        assert self.judge("", error).output == "BusyLoadingError: is loading"

    def test_lag_of_a_replica(self) -> None:
        """The worst one counts."""
        replicas = "slave0:ip=1,port=2,state=online,offset=1,lag=0\nslave1:ip=1,lag=42\nslave_priority:100\n"
        finding = self.judge(f"role:master\n{replicas}")
        assert (finding.status, finding.output) == (Status.WARN, "a replica of it is 42 s behind")
        assert self.judge(f"role:master\n{replicas}", max_lag=None).status is Status.PASS

    def test_silent_master(self) -> None:
        """Connected, and nothing comes."""
        info = "role:slave\nmaster_link_status:up\nmaster_last_io_seconds_ago:{}\n"
        assert self.judge(info.format(11)).output == "nothing came from the master for 11 s"
        assert self.judge(info.format(10)).status is Status.PASS

    @pytest.mark.parametrize(
        "info", ["", "garbage", "used_memory:x\nmaxmemory:y\n", "slave0:\nslave1:=,=\n:\n"]
    )
    def test_strange_figures(self, info: str) -> None:
        """Figures that nobody understands are none."""
        assert self.judge(info).status is Status.PASS


class TestArguments:
    """What is refused, when it is made."""

    def test_cluster_is_refused(self) -> None:
        """It is many servers."""
        with pytest.raises(TypeError, match="must be a client of one server"):
            RedisServer(object.__new__(redis.cluster.RedisCluster))

    @pytest.mark.parametrize("client", [None, "redis://:Zq7@localhost", object()])
    def test_anything_else_is_refused(self, client: Any) -> None:
        """And not shown: it may hold a password."""
        with pytest.raises(TypeError, match="must be a client of redis-py or valkey-py") as refusal:
            RedisServer(client)
        assert "Zq7" not in str(refusal.value)

    def test_role_is_one_of_two(self) -> None:
        """By name."""
        with pytest.raises(ValueError, match="role must be one of 'master', 'replica', got 'slave'"):
            RedisServer(redis.Redis(), role="slave")

    def test_signature_tells_the_arguments(self) -> None:
        """Though its class is chosen by the client."""
        assert list(inspect.signature(RedisServer).parameters)[:3] == ["client", "warn", "slow_after"]

    def test_repr_has_no_password(self) -> None:
        """Only where the server is."""
        with suppress(redis.RedisError), redis.Redis(host="cache", password="Zq7") as client:
            assert repr(RedisServer(client)) == "<RedisServer 'redis' of cache:6379>"
