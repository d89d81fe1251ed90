"""Waiting without colour: threads and tasks wait side by side for the same thing.

Whoever wakes a waiter need not know what it is. A waiter is woken once; waking it again, or when it has gone
already, does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol

from ..typing import Clock

__all__ = ["TaskWaiter", "ThreadWaiter", "Turn", "Waiter", "running_loop", "spells"]

_LOOK_AGAIN: Final = 1.0  # seconds: whoever vanishes with what others wait for wakes nobody

running_loop = asyncio._get_running_loop  # noqa: SLF001 - documented, and None where there is none


class Waiter(Protocol):
    """Somebody who waits."""

    @property
    def stranded(self) -> bool: ...
    def wake(self) -> None: ...


class ThreadWaiter:
    """A thread that waits. Made and parked by that thread, woken by any."""

    __slots__ = ("_gate",)

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def stranded(self) -> bool:
        """Whether it can never be woken; no thread is."""
        return False

    def wake(self) -> None:
        # A lock may be released by any thread; released twice it raises, and that is fine here. Not with
        # `suppress`: that would be three frames, while others wait for whoever wakes.
        try:  # noqa: SIM105
            self._gate.release()
        except RuntimeError:
            pass

    def park(self, seconds: float | None) -> bool:
        """Wait to be woken, for at most *seconds* (None: without end); return whether it was."""
        if seconds is None:
            return self._gate.acquire()
        # The longest wait a lock takes is finite; nobody will see the end of it.
        return self._gate.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class TaskWaiter:
    """A task that waits. Made and awaited on its own loop, woken from any thread."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    @property
    def stranded(self) -> bool:
        """Whether it can never be woken: its loop has been closed under it."""
        return self._loop.is_closed()

    def wake(self) -> None:
        if running_loop() is self._loop:
            self._finish()  # without the detour through the loop's own socket
            return
        # The loop may be closed by now, and then nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish)

    async def park(self, seconds: float | None) -> bool:
        """Wait to be woken, for at most *seconds* (None: without end); return whether it was."""
        # Unlike `wait_for` this cancels nothing when the time is up, so a cancel is always the task's own.
        done, _ = await asyncio.wait((self._future,), timeout=seconds)
        return bool(done)

    def _finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Turn(Protocol):
    """What somebody waits for, until a moment, under the lock of whoever decides it."""

    until: float

    @property
    def decided(self) -> bool: ...


def spells(turn: Turn, lock: Any, clock: Clock, attend: Callable[[], None]) -> Generator[float]:
    """Return how long to wait for *turn* before one looks again, each time anew, until it is decided.

    Between two spells *attend* sees to it that what came free is handed on: whoever had it may have been
    interrupted with it in hand.
    """
    while not turn.decided:
        now = clock()
        # A signal's handler may have come into a step under the lock, which is re-entrant: while the handler
        # waits, nobody else can take one.
        if lock._is_owned():  # noqa: SLF001 - as Condition does
            turn.until = now
        left = turn.until - now
        if left <= 0.0:
            return
        yield min(left, _LOOK_AGAIN)
        if not turn.decided:
            attend()
