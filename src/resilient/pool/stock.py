"""The connections of a pool: which are free, what has to be done for each, what is given up.

Whoever waits for one is none of its business: see `core`.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, cast

from ..errors import ConnectionReclaimedError
from ..events import ConnectionDiscarded, Event, PoolAvailable, PoolUnavailable, error_text
from .borrowed import stand_in_for
from .borrowers import where_of
from .durations import Timings
from .handling import Handling
from .members import Chore, Errand, Gone, Member, Roster, Token
from .reports import collection_of, late_return_of, reclaim_of
from .rules import Rules, State
from .stats import Counts
from .supply import Supply

__all__ = ["SUSPECTS_AT_ONCE", "Stock"]

SUSPECTS_AT_ONCE: Final = 2
"""Connections that are checked side by side after one was broken: no storm for a server that is back."""

_ENDS: Final = (ConnectionError, EOFError)  # what says that the other end is gone, whoever says it

_DEAD_SUSPECTS: Final = 2  # in a row, and the others of their age are not even asked


class Stock:
    """The connections there are, and the chores there are to be done.

    Concurrency: requires `lock`, all of it, but for `roster.idle`.
    """

    def __init__(self, home: Any, rules: Rules, handling: Handling, min_size: int, max_size: int) -> None:
        self.rules: Final = rules
        self.handling: Final = handling
        self.min_size = min_size
        self.max_size = max_size
        self.closed = False
        self.alert: Final[list[bool]] = []  # not empty while a connection is to be had under the lock only
        self.lock = threading.RLock()  # re-entrant, for signal handlers
        self.counts: Final = Counts()
        self.timings: Final = Timings(rules.clock)  # added to under the lock, but not read: see there
        self.supply: Final = Supply(rules.max_connecting, rules.connect_timeout)
        self.roster: Final = Roster(home)
        self.idle: Final = self.roster.idle
        # What is to be done, and to be told, once the lock is free.
        self.chores: Final[deque[Chore]] = deque()
        self.events: Final[deque[Event]] = deque()
        self._home = home
        self._dead_in_a_row = 0
        self._generation = 0  # what is of an earlier one is not to stay

    @property
    def missing(self) -> int:
        """How many there are less than there should be at least, those that are being made not counted."""
        return max(0, self.min_size - len(self.roster)) + self.doing(Errand.CONNECT) if self.min_size else 0

    @property
    def unlent(self) -> int:
        """How many connections there are, or may be, that nobody has."""
        return max(0, self.max_size - sum(member.since is not None for member in self.roster))

    def is_filled(self) -> bool:
        """Tell whether there are as many that are ready as there should be at least, and one."""
        return sum(member.errand is None for member in self.roster) >= max(self.min_size, 1)

    @property
    def staying(self) -> int:
        """How many there are that are not being closed."""
        return len(self.roster) - self.doing(Errand.CLOSE)

    def is_idle_too_long(self, member: Member, now: float) -> bool:
        """Tell whether nobody has used a connection for so long that it may be closed."""
        return now - member.idle_since >= self.rules.max_idle

    def doing(self, errand: Errand) -> int:
        """Return for how many connections this is being done."""
        return sum(member.errand is errand for member in self.roster)

    @property
    def suspects_asked(self) -> int:
        """How many are being checked because others were broken."""
        return sum(member.suspect and member.errand is Errand.CHECK for member in self.roster)

    def drain(self, now: float) -> None:
        """Have every connection replaced that is there, or is being made."""
        self._generation += 1
        for member in self.roster:
            member.expires = now

    # Taking out.

    def fit(self, now: float) -> Token | None:
        """Return the token of a free connection that is good, the one that was used last."""
        while self.idle:
            try:
                token = self.idle.pop()
            except IndexError:  # taken by somebody who needs no lock
                break
            member = token.member
            if isinstance(member, Gone):
                continue
            if now >= member.expires or (self.is_idle_too_long(member, now) and self.staying > self.min_size):
                self.expire(token, now)
            elif self._is_fresh(member, now) or not self.handling.checks:
                member.suspect = member.asked = False
                return token
            else:
                self.idle.append(token)  # it has to be asked first, and so have all that are older
                return None
        return None

    def unasked(self, now: float) -> Token | None:
        """Return the token of a free connection for somebody who has no time to have it asked."""
        found, passed = None, []
        while found is None and self.idle:
            try:
                token = self.idle.pop()
            except IndexError:
                break
            member = token.member
            if isinstance(member, Member) and now < member.expires and not member.suspect:
                found = token
            elif isinstance(member, Member):
                passed.append(token)
        self.idle.extend(reversed(passed))
        return found

    def _is_fresh(self, member: Member, now: float) -> bool:
        """Tell whether a connection may be lent without asking it: it was a moment ago, or just now."""
        return now - member.returned <= self.rules.check_after_idle or (
            member.asked and now == member.checked
        )

    def begin_checks(self, wanted: int, now: float) -> int:
        """Have so many free connections checked, if there are; return how many are being checked."""
        checking, suspects = self.doing(Errand.CHECK), self.suspects_asked
        while checking < wanted and self.idle:
            try:
                token = self.idle.pop()
            except IndexError:
                break
            member = token.member
            if isinstance(member, Gone):
                continue
            if member.suspect and suspects >= SUSPECTS_AT_ONCE:
                self.idle.append(token)
                break
            suspects += member.suspect
            checking += 1
            self.start(Errand.CHECK, token, now)
        return checking

    def begin_connects(self, wanted: int, now: float) -> None:
        """Have so many connections made, as far as there is room and reason to think that it works."""
        room = self.max_size - len(self.roster)
        connecting = self.doing(Errand.CONNECT) if room > 0 and wanted > 0 else 0
        while wanted > connecting and room > 0 and self.supply.allows(connecting) and not self.closed:
            token = self._admit(now)
            if token is None:
                break
            self.start(Errand.CONNECT, token, now, self.supply.pause(now))
            connecting += 1
            room -= 1

    def start(self, errand: Errand, token: Token, now: float, delay: float = 0.0) -> None:
        """Put a chore down. Whoever has the chore has the token."""
        member = token.member
        rules = self.rules
        if isinstance(member, Member):
            limit = rules.connect_timeout if errand is Errand.CONNECT else rules.check_timeout
            member.errand = errand
            member.until = now + delay + limit
        self.chores.append(Chore(errand, token, delay))

    def _admit(self, now: float) -> Token | None:
        """Return the token of a place for another connection, if there is one."""
        if len(self.roster) >= self.max_size:
            return None
        token = self.roster.admit(now, self._generation)
        # To make one may have collected garbage, which may have returned a connection, and so have begun one.
        if len(self.roster) > self.max_size:
            self.roster.remove(token)
            return None
        return token

    # Putting back.

    def end_loan(self, member: Member, now: float) -> None:
        """Have a connection as not lent any more."""
        since = member.since
        if since is None:
            return
        self.timings.use.add(now - since)
        if member.leaked:
            self.events.append(late_return_of(self.rules.name, member.borrower(now)))
        member.since = None
        member.thread = member.task = None

    def take_back(self, now: float, token: Token, state: State, exc: BaseException | None) -> None:
        """Have a connection back from its borrower in *state*, after *exc*."""
        member = token.member
        if isinstance(member, Gone):
            self.let_go(now, token)
            return
        if member.ref() is not token:
            return  # it was taken for lost: see `Quick.put`
        self.end_loan(member, now)
        if exc is not None:
            # Somebody may keep it, and by its traceback the token: that must not keep the next loss unseen.
            token = self.roster.renew(token)
        if exc is not None and state is State.BROKEN:
            if isinstance(exc, _ENDS) and member.was_of_no_use(now):
                self._fail(now, error_text(exc))
            self.discard(token, now, error_text(exc), is_evidence=isinstance(exc, Exception))
        elif state is State.DIRTY:
            self.start(Errand.RESET, token, now)
        else:
            member.returned = now
            self.keep(token, member, now)

    def keep(self, token: Token, member: Member, now: float) -> None:
        """Have a connection free that is good."""
        member.errand = None
        if self.closed or len(self.roster) > self.max_size:
            self.start(Errand.CLOSE, token, now)
        elif now >= member.expires:
            self.expire(token, now)
        else:
            self.idle.append(token)

    def connected(self, now: float, token: Token, conn: Any, took: float, references: int) -> None:
        """Have a new connection, for the place that *token* is of.

        It took so many seconds, and has so many references of its own making.
        """
        self._count_success(now, took)
        if isinstance(token.member, Gone) and not self.closed:
            token = self._admit(now) or token  # it was given up, and comes late; perhaps there is room again
        member = token.member
        token.conn = conn
        if isinstance(member, Gone):
            self.counts.closed += 1
            self.start(Errand.CLOSE, token, now)
            return
        lifetime = self.rules.max_lifetime * (1.0 - self.rules.jitter * random.random())
        member.conn = conn
        member.stand_in = stand_in_for(type(conn))
        member.references = references
        member.expires = now + lifetime if member.generation == self._generation else now
        member.returned = member.checked = member.idle_from = now
        member.asked = True
        self._dead_in_a_row = 0
        self.keep(token, member, now)

    def discard(self, token: Token, now: float, reason: str, *, is_evidence: bool = True) -> None:
        """Give up a connection that is broken; if that *is_evidence*, others may be, too."""
        self.counts.discarded += 1
        self.say(ConnectionDiscarded(self.rules.name, reason))
        self.start(Errand.CLOSE, token, now)
        if is_evidence:
            self._suspect_others(now)

    def expire(self, token: Token, now: float) -> None:
        """Give up a connection whose time is over."""
        self.counts.expired += 1
        self.start(Errand.CLOSE, token, now)

    def was_closed(self, now: float, token: Token) -> None:
        """Have one connection less."""
        member = token.member
        if isinstance(member, Member):
            self.counts.closed += 1
        else:  # it has been counted already
            self.let_go(now, token)
        self.roster.remove(token)

    def connect_failed(self, now: float, token: Token, reason: str) -> None:
        """Have the place of a connection free that could not be made."""
        if isinstance(token.member, Member):  # or it has been counted already
            self.roster.remove(token)
            self._count_failure(now, reason)

    def mended(self, now: float, token: Token, exc: BaseException | None) -> None:
        """Have a connection back that was checked or reset; *exc* says why it is no good."""
        member = token.member
        if isinstance(member, Gone):  # that took too long
            self.let_go(now, token)
            return
        errand, suspect = member.errand, member.suspect
        member.suspect = False
        self._tell_of_orphan(member, now, reused=exc is None)
        if exc is not None:
            self._dead_in_a_row += suspect
            # What a borrower has made of it says nothing about the server.
            is_evidence = errand is Errand.CHECK
            if is_evidence and member.was_of_no_use(now):
                self._fail(now, error_text(exc))
            last = "" if is_evidence or not member.site else f"; last borrowed at {where_of(member.site)}"
            self.discard(token, now, f"{error_text(exc)}{last}", is_evidence=is_evidence)
            return
        self._dead_in_a_row = 0
        if errand is Errand.RESET:
            member.returned = now
        else:
            member.was_good(now)
        self.keep(token, member, now)

    def _count_failure(self, now: float, reason: str) -> None:
        """Count an attempt to connect that failed."""
        self.counts.connect_failures += 1
        self._fail(now, reason)

    def _fail(self, now: float, reason: str) -> None:
        """Have the next attempt wait. Not to connect, and to connect for nothing, come to the same."""
        if self.supply.failed(now, reason):
            self.say(PoolUnavailable(self.rules.name, self.supply.failures, reason))

    def _count_success(self, now: float, took: float) -> None:
        """Count one that did not."""
        self.counts.connects += 1
        self.counts.connect_seconds += took
        self.timings.create.add(took)
        seconds = self.supply.succeeded(now)
        if seconds is not None:
            self.say(PoolAvailable(self.rules.name, seconds))

    # Taking away.

    def reclaim(self, member: Member, now: float, why: str) -> None:
        """Take a connection from its borrower, who is told when it is used next."""
        borrower = member.borrower(now)
        name = self.rules.name
        message = (
            f"pool {name!r} took this connection away after {borrower.held_for:.3g} s: {why}; "
            f"what was not committed is lost. It was borrowed at {borrower.where}"
        )
        if self._part(member, self._gone(message)):
            self.counts.reclaimed += 1
            self.timings.use.add(borrower.held_for)
            self.events.append(reclaim_of(name, borrower))

    def abandon(self, member: Member, now: float) -> None:
        """Give up waiting for a chore that takes too long; whoever does it may be stuck in it."""
        errand, limit = member.errand, self.rules.check_timeout
        if errand is Errand.CONNECT:
            limit = self.rules.connect_timeout
            self._count_failure(now, f"no connection after {limit:.3g} s")
        elif errand is not Errand.CLOSE:
            self._dead_in_a_row += member.suspect
            self._tell_of_orphan(member, now, reused=False)
            self.counts.discarded += 1
            self.say(ConnectionDiscarded(self.rules.name, f"no answer after {limit:.3g} s"))
            self._suspect_others(now)
        self._part(member, self._given_up())

    def shut(self, now: float) -> None:
        """Lend nothing any more."""
        self.closed = True
        self.alert.append(True)
        self.close_idle(now)

    def close_idle(self, now: float) -> None:
        """Have what is free closed."""
        for token in self.all_idle():
            self.start(Errand.CLOSE, token, now)

    def cut(self, now: float) -> None:
        """Take what is lent from its borrowers, and give up what is being done."""
        for member in self.roster:
            if member.since is not None and member.errand is None:
                self.reclaim(member, now, "the pool was closed")
            elif member.errand is not Errand.CLOSE:
                self._part(member, self._given_up())

    def recover(self, now: float) -> None:
        """See to connections whose tokens were lost."""
        for token in self.roster.found():
            member = cast("Member", token.member)
            if member.conn is None:
                self.roster.remove(token)
            elif member.since is not None:
                member.orphan = True
                self.start(Errand.RESET, token, now)
            else:
                self.start(Errand.CLOSE if member.errand is Errand.CLOSE else Errand.RESET, token, now)
        for conn in self.roster.given_up():
            self._bury(conn)

    def let_go(self, now: float, token: Token) -> None:  # noqa: ARG002 - as all changes
        """Have a connection closed that was taken from who gives it up now."""
        conn = self.roster.let_go(token)
        if conn is not None:
            self._bury(conn)

    def after_fork(self) -> list[Any]:
        """Begin anew in a child process, and return the connections, which are the parent's."""
        self.lock = threading.RLock()
        self.chores.clear()
        self.events.clear()
        self.supply.succeeded(0.0)
        message = f"this connection of pool {self.rules.name!r} belongs to the process it was forked from"
        return self.roster.after_fork(self._gone(message, quiet=True))

    def facts(self) -> dict[str, Any]:
        """Return what was counted under the lock, and where the pool stands, by the names of `PoolStats`."""
        members = [*self.roster]
        return dict(
            **{name: getattr(self.counts, name) for name in Counts.__slots__},
            size=len(members),
            idle=len(self.idle),
            used=sum(member.since is not None for member in members),
            connecting=self.doing(Errand.CONNECT),
            min_size=self.min_size,
            max_size=self.max_size,
            leaked=sum(member.leaked for member in members),
            available=not self.supply.is_down,
            last_failure=self.supply.last_failure,
        )

    def say(self, event: Event) -> None:
        """Have *event* told when the lock is free."""
        self.events.append(event)

    def _given_up(self) -> Gone:
        return self._gone(f"pool {self.rules.name!r} has given this connection up", quiet=True)

    def _gone(self, message: str, *, quiet: bool = False) -> Gone:
        error = partial(ConnectionReclaimedError, message, policy=self.rules.name)
        return Gone(self._home, error, quiet=quiet)

    def _tell_of_orphan(self, member: Member, now: float, *, reused: bool) -> None:
        if member.orphan:
            member.orphan = False
            self.counts.collected += 1
            self.say(collection_of(self.rules.name, member.borrower(now), reused=reused))
            member.reported = None
            self.end_loan(member, now)

    def _bury(self, conn: Any) -> None:
        token = Token(self._given_up())
        token.conn = conn
        self.chores.append(Chore(Errand.CLOSE, token))

    def _part(self, member: Member, gone: Gone) -> bool:
        conn = member.conn
        if not self.roster.part(member, gone):
            return False
        if conn is not None:
            self.counts.closed += 1
            cut = Token(gone)
            cut.conn = conn
            self.chores.append(Chore(Errand.CUT, cut))
        return True

    def _suspect_others(self, now: float) -> None:
        """Have the connections asked that nobody has, or given up at once if those that were are dead."""
        if not self.handling.checks:
            return
        hopeless = self._dead_in_a_row >= _DEAD_SUSPECTS
        for token in self.all_idle():
            member = token.member
            if isinstance(member, Gone):
                continue
            if hopeless and member.suspect:
                self.counts.discarded += 1
                self.start(Errand.CLOSE, token, now)
                continue
            member.suspect_it()
            self.idle.append(token)

    def all_idle(self) -> Iterator[Token]:
        """Take every token out that is free now, once; whoever is not to go has to be put back."""
        for _ in range(len(self.idle)):
            try:
                yield self.idle.popleft()
            except IndexError:
                return
