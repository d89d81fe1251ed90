"""What the tests of the rate limiter share: the strategies, each as a model too simple to be wrong.

A model is a list of what was taken, and when. Each question goes through that list from its beginning, in
fractions, so that nothing is rounded and nothing is remembered wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import pytest
from limits import RateLimitItem, RateLimitItemPerSecond

from resilient import RateLimiter
from resilient.testing import FakeClock

Strategy: TypeAlias = Literal["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]

STRATEGIES: tuple[Strategy, ...] = (
    "token-bucket",
    "fixed-window",
    "sliding-window-counter",
    "moving-window",
)
WINDOWS = STRATEGIES[1:]

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
each_window = pytest.mark.parametrize("strategy", WINDOWS)

TINY = Fraction(1, 10**9)


def per_seconds(amount: int, seconds: int) -> RateLimitItem:
    """Return the rate of *amount* in *seconds*."""
    return RateLimitItemPerSecond(amount, seconds)


def limiter_of(rate: Any, clock: FakeClock, **options: Any) -> RateLimiter:
    """Make a limiter on *clock*, which also does its waiting."""
    return RateLimiter(rate, clock=clock, sleep=clock.sleep, **options)


@dataclass
class Taken:
    """Permits that were taken at one moment, as far as they were not given back."""

    at: Fraction
    permits: int


class Model:
    """Counts for one key. *window* is in seconds."""

    def __init__(self, amount: int, window: int, burst: int) -> None:
        self.amount, self.window, self.burst = amount, Fraction(window), burst
        self.taken: list[Taken] = []

    def room(self, now: Fraction) -> Fraction:
        """Return how many permits could be taken now; below 0 where more were taken than there are."""
        raise NotImplementedError

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        """Yield the moments at which there is more room than just before, in order."""
        raise NotImplementedError

    def wait(self, now: Fraction, cost: int) -> Fraction | float:
        """Return the seconds until *cost* permits could be taken, if nobody else takes any."""
        if cost > self.burst:
            return math.inf
        if self.room(now) >= cost:
            return Fraction(0)
        return next(moment for moment in self.moments(now) if self.room(moment + TINY) >= cost) - now

    def reset(self, now: Fraction) -> Fraction:
        """Return the seconds until all permits are there."""
        wait = self.wait(now, self.burst)
        assert isinstance(wait, Fraction)
        return wait

    def take(self, now: Fraction, permits: int) -> Taken:
        """Take *permits*, there or not."""
        self.taken.append(Taken(now, permits))
        return self.taken[-1]

    def give(self, taken: Taken, permits: int, now: Fraction) -> None:
        """Undo *permits* of *taken*, as if they had not been taken."""
        taken.permits = max(0, taken.permits - permits)


class Bucket(Model):
    """A bucket that leaks evenly; what is given back now was poured in until now."""

    def debt(self, now: Fraction) -> Fraction:
        """Return how many permits are not back yet."""
        debt, last = Fraction(0), self.taken[0].at if self.taken else now
        for taken in self.taken:
            debt = max(Fraction(0), debt - (taken.at - last) * self.amount / self.window)
            debt, last = max(Fraction(0), debt + taken.permits), taken.at
        return max(Fraction(0), debt - (now - last) * self.amount / self.window)

    def room(self, now: Fraction) -> Fraction:
        return self.burst - self.debt(now)

    def wait(self, now: Fraction, cost: int) -> Fraction | float:
        if cost > self.burst:
            return math.inf
        return max(Fraction(0), cost - self.room(now)) * self.window / self.amount

    def give(self, taken: Taken, permits: int, now: Fraction) -> None:
        self.take(now, -permits)


class Fixed(Model):
    """Windows one after the other; each begins with the first permit taken after the one before."""

    def opened(self, now: Fraction) -> tuple[Fraction, int]:
        """Return when the present window began, and what was taken in it."""
        start, count = None, 0
        for taken in [*self.taken, Taken(now, 0)]:
            if start is None or not count or taken.at >= start + self.window:
                start, count = taken.at, 0
            count += taken.permits
        assert start is not None
        return start, count

    def room(self, now: Fraction) -> Fraction:
        return Fraction(self.amount - self.opened(now)[1])

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        yield self.opened(now)[0] + self.window


class Sliding(Model):
    """Windows one after the other; of the one before counts the part that this one has not covered yet.

    A new row of windows begins with the first permit taken when none counts any more.
    """

    def opened(self, now: Fraction) -> tuple[Fraction, int, int]:
        """Return when the present window began, what was taken in it, and in the one before."""
        start, count, before = None, 0, 0
        for taken in [*self.taken, Taken(now, 0)]:
            if start is not None and taken.at >= start + self.window:
                start, count, before = start + self.window, 0, count
            if start is None or taken.at >= start + self.window or not count + before:
                start, count, before = taken.at, 0, 0
            count += taken.permits
        assert start is not None
        return start, count, before

    def room(self, now: Fraction) -> Fraction:
        start, count, before = self.opened(now)
        covered = (now - start) / self.window
        return Fraction(self.amount - count - math.floor(before * (1 - covered)))

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        start, count, before = self.opened(now)
        for begin, fading in ((start, before), (start + self.window, count)):
            steps = (begin + self.window * step / fading for step in range(fading)) if fading else ()
            yield from (moment for moment in steps if moment >= now)
        yield start + 2 * self.window


class Moving(Model):
    """At any moment, the permits of the last *window* seconds count."""

    def room(self, now: Fraction) -> Fraction:
        return Fraction(
            self.amount - sum(taken.permits for taken in self.taken if taken.at > now - self.window)
        )

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        return (taken.at + self.window for taken in self.taken if taken.at > now - self.window)

    def take(self, now: Fraction, permits: int) -> Taken:
        taken = super().take(now, permits)
        # What is more than a window holds is not remembered: the oldest make room.
        for old in self.taken:
            old.permits -= min(old.permits, max(0, -int(self.room(now))))
        return taken


MODELS: dict[str, type[Model]] = {
    "token-bucket": Bucket,
    "fixed-window": Fixed,
    "sliding-window-counter": Sliding,
    "moving-window": Moving,
}
