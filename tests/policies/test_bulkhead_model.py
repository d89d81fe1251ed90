"""A bulkhead, step by step at random, against a model that is too simple to be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilient import Bulkhead, BulkheadFullError, Priority, deadline
from resilient.engine.drive.holds import HoldBlock
from resilient.testing import FakeClock

_TURNS = 20  # of the loop: more than any chain of hand-offs in one step takes

LEVELS = st.sampled_from(Priority)
LIMITS = st.integers(1, 5)
PAUSES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])  # exact in binary, so that no sum is rounded
SHARES = st.sampled_from([{}, {"default": "0.5", "sheddable": "0.3"}, {"default": "1", "sheddable": "0.9"}])


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is the test's."""

    def __init__(self, clock: FakeClock) -> None:
        self.time = clock  # type: ignore[method-assign, assignment]
        super().__init__()


@dataclass(eq=False)
class Call:
    """One call: as the model sees it, and the real one."""

    level: Priority
    since: float
    until: float = math.inf
    block: HoldBlock | None = None
    task: asyncio.Task[None] | None = None
    outcome: str | None = None
    is_reserved: bool = False

    @property
    def half(self) -> float:
        """When half of its wait is over."""
        return (self.since + self.until) / 2


@dataclass
class Model:
    """Who runs and who waits, in two lists that are gone through from their beginning each time."""

    limit: int
    shares: dict[Priority, Fraction]
    reserve: int
    places: int
    newest_first: bool
    running: list[Call] = field(default_factory=list)
    waiting: list[Call] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def has_slot(self, level: Priority) -> bool:
        """Tell whether a call of this priority may run now."""
        ordinary = sum(not call.is_reserved for call in self.running)
        if level is Priority.PROBE:
            return ordinary < self.limit
        return ordinary < max(1, math.ceil(self.shares[level] * self.limit - Fraction(1, 2)))

    def arrive(self, call: Call, now: float) -> None:
        """Let *call* run, wait or be refused."""
        if call.level is Priority.PROBE and sum(other.is_reserved for other in self.running) < self.reserve:
            call.is_reserved = True
            self.run(call)
            return
        ahead = [other for other in self.waiting if other.level <= call.level]
        if not ahead and self.has_slot(call.level):
            self.run(call)
        elif call.until <= now or not self.make_room(call.level):
            self.counts["rejected"] += 1
        else:
            self.waiting.append(call)

    def make_room(self, level: Priority) -> bool:
        """Tell whether one more may wait, if need be in the place of somebody else."""
        if len(self.waiting) < self.places:
            return True
        least = max((call.level for call in self.waiting), default=level)
        if least <= level:
            return False
        self.waiting.remove([call for call in self.waiting if call.level is least][-1])
        self.counts["put_out"] += 1
        return True

    def serve(self, now: float) -> None:
        """Give what is free to those who wait."""
        while self.waiting:
            call = self.next(now)
            if not self.has_slot(call.level):
                return
            self.waiting.remove(call)
            self.run(call)

    def next(self, now: float) -> Call:
        """Return whose turn it is."""
        first = min(call.level for call in self.waiting)
        equals = [call for call in self.waiting if call.level is first]
        return equals[-1] if self.newest_first and now > equals[0].half else equals[0]

    def run(self, call: Call) -> None:
        """Let *call* run."""
        self.running.append(call)
        self.counts["calls"] += 1

    def give_up(self, call: Call) -> None:
        """Let *call* wait no more."""
        self.waiting.remove(call)
        self.counts["gave_up"] += 1

    def expire(self, now: float) -> None:
        """Let those go whose time is up."""
        for call in [call for call in self.waiting if call.until <= now]:
            self.give_up(call)


COUNTS = ("calls", "rejected", "gave_up", "put_out")


