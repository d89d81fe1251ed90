"""Real signals whose handler raises: interrupts at any moment, between any two bytecodes.

A timer of 1 to 120 microseconds runs out somewhere in a call, and its handler raises, as Ctrl-C and a
worker's `SoftTimeLimitExceeded` do.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import resilient

__all__ = ["Interrupted", "Interrupter", "interrupting", "within_seconds"]

LONGEST = 120e-6  # seconds
_OURS = str(Path(resilient.__file__).parent)


class Interrupted(BaseException):
    """What the signal handler raises."""


class Interrupter:
    """Interrupts calls again and again, in the main thread."""

    def __init__(self) -> None:
        self._random = random.Random(2)
        self._armed = False
        self.struck = 0  # how often the handler raised
        self.inside = 0  # of these, with a frame of the library's on the stack
        self.interrupts = 0  # how many of them came out

    def storm(self, call: Callable[[], object], *, seconds: float) -> None:
        """Run *call* over and over for *seconds*, most times interrupted once at a random moment."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._interrupt(call)

    def strike(self, call: Callable[[], object], *, times: int) -> None:
        """Run *call* over and over until it was interrupted so many *times*, each at a random moment."""

        def forever() -> None:
            while True:
                call()

        for _ in range(times):
            self._interrupt(forever)

    def _interrupt(self, call: Callable[[], object]) -> None:
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, LONGEST))
            call()
            self._armed = False
        except Interrupted:
            self.interrupts += 1
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def handle(self, _number: int, frame: FrameType | None) -> None:
        """Raise, but for a signal that comes after the call."""
        if self._armed:
            self._armed = False
            self.struck += 1
            self.inside += _is_inside(frame)
            raise Interrupted


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OURS):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def interrupting() -> Iterator[Interrupter]:
    """Have an interrupter's handler in place of SIGALRM's."""
    made = Interrupter()
    previous = signal.signal(signal.SIGALRM, made.handle)
    gc.disable()  # Hypothesis listens to the collector in Python, and an interrupt would strike there
    log = logging.getLogger("resilient")
    log.disabled = True  # struck at a bad moment, logging does not let go of its lock, and all threads hang
    try:
        yield made
    finally:
        log.disabled = False
        gc.enable()
        signal.signal(signal.SIGALRM, previous)
    assert made.interrupts > 100, "too few interrupts to mean anything"
    assert made.interrupts == made.struck, "an interrupt was swallowed"


def within_seconds(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what *call* returns in another thread; fail if it does not end."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert answers, "the call hangs or failed"
    return answers[0]
