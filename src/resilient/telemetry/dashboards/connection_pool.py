"""The dashboard of connection pools, ours and those that are watched, and of replica sets."""

from __future__ import annotations

from typing import Final

from ...pool import measures as metrics
from .. import connections
from .board import Board, Row
from .limits import ANY, LAG, POOL_USE
from .panels import Panel, State, figure, graph, heatmap, timeline
from .queries import Query, heat, increase, largest, quantiles, rate, smallest, total

__all__ = ["CONNECTION_POOL", "connections_lent", "use_of_pools"]

_THERE: Final[tuple[State, ...]] = (("away", "red"), ("there", "green"))

# Names of pools that are watched are in one label, those of ours and of replica sets in another.
_NAMES: Final = (
    "group by (resilient_policy_name) ("
    'label_replace(db_client_connection_count{job=~"$service", instance=~"$instance"}, '
    '"resilient_policy_name", "$1", "db_client_connection_pool_name", "(.+)") '
    'or resilient_pool_available{job=~"$service", instance=~"$instance"} '
    'or resilient_replica_demotions_total{job=~"$service", instance=~"$instance"})'
)


def connections_lent() -> Query:
    """Return the share of the connections that are lent."""
    return total(connections.COUNT, "used") / total(connections.MAX)


def use_of_pools(*, width: int = 12, link: str = "") -> Panel:
    """Return what share of the connections are lent."""
    return graph(
        "Connections lent",
        "Share of the connections there may be that are lent, of all instances together. The line is the "
        "alert's. Pools without a limit are not here.",
        connections_lent(),
        fail=POOL_USE,
        width=width,
        link=link,
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Connections lent",
            "Share of the connections that are lent, in the fullest pool. The alert is at 80 %.",
            connections_lent().largest(),
            fail=POOL_USE,
        ),
        figure("Waiting", "Callers that wait for a connection.", total(connections.PENDING, by=()), warn=1),
        figure(
            "Waited in vain",
            "Callers a second that got no connection in time.",
            rate(connections.TIMEOUTS, by=()),
            fail=ANY,
        ),
        figure(
            "Leaking",
            "Connections that are lent, and have been for longer than leak_after.",
            total(connections.LEAKED, by=()),
            fail=1,
        ),
        figure(
            "Servers away",
            "Pools whose server does not answer in some instance.",
            smallest(metrics.AVAILABLE).how_many_below(1),
            fail=1,
        ),
        figure(
            "Replicas down",
            "Replicas whose circuit is not closed in some instance.",
            smallest(metrics.REPLICA_UP).how_many_below(1),
            warn=1,
        ),
    ),
)
_USE: Final = Row(
    "Use",
    (
        use_of_pools(),
        graph(
            "Connections",
            "Connections that are lent (used), and that wait to be (idle), of all instances together.",
            total(connections.COUNT),
            total(connections.MAX).called("at most"),
        ),
        graph(
            "Waiting",
            "Callers that have asked for a connection and have none yet.",
            total(connections.PENDING),
        ),
        graph(
            "Got none",
            "Callers a second that waited in vain, and those that were refused at once because too many "
            "waited or the server was known to be down.",
            rate(connections.TIMEOUTS).called("in vain"),
            rate(metrics.REFUSED).called("refused"),
        ),
        graph("Loans", "Connections lent a second.", rate(metrics.CHECKOUTS), width=8),
        graph(
            "Idle connections",
            "Connections that nobody has, and how many of those are kept at least and at most.",
            total(connections.COUNT, "idle").called("idle"),
            total(connections.IDLE_MIN).called("at least"),
            total(connections.IDLE_MAX).called("at most"),
            width=16,
        ),
    ),
)
_DURATION: Final = Row(
    "Duration",
    (
        graph(
            "Waits for a connection",
            "What 50, 95 and 99 of 100 waits stay below.",
            *quantiles(connections.WAIT_TIME),
            width=8,
        ),
        graph(
            "Loans",
            "How long connections were lent: 50, 95 and 99 of 100. With twice the duration a pool serves "
            "half the callers.",
            *quantiles(connections.USE_TIME),
            width=8,
        ),
        graph(
            "Connecting",
            "How long it took to connect: 50, 95 and 99 of 100.",
            *quantiles(connections.CREATE_TIME),
            width=8,
        ),
        heatmap("All waits", "How many callers waited how long.", heat(connections.WAIT_TIME)),
        heatmap("All loans", "How many connections were lent for how long.", heat(connections.USE_TIME)),
    ),
)
_LEAKS: Final = Row(
    "Leaks and losses",
    (
        graph(
            "Leaking",
            "Connections that are lent, and have been for longer than leak_after. Who has them is in the "
            "log, and in pool.borrowers().",
            total(connections.LEAKED),
            fail=1,
            width=8,
        ),
        graph(
            "Reported and forgotten",
            "How often a connection was reported as held too long, and how often a borrower was "
            "garbage-collected without returning its own.",
            increase(metrics.LEAKS).called("reported"),
            increase(metrics.COLLECTED).called("forgotten"),
            bars=True,
            width=8,
        ),
        graph(
            "Closed",
            "Connections that were closed because they were broken (discarded), idle or old (expired), or "
            "taken from their borrowers (reclaimed).",
            increase(metrics.CLOSED),
            bars=True,
            stacked=True,
            width=8,
        ),
    ),
)
_SERVER: Final = Row(
    "Server",
    (
        timeline(
            "Server",
            "Whether the server of each pool is there, as far as is known; of several instances, the worst.",
            smallest(metrics.AVAILABLE),
            _THERE,
            width=12,
        ),
        graph(
            "Failed to connect",
            "Attempts a second to connect that failed.",
            rate(metrics.CONNECT_FAILURES),
        ),
    ),
)
_REPLICAS: Final = Row(
    "Replicas",
    (
        timeline(
            "Replicas",
            "Whether the circuit of each replica is closed; of several instances, the worst.",
            smallest(metrics.REPLICA_UP),
            _THERE,
            width=12,
        ),
        graph(
            "Lag",
            "By how much each replica was behind when it was last asked; of several instances, the most. The "
            "line is the alert's.",
            largest(metrics.REPLICA_LAG),
            fail=LAG,
        ),
        graph(
            "Reads that went elsewhere",
            "Reads a second that went to another replica (failover), to the primary (on_primary, or pinned "
            "after a write), or nowhere (refused).",
            rate(metrics.REPLICA_READS),
        ),
        graph(
            "Demotions",
            "How often a write was told that the primary is read-only, and its connections were replaced.",
            increase(metrics.DEMOTIONS),
            bars=True,
        ),
    ),
)

CONNECTION_POOL: Final = Board(
    "connection-pool",
    "connection pools and replicas",
    "How full pools are, who waits, what leaks, and whether the servers and their replicas are there.",
    (_GLANCE, _USE, _DURATION, _LEAKS, _SERVER, _REPLICAS),
    (
        ("Connection pool", "policies/connection-pool"),
        ("Watch a pool", "how-to/watch-a-pool"),
        ("Incident: leaked connections", "incidents/b1-leaked-connections"),
        ("Incident: the busiest day", "incidents/e1-busiest-day"),
    ),
    names=_NAMES,
)
