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
        elif not self._shrink_to(self._size - 1, now):
            return False
        states[key] = state
        # A signal's handler may have taken the room in the meantime.
        return self._shrink_to(self._size, now)

    def has_room(self, now: float) -> bool:
        """Return whether there is room for one more key, or could be made; nobody goes for the asking."""
        states = self.states
        return len(states) < self._size or not all(
            self._keep(state, now) for state in [*islice(states.values(), _LOOKS)]
        )

    def pass_over(self) -> None:
        """Look at others next time: those looked at now had to stay."""
        states = self.states
        for key in [*islice(states, _LOOKS)]:
            self._renew(key)

    def _renew(self, key: str) -> None:
        """Make *key* the one used last."""
        states = self.states
        if key in states:
            state = states[key]
            del states[key]
            states[key] = state

    def _shrink_to(self, size: int, now: float) -> bool:
        """Have some go if there are more than *size*; return whether there are no more than that."""
        states = self.states
        if len(states) <= size:
            return True
        # Of a copy: *keep* is called in between, and a signal's handler may use the shelf then.
        for key, state in [*islice(states.items(), _LOOKS)]:
            if self._keep(state, now):
                self._renew(key)
            elif states.pop(key, None) is not None:
                self.evicted += 1
                if len(states) <= size:
                    return True
        return len(states) <= size
