"""An interrupt at each moment at which Python lets one in: between its calls.

Python runs the handlers of signals when a function begins and when one written in C has returned. A profiler
is told of both, and what it raises comes out as what a handler raises would. So every such moment of a
decision is tried, one after the other; `tests/stress` does the same with real signals, and luck.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from tests.policies.rate_limiter_support import STRATEGIES, limiter_of

from resilient import RateLimiter
from resilient.testing import FakeClock

LIMIT = 2
KEYS = ("ann", "bob", "new", "another", "third")
RATES: dict[str, dict[str, Any]] = {
    **{strategy: {"rate": "2/hour", "strategy": strategy} for strategy in STRATEGIES},
    "several": {"rate": ["2/hour", "5/day"]},
    "several-moving": {"rate": ["2/hour", "5/day"], "strategy": "moving-window"},
}


class Interrupted(BaseException):
    """What the handler of a signal raises."""


class Interrupter:
    """Calls *act* when the limiter's own code comes to the *moment*-th place where a handler may run."""

    def __init__(self, moment: int, act: Callable[[], None]) -> None:
        self._moments = itertools.count()
        self._moment = moment
        self._act = act
        self.struck = False

    def __enter__(self) -> None:
        self._former = sys.getprofile()  # coverage may be there
        sys.setprofile(self._profile)

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(self._former)

    def _profile(self, frame: FrameType, event: str, _arg: object) -> None:
        is_ours = "rate_limiter" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename
        if is_ours and event in {"call", "c_return"} and next(self._moments) == self._moment:
            self.struck = True
            self._act()


def interrupt() -> None:
    raise Interrupted


def use(limiter: RateLimiter) -> Iterator[str]:
    """Use every key up, with too little room for all; yield the key of each call that was let in."""
    for key in KEYS:
        for _ in range(LIMIT + 1):
            if decision := limiter.hit(key):
                yield key
        if key == "third" and decision:
            limiter.refund(decision)


def answers_elsewhere(limiter: RateLimiter) -> bool:
    """Tell whether another thread gets an answer."""
    thread = threading.Thread(target=limiter.peek, daemon=True)
    thread.start()
    thread.join(5.0)
    return not thread.is_alive()


@pytest.mark.parametrize("options", RATES.values(), ids=RATES)
def test_interrupt_at_any_moment_lets_nobody_in_too_often(options: dict[str, Any]):
    """Those who were kept are not forgiven, the room is not exceeded, and the lock is free."""
    for moment in itertools.count():
        limiter = limiter_of(**options, clock=FakeClock(), max_keys=2)
        allowed: Counter[str] = Counter()
        interrupter = Interrupter(moment, interrupt)
        try:
            with interrupter:
                for key in use(limiter):
                    allowed[key] += 1
        except Interrupted:
            assert interrupter.struck
        if not interrupter.struck:
            break
        kept = set(limiter._book.shelf.states)
        allowed.update(use(limiter))

        assert all(allowed[key] <= LIMIT for key in kept), f"at moment {moment}"
        assert limiter.stats().keys <= 2
        assert answers_elsewhere(limiter), f"the lock is held since moment {moment}"
    assert moment > 100, "too few moments to mean anything"


@pytest.mark.parametrize("options", RATES.values(), ids=RATES)
def test_handler_may_use_the_limiter_at_any_moment(options: dict[str, Any]):
    """It neither hangs nor breaks what it interrupts, and its own decision comes on top once at most."""
    for moment in itertools.count():
        limiter = limiter_of(**options, clock=FakeClock(), max_keys=2)
        allowed: Counter[str] = Counter()

        def handle(limiter: RateLimiter = limiter, allowed: Counter[str] = allowed) -> None:
            for key in ("ann", "handler"):
                allowed[key] += limiter.hit(key).allowed

        interrupter = Interrupter(moment, handle)
        with interrupter:
            allowed.update(use(limiter))
        if not interrupter.struck:
            break
        kept = set(limiter._book.shelf.states)
        allowed.update(use(limiter))

        assert all(allowed[key] <= LIMIT + 1 for key in kept), f"at moment {moment}"
        assert limiter.stats().keys <= 2
    assert moment > 100, "too few moments to mean anything"
