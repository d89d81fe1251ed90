"""How long to wait between attempts, and when to stop: strategies for `Retry` and for plain tenacity.

Each is an ordinary tenacity strategy (`wait_base`, `stop_base`) and mixes with tenacity's own by `+` and `|`.
Jitter comes after the cap, never before it: a capped wait without jitter is the same for every client, and
brings them all back at the same moment when an outage is long.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tenacity import RetryCallState
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_fixed, wait_none

from ..engine import params
from ..engine.deadline import time_left
from ..typing import Seconds

__all__ = [
    "LONGEST_ASKED",
    "longest_waits",
    "retry_after_of",
    "stop_at_deadline",
    "wait_decorrelated_jitter",
    "wait_equal_jitter",
    "wait_full_jitter",
    "wait_retry_after",
]

LONGEST_ASKED: Final = 3600.0
"""Seconds; a server that asks for more is not waited for."""

_MAX_HEADER: Final = 64  # characters of a Retry-After that are looked at


class _Exponential(wait_base):
    """An exponential back-off that is capped, and then made uneven."""

    def __init__(
        self,
        initial: Seconds = 0.1,
        factor: float = 2.0,
        max: Seconds = 10.0,  # noqa: A002 - tenacity's word for it
        random: Callable[[], float] = random.random,
    ) -> None:
        self._initial = params.seconds("initial", initial, above=True)
        self._factor = params.number("factor", factor, least=1.0)
        self._max = params.seconds("max", max, above=True)
        self._random: Callable[[], float] = params.callback("random", random)

    def _capped(self, attempt: int) -> float:
        try:
            return min(self._max, self._initial * self._factor ** (attempt - 1))
        except OverflowError:  # beyond all floats, so beyond every cap
            return self._max

    def longest_total(self, waits: int) -> float:
        """Return the most that the first *waits* waits can add up to, in seconds."""
        return sum(self._capped(attempt) for attempt in range(1, waits + 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(initial={self._initial:g}, factor={self._factor:g}, max={self._max:g})"


class wait_full_jitter(_Exponential):  # noqa: N801 - tenacity's strategies are spelt like this
    """Wait a random time between 0 and a capped exponential back-off.

    Args:
        initial: the first upper bound, in seconds; greater than 0.
        factor: by how much the bound grows with each attempt; at least 1.
        max: the cap of the bound, in seconds; greater than 0.
        random: returns a number from 0 up to, not including, 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait after the attempt in *retry_state*."""
        return self._capped(retry_state.attempt_number) * self._random()


class wait_equal_jitter(_Exponential):  # noqa: N801
    """Wait half of a capped exponential back-off, and a random part of the other half.

    Args:
        initial: the first upper bound, in seconds; greater than 0.
        factor: by how much the bound grows with each attempt; at least 1.
        max: the cap of the bound, in seconds; greater than 0.
        random: returns a number from 0 up to, not including, 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait after the attempt in *retry_state*."""
        half = self._capped(retry_state.attempt_number) / 2
        return half + half * self._random()


class wait_decorrelated_jitter(_Exponential):  # noqa: N801
    """Wait a random time between *initial* and three times the wait before, capped.

    Args:
        initial: the shortest wait, in seconds; greater than 0.
        factor: how many times the wait before is the upper bound; at least 1.
        max: the longest wait, in seconds; greater than 0.
        random: returns a number from 0 up to, not including, 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable; the wait before is read from the call's own state.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(
        self,
        initial: Seconds = 0.1,
        factor: float = 3.0,
        max: Seconds = 10.0,  # noqa: A002
        random: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(initial, factor, max, random)

    def longest_total(self, waits: int) -> float:
        """Return the most that the first *waits* waits can add up to, in seconds."""
        total, bound = 0.0, self._initial
        for _ in range(waits):
            bound = min(self._max, bound * self._factor)
            total += bound
        return total

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait after the attempt in *retry_state*."""
        before = min(max(retry_state.upcoming_sleep, self._initial), self._max)
        # The bound is capped, not the draw: a capped draw would be the cap itself for most clients.
        upper = min(self._max, before * self._factor)
        lower = min(self._initial, upper)
        return lower + (upper - lower) * self._random()


class wait_retry_after(wait_base):  # noqa: N801
    """Wait at least as long as the server asked for, with another strategy where it did not.

    For plain tenacity; a `Retry` does so by itself (`retry_after=True`). Looks at `retry_after` and at the
    `Retry-After` header (seconds or HTTP date) of the exception, of its `response`, or of a result that is a
    response.

    Args:
        otherwise: a tenacity wait strategy for what is waited in any case; None for none.
        max: the most the server may ask for, in seconds; what is above is cut. Greater than 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: immutable.

    Source: RFC 9110, section 10.2.3.
    """

    def __init__(self, otherwise: wait_base | None = None, max: Seconds = LONGEST_ASKED) -> None:  # noqa: A002
        self._otherwise: Callable[[RetryCallState], float] = (
            wait_none() if otherwise is None else params.plain_function("otherwise", otherwise)
        )
        self._max = params.seconds("max", max, above=True)

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait after the attempt in *retry_state*."""
        waited = self._otherwise(retry_state)
        outcome = retry_state.outcome
        if outcome is None:
            return waited
        asked = retry_after_of(outcome.exception() if outcome.failed else outcome.result())
        return waited if asked is None else max(waited, min(asked, self._max))


