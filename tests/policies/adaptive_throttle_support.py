"""What the tests of the throttle share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resilient import AdaptiveThrottle, ThrottledError
from resilient.testing import FakeClock


class DependencyError(Exception):
    """A failure."""


class Dice:
    """Give the numbers it is told to, and count how often it is asked."""

    def __init__(self, number: float = 0.0) -> None:
        self.number = number
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.number


def maker(clock: FakeClock, dice: Dice) -> Callable[..., AdaptiveThrottle]:
    """Return what makes throttles whose time and chance are known, and that judge from the first call on."""

    def make(**settings: Any) -> AdaptiveThrottle:
        return AdaptiveThrottle("search", **{"clock": clock, "random": dice, "min_calls": 1, **settings})

    return make


def fail(exc: BaseException | None = None) -> None:
    """Fail."""
    raise DependencyError if exc is None else exc


def call(throttle: AdaptiveThrottle, outcome: BaseException | None = None) -> bool:
    """Make a call that ends in *outcome*; tell whether it was let through."""
    try:
        throttle.call(fail, outcome) if outcome else throttle.call(int)
    except ThrottledError:
        return False
    except BaseException as exc:
        if exc is not outcome:
            raise
    return True


def call_on(throttle: AdaptiveThrottle, times: int, outcome: BaseException | None = None) -> int:
    """Make *times* calls; return how many were let through."""
    return sum(call(throttle, outcome) for _ in range(times))
