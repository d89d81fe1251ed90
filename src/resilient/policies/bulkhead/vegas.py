"""Vegas: estimate from latency how many calls wait in the dependency, and keep those few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from ...engine import params
from .limits import AdaptiveLimit, Window
from .remeasurement import MeasuredAlgorithm

__all__ = ["Vegas"]

_MEMORY: Final = 19  # moves that the baseline looks back on, while the limit is not used
_TOLERANCE: Final = 1.25
_STEPS: Final = 40  # as many make the limit, or more


@dataclass(frozen=True, slots=True, kw_only=True)
class Vegas(AdaptiveLimit):
    """Follow latency: of the calls in flight, only a few may be waiting in the dependency.

    How many wait is `limit * (1 - baseline / rtt)`. With `step = max(log10(limit), limit / 40)`, the limit
    grows by 6 steps while at most one step waits, by one while fewer than 3 do, and falls by one when more
    than 6 do or a call was dropped. It is moved once in the time that calls take to show the last move, and
    not before the window is full. The baseline is measured every *remeasure* seconds.

    Use it where calls take much the same time each, and latency counts for more than the last per cent of
    throughput.

    Args:
        initial: the limit to begin with; from *min_limit* to *max_limit*.
        min_limit: the least it can be; at least 1.
        max_limit: the most it can be; at least *min_limit*.
        window: how long calls are gathered before the limit is changed, in seconds; above 0.
        min_samples: how many calls are gathered at least; at least 1.
        pressure: what of the process itself lowers the limit as well. None: nothing does.
        remeasure: seconds between measurements of the baseline, for which the limit is halved for a moment;
            above 0. Up to 15 % are added, by chance. After a long one, ten times as long as it took.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable, so one may serve several bulkheads: each follows its own calls.

    Source: L. Brakmo and L. Peterson, "TCP Vegas", 1995; VegasLimit of Netflix' concurrency-limits.
    """

    name: ClassVar[str] = "vegas"

    max_limit: int = 1000
    remeasure: float = 30.0

    def __post_init__(self) -> None:
        AdaptiveLimit.__post_init__(self)
        params.number("remeasure", self.remeasure, above=True, what="a number of seconds")

    def open(self, now: float) -> _State:
        """Return the state machine with these settings.

        Args:
            now: the time it begins at, in seconds.
        """
        return _State(self, now)


class _State(MeasuredAlgorithm):
    """Where a Vegas limit stands.

    Concurrency: requires external locking.
    """

    def __init__(self, settings: Vegas, now: float) -> None:
        super().__init__(
            settings, remeasure=settings.remeasure, memory=_MEMORY, tolerance=_TOLERANCE, now=now
        )

    def _drop(self, limit: float, seen: Window) -> float:  # noqa: ARG002 - however many they are
        return limit - _step(limit)

    def _follow(self, limit: float, baseline: float, seen: Window) -> float:
        step = _step(limit)
        waiting = math.ceil(limit * (1.0 - baseline / seen.rtt))
        if waiting <= step:
            return limit + 6.0 * step
        if waiting < 3.0 * step:
            return limit + step
        return limit - step if waiting > 6.0 * step else limit


def _step(limit: float) -> float:
    # Of 200 calls in flight, 12 seem to wait if the baseline is wrong by as little as 6 %: so many have to be
    # allowed as what calls take differs from one hundred to the next.
    return float(max(1, int(math.log10(limit)), int(limit / _STEPS)))
