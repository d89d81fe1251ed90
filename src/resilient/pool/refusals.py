"""Why a caller gets no connection, in words that say what to look at."""

from __future__ import annotations

from typing import Final

from ..errors import PoolClosedError, PoolFullError, PoolTimeoutError, PoolUnavailableError
from .borrowers import Borrower
from .stats import PoolStats

__all__ = ["OLDEST", "closed", "full", "not_filled", "too_late", "unavailable"]

OLDEST: Final = 3
"""Borrowers that are named."""


def closed(name: str) -> PoolClosedError:
    """Return the refusal of a pool that is closed."""
    return PoolClosedError(f"pool {name!r} is closed", policy=name)


def full(name: str, waiting: int) -> PoolFullError:
    """Return the refusal of a pool for which too many wait."""
    message = f"pool {name!r} is full: {waiting} callers wait for a connection already"
    return PoolFullError(message, policy=name, waiting=waiting)


def unavailable(
    name: str, failures: int, last_failure: str | None, retry_after: float
) -> PoolUnavailableError:
    """Return the refusal of a pool whose server is known to be down."""
    message = (
        f"pool {name!r} has no connection to give, and cannot connect: {failures} failures in a row, the "
        f"last one was {last_failure}"
    )
    return PoolUnavailableError(message, policy=name, retry_after=retry_after, last_failure=last_failure)


def too_late(name: str, waited: float, stats: PoolStats, borrowers: list[Borrower]) -> PoolTimeoutError:
    """Return the refusal of a pool that had no connection in time."""
    oldest = tuple(borrowers[:OLDEST])
    when = f"in {waited:.3g} s" if waited else "at once"
    message = (
        f"pool {name!r} had no connection free {when}: {stats.used} of {stats.max_size} are lent, "
        f"{stats.idle} idle, {stats.connecting} being made, and {stats.waiting} callers wait"
    )
    if stats.last_failure is not None:
        message += f"; connecting failed last with {stats.last_failure}"
    if oldest:
        message += f"; held for longest: {'; '.join(map(str, oldest))}"
    return PoolTimeoutError(
        message,
        policy=name,
        size=stats.size,
        idle=stats.idle,
        used=stats.used,
        waiting=stats.waiting,
        borrowers=oldest,
        last_failure=stats.last_failure,
    )


def not_filled(waited: float, stats: PoolStats, name: str) -> PoolTimeoutError:
    """Return what to tell who waits for a pool to have the connections that it should have."""
    there, wanted = stats.idle + stats.used, max(stats.min_size, 1)
    message = f"pool {name!r} has {there} of {wanted} connections after {waited:.3g} s"
    if stats.last_failure is not None:
        message += f"; connecting failed last with {stats.last_failure}"
    return PoolTimeoutError(
        message,
        policy=name,
        size=stats.size,
        idle=stats.idle,
        used=stats.used,
        waiting=stats.waiting,
        last_failure=stats.last_failure,
    )
