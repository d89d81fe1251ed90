"""Two kinds of server: workers with a queue before them, and processors shared by all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from bench.simulation.agenda import Agenda

Done = Callable[[], None]


class Server(Protocol):
    """Something that does work, one piece after another or all at a time."""

    def submit(self, work: float, done: Done) -> None:
        """Take on *work* seconds of work, and call *done* when it is finished."""
        ...

    def hang(self, hung: bool) -> None:
        """Finish nothing while *hung*."""
        ...

    def grow(self, more: int) -> None:
        """Have so many more workers, or processors."""
        ...


class Workers:
    """So many workers, each with one call at a time, and a queue without a bound, first come first served.

    Who has left is worked for all the same: a server does not know that its client hung up.
    """

    def __init__(self, agenda: Agenda, workers: int) -> None:
        self._agenda = agenda
        self._idle = workers
        self._queue: deque[tuple[float, Done]] = deque()
        self._hung = False
        self._stuck: list[Done] = []

    def submit(self, work: float, done: Done) -> None:
        if not self._idle:
            self._queue.append((work, done))
            return
        self._idle -= 1
        self._agenda.after(work, self._finish, done)

    def hang(self, hung: bool) -> None:
        self._hung = hung
        if not hung:
            stuck, self._stuck = self._stuck, []
            for done in stuck:
                self._finish(done)

    def grow(self, more: int) -> None:
        for _ in range(more):
            self._next()

    def _finish(self, done: Done) -> None:
        if self._hung:
            self._stuck.append(done)
            return
        done()
        self._next()

    def _next(self) -> None:
        if self._queue:
            work, done = self._queue.popleft()
            self._agenda.after(work, self._finish, done)
        else:
            self._idle += 1


class SharedProcessors:
    """So many processors, of which all calls have an equal share: each call slows all others down.

    The clock of `_progress` runs as fast as each of the calls is worked on, so a call is finished when that
    clock shows what it showed at the beginning, and the call's work.
    """

    def __init__(self, agenda: Agenda, workers: int) -> None:
        self._agenda = agenda
        self._processors = workers
        self._calls: list[tuple[float, int, Done]] = []
        self._number = count()
        self._progress = 0.0
        self._since = agenda.clock()
        self._plan = 0
        self._hung = False

    def submit(self, work: float, done: Done) -> None:
        self._catch_up()
        heappush(self._calls, (self._progress + work, next(self._number), done))
        self._replan()

    def hang(self, hung: bool) -> None:
        self._catch_up()
        self._hung = hung
        self._replan()

    def grow(self, more: int) -> None:
        self._catch_up()
        self._processors += more
        self._replan()

    @property
    def _pace(self) -> float:
        return 0.0 if self._hung or not self._calls else min(1.0, self._processors / len(self._calls))

    def _catch_up(self) -> None:
        now = self._agenda.clock()
        self._progress += (now - self._since) * self._pace
        self._since = now

    def _replan(self) -> None:
        self._plan += 1  # what was planned before is void
        if pace := self._pace:
            self._agenda.after(max(0.0, self._calls[0][0] - self._progress) / pace, self._finish, self._plan)

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._catch_up()
        _, _, done = heappop(self._calls)
        self._replan()
        done()


@dataclass(frozen=True, slots=True)
class Backend:
    """What the calls are made to.

    Args:
        workers: How many calls it can work on at once, >= 1.
        service: Seconds of work in a call, on average.
        wire: Seconds a call takes beside, keeping no worker busy: the way there and back.
        slow_share: The share of calls that have `slow_factor` times as much work, from 0 to 1.
        kind: The server's class.
    """

    workers: int = 10
    service: float = 0.1
    wire: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 10.0
    kind: Callable[[Agenda, int], Server] = Workers

    @property
    def work(self) -> float:
        """Seconds of work in a call on average, the slow ones included."""
        return self.service * (1.0 + self.slow_share * (self.slow_factor - 1.0))

    @property
    def capacity(self) -> float:
        """The most calls it can finish in a second."""
        return self.workers / self.work
