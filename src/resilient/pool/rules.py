"""What a pool is told once, and how a connection comes back to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ..typing import Clock

__all__ = ["Rules", "State"]


class State(Enum):
    """How a connection comes back."""

    CLEAN = auto()
    DIRTY = auto()
    BROKEN = auto()


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a pool as long as it lives; durations in seconds."""

    name: str
    timeout: float
    max_waiting: int | None
    max_idle: float
    max_lifetime: float
    jitter: float
    check_after_idle: float
    check_every: float | None
    check_timeout: float
    connect_timeout: float
    max_connecting: int
    leak_after: float | None
    max_hold: float | None
    """After how long a connection is taken from its borrower. None: never."""
    depth: int
    """Frames that are kept of a borrower's stack."""
    clock: Clock
