"""What is said of a borrower that keeps a connection too long, or loses it: as an event, and in the log.

Two steps, because only the first may be taken under a pool's lock: `Announcer.post` puts an event in its
place among the others, `tell` writes the log and calls the listeners.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from ..events import (
    Announcer,
    ConnectionCollected,
    ConnectionDiscarded,
    ConnectionLeaked,
    ConnectionReclaimed,
    ConnectionReturnedLate,
    Event,
    PoolAvailable,
    PoolUnavailable,
)
from .borrowers import Borrower

__all__ = ["collection_of", "late_return_of", "leak_of", "reclaim_of", "tell"]

_log = logging.getLogger("resilient")

_FATES: Final = {True: "it is back in the pool", False: "it was closed"}


def leak_of(pool: str, borrower: Borrower) -> ConnectionLeaked:
    """Return the event for a borrower that holds a connection of *pool* for too long."""
    return ConnectionLeaked(
        pool, borrower.held_for, borrower.where, borrower.stack, borrower.thread, borrower.task
    )


def late_return_of(pool: str, borrower: Borrower) -> ConnectionReturnedLate:
    """Return the event for a borrower that gave its connection back after it was reported."""
    return ConnectionReturnedLate(pool, borrower.held_for, borrower.where)


def collection_of(pool: str, borrower: Borrower, *, reused: bool) -> ConnectionCollected:
    """Return the event for a borrower that the garbage collector found; *reused*: the connection lives on."""
    return ConnectionCollected(
        pool, borrower.held_for, borrower.where, borrower.stack, borrower.thread, borrower.task, reused
    )


def reclaim_of(pool: str, borrower: Borrower) -> ConnectionReclaimed:
    """Return the event for a borrower whose connection was taken away."""
    return ConnectionReclaimed(
        pool, borrower.held_for, borrower.where, borrower.stack, borrower.thread, borrower.task
    )


def tell(announcer: Announcer, *events: Event) -> None:
    """Write *events*, which have been posted, to the log, and have all that is posted delivered.

    Concurrency: to be called without a lock: handlers of the log and listeners are the user's.
    """
    for event in events:
        # A filter or a handler that fails must not reach whoever returned a connection just now.
        with contextlib.suppress(Exception):
            _write(event)
    announcer.deliver()


def _write(event: Event) -> None:
    match event:
        case ConnectionLeaked():
            _log.warning(
                "pool %r: a connection has been held for %.1f s, by %s; it may have been forgotten.%s",
                event.policy,
                event.held_for,
                _who(event.thread, event.task),
                _place(event.where, event.stack),
            )
        case ConnectionReturnedLate():
            _log.info(
                "pool %r: a connection that was reported as held too long has been returned after %.1f s; "
                "borrowed at %s",
                event.policy,
                event.held_for,
                event.where,
            )
        case ConnectionCollected():
            _log.warning(
                "pool %r: a connection was forgotten: its borrower, %s, was garbage-collected after %.1f s "
                "without returning it; %s.%s",
                event.policy,
                _who(event.thread, event.task),
                event.held_for,
                _FATES[event.reused],
                _place(event.where, event.stack),
            )
        case ConnectionReclaimed():
            _log.warning(
                "pool %r: a connection was taken from %s after %.1f s, and closed.%s",
                event.policy,
                _who(event.thread, event.task),
                event.held_for,
                _place(event.where, event.stack),
            )
        case PoolUnavailable():
            _log.warning(
                "pool %r cannot connect, %d times in a row; whoever finds no connection is refused: %s",
                event.policy,
                event.failures,
                event.error,
            )
        case PoolAvailable():
            _log.info("pool %r has connected again, after %.1f s", event.policy, event.seconds)
        case ConnectionDiscarded():
            _log.info("pool %r: a connection was broken, and closed: %s", event.policy, event.reason)
        case _:
            pass


def _who(thread: str, task: str | None) -> str:
    return f"thread {thread}" if task is None else f"task {task} in thread {thread}"


def _place(where: str, stack: tuple[str, ...]) -> str:
    """Return where it was borrowed, and by which way, innermost first."""
    way = stack[1:] if stack[:1] == (where,) else stack
    return "".join(f"\n    {line}" for line in (f"Borrowed at {where}", *way))
