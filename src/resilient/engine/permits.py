"""Permits that cannot be lost: each is an object, and belongs to whoever holds that object.

A counter that is lowered and raised again loses a permit whenever an interrupt comes between the two. Here a
permit that nobody holds any more, for whatever reason, is seen to be gone by the weak reference that is kept
to it, and another one takes its place.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["Permit", "Permits"]

_IN_STOCK: Final = 100


class Permit:
    """The right to one call at a time."""

    __slots__ = ("__weakref__", "epoch", "era", "home", "started")

    def __init__(self, home: Any, era: int) -> None:
        self.home: Final = home  # whose it is
        self.era: Final = era  # of which process, counted in forks
        self.started: float | None = None  # since when it is held, where that is of interest
        self.epoch = 0  # what was known then


class Permits:
    """As many permits as are wanted.

    A free one is taken by `free.pop()` and given back by `free.append(permit)`, each of which is one step
    that no interrupt and no other thread can come between.

    Concurrency: what is not said above requires external locking. Each method may be interrupted anywhere:
    what is left undone is made good by the next `settle`.
    """

    __slots__ = ("_home", "_known", "_lost", "era", "free", "wanted")

    def __init__(self, home: Any, wanted: int) -> None:
        self.wanted = wanted
        self.free: Final[deque[Permit]] = deque()
        self._home = home
        self.era = 0  # permits of another era are a parent process's
        # Weak references call C code: Python code could be interrupted there, and the interrupt lost.
        self._lost: deque[weakref.ref[Permit]] = deque()
        self._known: set[weakref.ref[Permit]] = set()
        self.settle()

    @property
    def held(self) -> int:
        """How many are not free, and not lost either."""
        # Of those that are lost, `settle` may have struck one off and have been interrupted before the next.
        lost = len(self._known.intersection(self._lost)) if self._lost else 0
        return len(self._known) - len(self.free) - lost

    @property
    def excess(self) -> int:
        """How many must not be given out again."""
        return len(self._known) - self.wanted

    @property
    def unsettled(self) -> bool:
        """Whether `settle` has anything to do."""
        known = len(self._known)
        return bool(self._lost) or known > self.wanted or (known < self.wanted and len(self.free) < _IN_STOCK)

    def settle(self) -> None:
        """Replace those that were lost, and have no more than are wanted, as far as they are free.

        Not all that are wanted are made before they are asked for: a limit may be a million.
        """
        lost, known = self._lost, self._known
        while lost:
            known.discard(lost[0])
            lost.popleft()
        while len(known) < self.wanted and len(self.free) < _IN_STOCK:
            self._mint()
        while len(known) > self.wanted and self._retire():
            pass

    def take_back(self, permit: Permit) -> None:
        """Have *permit* free again, unless it was taken for lost.

        Where a holder is collected as part of a cycle, the reference to its permit goes first, and only then
        the holder is closed and gives the permit back. By then there is another one in its place.
        """
        if weakref.getweakrefcount(permit):
            self.free.append(permit)

    def in_use(self) -> Iterator[tuple[Permit, float]]:
        """Return those that are held and of which is known since when."""
        # Of a copy: collecting garbage may close a forgotten stream in between, and that settles.
        for reference in [*self._known]:
            permit = reference()
            if permit is not None and permit.started is not None:
                yield permit, permit.started

    def after_fork(self) -> None:
        """Begin anew: those that other threads held will never come back."""
        self.era += 1
        self._known = set()
        self._lost.clear()
        self.free.clear()
        self.settle()

    def _mint(self) -> None:
        permit = Permit(self._home, self.era)
        self._known.add(weakref.ref(permit, self._lost.append))
        self.free.append(permit)

    def _retire(self) -> bool:
        try:
            permit = self.free.pop()
        except IndexError:
            return False
        # Without its reference it goes unnoticed.
        self._known.difference_update(weakref.getweakrefs(permit))
        return True
