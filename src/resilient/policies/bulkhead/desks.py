"""Whose slots a call gets: one set for all, or one for each key."""

from __future__ import annotations

import threading
from abc import ABCMeta, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

from ...engine import params
from ...engine.keys import compact
from ...engine.latency import Recorder
from ...engine.permits import Permit
from ...engine.policy import callee_of
from ...engine.priority import Priority, innermost_priority, priority_of, service_criticality
from ...engine.shelf import Shelf
from ...engine.waiting import TaskWaiter, ThreadWaiter, Waiter
from ...errors import BulkheadFullError
from .limits import AdaptiveLimit
from .line import Turn
from .sampler import Outcome
from .slots import Books, Rules, Slots

__all__ = ["Desk", "Facts", "KeyedDesk", "SharedDesk", "level_maker"]

LevelOf: TypeAlias = Callable[[Any, Any, Any], Priority]
KeyOf: TypeAlias = Callable[[Any, Any, Any], str | None]
OutcomeOf: TypeAlias = Callable[[BaseException | None], Outcome]


class Facts(NamedTuple):
    """What is known of a block, which has no arguments."""

    level: Priority | None
    key: str | None


def level_maker(priority: Any) -> LevelOf:
    """Return what tells the priority of a call, of a function and its arguments."""
    if priority is None:
        return _alike
    if not callable(priority):
        return _always(priority_of("priority", priority))
    if priority is service_criticality:
        params.refuse(TypeError, "priority", "must be what service_criticality() returns", priority)
    params.plain_function("priority", priority)

    def ask(fn: Any, args: Any, kwargs: Any) -> Priority:
        if isinstance(args, Facts):
            return innermost_priority.get() if args.level is None else args.level
        return priority_of("priority", priority(*callee_of(fn, args)[1], **kwargs))

    return ask


def _alike(_fn: Any, _args: Any, _kwargs: Any) -> Priority:
    return Priority.DEFAULT


def _always(level: Priority) -> LevelOf:
    def tell(_fn: Any, args: Any, _kwargs: Any) -> Priority:
        return args.level if isinstance(args, Facts) and args.level is not None else level

    return tell


class Desk(metaclass=ABCMeta):
    """Lends slots to calls.

    Concurrency: safe from any thread, task and loop.
    """

    free: deque[Permit]
    alert: list[bool]

    def __init__(self, books: Books, level_of: LevelOf, outcome_of: OutcomeOf) -> None:
        self.books = books
        self.ticker = books.calls.ticker
        self._level_of = level_of
        self._outcome_of = outcome_of

    # For the wrappers.

    def enter(self, fn: Any, args: Any, kwargs: Any, *, stream: bool = False) -> Permit:
        """Return a slot for a call, if need be after a wait."""
        got = self._begin(fn, args, kwargs, ThreadWaiter, timed=not stream)
        return got.home.wait(got) if isinstance(got, Turn) else got

    async def aenter(self, fn: Any, args: Any, kwargs: Any, *, stream: bool = False) -> Permit:
        """Do as `enter`, without blocking the event loop."""
        got = self._begin(fn, args, kwargs, TaskWaiter, timed=not stream)
        return await got.home.await_(got) if isinstance(got, Turn) else got

    def leave(self, permit: Permit, exc: BaseException | None) -> None:
        """Take the slot of a call back that ended with *exc*, or well."""
        permit.home.leave(permit, self._outcome_of(exc))

    def answered(self, permit: Permit, exc: BaseException | None) -> None:
        """Learn how a call ended that keeps its slot: its answer has begun, and others set the pace now."""
        permit.home.answered(permit, self._outcome_of(exc))

    def attend(self) -> None:
        """Hand on what is free."""
        for slots in self.all():
            slots.attend()

    # For the bulkhead.

    @abstractmethod
    def all(self) -> list[Slots]:
        """Return all sets of slots there are."""

    @abstractmethod
    def find(self, key: str) -> Slots | None:
        """Return the slots of *key*, if there are any."""

    @abstractmethod
    def resize(self, limit: int | AdaptiveLimit) -> None:
        """Have another limit from now on."""

    @property
    def evicted(self) -> int:
        """How many keys had to make room."""
        return 0

    def after_fork(self) -> None:
        """Begin anew in a child process; what was counted stays."""
        self.books.lock = threading.RLock()
        for slots in self.all():
            slots.after_fork()

    @abstractmethod
    def _begin(
        self, fn: Any, args: Any, kwargs: Any, waiter: Callable[[], Waiter], *, timed: bool
    ) -> Permit | Turn:
        """Return a slot, or a turn to wait for."""


