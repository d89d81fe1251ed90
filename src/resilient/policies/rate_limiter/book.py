"""The books of one process: what each key has used, in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from ...engine.fork import renew_after_fork
from ...engine.keys import compact
from ...engine.shelf import Shelf
from ...typing import Clock
from .algorithms import STRATEGIES, Algorithm, AllOf, TokenBucket
from .decision import Decision, Source
from .quota import Quota, permits

__all__ = ["Book", "BucketBook", "open_book"]

Counts: TypeAlias = tuple[int, int, int, int]
"""Calls allowed, calls denied, keys kept, keys evicted."""

_ONE: Final = 1  # compared by identity: True and 1.0 are equal to it, and no whole numbers here
# A key is looked up as it comes before it is checked; so nobody may know the digest of another one.
_SECRET: Final = os.urandom(16)


class Book:
    """Keeps at most *max_keys* keys and decides about them.

    A key that has all its permits need not be kept. When there are too many others, the least recently used
    ones give way, except those that would be denied now: forgetting them would forgive them. If that leaves
    no room, all new keys together have what one key has.

    Concurrency: safe from any thread, task and loop, under a short lock; it is re-entrant, so that a signal
    handler may ask too. What it is let in for in the middle of another decision may come on top of the limit.
    """

    def __init__(self, algorithm: Algorithm, rung: str, max_keys: int, clock: Clock) -> None:
        self.algorithm = algorithm
        self.rung = rung
        self.clock = clock
        self.shelf = Shelf(max_keys, self._is_used_up)
        self.allowed = self.denied = 0
        self._crowd: Any = None  # the state of all those for whom there is no room
        self._latest: str | None = None  # the key used last, if that was in line
        self.after_fork()
        renew_after_fork(self)

    def hit(self, key: str = "", cost: int = 1) -> Decision:
        """Take *cost* permits of *key*, if they are there."""
        return self.decide(key, cost)

    def decide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        """Decide about *cost* permits of *key*, which may be taken up to *patience* seconds ahead of time.

        The decision's `retry_after` is how long to wait, before the call or before asking again.
        """
        key = compact(key, _SECRET)
        if cost is not _ONE:
            permits("cost", cost)
        algorithm = self.algorithm
        with self._lock:
            now = self.clock()
            state = self.shelf.find(key)
            crowded = state is None and not self.shelf.has_room(now)
            if crowded:
                state = self._crowd
                if spend:
                    self.shelf.pass_over()
            wait = algorithm.wait(state, now, cost)
            allowed = wait <= patience
            if allowed and spend:
                state = algorithm.take(state, now, cost)
                if crowded:
                    self._crowd = state
                else:
                    self._latest = None
                    self.shelf.put(key, state, now)
            self._count(allowed=allowed, spend=spend)
            level = algorithm.level(state, now) if allowed else algorithm.denial(state, now, cost)
        source = Source(self.rung, level.quota)
        return Decision((source, allowed, level.reset_after, wait, level.left, key, cost, now))

    def give(self, decision: Decision, amount: int) -> None:
        """Put back *amount* of the permits that *decision* took; below 0, take more, there or not."""
        with self._lock:
            now = self.clock()
            used_at = decision.at + decision.retry_after
            state = self.shelf.find(decision.key)
            if state is None and amount > 0:
                return  # it has them all, or shares them with a crowd
            state = self.algorithm.give(state, now, amount, used_at)
            self._latest = None
            if not self.shelf.put(decision.key, state, now):
                self._crowd = self.algorithm.give(self._crowd, now, amount, used_at)

    # Nothing here waits: the asynchronous forms are for those who ask every kind of desk alike.

    async def adecide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        """As `decide`."""
        return self.decide(key, cost, patience, spend=spend)

    async def agive(self, decision: Decision, amount: int) -> None:
        """As `give`."""
        self.give(decision, amount)

    def close(self) -> None:
        """There is nothing to close."""

    async def aclose(self) -> None:
        """There is nothing to close."""

    def counts(self) -> Counts:
        """Return what has been counted, as of one moment."""
        with self._lock:
            return self.allowed, self.denied, len(self.shelf), self.shelf.evicted

    def _count(self, *, allowed: bool, spend: bool) -> None:
        if not spend:
            return
        if allowed:
            self.allowed += 1
        else:
            self.denied += 1

    def _is_used_up(self, state: Any, now: float) -> bool:
        return self.algorithm.wait(state, now, 1) > 0.0

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()


class BucketBook(Book):
    """A book of one token bucket for each key: the usual case, in line."""

    def __init__(self, bucket: TokenBucket, rung: str, max_keys: int, clock: Clock) -> None:
        self._bucket = bucket
        self._source = Source(rung, bucket.quota)
        super().__init__(bucket, rung, max_keys, clock)

    def hit(self, key: str = "", cost: int = 1) -> Decision:
        """Take *cost* permits of *key*, if they are there."""
        if cost is not _ONE:
            return self.decide(key, cost)
        lock, clock, states, interval, tolerance, source = self._at_hand
        with lock:
            now = clock()
            try:
                ahead = states[key] - now
            except (KeyError, TypeError):  # new, or no text
                return self.decide(key, 1)
            after = ahead + interval if ahead > 0.0 else interval
            if after > tolerance:
                self.denied += 1
                wait = self._bucket.wait(now + ahead, now, 1)
                return Decision((source, False, ahead, wait, None, key, 1, now))
            if key is not self._latest:
                self._latest = key
                del states[key]  # stored again, it is the one used last
            states[key] = now + after
            self.allowed += 1
        return Decision((source, True, after, 0.0, None, key, 1, now))

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        super().after_fork()
        # Taken in one step: attributes read one by one would be a tenth of what a decision costs.
        self._at_hand = (
            self._lock,
            self.clock,
            self.shelf.states,
            self._bucket.interval,
            self._bucket.tolerance,
            self._source,
        )


def open_book(strategy: str, quotas: Sequence[Quota], rung: str, max_keys: int, clock: Clock) -> Book:
    """Return an empty book for *quotas*, which are decided all or nothing."""
    algorithms = [STRATEGIES[strategy](quota) for quota in quotas]
    sole = algorithms[0]
    if len(algorithms) > 1:
        return Book(AllOf(algorithms), rung, max_keys, clock)
    if isinstance(sole, TokenBucket):
        return BucketBook(sole, rung, max_keys, clock)
    return Book(sole, rung, max_keys, clock)
