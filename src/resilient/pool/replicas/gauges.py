"""How far replicas are behind: asked in the background, each by itself, so that none holds up another.

One that is too far behind, or does not answer, is held back by its breaker, which tells of it as of anything
that was set by hand.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any, Final

from ...engine.workers import Job, Stage, Workers
from ...errors import ResilientError
from ...events import error_text
from .. import rounds
from .nodes import Replica
from .routing import Routing

__all__ = ["Gauge", "TaskGauge", "ThreadGauge"]

_log = logging.getLogger("resilient")

_UNANSWERED: Final = 3.0  # rounds that a replica may leave without an answer, beyond what it may be behind


class Gauge(metaclass=ABCMeta):
    """Knows how far replicas may be behind, and holds those back that are farther.

    Args:
        routing: knows the replicas.
        lag: returns the seconds that the server of a connection is behind; None if it cannot tell.
        max_lag: how many it may be.
        every: seconds from one round to the next.
    """

    def __init__(self, routing: Routing, lag: Callable[[Any], Any], max_lag: float, every: float) -> None:
        self.every: Final = every
        self._name: Final = routing.name
        self._replicas: Final = routing.replicas
        self._lag: Final = lag
        self._max_lag: Final = max_lag
        self._clock: Final = routing.clock
        self._failing: set[Replica] = set()
        self._next = 0.0

    @abstractmethod
    def start(self) -> None:
        """Begin with the rounds."""

    @abstractmethod
    def stop(self) -> None:
        """Make no more of them."""

    def round(self) -> None:
        """Have all asked, if it is time."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self.every
        for replica in self._replicas:
            self._have_asked(replica)
            self._look(replica, now)

    @abstractmethod
    def _have_asked(self, replica: Replica) -> None:
        """Have *replica* asked, unless it still is."""

    def _judge(self, replica: Replica, answer: Any) -> None:
        if answer is None:
            lag = None
        else:
            # Two clocks may differ by more than there is between them.
            lag = max(0.0, answer.total_seconds() if isinstance(answer, timedelta) else float(answer))
        replica.lag, replica.measured = lag, self._clock()
        self._failing.discard(replica)
        if lag is None or lag <= self._max_lag:
            replica.release()
        elif replica.held is None:
            replica.hold(f"{lag:.3g} s behind, which is more than {self._max_lag:.3g} s")

    def _failed(self, replica: Replica, exc: BaseException) -> None:
        # Our own refusals are told by the breaker's events.
        if not isinstance(exc, ResilientError) and replica not in self._failing:
            self._failing.add(replica)
            _log.warning(
                "replica %r cannot tell by how much it is behind: %s", replica.pool.name, error_text(exc)
            )

    def _look(self, replica: Replica, now: float) -> None:
        if replica.measured is None:
            replica.measured = now  # it is given as long as one that has answered just now
        silence = now - replica.measured
        if silence > self._max_lag + _UNANSWERED * self.every and replica.held is None:
            replica.hold(f"it has not told for {silence:.3g} s by how much it is behind")


class ThreadGauge(Gauge):
    """Asks in threads, one for each replica: one may hang, and then it is not asked again.

    Concurrency: safe from any thread.
    """

    def start(self) -> None:
        """Begin with the rounds."""
        self._workers = Workers(len(self._replicas), f"resilient-lag-{self._name}")
        self._jobs: dict[Replica, Job] = {}
        self._next = 0.0
        rounds.attend(self)
        self.round()

    def stop(self) -> None:
        """Make no more of them."""
        rounds.dismiss(self)

    def _have_asked(self, replica: Replica) -> None:
        job = self._jobs.get(replica)
        if job is None or job.stage is Stage.DONE:
            job = Context().run(Job, partial(self._ask, replica), self._workers.overdue)
            self._workers.submit(job)
            self._jobs[replica] = job  # not before: where there are no threads, the next round asks

    def _ask(self, replica: Replica) -> None:
        pool: Any = replica.pool
        try:
            with pool.connection(self.every) as conn:
                answer = self._lag(conn)
            self._judge(replica, answer)
        except Exception as exc:  # noqa: BLE001 - the user's code, or the server
            self._failed(replica, exc)


class TaskGauge(Gauge):
    """Asks in tasks of the event loop in which it is started.

    Concurrency: for use in that loop.
    """

    _rounds: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin with the rounds."""
        self._tasks: dict[Replica, asyncio.Task[None]] = {}
        self._next = 0.0
        self.go_on(asyncio.get_running_loop())

    def stop(self) -> None:
        """Make no more of them."""
        if self._rounds is not None:
            self._rounds.cancel()
            for task in self._tasks.values():
                task.cancel()

    def go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make a round in *loop*, and see to the next one."""
        self.round()
        me: weakref.ref[TaskGauge] = weakref.ref(self)
        self._rounds = loop.call_later(self.every, _go_on, me, loop)

    def _have_asked(self, replica: Replica) -> None:
        task = self._tasks.get(replica)
        if task is None or task.done():
            loop = asyncio.get_running_loop()
            self._tasks[replica] = loop.create_task(self._ask(replica), context=Context())

    async def _ask(self, replica: Replica) -> None:
        pool: Any = replica.pool
        try:
            async with pool.connection(self.every) as conn:
                answer = self._lag(conn)
                if inspect.isawaitable(answer):
                    answer = await answer
            self._judge(replica, answer)
        except Exception as exc:  # noqa: BLE001 - the user's code, or the server
            self._failed(replica, exc)


def _go_on(reference: weakref.ref[TaskGauge], loop: asyncio.AbstractEventLoop) -> None:
    gauge = reference()
    if gauge is not None:
        gauge.go_on(loop)
