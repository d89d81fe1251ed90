"""The breaker's vocabulary: states, rules, periods, tickets. No behaviour beyond what a value needs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias

from ...engine.window import Calls

__all__ = [
    "DEFAULT_RESET_TIMEOUT",
    "LOST",
    "UNENFORCED",
    "CallHooks",
    "Mode",
    "Override",
    "Period",
    "Probe",
    "Refused",
    "Rules",
    "State",
    "Ticket",
]

DEFAULT_RESET_TIMEOUT: Final = 30.0


class State(StrEnum):
    """The breaker's states, in pybreaker's words."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Mode(StrEnum):
    """How somebody overrode a breaker by hand."""

    FORCED_OPEN = "forced open"
    FORCED_CLOSED = "forced closed"
    OBSERVE_ONLY = "observe only"


@dataclass(slots=True)
class Rules:
    """When a breaker opens and closes. None switches a rule off."""

    failure_ratio: float | None
    min_calls: int
    window: float | Calls
    fail_max: int | None
    slow_after: float | None
    slow_ratio: float
    reset_timeout: float | Callable[[int], float]
    probes: int
    success_threshold: int
    probe_timeout: float | None
    ramp: float


@dataclass(slots=True)
class Override:
    """An override by hand and its end."""

    mode: Mode
    until: float
    reason: str | None


class Period:
    """One stay in a state."""

    __slots__ = ("credit", "probes", "ramp_until", "reason", "since", "state", "successes", "until")

    def __init__(
        self, state: State, since: float, until: float = math.inf, ramp_until: float = -math.inf
    ) -> None:
        self.state = state
        self.since = since
        self.until = until  # of an open period: when the first probe may go
        self.ramp_until = ramp_until  # of a closed one: until when traffic is let back in step by step
        self.reason = ""  # of an open one: what opened it
        self.credit = 1.0
        self.successes = 0
        self.probes: dict[int, weakref.ref[Probe]] = {}


class Probe:
    """A place in a half-open period. The place belongs to this object: when it dies, the place is free.

    An interrupt between the admission and the guarded call's `try` would lose a counted place for ever; a
    place that is owned by a live object comes back by itself.
    """

    __slots__ = ("__weakref__", "above", "key", "period", "started")

    def __init__(self, period: Period, started: float, key: int) -> None:
        self.period = period
        self.started = started
        self.key = key
        self.above: weakref.ref[Probe] | None = None


Ticket: TypeAlias = Period | tuple[Period, float] | Probe


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer "no", and in how many seconds it may be worth asking again."""

    retry_after: float | None


class CallHooks(Protocol):
    """What is told of every single call; see `BreakerCore.watch`. Must not raise."""

    def before_call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None: ...
    def success(self) -> None: ...
    def failure(self, exc: Exception) -> None: ...


# A call that is let through although the breaker would have refused it; its result is dropped.
UNENFORCED: Final = Period(State.CLOSED, 0.0)

# Where the result of a probe belongs that lost its place before it ended: to no period any more.
LOST: Final = Period(State.HALF_OPEN, 0.0)
