"""Cutting coroutines off when their time is up.

All calls under one limit on one loop run out in the order in which they began. So they stand in one queue
with one timer for its head, instead of a timer each: beginning and ending a call touches the queue only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from .clock import MONOTONIC
from .deadline import Instant

__all__ = ["TIMED", "Cutoff", "CutoffQueue"]

TIMED: Final = 1
_FIRED: Final = 2

_SLACK: Final = 64  # finished entries that may stand behind a long call before they are swept out


class Cutoff(Instant):
    """One call that will be cut off, and the deadline it sets for what it calls."""

    __slots__ = ("cancelling", "fired", "heeded", "queue", "seconds", "task", "timer")

    seconds: float  # how long the call was given
    task: asyncio.Task[Any] | None  # None once the call has ended
    fired: bool  # whether it was cut off
    heeded: int  # not 0 where there is more to its end than to leave the queue: `TIMED`, and what `fire` adds
    cancelling: int  # how often the task had been asked to cancel before
    queue: CutoffQueue | None  # where it stands; None if it has a timer of its own
    timer: asyncio.TimerHandle | None

    def fire(self) -> None:
        """Cancel the call, if it is still under way."""
        if self.task is not None:
            self.fired = True
            self.heeded |= _FIRED
            self.task.cancel()


class CutoffQueue:
    """The calls under way on *loop* under one limit, in the order in which they began.

    A call that has ended stays as a blank until it is at the head, or until there are too many of them.

    Concurrency: belongs to its loop's thread.
    """

    __slots__ = ("_blanks", "entries", "loop", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.entries: deque[Cutoff] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self._blanks = 0

    def start_timer(self) -> None:
        """Wake up when the head's time is up."""
        delay = self.entries[0].when - MONOTONIC()
        self.timer = self.loop.call_later(max(0.0, delay), self._fire)

    def trim(self) -> None:
        """Take blanks from the head."""
        entries = self.entries
        while entries and entries[0].over:
            entries.popleft()
            self._blanks -= 1

    def leave_blank(self) -> None:
        """Note that a call ended which is not at the head."""
        self._blanks += 1
        if self._blanks > _SLACK and self._blanks * 2 > len(self.entries):
            live = [entry for entry in self.entries if not entry.over]
            self.entries.clear()
            self.entries.extend(live)
            self._blanks = 0

    def _fire(self) -> None:
        self.timer = None
        entries = self.entries
        now = MONOTONIC()
        self.trim()
        while entries and entries[0].when <= now:
            entries.popleft().fire()
            self.trim()
        if entries:
            self.start_timer()
