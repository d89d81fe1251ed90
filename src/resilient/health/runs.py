"""Runs of checks: in bounded threads and on event loops, cut off in time, and never waited for too long."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ..engine.deadline import innermost
from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.priority import Priority, innermost_priority
from ..engine.waiting import Waiter, running_loop
from ..engine.workers import Job, Stage, Workers
from ..policies.timeout import deadline
from .judging import Check, afound_by, found_by
from .keeper import Keeper

__all__ = ["Run", "Runner", "inside"]

_log = logging.getLogger("resilient")

inside: ContextVar[tuple[object, ...]] = ContextVar("resilient_health", default=())
"""Those for whom the check runs that this context is part of, the outermost first."""

_JUST_AFTER: Final = 0.001  # seconds: when whoever looks is sure to find that its time is up
_STOOD_STILL: Final = 0.5  # seconds
_ELSEWHERE: Final = re.compile(r"different (event )?loop|another (event )?loop")
_UNREADABLE: Final = Finding(Status.FAIL, "what the check has found cannot be read")


class Run:
    """One run of a check, which any number of threads and tasks may wait for.

    Concurrency: `waiters` and `ended` are guarded by the lock of whoever made it.
    """

    __slots__ = (
        "check",
        "ended",
        "is_at_home",
        "job",
        "loop",
        "place",
        "task",
        "timeout",
        "until",
        "waiters",
    )

    def __init__(self, check: Check, timeout: float, place: Any) -> None:
        self.check = check
        self.timeout = timeout
        self.place = place  # whose run it is
        self.until = math.inf  # when its time is up, by `time.monotonic`, once it has begun
        self.ended = False
        self.waiters: list[Waiter] = []
        self.job: Job | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_at_home = True  # whether that is a loop of the user's
        self.task: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether its time runs."""
        return self.until < math.inf

    def begin(self) -> None:
        """Have its time run from now on."""
        self.until = time.monotonic() + self.timeout + _JUST_AFTER

    def is_lost(self) -> bool:
        """Whether it will never end, though its time is up.

        Its loop was stopped or closed under it; or it has not been begun, as all threads hang or a loop is
        busy, and now will not be; or an interrupt struck whoever was to start it.
        """
        if self.loop is not None:
            return self.task is None or not self.loop.is_running()
        return self.job is None or self.job.withdraw() is not Stage.RUNNING


class Runner:
    """Runs checks for *owner*.

    Plain functions run in at most *threads* threads. Coroutine functions run on one event loop: where the
    first question was asked, for what they use is likely to belong to that; or, where none has been asked on
    a loop that still runs, on one in a thread of its own.

    Each run has a copy of the context that the check was registered in: neither the deadline nor the trace of
    whoever asks reaches it. It has its own time as its deadline, and the priority of a probe.

    Args:
        owner: for whom; `inside` tells it.
        threads: plain functions that run at the same time.
        begun: called when a run has come so far that it can begin; it does not where that says no.
        ended: called with what a run has found; None where it was cancelled from outside.

    Concurrency: safe from any thread. *begun* and *ended* are called in a thread or on a loop, once for each
    run, or never; see `Run.is_lost`.
    """

    def __init__(
        self,
        owner: object,
        threads: int,
        begun: Callable[[Run], bool],
        ended: Callable[[Run, Finding | None], None],
    ) -> None:
        self._owner = owner
        self._workers = Workers(threads, "resilient-health")
        self._begun = begun
        self._ended = ended
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self.keeper = Keeper("resilient-health-loop")
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the loop: whoever runs it did not come along."""
        self._home = None

    def settle_here(self) -> None:
        """Run coroutine functions on the loop of this thread from now on, unless they have a loop already."""
        loop = running_loop()
        if loop is not None and self._living_home() is None:
            self._home = weakref.ref(loop)

    def start(self, run: Run, context: Context, *, is_async: bool, at_home: bool) -> None:
        """Begin *run*, if it is awaited on the loop where questions are asked, or *at_home* is False.

        Raises:
            RuntimeError: neither a thread nor a loop is to be had.
        """
        context = context.copy()
        context.run(inside.set, (*inside.get(), self._owner))
        context.run(innermost_priority.set, Priority.PROBE)
        context.run(innermost.set, None)  # it may have been registered under a deadline
        if is_async:
            self._start_task(run, context, (self._living_home() if at_home else None) or self.keeper.loop)
        else:
            run.job = context.run(Job, partial(self._in_thread, run), self._workers.overdue)
            self._workers.submit(run.job)

    def _start_task(self, run: Run, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        run.loop = loop
        run.is_at_home = not self.keeper.keeps(loop)
        begin = partial(self._create_task, run, context, loop)
        if running_loop() is loop:
            begin()
        else:
            loop.call_soon_threadsafe(begin, context=Context())

    def _create_task(self, run: Run, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        run.task = loop.create_task(self._in_task(run), context=context)

    def _living_home(self) -> asyncio.AbstractEventLoop | None:
        loop = None if self._home is None else self._home()
        return loop if loop is not None and loop.is_running() else None

    def _in_thread(self, run: Run) -> None:
        if not self._begun(run):
            return
        finding = _UNREADABLE
        try:
            with deadline(run.timeout):
                finding = found_by(run.check)
        finally:
            self._ended(run, finding)

    async def _in_task(self, run: Run) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is None or not self._begun(run):
            return
        due, fired = loop.time() + run.timeout, False

        def cut_off() -> None:
            nonlocal fired
            fired = True
            _look_at_loop(run, loop.time() - due)
            task.cancel()

        cut = loop.call_at(due, cut_off)
        finding: Finding | None = None
        try:
            with deadline(run.timeout):
                finding = await afound_by(run.check)
        except asyncio.CancelledError:
            if fired:
                finding = Finding(Status.FAIL, f"no answer within {run.timeout:g} s")
            elif self.keeper.keeps(loop):  # nobody else would cancel there
                finding = Finding(Status.FAIL, "it has cancelled itself")
            else:
                raise  # by whoever closes the loop
        finally:
            cut.cancel()
            if not fired:  # though it may have been due
                _look_at_loop(run, loop.time() - due)
            self._ended(run, finding if run.is_at_home or finding is None else _with_hint(finding))


def _look_at_loop(run: Run, late: float) -> None:
    """Say, once for each check, that a loop stood still when it should have cut that off."""
    if late > _STOOD_STILL and not run.place.blamed:
        run.place.blamed = True
        _log.warning(
            "the event loop stood still for %.1f s while check %r was under way: what blocks, there or "
            "elsewhere on the loop, has to be called in a thread, as checks are that are plain functions",
            late,
            run.place.facts.name,
        )


def _with_hint(finding: Finding) -> Finding:
    """Say what helps where a check on a loop of ours needs that of somebody else."""
    if finding.status is not Status.FAIL or not _ELSEWHERE.search(finding.output):
        return finding
    return replace(finding, output=f"{finding.output}; call health.start() on the loop that it belongs to")
