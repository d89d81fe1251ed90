"""Checks that find what they are told, and count how often they were asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resilient.health import Health, Status

__all__ = ["AScripted", "Scripted", "a_health", "states"]

LONG = 30.0


class Scripted:
    """A check that answers *answer*, or raises it; it waits before for as long as it is held."""

    name = "it"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.runs = 0
        self.at_once = 0  # how many there are now
        self.most = 0  # how many there ever were at once
        self.begun = threading.Event()
        self._gate = threading.Event()
        self._gate.set()
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            self.runs += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.begun.set()
        self._gate.wait(LONG)
        with self._lock:
            self.at_once -= 1
        if isinstance(self.answer, BaseException):
            raise self.answer.with_traceback(None)  # or that would grow with each run
        return self.answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it hang for as long as the block lasts."""
        self._gate.clear()
        self.begun.clear()
        try:
            yield
        finally:
            self._gate.set()


class AScripted:
    """The same as a coroutine function; held, it sleeps until it is cancelled, or is deaf to that."""

    name = "it"

    def __init__(self, answer: Any = None, *, deaf: bool = False) -> None:
        self.answer = answer
        self.runs = 0
        self.cancelled = 0
        self.at_once = self.most = 0
        self.is_held = False
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.threads: list[threading.Thread] = []
        self._deaf = deaf

    async def __call__(self) -> Any:
        self.runs += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.loops.append(asyncio.get_running_loop())
        self.threads.append(threading.current_thread())
        try:
            while self.is_held:
                try:
                    await asyncio.sleep(0.005)
                except asyncio.CancelledError:
                    self.cancelled += 1
                    if not self._deaf:
                        raise
        finally:
            self.at_once -= 1
        if isinstance(self.answer, BaseException):
            raise self.answer.with_traceback(None)  # or that would grow with each run
        return self.answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it hang for as long as the block lasts."""
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False


@contextmanager
def a_health(**words: Any) -> Iterator[Health]:
    """Return a Health in which nothing takes too long, unless told otherwise; closed in the end."""
    words = {"timeout": LONG, "answer_within": LONG} | words
    health = Health("shop", **words)
    try:
        yield health
    finally:
        health.close()


def states(health: Health, group: str = "all") -> dict[str, Status]:
    """Return how each check in *group* stands, without waiting."""
    return {result.name: result.status for result in health.latest(group).results}
