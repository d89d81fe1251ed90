"""What a decision is asked about: whose permits, and how many."""

from __future__ import annotations

from typing import Final

from ...engine.keys import compact
from .quota import permits

__all__ = ["checked"]

_ONE: Final = 1  # compared by identity: True and 1.0 are equal to it, and no whole numbers here


def checked(key: str, cost: int) -> str:
    """Return *key* as it is kept in a store; refuse what is no key, and a *cost* that is none."""
    if cost is not _ONE:
        permits("cost", cost)
    return compact(key)
