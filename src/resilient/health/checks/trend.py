"""Whether something grows: samples in buckets of time, their floors, and the trend through them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import combinations
from typing import Final

__all__ = ["Growth", "Trend"]

_BUCKETS: Final = 20  # in a window
_ENOUGH: Final = 0.4  # of a window, to judge by
_LEAST_SAMPLES: Final = 3
_THIRD: Final = 1 / 3
_LEAST_END: Final = 0.2  # of a window
# Which of the slopes between any two samples is the trend (Theil and Sen). Not the one in the middle: half of
# them lead over a step that is in the middle of the window.
_SLOPE: Final = 0.4


@dataclass(frozen=True, slots=True)
class Growth:
    """How something has grown.

    Attributes:
        span: seconds between the first sample and the last.
        grown: by how much the lowest values of the last part of that lie above those of the first.
        rate: the trend, per second; not moved by single steps and by peaks.
    """

    span: float
    grown: float
    rate: float

    @property
    def steady(self) -> float:
        """How much of it is a trend: 0 for a single step and for what is all peaks."""
        # Floors are taken a third from both ends, so those of a straight line differ by two thirds of it.
        return min(self.grown / (1.0 - _THIRD), self.rate * self.span)


class Trend:
    """The lowest sample of each bucket of the last *window* seconds; bounded, however often it is asked.

    The lowest, because memory that is collected now and then is a saw: its teeth say nothing, and where they
    begin is what does not come back.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._width = window / _BUCKETS
        self._floors: deque[tuple[float, float]] = deque(maxlen=_BUCKETS + 2)
        self._bucket = 0
        self._last = 0.0

    def add(self, now: float, value: float) -> None:
        """Take a sample. After a clock that ran backwards there are no others."""
        if self._floors and now < self._last:
            self._floors.clear()
        self._last = now
        bucket = int(now // self._width)
        if self._floors and bucket == self._bucket:
            if value < self._floors[-1][1]:
                self._floors[-1] = (now, value)
        else:
            self._floors.append((now, value))
            self._bucket = bucket
        # A sample may be as old as the window, and its bucket be over by now.
        while self._floors[0][0] < now - self._window - self._width:
            self._floors.popleft()

    def growth(self) -> Growth | None:
        """Return how it has grown; None while there are too few samples, or they span too little time."""
        floors = self._floors
        if len(floors) < _LEAST_SAMPLES:
            return None
        begin, end = floors[0][0], self._last
        span = end - begin
        if span < _ENOUGH * self._window:
            return None
        part = max(span * _THIRD, _LEAST_END * self._window)
        first = min(value for at, value in floors if at <= begin + part)
        last = min(value for at, value in floors if at >= min(end - part, floors[-1][0]))
        slopes = sorted((b - a) / (later - at) for (at, a), (later, b) in combinations(floors, 2))
        return Growth(span, last - first, slopes[int(_SLOPE * len(slopes))])
