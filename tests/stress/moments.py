"""Something else comes in between two steps of a call: at each call and return there is in a package's code.

A profiler is told of each, so none of the moments is left to luck.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Container
from pathlib import Path
from types import FrameType
from typing import Any, Self

import resilient

__all__ = ["EVENTS", "INTERRUPTIBLE", "Moments"]

EVENTS = frozenset({"call", "return", "c_call", "c_return"})
INTERRUPTIBLE = frozenset({"call", "c_return"})  # where Python runs the handlers of signals
_HOME = Path(resilient.__file__).parent


class Moments:
    """Has *act* called at the *moment*-th of *events* in the code of *package*, in this thread."""

    def __init__(
        self, package: str, moment: int, act: Callable[[], object], events: Container[str] = EVENTS
    ) -> None:
        self._home = str(_HOME / package)
        self._moments = itertools.count()
        self._events = events
        self._moment = moment
        self._act = act
        self.struck = ""  # where

    def __enter__(self) -> Self:
        self._former = sys.getprofile()  # coverage may be there
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        sys.setprofile(self._former)

    def _profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if (
            frame.f_code.co_filename.startswith(self._home)
            and event in self._events
            and frame.f_code.co_name != "<genexpr>"  # one that is thrown away is told of as if it were called
            and next(self._moments) == self._moment
        ):
            self.struck = f"{frame.f_code.co_qualname}:{frame.f_lineno}, {event}"
            sys.setprofile(self._former)
            self._act()
