"""A primary, its replica and three sentinels that make the replica the primary when they have to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

_SERVICE = "mymaster"
_SENTINELS = 3
_QUORUM = 2
# Milliseconds. A server silent for so long is down; much shorter, and a busy machine looks like a dead one.
_DOWN_AFTER = 750
# Milliseconds, too: the sentinels' own, of 1 to 15 seconds, are meant for networks. Several pings have to fit
# into _DOWN_AFTER: a promotion cuts the sentinels' connections, and one missed would depose the new primary.
# And a replica can be promoted only if it was heard of within five of them; without a primary, that is tried
# once a second.
_PERIODS = {
    "ping-period": 250,
    "info-period": 200,
    "publish-period": 200,
    "ask-period": 200,
    "min-link-reconnect-period": 100,
    "election-timeout": 1_000,
}
_FAILOVER_TIMEOUT = 2_000
_REPLICATION = (
    # A primary would wait five seconds for further replicas before it sends anything to the first.
    *("--repl-diskless-sync-delay", "0"),
    # A replica would keep what it was sent on disk, and have it again after a crash.
    *("--repl-diskless-load", "swapdb"),
)


class SentinelProcess(ValkeyServer):
    """Run one sentinel that watches the primary on *primary_port*."""

    def __init__(self, primary_port: int) -> None:
        super().__init__()
        self._primary_port = primary_port

    def start(self) -> None:
        """Write the configuration on the first start; from then on it is the sentinel's own memory."""
        if not self._config.exists():
            self._config.write_text(self._first_config())
        super().start()
        with self.client() as client:
            for period, milliseconds in _PERIODS.items():
                client.execute_command("SENTINEL", "DEBUG", period, milliseconds)

    def primary(self) -> dict[str, Any]:
        """Return what the sentinel knows of the primary."""
        with self.client() as client:
            return dict(client.sentinel_master(_SERVICE))

    def replicas(self) -> list[dict[str, Any]]:
        """Return what the sentinel knows of each replica."""
        with self.client() as client:
            return list(client.sentinel_slaves(_SERVICE))

    @property
    def _config(self) -> Path:
        return self.directory / "sentinel.conf"

    def _first_config(self) -> str:
        return (
            f"port {self.port}\n"
            f"bind {self.host}\n"
            f"dir {self.directory}\n"
            f"sentinel monitor {_SERVICE} {self.host} {self._primary_port} {_QUORUM}\n"
            f"sentinel down-after-milliseconds {_SERVICE} {_DOWN_AFTER}\n"
            f"sentinel failover-timeout {_SERVICE} {_FAILOVER_TIMEOUT}\n"
        )

    def _command(self) -> list[str]:
        return [self.binary(), str(self._config), "--sentinel"]


class SentinelFleet:
    """Run one primary, one replica and three sentinels.

    As a context manager it starts, waits until a failover would succeed, and closes itself.
    """

    def __init__(self) -> None:
        first = ValkeyServer(*_REPLICATION)
        second = ValkeyServer(*_REPLICATION, "--replicaof", f"{first.host} {first.port}")
        self.nodes = (first, second)
        self.sentinels = tuple(SentinelProcess(first.port) for _ in range(_SENTINELS))

    @property
    def uri(self) -> str:
        """The address as `limits` writes it."""
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{_SERVICE}"

    @property
    def primary(self) -> ValkeyServer:
        """The server that the first sentinel sends clients to; the dead one, until another was chosen."""
        port = int(self.sentinels[0].primary()["port"])
        return next(node for node in self.nodes if node.port == port)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (*self.nodes, *self.sentinels):
                stack.enter_context(server)
            self.wait_until_ready()
            self._running = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    def failover(self) -> None:
        """Have the replica made the primary by command, and wait until the sentinels send clients there.

        The old primary stays up, and becomes a replica.
        """
        before = self.primary
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", _SERVICE)
        self.wait_until_primary_is_not(before)

    def kill_primary(self) -> ValkeyServer:
        """Let the primary crash and return it; the sentinels take half a second and more to replace it."""
        primary = self.primary
        primary.kill()
        return primary

    def wait_until_primary_is_not(self, former: ValkeyServer) -> None:
        """Wait until the sentinels send clients elsewhere."""
        self._wait_until(
            lambda: all(int(sentinel.primary()["port"]) != former.port for sentinel in self.sentinels),
            f"no sentinel sends clients to {former!r}",
        )

    def wait_until_ready(self) -> None:
        """Wait until both servers are up, the replica follows, and all sentinels know of all others."""
        self._wait_until(lambda: all(map(_is_complete, self.sentinels)), "the sentinels know each other")
        self._wait_until(self._replica_follows, "the replica follows")

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, what)
        except TimeoutError as late:
            for server in (*self.sentinels, *self.nodes):
                late.add_note(f"{server!r}:\n{server.log[-3000:]}")
            raise

    def _replica_follows(self) -> bool:
        primary = self.primary
        replica = next(node for node in self.nodes if node is not primary)
        try:
            with replica.client() as client:
                link = client.info("replication")
        except redis.RedisError:
            return False
        return (link.get("master_link_status"), link.get("master_port")) == ("up", primary.port)


def _is_complete(sentinel: SentinelProcess) -> bool:
    primary = sentinel.primary()
    if primary["flags"] != "master" or primary["num-other-sentinels"] != _SENTINELS - 1:
        return False
    follows = ("slave", "ok", primary["port"])
    return [(one["flags"], one["master-link-status"], one["master-port"]) for one in sentinel.replicas()] == [
        follows
    ]