class Life(RuleBasedStateMachine):
    """Come, go, give up, vanish, change the limit, let time pass."""

    @initialize(
        limit=LIMITS,
        max_wait=st.sampled_from([0.0, 1.0, 8.0, 16.0]),
        max_queue=st.integers(0, 4),
        shares=SHARES,
        reserve=st.integers(0, 2),
        newest_first=st.booleans(),
        start=st.sampled_from([0.0, 2.0**20]),
    )
    def begin(
        self,
        *,
        limit: int,
        max_wait: float,
        max_queue: int,
        shares: dict[str, str],
        reserve: int,
        newest_first: bool,
        start: float,
    ) -> None:
        self.clock = FakeClock(start)
        self.loop = Loop(self.clock)
        self.max_wait = max_wait
        self.bulkhead = Bulkhead(
            "b",
            limit,
            max_wait=max_wait,
            max_queue=max_queue,
            priority="default",
            shares={level: float(share) for level, share in shares.items()},
            reserve=reserve,
            order="newest-first" if newest_first else "fifo",
            clock=self.clock,
        )
        told = {Priority.CRITICAL: Fraction(1), Priority.DEFAULT: Fraction("0.9")}
        told |= {Priority.SHEDDABLE: Fraction("0.7")}
        told |= {Priority[level.upper()]: Fraction(share) for level, share in shares.items()}
        self.model = Model(limit, told, reserve, max_queue, newest_first)

    # What happens

    @rule(level=LEVELS, left=st.none() | PAUSES)
    def come(self, level: Priority, left: float | None) -> None:
        call = self.new_call(level, left)
        call.task = self.loop.create_task(self.enter(call, left))
        self.model.arrive(call, self.clock())
        self.turn()

    def new_call(self, level: Priority, left: float | None) -> Call:
        now = self.clock()
        patience = self.max_wait if left is None else min(self.max_wait, left)
        return Call(level, now, now + patience, self.bulkhead.calling(level))

    async def enter(self, call: Call, left: float | None) -> None:
        assert call.block is not None
        limited = contextlib.nullcontext() if left is None else deadline(left, clock=self.clock)
        try:
            with limited:
                await call.block.__aenter__()
        except BulkheadFullError:
            call.outcome = "refused"
        else:
            call.outcome = "served"

    @rule(data=st.data(), error=st.sampled_from([None, ValueError(), GeneratorExit()]))
    def go(self, data: st.DataObject, error: BaseException | None) -> None:
        if self.model.running:
            self.end(data, error)
            self.turn()

    def end(self, data: st.DataObject, error: BaseException | None) -> None:
        call = data.draw(st.sampled_from(self.model.running))
        assert call.block is not None
        call.block.__exit__(None, error, None)
        self.model.running.remove(call)
        self.model.serve(self.clock())

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.model.waiting:
            call = data.draw(st.sampled_from(self.model.waiting))
            self.cancel(call)
            self.model.give_up(call)
            self.turn()

    def cancel(self, call: Call) -> None:
        assert call.task is not None
        call.task.cancel()

    @rule(data=st.data())
    def hand_on_to_somebody_who_gives_up(self, data: st.DataObject) -> None:
        """The slot is given to a task that is cancelled before it runs: it goes to the next."""
        if not self.model.running or not self.model.waiting:
            return
        before = [*self.model.waiting]
        self.end(data, None)
        for call in [call for call in before if call in self.model.running]:
            self.cancel(call)
            self.model.running.remove(call)
        self.turn()
        self.model.serve(self.clock())

    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """The block is forgotten; the next one who looks sees it."""
        if self.model.running:
            call = data.draw(st.sampled_from(self.model.running))
            call.block = call.task = None
            self.model.running.remove(call)
            self.poke()

    def poke(self) -> None:
        self.bulkhead.resize(self.model.limit)
        self.model.serve(self.clock())
        self.turn()

    @rule(limit=LIMITS)
    def resize(self, limit: int) -> None:
        self.model.limit = limit
        self.poke()

    @rule(seconds=PAUSES)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.expire(self.clock())
        self.turn()

    def turn(self) -> None:
        """Let the loop turn until everybody has done what there is to do."""
        for _ in range(_TURNS):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    # What must hold

    @invariant()
    def the_same_calls_run_and_wait(self) -> None:
        assert all(call.outcome == "served" for call in self.model.running)
        assert all(call.outcome is None for call in self.model.waiting)
        stats = self.bulkhead.stats()
        assert (stats.in_use, stats.waiting) == (len(self.model.running), len(self.model.waiting))
        assert stats.limit == self.model.limit

    @invariant()
    def every_call_is_counted_once(self) -> None:
        stats = self.bulkhead.stats()
        assert {name: getattr(stats, name) for name in COUNTS} == self.model.counts

    @invariant()
    def nobody_waits_for_a_slot_he_could_have(self) -> None:
        assert not any(self.model.has_slot(call.level) for call in self.model.waiting)

    def teardown(self) -> None:
        for call in [*self.model.waiting]:
            self.cancel(call)
        self.turn()
        self.loop.close()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=max(100, settings.default.max_examples))
