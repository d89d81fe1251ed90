"""What all checks have in common: a name, and words for figures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Final, Self

from ...engine import params
from ...engine.deadline import time_left
from ...engine.finding import Status
from ...typing import Seconds
from .. import tidy
from ..secrets import masked

__all__ = [
    "MB",
    "Check",
    "Watchdog",
    "by_share",
    "duration",
    "in_time",
    "megabytes",
    "reason",
    "seconds_of",
    "thresholds",
]

MB: Final = 1024 * 1024
_GB: Final = 1024 * MB
# Of the time that is left: so that whoever asks first, and does not wait for all of it, is told as well.
_MOST: Final = 0.6
_LEAST: Final = 0.01  # seconds
_LONGEST: Final = 200  # characters of a reason, which may not be all there is to say
_MINUTE: Final = 60.0
_TEN: Final = 10.0


class Check:
    """A check that comes ready made; called, it tells what it has found.

    Attributes:
        external: whether it looks at something outside this process.
    """

    external: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self._name = params.named("name", name)

    @property
    def name(self) -> str:
        """What it is called in a report."""
        return self._name

    def __repr__(self) -> str:
        subject = self._subject()
        kind = next(kind.__name__ for kind in type(self).__mro__ if not kind.__name__.startswith("_"))
        return f"<{kind} {self._name!r}{' of ' + masked(subject) if subject else ''}>"

    def _subject(self) -> str:
        """Return what it looks at, in a word; nothing, where its name says so."""
        return ""


class Watchdog:
    """Call *act* when the block has not ended after *seconds*, from another thread; never after its end.

    It is for cutting a connection whose client cannot be told how long to wait.
    """

    def __init__(self, seconds: float, act: Callable[[], object]) -> None:
        self._act = act
        self._lock = threading.Lock()
        self._over = False
        self._timer = threading.Timer(seconds, self._bite)
        self._timer.daemon = True
        self.bit = False
        """Whether it came to that."""

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the block had may be somebody else's after it: with the lock, the dog does not bite any more.
        with self._lock:
            self._over = True
        self._timer.cancel()

    def _bite(self) -> None:
        with self._lock:
            if not self._over:
                self.bit = True
                self._act()


def reason(error: BaseException) -> str:
    """Return why something failed, in one line without secrets."""
    return tidy.one_line(tidy.reason(error), _LONGEST)


def seconds_of(timeout: Seconds) -> float:
    """Return a timeout that a check was given."""
    return params.seconds("timeout", timeout, above=True)


def in_time(timeout: float) -> float:
    """Return how many seconds a check takes at most: *timeout*, or most of what its caller has left.

    Not all of it: that the time was up is said by the check, who knows what it has waited for.
    """
    left = time_left()
    return timeout if left is None else min(timeout, max(_LEAST, _MOST * left))


def thresholds(warn: float | None, fail: float | None, *, most: float | None = None) -> None:
    """See that of two thresholds, of which either may be None, the second is not the lower one."""
    for parameter, value in (("warn", warn), ("fail", fail)):
        if value is not None:
            params.number(parameter, value, above=True)
            if most is not None and value > most:
                params.refuse(ValueError, parameter, f"must be at most {most:g}", value)
    if warn is not None and fail is not None and fail < warn:
        params.refuse(ValueError, "fail", f"must be at least warn, which is {warn:g}", fail)


def by_share(value: float, warn: float | None, fail: float | None) -> Status:
    """Return what *value* amounts to, given from where on it warns, and fails."""
    if fail is not None and value >= fail:
        return Status.FAIL
    return Status.WARN if warn is not None and value >= warn else Status.PASS


def megabytes(size: float) -> str:
    """Return a number of bytes for people."""
    if abs(size) >= _TEN * _GB:
        return f"{size / _GB:.0f} GB"
    return f"{size / MB:.0f} MB" if abs(size) >= _TEN * MB else f"{size / MB:.1f} MB"


def duration(seconds: float) -> str:
    """Return how long something takes, for people."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s" if seconds >= _TEN else f"{seconds:.2g} s"
    if seconds < 3 * _MINUTE * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _MINUTE / _MINUTE:.0f} h"
