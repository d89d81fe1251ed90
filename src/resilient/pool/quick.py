"""The quick way to a connection and back: no lock, and each step that matters is one step.

It is open while nobody waits and nothing else is to be seen to.
"""

from __future__ import annotations

import sys
import threading
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Final

from .borrowed import bare, hold
from .borrowers import FEW_FRAMES, Site, nearest, site_of
from .durations import BRIEF
from .members import Token
from .stock import Stock

__all__ = ["Quick"]

_threads: Final[dict[int, threading.Thread]] = threading._active  # type: ignore[attr-defined] # noqa: SLF001
_ident = threading.get_ident
_frame = sys._getframe  # pyright: ignore[reportPrivateUsage] # noqa: SLF001 - a report of a leak needs it


class Quick(metaclass=ABCMeta):
    """Lends what is there and good, and has it back as it was.

    Args:
        stock: the connections.
        task_name: tells which task this is, where it is tasks that borrow.

    Concurrency: safe from any thread.
    """

    def __init__(self, stock: Stock, task_name: Callable[[], str | None] | None) -> None:
        self.stock: Final = stock
        self.handling: Final = stock.handling
        self.alert: Final = stock.alert
        self._task_name = task_name
        self._clock = stock.rules.clock
        self._check_after = stock.rules.check_after_idle
        depth = stock.rules.depth
        self._site: Callable[[FrameType], Site]
        self._site = nearest if depth == FEW_FRAMES else partial(site_of, depth=depth)
        timings = stock.timings
        self._unwaited, self._waited = timings.wait.brief.ticker, timings.wait.record
        self._brief, self._used = timings.use.brief.ticker, timings.use.record
        self._pop = stock.idle.pop
        self._append = stock.idle.append

    @abstractmethod
    def attend(self) -> None:
        """Hand on what is free, and see to what is due."""

    def take(self) -> Any | None:
        """Return a connection that is there and good, for the caller's caller; None if that takes longer."""
        if self.alert:
            return None
        try:
            token = self._pop()
        except IndexError:
            return None
        member = token.member
        now = self._clock()
        # Of one that was taken away, or is to be lent no more, `returned` or `expires` lies before all time.
        if now - member.returned > self._check_after or now >= member.expires:
            self._append(token)
            return None
        return self.lend(token, now, 3)

    def lend(self, token: Token, now: float, depth: int, asked: float | None = None) -> Any:
        """Return a stand-in for a connection, to a borrower *depth* frames up from here.

        *asked* is when the borrower began to wait for it; None if there was one.
        """
        member: Any = token.member
        member.site = self._site(_frame(depth))
        member.thread = _threads.get(_ident())
        if self._task_name is not None:
            # Not the task itself: it has what it borrowed, and would be kept from being collected.
            member.task = self._task_name()
        member.since = now
        if asked is None:
            next(self._unwaited)
        else:
            self._waited(max(0.0, now - asked))
        borrowed = bare(member.stand_in)
        hold(borrowed, [token])
        return borrowed

    def put(self, token: Token) -> bool:
        """Have a connection back that is as it was lent; return False if that takes longer."""
        member: Any = token.member
        now = self._clock()
        dirty = self.handling.dirty
        if self.alert or now >= member.expires or (dirty is not None and dirty(token.conn)):
            return False
        since = member.since
        # In a cycle that is collected, the reference to a token goes before what has the token is closed, and
        # returns it: by then there is another token in its place.
        if since is None or member.reported == since or member.ref() is not token:
            return False
        member.returned = now
        member.since = member.thread = None
        # After that: an interrupt must not have it taken for forgotten, and timed once more.
        if now - since < BRIEF:
            next(self._brief)
        else:
            self._used(now - since)
        self._append(token)
        # Whoever began to wait just now has seen the token, or has said so before we look.
        if self.alert:
            self.attend()
        return True
