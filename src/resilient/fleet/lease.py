"""Leases: permits fetched many at a time, and spent in this process without asking anybody.

What a process holds has been counted in the store already, so leases never let in more than the rate; they
may let it in later. Each lease is given back, as far as it was not spent, a second after it was fetched. So
in any window at most one lease for each process and key is spent that was counted before it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Final, NamedTuple

from ..engine.fork import renew_after_fork
from ..engine.threads import start
from ..engine.waiting import Waiter
from ..policies.rate_limiter.decision import Decision
from ..policies.rate_limiter.keys import checked
from ..policies.rate_limiter.ladder import SHARED
from .rates import SharedDesk
from .script import Conversation

__all__ = ["LeaseDesk"]

_LIFETIME: Final = 1.0  # seconds a lease may be spent
_MOST: Final = 10_000  # leases held at a time; keys beyond them are decided one by one


class _Lease:
    """What this process holds of one key, and what it knows of the rest. Guarded by the lock of its desk."""

    __slots__ = ("answer", "bought", "fetch", "left", "stamp", "until")

    def __init__(self) -> None:
        self.left = 0
        self.bought: Decision | None = None  # the last answer that brought permits
        self.answer: Decision | None = None  # the store's last one
        self.stamp = 0.0  # when that was
        self.until = 0.0  # up to when permits may be spent; or, where they were denied, need not be asked for
        self.fetch: Fetch | None = None

    def decide(self, key: str, cost: int, now: float) -> Decision | None:
        """Decide by what is known here; None if the store has to be asked."""
        answer = self.answer
        if answer is None or now >= self.until:
            return None
        age = now - self.stamp
        reset_after = max(0.0, answer.reset_after - age)
        if self.left >= cost:
            self.left -= cost
            left = (answer.left or 0) + self.left
            return Decision((answer.source, True, reset_after, 0.0, left, key, cost, answer.at))
        if answer.allowed or cost < answer.cost:
            return None  # the store may have more; or less than what was denied
        wait = answer.retry_after - age
        return Decision((answer.source, False, reset_after, wait, answer.left, key, cost, answer.at))

    def learn(self, answer: Decision, cost: int, now: float) -> None:
        """Take over what the store answered to one who needs *cost* of it at once."""
        self.answer, self.stamp = answer, now
        until = now + (_LIFETIME if answer.allowed else min(_LIFETIME, answer.retry_after))
        # What an older fetch has left keeps its end, and so has what comes on top of it.
        self.until = min(self.until, until) if self.left else until
        if answer.allowed:
            self.bought = answer
            self.left += answer.cost - cost

    def rest(self) -> list[_Rest]:
        """Take what is left, if anything is: it is to be given back."""
        left, self.left = self.left, 0
        return [_Rest(self.bought, left)] if self.bought is not None and left else []


class _Rest(NamedTuple):
    """What is left of a lease: `amount` permits of those that `bought` brought."""

    bought: Decision
    amount: int


def _for_one(answer: Decision, cost: int, left: int) -> Decision:
    """Return what *answer*, which brought more, means to whoever asked for *cost* of it."""
    reset_after, wait = answer.reset_after, answer.retry_after
    return Decision((answer.source, answer.allowed, reset_after, wait, left, answer.key, cost, answer.at))


class Fetch:
    """One request for more permits, and those who wait for what it brings.

    Concurrency: safe from any thread.
    """

    def __init__(self, lease: _Lease, due: float) -> None:
        self.lease = lease
        self.due = due  # when it has failed, whatever became of whoever makes it
        self._lock = threading.RLock()
        self._waiters: list[Waiter] | None = []

    def join(self, waiter: Waiter) -> bool:
        """Have *waiter* woken at the end; return False if that was already."""
        with self._lock:
            if self._waiters is None:
                return False
            self._waiters.append(waiter)
            return True

    def finish(self) -> None:
        """Wake all who wait."""
        with self._lock:
            waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.wake()


class LeaseDesk:
    """Spends leases, and has the *desk* behind it fetch them, *size* permits at a time.

    Of those who find a lease spent, one fetches the next, and the others wait for it.

    Concurrency: safe from any thread, task and loop. A forked child starts with no lease: its parent's are
    its parent's.
    """

    def __init__(self, desk: SharedDesk, size: int) -> None:
        self._desk = desk
        self._size = size
        self._upkeep: threading.Thread | None = None
        self.after_fork()
        renew_after_fork(self)

    def decide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        key = checked(key, cost)
        if spend and (decision := self._spend(key, cost)) is not None:
            return decision
        return self._desk.link.hold(self._decision(key, cost, patience, spend=spend))

    async def adecide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        key = checked(key, cost)
        if spend and (decision := self._spend(key, cost)) is not None:
            return decision
        return await self._desk.link.ahold(self._decision(key, cost, patience, spend=spend))

    def give(self, decision: Decision, amount: int) -> None:
        if not self._take_back(decision, amount):
            self._desk.give(decision, amount)

    async def agive(self, decision: Decision, amount: int) -> None:
        if not self._take_back(decision, amount):
            await self._desk.agive(decision, amount)

    def close(self) -> None:
        for rest in self._drop_leases(math.inf):
            self._desk.give(*rest)
        self._desk.close()

    async def aclose(self) -> None:
        for rest in self._drop_leases(math.inf):
            await self._desk.agive(*rest)
        await self._desk.aclose()

    def _spend(self, key: str, cost: int) -> Decision | None:
        """Decide by what is held here, if it is enough to go by."""
        with self._lock:
            lease = self._leases.get(key)
            decision = None if lease is None else lease.decide(key, cost, time.monotonic())
        return None if decision is None else self._desk.ladder.made(decision)

    def _decision(self, key: str, cost: int, patience: float, *, spend: bool) -> Conversation[Decision]:
        ladder = self._desk.ladder
        while spend and (turn := self._turn(key, cost)) is not None:
            if isinstance(turn, Decision):
                return ladder.made(turn)
            fetch, is_mine = turn
            if is_mine:
                return (yield from self._fetched(fetch, key, cost))
            # While the store is away, one tries whether it is back; the others need not wait for that.
            if ladder.rung != SHARED or not (yield fetch):
                return ladder.fall_back(key, cost, patience, spend=spend)
        return (yield from self._desk.decision(key, cost, patience, spend=spend))

    def _turn(self, key: str, cost: int) -> Decision | tuple[Fetch, bool] | None:
        """Return the fetch that is under way for *key*, or a new one, and whether it is new.

        A decision, where permits have arrived since they were missed. None where *key* has no lease and there
        are too many already.
        """
        now = time.monotonic()
        with self._lock:
            lease = self._leases.get(key)
            if lease is None:
                if len(self._leases) >= _MOST:
                    return None
                lease = self._leases[key] = _Lease()
                self._start_upkeep()
            if (decision := lease.decide(key, cost, now)) is not None:
                return decision
            fetch = lease.fetch
            # An interrupt may have ended whoever made the last one, before the `try` that would have told.
            if fetch is not None and now < fetch.due:
                return fetch, False
            if now >= lease.until:
                self._rests += lease.rest()
            # With a fetch, it is not dropped: what the fetch brings has a place.
            lease.fetch = fetch = Fetch(lease, now + self._desk.link.timeout)
            return fetch, True

    def _fetched(self, fetch: Fetch, key: str, cost: int) -> Conversation[Decision]:
        ladder, lease = self._desk.ladder, fetch.lease
        try:
            asked = self._desk.rates.ask("lease", key, cost, self._size)
            answer = yield from self._desk.guarded(asked, key, cost)
            if answer is None:
                return ladder.fall_back(key, cost, 0.0, spend=True)
            with self._lock:
                lease.learn(answer, cost, time.monotonic())
                left = (answer.left or 0) + lease.left
            return ladder.made(_for_one(answer, cost, left))
        finally:
            with self._lock:
                if lease.fetch is fetch:  # or it was late, and another one is under way
                    lease.fetch = None
            fetch.finish()

    def _take_back(self, decision: Decision, amount: int) -> bool:
        """Put permits back on the lease they came from, if it can still be spent."""
        with self._lock:
            lease = self._leases.get(decision.key)
            bought = None if lease is None else lease.bought
            if amount < 0 or lease is None or bought is None or bought.at != decision.at:
                return False
            lease.left += amount
            return True

    # What was not spent goes back.

    def _start_upkeep(self) -> None:
        if self._upkeep is None:
            upkeep = threading.Thread(target=self._keep_up, name="resilient-leases", daemon=True)
            with contextlib.suppress(RuntimeError):  # there are no more threads, or the interpreter ends
                start(upkeep)
                self._upkeep = upkeep

    def _keep_up(self) -> None:
        while self._give_back_ended():
            time.sleep(_LIFETIME / 4)

    def _give_back_ended(self) -> bool:
        """Give back what is left of the leases that have ended; return whether there are others."""
        ended = self._drop_leases(time.monotonic())
        with self._lock:
            if not self._leases:
                self._upkeep = None
            goes_on = self._upkeep is not None
        for rest in ended:
            self._desk.give(*rest)
        return goes_on

    def _drop_leases(self, ended_by: float) -> list[_Rest]:
        """Forget the leases that have ended by some time; return what is left of them."""
        with self._lock:
            ended = [
                key for key, lease in self._leases.items() if lease.until <= ended_by and not lease.fetch
            ]
            for key in ended:
                self._rests += self._leases.pop(key).rest()
            rests = self._rests.copy()
            self._rests.clear()
        return rests

    def after_fork(self) -> None:
        """Begin with no lease in a forked child."""
        self._lock = threading.RLock()
        self._leases: dict[str, _Lease] = {}
        self._rests: list[_Rest] = []  # of leases that have ended and are fetched anew
        self._upkeep = None
