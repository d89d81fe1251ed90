"""What is asked of a bulkhead under stress: who was inside, and whether all slots are there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.stress.signals import within_seconds

from resilient import Bulkhead, BulkheadFullError, deadline

__all__ = ["Inside", "assert_whole", "busy", "usable"]


class Inside:
    """Who is inside at a moment, in a book that needs no lock, and that interrupts leave true."""

    def __init__(self) -> None:
        self._visitors: set[object] = set()
        self.seen: list[int] = []  # by each visitor: how many were inside, itself included

    @property
    def most(self) -> int:
        """The most there were inside at once."""
        return max(self.seen)

    def visit(self, *_args: object) -> None:
        """Stay for a moment."""
        visitor = object()
        try:
            self.come(visitor)
            time.sleep(0.0)  # lets other threads have their turn
        finally:
            self._visitors.discard(visitor)  # not by `go`: an interrupt could come between

    async def avisit(self, *_args: object) -> None:
        """Stay for a turn of the loop."""
        visitor = object()
        try:
            self.come(visitor)
            await asyncio.sleep(0)
        finally:
            self._visitors.discard(visitor)  # not by `go`: an interrupt could come between

    def come(self, visitor: object) -> None:
        """Be inside."""
        self._visitors.add(visitor)
        self.seen.append(len(self._visitors))

    def go(self, visitor: object) -> None:
        """Be inside no more."""
        self._visitors.discard(visitor)


@contextlib.contextmanager
def busy(call: Callable[[], object], threads: int) -> Iterator[None]:
    """Have so many *threads* do it over and over for as long as the block lasts; fail if it raises in one."""
    over, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not over.is_set():
                call()
        except BaseException as exc:
            errors.append(exc)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert not errors, errors


def usable(bulkhead: Bulkhead, **how: Any) -> int:
    """Return how many calls fit in at once; *how* is for `calling`."""
    count = 0
    with contextlib.ExitStack() as held, deadline(1e-9):  # none waits
        while True:
            try:
                held.enter_context(bulkhead.calling(**how))
            except BulkheadFullError:
                return count
            count += 1


def assert_whole(bulkhead: Bulkhead, slots: int, **how: Any) -> None:
    """Fail unless nobody is in, *slots* calls fit in, and other threads get through."""
    stats = bulkhead.stats()
    assert (stats.in_use, stats.waiting) == (0, 0), stats
    assert usable(bulkhead, **how) == slots, bulkhead.stats()
    assert within_seconds(5.0, lambda: usable(bulkhead, **how)) == slots
    assert bulkhead.stats().in_use == 0, bulkhead.stats()
