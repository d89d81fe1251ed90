"""The dashboard of retries and their budgets."""

from __future__ import annotations

from typing import Final

from ...policies import measures as metrics
from .board import Board, Row
from .limits import ANY, RETRIES
from .panels import figure, graph, heatmap
from .queries import heat, largest, quantiles, rate, smallest

__all__ = ["RETRY"]

_KIND: Final = "retry"
_BUDGET: Final = "retry_budget"

_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Retries per first attempt",
            "How many attempts are made beside the first ones. The alert is at 10 %: more than that is load "
            "that an ailing dependency cannot use.",
            rate(metrics.RETRY_ATTEMPTS, "retry", by=()) / rate(metrics.RETRY_ATTEMPTS, "original", by=()),
            fail=RETRIES,
        ),
        figure(
            "Recovered",
            "Calls a second that ended well because they were made again.",
            rate(metrics.RETRY_CALLS, "recovered", by=()),
        ),
        figure(
            "Failed for good",
            "Calls a second that failed in all their attempts.",
            rate(metrics.RETRY_CALLS, "exhausted", by=()),
            warn=ANY,
        ),
        figure(
            "Over budget",
            "Calls a second that were not made again because the budget was spent.",
            rate(metrics.RETRY_CALLS, "over_budget", by=()),
            warn=ANY,
        ),
        figure(
            "Budgets spent",
            "Retry budgets that do not have a single retry left in some instance.",
            smallest(metrics.BUDGET_BALANCE, kind=_BUDGET).how_many_below(1),
            fail=1,
        ),
        figure(
            "Denied",
            "Retries a second that budgets refused, whoever asked for them.",
            rate(metrics.BUDGET_DENIED, kind=_BUDGET, by=()),
            warn=ANY,
        ),
    ),
)
_ATTEMPTS: Final = Row(
    "Attempts",
    (
        graph(
            "Attempts",
            "Attempts a second: the first ones (original) and those after a failure (retry).",
            rate(metrics.RETRY_ATTEMPTS, kind=_KIND),
            stacked=True,
        ),
        graph(
            "Retries per first attempt",
            "How many attempts are made beside the first ones. The line is the alert's.",
            rate(metrics.RETRY_ATTEMPTS, "retry", kind=_KIND)
            / rate(metrics.RETRY_ATTEMPTS, "original", kind=_KIND),
            fail=RETRIES,
        ),
        graph(
            "What became of them",
            "Calls a second that ended well after a retry (recovered), failed for good (exhausted), or of "
            "which a retry was not made because the budget was spent (over_budget).",
            rate(metrics.RETRY_CALLS, kind=_KIND),
        ),
        graph(
            "Amplification since the start",
            "Attempts per call since the process was started; of several instances, the largest. 1 is no "
            "retry at all.",
            largest(metrics.RETRY_AMPLIFICATION, kind=_KIND),
            unit="none",
        ),
    ),
)
_WAITS: Final = Row(
    "Waits",
    (
        graph(
            "Waits before a retry",
            "What 50, 95 and 99 of 100 waits stay below. Callers wait that long on top of what the attempts "
            "take.",
            *quantiles(metrics.WAIT_DURATION, kind=_KIND),
        ),
        heatmap(
            "All waits",
            "How many waits took how long. With jitter they are spread; a narrow band means that clients "
            "retry in step.",
            heat(metrics.WAIT_DURATION, kind=_KIND),
        ),
    ),
)
_BUDGETS: Final = Row(
    "Budgets",
    (
        graph(
            "Balance",
            "Retries that could be made now; of several instances, the fewest. At 0 failures are raised at "
            "once.",
            smallest(metrics.BUDGET_BALANCE, kind=_BUDGET),
        ),
        graph(
            "Denied",
            "Retries a second that were refused because the budget was spent.",
            rate(metrics.BUDGET_DENIED, kind=_BUDGET),
        ),
    ),
)

RETRY: Final = Board(
    "retry",
    "retries and budgets",
    "How much load retries add, whether they help, and whether their budgets last.",
    (_GLANCE, _ATTEMPTS, _WAITS, _BUDGETS),
    (("Retry", "policies/retry"), ("Incident: a lost cart", "incidents/a2-lost-cart")),
    kinds=(_KIND, _BUDGET),
)
