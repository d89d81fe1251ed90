"""The names users need to annotate their own code with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, ParamSpec, TypeAlias, TypeVar

__all__ = ["Clock", "FailureRule", "P", "Predicate", "Seconds", "T"]

P = ParamSpec("P")
T = TypeVar("T")

Seconds: TypeAlias = float | timedelta
"""A duration: seconds as a number, or a `timedelta`."""

Clock: TypeAlias = Callable[[], float]
"""A monotonic clock: seconds from an arbitrary start, never going back."""

Predicate: TypeAlias = Callable[[Any], bool | float | None]
"""Judges an exception or a result: yes, no, or yes with a number of seconds."""

FailureRule: TypeAlias = type[Exception] | Predicate | Collection["type[Exception] | Predicate"]
"""What counts as a failure: exception types, predicates, or a tuple (list, set) of both."""
