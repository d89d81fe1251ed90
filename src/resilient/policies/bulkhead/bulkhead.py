"""The bulkhead users hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from ...engine import params
from ...engine.clock import MONOTONIC
from ...engine.drive.holds import HoldBlock, hold
from ...engine.finding import Fact, Finding, Status
from ...engine.fork import renew_after_fork
from ...engine.keys import key_maker
from ...engine.latency import Latency
from ...engine.living import remember
from ...engine.matching import Matcher
from ...engine.measure import Measure
from ...engine.policy import Policy
from ...engine.priority import Priority, priority_of
from ...engine.shape import Shape
from ...events import Announcer
from ...typing import Clock, FailureRule, Seconds
from ..measures import of_bulkhead
from .desks import Desk, Facts, KeyedDesk, SharedDesk, level_maker
from .limits import AdaptiveLimit
from .sampler import LimitStats, Outcome
from .slots import Rules, Slots
from .threads import ThreadForm

__all__ = ["Bulkhead", "BulkheadStats"]

_SHARES: Final = {Priority.DEFAULT: 0.9, Priority.SHEDDABLE: 0.7}


@dataclass(frozen=True, slots=True)
class BulkheadStats:
    """What a bulkhead has counted, and where it stands.

    Attributes:
        limit: slots there are; of all keys that are kept, where it goes by key.
        in_use: slots that are taken; more than *limit* for a while after it was lowered.
        waiting: calls that wait for a slot.
        calls: calls that got one.
        rejected: calls that were refused at once.
        gave_up: calls that waited in vain, those that were cancelled included.
        put_out: calls that waited and had to make room for a more important one.
        abandoned: calls that run on in a thread, and keep their slot, though nobody waits for them any more.
        keys: keys that are kept; 0 where it does not go by key.
        evicted: keys that had to make room.
        adaptive: where the adaptive limit stands. None where the limit is fixed, or goes by key and none was
            named.
        waited: how long calls waited lately, in vain or not, of those that had to.
    """

    limit: int
    in_use: int
    waiting: int
    calls: int
    rejected: int
    gave_up: int
    put_out: int
    abandoned: int
    keys: int
    evicted: int
    adaptive: LimitStats | None
    waited: Latency


class Bulkhead(Policy):
    """Let so many calls run at a time and no more, so that one dependency cannot take all that there is.

    A slot that comes free goes to whoever has waited longest; nobody who comes later can snatch it. Threads,
    tasks and event loops share the slots and the line. A stream keeps its slot until it ends.

    With an adaptive limit (`Gradient`, `Vegas`, `AIMD`) there are as many slots as the dependency can serve,
    as its answers show.

    Args:
        name: in errors and statistics.
        limit: how many calls may run at a time, at least 1; or an adaptive limit.
        max_wait: seconds a call may wait for a slot, 0 or more; the caller's deadline, if it is earlier,
            counts instead. 0: none waits.
        max_queue: the most calls that wait, 0 or more. None: ten for each slot, and at least 100.
        threads: run functions in threads of the bulkhead's own, in a copy of the caller's context. At the
            caller's deadline the caller leaves; the slot is kept until the function really ends.
        priority: how much a call matters: a `Priority` or its name, or a function of a decorated call's
            arguments that tells it. Blocks have that of the context, if it is not given. None: all calls are
            alike.
        shares: by priority, the share of the slots, above 0 and at most 1, up to which a call of it gets
            one: none while so many are taken, by whomever; rounded, to 1 or more. What is not named has 0.9
            for "default", and 0.7 but no more than that for "sheddable". Critical calls may fill all. Goes
            with *priority*.
        reserve: slots beyond the limit, for calls with `Priority.PROBE` only; 0 or more. Goes with
            *priority*.
        order: "fifo", or "newest-first": then, once who has waited longest has waited half of its time,
            the newest is served first, until the line is short again.
        key: makes a text of the arguments of a decorated call: each key has slots of its own. None: all calls
            share them; None from it lets the call in unlimited.
        max_keys: the most keys that are kept; at least 1. Those of which no slot is taken make room.
        drops: the failures that tell an adaptive limit of overload: exception types, predicates, or a tuple
            of both. Other failures tell it nothing.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any thread, task and loop. While the limit is fixed, all calls are alike and nobody
        waits, a call takes no lock. A slot whose holder is gone without giving it back, interrupted or
        forgotten, is replaced.

    Source: M. Nygard, "Release It!", 2nd edition; Hystrix for threads; Netflix' concurrency-limits for the
        limits that adapt; "Fail at scale", ACM Queue 2015, for newest first.
    """

    kind: ClassVar[str] = "Bulkhead"

    def __init__(
        self,
        name: str,
        limit: int | AdaptiveLimit,
        *,
        max_wait: Seconds = 0.0,
        max_queue: int | None = None,
        threads: bool = False,
        priority: Callable[..., Priority | str] | Priority | str | None = None,
        shares: Mapping[str, float] | None = None,
        reserve: int | None = None,
        order: Literal["fifo", "newest-first"] = "fifo",
        key: Callable[..., str | None] | None = None,
        max_keys: int = 10_000,
        drops: FailureRule = TimeoutError,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._name = params.named("name", name)
        self.announcer = Announcer()
        self._drops = Matcher("drops", drops, doubtful=False)
        rules = Rules(
            name=name,
            max_wait=params.seconds("max_wait", max_wait),
            max_queue=None if max_queue is None else params.count("max_queue", max_queue, least=0),
            newest_first=params.one_of("order", order, ("fifo", "newest-first")) == "newest-first",
            shares=_shares(shares, prioritised=priority is not None),
            reserve=_reserve(reserve, prioritised=priority is not None),
            clock=params.callback("clock", clock),
        )
        level_of = level_maker(priority)
        self._is_prioritised = priority is not None
        limit = _checked(limit)
        size = params.count("max_keys", max_keys)
        make_key = key_maker(None if key is None else params.plain_function("key", key))
        self._is_keyed = make_key is not None
        self._desk: Desk = (
            SharedDesk(rules, limit, level_of, self._outcome_of)
            if make_key is None
            else KeyedDesk(rules, limit, level_of, self._outcome_of, key_of=make_key, max_keys=size)
        )
        self._threads: ThreadForm | None = None
        if params.flag("threads", threads):
            self._threads = ThreadForm(self._desk, name, sys.maxsize)
        self.max_wait = rules.max_wait
        renew_after_fork(self)
        remember(self)

    @property
    def name(self) -> str:
        """The bulkhead's name."""
        return self._name

    @property
    def limit(self) -> int:
        """How many calls may run now; of all keys that are kept, where it goes by key."""
        return sum(slots.limit for slots in self._desk.all())

    @property
    def is_keyed(self) -> bool:
        """Whether each key has slots of its own."""
        return self._is_keyed

    def resize(self, limit: int | AdaptiveLimit) -> None:
        """Have another limit from now on.

        Calls that run are let end, also beyond a lower limit; those that wait get what a higher one brings.

        Args:
            limit: as for the constructor; for each key, where the bulkhead goes by key.

        Raises:
            TypeError: *limit* has the wrong type.
            ValueError: *limit* is below 1.

        Concurrency: blocks nobody.
        """
        self._desk.resize(_checked(limit))

    def calling(self, priority: Priority | str | None = None, key: str | None = None) -> HoldBlock:
        """Return a block, for `with` and `async with`, that holds a slot.

        Args:
            priority: how much it matters. None: what the context says, or the one of the bulkhead.
            key: whose slot, where the bulkhead goes by key.

        Returns:
            A context manager for one use; entering it raises `BulkheadFullError` if there is no slot.

        Raises:
            TypeError: *priority* or *key* has the wrong type; *key* is missing; or one of them is given to a
                bulkhead that was made without it.
            ValueError: *priority* is the name of none.
        """
        if priority is not None and not self._is_prioritised:
            params.refuse(TypeError, "priority", "goes with priority= only", priority)
        if (key is not None) is not self._is_keyed:
            rule = "must be given where the bulkhead goes by key" if self._is_keyed else "goes with key= only"
            params.refuse(TypeError, "key", rule, key)
        level = None if priority is None else priority_of("priority", priority)
        return HoldBlock(self._desk, Facts(level, key))

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, in this bulkhead."""
        if self._threads is not None and shape is Shape.FUNCTION:
            return self._threads.wrap(fn)
        return hold(self._desk, fn, shape)

    def stats(self, key: str | None = None) -> BulkheadStats:
        """Return what the bulkhead has counted and where it stands, as of one moment.

        Args:
            key: tell where the slots of this key stand; what is counted is of all. None: of all keys.

        Raises:
            TypeError: *key* is no text, or there are no keys.
        """
        if key is not None and not self._is_keyed:
            params.refuse(TypeError, "key", "goes with key= only", key)
        desk = self._desk
        books = desk.books
        with books.lock:
            chosen = desk.all() if key is None else _known(desk.find(key))
            one = chosen[0] if chosen and (key is not None or not self._is_keyed) else None
            return BulkheadStats(
                limit=sum(slots.limit for slots in chosen),
                in_use=sum(slots.held for slots in chosen),
                waiting=sum(slots.waiting for slots in chosen),
                calls=books.calls.read(),
                rejected=books.rejected,
                gave_up=books.gave_up,
                put_out=books.put_out,
                abandoned=0 if self._threads is None else len(self._threads.workers.overdue),
                keys=len(desk.all()) if self._is_keyed else 0,
                evicted=desk.evicted,
                adaptive=None if one is None else one.adaptive(),
                waited=books.waits.lately(),
            )

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_bulkhead(self.stats(), self._desk.books.waits.histogram())

    def finding(self) -> Finding:
        """Return how it stands, for health. A warning: it is full, and calls wait or would be refused.

        One that goes by key warns of calls that wait only: each key is full now and then.
        """
        if self._is_keyed:
            return self._finding_by_key()
        stats, desk = self.stats(), self._desk
        with desk.books.lock:
            is_full = any(slots.is_full for slots in desk.all())  # a probe in the reserve fills nothing
        facts: dict[str, Fact] = {
            "limit": stats.limit,
            "in_use": stats.in_use,
            "waiting": stats.waiting,
            "rejected": stats.rejected,
        }
        if stats.abandoned:
            facts["abandoned"] = stats.abandoned
        if stats.adaptive is not None:
            facts |= {"algorithm": stats.adaptive.algorithm, "pressure": stats.adaptive.pressure}
        status, output = Status.PASS, ""
        if stats.waiting or (is_full and not self.max_wait):
            what = f"{stats.waiting} waiting" if stats.waiting else "the next call is refused"
            status, output = Status.WARN, f"{stats.in_use} of {stats.limit} slots taken, and {what}"
        return Finding(status, output, value=stats.in_use / stats.limit, unit="ratio", facts=facts)

    def _finding_by_key(self) -> Finding:
        books = self._desk.books
        with books.lock:
            everyone, rejected = self._desk.all(), books.rejected
        # Without the lock, as there may be many; and one by one, not as of one moment.
        waiting = sum(slots.waiting for slots in everyone)
        return Finding(
            Status.WARN if waiting else Status.PASS,
            f"calls that wait for a slot of their key: {waiting}" if waiting else "",
            facts={"keys": len(everyone), "waiting": waiting, "rejected": rejected},
        )

    def after_fork(self) -> None:
        """Begin afresh in a forked child: whoever waited or ran in another thread was not copied."""
        self.announcer.after_fork()
        self._desk.after_fork()

    def __repr__(self) -> str:
        stats = self.stats()
        slots = f"{stats.in_use} of {stats.limit} slots taken"
        return f"<Bulkhead {self._name!r} {slots}, {stats.waiting} waiting, {stats.rejected} rejected>"

    def _outcome_of(self, exc: BaseException | None) -> Outcome:
        if exc is None:
            return Outcome.GOOD
        dropped = isinstance(exc, Exception) and self._drops.match(exc)
        return Outcome.DROPPED if dropped else Outcome.NOTHING


def _known(slots: Slots | None) -> list[Slots]:
    return [] if slots is None else [slots]


def _checked(limit: Any) -> int | AdaptiveLimit:
    if isinstance(limit, AdaptiveLimit):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int):
        rule = "must be a whole number or an adaptive limit such as Gradient()"
        params.refuse(TypeError, "limit", rule, limit)
    return params.count("limit", limit)


def _shares(shares: Any, *, prioritised: bool) -> tuple[float, float] | None:
    """Return the shares of default and of sheddable calls; None where all calls are alike."""
    if shares is None:
        chosen = _SHARES
    elif not prioritised:
        params.refuse(ValueError, "shares", "goes with priority= only", shares)
    elif not isinstance(shares, Mapping):
        params.refuse(TypeError, "shares", "must be a mapping of priorities to shares", shares)
    else:
        given = {priority_of("shares", level): _share(level, share) for level, share in shares.items()}
        chosen = {**_SHARES, **given}
        if Priority.SHEDDABLE not in given:
            chosen[Priority.SHEDDABLE] = min(chosen[Priority.SHEDDABLE], chosen[Priority.DEFAULT])
    if chosen.keys() - _SHARES.keys():
        params.refuse(ValueError, "shares", "must name 'default' and 'sheddable' only", shares)
    if chosen[Priority.SHEDDABLE] > chosen[Priority.DEFAULT]:
        params.refuse(ValueError, "shares", "must not give 'sheddable' more than 'default'", shares)
    return (chosen[Priority.DEFAULT], chosen[Priority.SHEDDABLE]) if prioritised else None


def _share(level: object, share: object) -> float:
    return params.ratio(f"shares[{level!r}]", share)


def _reserve(reserve: int | None, *, prioritised: bool) -> int:
    if reserve is None:
        return 1 if prioritised else 0
    if not prioritised:
        params.refuse(ValueError, "reserve", "goes with priority= only", reserve)
    return params.count("reserve", reserve, least=0)
