"""What the forms of one time limit share: its length, its counters, its errors."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..engine.deadline import Instant, current_deadline
from ..engine.fork import renew_after_fork
from ..engine.latency import BATCH, Latency, Stopwatch
from ..engine.window import Tally
from ..errors import BulkheadFullError, CallTimeoutError, DeadlineExceededError
from ..events import Announcer, CallTimedOut
from ..typing import Clock

__all__ = ["Limit", "TimeoutStats"]


@dataclass(frozen=True, slots=True)
class TimeoutStats:
    """What a time limit has counted.

    Attributes:
        calls: calls that were let in.
        timed_out: calls that were cut off, or that their caller stopped waiting for.
        rejected: calls not begun, because the deadline had passed or no thread came free in time.
        abandoned: calls whose caller has gone and whose thread still works on them, now.
        latency: how long calls took lately that were answered in time, or cut off; streams are not timed.
    """

    calls: int
    timed_out: int
    rejected: int
    abandoned: int
    latency: Latency


class Limit:
    """What the forms of one time limit share: its length, its counters, its errors."""

    def __init__(
        self,
        kind: str,
        name: str,
        seconds: float,
        clock: Clock,
        announcer: Announcer,
        *,
        stopwatch: Stopwatch,
    ) -> None:
        self.kind = kind
        self.name = name
        self.seconds = seconds
        self.clock = clock
        self.announcer = announcer
        self.calls = Tally()
        self.stopwatch = stopwatch
        self.timed_out = self.rejected = 0
        self.after_fork()
        renew_after_fork(self)

    def begin(self, instant: Instant) -> float:
        """Set *instant* for a call that begins now, and return the seconds it may take.

        Raises:
            DeadlineExceededError: the caller's deadline has passed.
        """
        seconds, outer = self.seconds, current_deadline()
        if outer is not None and (left := outer.when - outer.clock()) < seconds:
            if left <= 0.0:
                raise self.too_late(left)
            seconds = left
        next(self.calls.ticker)
        instant.outer = outer
        instant.clock = self.clock
        instant.begun = now = self.clock()
        instant.when = now + seconds
        instant.over = False
        return seconds

    def answered(self, begun: float) -> None:
        """Note how long a call took that was *begun* then, and was answered."""
        now, watch = self.clock(), self.stopwatch
        watch.good.add(now - begun)
        if len(watch.good.pending) >= BATCH:
            watch.rest(now)

    def too_late(self, left: float) -> DeadlineExceededError:
        """Count and describe a call whose deadline had passed: *left* seconds, 0 or less, were left."""
        with self.lock:
            self.rejected += 1
        message = f"{self.kind} {self.name!r}: the deadline passed {-left:.3g} s ago, the call was not begun"
        return DeadlineExceededError(message, policy=self.name)

    def no_thread(self, size: int, seconds: float) -> BulkheadFullError:
        """Count and describe a call for which none of *size* threads came free."""
        with self.lock:
            self.rejected += 1
        reason = f"none of its threads ({size}) came free in {seconds:.3g} s, the call was not begun"
        return BulkheadFullError(f"{self.kind} {self.name!r}: {reason}", policy=self.name)

    def overrun(self, seconds: float, *, running: bool, timed: bool = False) -> CallTimeoutError:
        """Count, announce and describe a call that took too long, and that was *timed* or not."""
        with self.lock:
            self.timed_out += 1
        if timed:
            self.stopwatch.bad.record(seconds)
        if self.announcer.heard:
            self.announcer.announce(CallTimedOut(self.name, seconds, running))
        message = f"{self.kind} {self.name!r}: no answer in {seconds:.3g} s"
        return CallTimeoutError(message, policy=self.name, seconds=seconds)

    def stats(self, abandoned: int) -> TimeoutStats:
        """Return what has been counted so far."""
        latency = self.stopwatch.lately()
        with self.lock:
            return TimeoutStats(self.calls.read(), self.timed_out, self.rejected, abandoned, latency)

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self.lock = threading.RLock()  # re-entrant, for signal handlers
        self.announcer.after_fork()
