"""The breaker's vocabulary: states, rules, periods, tickets. No behaviour beyond what a value needs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from ...engine.latency import Latency
from ...engine.params import refuse
from ...engine.window import Calls, Counts

__all__ = [
    "DEFAULT_RESET_TIMEOUT",
    "LOST",
    "UNENFORCED",
    "BreakerStats",
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

    def check(self) -> None:
        """Refuse rules that cannot work together."""
        if isinstance(self.window, Calls) and self.min_calls > self.window.count:
            limit = f"must be at most the {self.window.count} calls of the window"
            refuse(ValueError, "min_calls", limit, self.min_calls)
        if self.failure_ratio is None and self.fail_max is None and self.slow_after is None:
            rule = "must be given where fail_max and slow_after are not, or the breaker could never open"
            refuse(ValueError, "failure_ratio", rule, None)

    def reason_to_open(self, window: Counts, consecutive: int) -> str | None:
        """Return which rule says to open, if any, given the window and the failures in a row."""
        if self.fail_max is not None and consecutive >= self.fail_max:
            return f"{consecutive} failures in a row"
        calls, failures, slow = window
        if not calls or calls < self.min_calls:
            return None
        if self.failure_ratio is not None and failures / calls >= self.failure_ratio:
            return f"{failures} of {calls} calls failed"
        if self.slow_after is not None and slow / calls >= self.slow_ratio:
            return f"{slow} of {calls} calls were slow"
        return None

    @property
    def stay_open(self) -> float:
        """Seconds to stay open, as far as they are known without asking the user's function."""
        return DEFAULT_RESET_TIMEOUT if callable(self.reset_timeout) else self.reset_timeout

    @property
    def probe_lifetime(self) -> float:
        """Seconds for which a probe keeps its place."""
        if self.probe_timeout is not None:
            return self.probe_timeout
        # A reset timeout of 0 says when to probe, not that no probe ever holds a place.
        return self.slow_after or self.stay_open or DEFAULT_RESET_TIMEOUT


@dataclass(frozen=True, slots=True)
class BreakerStats:
    """What a breaker has counted, and where it stands.

    Attributes:
        state: "closed", "open" or "half-open", as the last call left it.
        override: how it is set by hand, or None.
        calls: calls that ended and were counted, since the start.
        failures: calls that failed, since the start.
        slow: calls that took longer than `slow_after`, since the start.
        rejected: calls that were refused, since the start.
        abandoned: calls given up by their caller, since the start.
        ignored: calls that ended in an exception that counts as nothing, since the start.
        stale: results that came after the state had changed, and were dropped, since the start.
        unenforced: calls let through that would have been refused: in observe-only, since the start.
        window_calls: calls in the window now; the ratio rules need `min_calls`.
        failure_ratio: share of the calls in the window that failed; 0 while it is empty.
        slow_ratio: share of the calls in the window that were slow; 0 while it is empty.
        consecutive_failures: failures since the last success.
        opened_for: seconds since it opened; 0 while it is not open.
        times_opened: how often it opened, since the start.
        times_half_opened: how often it went to half-open, since the start.
        times_closed: how often it closed again, since the start.
        last_failure: the last failure, as text.
        latency: how long calls took lately, of those that were counted; streams are not timed.
    """

    state: str
    override: str | None
    calls: int
    failures: int
    slow: int
    rejected: int
    abandoned: int
    ignored: int
    stale: int
    unenforced: int
    window_calls: int
    failure_ratio: float
    slow_ratio: float
    consecutive_failures: int
    opened_for: float
    times_opened: int
    times_half_opened: int
    times_closed: int
    last_failure: str | None
    latency: Latency


@dataclass(slots=True)
class Override:
    """An override by hand and its end."""

    mode: Mode
    until: float
    reason: str | None

    def __str__(self) -> str:
        return f"{self.mode} ({self.reason or 'no reason given'})"


class Period:
    """One stay in a state."""

    __slots__ = ("ask", "credit", "probes", "ramp_until", "reason", "since", "state", "successes", "until")

    def __init__(
        self, state: State, since: float, until: float = math.inf, ramp_until: float = -math.inf
    ) -> None:
        self.state = state
        self.since = since
        self.until = until  # of an open period: when the first probe may go
        self.ramp_until = ramp_until  # of a closed one: until when traffic is let back in step by step
        self.reason = ""  # of an open one: what opened it
        self.ask: partial[float] | None = None  # and, until it has been asked, who knows for how long
        self.credit = 1.0
        self.successes = 0
        self.probes: dict[int, weakref.ref[Probe]] = {}  # of a half-open one: its places, by identity


class Probe:
    """A place in a half-open period. The place belongs to this object: when it dies, the place is free.

    An interrupt between the admission and the guarded call's `try` would lose a counted place for ever; a
    place that is owned by a live object comes back by itself.
    """

    __slots__ = ("__weakref__", "above", "period", "since", "timed_from")

    def __init__(self, period: Period, now: float) -> None:
        self.period = period
        self.since = now
        self.timed_from = now  # infinite for a stream: it is never slow
        self.above: weakref.ref[Probe] | None = None  # the probe that this one runs inside


Ticket: TypeAlias = Period | tuple[Period, float] | Probe


@dataclass(slots=True)
class Refused:
    """The answer "no": in how many seconds it may be worth asking again, and how the circuit is."""

    retry_after: float | None
    how: str = "open"


class CallHooks(Protocol):
    """What is told of every single call; see `BreakerCore.watch`. Must not raise."""

    def before_call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None: ...
    def success(self) -> None: ...
    def failure(self, exc: Exception) -> None: ...


# A call that is let through although the breaker would have refused it; its result is dropped.
UNENFORCED: Final = Period(State.CLOSED, 0.0)

# Where the result of a probe belongs that lost its place before it ended: to no period any more.
LOST: Final = Period(State.HALF_OPEN, 0.0)
