"""What there is in this process that has metrics to give, for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from .measure import Metered

__all__ = ["all_living", "forget", "remember", "when_one_comes"]

# Not a WeakSet: that runs Python code when one of them dies, in which an interrupt would be lost.
_living: set[weakref.ref[Metered]] = set()
_told: list[Callable[[], object]] = []


def remember(source: Metered) -> None:
    """Have *source* found by whoever collects metrics, for as long as it lives."""
    _living.add(weakref.ref(source, _living.discard))
    for tell in _told:
        tell()


def forget(source: Metered) -> None:
    """Have *source* found no more."""
    _living.discard(weakref.ref(source))


def when_one_comes(tell: Callable[[], object]) -> None:
    """Have *tell* called whenever there is something new."""
    _told.append(tell)


def all_living() -> list[weakref.ref[Metered]]:
    """Return all that there are now. Some may be gone when they are asked."""
    return list(_living)
