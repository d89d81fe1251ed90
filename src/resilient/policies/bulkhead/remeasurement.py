"""Measuring the baseline anew, at ever lower limits: where there is no queue of our own making."""

from __future__ import annotations

import math
import random
from abc import ABCMeta, abstractmethod
from typing import Final, NamedTuple

from .limits import AdaptiveLimit, Window
from .rounds import Round

__all__ = ["MeasuredAlgorithm"]

_JITTER: Final = 0.15  # of the interval: many processes before one dependency must not all do it at once
_REST: Final = 10.0  # times as long as a measurement took, there is none
_SAMPLES: Final = 100
_FALLEN: Final = 0.5  # of what the limit was: it is measured why
_SECONDS: Final = 2.0  # where calls are rare, fewer must do
_ROUNDS: Final = 4.0  # but so many times what calls take
_SHORTER: Final = 0.65  # times what they took at twice the limit: most of it was waiting, as may be the rest
_CROWDED: Final = 1.2  # times the limit, and one: with so many in flight it is not the limit that is measured
_LONGER: Final = 1.3  # times that: the queue was still growing then
_TOO_HIGH: Final = 2.0  # times what calls take
_FALL: Final = 0.95  # what a baseline that is too high is multiplied by, with each round
_SETTLED: Final = 1.0  # times what calls take, after which they show a change of the limit
_ALL_NEW: Final = 3.0  # the same, where those that were begun before are left out: the long ones take time


class _Finding(NamedTuple):
    """What was measured: seconds a call takes without a queue, and how many end in a second at most."""

    rtt: float
    throughput: float


