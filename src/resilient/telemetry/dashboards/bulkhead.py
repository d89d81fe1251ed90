"""The dashboard of bulkheads, adaptive limits and adaptive throttles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, BULKHEAD_USE, THROTTLED
from .panels import figure, graph, heatmap
from .queries import Query, heat, largest, quantile, quantiles, rate, smallest, total

__all__ = ["BULKHEAD", "slots_taken", "throttled"]

_KIND: Final = "bulkhead"
_THROTTLE: Final = "adaptive_throttle"


def slots_taken() -> Query:
    """Return the share of the slots that are taken."""
    return total(metrics.BULKHEAD_ACTIVE, kind=_KIND) / total(metrics.BULKHEAD_LIMIT, kind=_KIND)


def throttled(by: Iterable[str] | None = None) -> Query:
    """Return the share of the calls that throttles did not send."""
    return rate(metrics.CALLS, "rejected", kind=_THROTTLE, by=by) / rate(
        metrics.CALLS, "success|failure|rejected", kind=_THROTTLE, by=by
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Slots taken",
            "Share of the slots that are taken, in the fullest bulkhead. The alert is at 90 %.",
            slots_taken().largest(),
            fail=BULKHEAD_USE,
        ),
        figure(
            "Queued", "Calls that wait for a slot.", total(metrics.BULKHEAD_QUEUED, kind=_KIND, by=()), warn=1
        ),
        figure(
            "Refused",
            "Calls a second that found no slot.",
            rate(metrics.REJECTIONS, "enforced", kind=_KIND, by=()),
            warn=ANY,
        ),
        figure(
            "p95 of the waits",
            "What 95 of 100 waits stay below, of the calls that had to wait for a slot.",
            quantile(0.95, metrics.WAIT_DURATION, kind=_KIND, by=()),
        ),
        figure(
            "Still at work",
            "Calls that run on in a thread, and keep their slot, though nobody waits for them any more.",
            total(metrics.BULKHEAD_ABANDONED, kind=_KIND, by=()),
            warn=1,
        ),
        figure(
            "Throttled",
            "Share of the calls to throttled dependencies that is not sent. The alert is at 5 %.",
            throttled(by=()),
            fail=THROTTLED,
        ),
    ),
)
_SLOTS: Final = Row(
    "Slots",
    (
        graph(
            "Slots taken",
            "Share of the slots that are taken, of all instances together. The line is the alert's.",
            slots_taken(),
            fail=BULKHEAD_USE,
        ),
        graph(
            "Calls that run, and the limit",
            "Calls that run, and how many may, of all instances together. An adaptive limit moves.",
            total(metrics.BULKHEAD_ACTIVE, kind=_KIND).called("run"),
            total(metrics.BULKHEAD_LIMIT, kind=_KIND).called("may run"),
        ),
        graph("Queued", "Calls that wait for a slot.", total(metrics.BULKHEAD_QUEUED, kind=_KIND)),
        graph(
            "Calls",
            "Calls a second that were let in (admitted), found no slot (rejected), or stopped waiting for "
            "one (gave_up).",
            rate(metrics.CALLS, kind=_KIND),
            stacked=True,
        ),
        graph(
            "Waits for a slot",
            "What 50, 95 and 99 of 100 waits stay below, of the calls that had to wait.",
            *quantiles(metrics.WAIT_DURATION, kind=_KIND),
        ),
        heatmap("All waits", "How many calls waited how long.", heat(metrics.WAIT_DURATION, kind=_KIND)),
        graph(
            "Still at work",
            "Calls that run on in a thread, and keep their slot, though nobody waits for them any more.",
            total(metrics.BULKHEAD_ABANDONED, kind=_KIND),
        ),
        graph(
            "Keys",
            "Keys that are kept, where there is a bulkhead for each.",
            total(metrics.BULKHEAD_KEYS, kind=_KIND),
        ),
    ),
)
_ADAPTIVE: Final = Row(
    "Adaptive limits",
    (
        graph(
            "Limit",
            "How many calls may run, in the instance that lets in the fewest. A limit that stays at its "
            "minimum means that the dependency cannot serve even those.",
            smallest(metrics.BULKHEAD_LIMIT, kind=_KIND),
            width=8,
        ),
        graph(
            "Response time and baseline",
            "What a good call took in the last window, and what it takes without a queue. The further they "
            "are apart, the lower the limit.",
            largest(metrics.BULKHEAD_RTT, kind=_KIND).called("now"),
            largest(metrics.BULKHEAD_BASELINE, kind=_KIND).called("without a queue"),
            width=8,
        ),
        graph(
            "Pressure",
            "What the limit is multiplied by because the event loop lags or the processor is busy; 1 for "
            "none, and of several instances, the least.",
            smallest(metrics.BULKHEAD_PRESSURE, kind=_KIND),
            width=8,
            unit="none",
        ),
    ),
)
_THROTTLES: Final = Row(
    "Adaptive throttles",
    (
        graph(
            "Share that is not sent",
            "Share of the calls that a throttle did not send, because they would be refused. The line is the "
            "alert's.",
            throttled(),
            fail=THROTTLED,
            width=8,
        ),
        graph(
            "Probability",
            "The share of calls that is not sent, because the dependency would refuse it; of several "
            "instances, the largest.",
            largest(metrics.THROTTLE_PROBABILITY, kind=_THROTTLE),
            width=8,
        ),
        graph(
            "Calls",
            "Calls a second, by how they ended. Failure: the dependency refused. Rejected: it was not asked.",
            rate(metrics.CALLS, kind=_THROTTLE),
            stacked=True,
            width=8,
        ),
    ),
)

BULKHEAD: Final = Board(
    "bulkhead",
    "bulkheads and throttles",
    "How full bulkheads are, where adaptive limits stand, and what throttles hold back.",
    (_GLANCE, _SLOTS, _ADAPTIVE, _THROTTLES),
    (
        ("Bulkhead", "policies/bulkhead"),
        ("Adaptive throttle", "policies/adaptive-throttle"),
        ("Incident: load to failure", "incidents/d9-load-to-failure"),
    ),
    kinds=(_KIND, _THROTTLE),
)
