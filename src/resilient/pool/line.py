"""Those who wait: for a connection, in the order in which they came, or until something holds for it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..engine.waiting import Waiter
from .members import Token

__all__ = ["Line", "Turn", "Watch"]


class Turn:
    """A place in the line. Its fields are guarded by the lock."""

    __slots__ = ("__weakref__", "error", "since", "token", "until", "waiter")

    def __init__(self, waiter: Waiter, since: float, until: float) -> None:
        self.waiter = waiter
        self.since = since
        self.until = until
        self.token: Token | None = None  # what it waits for, once it is there
        self.error: Exception | None = None  # why it never will be

    @property
    def decided(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.token is not None or self.error is not None


class Watch:
    """Somebody who waits until something holds for the pool, and perhaps *wants* a connection for that."""

    __slots__ = ("_holds", "until", "waiter", "wants")

    def __init__(self, waiter: Waiter, until: float, holds: Callable[[], bool], *, wants: bool) -> None:
        self.wants = wants
        self.waiter = waiter
        self.until = until
        self._holds = holds

    @property
    def decided(self) -> bool:
        """Whether it holds."""
        return self._holds()


class Line:
    """The turns, the oldest first.

    A turn belongs to whoever waits for it. One whose owner is gone, interrupted before it could say so, is
    seen to be gone, so that nothing is handed to it, and nobody is told that it waits.

    Concurrency: requires external locking.
    """

    __slots__ = ("_gone", "_turns")

    def __init__(self) -> None:
        self._turns: deque[weakref.ref[Turn]] = deque()
        # Weak references call C code: Python code could be interrupted there, and the interrupt lost.
        self._gone: deque[weakref.ref[Turn]] = deque()

    def __len__(self) -> int:
        self._sweep()
        return len(self._turns)

    @property
    def first(self) -> Turn | None:
        """Whose turn it is."""
        while True:
            try:
                reference = self._turns[0]
            except IndexError:
                return None
            turn = reference()
            if turn is not None:
                return turn
            with suppress(ValueError):  # an interrupted sweep has forgotten it
                self._turns.remove(reference)

    @property
    def longest(self) -> float:
        """For how many seconds somebody waits at most."""
        turns = (reference() for reference in [*self._turns])
        return max((turn.until - turn.since for turn in turns if turn is not None), default=0.0)

    def append(self, turn: Turn) -> None:
        """Have *turn* wait behind all others."""
        self._turns.append(weakref.ref(turn, self._gone.append))

    def leave(self, turn: Turn) -> None:
        """Take *turn* out, if it is there."""
        # Not `popleft`, though it is the first mostly: a signal's handler may have taken it out just now.
        with suppress(ValueError):
            self._turns.remove(weakref.ref(turn))

    def clear(self) -> None:
        """Forget them all."""
        self._turns.clear()
        self._gone.clear()

    def _sweep(self) -> None:
        while self._gone:
            # Each is one step: whoever comes in between, by a signal or by a collection, sweeps as well.
            with suppress(IndexError, ValueError):
                self._turns.remove(self._gone.popleft())
