"""Those who wait for a slot, in the order in which they will get one."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from ...engine.permits import Permit
from ...engine.priority import Priority
from ...engine.waiting import Waiter

__all__ = ["Line", "Turn"]


class Turn:
    """A place in the line. Its fields are guarded by the lock of the slots it waits for."""

    __slots__ = ("home", "level", "permit", "put_out", "since", "timed", "until", "waiter")

    def __init__(
        self, home: Any, level: Priority, waiter: Waiter, since: float, until: float, *, timed: bool = True
    ) -> None:
        self.home = home  # the slots it waits for
        self.level = level
        self.timed = timed  # whether an adaptive limit is to learn from the call
        self.waiter = waiter
        self.since = since
        self.until = until
        self.permit: Permit | None = None  # what it waits for, once it is there
        self.put_out = False  # it had to make room for somebody more important

    @property
    def decided(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.permit is not None or self.put_out


class Line:
    """The turns that are waiting: the most important first, and among equals the oldest.

    With *newest_first* and under overload, the newest: who has waited for half of the time it can will hardly
    be served in time whatever is done, and everybody behind would wait as long in vain.

    Concurrency: requires external locking. A method that is interrupted leaves a line that is whole.
    """

    __slots__ = ("_newest_first", "lanes")

    def __init__(self, *, newest_first: bool) -> None:
        self._newest_first: Final = newest_first
        self.lanes: Final[tuple[deque[Turn], ...]] = tuple(deque() for _ in Priority)

    def __len__(self) -> int:
        return sum(map(len, self.lanes))

    def append(self, turn: Turn) -> None:
        """Have *turn* wait behind its equals."""
        self.lanes[turn.level].append(turn)

    def remove(self, turn: Turn) -> None:
        """Take *turn* out, if it is there."""
        lane = self.lanes[turn.level]
        if lane and lane[0] is turn:
            lane.popleft()
        elif lane and lane[-1] is turn:
            lane.pop()
        elif turn in lane:
            lane.remove(turn)

    def next(self, now: float) -> Turn | None:
        """Return whose turn it is."""
        for lane in self.lanes:
            if lane:
                return lane[-1] if self._newest_first and _overloaded(lane[0], now) else lane[0]
        return None

    def holds_up(self, level: Priority) -> bool:
        """Tell whether somebody waits whom a newcomer of this level must not overtake."""
        return any(self.lanes[: level + 1])

    def least(self) -> Turn | None:
        """Return who has to go where there is no room for all: the least important, and there the newest."""
        for lane in reversed(self.lanes):
            if lane:
                return lane[-1]
        return None

    def clear(self) -> None:
        """Forget them all."""
        for lane in self.lanes:
            lane.clear()


def _overloaded(oldest: Turn, now: float) -> bool:
    return 2.0 * (now - oldest.since) > oldest.until - oldest.since