class stop_at_deadline(stop_base):  # noqa: N801
    """Stop when the next attempt could not be begun before the caller's deadline.

    Args:
        reserve: seconds the attempt itself should have left; 0 or more.

    Raises:
        TypeError: *reserve* is no number of seconds.
        ValueError: *reserve* is below 0.

    Concurrency: immutable; reads the deadline of the current context.

    Source: the deadline of gRPC and Finagle, which bounds retries too.
    """

    def __init__(self, reserve: Seconds = 0.0) -> None:
        self._reserve = params.seconds("reserve", reserve)

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Return whether to stop after the attempt in *retry_state*."""
        left = time_left()
        return left is not None and retry_state.upcoming_sleep + self._reserve >= left


def retry_after_of(subject: Any, now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds a server asked to wait, from an exception or a response; None if it did not.

    What cannot be read is not there: a broken header never becomes an error.
    """
    for source in (subject, _attribute(subject, "response")):
        asked = _read(_attribute(source, "retry_after"), now)
        if asked is None:
            asked = _read(_header(source), now)
        if asked is not None:
            return asked
    return None


def _attribute(source: Any, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except Exception:  # noqa: BLE001 - a property of somebody else's that raises is a thing that is not there
        return None


def _header(source: Any) -> Any:
    headers = _attribute(source, "headers")
    for name in ("Retry-After", "retry-after"):
        try:
            value = headers.get(name)
        except Exception:  # noqa: BLE001 - not ours, and not what headers look like
            return None
        if value is not None:
            return value
    return None


def _read(value: Any, now: Callable[[], float]) -> float | None:
    try:
        return _as_seconds(value, now)
    except Exception:  # noqa: BLE001 - whatever sort of thing it is, it is no wait
        return None


def _as_seconds(value: Any, now: Callable[[], float]) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return _parsed(value.strip()[:_MAX_HEADER], now)
    if isinstance(value, int | float) and 0.0 <= value < math.inf:
        return float(min(value, sys.float_info.max))  # a whole number may be beyond all floats
    return None


def _parsed(text: str, now: Callable[[], float]) -> float | None:
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, moment.timestamp() - now())
    except (OverflowError, OSError):
        return None


def longest_waits(wait: wait_base, waits: int) -> float | None:
    """Return the most that *waits* waits of *wait* can add up to, in seconds; None where nobody knows."""
    if isinstance(wait, _Exponential):
        return wait.longest_total(waits)
    if isinstance(wait, wait_fixed):
        return float(wait.wait_fixed) * waits
    return None
