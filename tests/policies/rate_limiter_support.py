"""What the tests of the rate limiter share: the strategies, each as a model too simple to be wrong.

A model is a list of what was taken, and when. Each question goes through that list from its beginning, in
fractions, so that nothing is rounded and nothing is remembered wrongly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    """Permits that were taken at one moment, and how many of them were given back in which step."""

    at: Fraction
    permits: int | Fraction
    step: float
    given: list[tuple[int, int]] = field(default_factory=list)

    def left(self, step: float) -> int:
        """Return how many had not been given back by *step*."""
        return max(0, self.permits - sum(permits for given_in, permits in self.given if given_in < step))


def left(row: list[Taken], step: float = math.inf) -> int:
    """Return how many permits of *row* had not been given back by *step*."""
    return sum(taken.left(step) for taken in row)


class Model:
    """Counts for one key. *window* is in seconds."""

    def __init__(self, amount: int, window: int, burst: int) -> None:
        self.amount, self.window, self.burst = amount, Fraction(window), burst
        self.taken: list[Taken] = []
        self.steps = itertools.count()

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
        self.taken.append(Taken(now, permits, next(self.steps)))
        return self.taken[-1]

    def give(self, taken: Taken, permits: int, now: Fraction) -> None:
        """Undo *permits* of *taken*."""
        taken.given.append((next(self.steps), permits))


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
        if (now - taken.at) * self.amount <= self.burst * self.window:
            self.take(now, -permits)


class Fixed(Model):
    """Windows one after the other; each begins with the first permit taken after the one before."""

    def opened(self, now: Fraction) -> tuple[Fraction, int]:
        """Return when the present window began, and what is taken in it."""
        start, row = now, list[Taken]()
        for taken in [*self.taken, Taken(now, 0, math.inf)]:
            if taken.at >= start + self.window or not left(row, taken.step):
                start, row = taken.at, []
            row.append(taken)
        return start, left(row)

    def room(self, now: Fraction) -> Fraction:
        return Fraction(self.amount - self.opened(now)[1])

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        yield self.opened(now)[0] + self.window


class Sliding(Model):
    """Windows one after the other; of the one before counts the part that this one has not covered yet.

    A new row of windows begins with the first permit taken when none counts any more.
    """

    def opened(self, now: Fraction) -> tuple[Fraction, int, int]:
        """Return when the present window began, what is taken in it, and in the one before."""
        start, row, before = now, list[Taken](), list[Taken]()
        for taken in [*self.taken, Taken(now, 0, math.inf)]:
            if taken.at >= start + self.window:
                start, row, before = start + self.window, [], row
            if taken.at >= start + self.window or not left([*row, *before], taken.step):
                start, row, before = taken.at, [], []
            row.append(taken)
        return start, left(row), left(before)

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
        return Fraction(self.amount - left([taken for taken in self.taken if taken.at > now - self.window]))

    def moments(self, now: Fraction) -> Iterator[Fraction]:
        return (taken.at + self.window for taken in self.taken if taken.at > now - self.window)

    def take(self, now: Fraction, permits: int) -> Taken:
        if self.taken and self.taken[-1].at == now:  # what was taken at one moment cannot be told apart
            self.taken[-1].permits = left(self.taken[-1:]) + permits
            self.taken[-1].given.clear()
        else:
            super().take(now, permits)
        # What is more than a window holds is not remembered: the oldest make room.
        for old in self.taken:
            if (excess := -int(self.room(now))) > 0 and old.at > now - self.window:
                old.permits -= min(left([old]), excess)
        return self.taken[-1]


MODELS: dict[str, type[Model]] = {
    "token-bucket": Bucket,
    "fixed-window": Fixed,
    "sliding-window-counter": Sliding,
    "moving-window": Moving,
}
