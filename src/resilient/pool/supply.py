"""When to connect: as soon as needed while that works; when not, one at a time and ever more rarely."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

__all__ = ["Supply"]

_AT_ONCE: Final = 3  # so that a spike of callers makes no spike of connections
_FIRST_PAUSE: Final = 0.05  # seconds
_LONGEST_PAUSE: Final = 1.0  # as long as a server may be back unnoticed
_DOWN_AFTER: Final = 3  # failures in a row
_KNOWN_FOR: Final = 5.0  # seconds after the last attempt was due; who comes later finds out anew


class Supply:
    """Keeps account of how connecting goes.

    Concurrency: requires external locking.

    Source: exponential back-off with jitter after the cap; Finagle's FailFastFactory for the single attempt
    that tells whether the server is back.
    """

    __slots__ = ("_pause", "_random", "failing_since", "failures", "last_failure", "retry_at")

    def __init__(self, random: Callable[[], float] = random.random) -> None:
        self._random = random
        self.failures = 0  # in a row
        self.failing_since = 0.0
        self.last_failure: str | None = None
        self.retry_at = 0.0
        self._pause = 0.0

    @property
    def is_down(self) -> bool:
        """Whether it has failed so often that nothing else is to be expected."""
        return self.failures >= _DOWN_AFTER

    def allows(self, connecting: int) -> bool:
        """Tell whether another connection may be begun while so many are being made."""
        return connecting < (1 if self.failures else _AT_ONCE)

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next attempt."""
        return max(0.0, self.retry_at - now) if self.failures else 0.0

    def review(self, now: float) -> None:
        """Forget failures so old that the next caller had better find out anew."""
        if self.failures and now > self.retry_at + _KNOWN_FOR:
            self.failures = 0

    def failed(self, now: float, reason: str) -> bool:
        """Count a failure; return whether it is the one by which it is known that the server is down."""
        if not self.failures:
            self.failing_since = now
            self._pause = _FIRST_PAUSE
        elif now >= self.retry_at:  # of those that were made at once, one counts for the pause
            self._pause = min(2.0 * self._pause, _LONGEST_PAUSE)
        self.failures += 1
        self.last_failure = reason
        # Half of it at least, and never more than the cap.
        self.retry_at = max(self.retry_at, now + self._pause * (0.5 + 0.5 * self._random()))
        return self.failures == _DOWN_AFTER

    def succeeded(self, now: float) -> float | None:
        """Forget the failures; return for how long it was known that the server is down, if it was."""
        seconds = now - self.failing_since if self.is_down else None
        self.failures = 0
        self.last_failure = None
        self.retry_at = 0.0
        return seconds
