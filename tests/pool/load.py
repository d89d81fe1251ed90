"""Callers that borrow a connection again and again, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from resilient.errors import RejectedError

_PAUSE = 0.005  # seconds after a failure: callers of a real service do not spin either


@dataclass
class Outcomes:
    """What came of many calls, each of which asked its server to say a word of its own.

    Attributes:
        good: when calls ended well.
        failed: what calls raised that had a connection, and when.
        refused: what calls raised that were given none, and when.
        mixed: answers that were somebody else's.
        longest: the most seconds that a refused call took.
    """

    good: list[float] = field(default_factory=list)
    failed: list[tuple[float, Exception]] = field(default_factory=list)
    refused: list[tuple[float, RejectedError]] = field(default_factory=list)
    mixed: list[tuple[str, object]] = field(default_factory=list)
    longest: float = 0.0

    def add(self, word: str, answer: object) -> None:
        """Have the answer to a call that said *word*."""
        if answer == word:
            self.good.append(time.monotonic())
        else:
            self.mixed.append((word, answer))

    def add_failure(self, exc: Exception, began: float) -> None:
        """Have what a call raised."""
        now = time.monotonic()
        if isinstance(exc, RejectedError):
            self.refused.append((now, exc))
            self.longest = max(self.longest, now - began)
        else:
            self.failed.append((now, exc))

    def first_good_after(self, moment: float) -> float | None:
        """Return how many seconds after *moment* a call ended well; None if none did yet."""
        return min((at - moment for at in self.good.copy() if at > moment), default=None)


@contextmanager
def callers(call: Callable[[str], object], threads: int) -> Iterator[Outcomes]:
    """Have so many *threads* make calls for the length of the block."""
    outcomes, words, over = Outcomes(), itertools.count(), threading.Event()

    def run() -> None:
        while not over.is_set():
            word, began = f"word-{next(words)}", time.monotonic()
            try:
                outcomes.add(word, call(word))
            except Exception as exc:
                outcomes.add_failure(exc, began)
                over.wait(_PAUSE)

    crowd = [threading.Thread(target=run, name=f"caller-{number}") for number in range(threads)]
    for thread in crowd:
        thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        for thread in crowd:
            thread.join(20.0)


@asynccontextmanager
async def acallers(call: Callable[[str], Awaitable[object]], tasks: int) -> AsyncIterator[Outcomes]:
    """Have so many *tasks* make calls for the length of the block."""
    outcomes, words, over = Outcomes(), itertools.count(), asyncio.Event()

    async def run() -> None:
        while not over.is_set():
            word, began = f"word-{next(words)}", time.monotonic()
            try:
                outcomes.add(word, await call(word))
            except Exception as exc:
                outcomes.add_failure(exc, began)
                await asyncio.sleep(_PAUSE)

    async with asyncio.TaskGroup() as crowd:
        for _ in range(tasks):
            crowd.create_task(run())
        try:
            yield outcomes
        finally:
            over.set()
