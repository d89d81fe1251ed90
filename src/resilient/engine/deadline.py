"""The caller's deadline: until when an answer is of any use, carried by the context.

It nests (the earliest wins) and follows the context into tasks and, where the library starts them, threads.
"""

from __future__ import annotations

from contextvars import ContextVar

from ..typing import Clock

__all__ = ["Instant", "current_deadline", "innermost", "time_left"]


class Instant:
    """A moment on a clock until which a call wants its answer.

    When the call has ended, its instant is *over* and whoever still finds it looks at the one outside. So
    ending a call need not touch the context, which would cost more than all the rest; and work that a call
    leaves behind (a refresh in the background) is not bound by the deadline of a caller that has its answer.

    Whoever makes one sets its fields: a constructor would cost a frame on every call.
    """

    __slots__ = ("begun", "clock", "outer", "over", "when")

    begun: float  # set only where the call may be timed
    when: float
    clock: Clock
    outer: Instant | None
    over: bool


innermost: ContextVar[Instant | None] = ContextVar("resilient_deadline", default=None)
"""The deadline set last in this context; it may be over."""


def current_deadline() -> Instant | None:
    """Return the deadline that holds in this context."""
    instant = innermost.get()
    while instant is not None and instant.over:
        instant = instant.outer
    return instant


def time_left() -> float | None:
    """Return the seconds left until the caller's deadline.

    Returns:
        Seconds; 0 or less where the deadline has passed; None where there is no deadline.

    Concurrency: reads the current context only.
    """
    instant = current_deadline()
    return None if instant is None else instant.when - instant.clock()
