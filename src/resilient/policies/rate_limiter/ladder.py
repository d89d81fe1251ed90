"""What a limiter stands on: the store that all processes share and, while that is away, what is left."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from ...engine.drive.gates import GateBlock
from ...engine.finding import Status
from ...engine.fork import renew_after_fork
from ...events import Announcer, CircuitClosed, CircuitOpened, Event, RungChanged
from ...typing import Clock
from ..circuit_breaker.core import BreakerCore
from ..circuit_breaker.states import Rules
from .book import Book
from .decision import Decision, Source
from .quota import Quota

__all__ = ["LOCAL", "SHARED", "Ladder", "Outage", "StoreBusyError"]

SHARED: Final = "shared"
LOCAL: Final = "local"

# A decision that fails costs its caller the whole timeout, so few are enough to go down; and coming back is
# tried often, because what the processes let in on their own is only a share of what they may.
_FAILURES: Final = 3
_LONGEST_PAUSE: Final = 1.0


_WITHOUT: Final = {
    LOCAL: "the shared store is away, and this process counts for itself",
    "allow": "the shared store is away, and every call is let in",
    "deny": "the shared store is away, and no call is let in",
}


def _reset_timeout(times_in_a_row: int) -> float:
    return min(_LONGEST_PAUSE, 0.25 * 2.0 ** min(times_in_a_row - 1, 10))


_RULES: Final = Rules(
    failure_ratio=0.5,
    min_calls=20,
    window=10.0,
    fail_max=_FAILURES,
    slow_after=None,
    slow_ratio=1.0,
    reset_timeout=_reset_timeout,
    probes=1,
    success_threshold=1,
    probe_timeout=_LONGEST_PAUSE,
    ramp=0.0,
)


class StoreBusyError(Exception):
    """Tell that a request to the shared store ran out of time, and that this says nothing about the store."""


class Outage(NamedTuple):
    """What to do without the shared store: "local", "allow" or "deny", as one of *instances* processes."""

    rung: str
    instances: int


class Ladder:
    """Knows on which rung decisions are made, and makes them where the shared store does not.

    A single decision that fails is made below and changes nothing. When a breaker finds that they all fail,
    the rung changes, and changes back when a probe was answered.

    Concurrency: safe from any thread, task and loop.
    """

    def __init__(
        self,
        name: str,
        quotas: Sequence[Quota],
        book: Book,
        *,
        outage: Outage,
        clock: Clock,
        announcer: Announcer,
    ) -> None:
        self.rung = SHARED
        self.allowed = self.denied = self.fallbacks = self.errors = 0
        self.book = book
        self.name = name
        self._quota = min(quotas, key=lambda quota: quota.burst)
        self._below = outage.rung
        self._clock = clock
        self._announcer = announcer
        private = Announcer(private=True)
        private.listeners.add(self._follow)
        self._breaker = BreakerCore(name, _RULES, clock, _is_failure, announcer=private)
        self.after_fork()
        renew_after_fork(self)

    def standing(self) -> tuple[Status, str]:
        """Tell how the shared store is doing, and what is done without it."""
        if self.rung == SHARED:
            return Status.PASS, ""
        found = self._breaker.finding()
        fails = self.rung == "deny" and found.status is Status.FAIL
        return Status.FAIL if fails else Status.WARN, f"{_WITHOUT[self.rung]}: the circuit is {found.output}"

    def ascent(self) -> GateBlock:
        """Return a block around a request to the shared store; entering it raises where there is no use."""
        return GateBlock(self._breaker)

    def made(self, decision: Decision) -> Decision:
        """Count a decision of the shared store."""
        with self._lock:
            if decision.allowed:
                self.allowed += 1
            else:
                self.denied += 1
        return decision

    def failed(self) -> None:
        """Count a request to the shared store that failed."""
        with self._lock:
            self.errors += 1

    def fall_back(self, key: str, cost: int, patience: float, *, spend: bool) -> Decision:
        """Decide without the shared store."""
        decision = self._decide_below(key, cost, patience, spend=spend)
        if spend:
            with self._lock:
                self.fallbacks += 1
            self.made(decision)
        return decision

    def _decide_below(self, key: str, cost: int, patience: float, *, spend: bool) -> Decision:
        if self._below == LOCAL:
            return self.book.decide(key, cost, patience, spend=spend)
        source, now = Source(self._below, self._quota), self._clock()
        if self._below == "allow":
            return Decision((source, True, 0.0, 0.0, self._quota.burst, key, cost, now))
        return Decision((source, False, _LONGEST_PAUSE, _LONGEST_PAUSE, 0, key, cost, now))

    def _follow(self, event: Event) -> None:
        if isinstance(event, CircuitOpened) and event.in_a_row == 1:
            self._move(self._below, f"{event.reason}; the last one: {self._breaker.last_failure}")
        elif isinstance(event, CircuitClosed):
            self._move(SHARED, "the store answers again")

    def _move(self, rung: str, reason: str) -> None:
        previous, self.rung = self.rung, rung
        self._announcer.announce(RungChanged(self.name, rung, previous, reason))

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()


def _is_failure(exc: Exception) -> bool:
    return not isinstance(exc, StoreBusyError)
