"""Wait for what a server, a thread or a fleet brings about in its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_POLL_EVERY = 0.01


def wait_until(condition: Callable[[], bool], what: str, *, within: float = 20.0) -> None:
    """Return as soon as *condition* holds.

    Raises:
        TimeoutError: it did not within *within* seconds; *what* says what was waited for.
    """
    give_up_at = time.monotonic() + within
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{what}: not within {within} s")
        time.sleep(_POLL_EVERY)


async def await_until(condition: Callable[[], bool], what: str, *, within: float = 20.0) -> None:
    """Do as `wait_until`, and let the event loop's other tasks go on between two looks."""
    give_up_at = time.monotonic() + within
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{what}: not within {within} s")
        await asyncio.sleep(_POLL_EVERY)
