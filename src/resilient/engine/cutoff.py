"""Cutting coroutines off when their time is up.

All calls under one limit on one loop run out in the order in which they began. So they stand in one queue
with one timer for its head, instead of a timer each: beginning and ending a call touches the queue only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

__all__ = ["Cutoff", "CutoffQueue"]

_SLACK: Final = 64  # finished entries that may stand behind a long call before they are swept out


class Cutoff:
    """One call that will be cut off at *when*. `task` is None once it has ended; `fired` once it was cut."""

    __slots__ = ("fired", "task", "when")

    def __init__(self, when: float, task: asyncio.Task[Any]) -> None:
        self.when = when
        self.task: asyncio.Task[Any] | None = task
        self.fired = False

    def fire(self) -> None:
        """Cancel the call, if it is still under way."""
        if self.task is not None:
            self.fired = True
            self.task.cancel()


class CutoffQueue:
    """The calls under way on *loop* that may each take *seconds*.

    Concurrency: belongs to its loop's thread.
    """

    __slots__ = ("_entries", "_finished", "_seconds", "_timer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self._seconds = seconds
        self._entries: deque[Cutoff] = deque()
        self._finished = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, task: asyncio.Task[Any]) -> Cutoff:
        """Enter a call of *task* that begins now."""
        entry = Cutoff(self.loop.time() + self._seconds, task)
        self._entries.append(entry)
        if self._timer is None:
            self._timer = self.loop.call_at(entry.when, self._fire)
        return entry

    def end(self, entry: Cutoff) -> None:
        """Take a call out again. It stays in the queue as a blank until it is at its head, or swept out."""
        entry.task = None
        entries = self._entries
        if entries and entries[0] is entry:
            entries.popleft()
            while entries and entries[0].task is None:
                entries.popleft()
                self._finished -= 1
        elif not entry.fired:
            self._finished += 1
            if self._finished > _SLACK and self._finished * 2 > len(entries):
                self._sweep()

    def _sweep(self) -> None:
        self._entries = deque(entry for entry in self._entries if entry.task is not None)
        self._finished = 0

    def _fire(self) -> None:
        self._timer = None
        entries = self._entries
        now = self.loop.time()
        while entries and (entries[0].task is None or entries[0].when <= now):
            entry = entries.popleft()
            if entry.task is None:
                self._finished -= 1
            else:
                entry.fire()
        if entries:
            self._timer = self.loop.call_at(entries[0].when, self._fire)
