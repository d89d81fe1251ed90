"""What is told of each kind of event: its name, how grave it is, and its facts.

One table, for log records and for the reference in the docs. Whatever it names may leave the process: names
that the application gave to its policies, figures, words of our own, the class of an error and a place in
the code. The rest of an event (an error's message, a reason, the name of a thread or a task) may come from
outside, and stays here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, TypeAlias

from opentelemetry._logs import SeverityNumber

from .. import events
from ..events import Event

__all__ = ["ERROR", "NARRATIONS", "OTHER_ERROR", "POLICY_KIND", "POLICY_NAME", "Fact", "Narration"]

Fact: TypeAlias = str | int | float | bool
"""The value of an attribute."""

POLICY_NAME: Final = "resilient.policy.name"
POLICY_KIND: Final = "resilient.policy.kind"
ERROR: Final = "error.type"
OTHER_ERROR: Final = "_OTHER"
"""Stands, as OpenTelemetry has it, for an error whose class is not known."""

_DEBUG: Final = SeverityNumber.DEBUG
_INFO: Final = SeverityNumber.INFO
_WARN: Final = SeverityNumber.WARN


@dataclass(frozen=True, slots=True)
class Narration:
    """What is told of one kind of event.

    Attributes:
        name: the name of the event. It never changes: whoever searches for events goes by it.
        severity: how grave it is.
        text: the sentence for people: a format of the event, `{0}`, and of the class of its error, `{1}`.
        kind: of the policies that tell it; None where there are several, or where that is not known.
        facts: attributes by name, and what reads them off the event: None for one that this event has not.
        relief: whether an event of this kind says that all is well again; it is of severity INFO then.
        logged: whether what announces it writes it to the log `resilient` itself.
    """

    name: str
    severity: SeverityNumber
    text: str
    kind: str | None = None
    facts: Mapping[str, Callable[[Any], Fact | None]] = field(default_factory=dict)
    relief: Callable[[Any], bool] | None = None
    logged: bool = False

    def severity_of(self, event: Event) -> SeverityNumber:
        """Return how grave *event* is."""
        return _INFO if self.relief is not None and self.relief(event) else self.severity

    def attributes_of(self, event: Event) -> dict[str, Fact]:
        """Return what may be told of *event*."""
        attributes: dict[str, Fact] = {POLICY_NAME: event.policy}
        if self.kind is not None:
            attributes[POLICY_KIND] = self.kind
        for name, read in self.facts.items():
            fact = read(event)
            if fact is not None:
                attributes[name] = fact
        return attributes

    def text_of(self, event: Event, attributes: Mapping[str, Fact]) -> str:
        """Return the sentence for *event*, which has *attributes*."""
        return self.text.format(event, attributes.get(ERROR))


def _is(value: Fact) -> Callable[[Any], Fact]:
    return lambda _event: value


def _word(name: str) -> Callable[[Any], str]:
    """Return what reads a word of our own, in the form that metrics have it in."""
    read = attrgetter(name)
    return lambda event: str(read(event)).replace(" ", "_")


def _error_class(event: Any) -> str:
    """Return the class of the error, which is how `error_text` begins: not its message."""
    name, colon, _ = event.error.partition(":")
    return name if colon and name.isidentifier() else OTHER_ERROR


_BREAKER: Final = "circuit_breaker"
_STATE: Final = "resilient.circuit_breaker.state"
_MODE: Final = "resilient.circuit_breaker.mode"
_ATTEMPTS: Final = "resilient.retry.attempts"
_AGE: Final = "resilient.cache.age"
_HELD: Final[Mapping[str, Callable[[Any], Fact | None]]] = {
    "resilient.pool.held_for": attrgetter("held_for"),
    "resilient.pool.borrowed_at": attrgetter("where"),
}

NARRATIONS: Final[Mapping[type[Event], Narration]] = {
    events.CircuitOpened: Narration(
        "resilient.circuit_breaker.opened",
        _WARN,
        "circuit {0.policy!r} opened for {0.open_for:.3g} s",
        _BREAKER,
        {
            _STATE: _is("open"),
            "resilient.circuit_breaker.open_for": attrgetter("open_for"),
            "resilient.circuit_breaker.opened_in_a_row": attrgetter("in_a_row"),
        },
    ),
    events.CircuitHalfOpened: Narration(
        "resilient.circuit_breaker.half_opened",
        _INFO,
        "circuit {0.policy!r} is half-open: a probe decides",
        _BREAKER,
        {_STATE: _is("half_open")},
    ),
    events.CircuitClosed: Narration(
        "resilient.circuit_breaker.closed",
        _INFO,
        "circuit {0.policy!r} closed",
        _BREAKER,
        {_STATE: _is("closed")},
    ),
    events.CircuitOverridden: Narration(
        "resilient.circuit_breaker.overridden",
        _WARN,
        "circuit {0.policy!r} was set by hand: {0.mode}",
        _BREAKER,
        {_MODE: _word("mode"), "resilient.circuit_breaker.override_for": attrgetter("seconds")},
    ),
    events.CircuitResumed: Narration(
        "resilient.circuit_breaker.resumed",
        _INFO,
        "circuit {0.policy!r} goes by its own rules again; it was {0.mode}",
        _BREAKER,
        {_MODE: _word("mode")},
    ),
    events.StorageLost: Narration(
        "resilient.circuit_breaker.storage_lost",
        _WARN,
        "the state storage of circuit {0.policy!r} is away: {1}",
        _BREAKER,
        {ERROR: _error_class},
        logged=True,
    ),
    events.StorageRestored: Narration(
        "resilient.circuit_breaker.storage_restored",
        _INFO,
        "the state storage of circuit {0.policy!r} is up to date again",
        _BREAKER,
    ),
    events.RetryScheduled: Narration(
        "resilient.retry.scheduled",
        _DEBUG,
        "retry {0.policy!r}: attempt {0.attempt} ended in {1}, the next one follows in {0.wait:.3g} s",
        "retry",
        {_ATTEMPTS: attrgetter("attempt"), "resilient.retry.wait": attrgetter("wait"), ERROR: _error_class},
    ),
    events.RetriesExhausted: Narration(
        "resilient.retry.exhausted",
        _WARN,
        "retry {0.policy!r} gave up after attempt {0.attempts}, which ended in {1}",
        "retry",
        {_ATTEMPTS: attrgetter("attempts"), ERROR: _error_class},
    ),
    events.BudgetExhausted: Narration(
        "resilient.retry_budget.exhausted",
        _WARN,
        "retry {0.policy!r} did not try again: budget {0.budget!r} is spent",
        "retry",
        {"resilient.retry_budget.name": attrgetter("budget")},
    ),
    events.CallTimedOut: Narration(
        "resilient.timeout.expired",
        _WARN,
        "{0.policy!r} gave a call up after {0.seconds:.3g} s",
        None,
        {
            "resilient.timeout.limit": attrgetter("seconds"),
            "resilient.timeout.abandoned": attrgetter("running"),
        },
    ),
    events.FallbackUsed: Narration(
        "resilient.fallback.used",
        _WARN,
        "fallback {0.policy!r} answered in place of a call that ended in {1}",
        "fallback",
        {ERROR: _error_class},
    ),
    events.StaleServed: Narration(
        "resilient.cache.stale_served",
        _WARN,
        "cache {0.policy!r} answered with a value {0.age:.3g} s old: loading a new one ended in {1}",
        "cache",
        {_AGE: attrgetter("age"), ERROR: _error_class},
    ),
    events.RefreshFailed: Narration(
        "resilient.cache.refresh_failed",
        _WARN,
        "cache {0.policy!r} could not refresh a value: {1}",
        "cache",
        {ERROR: _error_class},
    ),
    events.MaintenanceSwitched: Narration(
        "resilient.maintenance.switched",
        _WARN,
        "maintenance {0.policy!r} was switched; on: {0.on}",
        "maintenance",
        {
            "resilient.maintenance.on": attrgetter("on"),
            "resilient.maintenance.switched_for": attrgetter("seconds"),
        },
        relief=lambda event: not event.on,
    ),
    events.RungChanged: Narration(
        "resilient.rate_limiter.rung_changed",
        _WARN,
        "rate limiter {0.policy!r} decides on rung {0.rung!r}, no longer on {0.previous!r}",
        "rate_limiter",
        {
            "resilient.rate_limiter.rung": _word("rung"),
            "resilient.rate_limiter.previous_rung": _word("previous"),
        },
        relief=lambda event: event.rung == "shared",
    ),
    events.ThrottlingStarted: Narration(
        "resilient.adaptive_throttle.started",
        _WARN,
        "throttle {0.policy!r} refuses calls: {0.accepts} of {0.attempts} were accepted",
        "adaptive_throttle",
        {
            "resilient.adaptive_throttle.probability": attrgetter("probability"),
            "resilient.adaptive_throttle.attempts": attrgetter("attempts"),
            "resilient.adaptive_throttle.accepts": attrgetter("accepts"),
        },
    ),
    events.ThrottlingStopped: Narration(
        "resilient.adaptive_throttle.stopped",
        _INFO,
        "throttle {0.policy!r} lets every call through again; it refused {0.rejected}",
        "adaptive_throttle",
        {"resilient.adaptive_throttle.rejected": attrgetter("rejected")},
    ),
    events.ConnectionLeaked: Narration(
        "resilient.pool.connection_leaked",
        _WARN,
        "pool {0.policy!r}: a connection has been held for {0.held_for:.3g} s; borrowed at {0.where}",
        facts=_HELD,
        logged=True,
    ),
    events.ConnectionReturnedLate: Narration(
        "resilient.pool.connection_returned_late",
        _INFO,
        "pool {0.policy!r}: a connection came back after {0.held_for:.3g} s; borrowed at {0.where}",
        facts=_HELD,
        logged=True,
    ),
    events.ConnectionCollected: Narration(
        "resilient.pool.connection_collected",
        _WARN,
        "pool {0.policy!r}: a connection was forgotten after {0.held_for:.3g} s; borrowed at {0.where}",
        facts={**_HELD, "resilient.pool.reused": attrgetter("reused")},
        logged=True,
    ),
    events.ConnectionReclaimed: Narration(
        "resilient.pool.connection_reclaimed",
        _WARN,
        "pool {0.policy!r}: a connection was taken away after {0.held_for:.3g} s; borrowed at {0.where}",
        facts=_HELD,
        logged=True,
    ),
    events.ConnectionDiscarded: Narration(
        "resilient.pool.connection_discarded",
        _INFO,
        "pool {0.policy!r}: a connection was broken, and closed",
        logged=True,
    ),
    events.PoolUnavailable: Narration(
        "resilient.pool.unavailable",
        _WARN,
        "pool {0.policy!r} cannot connect, {0.failures} times in a row: {1}",
        facts={"resilient.pool.connect_failures": attrgetter("failures"), ERROR: _error_class},
        logged=True,
    ),
    events.PoolAvailable: Narration(
        "resilient.pool.available",
        _INFO,
        "pool {0.policy!r} has connected again, after {0.seconds:.3g} s",
        facts={"resilient.pool.unavailable_for": attrgetter("seconds")},
        logged=True,
    ),
    events.HealthChanged: Narration(
        "resilient.health.changed",
        _WARN,
        "health of {0.policy!r}: {0.status}, no longer {0.previous}",
        None,
        {
            "resilient.health.check.name": attrgetter("policy"),
            "resilient.health.state": _word("status"),
            "resilient.health.previous_state": _word("previous"),
        },
        relief=lambda event: event.status == "pass",
        logged=True,
    ),
}
"""What is told, by the class of the event."""
