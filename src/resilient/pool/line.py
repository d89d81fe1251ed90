"""Those who wait: for a connection, in the order in which they came, or until something holds for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..engine.waiting import Waiter
from .members import Token

__all__ = ["Line", "Turn", "Watch"]


class Turn:
    """A place in the line. Its fields are guarded by the lock."""

    __slots__ = ("error", "since", "token", "until", "waiter")

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
    """Somebody who waits until something holds for the pool."""

    __slots__ = ("_holds", "until", "waiter")

    def __init__(self, waiter: Waiter, until: float, holds: Callable[[], bool]) -> None:
        self.waiter = waiter
        self.until = until
        self._holds = holds

    @property
    def decided(self) -> bool:
        """Whether it holds."""
        return self._holds()


class Line(deque[Turn]):
    """The turns, the oldest first.

    Concurrency: requires external locking.
    """

    __slots__ = ()

    def leave(self, turn: Turn) -> None:
        """Take *turn* out, if it is there."""
        # Not `popleft`, though it is the first mostly: a signal's handler may have taken it out just now.
        if turn in self:
            self.remove(turn)
