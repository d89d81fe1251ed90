"""Gradient: hold what calls take now against what they take without a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from ...engine import params
from .limits import AdaptiveLimit, Window
from .remeasurement import MeasuredAlgorithm

__all__ = ["Gradient"]

_STEEPEST: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient(AdaptiveLimit):
    """Follow latency: the limit falls as calls take longer than they do without a queue.

    With `gradient = clamp(tolerance * baseline / rtt, 0.5, 1)`, the limit moves towards
    `limit * gradient + queue`, by *smoothing* of the way each time. It is moved once in the time that calls
    take to show the last move, and not before the window is full. The baseline is measured every *remeasure*
    seconds; between, while less than half of the limit is used, it is the mean over *long_window* moves.

    Args:
        initial: the limit to begin with; from *min_limit* to *max_limit*.
        min_limit: the least it can be; at least 1.
        max_limit: the most it can be; at least *min_limit*.
        window: how long calls are gathered before the limit is changed, in seconds; above 0.
        min_samples: how many calls are gathered at least; at least 1.
        pressure: what of the process itself lowers the limit as well. None: nothing does.
        smoothing: the share of the way the limit goes with each move; above 0, at most 1.
        queue: calls that may wait in the dependency; at least 1. What the limit grows by, too.
        long_window: moves that the baseline looks back on; at least 1.
        tolerance: by what factor calls may take longer before the limit falls; at least 1.
        backoff: the least that drops multiply the limit by, however many they are; above 0, at most 1. Fewer
            lower it by their share.
        remeasure: seconds between measurements of the baseline, for which the limit is halved for a moment;
            above 0. Up to 15 % are added, by chance. After a long one, ten times as long as it took.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable, so one may serve several bulkheads: each follows its own calls.

    Source: Gradient2Limit of Netflix' concurrency-limits; Envoy's adaptive concurrency for the measurement
        and for leaving out what was begun before it.
    """

    name: ClassVar[str] = "gradient"

    min_limit: int = 4
    smoothing: float = 0.2
    queue: int = 4
    long_window: int = 600
    tolerance: float = 1.5
    backoff: float = 0.5
    remeasure: float = 30.0

    def __post_init__(self) -> None:
        AdaptiveLimit.__post_init__(self)
        params.ratio("smoothing", self.smoothing)
        params.count("queue", self.queue)
        params.count("long_window", self.long_window)
        params.number("tolerance", self.tolerance, least=1.0)
        params.ratio("backoff", self.backoff)
        params.number("remeasure", self.remeasure, above=True, what="a number of seconds")

    def open(self, now: float) -> _State:
        """Return the state machine with these settings.

        Args:
            now: the time it begins at, in seconds.
        """
        return _State(self, now)


class _State(MeasuredAlgorithm):
    """Where a gradient limit stands.

    Concurrency: requires external locking.
    """

    def __init__(self, settings: Gradient, now: float) -> None:
        super().__init__(
            settings,
            remeasure=settings.remeasure,
            memory=settings.long_window,
            tolerance=settings.tolerance,
            now=now,
        )
        self._settings = settings

    def _drop(self, limit: float, seen: Window) -> float:
        return limit * max(self._settings.backoff, 1.0 - seen.drop_ratio)

    def _follow(self, limit: float, baseline: float, seen: Window) -> float:
        settings = self._settings
        gradient = max(_STEEPEST, min(1.0, settings.tolerance * baseline / seen.rtt))
        return limit + settings.smoothing * (limit * gradient + settings.queue - limit)