class _Measurement:
    """Says when to measure, and at which limit, and gathers what is measured.

    Concurrency: requires external locking.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self.active = False
        self.epoch = 0
        self.count = 0
        self.level = 0.0
        self.is_strict = False  # whether it holds for critical calls, too
        self._seen = Window.empty()  # at the level before; without samples where that was not measured
        self._highest = 0.0
        self._throughput = 0.0
        self._began = now
        self._round = Round(now, _ALL_NEW)
        self._rest(now)

    def is_due(self, limit: float, now: float) -> bool:
        """Tell whether it is time to measure, where the limit is *limit*."""
        self._highest = max(self._highest, limit)
        return now >= self._due or limit <= _FALLEN * self._highest

    def begin(self, limit: float, rtt: float, now: float, known: float) -> None:
        """Begin to measure, at half of *limit*, at which calls take *rtt* seconds; 0.0: that is not known."""
        self.active = True
        self._began = now
        self._throughput = limit / rtt if rtt else 0.0
        self.is_strict = False
        self._try(limit / 2.0, Window.empty()._replace(rtt=rtt), now, known)

    def add(self, window: Window, least: float, now: float) -> _Finding | None:
        """Take *window* in; return what was found, or go on at half the limit, though not below *least*."""
        seen = self._round.add(window, now)
        if seen is None or not self._is_enough(seen, now):
            return None
        if not self.is_strict and self._in_flight(seen, now) > _CROWDED * self.level + 1.0:
            self.is_strict = True
            self._try(self.level, self._seen, now)
            return None
        if seen.samples:
            self._throughput = max(self._throughput, self.level / seen.rtt)
        queued = self._is_queued(seen)
        if queued and self.level > least:
            self._try(max(self.level / 2.0, least), seen, now)
        elif seen.dropped > seen.samples:
            self._try(self.level, seen, now)  # what the few take that come back says little
        else:
            return self._end(seen if queued else self._seen.joined(seen), now)
        return None

    def _end(self, seen: Window, now: float) -> _Finding:
        self.active = False
        self.count += 1
        self._highest = 0.0
        self._rest(now)
        return _Finding(seen.rtt, self._throughput)

    def _in_flight(self, seen: Window, now: float) -> float:
        """Return how many calls were in flight on average (Little's law)."""
        return seen.samples * seen.rtt / self._round.length(now)

    def _is_enough(self, seen: Window, now: float) -> bool:
        length = self._round.length(now)
        if length <= 0.0 or length < seen.rtt:  # nothing of what was dropped says how long it took
            return False
        return seen.samples + seen.dropped >= _SAMPLES or length >= max(_SECONDS, _ROUNDS * seen.rtt)

    def _is_queued(self, seen: Window) -> bool:
        return seen.dropped > seen.samples or not (
            _SHORTER * self._seen.rtt <= seen.rtt <= _LONGER * self._seen.rtt
        )

    def _try(self, level: float, before: Window, now: float, known: float = 0.0) -> None:
        """Measure at *level*. What was begun before this moment does not count."""
        self.level = level
        self.epoch += 1
        self._seen = before
        self._round = Round(now, _ALL_NEW, least=known or before.rtt)

    def _rest(self, now: float) -> None:
        pause = max(self._interval, _REST * (now - self._began))
        self._due = now + pause * (1.0 + random.uniform(0.0, _JITTER))


class MeasuredAlgorithm(metaclass=ABCMeta):
    """An algorithm that goes by a baseline: what calls take where there is no queue of our own making.

    A baseline that follows what calls take ends up following the queue that the limit itself lets grow, and
    the limit follows the baseline. So while the limit is used, nothing raises the baseline but a measurement.
    For that the limit is halved until calls that were begun since then have told what they take. If that is
    much less, they did little but wait before, and may still: the limit is halved again, until it makes no
    difference. The limit goes on at what can be in flight without a queue: so many calls as end in a second,
    times the seconds that each takes.

    It is measured now and then, and as soon as the limit has fallen to half. Where calls take no less by
    then, it is not the queue that takes the time: a dependency that is slower for good is followed.

    After each measurement, and in the beginning, the limit is sought: it is raised by as much as what calls
    take leaves room for. The first time that there is no more room, the baseline is measured, as until then
    it is but what the first calls took.

    Args:
        settings: the bounds and the beginning.
        remeasure: seconds between measurements.
        memory: over how many rounds the baseline is the mean while nobody uses the limit.
        tolerance: by what factor calls may take longer than the baseline while the limit is sought.
        now: the time.

    Concurrency: requires external locking.
    """

    def __init__(
        self, settings: AdaptiveLimit, *, remeasure: float, memory: int, tolerance: float, now: float
    ) -> None:
        self._bounded = settings.bounded
        self._weight = 2.0 / (memory + 1)
        self._tolerance = tolerance
        self._estimate = float(settings.initial)
        self._is_sought = True
        self._measurement = _Measurement(remeasure, now)
        self._round = Round(now, _ALL_NEW)
        self.baseline: float | None = None

    @property
    def limit(self) -> float:
        """How many calls may be in flight now."""
        return self._bounded(self._measurement.level) if self._measurement.active else self._estimate

    @property
    def usual(self) -> float:
        """How many may be where the limit is not lowered for a moment, to measure.

        Critical calls are let in up to this; only if there are so many that nothing can be measured, the
        lowered limit is theirs, too.
        """
        return self.limit if self._measurement.is_strict else self._estimate

    @property
    def epoch(self) -> int:
        """Of calls that were begun in an earlier epoch nothing must be learnt."""
        return self._measurement.epoch

    @property
    def measurements(self) -> int:
        """How often the baseline was measured."""
        return self._measurement.count

    def hold(self, limit: float) -> None:
        """Have it grow no further than to *limit*."""
        self._estimate = min(self._estimate, limit)

    def update(self, window: Window, now: float) -> None:
        """Learn from *window*, which ends at *now*."""
        if not 0.0 < window.rtt < math.inf:
            window = window._replace(rtt=0.0, samples=0)
        if self._measurement.active:
            self._measure(window, now)
            return
        seen = self._round.add(window, now)
        if seen is not None:
            self._estimate = self._bounded(self._next(self._estimate, seen))
            self._round = Round(now, _SETTLED, seen.rtt)
            self._remeasure(seen.rtt, now)

    def _remeasure(self, rtt: float, now: float) -> None:
        measurement = self._measurement
        if not measurement.count and not self._is_sought:
            # The queue may still be growing: what calls take now is nothing to compare with.
            measurement.begin(self._estimate, 0.0, now, rtt)
        elif measurement.is_due(self._estimate, now):
            measurement.begin(self._estimate, rtt, now, rtt)

    def _measure(self, window: Window, now: float) -> None:
        found = self._measurement.add(window, self._bounded(0.0), now)
        if found is not None:
            self.baseline = found.rtt
            self._is_sought = True
            room = self._tolerance * found.rtt * found.throughput
            self._estimate = self._bounded(min(self._estimate, room))
            self._round = Round(now, _SETTLED, found.rtt)

    def _next(self, limit: float, seen: Window) -> float:
        if seen.dropped:
            self._is_sought = False
            return self._drop(limit, seen)
        if not seen.samples:
            return limit
        is_used = 2 * seen.peak >= limit
        baseline = self._learn(seen.rtt, is_used=is_used)
        if not is_used:
            return limit  # nobody has asked for more, so what calls take says nothing about the limit
        room = self._tolerance * min(1.0, baseline / seen.rtt)
        self._is_sought = self._is_sought and room > 1.0
        return limit * room if self._is_sought else self._follow(limit, baseline, seen)

    def _learn(self, rtt: float, *, is_used: bool) -> float:
        """Return the baseline, with *rtt* taken into it."""
        baseline = rtt if self.baseline is None else self.baseline
        if not is_used:
            baseline += self._weight * (rtt - baseline)
        if baseline > _TOO_HIGH * rtt:
            baseline *= _FALL
        self.baseline = baseline
        return baseline

    @abstractmethod
    def _drop(self, limit: float, seen: Window) -> float:
        """Return what becomes of *limit* where calls were dropped."""

    @abstractmethod
    def _follow(self, limit: float, baseline: float, seen: Window) -> float:
        """Return what becomes of *limit* by what calls take."""
