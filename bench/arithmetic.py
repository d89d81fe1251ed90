"""The few sums behind every figure, kept apart so that they can be tested."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles of *values*.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("values must not be empty")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, round by round.

    Both of a round were taken within the same fraction of a second, so what the machine did to one it did to
    the other: a ratio of two medians would mix fast rounds of one with slow rounds of the other.

    Raises:
        ValueError: If the two do not have as many rounds as each other.
    """
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours minus theirs, round by round, for the reason `ratios` has.

    Raises:
        ValueError: If the two do not have as many rounds as each other.
    """
    return [our - their for our, their in zip(ours, theirs, strict=True)]


def calls_for(seconds: float, *, calls: int, took: float) -> int:
    """Return how many calls fill *seconds*, given that *calls* of them *took* so long; at least 1."""
    return max(1, round(calls * seconds / took))
