"""Callers, a limit and a server, played through a story."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from bench.simulation.agenda import Agenda
from bench.simulation.chance import Chance
from bench.simulation.story import Phase, Story
from bench.simulation.trace import Chapter, Row, Tally, Trace
from resilient import Bulkhead, BulkheadFullError
from resilient.policies.bulkhead.limits import AdaptiveLimit

STEP = 1.0
"""Seconds between two rows of a trace."""

AT_ONCE = 0.001
"""Seconds a call takes that fails at once."""


def play(story: Story, limit: int | AdaptiveLimit, *, seed: int = 1, step: float = STEP) -> Trace:
    """Return what is seen of *story* with *limit* before the server; the same for the same *seed*."""
    with _settled(seed):
        return World(story, limit, seed=seed, step=step).run()


@contextmanager
def _settled(seed: int) -> Iterator[None]:
    """Have what draws from the common random numbers draw the same each time."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


class World:
    """A server, a bulkhead before it, and callers who come whether or not anybody has time for them.

    Args:
        story: What happens.
        limit: The bulkhead's.
        seed: What makes one run differ from another.
        step: Seconds between two rows of the trace.
    """

    def __init__(self, story: Story, limit: int | AdaptiveLimit, *, seed: int, step: float) -> None:
        self.agenda = Agenda()
        self.bulkhead = Bulkhead("simulated", limit, clock=self.agenda.clock)
        self.chance = Chance(seed)
        self._story = story
        self._backend = story.backend
        self._server = story.backend.kind(self.agenda, story.backend.workers)
        self._trace = Trace(step)
        self._in_step = Tally()
        self._in_chapter = Tally()
        self._phase = story.phases[0]
        self._rate = 0.0
        self._turn = 0

    def run(self) -> Trace:
        """Play all phases."""
        end = 0.0
        self.agenda.after(self._trace.step, self._look)
        for phase in self._story.phases:
            self._begin(phase)
            end += phase.seconds
            # A hair later, so that the last row is written.
            self.agenda.run_until(end + 1e-6)
        return self._trace

    def _begin(self, phase: Phase) -> None:
        self._backend = replace(self._backend, workers=self._backend.workers + phase.more)
        chapter = Chapter(phase, self._backend, self.agenda.clock())
        self._trace.chapters.append(chapter)
        self._in_chapter = chapter.tally
        self._server.hang(phase.hung)
        self._server.grow(phase.more)
        self._phase = phase
        self._rate = phase.load * self._story.backend.capacity
        self._turn += 1  # who was to come at the rate before does not
        self._expect(self._turn)

    def _expect(self, turn: int) -> None:
        if self._rate:
            self.agenda.after(self.chance.gap(self._rate), self._arrive, turn)

    def _arrive(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._expect(turn)
        block = self.bulkhead.calling()
        tallies = self._in_step, self._in_chapter
        for tally in tallies:
            tally.offered += 1
        try:
            block.__enter__()
        except BulkheadFullError:
            for tally in tallies:
                tally.rejected += 1
            return
        self._serve(Call(self, block))

    def _serve(self, call: Call) -> None:
        backend, phase, chance = self._story.backend, self._phase, self.chance
        self.agenda.after(self._story.patience, call.give_up)
        if chance.happens(phase.failing):
            self.agenda.after(AT_ONCE, call.fail)
        elif not chance.happens(phase.lost):
            slow = backend.slow_factor if chance.happens(backend.slow_share) else 1.0
            way = backend.wire + phase.wire
            done = call.answer if not way else lambda: self.agenda.after(way, call.answer)
            self._server.submit(chance.around(backend.service) * slow * phase.slower, done)

    def ended(self, took: float | None, *, timed_out: bool = False) -> None:
        """Count a call that was answered in *took* seconds, timed out, or failed."""
        for tally in (self._in_step, self._in_chapter):
            if took is not None:
                tally.took.append(took)
            elif timed_out:
                tally.timed_out += 1
            else:
                tally.failed += 1

    def _look(self, _: None) -> None:
        step, seen = self._trace.step, self._in_step
        self.agenda.after(step, self._look)
        stats = self.bulkhead.stats()
        self._trace.rows.append(
            Row(
                at=self.agenda.clock(),
                limit=stats.limit,
                in_flight=stats.in_use,
                rtt=seen.mean,
                baseline=None if stats.adaptive is None else stats.adaptive.baseline,
                offered=seen.offered / step,
                goodput=len(seen.took) / step,
                rejected=seen.rejected / step,
            )
        )
        self._in_step = Tally()


class Call:
    """A call that was let in; it ends once."""

    __slots__ = ("_begun", "_block", "_world")

    def __init__(self, world: World, block: AbstractContextManager[Any]) -> None:
        self._world = world
        self._block: AbstractContextManager[Any] | None = block
        self._begun = world.agenda.clock()

    def answer(self, _: None = None) -> None:
        """End well."""
        if self._end(None):
            self._world.ended(self._world.agenda.clock() - self._begun)

    def give_up(self, _: None) -> None:
        """End because the caller has lost patience."""
        if self._end(TimeoutError("no answer in time")):
            self._world.ended(None, timed_out=True)

    def fail(self, _: None) -> None:
        """End with an error that tells nothing of overload."""
        if self._end(ConnectionError("refused")):
            self._world.ended(None)

    def _end(self, error: Exception | None) -> bool:
        block, self._block = self._block, None
        if block is None:
            return False
        block.__exit__(None if error is None else type(error), error, None)
        return True
