"""The dashboard of time limits."""

from __future__ import annotations

from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, ERRORS, RESPONSE
from .panels import figure, graph, heatmap
from .queries import heat, quantile, quantiles, rate, total

__all__ = ["TIMEOUT"]

_KIND: Final = "timeout"

_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Calls", "Calls a second that were let in.", rate(metrics.CALLS, "admitted", kind=_KIND, by=())
        ),
        figure(
            "Too late",
            "Share of the calls that were cut off, or that their caller stopped waiting for.",
            rate(metrics.TIMEOUT_OVERRUNS, kind=_KIND, by=())
            / rate(metrics.CALLS, "admitted", kind=_KIND, by=()),
            warn=ANY,
            fail=ERRORS,
        ),
        figure(
            "Refused",
            "Calls a second that were not begun: no time was left, or no thread was free.",
            rate(metrics.REJECTIONS, "enforced", kind=_KIND, by=()),
            warn=ANY,
        ),
        figure(
            "Still at work",
            "Calls whose caller has gone and whose thread still works. Each keeps a thread until it ends.",
            total(metrics.TIMEOUT_ABANDONED, kind=_KIND, by=()),
            warn=1,
        ),
        figure(
            "p95",
            "What 95 of 100 calls stay below. The alert is at 1 s.",
            quantile(0.95, metrics.CALL_DURATION, kind=_KIND, by=()),
            fail=RESPONSE,
        ),
        figure(
            "p99",
            "What 99 of 100 successful calls stay below. A limit close to it cuts off calls that would have "
            "ended well.",
            quantile(0.99, metrics.CALL_DURATION, "success", kind=_KIND, by=()),
        ),
    ),
)
_CALLS: Final = Row(
    "Calls and overruns",
    (
        graph(
            "Calls",
            "Calls a second that were let in (admitted), and that were not begun (rejected).",
            rate(metrics.CALLS, kind=_KIND),
            stacked=True,
        ),
        graph(
            "Too late",
            "Share of the calls that were cut off, or that their caller stopped waiting for.",
            rate(metrics.TIMEOUT_OVERRUNS, kind=_KIND) / rate(metrics.CALLS, "admitted", kind=_KIND),
            fail=ERRORS,
        ),
        graph(
            "Overruns",
            "Calls a second that took longer than they may.",
            rate(metrics.TIMEOUT_OVERRUNS, kind=_KIND),
        ),
        graph(
            "Still at work",
            "Calls whose caller has gone and whose thread still works. If it only rises, what they call "
            "never answers.",
            total(metrics.TIMEOUT_ABANDONED, kind=_KIND),
        ),
    ),
)
_DURATION: Final = Row(
    "Duration",
    (
        graph(
            "Duration of calls",
            "What 50, 95 and 99 of 100 calls stay below, successful or not. The line is the alert's for 95.",
            *quantiles(metrics.CALL_DURATION, kind=_KIND),
            fail=RESPONSE,
        ),
        graph(
            "Duration of failed calls",
            "What 50, 95 and 99 of 100 failures stay below, those that were cut off included.",
            *quantiles(metrics.CALL_DURATION, "failure", kind=_KIND),
        ),
        heatmap(
            "All durations",
            "How many calls took how long. The limit should be above all but a few of them.",
            heat(metrics.CALL_DURATION, kind=_KIND),
            width=24,
        ),
    ),
)

TIMEOUT: Final = Board(
    "timeout",
    "timeouts",
    "Which calls take too long, whether the limits fit them, and what goes on after nobody waits any more.",
    (_GLANCE, _CALLS, _DURATION),
    (("Timeout", "policies/timeout"), ("Incident: a slow API", "incidents/a4-slow-api")),
    kinds=(_KIND,),
)
