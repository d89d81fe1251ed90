"""Rolling windows: how many of the latest calls failed or were slow, in O(1) for any amount of traffic.

Nothing is ever subtracted. Each counter only grows; a window remembers what the counters read when its
oldest part began, and the difference is the window. So a good call costs one increment, needs no lock, and
an increment that arrives while the window moves is counted in the next part instead of being lost.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import deque
from typing import Final, Protocol, TypeAlias

from . import params
from .fork import renew_after_fork

__all__ = ["HAS_GIL", "CallWindow", "Calls", "Counts", "NoWindow", "Tally", "TimeWindow", "Window", "ticker"]

BUCKETS = 10
"""Parts of a time window: it forgets in steps of a tenth of its length."""


class _LockedCount:
    """`itertools.count` for builds without a global lock, where one C call is not atomic by itself."""

    __slots__ = ("_lock", "_next")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0

    def __next__(self) -> int:
        with self._lock:
            value = self._next
            self._next += 1
            return value


HAS_GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()


def ticker() -> itertools.count[int] | _LockedCount:
    """Return what any thread may raise without a lock, by `next`: one atomic C call."""
    return itertools.count() if HAS_GIL else _LockedCount()


class Tally:
    """A counter that any thread may raise without a lock: `next(tally.ticker)`.

    Concurrency: raising is one atomic C call. Reading has to raise it too, to see it, and takes account of
    that under a lock.
    """

    __slots__ = ("__weakref__", "_lock", "_reads", "ticker")

    def __init__(self) -> None:
        self.ticker = ticker()
        self._reads = 0
        self.after_fork()
        renew_after_fork(self)

    def read(self) -> int:
        """Return how often the counter was raised."""
        with self._lock:
            value = next(self.ticker) - self._reads
            self._reads += 1
            return value

    def after_fork(self) -> None:
        self._lock = threading.RLock()


Counts: TypeAlias = tuple[int, int, int]
"""What a window holds: calls, failures, slow. Bare, because one is made for every call that fails."""

_Mark: TypeAlias = tuple[int, int, int]
"""What the counters read at some moment: successes, failures, slow."""


class Calls:
    """A window of the last *count* calls, for `window=`.

    Args:
        count: how many calls; at least 1.

    Raises:
        TypeError: *count* is not a whole number.
        ValueError: *count* is below 1.

    Concurrency: immutable.
    """

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = params.count("count", count)

    def __repr__(self) -> str:
        return f"Calls({self.count})"


class Window(Protocol):
    """What the breaker asks of a window. All methods require external locking; `ticker` does not."""

    edge: float
    """Until when `ticker` may be raised without asking: after that, `roll` first."""

    def succeeded(self) -> None: ...
    def failed(self) -> None: ...
    def was_slow(self) -> None: ...
    def roll(self, now: float) -> None: ...
    def counts(self) -> Counts: ...
    def restart(self, now: float) -> None: ...


class TimeWindow:
    """The calls of the last *length* seconds, in `BUCKETS` parts.

    Successes are raised from outside through the shared tally; failures and slow calls come in under the
    owner's lock and are plain numbers.

    Concurrency: requires external locking.
    """

    __slots__ = ("_failures", "_marks", "_slow", "_step", "_successes", "edge")

    def __init__(self, length: float, successes: Tally, now: float) -> None:
        self._step = length / BUCKETS
        self._successes = successes
        self._failures = 0
        self._slow = 0
        # What the counters read when each part of the window began, oldest first.
        self._marks: deque[_Mark] = deque(maxlen=BUCKETS)
        self.edge = now
        self.restart(now)

    def restart(self, now: float) -> None:
        """Forget everything and begin the first part at *now*."""
        # As a whole: an interrupt must not leave it without any.
        self._marks = deque((self._read(),), maxlen=BUCKETS)
        self.edge = now + self._step

    def succeeded(self) -> None:
        next(self._successes.ticker)

    def failed(self) -> None:
        self._failures += 1

    def was_slow(self) -> None:
        self._slow += 1

    def roll(self, now: float) -> None:
        """Move the window on to *now*."""
        if now < self.edge:
            return
        parts = (now - self.edge) / self._step + 1
        if not parts < BUCKETS:  # the form that also catches a NaN from a broken clock
            self.restart(now)
            return
        mark = self._read()
        for _ in range(int(parts)):
            self._marks.append(mark)
            self.edge += self._step

    def counts(self) -> Counts:
        successes, failures, slow = self._marks[0]
        failures = self._failures - failures
        return self._successes.read() - successes + failures, failures, self._slow - slow

    def _read(self) -> _Mark:
        return self._successes.read(), self._failures, self._slow


class CallWindow:
    """The last *length* calls.

    A failure is kept as the serial number of its call; those that are *length* calls back have left the
    window. Successes need not be kept at all.

    Concurrency: requires external locking.
    """

    __slots__ = ("_base", "_failures", "_failures_seen", "_length", "_slow", "_successes", "edge")

    def __init__(self, length: int, successes: Tally, now: float) -> None:
        self._length = length
        self._successes = successes
        self.edge = math.inf
        self.restart(now)

    def restart(self, now: float) -> None:  # noqa: ARG002 - calls, not seconds, are what passes here
        """Forget everything."""
        self._base = self._successes.read()
        self._failures_seen = 0
        self._failures: deque[int] = deque()
        self._slow: deque[int] = deque()

    def succeeded(self) -> None:
        next(self._successes.ticker)

    def failed(self) -> None:
        self._failures_seen += 1
        self._failures.append(self._serial())

    def was_slow(self) -> None:
        self._slow.append(self._serial())

    def roll(self, now: float) -> None:  # noqa: ARG002
        self._forget(self._serial() - self._length)

    def counts(self) -> Counts:
        serial = self._serial()
        self._forget(serial - self._length)
        return min(serial, self._length), len(self._failures), len(self._slow)

    def _serial(self) -> int:
        """Return the number of the latest call."""
        return self._successes.read() - self._base + self._failures_seen

    def _forget(self, horizon: int) -> None:
        for serials in (self._failures, self._slow):
            while serials and serials[0] <= horizon:
                serials.popleft()


class NoWindow:
    """No window at all: only the counters, for a breaker that goes by consecutive failures alone.

    Concurrency: requires external locking.
    """

    __slots__ = ("_successes", "edge")

    def __init__(self, successes: Tally) -> None:
        self._successes = successes
        self.edge = math.inf

    def restart(self, now: float) -> None: ...
    def succeeded(self) -> None:
        next(self._successes.ticker)

    def failed(self) -> None: ...
    def was_slow(self) -> None: ...
    def roll(self, now: float) -> None: ...
    def counts(self) -> Counts:
        return 0, 0, 0
