"""Time: the clock and the one seam through which a policy sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ..typing import Clock

__all__ = ["MONOTONIC", "Sleep", "asleep", "pause_waits", "resume_waits", "sleep"]

MONOTONIC: Clock = time.monotonic

Sleep: TypeAlias = Callable[[float], Awaitable[None] | None]

# How many `no_waiting()` blocks are open. Only tests write it; a count, so that blocks may nest.
_paused = 0


def pause_waits() -> None:
    """Make every default sleep of the library return at once, until `resume_waits` is called."""
    global _paused  # noqa: PLW0603 - one switch for the whole process is the point of it
    _paused += 1


def resume_waits() -> None:
    """Take one `pause_waits` back."""
    global _paused  # noqa: PLW0603
    _paused -= 1


def sleep(delay: float, custom: Sleep | None = None) -> None:
    """Wait *delay* seconds in a thread, or hand the wait to the user's *custom* sleep."""
    if custom is None:
        if not _paused:
            time.sleep(delay)
    elif inspect.isawaitable(pending := custom(delay)):
        if inspect.iscoroutine(pending):
            pending.close()  # or Python would warn, much later and far away, that it was never awaited
        msg = f"sleep must be an ordinary function to be used from synchronous code, got {custom!r}"
        raise TypeError(msg)


async def asleep(delay: float, custom: Sleep | None = None) -> None:
    """Wait *delay* seconds in a task, or hand the wait to the user's *custom* sleep."""
    if custom is None:
        await asyncio.sleep(0 if _paused else delay)
        return
    pending = custom(delay)
    if inspect.isawaitable(pending):
        await pending
