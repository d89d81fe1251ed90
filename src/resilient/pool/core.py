"""The pool without its input and output: who gets a connection, and who waits.

Nothing here connects, asks or closes. What has to be done is put down as chores, under the lock, and handed
to the pool's crew after it; what came of it is told to the core, which hands on what is free. A token goes
from whoever gives it back to whoever is next, so that no newcomer comes in between.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

from ..engine.deadline import time_left
from ..engine.fork import renew_after_fork
from ..engine.waiting import TaskWaiter, ThreadWaiter, Waiter, spells
from ..errors import ConnectionReclaimedError
from ..events import Announcer, error_text
from . import refusals
from .borrowed import stand_in_for
from .borrowers import Borrower
from .drivers import Steps
from .handling import Handling
from .inherited import leave_to_parent
from .line import Line, Turn, Watch
from .members import Chore, Errand, Gone, Member, Token
from .quick import Quick
from .reports import tell
from .rules import Rules, State
from .stats import PoolStats, stats_of
from .stock import Stock
from .upkeep import Upkeep

__all__ = ["Core", "Crew"]

_PLACES_A_CONNECTION: Final = 100  # as many as wait for a hundred times what a borrower takes


class Crew(Protocol):
    """Whoever does the chores, and is allowed to wait."""

    def carry_out(self, core: Core, chore: Chore) -> None: ...
    def resize(self, max_size: int) -> None: ...
    def after_fork(self) -> None: ...


class Core(Quick):
    """A pool of connections, and the line of those who wait for one.

    Concurrency: safe from any thread.
    """

    def __init__(
        self,
        rules: Rules,
        handling: Handling,
        crew: Crew,
        announcer: Announcer,
        *,
        min_size: int,
        max_size: int,
        task_name: Callable[[], str | None] | None,
    ) -> None:
        super().__init__(Stock(self, rules, handling, min_size, max_size), task_name)
        self.rules: Final = rules
        self._crew = crew
        self._announcer = announcer
        self._upkeep = Upkeep(self.stock)
        self._in_use = False
        self._line = Line()
        self._watches: set[Watch] = set()
        renew_after_fork(self)

    # Getting one, the long way.

    def begin(self, timeout: float | None, waiter: Callable[[], Waiter]) -> Token | Turn:
        """Return a token, or a turn to wait for, as long as *timeout* or the rules say.

        Raises:
            PoolClosedError: the pool is closed.
            PoolUnavailableError: the server is known to be down.
            PoolFullError: too many wait already.
            PoolTimeoutError: there is none, and no time to wait.
        """
        longest = self.rules.timeout if timeout is None else timeout
        left = time_left()
        patience = longest if left is None else min(longest, left)
        now = self._clock()
        self._in_use = True
        try:
            with self.stock.lock:
                self._dispatch(now)
                if not self._line and not self.stock.closed:
                    token = self.stock.fit(now) or (None if longest else self.stock.unasked(now))
                    if token is not None:
                        return token
                refusal = self._refusal(now, patience)
                if refusal is None:
                    turn = Turn(waiter(), now, now + patience)
                    self._line.append(turn)
                    # From here on it is seen by whoever puts a token back; who did so just before is not.
                    self._watch()
                    self._dispatch(now)
                    return turn
            raise refusal()
        finally:
            self.deliver()

    def wait(self, turn: Turn) -> Token:
        """Return the token that *turn* is for, when it comes.

        Raises:
            RejectedError: it did not come, or will not.
            PoolClosedError: the pool was closed.
        """
        try:
            for seconds in spells(turn, self.stock.lock, self._clock, self.attend):
                cast("ThreadWaiter", turn.waiter).park(seconds)
        except BaseException:
            self._give_up(turn)
            raise
        return self._conclude(turn)

    async def await_(self, turn: Turn) -> Token:
        """Do as `wait`, without blocking the event loop."""
        try:
            for seconds in spells(turn, self.stock.lock, self._clock, self.attend):
                await cast("TaskWaiter", turn.waiter).park(seconds)
        except BaseException:
            self._give_up(turn)
            raise
        return self._conclude(turn)

    def lend_at_last(self, token: Token, asked: float | None = None) -> Any:
        """Return a stand-in for what was found or waited for, to the caller of the caller's caller.

        *asked* is when the wait began, if there was one.

        Raises:
            PoolClosedError: the pool was closed in between.
            ConnectionReclaimedError: the connection was taken away in between.
        """
        if isinstance(token.member, Gone):
            raise self._closed() if self.stock.closed else token.member.error()
        return self.lend(token, self._clock(), 4, asked)

    # Giving it back, the long way.

    def ending(self, token: Token, exc: BaseException | None, *, well: bool) -> Steps | None:
        """Return what there is to be done by a borrower before it gives a connection back, if anything is.

        Whoever is cancelled or interrupted, or has lost the connection, is not kept waiting.
        """
        if isinstance(token.member, Gone):
            return None
        if exc is not None and (not isinstance(exc, Exception) or self.handling.is_broken(token.conn, exc)):
            return None
        return self.handling.ending(token.conn, well=well and exc is None)

    def undoing(
        self, member: Member | Gone, exc: BaseException | None, waiter: Callable[[], Waiter], *, well: bool
    ) -> Watch | None:
        """Return what to wait on for the end of a transaction that is being undone, if one is.

        Its locks are held until then, and whoever tries again would run into them. But nobody waits for
        longer than it may take; and who was cancelled or interrupted does not wait at all.
        """
        undone = isinstance(exc, Exception) or (exc is None and not well)
        if not undone or not self.handling.transactional:
            return None
        if isinstance(member, Gone) or member.errand is not Errand.RESET:
            return None
        left = time_left()
        longest = self.rules.check_timeout if left is None else min(left, self.rules.check_timeout)
        return self._watch_for(waiter(), longest, partial(_is_over, member, member.until), wants=False)

    def is_at_rest(self, token: Token) -> bool:
        """Tell whether a connection is known to be between two commands."""
        return isinstance(token.member, Member) and self.handling.is_at_rest(token.conn)

    def give_back(self, token: Token, exc: BaseException | None = None) -> None:
        """Have a connection back, after *exc* if that came from its use.

        Raises:
            ConnectionReclaimedError: it was taken away before.
        """
        conn, member = token.conn, token.member
        if isinstance(member, Gone):
            self.change(self.stock.let_go, token)
            self._back_too_late(member, exc)
            return
        # Both may run code of the user's, so not under the lock.
        state = State.CLEAN
        if exc is not None and self.handling.is_broken(conn, exc):
            state = State.BROKEN
        elif self.handling.dirty is not None and self.handling.dirty(conn):
            state = State.DIRTY
        self.change(self.stock.take_back, token, state, exc)
        if isinstance(token.member, Gone):  # taken away just now
            self._back_too_late(token.member, exc)

    def not_filled(self, waited: float) -> Exception:
        """Return why there are not as many connections as there should be, after so many seconds."""
        return (
            self._closed()
            if self.stock.closed
            else refusals.not_filled(waited, self.stats(), self.rules.name)
        )

    # Seeing to things.

    def now(self) -> float:
        """Return the time."""
        return self._clock()

    def meet(self, conn: Any) -> None:
        """Get to know a new connection.

        Raises:
            Exception: it is of no use as one.
        """
        if conn is None:
            raise TypeError("connect must return a connection, got None")
        self.handling.meet(conn)
        stand_in_for(type(conn))

    def change(self, act: Callable[..., object], *args: Any) -> None:
        """Do `act(now, *args)` with the stock, and see to what follows from it."""
        now = self._clock()
        with self.stock.lock:
            act(now, *args)
            self._dispatch(now)
        self.deliver()

    def attend(self) -> None:
        """Hand on what is free, and see to what is due."""
        self.change(self._upkeep.look)

    def round(self) -> None:
        """See to what is due; to be called about once a second."""
        if self._in_use:  # by this process, which may be a child of the one that does
            self.change(self._upkeep.make)
            self.stock.timings.fold()

    def drain(self) -> None:
        """Have every connection replaced, those that are lent when they come back."""
        self.change(self._upkeep.drain)

    def resize(self, min_size: int, max_size: int) -> None:
        """Have another size from now on; what is too many goes when it is free."""
        self._crew.resize(max_size)
        self.change(self._upkeep.resize, min_size, max_size)

    def shut(self) -> None:
        """Lend nothing any more."""
        self.change(self.stock.shut)

    def cut(self) -> None:
        """Take what is still lent from its borrowers, and give up what is still being done."""
        self.change(self.stock.cut)

    def end(self, last: Callable[[Crew], Crew]) -> None:
        """Close what is free, by the last crew there will be; who waits meanwhile is left in peace."""
        self._crew = last(self._crew)
        self.change(self.stock.close_idle)

    def filling(self, waiter: Waiter, seconds: float) -> Watch:
        """Return what to wait on for as many connections as there should be at least, or for the end."""
        self._in_use = True
        filled = self.stock.is_filled
        return self._watch_for(waiter, seconds, lambda: self.stock.closed or filled(), wants=True)

    def emptying(self, waiter: Waiter, seconds: float) -> Watch:
        """Return what to wait on for the end of the last connection."""
        return self._watch_for(waiter, seconds, lambda: not len(self.stock.roster), wants=False)

    def unwatch(self, watch: Watch) -> None:
        """Do so no more."""
        with self.stock.lock:
            self._watches.discard(watch)

    def deliver(self) -> None:
        """Have the chores done and the events told that are due; to be called without the lock."""
        chores, events = self.stock.chores, self.stock.events
        while chores:
            try:
                chore = chores.popleft()
            except IndexError:
                break
            try:
                self._crew.carry_out(self, chore)
            except RuntimeError as exc:  # there are no more threads: for now, or because the interpreter ends
                self._not_begun(chore, exc)
            del chore
        if events:
            told = []
            while events:
                try:
                    told.append(events.popleft())
                except IndexError:
                    break
                self._announcer.post(told[-1])
            tell(self._announcer, *told)

    def after_fork(self) -> None:
        """Begin anew in a child process: what there is belongs to the parent."""
        self._line.clear()
        self._watches.clear()
        self._crew.after_fork()
        self._announcer.after_fork()
        self._in_use = False
        leave_to_parent(self.handling, self.stock.after_fork())
        self._watch()

    # What there is to see.

    def borrowers(self) -> list[Borrower]:
        """Return who has a connection, the oldest first."""
        now = self._clock()
        with self.stock.lock:
            loans = [member.loan() for member in self.stock.roster if member.since is not None]
        return [loan.borrower(now) for loan in sorted(loans, key=lambda loan: loan.since or now)]

    def stats(self) -> PoolStats:
        """Return what was counted, and where the pool stands."""
        now = self._clock()
        with self.stock.lock:
            if self.stock.roster.unsettled:
                # What is known to be forgotten is not lent any more. What follows from that is not done here:
                # this may be asked while metrics are collected.
                self.stock.recover(now)
            facts = self._facts()
        return stats_of(facts, self.stock.timings)

    def is_cut_off(self) -> bool:
        """Tell whether the server is known to be down, and nobody can be lent a connection all the same."""
        now = self._clock()
        with self.stock.lock:
            return self._is_hopeless(now, self.rules.timeout)

    # Inside; all of it under the lock.

    def _facts(self) -> dict[str, Any]:
        return {**self.stock.facts(), "waiting": len(self._line)}

    def _dispatch(self, now: float) -> None:
        """Give what is free to those who wait, and see to it that there will be more.

        A turn is taken out of the line after it was given its token and woken. If an interrupt comes before
        that, it is woken again: once more does no harm.
        """
        stock = self.stock
        if stock.roster.unsettled:
            stock.recover(now)
        if stock.closed:
            stock.close_idle(now)
        while (turn := self._line.first) is not None:
            if not turn.decided:
                if stock.closed:
                    turn.error = self._closed()
                elif now < turn.until and not turn.waiter.stranded:
                    token = stock.fit(now)
                    if token is None:
                        break
                    turn.token = token
                    del token
            turn.waiter.wake()
            self._line.leave(turn)
            turn = None  # whoever waited may have vanished, and the token with him
            if stock.roster.unsettled:
                stock.recover(now)
        self._provide(now)
        if self.stock.supply.is_down and self._line and self._is_hopeless(now, self._line.longest):
            self._fail_all(now)
        self._watch()
        self._wake_watches()

    def _provide(self, now: float, demand: int = 0) -> None:
        """Have connections checked or made for those who wait, and as many as there should be at least."""
        stock = self.stock
        wanted = len(self._line) + demand + any(watch.wants and not watch.decided for watch in self._watches)
        if stock.closed or not self._in_use:
            return
        if wanted and stock.idle:
            wanted -= stock.begin_checks(wanted, now)
        stock.begin_connects(max(wanted, stock.missing), now)

    def _refusal(self, now: float, patience: float) -> Callable[[], Exception] | None:
        """Return what makes the error, without the lock, if nothing is to be gained by waiting."""
        stock = self.stock
        if stock.closed:
            return self._closed
        if self._is_hopeless(now, patience):
            self._provide(now, demand=1)
            stock.counts.refused += 1
            return partial(self._unavailable, now)
        if patience <= 0.0:
            self._provide(now, demand=1)
            stock.counts.timeouts += 1
            return self._too_late(0.0)
        # Those for whom a connection is being made, or may be, hardly wait.
        if len(self._line) - stock.unlent >= self._places:
            stock.counts.refused += 1
            return partial(refusals.full, self.rules.name, len(self._line))
        return None

    def _is_hopeless(self, now: float, patience: float) -> bool:
        """Tell whether the server is known to be down, and no connection will come back from elsewhere.

        Who has one for longer than somebody waits, so many seconds, is not counted on.
        """
        supply = self.stock.supply
        return (
            supply.is_known_down(now)
            and not self.stock.idle
            and not any(
                member.is_promising(now, supply.failing_since, max(patience, self.rules.timeout))
                for member in self.stock.roster
            )
        )

    def _fail_all(self, now: float) -> None:
        while (turn := self._line.first) is not None:
            if not turn.decided:
                self.stock.counts.refused += 1
                turn.error = self._unavailable(now)
            turn.waiter.wake()
            self._line.leave(turn)

    def _watch(self) -> None:
        """Say whether connections may be taken and put back without us."""
        stock = self.stock
        if not (self._line or stock.closed or len(stock.roster) > stock.max_size):
            self.alert.clear()
        elif not self.alert:
            self.alert.append(True)

    def _watch_for(self, waiter: Waiter, seconds: float, holds: Callable[[], bool], *, wants: bool) -> Watch:
        watch = Watch(waiter, self._clock() + seconds, holds, wants=wants)
        with self.stock.lock:
            self._watches.add(watch)
        self.attend()
        return watch

    def _wake_watches(self) -> None:
        for watch in [*self._watches]:
            if watch.decided:
                watch.waiter.wake()

    def _not_begun(self, chore: Chore, exc: RuntimeError) -> None:
        # Of what was to be done for a connection that is there, the token is lost, and found again.
        now = self._clock()
        with self.stock.lock:
            if chore.errand is Errand.CONNECT:
                self.stock.connect_failed(now, chore.token, error_text(exc))

    def _conclude(self, turn: Turn) -> Token:
        now = self._clock()
        with self.stock.lock:
            self._line.leave(turn)
            self._watch()
            self._count_wait(turn, now)
            token, turn.token = turn.token, None
            if token is not None and not self.stock.closed:
                return token
            self._put_back(token, now)
            del token
            refusal = self._why_not(turn, now)
        self.deliver()
        raise refusal()

    def _why_not(self, turn: Turn, now: float) -> Callable[[], Exception]:
        """Return what makes the error for who has waited in vain, without the lock."""
        if self.stock.closed:
            return self._closed
        error = turn.error
        if error is not None:
            return lambda: error
        self.stock.counts.timeouts += 1
        return self._too_late(now - turn.since)

    def _give_up(self, turn: Turn) -> None:
        now = self._clock()
        with self.stock.lock:
            self._line.leave(turn)
            self._count_wait(turn, now)
            token, turn.token = turn.token, None
            self._put_back(token, now)
            del token
            self._dispatch(now)
        self.deliver()

    def _put_back(self, token: Token | None, now: float) -> None:
        if token is None:
            return
        if isinstance(token.member, Member):
            self.stock.keep(token, token.member, now)
        else:
            self.stock.let_go(now, token)

    def _count_wait(self, turn: Turn, now: float) -> None:
        self.stock.counts.waited += 1
        self.stock.counts.wait_seconds += now - turn.since

    @staticmethod
    def _back_too_late(gone: Gone, exc: BaseException | None) -> None:
        if not gone.quiet and not isinstance(exc, ConnectionReclaimedError):
            error = gone.error()
            if exc is None:
                raise error

    # Why there is no connection.

    @property
    def _places(self) -> int:
        most = self.rules.max_waiting
        return _PLACES_A_CONNECTION * self.stock.max_size if most is None else most

    def _closed(self) -> Exception:
        return refusals.closed(self.rules.name)

    def _unavailable(self, now: float) -> Exception:
        supply = self.stock.supply
        return refusals.unavailable(self.rules.name, supply.failures, supply.last_failure, supply.pause(now))

    def _too_late(self, waited: float) -> Callable[[], Exception]:
        """Return what makes the error; what it tells is as of now."""
        now = self._clock()
        loans = [member.loan() for member in self.stock.roster if member.since is not None]
        oldest = heapq.nsmallest(refusals.OLDEST, loans, key=lambda loan: loan.since or now)
        facts = self._facts()
        return lambda: refusals.too_late(
            self.rules.name,
            waited,
            stats_of(facts, self.stock.timings),
            [loan.borrower(now) for loan in oldest],
        )


def _is_over(member: Member, until: float) -> bool:
    """Tell whether a connection is not being reset any more, or once more."""
    return member.errand is not Errand.RESET or member.until != until
