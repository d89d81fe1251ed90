"""The dashboard of circuit breakers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, ERRORS, RESPONSE
from .panels import Panel, State, figure, graph, heatmap, timeline
from .queries import Query, heat, increase, largest, quantile, quantiles, rate, total, worst

__all__ = ["CIRCUIT_BREAKER", "errors", "state_of_breakers"]

_KIND: Final = "circuit_breaker"
_STATES: Final[tuple[State, ...]] = (("closed", "green"), ("half-open", "yellow"), ("open", "red"))
_MODES: Final[tuple[State, ...]] = (
    ("by itself", "transparent"),
    ("observes only", "blue"),
    ("forced closed", "purple"),
    ("forced open", "red"),
)


def errors(*, kind: str, by: Iterable[str] | None = None) -> Query:
    """Return the share of the calls that failed or were refused, by policies that look at how calls end."""
    return rate(metrics.CALLS, "failure|rejected", kind=kind, by=by) / rate(
        metrics.CALLS, "success|failure|rejected", kind=kind, by=by
    )


def state_of_breakers(*, width: int = 24, link: str = "") -> Panel:
    """Return the states that breakers were in."""
    return timeline(
        "Breakers",
        "The state of each breaker; of several instances, the worst.",
        worst(metrics.BREAKER_STATUS, ("half_open", "open"), kind=_KIND),
        _STATES,
        width=width,
        link=link,
    )


_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Open",
            "Breakers that are open, in all instances. They refuse calls and wait for their dependency.",
            total(metrics.BREAKER_STATUS, "open", kind=_KIND, by=()),
            fail=1,
        ),
        figure(
            "Half-open",
            "Breakers that let probes through, to see whether their dependency is back.",
            total(metrics.BREAKER_STATUS, "half_open", kind=_KIND, by=()),
            warn=1,
        ),
        figure(
            "Set by hand",
            "Breakers that somebody has forced open or closed, or made observe only.",
            total(metrics.BREAKER_OVERRIDE, "forced_open|forced_closed|observe_only", kind=_KIND, by=()),
            warn=1,
        ),
        figure(
            "Errors",
            "Share of the calls that failed or were refused. The alert is at 1 %.",
            errors(kind=_KIND, by=()),
            fail=ERRORS,
        ),
        figure(
            "Refused",
            "Calls a second that an open breaker refused.",
            rate(metrics.REJECTIONS, "enforced", kind=_KIND, by=()),
            warn=ANY,
        ),
        figure(
            "p95",
            "What 95 of 100 calls stay below. The alert is at 1 s.",
            quantile(0.95, metrics.CALL_DURATION, kind=_KIND, by=()),
            fail=RESPONSE,
        ),
    ),
)
_STATE: Final = Row(
    "State",
    (
        state_of_breakers(),
        timeline(
            "Set by hand",
            "What somebody has told a breaker to be. With a time limit it ends by itself; without one it is "
            "easily forgotten.",
            worst(metrics.BREAKER_OVERRIDE, ("observe_only", "forced_closed", "forced_open"), kind=_KIND),
            _MODES,
        ),
        graph(
            "Open in how many instances",
            "Each instance has a breaker of its own. All of them open: the dependency is down. One: look at "
            "that instance.",
            total(metrics.BREAKER_STATUS, "open", kind=_KIND),
        ),
        graph(
            "Transitions",
            "How often breakers changed to which state. One that opens and closes again and again flaps: see "
            "its window and its thresholds.",
            increase(metrics.BREAKER_TRANSITIONS, kind=_KIND),
            bars=True,
            stacked=True,
        ),
    ),
)
_CALLS: Final = Row(
    "Calls and errors",
    (
        graph(
            "Calls",
            "Calls a second, by how they ended. Abandoned: the caller gave up. Ignored: an exception that "
            "counts as nothing.",
            rate(metrics.CALLS, kind=_KIND),
            stacked=True,
        ),
        graph(
            "Errors",
            "Share of the calls that failed or were refused. The line is the alert's.",
            errors(kind=_KIND),
            fail=ERRORS,
        ),
        graph(
            "Refused",
            "Calls a second that were refused (enforced), and that would be if the breaker did not only "
            "observe (detected).",
            rate(metrics.REJECTIONS, kind=_KIND),
        ),
        graph(
            "Failures in the window",
            "Share of the failed calls in the window that the breaker decides by; of several instances, the "
            "largest.",
            largest(metrics.BREAKER_FAILURE_RATIO, kind=_KIND),
        ),
        graph(
            "Slow calls",
            "Calls a second that took longer than slow_after.",
            rate(metrics.BREAKER_SLOW, kind=_KIND),
            width=8,
        ),
        graph(
            "Slow calls in the window",
            "Share of the slow calls in the window that the breaker decides by; of several instances, the "
            "largest.",
            largest(metrics.BREAKER_SLOW_RATIO, kind=_KIND),
            width=8,
        ),
        graph(
            "Calls in the window",
            "How many calls the shares are of, of all instances together. Below min_calls no share opens a "
            "breaker.",
            total(metrics.BREAKER_WINDOW, kind=_KIND),
            width=8,
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
            "What 50, 95 and 99 of 100 failures stay below. Failures that are as slow as a timeout hold "
            "their callers for as long.",
            *quantiles(metrics.CALL_DURATION, "failure", kind=_KIND),
        ),
        heatmap(
            "All durations",
            "How many calls took how long, successful or not. Two bands are two kinds of calls, or a cache "
            "that is hit and missed.",
            heat(metrics.CALL_DURATION, kind=_KIND),
            width=24,
        ),
    ),
)

CIRCUIT_BREAKER: Final = Board(
    "circuit-breaker",
    "circuit breakers",
    "Which breakers are open, since when and why: their states, what fails and what is slow.",
    (_GLANCE, _STATE, _CALLS, _DURATION),
    (
        ("Circuit breaker", "policies/circuit-breaker"),
        ("Incident: a slow payment API", "incidents/d4-slow-payments"),
    ),
    kinds=(_KIND,),
)
