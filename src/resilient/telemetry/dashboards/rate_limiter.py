"""The dashboard of rate limiters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, STORE_ERRORS
from .panels import Panel, State, figure, graph, heatmap, timeline
from .queries import Query, heat, quantiles, rate, total, worst

__all__ = ["RATE_LIMITER", "rung_of_limiters", "store_errors"]

_KIND: Final = "rate_limiter"
_RUNGS: Final[tuple[State, ...]] = (
    ("shared", "green"),
    ("local", "yellow"),
    ("allows all", "orange"),
    ("denies all", "red"),
)


def store_errors(by: Iterable[str] | None = None) -> Query:
    """Return how many requests to the shared store went wrong for each decision."""
    return rate(metrics.LIMITER_ERRORS, kind=_KIND, by=by) / rate(
        metrics.CALLS, "admitted|rejected", kind=_KIND, by=by
    )


def rung_of_limiters(*, width: int = 24, link: str = "") -> Panel:
    """Return the rungs that limiters decided on."""
    return timeline(
        "Limiters",
        "Where each limiter with a shared store decides; of several instances, the worst. Below the store, "
        "the limit"
        "does not hold for all processes together.",
        worst(metrics.LIMITER_STATUS, ("local", "allow", "deny"), kind=_KIND),
        _RUNGS,
        width=width,
        link=link,
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Let in", "Calls a second that were let in.", rate(metrics.CALLS, "admitted", kind=_KIND, by=())
        ),
        figure(
            "Refused", "Calls a second that were refused.", rate(metrics.CALLS, "rejected", kind=_KIND, by=())
        ),
        figure(
            "Share refused",
            "Share of the calls that were refused. It is what a limiter is for; a change of it is news.",
            rate(metrics.CALLS, "rejected", kind=_KIND, by=())
            / rate(metrics.CALLS, "admitted|rejected", kind=_KIND, by=()),
        ),
        figure(
            "On a lower rung",
            "Decisions a second that were not made where all processes count together, because the store was "
            "away.",
            rate(metrics.LIMITER_FALLBACKS, kind=_KIND, by=()),
            fail=ANY,
        ),
        figure(
            "Errors of the store",
            "How many requests to the shared store failed or were too slow, for each decision. The alert is "
            "at 1 %.",
            store_errors(by=()),
            fail=STORE_ERRORS,
        ),
        figure(
            "Keys", "Keys that are kept in the processes.", total(metrics.LIMITER_KEYS, kind=_KIND, by=())
        ),
    ),
)
_DECISIONS: Final = Row(
    "Decisions",
    (
        graph(
            "Calls",
            "Calls a second that were let in (admitted), and refused (rejected).",
            rate(metrics.CALLS, kind=_KIND),
            stacked=True,
        ),
        graph(
            "Share refused",
            "Share of the calls that were refused.",
            rate(metrics.REJECTIONS, "enforced", kind=_KIND)
            / rate(metrics.CALLS, "admitted|rejected", kind=_KIND),
        ),
        graph(
            "Waits for a turn",
            "What 50, 95 and 99 of 100 waits stay below, of the calls that had to wait.",
            *quantiles(metrics.WAIT_DURATION, kind=_KIND),
        ),
        heatmap(
            "All waits",
            "How many calls waited how long. None: nobody waits where max_wait is 0.",
            heat(metrics.WAIT_DURATION, kind=_KIND),
        ),
    ),
)
_STORE: Final = Row(
    "Shared store",
    (
        rung_of_limiters(),
        graph(
            "Decisions on a lower rung",
            "Decisions a second that were not made where all processes count together. Meanwhile the limit "
            "is that of on_outage.",
            rate(metrics.LIMITER_FALLBACKS, kind=_KIND),
        ),
        graph(
            "Errors of the store",
            "How many requests to the shared store failed or were too slow, for each decision. The line is "
            "the alert's.",
            store_errors(),
            fail=STORE_ERRORS,
        ),
    ),
)
_KEYS: Final = Row(
    "Keys",
    (
        graph("Keys", "Keys that are kept in the processes.", total(metrics.LIMITER_KEYS, kind=_KIND)),
        graph(
            "Evictions",
            "Keys a second that had to make room. Whoever comes back after that has a full quota again: "
            "raise max_keys.",
            rate(metrics.LIMITER_EVICTIONS, kind=_KIND),
        ),
    ),
)

RATE_LIMITER: Final = Board(
    "rate-limiter",
    "rate limiters",
    "Who is let in and who is refused, and whether all processes count together.",
    (_GLANCE, _DECISIONS, _STORE, _KEYS),
    (
        ("Rate limiter", "policies/rate-limiter"),
        ("Incident: a flood", "incidents/a7-flood"),
        ("Incident: one limit for a fleet", "incidents/d7-shared-limit"),
    ),
    kinds=(_KIND,),
)
