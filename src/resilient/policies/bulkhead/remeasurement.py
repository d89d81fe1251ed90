"""Measuring the baseline anew, at half the limit: where there is no queue of our own making."""

from __future__ import annotations

import random
from abc import ABCMeta, abstractmethod
from typing import Final

from .limits import AdaptiveLimit, Window

__all__ = ["MeasuredAlgorithm"]

_JITTER: Final = 0.15  # of the interval: many processes before one dependency must not all do it at once
_SAMPLES: Final = 50
_SECONDS: Final = 2.0  # where calls are rare, fewer must do


class _Remeasurement:
    """Says when to measure, and gathers what is measured.

    A baseline that only follows what calls take ends up following the queue that the limit itself lets grow.
    So the limit is halved, every so often, until calls that were begun after that have told what they take.
    And where the limit has fallen to half by itself and calls take no less, it is not the queue that takes
    the time: that too is measured, so a dependency that has become slower for good is followed.

    Concurrency: requires external locking.
    """

    __slots__ = ("_due", "_interval", "_level", "_samples", "_since", "_total", "active", "count", "epoch")

    def __init__(self, interval: float, limit: float, now: float) -> None:
        self._interval = interval
        self.active = False
        self.epoch = 0
        self.count = 0
        self._since = now
        self._total = 0.0
        self._samples = 0
        self._rest(limit, now)

    def due(self, limit: float, now: float) -> bool:
        """Tell whether it is time to measure."""
        return now >= self._due or 2.0 * limit <= self._level

    def begin(self, now: float) -> None:
        """Begin to measure. What was begun before this moment does not count."""
        self.active = True
        self.epoch += 1
        self._since = now
        self._total = 0.0
        self._samples = 0

    def add(self, window: Window, limit: float, now: float) -> float | None:
        """Take *window* in, and return the baseline if there is enough to tell."""
        self._total += window.rtt * window.samples
        self._samples += window.samples
        if not self._samples or (self._samples < _SAMPLES and now - self._since < _SECONDS):
            return None
        self.active = False
        self.count += 1
        self._rest(limit, now)
        return self._total / self._samples

    def _rest(self, limit: float, now: float) -> None:
        self._level = limit
        self._due = now + self._interval * (1.0 + random.uniform(0.0, _JITTER))


class MeasuredAlgorithm(metaclass=ABCMeta):
    """An algorithm that goes by a baseline, which is measured anew now and then.

    Concurrency: requires external locking.
    """

    def __init__(self, settings: AdaptiveLimit, remeasure: float, now: float) -> None:
        self._bounded = settings.bounded
        self._estimate = float(settings.initial)
        self._measurement = _Remeasurement(remeasure, self._estimate, now)
        self.baseline: float | None = None

    @property
    def limit(self) -> float:
        """How many calls may be in flight now."""
        return self._bounded(self._estimate / 2.0) if self._measurement.active else self._estimate

    @property
    def epoch(self) -> int:
        """Of calls that were begun in an earlier epoch nothing must be learnt."""
        return self._measurement.epoch

    @property
    def measurements(self) -> int:
        """How often the baseline was measured."""
        return self._measurement.count

    def hold(self, limit: float) -> None:
        """Let the limit be *limit* at most."""
        self._estimate = min(self._estimate, self._bounded(limit))

    def update(self, window: Window, now: float) -> None:
        """Learn from *window*, which ends at *now*."""
        measurement = self._measurement
        if measurement.active:
            measured = measurement.add(window, self._estimate, now)
            self.baseline = self.baseline if measured is None else measured
            return
        self._estimate = self._bounded(self._follow(self._estimate, window))
        if measurement.due(self._estimate, now):
            measurement.begin(now)

    @abstractmethod
    def _follow(self, limit: float, window: Window) -> float:
        """Return what becomes of *limit* by *window*."""
