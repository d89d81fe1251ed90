"""Takes a driver's steps as the two pools do."""

from __future__ import annotations

from collections.abc import Generator
from inspect import isawaitable

from resilient.pool.drivers import Steps


def take(steps: Steps) -> None:
    """Take *steps* as a synchronous pool does."""
    for _ in steps:
        pass


async def atake(steps: Steps) -> None:
    """Take *steps* as an asynchronous pool does: what can be awaited is, and the result sent back."""
    iterator = iter(steps)
    sent = None
    while True:
        try:
            step = iterator.send(sent) if isinstance(iterator, Generator) else next(iterator)
        except StopIteration:
            return
        sent = await step if isawaitable(step) else None
