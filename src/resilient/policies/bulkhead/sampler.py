"""From single calls to windows: what an adaptive limit is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ...engine.permits import Permit
from ...typing import Clock
from .limits import AdaptiveLimit, Window

__all__ = ["LimitStats", "Outcome", "Sampler"]

_OUTLIER: Final = 4.0  # times the mean of the window before: more than that, one call does not count
_LONGEST: Final = 1.0  # seconds
_OVERDUE: Final = 2.0  # times that mean: a call in flight for longer counts before it has ended


class Outcome(Enum):
    """What the end of a call says about the dependency."""

    GOOD = auto()  # how long it took
    DROPPED = auto()  # that there is too much to do
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class LimitStats:
    """Where an adaptive limit stands, and what it goes by.

    Attributes:
        algorithm: "aimd", "vegas" or "gradient".
        limit: what the algorithm says, before pressure and rounding.
        rtt: what a good call took in the last window, in seconds; None before the first.
        baseline: what a call takes without a queue, in seconds; None where that is not known or not asked.
        peak: the most calls in flight in the last window.
        windows: how many windows there were.
        dropped: calls that told of overload.
        discarded: calls that were begun before a measurement and ended after.
        overdue: calls in flight that counted in the last window, with their age.
        measurements: how often the baseline was measured.
        lag: how late the event loop is, in seconds; 0.0 where that is not asked.
        cpu: the share of the processor that the process uses; 0.0 where that is not asked.
        pressure: what the limit is multiplied by for these two; 1.0 for no pressure.
    """

    algorithm: str
    limit: float
    rtt: float | None
    baseline: float | None
    peak: int
    windows: int
    dropped: int
    discarded: int
    overdue: int
    measurements: int
    lag: float
    cpu: float
    pressure: float


class Sampler:
    """Gathers what calls take, and shows it to the algorithm window by window.

    Concurrency: requires external locking.
    """

    def __init__(self, settings: AdaptiveLimit, clock: Clock) -> None:
        now = clock()
        self._settings = settings
        self._algorithm = settings.open(now)
        self._drop_after = math.inf if settings.drop_after is None else settings.drop_after
        self._meter = None if settings.pressure is None else settings.pressure.meter(clock)
        self.touch = None if self._meter is None else self._meter.touch
        """Keeps the pressure measured, where it is; called without the lock, where the call will run."""
        self._factor = 1.0
        self._held_at: float | None = None  # what the limit was when the pressure began
        self._untimed = 0
        self._epoch = self._algorithm.epoch
        self._windows = 0
        self._all_dropped = 0
        self._discarded = 0
        self._overdue = 0
        self._rtt: float | None = None
        self._last_peak = 0
        self.closes = now  # when to call `tick` next
        self._length = self._total = self._most = 0.0
        self._samples = self._dropped = self._peak = 0
        self._begin_window(now, in_flight=0)

    @property
    def limit(self) -> int:
        """How many calls may be in flight now.

        No fewer than there are of which nothing is learnt any more, streams above all, and some: if those
        kept everybody else out, there would be nothing to learn from.
        """
        least, most = self._settings.min_limit, self._settings.max_limit
        return max(least, int(self._algorithm.limit * self._factor), min(self._untimed + least, most))

    @property
    def usual(self) -> int:
        """How many critical calls may be, also while the limit is lowered to measure."""
        return max(self.limit, int(self._algorithm.usual * self._factor))

    def begun(self, permit: Permit, now: float, in_flight: int) -> None:
        """Note that the call with *permit* begins; with it, *in_flight* calls are."""
        permit.started = now
        permit.epoch = self._epoch
        self._peak = max(self._peak, in_flight)

    def ended(self, permit: Permit, outcome: Outcome, now: float) -> None:
        """Learn how the call with *permit* ended."""
        started, permit.started = permit.started, None
        if started is None or outcome is Outcome.NOTHING:
            return
        if permit.epoch != self._epoch:
            self._discarded += 1
            return
        took = now - started
        if outcome is Outcome.DROPPED or took > self._drop_after:
            self._dropped += 1
        else:
            self._add(took)

    def tick(self, now: float, held: int, in_use: Callable[[], Iterable[tuple[Permit, float]]]) -> bool:
        """Close the window, if enough was seen by now; return whether the limit may be another one.

        Args:
            now: the time; `closes` or later.
            held: how many calls are in flight.
            in_use: returns the permits of those that are timed, and since when.
        """
        entries = list(in_use())
        timed = [since for permit, since in entries if permit.epoch == self._epoch]
        before, self._untimed = self._untimed, held - len(timed) - self._ending(now, entries)
        overdue = self._late(now, timed)
        enough = self._samples + self._dropped + len(overdue) >= self._settings.min_samples
        # Where nothing ends any more there will never be enough.
        if not enough and not 2 * len(overdue) >= held > 0:
            self.closes = now + self._length  # not to look again at each call
            return self._untimed != before
        self._close(now, held, overdue)
        return True

    def stats(self) -> LimitStats:
        """Return where the limit stands."""
        algorithm = self._algorithm
        reading = None if self._meter is None else self._meter.read()
        return LimitStats(
            algorithm=self._settings.name,
            limit=algorithm.limit,
            rtt=self._rtt,
            baseline=algorithm.baseline,
            peak=self._last_peak,
            windows=self._windows,
            dropped=self._all_dropped + self._dropped,
            discarded=self._discarded,
            overdue=self._overdue,
            measurements=algorithm.measurements,
            lag=0.0 if reading is None else reading.lag,
            cpu=0.0 if reading is None else reading.cpu,
            pressure=self._factor,
        )

    def _add(self, took: float) -> None:
        # One call in a hundred that takes 100 times as long must not look like all taking twice as long.
        took = min(took, self._most)
        self._total += took
        self._samples += 1

    def _ending(self, now: float, in_use: list[tuple[Permit, float]]) -> int:
        """Return how many calls of earlier epochs will have ended soon: those that are not overdue."""
        limit = self._patience()
        return sum(permit.epoch != self._epoch and now - since <= limit for permit, since in in_use)

    def _late(self, now: float, timed: list[float]) -> list[float]:
        """Return the ages of the calls in flight that are overdue, of those that began at *timed*."""
        limit = min(self._patience(), self._drop_after)
        return [now - since for since in timed if now - since > limit]

    def _patience(self) -> float:
        """Return for how many seconds a call may be in flight before it is overdue."""
        usual = self._settings.window if self._rtt is None else self._rtt
        return max(_OVERDUE * usual, self._settings.window)

    def _close(self, now: float, held: int, overdue: list[float]) -> None:
        good = self._total / self._samples if self._samples else None
        self._all_dropped += self._dropped
        for age in overdue:
            if age > self._drop_after:
                self._dropped += 1
            else:
                self._add(age)
        algorithm, usual = self._algorithm, self._algorithm.usual
        rtt = self._total / self._samples if self._samples else 0.0
        algorithm.update(Window(rtt, self._samples, self._dropped, self._peak), now)
        self._factor = 1.0 if self._meter is None else self._meter.read().factor
        if self._factor == 1.0:
            self._held_at = None
        else:
            # Not at what it was a moment ago: whatever it fell by in between would be lost for good.
            self._held_at = usual if self._held_at is None else self._held_at
            algorithm.hold(self._held_at)
        self._epoch = algorithm.epoch
        self._rtt = self._rtt if good is None else good
        self._windows += 1
        self._overdue = len(overdue)
        self._last_peak = self._peak
        self._begin_window(now, held)

    def _begin_window(self, now: float, in_flight: int) -> None:
        # What a change of the limit brings is seen after calls have gone through, and not before.
        self._length = max(self._settings.window, min(self._rtt or 0.0, _LONGEST))
        self.closes = now + self._length
        self._total = 0.0
        self._most = math.inf if self._rtt is None else _OUTLIER * self._rtt
        self._samples = 0
        self._dropped = 0
        self._peak = in_flight
