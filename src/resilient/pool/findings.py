"""What a pool says of itself where health asks: everything that is amiss, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..engine.finding import Fact, Finding, Status, worst
from .borrowers import Borrower

__all__ = ["Flaw", "told"]

Flaw = tuple[Status, str]
"""How bad it is, and what."""

_CROWDED: Final = 0.8
_FEW: Final = 5  # connections: of fewer, that share is all of them, which is no more than being in use


def told(
    flaws: list[Flaw],
    facts: Mapping[str, Fact],
    *,
    used: int,
    limit: int | None,
    waiting: int,
    leaked: int,
    borrowers: Callable[[], list[Borrower]],
) -> Finding:
    """Return what is to be said of a pool.

    Args:
        flaws: what is amiss with it beyond the connections that are lent.
        facts: its figures.
        used: connections that are lent.
        limit: the most there may be; None: no limit, or nobody knows.
        waiting: callers that wait for one.
        leaked: connections that were reported as held too long.
        borrowers: returns those who have one, the oldest first; asked only where somebody is to be named.
    """
    found = [*flaws]
    if leaked:
        found.append((Status.WARN, _leak(leaked, borrowers())))
    if limit and used >= limit and waiting:
        found.append((Status.WARN, f"all {limit} connections are lent, and {waiting} waiting"))
    elif limit and limit >= _FEW and used >= _CROWDED * limit:
        found.append((Status.WARN, f"{used} of {limit} connections are lent"))
    return Finding(
        worst(*(status for status, _ in found)),
        "; ".join(text for _, text in found),
        value=100.0 * used / limit if limit else float(used),
        unit="percent" if limit else "connections",
        facts=facts,
    )


def _leak(leaked: int, borrowers: list[Borrower]) -> str:
    what = "a connection has" if leaked == 1 else f"{leaked} connections have"
    oldest = next((borrower for borrower in borrowers if borrower.leaked), None)
    by = "" if oldest is None else f", the oldest by {oldest}"  # or it was returned just now
    return f"{what} been held for too long{by}"
