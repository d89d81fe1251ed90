"""What a context says of the request that is served in it: until when, and how much it matters.

A thread that has done with a request, or with a part of its body, serves others next: what holds for the one
must not hold for them.
"""

from __future__ import annotations

from typing import TypeAlias

from ..engine.deadline import Instant, innermost
from ..engine.priority import Priority, innermost_priority

__all__ = ["Surroundings", "restore", "surroundings", "swap"]

Surroundings: TypeAlias = tuple[Instant | None, Priority]
"""A deadline and a priority."""


def surroundings() -> Surroundings:
    """Return what holds in this context."""
    return innermost.get(), innermost_priority.get()


def restore(before: Surroundings) -> None:
    """Let hold again what held before.

    Not by tokens, which are good in their own context only: the rest of a body may be asked for in another.
    """
    innermost.set(before[0])
    innermost_priority.set(before[1])


def swap(inside: Surroundings) -> Surroundings:
    """Let *inside* hold, and return what held before."""
    before = surroundings()
    restore(inside)
    return before
