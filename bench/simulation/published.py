"""Gradient2 as Netflix published it: what our `Gradient` is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resilient.policies.bulkhead.limits import AdaptiveLimit, Window

WARM_UP = 10
"""Windows of which the plain mean is the long-run round-trip time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedGradient(AdaptiveLimit):
    """The settings of `Gradient2Limit`, with its defaults but for the bounds.

    The least limit is ours, and the highest one is out of the way, so that it shows where the limit goes.
    """

    name: ClassVar[str] = "gradient2 as published"

    min_limit: int = 4
    max_limit: int = 1000
    window: float = 1.0
    smoothing: float = 0.2
    queue: int = 4
    long_window: int = 600
    tolerance: float = 1.5

    def open(self, now: float) -> PublishedState:
        """Return the state machine with these settings."""
        del now
        return PublishedState(self)


class PublishedState:
    """Where such a limit stands."""

    epoch = 0
    measurements = 0

    def __init__(self, settings: PublishedGradient) -> None:
        self._settings = settings
        self._windows = 0
        self.limit = float(settings.initial)
        self.baseline: float | None = None

    @property
    def usual(self) -> float:
        """How many calls may be in flight; nothing is ever measured here."""
        return self.limit

    def hold(self, limit: float) -> None:
        """Do nothing: it knows no pressure."""

    def update(self, window: Window, now: float) -> None:
        """Follow *window*; drops are ignored, as published."""
        del now
        if not window.samples:
            return
        settings, rtt = self._settings, window.rtt
        long_rtt = self.baseline = self._follow(rtt)
        if window.peak < self.limit / 2:
            return
        gradient = max(0.5, min(1.0, settings.tolerance * long_rtt / rtt))
        target = self.limit * gradient + settings.queue
        self.limit = settings.bounded(self.limit * (1 - settings.smoothing) + target * settings.smoothing)

    def _follow(self, rtt: float) -> float:
        self._windows += 1
        is_new = self._windows <= WARM_UP
        share = 1 / self._windows if is_new else 2 / (self._settings.long_window + 1)
        before = 0.0 if self.baseline is None else self.baseline
        long_rtt = before + share * (rtt - before)
        return long_rtt * 0.95 if long_rtt / rtt > 2 else long_rtt
