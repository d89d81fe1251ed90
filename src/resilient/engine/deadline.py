"""The caller's deadline: until when an answer is of any use, carried by the context.

It nests (the earliest wins) and follows the context into tasks and, where the library starts them, threads.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TypeAlias

from ..typing import Clock

__all__ = ["Instant", "current_deadline", "time_left"]

Instant: TypeAlias = tuple[float, Clock]
"""A moment on a clock. A bare tuple, because one is made for every call with a time limit."""

current_deadline: ContextVar[Instant | None] = ContextVar("resilient_deadline", default=None)


def time_left() -> float | None:
    """Return the seconds left until the caller's deadline.

    Returns:
        Seconds; 0 or less where the deadline has passed; None where there is no deadline.

    Concurrency: reads the current context only.
    """
    instant = current_deadline.get()
    return None if instant is None else instant[0] - instant[1]()
