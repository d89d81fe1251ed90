"""The slots of one limit: who gets one, who waits, who is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from ...engine.deadline import time_left
from ...engine.latency import Recorder
from ...engine.permits import Permit, Permits
from ...engine.priority import Priority
from ...engine.waiting import TaskWaiter, ThreadWaiter, Waiter, spells
from ...engine.window import Tally
from ...errors import BulkheadFullError
from ...typing import Clock
from .limits import AdaptiveLimit
from .line import Line, Turn
from .sampler import LimitStats, Outcome, Sampler

__all__ = ["Books", "Rules", "Slots"]

_PLACES_A_SLOT: Final = 10  # as many as wait for ten times what a call takes
_LEAST_PLACES: Final = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all slots of a bulkhead, whosever they are."""

    name: str
    max_wait: float
    max_queue: int | None
    newest_first: bool
    shares: tuple[float, float] | None
    """The shares of the slots up to which default and sheddable calls get one. None: all are alike."""
    reserve: int
    clock: Clock

    def places(self, limit: int) -> int:
        """Return how many may wait where there are *limit* slots."""
        return max(_PLACES_A_SLOT * limit, _LEAST_PLACES) if self.max_queue is None else self.max_queue


@dataclass(slots=True)
class Books:
    """What a bulkhead counts, and the lock under which it does; `calls` needs none.

    One lock for all slots of a bulkhead: it is held for moments, and only when there is something to see to.
    """

    waits: Recorder
    lock: threading.RLock = field(default_factory=threading.RLock)  # re-entrant, for signal handlers
    calls: Tally = field(default_factory=Tally)
    rejected: int = 0
    gave_up: int = 0
    put_out: int = 0


class Reserve:
    """Slots for probes alone. Nobody waits for one, and an adaptive limit learns nothing from them.

    They are apart from the others: whatever is going on there, and however much the limit has just been
    lowered, a probe finds one.

    Concurrency: `take` requires external locking.
    """

    def __init__(self, size: int, books: Books) -> None:
        self._books = books
        self._permits = Permits(self, size)

    @property
    def held(self) -> int:
        """How many are taken."""
        return self._permits.held

    def take(self) -> Permit | None:
        """Return a slot, if there is one."""
        if self._permits.unsettled:
            self._permits.settle()
        try:
            return self._permits.free.pop()
        except IndexError:
            return None

    def leave(self, permit: Permit, outcome: Outcome) -> None:  # noqa: ARG002 - a probe is quick whatever else is slow
        """Take a slot back."""
        with self._books.lock:
            if permit.era == self._permits.era:
                self._permits.take_back(permit)

    def answered(self, permit: Permit, outcome: Outcome) -> None:
        """Learn nothing."""

    def after_fork(self) -> None:
        """Begin anew in a child process."""
        self._permits.after_fork()


