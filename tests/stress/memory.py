"""Whether calls leave memory behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable

__all__ = ["aassert_flat", "assert_flat"]

WARM_UP = 500
FEW_BLOCKS = 300  # caches of the interpreter's own come and go
ROUNDS = 3  # what leaks does so in each of them; what the interpreter or a late neighbour keeps, in one


def assert_flat(calls: Callable[[int], None], number: int) -> None:
    """Fail if each time so many *calls* leave something behind."""
    calls(WARM_UP)
    growth = []
    for _ in range(ROUNDS):
        before = _blocks()
        calls(number)
        growth.append(_blocks() - before)
    assert min(growth) < FEW_BLOCKS, growth


async def aassert_flat(calls: Callable[[int], Awaitable[None]], number: int) -> None:
    """Do as `assert_flat`, on a loop."""
    await calls(WARM_UP)
    growth = []
    for _ in range(ROUNDS):
        before = _blocks()
        await calls(number)
        growth.append(_blocks() - before)
    assert min(growth) < FEW_BLOCKS, growth


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()
