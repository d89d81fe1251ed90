"""AIMD: add one while all is well, take a share away at the first sign of overload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from ...engine import params
from .limits import AdaptiveLimit, Window

__all__ = ["AIMD"]

_STEEPEST: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AIMD(AdaptiveLimit):
    """Follow errors: one more with each good window, a tenth fewer with each in which a call was dropped.

    Where more than a tenth were dropped, the limit loses as large a share, a half at most. Dropped are the
    calls that end in one of the bulkhead's `drops`, and those that take longer than *timeout*. Use it where
    how long a call takes says little, because they differ or wait for something else.

    Args:
        initial: the limit to begin with; from *min_limit* to *max_limit*.
        min_limit: the least it can be; at least 1.
        max_limit: the most it can be; at least *min_limit*.
        window: how long calls are gathered before the limit is changed, in seconds; above 0.
        min_samples: how many calls are gathered at least; at least 1.
        pressure: what of the process itself lowers the limit as well. None: nothing does.
        backoff: what a drop multiplies the limit by at most; above 0 and below 1.
        timeout: a call that takes longer, in seconds, counts as dropped; above 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable, so one may serve several bulkheads: each follows its own calls.

    Source: D. Chiu and R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in
        computer networks", 1989; AIMDLimit of Netflix' concurrency-limits.
    """

    name: ClassVar[str] = "aimd"

    backoff: float = 0.9
    timeout: float = 5.0

    def __post_init__(self) -> None:
        AdaptiveLimit.__post_init__(self)
        if params.ratio("backoff", self.backoff) == 1.0:
            params.refuse(ValueError, "backoff", "must be below 1", self.backoff)
        params.number("timeout", self.timeout, above=True, what="a number of seconds")

    @property
    def drop_after(self) -> float:
        """A call that takes longer, in seconds, tells of overload."""
        return self.timeout

    def open(self, now: float) -> _State:  # noqa: ARG002 - it knows no time
        """Return the state machine with these settings.

        Args:
            now: the time it begins at, in seconds.
        """
        return _State(self)


class _State:
    """Where an AIMD limit stands.

    Concurrency: requires external locking.
    """

    __slots__ = ("_settings", "baseline", "epoch", "limit", "measurements")

    def __init__(self, settings: AIMD) -> None:
        self._settings = settings
        self.limit = float(settings.initial)
        self.epoch = 0
        self.baseline: float | None = None
        self.measurements = 0

    @property
    def usual(self) -> float:
        """How many calls may be in flight; nothing is ever measured here."""
        return self.limit

    def hold(self, limit: float) -> None:
        """Have it grow no further than to *limit*."""
        self.limit = min(self.limit, limit)

    def update(self, window: Window, now: float) -> None:  # noqa: ARG002
        """Learn from *window*."""
        if window.dropped:
            factor = max(_STEEPEST, min(self._settings.backoff, 1.0 - window.drop_ratio))
            self.limit = self._settings.bounded(self.limit * factor)
        elif 2 * window.peak >= self.limit:  # else nobody has asked for more, and nothing was tried
            self.limit = self._settings.bounded(self.limit + 1.0)