class Slots:
    """As many slots as a limit says, and the line of those who wait for one.

    Slots are handed on under the lock, from whoever leaves to whoever is next, so that no newcomer comes in
    between. Waiting is done outside of it: what begins in `begin` ends in `wait` or `await_`.

    Concurrency: safe from any thread, task and loop.
    """

    def __init__(self, rules: Rules, limit: int | AdaptiveLimit, books: Books) -> None:
        self._rules = rules
        self._books = books
        self._clock = rules.clock
        self._line = Line(newest_first=rules.newest_first)
        self._lanes = self._line.lanes
        self._sampler: Sampler | None = None
        self._forked = False
        self._permits = Permits(self, 0)
        self._reserve = Reserve(rules.reserve, books)
        self._ceilings: tuple[int, ...] | None = None
        self.alert: Final[list[bool]] = []
        self.free: Final = self._permits.free
        self.limit = 0
        self.resize(limit)

    # Coming in.

    def begin(self, level: Priority, waiter: Callable[[], Waiter], *, timed: bool = True) -> Permit | Turn:
        """Return a slot, or a turn to wait for; a call that is not *timed* teaches an adaptive limit nothing.

        Raises:
            BulkheadFullError: there is no slot, and no waiting for one.
        """
        sampler = self._sampler
        if sampler is not None and (touch := sampler.touch) is not None:
            touch()
        now = self._clock()
        with self._books.lock:
            if sampler is not None and now >= sampler.closes:
                self._tick(now)
            if level is Priority.PROBE:
                timed = False
                permit = self._reserve.take()
                if permit is not None:
                    return self._start(permit, now, timed=timed)
            if self._is_settled() or self._may_try(level, now):
                permit = self._take(level)
                if permit is not None:
                    return self._start(permit, now, timed=timed)
            patience = self._patience()
            if patience > 0.0 and self._has_place(level):
                turn = Turn(self, level, waiter(), now, now + patience, timed=timed)
                self._line.append(turn)
                # From here on it is seen by whoever puts a slot back; who has done so just before is not.
                self._watch()
                if self.free:
                    self._dispatch(now)
                return turn
            self._books.rejected += 1
            raise self._refusal(level)

    def wait(self, turn: Turn) -> Permit:
        """Return the slot that *turn* is for, when it comes.

        Raises:
            BulkheadFullError: it did not come in time.
        """
        try:
            waiter = cast("ThreadWaiter", turn.waiter)
            for seconds in spells(turn, self._books.lock, self._clock, self.attend):
                waiter.park(seconds)
        except BaseException:
            self._give_up(turn)
            raise
        return self._conclude(turn)

    async def await_(self, turn: Turn) -> Permit:
        """Do as `wait`, without blocking the event loop."""
        try:
            waiter = cast("TaskWaiter", turn.waiter)
            for seconds in spells(turn, self._books.lock, self._clock, self.attend):
                await waiter.park(seconds)
        except BaseException:
            self._give_up(turn)
            raise
        return self._conclude(turn)

    # Going out.

    def leave(self, permit: Permit, outcome: Outcome) -> None:
        """Take a slot back, and hand it on."""
        now = self._clock()
        with self._books.lock:
            if permit.era != self._permits.era:
                return  # a parent process's, of which there is a copy here
            sampler = self._sampler
            if sampler is not None:
                sampler.ended(permit, outcome, now)
            self._permits.take_back(permit)
            if sampler is not None and now >= sampler.closes:
                self._tick(now)
            if not self._is_settled():
                self._dispatch(now)

    def answered(self, permit: Permit, outcome: Outcome) -> None:
        """Have an adaptive limit learn from a call that keeps its slot for longer than its work takes."""
        now = self._clock()
        with self._books.lock:
            sampler = self._sampler
            if sampler is None or permit.era != self._permits.era:
                return
            sampler.ended(permit, outcome, now)
            if now >= sampler.closes:
                self._tick(now)
                self._dispatch(now)

    def attend(self) -> None:
        """Hand on what is free."""
        now = self._clock()
        with self._books.lock:
            self._dispatch(now)

    # By hand.

    def resize(self, limit: int | AdaptiveLimit) -> None:
        """Have another limit from now on. Calls beyond it are let end."""
        now = self._clock()
        with self._books.lock:
            for permit, _ in self._permits.in_use():
                permit.started = None  # what runs already tells another algorithm nothing
            if isinstance(limit, int):
                self._sampler = None
                self._set_limit(limit, limit)
            else:
                self._sampler = sampler = Sampler(limit, self._clock)
                self._set_limit(sampler.limit, sampler.usual)  # a signal's handler may have resized, too
            self._dispatch(now)

    def after_fork(self) -> None:
        """Begin anew in a child process, where nobody waits and nothing runs but the thread that forked."""
        # What that thread holds is given back to slots that no longer know it: only `leave` notices.
        self._forked = self._forked or self._permits.held > 0
        self._line.clear()
        self._reserve.after_fork()
        self._permits.after_fork()
        self._watch()

    # What there is to see; under the lock.

    @property
    def held(self) -> int:
        """How many slots are taken."""
        return self._permits.held + self._reserve.held

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._line)

    @property
    def is_full(self) -> bool:
        """Whether all are taken but those for probes."""
        return self._permits.held >= self.limit

    def adaptive(self) -> LimitStats | None:
        """Return where the adaptive limit stands, if it is one."""
        return None if self._sampler is None else self._sampler.stats()

    # Inside; all of it under the lock.

    def _is_settled(self) -> bool:
        """Tell whether nobody waits, and there are as many slots as there should be."""
        return not any(self._lanes) and not self._permits.unsettled

    def _may_try(self, level: Priority, now: float) -> bool:
        """See to those who wait, and tell whether a newcomer overtakes none of them."""
        if self.free or self._permits.unsettled:
            self._dispatch(now)
        return not self._line.holds_up(level)

    def _take(self, level: Priority) -> Permit | None:
        if self._ceilings is not None and self._permits.held >= self._ceilings[level]:
            return None
        try:
            return self.free.pop()
        except IndexError:
            return None

    def _start(self, permit: Permit, now: float, *, timed: bool) -> Permit:
        next(self._books.calls.ticker)
        if timed and self._sampler is not None:
            self._sampler.begun(permit, now, self._permits.held)
        return permit

    def _dispatch(self, now: float) -> None:
        """Give what is free to those who wait.

        A turn is taken out of the line after it was given its slot and woken. If an interrupt comes before
        that, it is woken again: once more does no harm.
        """
        permits = self._permits
        if permits.unsettled:
            permits.settle()
        while self.free and (turn := self._line.next(now)) is not None:
            if turn.permit is None and now < turn.until and not turn.waiter.stranded:
                permit = self._take(turn.level)
                if permit is None:
                    break
                turn.permit = self._start(permit, now, timed=turn.timed)
            turn.waiter.wake()
            self._line.remove(turn)
            permit = turn = None
            if permits.unsettled:  # whoever waited has vanished, and the slot with him
                permits.settle()
        self._watch()

    def _watch(self) -> None:
        """Say whether slots may be taken and put back without us."""
        if self._sampler is not None or self._ceilings is not None or self._forked:
            needed = True
        else:
            needed = any(self._lanes) or self._permits.excess > 0
        if not needed:
            self.alert.clear()
        elif not self.alert:
            self.alert.append(True)

    def _tick(self, now: float) -> None:
        sampler = self._sampler
        if sampler is not None and sampler.tick(now, self._permits.held, self._permits.in_use):
            self._set_limit(sampler.limit, sampler.usual)

    def _set_limit(self, limit: int, usual: int) -> None:
        """Have *limit* slots, and for critical calls *usual*, where the limit is lowered to measure."""
        self.limit = limit
        shares = self._rules.shares
        if shares is None:
            self._permits.wanted = limit
            return
        self._ceilings = (usual, usual, *(_rounded(share * limit) for share in shares))
        self._permits.wanted = usual

    def _patience(self) -> float:
        longest = self._rules.max_wait
        if not longest:
            return 0.0
        left = time_left()
        return longest if left is None else min(longest, left)

    def _has_place(self, level: Priority) -> bool:
        """Tell whether one more may wait; somebody less important may have to go for it."""
        if len(self._line) < self._rules.places(self.limit):
            return True
        least = self._line.least()
        if least is None or least.level <= level:
            return False
        least.put_out = True
        least.waiter.wake()
        self._line.remove(least)
        self._books.put_out += 1
        return True

    # Waiting.

    def _conclude(self, turn: Turn) -> Permit:
        self._books.waits.record(self._clock() - turn.since)
        if turn.permit is None:
            with self._books.lock:
                self._line.remove(turn)
                self._watch()
                if turn.permit is None:
                    if not turn.put_out:
                        self._books.gave_up += 1
                    raise self._refusal(turn.level, turn)
        return turn.permit

    def _give_up(self, turn: Turn) -> None:
        now = self._clock()
        self._books.waits.record(now - turn.since)
        with self._books.lock:
            self._line.remove(turn)
            permit, turn.permit = turn.permit, None
            if permit is not None:
                permit.started = None
                self._permits.take_back(permit)
            elif not turn.put_out:
                self._books.gave_up += 1
            self._dispatch(now)

    def _refusal(self, level: Priority, turn: Turn | None = None) -> BulkheadFullError:
        name, held, waiting = self._rules.name, self._permits.held, len(self._line)
        if turn is None:
            why = ""
        elif turn.put_out:
            why = ", and its place in the queue went to a more important call"
        else:
            why = f", and none came free in {turn.until - turn.since:.3g} s"
        whom, share = "", ""
        if self._ceilings is not None and self._ceilings[level] < self.limit:
            whom, share = f" for {level.name.lower()} calls", f" (their share is {self._ceilings[level]})"
        queue = f" and {waiting} calls wait" if waiting else ""
        taken = f"{held} of {self.limit} slots are taken{share}"
        message = f"bulkhead {name!r} is full{whom}: {taken}{queue}{why}"
        return BulkheadFullError(message, policy=name, limit=self.limit, in_use=held, waiting=waiting)


def _rounded(slots: float) -> int:
    """Return the nearest whole number, of two the lower, and at least 1: the last slots are for others."""
    return max(1, math.ceil(slots - 0.5 - 1e-9))
