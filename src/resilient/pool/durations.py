"""For how long connections are made, waited for and lent, and how many of these times are next to nothing."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Final

from ..engine.latency import EDGES, Histogram, Latency, Recorder
from ..engine.window import Tally

if TYPE_CHECKING:
    from ..typing import Clock

__all__ = ["BRIEF", "Durations", "Timings"]

BRIEF: Final = EDGES[0]
"""Seconds: less than that is the same to every histogram, and need only be counted."""

_RECENTLY: Final = 60.0  # seconds, as `Recorder` has it
_MOST: Final = 20_000  # durations that wait for the next round
_OTHER_BINS: Final = [0] * len(EDGES)


class Durations:
    """How long something took, each time.

    Args:
        clock: tells the time in seconds.

    Concurrency: safe from any thread. Not to be read under a lock that finalizers take: one may be run while
        another thread reads, under a lock of its own.

    Attributes:
        add: records one duration, in one atomic step.
        brief: to be raised in place of that where it took next to nothing, which counts as 0 s.
    """

    __slots__ = ("_clock", "_marks", "_recorder", "add", "brief")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recorder = Recorder(clock)
        self.add: Final = self._recorder.add
        self.brief: Final = Tally()
        # How many brief ones there were when, a minute apart or more: for what happened lately.
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=2)

    def record(self, seconds: float) -> None:
        """Record one duration, though nobody may make rounds, as there are no more threads."""
        self.add(seconds)
        if len(self._recorder.pending) >= _MOST:
            self._recorder.fold()

    def fold(self) -> None:
        """Put into bins what was recorded; to be called about once a second."""
        self._recorder.fold()
        now = self._clock()
        if now - self._marks[-1][0] >= _RECENTLY:
            self._marks.append((now, self.brief.read()))

    @property
    def count(self) -> int:
        """How many there were."""
        return self.brief.read() + self._recorder.histogram().count

    @property
    def total(self) -> float:
        """How many seconds all of them took."""
        return self._recorder.histogram().total

    def histogram(self) -> Histogram:
        """Return all there were since the start."""
        return _brief_ones(self.brief.read()) + self._recorder.histogram()

    def lately(self) -> Latency:
        """Return those of the last one to two minutes."""
        before = self._marks[0][1]
        return Latency(self._recorder.span(), (_brief_ones(self.brief.read()), _brief_ones(before)))


class Timings:
    """What of a pool's connections is timed: how long each is made, waited for and lent."""

    __slots__ = ("create", "use", "wait")

    def __init__(self, clock: Clock) -> None:
        self.create: Final = Durations(clock)
        self.wait: Final = Durations(clock)
        self.use: Final = Durations(clock)

    def by_name(self) -> dict[str, Durations]:
        """Return all of them, by what metrics call them."""
        return {"create": self.create, "wait": self.wait, "use": self.use}

    def fold(self) -> None:
        """Put into bins what was recorded; to be called about once a second."""
        for durations in (self.create, self.wait, self.use):
            durations.fold()


def _brief_ones(count: int) -> Histogram:
    return Histogram(array("Q", [count, *_OTHER_BINS]), count, 0.0, 0.0, 0.0)
