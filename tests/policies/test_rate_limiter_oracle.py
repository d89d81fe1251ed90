"""The windows beside those of the package limits: the same calls are let in.

Where limits differs on purpose or by accident, the calls are made so that it does not show: its windows of
the sliding counter follow the calendar, so the first call comes at the beginning of one; its fixed window
counts denied calls, so it is asked first; its moving window is closed at both ends, so no call comes exactly
a window after another.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import limits.storage.memory
import limits.strategies
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from tests.policies.rate_limiter_support import limiter_of, per_seconds

from resilient.testing import FakeClock

THEIRS = {
    "fixed-window": FixedWindowRateLimiter,
    "sliding-window-counter": SlidingWindowCounterRateLimiter,
    "moving-window": MovingWindowRateLimiter,
}
TICK = 1 / 64
WINDOWS = (2, 8, 64)  # seconds: powers of two, so that what limits makes of the time is exact
START = 1_600_000_000.0  # where windows of all lengths here begin


@pytest.fixture(scope="module")
def now() -> FakeClock:
    """The time that limits sees."""
    return FakeClock(START)


@pytest.fixture(scope="module", autouse=True)
def limits_at(now: FakeClock):
    """Have limits look at *now*, and spare the thread with which it forgets."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = SimpleNamespace(time=now)
        patch.setattr(limits.storage.memory, "time", stand_in)
        patch.setattr(limits.strategies, "time", stand_in)
        timer = SimpleNamespace(start=lambda: None, is_alive=lambda: True)
        threads = SimpleNamespace(RLock=threading.RLock, Timer=lambda *_: timer)
        patch.setattr(limits.storage.memory, "threading", threads)
        yield


CALLS = st.lists(
    st.tuples(
        st.integers(0, 20 * 64) | st.sampled_from([0, 8 * 64, 32 * 64, 64 * 64 + 1]),
        st.just(1) | st.integers(1, 6),
    ),
    max_size=60,
)


@pytest.mark.parametrize("strategy", THEIRS)
@given(amount=st.integers(1, 8), window=st.sampled_from(WINDOWS), calls=CALLS)
def test_same_calls_are_let_in_as_by_limits(
    now: FakeClock, strategy: str, amount: int, window: int, calls: list[tuple[int, int]]
):
    """One after the other, at any time, for one permit or several."""
    item = per_seconds(amount, window)
    now.advance(3_600.0 + -(now() + 3_600.0) % WINDOWS[-1])
    theirs = THEIRS[strategy](MemoryStorage())
    ours = limiter_of(item, now, strategy=strategy)
    idle_from = now()

    for number, (ticks, cost) in enumerate(calls, start=1):
        now.advance(ticks * TICK)
        if strategy == "moving-window":
            now.advance(2.0**-20)
        elif strategy == "sliding-window-counter" and now() >= idle_from:
            now.advance(-now() % window)
        expected = theirs.test(item, cost=cost) and theirs.hit(item, cost=cost)
        assert ours.hit(cost=cost).allowed == expected, f"call {number}"
        if expected:
            idle_from = now() - now() % window + 2 * window
        assert ours.peek().remaining == theirs.get_window_stats(item).remaining
