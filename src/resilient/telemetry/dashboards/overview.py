"""The first dashboard to look at: how calls do, and what is open, refused, stale or leaking."""

from __future__ import annotations

from typing import Final

from ...health import measures as health
from ...policies import measures as policies
from ...pool import measures as pools
from .. import connections
from .board import Board, Row
from .bulkhead import slots_taken
from .cache import stale
from .circuit_breaker import errors, state_of_breakers
from .connection_pool import connections_lent, use_of_pools
from .health import state_of_checks
from .limits import ANY, BULKHEAD_USE, ERRORS, POOL_USE, RESPONSE, RETRIES, STALE, STALE_AGE
from .panels import figure, graph
from .queries import KIND, NAME, SERVICE, largest, quantile, rate, smallest, total
from .rate_limiter import rung_of_limiters

__all__ = ["OVERVIEW"]

_JUDGES: Final = "circuit_breaker|adaptive_throttle"  # that look at how calls end
_EACH: Final = (SERVICE, NAME)
_EACH_KIND: Final = (*_EACH, KIND)

_RED: Final = Row(
    "Rate, errors, duration",
    (
        graph(
            "Rate",
            "Calls a second to each dependency, as the busiest of the policies around it counts them.",
            rate(policies.CALLS, "success|failure|admitted", by=_EACH_KIND).largest(*_EACH),
            width=8,
        ),
        graph(
            "Errors",
            "Share of the calls to each dependency that failed or were refused, as a breaker or a throttle "
            "around it has it. The line is the alert's.",
            errors(kind=_JUDGES, by=_EACH_KIND).largest(*_EACH),
            fail=ERRORS,
            width=8,
        ),
        graph(
            "Duration",
            "What 95 of 100 calls to each dependency stay below, successful or not. The line is the alert's.",
            quantile(0.95, policies.CALL_DURATION, by=_EACH_KIND).largest(*_EACH),
            fail=RESPONSE,
            width=8,
        ),
    ),
)
_GLANCE: Final = Row(
    "At a glance",
    (
        figure(
            "Open",
            "Circuit breakers that are open, in all instances.",
            total(policies.BREAKER_STATUS, "open", by=()),
            fail=1,
            width=3,
            link="circuit-breaker",
        ),
        figure(
            "Set by hand",
            "Circuit breakers that somebody has forced open or closed, or made observe only.",
            total(policies.BREAKER_OVERRIDE, by=()),
            warn=1,
            width=3,
            link="circuit-breaker",
        ),
        figure(
            "Refused",
            "Calls a second that any policy refused.",
            rate(policies.REJECTIONS, "enforced", by=()),
            warn=ANY,
            width=3,
        ),
        figure(
            "Too late",
            "Calls a second that took longer than they may.",
            rate(policies.TIMEOUT_OVERRUNS, by=()),
            warn=ANY,
            width=3,
            link="timeout",
        ),
        figure(
            "Retries",
            "How many attempts are made beside the first ones. The alert is at 10 %.",
            rate(policies.RETRY_ATTEMPTS, "retry", by=()) / rate(policies.RETRY_ATTEMPTS, "original", by=()),
            fail=RETRIES,
            width=3,
            link="retry",
        ),
        figure(
            "Budgets spent",
            "Retry budgets that do not have a single retry left in some instance.",
            smallest(policies.BUDGET_BALANCE).how_many_below(1),
            fail=1,
            width=3,
            link="retry",
        ),
        figure(
            "Slots taken",
            "Share of the slots that are taken, in the fullest bulkhead. The alert is at 90 %.",
            slots_taken().largest(),
            fail=BULKHEAD_USE,
            width=3,
            link="bulkhead",
        ),
        figure(
            "In maintenance",
            "Services that are closed for maintenance, in all instances.",
            total(policies.MAINTENANCE_ON, by=()),
            warn=1,
            width=3,
        ),
        figure(
            "On a lower rung",
            "Decisions a second of rate limiters that were made without their shared store, because it was "
            "away.",
            rate(policies.LIMITER_FALLBACKS, by=()),
            fail=ANY,
            width=3,
            link="rate-limiter",
        ),
        figure(
            "Stale",
            "The age of the oldest value past its time that a cache served in the last minute.",
            largest(policies.CACHE_STALE_AGE, by=()),
            warn=1,
            fail=STALE_AGE,
            width=3,
            link="cache",
        ),
        figure(
            "Fallbacks used",
            "Calls a second that a fallback answered.",
            rate(policies.CALLS, "fallback", by=()),
            warn=ANY,
            width=3,
            link="cache",
        ),
        figure(
            "Connections lent",
            "Share of the connections that are lent, in the fullest pool. The alert is at 80 %.",
            connections_lent().largest(),
            fail=POOL_USE,
            width=3,
            link="connection-pool",
        ),
        figure(
            "Leaking",
            "Connections that are lent, and have been for longer than leak_after.",
            total(connections.LEAKED, by=()),
            fail=1,
            width=3,
            link="connection-pool",
        ),
        figure(
            "Servers away",
            "Pools whose server does not answer in some instance.",
            smallest(pools.AVAILABLE).how_many_below(1),
            fail=1,
            width=3,
            link="connection-pool",
        ),
        figure(
            "Checks that fail",
            "Health checks that fail, in all instances.",
            total(health.HEALTH_STATUS, None, "fail", by=()),
            fail=1,
            width=3,
            link="health",
        ),
        figure(
            "Checks that warn",
            "Health checks that warn, in all instances.",
            total(health.HEALTH_STATUS, None, "warn", by=()),
            warn=1,
            width=3,
            link="health",
        ),
    ),
)
_STATE: Final = Row(
    "State",
    (
        state_of_breakers(width=12, link="circuit-breaker"),
        state_of_checks(width=12, link="health"),
        rung_of_limiters(width=12, link="rate-limiter"),
        use_of_pools(link="connection-pool"),
    ),
)
_SIGNS: Final = Row(
    "Refused, retried, stale",
    (
        graph(
            "Refused",
            "Calls a second that were refused, by whom.",
            rate(policies.REJECTIONS, "enforced", by=_EACH_KIND),
            stacked=True,
            width=8,
        ),
        graph(
            "Retries per first attempt",
            "How many attempts are made beside the first ones. The line is the alert's.",
            rate(policies.RETRY_ATTEMPTS, "retry") / rate(policies.RETRY_ATTEMPTS, "original"),
            fail=RETRIES,
            width=8,
            link="retry",
        ),
        graph(
            "Stale answers",
            "Share of the calls that were answered with a value past its time. The line is the alert's.",
            stale(),
            fail=STALE,
            width=8,
            link="cache",
        ),
    ),
)

OVERVIEW: Final = Board(
    "overview",
    "overview",
    "How the calls of a service do, and what is open, refused, stale or leaking.",
    (_RED, _GLANCE, _STATE, _SIGNS),
    (
        ("Dashboards", "how-to/dashboards"),
        ("Alerts", "how-to/alert"),
        ("Incident: nobody was told", "incidents/b4-alerts"),
    ),
)
