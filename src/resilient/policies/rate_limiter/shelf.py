"""A bounded place for states by key, where the least recently used give way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Final

__all__ = ["Shelf"]

_LOOKS: Final = 8  # states looked at to make room for one


class Shelf:
    """At most *size* states. To make room, the least recently used go, but not those that *keep* names.

    Those stay, as the most recently used. A few are looked at for each new key, and no more: where all of
    them have to stay, there is no room for it.

    Concurrency: requires external locking. What interrupts it (a signal's handler that raises, or uses the
    shelf too) finds it whole: a state is deleted and stored again between two calls, where no handler runs.
    """

    __slots__ = ("_keep", "_size", "evicted", "states")

    def __init__(self, size: int, keep: Callable[[Any, float], bool]) -> None:
        self._size = size
        self._keep = keep
        self.states: dict[str, Any] = {}  # in the order of their last use
        self.evicted = 0

    def __len__(self) -> int:
        return len(self.states)

    def find(self, key: str) -> Any:
        """Return the state of *key*, or None."""
        return self.states.get(key)

    def put(self, key: str, state: Any, now: float) -> bool:
        """Keep *state* for *key*, as the one used last; return False where there is no room for it."""
        states = self.states
        if key in states:
            del states[key]
        elif not self.has_room(now):
            return False
        states[key] = state
        return True

    def has_room(self, now: float) -> bool:
        """Return whether there is room for one more key, and make it if need be."""
        states = self.states
        if len(states) < self._size:
            return True
        # Of a copy: *keep* is called in between, and a signal's handler may use the shelf then.
        for key, state in [*islice(states.items(), _LOOKS)]:
            if self._keep(state, now):
                if key in states:
                    state = states[key]  # noqa: PLW2901 - as of now
                    del states[key]
                    states[key] = state
            elif states.pop(key, None) is not None:
                self.evicted += 1
                return True
        return len(states) < self._size
