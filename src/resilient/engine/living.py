"""What there is in this process that has metrics to give, for as long as it lives."""

from __future__ import annotations

import weakref
from typing import Final

from .measure import Metered

__all__ = ["Place", "all_living", "forget", "remember"]

_FEW: Final = 64


class Place(weakref.ref[Metered]):
    """Where a source is found; one for each, and the same again when it comes back. Told apart by identity.

    Attributes:
        counts: whether it has counters of ours, which can be read right after a fork.
        excluded: whether nothing of it is to be told.
    """

    __slots__ = ("counts", "excluded")

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    counts: bool
    excluded: bool


# By identity: sources of others may be equal, or have no hash. Without callbacks for those that die: they run
# at any moment, and Python code in them would lose an interrupt. Who is gone is swept out now and then.
_places: dict[int, Place] = {}
_sweep_at = _FEW


def remember(source: Metered, *, counts: bool = True) -> None:
    """Have *source* found by whoever collects metrics, for as long as it lives.

    Args:
        source: what has measures; something that can be referred to weakly.
        counts: whether they may be read right after a fork, in the child: no lock of its parent's threads is
            in the way, and nothing is begun by it.
    """
    place = _places.get(id(source))
    if place is None or place() is not source:  # somebody's who had the same address once
        place = Place(source)
        place.counts = counts
    place.excluded = False
    _places[id(source)] = place
    if len(_places) >= _sweep_at:
        _sweep()


def forget(source: Metered) -> Place | None:
    """Have *source* found no more; return where it was, if it was anywhere."""
    place = _places.get(id(source))
    if place is None or place() is not source:
        return None
    place.excluded = True
    return place


def all_living() -> list[Place]:
    """Return all that there are now. Some may be gone when they are asked."""
    return [place for place in list(_places.values()) if not place.excluded and place() is not None]


def _sweep() -> None:
    global _sweep_at  # noqa: PLW0603
    for key, place in list(_places.items()):
        if place() is None and _places.get(key) is place:
            _places.pop(key, None)
    _sweep_at = max(_FEW, 2 * len(_places))
