"""How many retries a client may make at all: what keeps retries from making an outage worse."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine import params
from ..engine.clock import MONOTONIC
from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.living import remember
from ..engine.measure import Measure
from ..engine.window import Tally
from ..typing import Clock, Seconds
from .measures import of_budget

__all__ = ["BudgetStats", "RetryBudget"]

_BUCKETS = 10


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """What a retry budget holds.

    Attributes:
        calls: calls in the window, an estimate where no retry was asked for in it.
        retries: retries in the window.
        balance: retries that could be made now.
        denied: retries that were refused, since the start.
    """

    calls: float
    retries: int
    balance: float
    denied: int


class RetryBudget:
    """Limit retries to a share of the calls, so that a failing dependency sees hardly more load.

    Within *window* seconds at most `ratio x calls + min_per_second x window` retries are granted. Calls are
    counted where they begin, so the base does not shrink while they fail. A retry is withdrawn before its
    back-off and given back if it is never sent.

    Args:
        ratio: retries per call; 0 or more. 0 leaves only the minimum.
        min_per_second: retries a second that are granted whatever the traffic; 0 or more.
        window: seconds over which both are counted; greater than 0.
        name: in events and statistics.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop, and meant to be shared by all policies that retry on
        one dependency. A call costs one increment; only a retry takes the lock.

    Source: Finagle's RetryBudget; "Handling Overload", Site Reliability Engineering, chapter 21.
    """

    kind: ClassVar[str] = "RetryBudget"

    def __init__(
        self,
        ratio: float = 0.2,
        min_per_second: float = 10.0,
        window: Seconds = 10.0,
        *,
        name: str = "retry-budget",
        clock: Clock = MONOTONIC,
    ) -> None:
        self.name = params.named("name", name)
        self.ratio = params.number("ratio", ratio)
        self.min_per_second = params.number("min_per_second", min_per_second)
        self.window = params.seconds("window", window, above=True)
        self._clock = params.callback("clock", clock)
        self._lock = threading.RLock()
        self._tallies: list[tuple[weakref.ref[object], Tally]] = []
        self._seen = 0  # calls counted so far, over all tallies, including those of policies that are gone
        self._gone = 0
        # Calls and retries per part of the window, oldest first; the last part ends at `_edge`. The current
        # part is never a whole one: with one more of them, no retry is forgotten before its window is over.
        self._calls: deque[float] = deque([0.0] * _BUCKETS, maxlen=_BUCKETS)
        self._retries: deque[int] = deque([0] * (_BUCKETS + 1), maxlen=_BUCKETS + 1)
        self._part = 1  # the number of the current part
        self._returned: deque[int] = deque()  # parts of the retries given back since the last look
        self._looked = self._clock()
        self._edge = self._looked + self.window / _BUCKETS
        self._denied = 0
        renew_after_fork(self)
        remember(self)

    def enrol(self, owner: object, tally: Tally) -> None:
        """Count the calls of *tally* as calls of this budget, for as long as *owner* lives."""
        with self._lock:
            self._drop_departed()
            self._tallies.append((weakref.ref(owner), tally))
            self._gone -= tally.read()  # what it counted before is no call of this budget

    def withdraw(self) -> int:
        """Take one retry out; return a mark for `refund`, or 0 if there was none."""
        with self._lock:
            self._roll()
            if self._retries_left() < 1.0:
                self._denied += 1
                return 0
            self._retries[-1] += 1
            return self._part

    def refund(self, mark: int) -> None:
        """Give back the retry that `withdraw` answered with *mark*: it was never sent."""
        # One append and no lock: this may be called by a finalizer, in the middle of anything.
        self._returned.append(mark)

    def stats(self) -> BudgetStats:
        """Return what the budget holds now."""
        with self._lock:
            self._roll()
            return BudgetStats(sum(self._calls), sum(self._retries), self._retries_left(), self._denied)

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_budget(self.stats())

    def finding(self) -> Finding:
        """Return how it stands, for health. A warning: it is spent, and failures are not retried."""
        stats = self.stats()
        status, output = Status.PASS, ""
        if stats.retries and stats.balance < 1.0:  # one that is empty because there are no calls is not spent
            spent = f"{stats.retries} retries of {stats.calls:.0f} calls in the last {self.window:g} s"
            status, output = Status.WARN, f"spent: {spent}; further failures are not retried"
        facts = {"calls": round(stats.calls), "retries": stats.retries, "denied": stats.denied}
        return Finding(status, output, value=max(0.0, stats.balance), unit="retries", facts=facts)

    def __repr__(self) -> str:
        return f"<RetryBudget {self.name!r} {self.stats().balance:.1f} retries left>"

    def _retries_left(self) -> float:
        granted = self.ratio * sum(self._calls) + self.min_per_second * self.window
        return granted - sum(self._retries)

    def _roll(self) -> None:
        """Move the window on, and spread the calls since the last look evenly over the time since then.

        Calls are only counted, not timed: a clock would cost more than all the rest of a call that succeeds.
        """
        now = max(self._clock(), self._looked)
        elapsed, self._looked = now - self._looked, now
        fresh = self._count_calls()
        step = self.window / _BUCKETS
        rate = fresh / elapsed if elapsed > 0.0 else 0.0
        begin = now - elapsed
        for _ in range(_BUCKETS):
            if now < self._edge:
                break
            # A part that begins after the last look was empty so far; the others get their share.
            self._calls[-1] += rate * max(0.0, self._edge - max(begin, self._edge - step))
            self._calls.append(0.0)
            self._retries.append(0)
            self._part += 1
            self._edge += step
        if now >= self._edge:  # more than a whole window has passed
            self._skip_to(now, rate, step)
        self._take_back()
        self._calls[-1] += rate * (now - max(begin, self._edge - step)) if elapsed > 0.0 else fresh

    def _skip_to(self, now: float, rate: float, step: float) -> None:
        self._calls.extend([rate * step] * (_BUCKETS - 1))
        self._calls.append(0.0)
        self._retries.extend([0] * (_BUCKETS + 1))
        self._part += _BUCKETS + 1
        self._edge = now + step

    def _take_back(self) -> None:
        while self._returned:
            position = self._returned.popleft() - self._part - 1
            if position >= -len(self._retries):  # or its part has left the window already
                self._retries[position] -= 1

    def _count_calls(self) -> int:
        self._drop_departed()
        total = self._gone + sum(tally.read() for _, tally in self._tallies)
        fresh, self._seen = total - self._seen, total
        return fresh

    def _drop_departed(self) -> None:
        """Let go of policies that are no more; what they counted stays counted."""
        # Here, and not when they die: a finalizer runs in the middle of anything and must not take a lock.
        departed = [entry for entry in self._tallies if entry[0]() is None]
        for entry in departed:
            self._tallies.remove(entry)
            self._gone += entry[1].read()

    def after_fork(self) -> None:
        """Begin afresh in a forked child."""
        self._lock = threading.RLock()


def checked_budget(value: Any) -> RetryBudget | None:
    """Return *value* if it is a budget or None."""
    if value is not None and not isinstance(value, RetryBudget):
        params.refuse(TypeError, "budget", "must be a RetryBudget or None", value)
    return value
