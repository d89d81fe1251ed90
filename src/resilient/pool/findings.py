"""What a pool says of itself where health asks: everything that is amiss, the worst first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..engine.finding import Finding, Status, worst
from .borrowers import Borrower

if TYPE_CHECKING:
    from .stats import PoolStats
    from .watching.watched import WatchStats

__all__ = ["Flaw", "told"]

Flaw = tuple[Status, str]
"""How bad it is, and what."""

_CROWDED: Final = 0.8
_FEW: Final = 5  # connections: of fewer, that share is all of them, which is no more than being in use


def told(
    flaws: list[Flaw], stats: PoolStats | WatchStats, borrowers: Callable[[], list[Borrower]]
) -> Finding:
    """Return what is to be said of a pool.

    Args:
        flaws: what is amiss with it beyond the connections that are lent.
        stats: where it stands.
        borrowers: returns those who have one, the oldest first; asked only where somebody is to be named.
    """
    used, limit, waiting = stats.used, stats.max_size, stats.waiting
    found = [*flaws]
    if stats.leaked:
        found.append((Status.WARN, _leak(stats.leaked, borrowers())))
    if limit and used >= limit and waiting:
        found.append((Status.WARN, f"all {limit} connections are lent, and {waiting} waiting"))
    elif limit and limit >= _FEW and used >= _CROWDED * limit:
        found.append((Status.WARN, f"{used} of {limit} connections are lent"))
    return Finding(
        worst(*(status for status, _ in found)),
        "; ".join(text for _, text in found),
        value=100.0 * used / limit if limit else float(used),
        unit="percent" if limit else "connections",
        facts={
            "used": used,
            "idle": stats.idle,
            "max_size": limit,
            "waiting": waiting,
            "timeouts": stats.timeouts,
            "leaked": stats.leaked,
        },
    )


def _leak(leaked: int, borrowers: list[Borrower]) -> str:
    what = "a connection has" if leaked == 1 else f"{leaked} connections have"
    oldest = next((borrower for borrower in borrowers if borrower.leaked), None)
    by = "" if oldest is None else f", the oldest by {oldest}"  # or it was returned just now
    return f"{what} been held for too long{by}"
