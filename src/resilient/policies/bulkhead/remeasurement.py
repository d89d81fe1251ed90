"""Measuring the baseline anew, at half the limit: where there is no queue of our own making."""

from __future__ import annotations

import random
from abc import ABCMeta, abstractmethod
from typing import Final

from .limits import AdaptiveLimit, Window

__all__ = ["MeasuredAlgorithm"]

_JITTER: Final = 0.15  # of the interval: many processes before one dependency must not all do it at once
_SAMPLES: Final = 50
_SAMPLES_A_SLOT: Final = 10  # the higher the limit, the smaller the queue beside it that has to be told
_SECONDS: Final = 2.0  # where calls are rare, fewer must do
_ROUNDS: Final = 4.0  # but not those alone that are quick to come back
_QUEUED: Final = 0.6  # calls that take so much less at half the limit did little but wait in our own queue
_FIRST_INTERVAL: Final = 0.125  # of the interval; then twice that, and so on: the first ones know little
_RECENT: Final = 0.3  # the weight of the last window in what calls take now


class _Measurement:
    """Says when to measure, and gathers what is measured.

    Concurrency: requires external locking.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._pause = interval * _FIRST_INTERVAL
        self._due = now  # the first one at once: nothing is known of the limit to begin with
        self._level = 0.0
        self.active = False
        self.epoch = 0
        self.count = 0
        self._since = now
        self._longest = 0.0
        self._enough = 0.0
        self._total = 0.0
        self._samples = 0

    def is_due(self, limit: float, now: float) -> bool:
        """Tell whether it is time to measure."""
        return now >= self._due or 2.0 * limit <= self._level

    def begin(self, limit: float, rtt: float, now: float) -> None:
        """Begin to measure, from *limit*, at which calls take *rtt*. Those under way already do not count."""
        self.active = True
        self.epoch += 1
        self._since = now
        self._longest = max(_SECONDS, _ROUNDS * rtt)
        self._enough = max(_SAMPLES, _SAMPLES_A_SLOT * limit / 2.0)
        self._total = 0.0
        self._samples = 0

    def add(self, window: Window, now: float) -> float | None:
        """Take *window* in, and return what calls take if there is enough to tell."""
        self._total += window.rtt * window.samples
        self._samples += window.samples
        if not self._samples or (self._samples < self._enough and now - self._since < self._longest):
            return None
        return self._total / self._samples

    def end(self, limit: float, now: float) -> None:
        """Let the limit be *limit* until the next time."""
        self.active = False
        self.count += 1
        self._level = limit
        self._due = now + self._pause * (1.0 + random.uniform(0.0, _JITTER))
        self._pause = min(2.0 * self._pause, self._interval)


class MeasuredAlgorithm(metaclass=ABCMeta):
    """An algorithm that goes by a baseline, which is measured anew now and then.

    A baseline that follows what calls take ends up following the queue that the limit itself lets grow, and
    the limit follows the baseline. So the limit is halved, every so often, until calls that were begun after
    that have told what they take. If that is little more than half, they have done nothing but wait: then
    the half is the limit, and half of it is tried.

    The same is done when the limit has fallen to half by itself. Where calls take no less by then, it is not
    the queue that takes the time: a dependency that has become slower for good is followed.

    Concurrency: requires external locking.
    """

    def __init__(self, settings: AdaptiveLimit, remeasure: float, now: float) -> None:
        self._bounded = settings.bounded
        self._estimate = float(settings.initial)
        self._measurement = _Measurement(remeasure, now)
        self._recent: float | None = None
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
        if self._measurement.active:
            self._measure(window, now)
            return
        if window.samples and window.rtt > 0.0:
            recent = window.rtt if self._recent is None else self._recent
            self._recent = recent + _RECENT * (window.rtt - recent)
        self._estimate = self._bounded(self._follow(self._estimate, window))
        if self._recent is not None and self._measurement.is_due(self._estimate, now):
            self._measurement.begin(self._estimate, self._recent, now)

    @abstractmethod
    def _follow(self, limit: float, window: Window) -> float:
        """Return what becomes of *limit* by *window*."""

    def _measure(self, window: Window, now: float) -> None:
        rtt = self._measurement.add(window, now)
        if rtt is None or self._recent is None:
            return
        half = self._bounded(self._estimate / 2.0)
        if rtt < _QUEUED * self._recent and half < self._estimate:
            self._estimate = half
            self._recent = rtt
            self._measurement.begin(half, rtt, now)
        else:
            self.baseline = rtt
            self._measurement.end(self._estimate, now)
