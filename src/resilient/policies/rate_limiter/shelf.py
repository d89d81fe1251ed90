"""A bounded place for states by key, where the least recently used give way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Shelf"]

_GENERATIONS: Final = 8
_STUCK: Final = 0.05  # seconds until it is worth looking again for room, where every state had to be kept


class Shelf:
    """At most *size* states, in generations: a key that is used moves to the youngest one.

    When the youngest generation is full, the oldest one is cleared out. So a use of a key of the youngest
    generation, the usual case, costs a look-up and no more, and the least recently used keys go first, to
    within an eighth of *size* (exactly, up to a size of 8). Those of which *keep* says so stay, as the most
    recently used.

    Concurrency: requires external locking.
    """

    __slots__ = ("_keep", "_older", "_share", "_stuck_until", "evicted", "youngest")

    def __init__(self, size: int, keep: Callable[[Any, float], bool]) -> None:
        generations = min(size, _GENERATIONS)
        self._keep = keep
        self._share = size // generations
        self._older: deque[dict[str, Any]] = deque({} for _ in range(generations - 1))
        self._stuck_until = -math.inf
        self.youngest: dict[str, Any] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self.youngest) + sum(map(len, self._older))

    def find(self, key: str, now: float) -> Any:
        """Return the state of *key*, or None, and make it one of the youngest if there is room for it."""
        if (state := self.youngest.get(key)) is not None:
            return state
        for generation in self._older:
            if (state := generation.get(key)) is not None:
                if self.has_room(now):
                    generation.pop(key, None)
                    self.youngest[key] = state
                return state
        return None

    def put(self, key: str, state: Any, now: float) -> bool:
        """Keep *state* for *key*; return False where there is no room for one more key."""
        for generation in (self.youngest, *self._older):
            if key in generation:
                generation[key] = state
                return True
        if not self.has_room(now):
            return False
        self.youngest[key] = state
        return True

    def has_room(self, now: float) -> bool:
        """Return whether one more key may be added to the youngest, and make room for it if need be."""
        if len(self.youngest) >= self._share and now >= self._stuck_until:
            self._begin_generation(now)
            if len(self.youngest) >= self._share:
                self._stuck_until = now + _STUCK  # or each new key would cost a walk through a generation
        return len(self.youngest) < self._share

    def _begin_generation(self, now: float) -> None:
        self._older.appendleft(self.youngest)
        oldest = self._older.pop()
        self.youngest = {key: state for key, state in oldest.items() if self._keep(state, now)}
        self.evicted += len(oldest) - len(self.youngest)
