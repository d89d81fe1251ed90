"""The pools of a replica set as a read sees them: how busy each is, and whether it lets the read in."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Any, Final

from ...engine.clock import MONOTONIC
from ...engine.drive.gates import Gate
from ...engine.fork import renew_after_fork
from ...engine.latency import Recorder
from ...engine.permits import Permit
from ...engine.priority import Priority
from ...engine.waiting import Waiter
from ...errors import CircuitOpenError, PoolTimeoutError, PoolUnavailableError
from ...events import (
    CircuitHalfOpened,
    CircuitOpened,
    CircuitOverridden,
    CircuitResumed,
    Event,
    PoolAvailable,
    PoolUnavailable,
    error_text,
)
from ...policies.bulkhead.line import Turn
from ...policies.bulkhead.sampler import Outcome
from ...policies.bulkhead.slots import Books, Rules, Slots
from ...policies.circuit_breaker.breaker import CircuitBreaker
from ...policies.circuit_breaker.states import Mode, Probe, State
from ...typing import Clock
from ..front import Front
from ..members import Gone, Token

__all__ = ["PATIENCE", "Node", "Primary", "Replica"]

PATIENCE: Final = 0.5
"""Seconds of waiting in vain that say something about a server, and the most that a probe waits."""

_HUNG: Final = 1.0  # seconds for which all connections are held where a server does not answer any more

# Seconds after which a breaker is asked again that has refused: where probes are under way, and elsewhere.
_PROBE_SOON: Final = 0.1
_LOOK_AGAIN: Final = 1.0


class Node:
    """A pool to read from, behind a gate.

    Concurrency: safe from any thread.
    """

    __slots__ = ("__weakref__", "admit", "alert", "core", "gate", "idle", "pool", "roster", "stock")

    def __init__(self, pool: Front[Any, Any], gate: Gate) -> None:
        self.pool: Final = pool
        self.gate: Final = gate
        self.admit: Final = gate.admit
        self.core: Final = pool._core  # noqa: SLF001 - a replica set is a pool made of pools
        self.stock: Final = self.core.stock
        self.alert: Final = self.stock.alert
        self.idle: Final = self.stock.idle
        self.roster: Final = self.stock.roster

    def begin(self, waiter: Callable[[], Waiter]) -> Any:  # noqa: ARG002 - here nobody waits
        """Return a ticket.

        Raises:
            RejectedError: none is to be had.
        """
        return self.admit(None, (), {})

    @property
    def load(self) -> float:
        """How many want its connections, those that have one included, for each that there may be."""
        if not self.alert:  # nobody waits
            return (len(self.roster) - len(self.idle)) / self.stock.max_size
        stats = self.core.stats()
        return (stats.used + stats.waiting) / stats.max_size

    def failed(self, ticket: Any, exc: BaseException, waited: float) -> None:
        """Note that no connection was to be had in *waited* seconds."""
        if isinstance(exc, PoolUnavailableError) or (
            isinstance(exc, PoolTimeoutError)
            and (waited >= PATIENCE or isinstance(ticket, Probe))
            and not self._is_busy(exc)
        ):
            self.blame(ticket, exc)
        else:
            self.gate.abandon(ticket, exc)

    def ended(self, ticket: Any, token: Token, exc: BaseException) -> None:
        """Note that the use of a connection ended with *exc*; to be called before it is given back.

        It is evidence only if the pool finds the connection broken by it. What a query or the code around it
        got wrong is not the server's fault.
        """
        lost = isinstance(token.member, Gone)  # taken away, for having been held too long
        if isinstance(exc, Exception) and not lost and self.core.handling.is_broken(token.conn, exc):
            self.blame(ticket, exc)
        else:
            self.gate.abandon(ticket, exc)

    def blame(self, ticket: Any, exc: Exception) -> None:
        """Note that the server failed, as *exc* says."""
        # Not the exception itself: a pool's refusal is no evidence for a breaker, and here it is meant to be.
        try:  # noqa: SIM105 - three frames less
            self.gate.failure(ticket, ConnectionError(error_text(exc)))
        except CircuitOpenError:  # of a breaker that was told to raise in place of what tripped it
            pass

    def _is_busy(self, exc: PoolTimeoutError) -> bool:
        """Tell whether all connections were lent, and of use to their borrowers."""
        if exc.last_failure is not None or exc.used != exc.size:
            return False
        held = [borrower.held_for for borrower in self.pool.borrowers()]
        return not held or min(held) < _HUNG


class Replica(Node):
    """A pool behind a breaker."""

    __slots__ = (
        "_changed",
        "_clock",
        "_machine",
        "_override",
        "breaker",
        "held",
        "lag",
        "measured",
        "retry_at",
    )

    def __init__(
        self, pool: Front[Any, Any], breaker: CircuitBreaker, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._machine: Final = breaker._core  # noqa: SLF001 - `calling()` would make an object for each read
        super().__init__(pool, self._machine)
        self.breaker: Final = breaker
        self._clock = clock
        self._changed = changed
        self.retry_at = -inf  # when a read may be let in again, as far as is known, if it is not up
        self.lag: float | None = None  # seconds
        self.measured: float | None = None  # when that was
        self.held: str | None = None  # why it is kept from being read, by us
        self._override = breaker.stats().override  # how the breaker was set by hand, as its events tell
        breaker.add_listener(self._on_breaker)
        pool.add_listener(self._on_pool)

    @property
    def is_up(self) -> bool:
        """Whether it is to be read from like any other."""
        if self.stock.closed:
            return False
        if self.breaker.current_state == State.CLOSED.value:
            return True
        return self._override == Mode.OBSERVE_ONLY

    @property
    def state(self) -> str:
        """Why it is not read from, in words."""
        return "closed" if self.stock.closed else self.held or f"its breaker is {self.breaker.current_state}"

    def refused(self, refusal: CircuitOpenError) -> None:
        """Note that the breaker did not let a read in."""
        # Soon enough, whatever it says: it may have changed before this is noted, and its event with it. And
        # a probe that says nothing gives its place back without an event.
        most = _PROBE_SOON if self.breaker.current_state == State.HALF_OPEN.value else _LOOK_AGAIN
        wait = refusal.retry_after
        self.retry_at = self._clock() + (most if wait is None else min(wait, most))

    def hold(self, why: str) -> None:
        """Keep it from being read, unless somebody has said otherwise by hand."""
        if self._override is None:
            self.held = why
            self.breaker.force_open(reason=why)

    def release(self) -> None:
        """Let it be read again: by a probe at first."""
        if self.held is not None:
            self.held = None
            self.breaker.resume()

    def _on_breaker(self, event: Event) -> None:
        match event:
            case CircuitOpened():
                self.retry_at = self._clock() + event.open_for
            case CircuitHalfOpened():
                self.retry_at = -inf
            case CircuitOverridden():
                self.retry_at = -inf  # the breaker will say when
                self._override = event.mode
                if event.reason != self.held:
                    self.held = None
            case CircuitResumed():
                self.held = self._override = None
            case _:
                pass
        self._changed()

    def _on_pool(self, event: Event) -> None:
        if self._override is not None:
            return
        state = self.breaker.current_state
        match event:
            case PoolUnavailable() if state != State.OPEN.value:
                # What the pool knows need not be found out by one read after the other.
                self._machine.open_now(f"its pool cannot connect: {event.error}")
            case PoolAvailable() if state == State.OPEN.value:
                self.breaker.half_open()  # no need to wait for the end of its pause
            case _:
                pass


class Primary(Node):
    """The primary's pool, for reads.

    Args:
        pool: that pool.
        share: the share of its connections that they may have at a time; None: all of them.
    """

    __slots__ = ("_share", "books", "slots")

    def __init__(self, pool: Front[Any, Any], share: float | None) -> None:
        self._share = share
        rules = _rules(f"reads of {pool.name}")
        self.books: Final = Books(Recorder(rules.clock))
        self.slots: Final = Slots(rules, 1, self.books)
        super().__init__(pool, _Slotted(self.slots))
        renew_after_fork(self)

    @property
    def limit(self) -> int:
        """How many reads it may serve at a time, if that is limited."""
        return max(1, int((self._share or 1.0) * self.stock.max_size))

    def begin(self, waiter: Callable[[], Waiter]) -> Permit | Turn | None:
        """Return a ticket, or a turn to wait for one.

        Raises:
            BulkheadFullError: too many wait already.
        """
        if self._share is None:
            return None
        if self.slots.limit != self.limit:
            self.slots.resize(self.limit)
        return self.slots.begin(Priority.DEFAULT, waiter)

    def after_fork(self) -> None:
        """Begin anew: those that read were threads of the parent."""
        self.books.lock = threading.RLock()
        self.slots.after_fork()


class _Slotted:
    """The gate of those who have a slot, or need none."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def admit(self, fn: Any, args: Any, kwargs: Any, /) -> None:
        """Let anybody in."""

    admit_stream = admit

    def success(self, ticket: Permit | None, result: Any, /) -> None:  # noqa: ARG002
        """Have the slot free."""
        if ticket is not None:
            self._slots.leave(ticket, Outcome.NOTHING)

    def failure(self, ticket: Permit | None, exc: Exception, /) -> None:  # noqa: ARG002
        """Have the slot free."""
        self.success(ticket, None)

    def abandon(self, ticket: Permit | None, exc: BaseException, /) -> None:  # noqa: ARG002
        """Have the slot free."""
        self.success(ticket, None)


def _rules(name: str) -> Rules:
    return Rules(
        name=name, max_wait=inf, max_queue=None, newest_first=False, shares=None, reserve=0, clock=MONOTONIC
    )
