"""The dashboard of health checks."""

from __future__ import annotations

from typing import Final

from ...health import measures as metrics
from .board import Board, Row
from .limits import UTILIZATION
from .panels import Panel, State, figure, graph, timeline
from .queries import NAME, largest, total, worst

__all__ = ["HEALTH", "state_of_checks"]

_STATES: Final[tuple[State, ...]] = (
    ("pass", "green"),
    ("unknown", "text"),
    ("warn", "yellow"),
    ("fail", "red"),
)


def state_of_checks(*, width: int = 24, link: str = "") -> Panel:
    """Return the states that checks were in."""
    return timeline(
        "Checks",
        "The state of each check and each watched policy; of several instances, the worst.",
        worst(metrics.HEALTH_STATUS, ("unknown", "warn", "fail")),
        _STATES,
        width=width,
        link=link,
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Fail",
            "Checks that fail, in all instances.",
            total(metrics.HEALTH_STATUS, None, "fail", by=()),
            fail=1,
        ),
        figure(
            "Warn",
            "Checks that warn, in all instances.",
            total(metrics.HEALTH_STATUS, None, "warn", by=()),
            warn=1,
        ),
        figure(
            "Unknown",
            "Checks of which nothing is known: not found out yet, or behind something that fails.",
            total(metrics.HEALTH_STATUS, None, "unknown", by=()),
            warn=1,
        ),
        figure(
            "Pass", "Checks that pass, in all instances.", total(metrics.HEALTH_STATUS, None, "pass", by=())
        ),
        figure(
            "Slowest check",
            "How long the slowest check took the last time.",
            largest(metrics.CHECK_DURATION, by=()),
        ),
        figure(
            "Oldest finding",
            "How old the oldest of what checks have found is. Where nobody asks, nothing is found out.",
            largest(metrics.CHECK_AGE, by=()),
        ),
    ),
)
_STATE: Final = Row("State", (state_of_checks(),))
_VALUES: Final = Row(
    "What checks look at",
    (
        graph(
            "In percent",
            "What is used of the processor, of memory, of descriptors, of disks and of pools; of several "
            "instances, the most. The line is the alert's for processor and memory.",
            largest(metrics.CHECK_VALUE, None, "percent"),
            unit="percent",
            fail=UTILIZATION,
        ),
        graph(
            "In bytes",
            "By how much memory has grown; of several instances, the most.",
            largest(metrics.CHECK_VALUE, None, "bytes"),
            unit="bytes",
        ),
        graph(
            "In seconds",
            "How late event loops are, and how long servers take to answer; of several instances, the "
            "longest.",
            largest(metrics.CHECK_VALUE, None, "s"),
            unit="s",
        ),
        graph(
            "As a share",
            "What watched policies say most about themselves: failures in the window of a breaker, slots "
            "taken, the hit ratio of a cache; of several instances, the largest.",
            largest(metrics.CHECK_VALUE, None, "ratio"),
            unit="percentunit",
        ),
        graph(
            "In other units",
            "Threads, replicas, retries, and what checks of your own count; of several instances, the "
            "largest.",
            largest(
                metrics.CHECK_VALUE,
                None,
                "!percent|bytes|s|ratio",
                by=(NAME, "resilient.health.check.name", "resilient.health.check.unit"),
            ),
            unit="short",
            width=24,
        ),
    ),
)
_ASKING: Final = Row(
    "Asking",
    (
        graph(
            "Duration of checks",
            "How long each check took the last time; of several instances, the longest.",
            largest(metrics.CHECK_DURATION),
        ),
        graph(
            "Age of findings",
            "How old what each check has found is; of several instances, the oldest.",
            largest(metrics.CHECK_AGE),
        ),
    ),
)

HEALTH: Final = Board(
    "health",
    "health",
    "Which checks fail or warn, since when, and the figures that they look at.",
    (_GLANCE, _STATE, _VALUES, _ASKING),
    (
        ("Health", "policies/health"),
        ("Checks", "reference/health-checks"),
        ("Incident: a health check that fails", "incidents/c1-health-check"),
        ("Incident: memory rises", "incidents/b3-memory-leak"),
    ),
    kinds=("health",),
)
