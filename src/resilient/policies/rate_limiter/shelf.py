"""A bounded place for states by key, where the least recently used give way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Shelf"]

_GENERATIONS: Final = 8
_PAUSE: Final = 0.05  # seconds until it is worth looking again for room, where hardly any was found


class Shelf:
    """At most *size* states, in generations: a key that is used moves to the youngest one.

    When the youngest generation is full, the oldest one is cleared out. So a use of a key of the youngest
    generation, the usual case, costs a look-up and no more, and the least recently used keys go first, to
    within an eighth of *size* (exactly, up to a size of 8). Those of which *keep* says so stay, as the most
    recently used.

    Concurrency: requires external locking. What interrupts it (a signal's handler that raises, or uses the
    shelf too) finds it whole: it changes in single stores and deletions, between which no handler runs.
    """

    __slots__ = ("_futile", "_keep", "_older", "_pause_until", "_share", "evicted", "youngest")

    def __init__(self, size: int, keep: Callable[[Any, float], bool]) -> None:
        self._keep = keep
        self._share = math.ceil(size / _GENERATIONS)
        self._older: tuple[dict[str, Any], ...] = tuple({} for _ in range(size // self._share - 1))
        self._futile = 0  # how many generations in a row were cleared out for little
        self._pause_until = -math.inf
        self.youngest: dict[str, Any] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self.youngest) + sum(map(len, self._older))

    def find(self, key: str, now: float) -> Any:
        """Return the state of *key*, or None, and make it one of the youngest if there is room for it."""
        if (state := self.youngest.get(key)) is not None:
            return state
        for age, generation in enumerate(self._older):
            if (state := generation.get(key)) is not None:
                self._rejuvenate(key, age, now)
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

    def has_room(self, now: float, spared: str | None = None) -> bool:
        """Return whether one more key may be added to the youngest, and make room for it if need be."""
        if len(self.youngest) >= self._share and now >= self._pause_until:
            self._begin_generation(now, spared)
        return len(self.youngest) < self._share

    def _rejuvenate(self, key: str, age: int, now: float) -> None:
        generation = self._older[age]
        if len(generation) == 1 and len(self.youngest) >= self._share:
            # A new generation would leave this one empty, and older ones would have to go for that.
            older = self._older
            if older[age] is generation:
                self._older, self.youngest = (self.youngest, *older[:age], *older[age + 1 :]), generation
        elif self.has_room(now, key) and key in generation:
            self.youngest[key] = generation[key]
            del generation[key]

    def _begin_generation(self, now: float, spared: str | None) -> None:
        oldest = (self.youngest, *self._older)[-1]
        # Of a copy: a signal's handler may move keys meanwhile, or clear this generation out itself.
        kept = {key: state for key, state in [*oldest.items()] if key == spared or self._keep(state, now)}
        self._note(len(oldest), len(kept), now)
        generations = (self.youngest, *self._older)
        if generations[-1] is oldest:
            self._older, self.youngest = generations[:-1], kept

    def _note(self, before: int, after: int, now: float) -> None:
        """Count what went; when it is little again and again, pause, or each new key would cost a walk."""
        self.evicted += before - after
        self._futile = self._futile + 1 if 2 * after > self._share else 0
        if self._futile >= _GENERATIONS:
            self._futile, self._pause_until = 0, now + _PAUSE
