"""Gradient: hold what calls take now against what they took in the longer run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from ...engine import params
from .limits import AdaptiveLimit, Window
from .remeasurement import MeasuredAlgorithm

__all__ = ["Gradient"]

_STEEPEST: Final = 0.5
_TOO_HIGH: Final = 2.0
_RECOVERY: Final = 0.95  # what a baseline that is too high is multiplied by with each window


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient(AdaptiveLimit):
    """Follow latency: the limit falls as calls take longer than they did in the longer run.

    With `gradient = clamp(tolerance * baseline / rtt, 0.5, 1)`, the limit moves towards
    `limit * gradient + queue`, by *smoothing* of the way with each window. The baseline is the mean over
    *long_window* windows, and measured anew every *remeasure* seconds.

    Args:
        initial: the limit to begin with; from *min_limit* to *max_limit*.
        min_limit: the least it can be; at least 1.
        max_limit: the most it can be; at least *min_limit*.
        window: how long calls are gathered before the limit is changed, in seconds; above 0.
        min_samples: how many calls are gathered at least; at least 1.
        pressure: what of the process itself lowers the limit as well. None: nothing does.
        smoothing: the share of the way the limit goes with each window; above 0, at most 1.
        queue: calls that may wait in the dependency; at least 1. What the limit grows by, too.
        long_window: windows that the baseline looks back on; at least 1.
        tolerance: by what factor calls may take longer before the limit falls; at least 1.
        backoff: the least that drops, in a window of nothing but drops, multiply the limit by; above 0, at
            most 1. Fewer drops lower it by their share.
        remeasure: seconds between measurements of the baseline, for which the limit is halved for a moment;
            above 0. Up to 15 % are added, by chance.

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
    backoff: float = 0.9
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
        super().__init__(settings, settings.remeasure, now)
        self._settings = settings
        self._is_new = True  # nothing has spoken against a higher limit so far

    def _follow(self, limit: float, window: Window) -> float:
        settings = self._settings
        if window.dropped:
            self._is_new = False
            return limit * max(settings.backoff, 1.0 - window.drop_ratio)
        if not window.samples or window.rtt <= 0.0:
            return limit
        baseline = self._learn(window.rtt)
        if 2 * window.peak < limit:
            return limit  # nobody has asked for more, so what calls take says nothing about the limit
        gradient = max(_STEEPEST, min(1.0, settings.tolerance * baseline / window.rtt))
        self._is_new = self._is_new and gradient == 1.0
        queue = max(float(settings.queue), limit) if self._is_new else settings.queue
        return limit + settings.smoothing * (limit * gradient + queue - limit)

    def _learn(self, rtt: float) -> float:
        """Return the baseline, with *rtt* taken into it. It only falls here: it rises when it is measured."""
        baseline = rtt if self.baseline is None else self.baseline
        if baseline > _TOO_HIGH * rtt:
            baseline *= _RECOVERY
        elif baseline > rtt:
            baseline += 2.0 / (self._settings.long_window + 1) * (rtt - baseline)
        self.baseline = baseline
        return baseline
