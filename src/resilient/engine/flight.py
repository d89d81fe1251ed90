"""Single flight: one load for everybody who wants the same thing at the same time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from .waiting import Waiter

__all__ = ["Flight", "Follow", "Lead", "Outcome", "Serve", "Step"]


class Outcome(Enum):
    """How a flight ended."""

    PENDING = auto()
    LANDED = auto()  # `entry` is the answer, loaded or last known good
    FAILED = auto()  # `error` is
    ABANDONED = auto()  # nobody knows: whoever still wants the value tries again


class Flight:
    """One load of one key. Its fields are guarded by the lock of whoever made it until it has ended."""

    __slots__ = (
        "background",
        "cancel",
        "entry",
        "error",
        "keep",
        "key",
        "outcome",
        "raised",
        "stale",
        "waiters",
    )

    def __init__(self, key: Hashable, *, background: bool) -> None:
        self.key = key
        self.background = background
        self.keep = True  # False once the key was put or invalidated: the result is for the waiters only
        self.outcome = Outcome.PENDING
        self.entry: Any = None
        self.stale: Any = None  # set where `entry` is the last known good
        self.error: Exception | None = None  # without a traceback: that would lead back to this object
        self.raised: BaseException | None = None  # what ended a load in a task, for whoever began it
        self.waiters: list[Waiter] = []
        self.cancel: Callable[[], None] | None = None  # ends a load that nobody waits for any more


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Lead:
    """Load, and settle *flight*. Held by whoever loads, and by nobody else.

    When it dies before the flight has ended, the loader is gone (an interrupt can come between any two
    steps), and the flight is abandoned: the others would wait for ever.
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
