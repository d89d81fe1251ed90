"""What was seen of a run: a row for each second, and sums for each phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.simulation.servers import Backend
from bench.simulation.story import Phase


class Row(NamedTuple):
    """What was seen at the end of a stretch of time.

    Attributes:
        at: Seconds since the beginning.
        limit: How many calls may be in flight.
        in_flight: How many are.
        rtt: Seconds the answered calls of this stretch took on average; None without one.
        baseline: What the limit believes a call takes without a queue; None where it does not ask.
        offered: Calls that arrived, a second.
        goodput: Calls that were answered in time, a second.
        rejected: Calls that were refused, a second.
    """

    at: float
    limit: int
    in_flight: int
    rtt: float | None
    baseline: float | None
    offered: float
    goodput: float
    rejected: float


@dataclass(slots=True)
class Tally:
    """What became of the calls that arrived, or were ended, in a stretch of time."""

    offered: int = 0
    rejected: int = 0
    timed_out: int = 0
    failed: int = 0
    took: list[float] = field(default_factory=list)
    """What the calls that were answered in time took, in seconds."""

    @property
    def mean(self) -> float | None:
        """What an answered call took on average, in seconds."""
        return sum(self.took) / len(self.took) if self.took else None

    def quantile(self, share: float) -> float | None:
        """Return what *share* of the answered calls did not exceed, in seconds."""
        return sorted(self.took)[min(len(self.took) - 1, int(share * len(self.took)))] if self.took else None


@dataclass(slots=True)
class Chapter:
    """What was seen of a phase."""

    phase: Phase
    backend: Backend
    begin: float
    tally: Tally = field(default_factory=Tally)

    @property
    def goodput(self) -> float:
        """Calls answered in time, a second."""
        return len(self.tally.took) / self.phase.seconds

    @property
    def share(self) -> float | None:
        """The goodput as a share of what was possible; None if nothing was."""
        possible = self.phase.possible(self.backend, self.tally.offered)
        return self.goodput / possible if possible else None


@dataclass(slots=True)
class Trace:
    """What was seen of a run."""

    step: float
    rows: list[Row] = field(default_factory=list)
    chapters: list[Chapter] = field(default_factory=list)

    def chapter(self, name: str) -> Chapter:
        """Return what was seen of the phase of that name."""
        return next(chapter for chapter in self.chapters if chapter.phase.name == name)

    def between(self, begin: float, end: float) -> Sequence[Row]:
        """Return the rows after *begin*, up to *end*."""
        return [row for row in self.rows if begin < row.at <= end + self.step / 2]

    def goodput(self, begin: float, end: float) -> float:
        """Return how many calls were answered in time, a second, from *begin* to *end*."""
        rows = self.between(begin, end)
        return sum(row.goodput for row in rows) / len(rows)

    def limits(self, begin: float, end: float) -> Iterator[int]:
        """Yield the limits from *begin* to *end*."""
        return (row.limit for row in self.between(begin, end))
