"""Single flight: one load for everybody who wants the same thing at the same time."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from .fork import renew_after_fork
from .waiting import Waiter

__all__ = ["Flight", "Follow", "Lead", "Outcome", "Serve", "Step", "Tie", "current_flight"]


class Outcome(Enum):
    """How a flight ended."""

    PENDING = auto()
    LANDED = auto()  # `entry` is the answer, loaded or last known good
    FAILED = auto()  # `error` is
    ABANDONED = auto()  # nobody knows: whoever still wants the value tries again


class Flight:
    """One load of one key. Its fields are guarded by the lock of whoever made it until it has ended."""

    __slots__ = (
        "awaits",
        "background",
        "begun",
        "cancel",
        "entry",
        "error",
        "keep",
        "key",
        "lead",
        "loop",
        "older",
        "outcome",
        "overdue",
        "raised",
        "running",
        "stale",
        "waiters",
    )

    def __init__(self, key: Hashable, *, background: bool, begun: float = 0.0) -> None:
        self.key = key
        self.begun = begun
        self.background = background
        self.running = not background  # a refresh may have to wait for a thread
        self.overdue = False  # somebody has waited for it as long as one may: the next one loads anew
        self.older: Flight | None = None  # the overdue one that this one stands in for
        self.keep = True  # False once the key was put or invalidated: the result is for the waiters only
        self.outcome = Outcome.PENDING
        self.entry: Any = None
        self.stale: Any = None  # set where `entry` is the last known good
        self.error: Exception | None = None  # without a traceback: that would lead back to this object
        self.raised: BaseException | None = None  # what ended a load in a task, for whoever began it
        self.waiters: list[Waiter] = []
        self.awaits: list[Flight] = []  # the loads that this one has begun, or waits for
        self.loop: asyncio.AbstractEventLoop | None = None  # where it runs as a task
        self.lead: weakref.ref[Lead] | None = None
        self.cancel: Callable[[], None] | None = None  # ends a load that nobody waits for any more

    @property
    def stranded(self) -> bool:
        """Whether it will never end: its loop was closed under it, or its lead has died."""
        closed = self.loop is not None and self.loop.is_closed()
        return closed or (self.lead is not None and self.lead() is None)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Lead:
    """Load, and settle *flight*. Held by whoever loads, and by nobody else.

    When it dies before the flight has ended, the loader is gone (an interrupt can come between any two
    steps), and the flight is stranded: the next caller begins anew, and those who wait find out by and by.
    """

    flight: Flight


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer with *entry*; if there is a *lead*, load in the background."""

    entry: Any
    stale: Any = None
    lead: Lead | None = None


@dataclass(frozen=True, slots=True)
class Follow:
    """Wait for *flight*."""

    flight: Flight


Step = Serve | Lead | Follow
"""What to do about a call that found nothing fresh."""


current_flight: ContextVar[Flight | None] = ContextVar("resilient_flight", default=None)
"""The load that this context is part of; it may have ended."""


class _Knots:
    """The lock on what waits for what. One for all caches: a circle may go through several.

    Taken only by loads inside loads.
    """

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self.lock = threading.RLock()


_knots = _Knots()


class Tie:
    """Notes, for as long as the block lasts, that the load this context is part of waits for *flight*.

    `holds` is False, and nothing is noted, where that would close a circle: a load that waits for itself,
    directly or through others, in whatever threads and tasks they are, would never end.

    The block may be left in another order than it was entered: the edge is found by identity.
    """

    __slots__ = ("_flight", "_outer", "holds")

    def __init__(self, flight: Flight) -> None:
        outer = current_flight.get()
        self._flight = flight
        self._outer = outer if outer is not None and outer.outcome is Outcome.PENDING else None
        self.holds = True

    def __enter__(self) -> bool:
        if self._outer is not None:
            with _knots.lock:
                self.holds = not _leads_to(self._flight, self._outer)
                if self.holds:
                    self._outer.awaits.append(self._flight)
        return self.holds

    def __exit__(self, *_: object) -> None:
        if self._outer is not None and self.holds:
            with _knots.lock:
                self._outer.awaits.remove(self._flight)


def _leads_to(start: Flight, goal: Flight) -> bool:
    seen: set[int] = set()
    ahead = [start]
    while ahead:
        flight = ahead.pop()
        if flight is goal:
            return True
        if id(flight) not in seen:
            seen.add(id(flight))
            ahead.extend(flight.awaits)
    return False
