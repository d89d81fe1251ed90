"""What has to be seen to though nobody asks: connections held too long, idle too long, too old, too few."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .members import Errand, Gone, Member
from .reports import leak_of
from .stock import SUSPECTS_AT_ONCE, Stock

__all__ = ["Upkeep"]

_EVERY: Final = 1.0  # seconds between two rounds


class Upkeep:
    """Finds what is due in a pool's stock.

    Concurrency: requires the stock's lock.
    """

    __slots__ = ("_next", "_stock")

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._next = 0.0

    def look(self, now: float) -> None:
        """Make a round, if the last one was long enough ago."""
        if now >= self._next:
            self.make(now)

    def make(self, now: float) -> None:
        """Make a round."""
        self._next = now + _EVERY
        for member in self._stock.roster:
            if member.errand is not None:
                if now >= member.until:
                    self._stock.abandon(member, now)
            elif member.since is not None:
                self._see_to_borrower(member, now)
        self.retire(now)

    def drain(self, now: float) -> None:
        """Have every connection replaced, those that are lent when they come back."""
        self._stock.drain(now)
        self.retire(now)

    def resize(self, now: float, min_size: int, max_size: int) -> None:
        """Have another size from now on."""
        self._stock.min_size, self._stock.max_size = min_size, max_size
        self.retire(now)

    def retire(self, now: float) -> None:
        """Close what is idle for too long, too old or too much; have that checked which was not for long."""
        stock = self._stock
        staying = stock.staying
        surplus, excess = staying - stock.min_size, staying - stock.max_size
        kept, suspects = [], stock.suspects_asked
        for token in stock.all_idle():
            member = token.member
            if isinstance(member, Gone):
                continue
            if now >= member.expires or (surplus > 0 and stock.is_idle_too_long(member, now)) or excess > 0:
                stock.expire(token, now)
                surplus -= 1
                excess -= 1
            elif self._is_to_be_asked(member, now) and (not member.suspect or suspects < SUSPECTS_AT_ONCE):
                suspects += member.suspect
                stock.start(Errand.CHECK, token, now)
            else:
                kept.append(token)
            del token
        # As they were: who was used last is lent first, and may be the only one that ever is.
        stock.idle.extendleft(reversed(kept))

    def _is_to_be_asked(self, member: Member, now: float) -> bool:
        every = self._stock.rules.check_every
        return every is not None and self._stock.handling.checks and now - member.returned >= every

    def _see_to_borrower(self, member: Member, now: float) -> None:
        stock, rules, since = self._stock, self._stock.rules, member.since
        if since is None:
            return
        leaks = rules.leak_after is not None and not member.leaked and now - since >= rules.leak_after
        overdue = rules.max_hold is not None and now - since >= rules.max_hold
        if not (leaks or overdue):
            return
        # Its borrower may return it this moment, without a lock. But the next one needs the lock from now on:
        # what is said and done here is about the borrower we have seen, or nobody.
        stock.alert.append(True)
        borrower = member.borrower(now)
        if member.since != since:
            return
        if leaks:
            member.reported = since
            stock.counts.leaks += 1
            stock.say(leak_of(rules.name, replace(borrower, leaked=True)))
        if overdue:
            stock.reclaim(member, now, f"it was held for longer than {rules.max_hold:.3g} s")
