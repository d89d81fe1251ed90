"""Runs of checks: in bounded threads and on event loops, cut off in time, and never waited for too long."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, Final

from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.priority import Priority, innermost_priority
from ..engine.waiting import Waiter, running_loop
from ..engine.workers import Job, Stage, Workers
from ..errors import BulkheadFullError, MaintenanceError, RateLimitedError, ThrottledError
from ..events import error_text
from ..policies.timeout import deadline
from .keeper import Keeper

__all__ = ["Run", "Runner", "found_by", "inside"]

Check = Callable[[], Any]
Ended = Callable[["Run", Finding | None], None]

inside: ContextVar[tuple[object, ...]] = ContextVar("resilient_health", default=())
"""Those for whom the check runs that this context is part of, the outermost first."""

# They say that nobody was asked, not how it is doing.
_NOT_ASKED: Final = (BulkheadFullError, MaintenanceError, RateLimitedError, ThrottledError)


_JUST_AFTER: Final = 0.001  # seconds: when whoever looks is sure to find that its time is up


class Run:
    """One run of a check, which any number of threads and tasks may wait for.

    Concurrency: `waiters` and `ended` are guarded by the lock of whoever made it.
    """

    __slots__ = ("check", "ended", "job", "loop", "place", "task", "timeout", "until", "waiters")

    def __init__(self, check: Check, timeout: float, place: Any) -> None:
        self.check = check
        self.timeout = timeout
        self.until = time.monotonic() + timeout + _JUST_AFTER
        self.place = place  # whose run it is
        self.ended = False
        self.waiters: list[Waiter] = []
        self.job: Job | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None

    def is_lost(self) -> bool:
        """Whether it will never end, nor begin, though its time is up.

        Its loop was closed under it; or all threads hang, and then it gives up its turn; or an interrupt
        struck whoever was to start it.
        """
        if self.loop is not None:
            return self.loop.is_closed()
        return self.job is None or self.job.withdraw() in {Stage.QUEUED, Stage.WITHDRAWN}


class Runner:
    """Runs checks for *owner*, and tells *ended* what each has found; None where it was cancelled.

    Plain functions run in at most *threads* threads. Coroutine functions run on one event loop: where the
    first question was asked, for what they use is likely to belong to that; or, where none has been asked on
    a loop that still runs, on one in a thread of its own.

    Each run has a copy of the context that the check was registered in: neither the deadline nor the trace of
    whoever asks reaches it. It has its own time as its deadline, and the priority of a probe.

    Concurrency: safe from any thread. *ended* is called once for each run, in a thread or on a loop; or
    never, see `Run.is_lost`.
    """

    def __init__(self, owner: object, threads: int, ended: Ended) -> None:
        self._owner = owner
        self._workers = Workers(threads, "resilient-health")
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

    def start(self, run: Run, context: Context, *, is_async: bool) -> None:
        """Begin *run*.

        Raises:
            RuntimeError: neither a thread nor a loop is to be had.
        """
        context = context.run(contextvars.copy_context)
        context.run(inside.set, (*inside.get(), self._owner))
        context.run(innermost_priority.set, Priority.PROBE)
        if is_async:
            self._start_task(run, context)
        else:
            run.job = context.run(Job, partial(self._in_thread, run), self._workers.overdue)
            self._workers.submit(run.job)

    def _start_task(self, run: Run, context: Context) -> None:
        loop = self._living_home() or self.keeper.loop
        run.loop = loop
        begin = partial(self._create_task, run, context, loop)
        if running_loop() is loop:
            begin()
        else:
            loop.call_soon_threadsafe(begin)

    def _create_task(self, run: Run, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        run.task = loop.create_task(self._in_task(run), context=context)

    def _living_home(self) -> asyncio.AbstractEventLoop | None:
        loop = None if self._home is None else self._home()
        return loop if loop is not None and loop.is_running() else None

    def _in_thread(self, run: Run) -> None:
        with deadline(run.timeout):
            finding = found_by(run.check)
        self._ended(run, finding)

    async def _in_task(self, run: Run) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - this is one
        cut = loop.call_later(run.timeout, task.cancel)
        finding: Finding | None = None
        try:
            with deadline(run.timeout):
                finding = await _afound_by(run.check)
        except asyncio.CancelledError:
            if loop.time() < cut.when():
                raise  # by whoever closes the loop
            finding = Finding(Status.FAIL, f"no answer within {run.timeout:g} s")
        finally:
            cut.cancel()
            run.task = None
            self._ended(run, finding)


def found_by(check: Check) -> Finding:
    """Return what *check* finds; whatever it does, that is a finding."""
    try:
        answer = check()
        if inspect.iscoroutine(answer):
            answer.close()
    except BaseException as error:  # noqa: BLE001 - `sys.exit()` in a check is no reason to end the process
        return _failure(error)
    return _of_answer(answer)


async def _afound_by(check: Check) -> Finding:
    task = asyncio.current_task()
    try:
        answer = await check()
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        return _failure(error)  # of something that it waited for
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        return _failure(error)
    return _of_answer(answer)


def _failure(error: BaseException) -> Finding:
    status = Status.UNKNOWN if isinstance(error, _NOT_ASKED) else Status.FAIL
    return Finding(status, error_text(error))


def _of_answer(answer: object) -> Finding:
    if answer is None or answer is True:
        return Finding(Status.PASS)
    if isinstance(answer, Finding):
        return answer
    if isinstance(answer, Status):
        return Finding(answer)
    if answer is False:
        return Finding(Status.FAIL, "the check returned False")
    rule = "a check returns None or True, False, a Status or a Finding"
    return Finding(Status.FAIL, f"the check returned {_kind(answer)}: {rule}")


def _kind(answer: object) -> str:
    return (
        "a coroutine, and is no coroutine function" if inspect.iscoroutine(answer) else type(answer).__name__
    )
