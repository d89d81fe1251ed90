"""The metrics of pools and replica sets, beside those that OpenTelemetry has words for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..engine.measure import Measure, counter, gauge, up_down

if TYPE_CHECKING:
    from .replicas.stats import ReplicaSetStats
    from .stats import PoolStats

__all__ = ["of_pool", "of_replicas"]

_REPLICA: Final = "resilient.replica.name"

CHECKOUTS: Final = counter("resilient.pool.checkouts", "{connection}", "How often a pool lent a connection.")
REFUSED: Final = counter(
    "resilient.pool.refused",
    "{call}",
    "Callers that were refused at once: too many waited, or the server was known to be down.",
)
CONNECT_FAILURES: Final = counter(
    "resilient.pool.connect_failures", "{attempt}", "Attempts to connect that failed."
)
CLOSED: Final = counter(
    "resilient.pool.closed",
    "{connection}",
    "Connections that were closed because they were broken (discarded), had been idle or lived for too long "
    "(expired), or were taken from their borrowers (reclaimed).",
    "resilient.pool.reason",
)
LEAKS: Final = counter(
    "resilient.pool.leaks", "{connection}", "How often a connection was reported as held too long."
)
COLLECTED: Final = counter(
    "resilient.pool.collected",
    "{connection}",
    "Borrowers that were garbage-collected without returning their connection.",
)
AVAILABLE: Final = up_down(
    "resilient.pool.available", "1", "Whether the server is there, as far as is known: 1, or 0."
)

REPLICA_UP: Final = up_down(
    "resilient.replica.up", "1", "Whether a replica's circuit is closed: 1, or 0.", _REPLICA
)
REPLICA_LAG: Final = gauge(
    "resilient.replica.lag", "s", "By how much a replica was behind when it was last asked.", _REPLICA
)
REPLICA_READS: Final = counter(
    "resilient.replica.reads",
    "{read}",
    "Reads that did not go where they looked first: to another replica (failover), to the primary because no "
    "replica could (on_primary) or because the caller had just written (pinned), or nowhere (refused).",
    "resilient.outcome",
)
DEMOTIONS: Final = counter(
    "resilient.replica.demotions",
    "{demotion}",
    "How often a write was told that the primary is read-only, and its connections were replaced.",
)


def of_pool(stats: PoolStats) -> Iterator[Measure]:
    """Return what can be told of a pool of ours."""
    yield CHECKOUTS, stats.checkouts, ()
    yield REFUSED, stats.refused, ()
    yield CONNECT_FAILURES, stats.connect_failures, ()
    yield CLOSED, stats.discarded, ("discarded",)
    yield CLOSED, stats.expired, ("expired",)
    yield CLOSED, stats.reclaimed, ("reclaimed",)
    yield LEAKS, stats.leaks, ()
    yield COLLECTED, stats.collected, ()
    yield AVAILABLE, int(stats.available), ()


def of_replicas(stats: ReplicaSetStats) -> Iterator[Measure]:
    """Return what can be told of a replica set, beside what its pools tell themselves."""
    for replica in stats.replicas:
        yield REPLICA_UP, int(replica.breaker.state == "closed"), (replica.name,)
        if replica.lag is not None:
            yield REPLICA_LAG, replica.lag, (replica.name,)
    yield REPLICA_READS, stats.failovers, ("failover",)
    yield REPLICA_READS, stats.on_primary, ("on_primary",)
    yield REPLICA_READS, stats.pinned, ("pinned",)
    yield REPLICA_READS, stats.refused, ("refused",)
    yield DEMOTIONS, stats.demotions, ()
