"""What is to happen, in the order of time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from resilient.testing import FakeClock


class Agenda:
    """Run what was noted for later, and move the clock from one to the next."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self._noted: list[tuple[float, int, Callable[..., None], Any]] = []
        self._number = count()  # what is due at the same moment happens in the order it was noted

    def after(self, delay: float, act: Callable[..., None], argument: Any = None) -> None:
        """Note that *act* is to be called with *argument* in *delay* seconds."""
        heappush(self._noted, (self.clock() + delay, next(self._number), act, argument))

    def run_until(self, end: float) -> None:
        """Do all that is due before *end*, then let it be *end*."""
        noted, clock = self._noted, self.clock
        while noted and noted[0][0] < end:
            due, _, act, argument = heappop(noted)
            clock.advance(max(0.0, due - clock()))  # the clock may be ahead by the last bit of a float
            act(argument)
        clock.advance(max(0.0, end - clock()))