class SharedDesk(Desk):
    """One set of slots for all calls.

    Concurrency: as for its base; while nobody waits, the wrappers take slots without asking.
    """

    def __init__(
        self, rules: Rules, limit: int | AdaptiveLimit, level_of: LevelOf, outcome_of: OutcomeOf
    ) -> None:
        super().__init__(Books(Recorder(rules.clock)), level_of, outcome_of)
        self._slots = Slots(rules, limit, self.books)
        self.free = self._slots.free
        self.alert = self._slots.alert

    def all(self) -> list[Slots]:
        """Return the one set of slots."""
        return [self._slots]

    def find(self, key: str) -> None:  # noqa: ARG002 - there are no keys
        """Return None."""
        return

    def resize(self, limit: int | AdaptiveLimit) -> None:
        """Have another limit from now on."""
        self._slots.resize(limit)

    def _begin(
        self, fn: Any, args: Any, kwargs: Any, waiter: Callable[[], Waiter], *, timed: bool
    ) -> Permit | Turn:
        return self._slots.begin(self._level_of(fn, args, kwargs), waiter, timed=timed)


class KeyedDesk(Desk):
    """A set of slots for each key. Those of which none is taken may make room for others.

    Concurrency: as for its base. A key's slots are found and asked under one lock, so that nobody holds on to
    slots that have just made room.
    """

    def __init__(
        self,
        rules: Rules,
        limit: int | AdaptiveLimit,
        level_of: LevelOf,
        outcome_of: OutcomeOf,
        *,
        key_of: KeyOf,
        max_keys: int,
    ) -> None:
        super().__init__(Books(Recorder(rules.clock)), level_of, outcome_of)
        self.free = deque()  # nothing is to be had without a key
        self.alert = [True]
        self._rules = rules
        self._limit = limit
        self._key_of = key_of
        self._shelf = Shelf(max_keys, _is_used)
        self._unlimited = _Unlimited()

    def all(self) -> list[Slots]:
        """Return the slots of all keys that are kept."""
        return [*self._shelf.states.values()]

    def find(self, key: str) -> Slots | None:
        """Return the slots of *key*, if there are any."""
        slots: Slots | None = self._shelf.find(compact(key))
        return slots

    def resize(self, limit: int | AdaptiveLimit) -> None:
        """Have another limit for each key from now on."""
        with self.books.lock:
            self._limit = limit
            for slots in self.all():
                slots.resize(limit)

    @property
    def evicted(self) -> int:
        """How many keys had to make room."""
        return self._shelf.evicted

    def _begin(
        self, fn: Any, args: Any, kwargs: Any, waiter: Callable[[], Waiter], *, timed: bool
    ) -> Permit | Turn:
        key = args.key if isinstance(args, Facts) else self._key_of(fn, args, kwargs)
        level = self._level_of(fn, args, kwargs)
        if key is None:
            next(self.ticker)
            return Permit(self._unlimited, 0)
        key = compact(key)
        now = self._rules.clock()
        with self.books.lock:
            slots = self._shelf.find(key)
            if slots is None:
                slots = Slots(self._rules, self._limit, self.books)
            if not self._shelf.put(key, slots, now):
                self.books.rejected += 1
                raise self._no_room()
            return cast("Slots", slots).begin(level, waiter, timed=timed)

    def _no_room(self) -> BulkheadFullError:
        name = self._rules.name
        message = f"bulkhead {name!r} keeps {len(self._shelf)} keys, each of them in use: no room for another"
        return BulkheadFullError(message, policy=name)


class _Unlimited:
    """The home of permits for calls that no limit applies to."""

    def leave(self, permit: Permit, outcome: Outcome) -> None:
        """Let go."""

    def answered(self, permit: Permit, outcome: Outcome) -> None:
        """Learn nothing."""


def _is_used(slots: Slots, _now: float) -> bool:
    return slots.held > 0 or slots.waiting > 0
