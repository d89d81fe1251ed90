"""Sentinel promotes a replica, a cluster moves its slots: the limiter follows, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import redis
from redis.crc import key_slot
from tests.support.cluster import ClusterFleet
from tests.support.sentinel import SentinelFleet
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

from resilient import RateLimiter
from resilient.events import RungChanged
from resilient.testing import capture_events

pytestmark = [pytest.mark.faults, pytest.mark.slow]

LIMIT, INSTANCES = 60, 2
SHARE = LIMIT // INSTANCES
KEYS = ("ann", "bob", "cid")
DECISION_TIMEOUT = 0.05
LATEST = DECISION_TIMEOUT + 0.010
BACK_WITHIN = 3.0


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelFleet]:
    """A primary, its replica and three sentinels."""
    with SentinelFleet() as fleet:
        yield fleet


@contextmanager
def flowing(uri: str, name: str, rate: object = f"{LIMIT}/hour") -> Iterator[tuple[RateLimiter, Traffic]]:
    """Let requests flow as long as the block lasts, and then until there are no permits left.

    At first for half a second without a fault.
    """
    limiter = RateLimiter(
        rate, name=name, storage=uri, instances=INSTANCES, decision_timeout=DECISION_TIMEOUT
    )
    with closing(limiter), Traffic(limiter, KEYS) as traffic:
        traffic.flow(0.5)
        wait_until_back(limiter)  # a busy machine may be late with the first connections
        yield limiter, traffic
        traffic.use_up()


def wait_until_back(limiter: RateLimiter) -> None:
    """Wait until the store decides."""
    wait_until(lambda: limiter.stats().rung == "shared", "back on the store", within=BACK_WITHIN)


def assert_nobody_felt_it(traffic: Traffic, most: int) -> None:
    """Fail if a request failed or waited too long, or if a key got more than *most*."""
    assert traffic.errors == []
    assert traffic.late(LATEST) == [], traffic.figures()
    for key, admitted in traffic.admitted().items():
        assert LIMIT <= admitted <= most, key


def test_failover_by_command_is_followed(sentinels: SentinelFleet):
    """The old primary is alive and refuses writes: the limiter moves on, and the replica knows the count."""
    sentinels.wait_until_ready()
    with flowing(sentinels.uri, "by-command") as (limiter, traffic):
        sentinels.failover()
        sentinels.wait_until_ready()  # until then, the old one goes on taking what it is told
        with sentinels.primary.client() as client:
            before = _scripts_run(client)
            wait_until(lambda: _scripts_run(client) > before, "asked the new primary", within=BACK_WITHIN)
        wait_until_back(limiter)
        traffic.flow(0.3)

    # Replication is asynchronous: what the replica had not heard of is admitted once more, at most the limit.
    assert_nobody_felt_it(traffic, LIMIT + SHARE + LIMIT)


def test_killed_primary_is_replaced(sentinels: SentinelFleet):
    """While there is none, the local share is what there is; the replica knows the count afterwards."""
    sentinels.wait_until_ready()
    with flowing(sentinels.uri, "killed") as (limiter, traffic), capture_events() as events:
        dead = sentinels.kill_primary()
        sentinels.wait_until_primary_is_not(dead)
        wait_until_back(limiter)
        assert [event.rung for event in events.of(RungChanged)] == ["local", "shared"]
        traffic.flow(0.3)
    dead.start()

    assert_nobody_felt_it(traffic, LIMIT + SHARE + LIMIT)


@pytest.mark.parametrize("rates", [f"{LIMIT}/hour", [f"{LIMIT}/hour", "1000/day"]], ids=["one rate", "two"])
def test_slots_move_without_a_trace(cluster: ClusterFleet, rates: object):
    """ASK while they are on their way and MOVED afterwards lead to the right node; the counts come along.

    After some MOVED, redis-py asks for the cluster's map and commands anew, and reads tens of milliseconds of
    answers without letting anybody run. That is not the limiter's to mend, and not held against it here.
    """
    name = "moving-one" if isinstance(rates, str) else "moving-two"
    with flowing(cluster.uri, name, rates) as (limiter, traffic):
        for key in _keys_of(cluster, name):
            with cluster.moving(key):
                traffic.flow(0.3)
        traffic.flow(0.3)
        wait_until_back(limiter)

    assert_nobody_felt_it(traffic, LIMIT + (SHARE if traffic.rungs()["local"] else 0))


def test_node_that_dies_takes_no_request_with_it(cluster: ClusterFleet):
    """Its keys, or all, are counted locally until it is back."""
    with flowing(cluster.uri, "dying") as (limiter, traffic):
        victim = cluster.owner(_keys_of(cluster, "dying")[0])
        victim.kill()
        wait_until(lambda: traffic.rungs()["local"] > 0, "counted locally")
        traffic.flow(0.5)
        victim.start()
        cluster.wait_until_ready()
        wait_until_back(limiter)
        traffic.flow(0.3)

    assert_nobody_felt_it(traffic, LIMIT + SHARE + LIMIT)


def _scripts_run(client: redis.Redis) -> int:
    return sum(
        figures["calls"] for name, figures in client.info("commandstats").items() if "cmdstat_eval" in name
    )


def _keys_of(cluster: ClusterFleet, name: str) -> list[str]:
    """Return one key of each slot that the limiter *name* has keys in."""
    found: dict[int, str] = {}
    for node in cluster.nodes:
        with node.client() as client:
            for key in client.scan_iter():
                if name.encode() in key:
                    found.setdefault(key_slot(key), key.decode())
    return list(found.values())
