"""Who has borrowed a connection: where in the code, by whom, for how long.

What is kept of a borrower is made to be cheap: code objects, and how far each had come. File names and line
numbers are worked out when somebody asks. No frame is kept: it would keep all its locals alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

__all__ = ["ALL_FRAMES", "FEW_FRAMES", "Borrower", "Site", "lines_of", "nearest", "site_of", "where_of"]

FEW_FRAMES: Final = 4
"""Frames that are kept of a borrower's stack, where nobody asked for more: see `nearest`."""

ALL_FRAMES: Final = 100
"""Frames of a full stack; what lies further out is left away."""

Site: TypeAlias = tuple[Any, ...]
"""A stack, innermost frame first: code, the instruction it had come to, the caller's code, and so on.

Flat, because one is made for each borrower.
"""

# Code that stands between a borrower and the pool: a `with`, a decorator, a wait.
_GO_BETWEENS: Final = (
    contextlib.__file__,
    functools.__file__,
    f"{Path(asyncio.__file__).parent}{os.sep}",
    f"{Path(__file__).parents[1]}{os.sep}",
)


@dataclass(frozen=True, slots=True)
class Borrower:
    """Who holds a connection.

    Attributes:
        where: the place in the borrower's code, as "file:line in function".
        stack: how it was come by, innermost first, in the same form. What is kept of it is short, unless the
            pool was told to keep full stacks.
        thread: the name of the thread that borrowed it.
        task: the name of the task that did; None where it was none.
        held_for: seconds since.
        leaked: whether that was reported as too long.
    """

    where: str
    stack: tuple[str, ...]
    thread: str
    task: str | None
    held_for: float
    leaked: bool

    def __str__(self) -> str:
        task = "" if self.task is None else f", task {self.task}"
        return f"{self.where} ({self.held_for:.1f} s, thread {self.thread}{task})"


def site_of(frame: FrameType | None, depth: int) -> Site:
    """Return the stack that ends in *frame*: at most *depth* frames of it."""
    found: list[Any] = []
    while frame is not None and len(found) < 2 * depth:
        found += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return tuple(found)


def nearest(frame: FrameType) -> Site:
    """Return the stack that ends in *frame*: `FEW_FRAMES` of it.

    It is `site_of` without a loop, at a third of its price: every borrower pays it.
    """
    try:
        one = frame.f_back
        two = one.f_back  # type: ignore[union-attr]
        three = two.f_back  # type: ignore[union-attr]
        return (
            frame.f_code,
            frame.f_lasti,
            one.f_code,  # type: ignore[union-attr]
            one.f_lasti,  # type: ignore[union-attr]
            two.f_code,  # type: ignore[union-attr]
            two.f_lasti,  # type: ignore[union-attr]
            three.f_code,  # type: ignore[union-attr]
            three.f_lasti,  # type: ignore[union-attr]
        )
    except AttributeError:  # there are not so many
        return site_of(frame, FEW_FRAMES)


def lines_of(site: Site) -> tuple[str, ...]:
    """Return a stack as text, innermost first."""
    return tuple(_text(code, at) for code, at in _places(site))


def where_of(site: Site) -> str:
    """Return the innermost place of a stack that is in somebody's own code."""
    places = [*_places(site)]
    own = (place for place in places if not place[0].co_filename.startswith(_GO_BETWEENS))
    chosen = next(own, places[0] if places else None)
    return "unknown" if chosen is None else _text(*chosen)


def _places(site: Site) -> Iterator[tuple[CodeType, int]]:
    return zip(site[::2], site[1::2], strict=True)


def _text(code: CodeType, at: int) -> str:
    return f"{code.co_filename}:{_line(code, at)} in {code.co_qualname}"


def _line(code: CodeType, at: int) -> int:
    lines = (line for start, end, line in code.co_lines() if start <= at < end)
    return next(lines, None) or code.co_firstlineno
