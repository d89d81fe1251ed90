"""What every adaptive limit is: settings, and a state machine that is shown windows of calls."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self

from ...engine import params
from .pressure import Pressure

__all__ = ["AdaptiveLimit", "Algorithm", "Window"]


class Window(NamedTuple):
    """What was seen of the calls of a short time.

    Attributes:
        rtt: the mean time a good call took, in seconds; those that are overdue count with their age.
        samples: how many calls that is.
        dropped: calls besides these that told of overload.
        peak: the most that were in flight at once.
    """

    rtt: float
    samples: int
    dropped: int
    peak: int

    @property
    def drop_ratio(self) -> float:
        """The share of the calls that told of overload."""
        return self.dropped / (self.samples + self.dropped) if self.dropped else 0.0

    @classmethod
    def empty(cls) -> Self:
        """Return a window in which nothing was seen."""
        return cls(rtt=0.0, samples=0, dropped=0, peak=0)

    def joined(self, other: Window) -> Window:
        """Return one window of both."""
        samples = self.samples + other.samples
        if not self.samples or not other.samples:
            rtt = self.rtt if self.samples else other.rtt
        else:
            rtt = (self.rtt * self.samples + other.rtt * other.samples) / samples
        return Window(rtt, samples, self.dropped + other.dropped, max(self.peak, other.peak))


class Algorithm(Protocol):
    """Follows what calls show, and says how many may be in flight.

    Concurrency: requires external locking; no clock, no I/O.
    """

    @property
    def baseline(self) -> float | None:
        """What a call takes when there is no queue, in seconds, as far as is known."""
        ...

    @property
    def limit(self) -> float:
        """How many calls may be in flight now."""
        ...

    @property
    def usual(self) -> float:
        """How many may be where the limit is not lowered for a moment, to measure."""
        ...

    @property
    def epoch(self) -> int:
        """Of calls that were begun in an earlier epoch nothing must be learnt."""
        ...

    @property
    def measurements(self) -> int:
        """How often the baseline was measured."""
        ...

    def hold(self, limit: float) -> None:
        """Have it grow no further than to *limit*."""
        ...

    def update(self, window: Window, now: float) -> None:
        """Learn from *window*, which ends at *now*."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveLimit(metaclass=ABCMeta):
    """Settings that all adaptive limits have in common; they are documented there."""

    name: ClassVar[str]

    initial: int = 20
    min_limit: int = 1
    max_limit: int = 200
    window: float = 0.1
    min_samples: int = 10
    pressure: Pressure | None = None

    def __post_init__(self) -> None:
        params.count("min_limit", self.min_limit)
        params.count("max_limit", self.max_limit, least=self.min_limit)
        params.count("initial", self.initial, least=self.min_limit)
        if self.initial > self.max_limit:
            params.refuse(ValueError, "initial", f"must be at most max_limit={self.max_limit}", self.initial)
        params.number("window", self.window, above=True, what="a number of seconds")
        params.count("min_samples", self.min_samples)
        if self.pressure is not None and not isinstance(self.pressure, Pressure):
            params.refuse(TypeError, "pressure", "must be a Pressure or None", self.pressure)

    @property
    def drop_after(self) -> float | None:
        """A call that takes longer, in seconds, tells of overload; None: no call does by that."""
        return None

    @abstractmethod
    def open(self, now: float) -> Algorithm:
        """Return the state machine with these settings.

        Args:
            now: the time it begins at, in seconds.
        """

    def bounded(self, limit: float) -> float:
        """Return *limit*, within bounds.

        Args:
            limit: any number.
        """
        return min(max(limit, float(self.min_limit)), float(self.max_limit))
