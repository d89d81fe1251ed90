"""When to connect: as soon as needed while that works; when not, one at a time and ever more rarely."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Final

__all__ = ["Supply"]

_FIRST_PAUSE: Final = 0.05  # seconds
_LONGEST_PAUSE: Final = 0.75  # seconds; with the attempt itself, a server is back for a second unnoticed
_DOWN_AFTER: Final = 3  # failures in a row
_KNOWN_FOR: Final = 5.0  # seconds after the last attempt should have ended; who comes later finds out anew
_FORGOTTEN: Final = 10.0  # seconds without a failure after which the next one is the first


class Supply:
    """Keeps account of how connecting goes.

    Concurrency: requires external locking.

    Source: exponential back-off with jitter after the cap; Finagle's FailFastFactory for the single attempt
    that tells whether the server is back.
    """

    __slots__ = (
        "_at_once",
        "_failed_at",
        "_known_for",
        "_pause",
        "_random",
        "failing_since",
        "failures",
        "last_failure",
        "retry_at",
    )

    def __init__(
        self, at_once: int, connect_timeout: float, random: Callable[[], float] = random.random
    ) -> None:
        self._random = random
        self._at_once = at_once  # so that a spike of callers makes no spike of connections
        self._known_for = connect_timeout + _KNOWN_FOR
        self._failed_at = -inf
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
        return connecting < (1 if self.failures else self._at_once)

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next attempt."""
        return max(0.0, self.retry_at - now) if self.failures else 0.0

    def is_known_down(self, now: float) -> bool:
        """Tell whether the server is down, and that was found out just now."""
        return self.is_down and now <= self.retry_at + self._known_for

    def failed(self, now: float, reason: str) -> bool:
        """Count a failure; return whether it is the one by which it is known that the server is down."""
        self.last_failure = reason
        if self.failures and now < self.retry_at:
            return False  # of those that were made at once, one counts
        if not self.failures:
            self.failing_since = now
        # A server that accepts, and is of no use after that, is not asked ever so often either.
        longer = now - self._failed_at < _FORGOTTEN
        self._pause = min(2.0 * self._pause, _LONGEST_PAUSE) if longer else _FIRST_PAUSE
        self._failed_at = now
        self.failures += 1
        # Half of it at least, and never more than the cap.
        self.retry_at = now + self._pause * (0.5 + 0.5 * self._random())
        return self.failures == _DOWN_AFTER

    def succeeded(self, now: float) -> float | None:
        """Forget the failures; return for how long it was known that the server is down, if it was."""
        seconds = now - self.failing_since if self.is_down else None
        self.failures = 0
        self.last_failure = None
        return seconds
