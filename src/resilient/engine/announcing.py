"""What tells of itself has listeners, and is one of a kind."""

from __future__ import annotations

from typing import Any, Self

from ..events import Announcer, Listener

__all__ = ["Announcing"]


class Announcing:
    """Base of what announces events, has locks and counters of its own, and is shared by those who use it.

    A copy would be another one. So settings that hold one can be copied, and it stays the same.

    Concurrency: listeners come and go from any thread.
    """

    announcer: Announcer

    def add_listener(self, listener: Listener) -> None:
        """Call *listener* with every event of this object.

        Args:
            listener: called with one `Event`, in a copy of the context in which it happened; must not block.

        Raises:
            TypeError: *listener* cannot be called.
        """
        self.announcer.listeners.add(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undo one `add_listener`.

        Args:
            listener: the listener to remove.

        Raises:
            ValueError: *listener* is not registered here.
        """
        self.announcer.listeners.remove(listener)

    def __copy__(self) -> Self:
        """Return the object itself."""
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Return the object itself."""
        return self
