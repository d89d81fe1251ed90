"""Three Valkey servers that share the 16,384 slots of a cluster, and move them on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.support.ports import free_port
from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

_NODES = 3
_SLOTS = 16_384
# Milliseconds a node may be silent before the others say that it failed.
_NODE_TIMEOUT = 1_000


class ClusterNode(ValkeyServer):
    """Run one member of a cluster."""

    def __init__(self) -> None:
        # The default, 10,000 above the port, may be another's.
        self.bus_port = free_port(self.host)
        settings = {
            "--cluster-enabled": "yes",
            "--cluster-port": str(self.bus_port),
            # A node that has heard of no other does not know its own address, and would tell clients none.
            "--cluster-announce-ip": self.host,
            "--cluster-node-timeout": str(_NODE_TIMEOUT),
            # A node that died takes its own slots with it, not those of the others.
            "--cluster-require-full-coverage": "no",
        }
        super().__init__(*(word for pair in settings.items() for word in pair))

    def ask(self, command: str, *words: str | int) -> Any:
        """Return the answer to a CLUSTER command."""
        with self.client() as client:
            return client.cluster(command, *words)

    @property
    def id(self) -> str:
        """The name the cluster gave the node."""
        return str(self.ask("MYID").decode())


class ClusterFleet:
    """Run three primaries of a cluster, each with a third of the slots, without replicas.

    As a context manager it starts, waits until all slots are served, and closes itself.
    """

    def __init__(self) -> None:
        self.nodes = tuple(ClusterNode() for _ in range(_NODES))

    @property
    def uri(self) -> str:
        """The address as `limits` writes it."""
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._running = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    def owner(self, key: str) -> ClusterNode:
        """Return the node that serves *key*, as that node itself sees it."""
        slot = key_slot(key.encode())
        return next(node for node in self.nodes if node.running and _serves(node, slot))

    def move(self, key: str) -> ClusterNode:
        """Move the slot of *key* to the next node and return that: clients are told MOVED."""
        with self.moving(key) as target:
            pass
        return target

    @contextmanager
    def moving(self, key: str) -> Iterator[ClusterNode]:
        """Yield the next node while the slot of *key* is on its way there.

        Inside the block keys that exist stay where they are, and clients that want one that does not are told
        ASK; afterwards the keys have moved, too.
        """
        slot, source = key_slot(key.encode()), self.owner(key)
        target = self.nodes[(self.nodes.index(source) + 1) % _NODES]
        target.ask("SETSLOT", slot, "IMPORTING", source.id)
        source.ask("SETSLOT", slot, "MIGRATING", target.id)
        try:
            yield target
        finally:
            _migrate_keys(slot, source, target)
            # The new owner first: the other way round, nobody would own the slot for a moment.
            for node in (target, source, *(one for one in self.nodes if one not in {source, target})):
                node.ask("SETSLOT", slot, "NODE", target.id)

    def wait_until_ready(self) -> None:
        """Wait until every node knows every other, and that all slots are served."""
        wait_until(lambda: all(map(_is_complete, self.nodes)), "the cluster is complete")

    def _join(self) -> None:
        first, *others = self.nodes
        share = _SLOTS // _NODES + 1
        for place, node in enumerate(self.nodes):
            # Different epochs from the start, or the nodes would first have to settle a conflict.
            node.ask("SET-CONFIG-EPOCH", place + 1)
            node.ask("ADDSLOTSRANGE", place * share, min((place + 1) * share, _SLOTS) - 1)
        for node in others:
            node.ask("MEET", first.host, first.port, first.bus_port)
        self.wait_until_ready()


def _serves(node: ClusterNode, slot: int) -> bool:
    own = node.id.encode()
    return any(first <= slot <= last and primary[2] == own for first, last, primary, *_ in node.ask("SLOTS"))


def _migrate_keys(slot: int, source: ClusterNode, target: ClusterNode) -> None:
    with source.client() as client:
        while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            client.migrate(target.host, target.port, keys, 0, timeout=5_000)


def _is_complete(node: ClusterNode) -> bool:
    try:
        info = node.ask("INFO")
    except redis.RedisError:
        return False
    return (
        info["cluster_state"] == "ok"
        and int(info["cluster_known_nodes"]) == _NODES
        and int(info["cluster_slots_ok"]) == _SLOTS
    )
