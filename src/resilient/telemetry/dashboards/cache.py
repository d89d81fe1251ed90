"""The dashboard of caches and fallbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, ERRORS, STALE, STALE_AGE
from .panels import figure, graph, heatmap
from .queries import Query, heat, largest, quantiles, rate, smallest, total

__all__ = ["CACHE", "stale"]

_KIND: Final = "cache"
_FALLBACK: Final = "fallback"
_ANSWERED: Final = "hit|stale|negative"
_ANY: Final = "hit|stale|negative|miss"


def stale(by: Iterable[str] | None = None) -> Query:
    """Return the share of the calls that were answered with a value past its time."""
    answers = rate(metrics.CACHE_REQUESTS, "stale", by=by) + rate(metrics.CACHE_RESCUED, by=by)
    return answers / rate(metrics.CACHE_REQUESTS, _ANY, by=by)


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Hit ratio",
            "Share of the calls that were answered without waiting for a load.",
            rate(metrics.CACHE_REQUESTS, _ANSWERED, by=()) / rate(metrics.CACHE_REQUESTS, _ANY, by=()),
        ),
        figure(
            "Stale answers",
            "Share of the calls that were answered with a value past its time: while it was loaded anew, or "
            "as the last known good. The alert is at 5 %.",
            stale(by=()),
            fail=STALE,
        ),
        figure(
            "Oldest stale answer",
            "The age of the oldest value past its time that was served in the last minute. The alert is at "
            "one hour.",
            largest(metrics.CACHE_STALE_AGE, by=()),
            fail=STALE_AGE,
        ),
        figure(
            "Rescued",
            "Calls a second that had missed, and that the last known good answered because the load failed.",
            rate(metrics.CACHE_RESCUED, by=()),
            warn=ANY,
        ),
        figure(
            "Loads that fail",
            "Share of the loads that failed.",
            rate(metrics.CACHE_LOAD_FAILURES, by=()) / rate(metrics.CACHE_LOADS, by=()),
            fail=ERRORS,
        ),
        figure(
            "Fallbacks used",
            "Calls a second that a fallback answered.",
            rate(metrics.CALLS, "fallback", kind=_FALLBACK, by=()),
            warn=ANY,
        ),
    ),
)
_REQUESTS: Final = Row(
    "Requests",
    (
        graph(
            "Requests",
            "Calls a second that were answered with a fresh value (hit), with one past its time (stale), "
            "with a remembered failure (negative), or that had to load or to wait for a load (miss).",
            rate(metrics.CACHE_REQUESTS),
            stacked=True,
        ),
        graph(
            "Hit ratio",
            "Share of the calls that were answered without waiting for a load.",
            rate(metrics.CACHE_REQUESTS, _ANSWERED) / rate(metrics.CACHE_REQUESTS, _ANY),
        ),
        graph(
            "Stale answers",
            "Share of the calls that were answered with a value past its time. The line is the alert's, "
            "which asks whether loads fail, too.",
            stale(),
            fail=STALE,
            width=8,
        ),
        graph(
            "Oldest stale answer",
            "The age of the oldest value past its time that was served in the last minute; of several "
            "instances, the oldest. When it only rises, the source is away.",
            largest(metrics.CACHE_STALE_AGE),
            fail=STALE_AGE,
            width=8,
        ),
        graph(
            "Rescued",
            "Calls a second that had missed, and that the last known good answered.",
            rate(metrics.CACHE_RESCUED),
            width=8,
        ),
    ),
)
_LOADS: Final = Row(
    "Loads",
    (
        graph(
            "Loads",
            "Loads a second, and those of them that failed. Far fewer than misses: many callers share one "
            "load.",
            rate(metrics.CACHE_LOADS).called("begun"),
            rate(metrics.CACHE_LOAD_FAILURES).called("failed"),
        ),
        graph(
            "Loads that fail",
            "Share of the loads that failed.",
            rate(metrics.CACHE_LOAD_FAILURES) / rate(metrics.CACHE_LOADS),
            fail=ERRORS,
        ),
        graph(
            "Duration of loads",
            "What 50, 95 and 99 of 100 successful loads stay below. Who misses waits that long.",
            *quantiles(metrics.CACHE_LOAD_DURATION, "success"),
        ),
        heatmap(
            "All loads", "How many loads took how long, successful or not.", heat(metrics.CACHE_LOAD_DURATION)
        ),
    ),
)
_MEMORY: Final = Row(
    "Entries",
    (
        graph("Entries", "Entries that are kept, in all instances.", total(metrics.CACHE_ENTRIES), width=8),
        graph(
            "Evictions",
            "Entries a second that had to make room. Many of them, and a low hit ratio: raise max_size.",
            rate(metrics.CACHE_EVICTIONS),
            width=8,
        ),
        graph(
            "Hit ratio since the start",
            "As each process has it since it was started; of several instances, the smallest.",
            smallest(metrics.CACHE_HIT_RATIO),
            width=8,
        ),
    ),
)
_FALLBACKS: Final = Row(
    "Fallbacks",
    (
        graph(
            "Fallbacks used",
            "Calls a second that a fallback answered.",
            rate(metrics.CALLS, "fallback", kind=_FALLBACK),
        ),
        graph(
            "Fallbacks that failed",
            "Calls a second for which the fallback failed, too. These reach the caller.",
            rate(metrics.CALLS, "failure", kind=_FALLBACK),
        ),
    ),
)

CACHE: Final = Board(
    "cache",
    "caches and fallbacks",
    "What is answered from where, how old it is, and whether it can still be loaded.",
    (_GLANCE, _REQUESTS, _LOADS, _MEMORY, _FALLBACKS),
    (
        ("Cache", "policies/cache"),
        ("Fallback", "policies/fallback"),
        ("Incident: a slow API", "incidents/a4-slow-api"),
        ("Incident: everything down", "incidents/a6-everything-down"),
    ),
    kinds=(_KIND, _FALLBACK),
)
