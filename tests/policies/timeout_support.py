"""What the tests of time limits share."""

from __future__ import annotations

import asyncio


async def hang() -> None:
    """Wait far longer than any limit here."""
    await asyncio.sleep(30)


def cancels_pending() -> int:
    """Return how often the current task was asked to cancel and the cancel not taken back."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
