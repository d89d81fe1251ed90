"""Time limits: `Timeout` for one attempt, `deadline` for everything below a caller."""

from __future__ import annotations

import asyncio
import functools
import threading
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Self

from ..engine import params
from ..engine.clock import MONOTONIC
from ..engine.cutoff import TIMED, Cutoff, CutoffQueue
from ..engine.deadline import Instant, innermost
from ..engine.drive.bounds import bound_function, bound_stream
from ..engine.drive.gates import GateBlock, gate, settle
from ..engine.latency import BATCH, IDLE, Stopwatch
from ..engine.living import remember
from ..engine.measure import Measure
from ..engine.policy import Policy
from ..engine.shape import Shape
from ..engine.workers import Job, Stage, Workers
from ..events import Announcer
from ..typing import Clock, Seconds
from .measures import of_timeout
from .time_limit import Limit, TimeoutStats

__all__ = ["Deadline", "Timeout", "TimeoutStats", "deadline"]


class _DeadlineGate:
    """The form for blocks: sets the deadline that everything inside obeys, and interrupts nothing."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit

    def set(self, instant: Instant) -> None:
        """Let *instant* hold from now on, until it is over."""
        self._limit.begin(instant)
        innermost.set(instant)

    def admit(self, _fn: Any, _args: Any, _kwargs: Any) -> Instant:
        instant = Instant()
        self.set(instant)
        return instant

    admit_stream = admit  # never used: streams are bounded step by step

    def success(self, instant: Instant, _result: Any) -> None:
        instant.over = True

    def failure(self, instant: Instant, _exc: Exception) -> None:
        instant.over = True

    def abandon(self, instant: Instant, _exc: BaseException) -> None:
        instant.over = True


class _Queues(threading.local):
    """The queue of the loop that runs in this thread."""

    queue: CutoffQueue | None = None


class _CutoffGate:
    """The form for coroutines: cancels a call whose time is up, and tells that from a caller's cancel."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._seconds = limit.seconds
        self._ticker = limit.calls.ticker
        self._queues = _Queues()
        self._queue: CutoffQueue | None = None  # the one used last, of whatever thread
        self._is_real_time = limit.clock is MONOTONIC
        self._stopwatch = limit.stopwatch
        self._took, self._pending = limit.stopwatch.good.add, limit.stopwatch.good.pending

    def admit(self, _fn: Any, _args: Any, _kwargs: Any) -> Cutoff:
        loop = get_running_loop()
        outer = innermost.get()
        while outer is not None and outer.over:
            outer = outer.outer
        if outer is not None or not self._is_real_time:
            return self._admit_carefully(loop)
        queue = self._queue
        if queue is None or queue.loop is not loop:
            queue = self._queue_of(loop)
        cutoff = Cutoff()
        cutoff.task = task = current_task(loop)
        if task is None:
            raise self._no_task()
        next(self._ticker)
        cutoff.seconds = self._seconds
        now = MONOTONIC()
        cutoff.when = now + self._seconds
        cutoff.clock = MONOTONIC
        cutoff.outer = None
        cutoff.over = cutoff.fired = False
        cutoff.heeded = now >= self._stopwatch.resumes
        cutoff.cancelling = task.cancelling()
        cutoff.queue = queue
        queue.entries.append(cutoff)
        if queue.timer is None:
            queue.start_timer()
        innermost.set(cutoff)
        return cutoff

    admit_stream = admit  # never used: streams are bounded step by step

    def success(self, cutoff: Cutoff, _result: Any) -> None:
        queue = cutoff.queue
        if queue is None or cutoff.heeded or queue.entries[0] is not cutoff:
            if cutoff.heeded == TIMED:
                now = self._limit.clock()
                self._took(now - (cutoff.when - cutoff.seconds))
                if len(self._pending) >= BATCH:
                    self._stopwatch.rest(now)
            if queue is None or cutoff.fired or queue.entries[0] is not cutoff:
                self._end_carefully(cutoff)
                return
        cutoff.over = True
        cutoff.task = None
        entries = queue.entries
        entries.popleft()
        if entries and entries[0].over:
            queue.trim()

    def failure(self, cutoff: Cutoff, _exc: Exception) -> None:
        self._end_carefully(cutoff)

    def abandon(self, cutoff: Cutoff, exc: BaseException) -> None:
        ours = self._end_carefully(cutoff)
        if ours and isinstance(exc, asyncio.CancelledError):
            timed = bool(cutoff.heeded & TIMED)
            raise self._limit.overrun(cutoff.seconds, running=False, timed=timed) from exc

    def _admit_carefully(self, loop: asyncio.AbstractEventLoop) -> Cutoff:
        """Admit a call by itself: in another deadline, on a clock that is not the real one, or a block."""
        task = current_task(loop)
        if task is None:
            raise self._no_task()
        cutoff = Cutoff()
        cutoff.seconds = seconds = self._limit.begin(cutoff)
        cutoff.task = task
        cutoff.fired = False
        cutoff.heeded = cutoff.begun >= self._stopwatch.resumes
        cutoff.cancelling = task.cancelling()
        # Out of the queue's order, it gets a timer of its own.
        cutoff.queue = None
        cutoff.timer = loop.call_later(seconds, cutoff.fire)
        innermost.set(cutoff)
        return cutoff

    def _queue_of(self, loop: asyncio.AbstractEventLoop) -> CutoffQueue:
        queue = self._queues.queue
        if queue is None or queue.loop is not loop:
            queue = self._queues.queue = CutoffQueue(loop)
        self._queue = queue
        return queue

    def _end_carefully(self, cutoff: Cutoff) -> bool:
        """End the limit; return whether the call was cancelled by it and by nobody else.

        A call that answers although it was cancelled keeps its answer; the cancel is taken back.
        """
        cutoff.over = True
        task, cutoff.task = cutoff.task, None
        if cutoff.queue is None:
            if cutoff.timer is not None:
                cutoff.timer.cancel()
        elif not cutoff.fired:
            cutoff.queue.leave_blank()
            cutoff.queue.trim()
        return cutoff.fired and task is not None and task.uncancel() <= cutoff.cancelling

    def _no_task(self) -> RuntimeError:
        return RuntimeError(
            f"{self._limit.kind} {self._limit.name!r} can only cut off code that runs in a task"
        )


class _BlockGate(_CutoffGate):
    """The form for blocks of coroutines: a block comes once, so there is nobody to share a queue with.

    A queue's timer runs on when the queue is empty, for the next call; one left behind by each block would
    be a timer for every request of the last minute.
    """

    def admit(self, _fn: Any, _args: Any, _kwargs: Any) -> Cutoff:
        return self._admit_carefully(get_running_loop())


class _StreamLimit:
    """The form for generators: every step gets what is left of one limit for the whole stream.

    Between the steps the deadline must not hold: the consumer is not bound by it, and may take the next step
    in another context.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._instant = Instant()
        self._seconds = limit.begin(self._instant)

    def step(self, advance: Callable[[Any], Any], value: Any) -> Any:
        before = innermost.get()
        try:
            innermost.set(self._instant)
            return advance(value)
        finally:
            innermost.set(before)
            del value  # if it was thrown in and comes back, this frame is in its traceback

    def end(self) -> None:
        self._instant.over = True

    async def astep(self, step: Awaitable[Any]) -> Any:
        before = innermost.get()
        scope = asyncio.timeout(self._instant.when - self._instant.clock())
        try:
            innermost.set(self._instant)
            async with scope:
                return await step
        except TimeoutError as exc:
            if scope.expired():
                raise self._limit.overrun(self._seconds, running=False) from exc
            raise
        finally:
            innermost.set(before)
            del step


class _ThreadForm:
    """The form for functions that may block: they run in a thread, and their caller leaves in time."""

    def __init__(self, limit: Limit, threads: int) -> None:
        self._limit = limit
        self.workers = Workers(threads, f"resilient-{limit.name}")

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            return self._run(functools.partial(fn, *args, **kwargs))

        return bounded

    def _run(self, call: Callable[[], Any]) -> Any:
        instant = Instant()
        seconds = self._limit.begin(instant)
        timed = instant.begun >= self._limit.stopwatch.resumes
        job = self._job(call, instant)
        stage = self.workers.carry_out(job, seconds)
        if stage is Stage.QUEUED:
            raise self._limit.no_thread(self.workers.size, seconds)
        if stage is Stage.RUNNING:
            raise self._limit.overrun(seconds, running=True, timed=timed)
        outcome = job.outcome()
        if timed:
            self._limit.answered(instant.begun)
        return outcome

    def _job(self, call: Callable[[], Any], instant: Instant) -> Job:
        before = innermost.get()
        try:
            innermost.set(instant)
            # Takes a copy of the context, deadline and all. The deadline holds until the work has ended, not
            # only as long as somebody waits for it.
            return Job(functools.partial(_within, instant, call), self.workers.overdue)
        finally:
            innermost.set(before)


def _within(instant: Instant, call: Callable[[], Any]) -> Any:
    try:
        return call()
    finally:
        instant.over = True


class _TimeLimit(Policy):
    """What `Timeout` and `deadline` have in common."""

    _limit: Limit

    def __init__(
        self,
        seconds: Seconds,
        name: str | None,
        clock: Clock,
        announcer: Announcer | None = None,
        *,
        stopwatch: Stopwatch = IDLE,
    ) -> None:
        length = params.seconds("seconds", seconds, above=True)
        label = f"{self.kind}-{length:g}s" if name is None else params.named("name", name)
        self.announcer = Announcer() if announcer is None else announcer
        self._limit = Limit(
            self.kind, label, length, params.callback("clock", clock), self.announcer, stopwatch=stopwatch
        )
        self._deadline_gate = _DeadlineGate(self._limit)
        self._cutoff_gate = _CutoffGate(self._limit)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._limit.name

    @property
    def seconds(self) -> float:
        """The limit, in seconds."""
        return self._limit.seconds

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, under this limit."""
        if shape is Shape.FUNCTION:
            return bound_function(self._deadline_gate.set, fn, self._limit.stopwatch)
        if shape is Shape.COROUTINE:
            return gate(self._cutoff_gate, fn, shape)
        return bound_stream(functools.partial(_StreamLimit, self._limit), fn, shape)

    def stats(self) -> TimeoutStats:
        """Return what the limit has counted so far."""
        return self._limit.stats(0)


class Timeout(_TimeLimit):
    """Limit how long one call may take.

    A coroutine is cancelled when its time is up, and `CallTimeoutError` is raised; a cancellation that comes
    from the caller stays one. An answer that arrives in spite of the cancellation is kept.

    A function cannot be interrupted safely. Without *threads* the limit becomes the deadline that everything
    inside obeys (retries, other limits, `time_left()`). With *threads* it runs in one of so many threads of
    this policy's own, in a copy of the caller's context; the caller leaves in time, and the thread stays
    taken until the work really ends.

    A stream (generator or async generator) has the limit for all of its steps together, the consumer's time
    between them included.

    Args:
        seconds: the limit, in seconds or as a `timedelta`; greater than 0. An earlier deadline of the
            caller's counts instead.
        threads: threads to run functions in; at least 1. None runs them in the caller's thread.
        name: in errors, events and statistics; made from the limit where it is None.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop; O(1) a call, with one timer a loop for all its calls.

    Source: M. Brooker, "Timeouts, retries, and backoff with jitter", Amazon Builders' Library.
    """

    kind: ClassVar[str] = "Timeout"

    def __init__(
        self,
        seconds: Seconds,
        *,
        threads: int | None = None,
        name: str | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._stopwatch = Stopwatch(params.callback("clock", clock))
        super().__init__(seconds, name, clock, stopwatch=self._stopwatch)
        self._threads = (
            None if threads is None else _ThreadForm(self._limit, params.count("threads", threads))
        )
        remember(self)

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, under this limit."""
        if self._threads is not None and shape is Shape.FUNCTION:
            return self._threads.wrap(fn)
        return super().wrap(fn, shape)

    def stats(self) -> TimeoutStats:
        """Return what the limit has counted so far."""
        return self._limit.stats(0 if self._threads is None else len(self._threads.workers.overdue))

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_timeout(self.stats(), self._stopwatch)

    def __repr__(self) -> str:
        stats = self.stats()
        counts = f"{stats.timed_out} timed out, {stats.abandoned} abandoned"
        return f"<Timeout {self.name!r} {self.seconds:g} s, {counts}>"


class Deadline(_TimeLimit):
    """A limit for everything below a caller; made by `deadline`."""

    kind: ClassVar[str] = "deadline"

    def __init__(
        self, seconds: Seconds, name: str | None, clock: Clock, announcer: Announcer | None = None
    ) -> None:
        super().__init__(seconds, name, clock, announcer)
        self._block_gate = _BlockGate(self._limit)

    def block(self, *, in_task: bool, recurring: bool = False) -> GateBlock:
        """Return a block under this limit, for one `with`; with *in_task*, one that is cut off.

        Blocks that are *recurring*, as those of all requests to one service are, share a queue and its timer.
        """
        if not in_task:
            return GateBlock(self._deadline_gate)
        return GateBlock(self._cutoff_gate if recurring else self._block_gate)

    def __enter__(self) -> Self:
        _enter(self._deadline_gate)
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        _leave(self._deadline_gate, exc)

    async def __aenter__(self) -> Self:
        _enter(self._block_gate)
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        _leave(self._block_gate, exc)

    def __repr__(self) -> str:
        return f"<deadline {self.name!r} {self.seconds:g} s>"


_Form = _DeadlineGate | _CutoffGate

# The blocks that are open in this context, innermost last. In the context and not in the object, so that
# one object may be open in many tasks and threads at once, and in itself.
_open_blocks: ContextVar[tuple[tuple[_Form, Any], ...]] = ContextVar("resilient_open_deadlines", default=())


def _enter(form: _Form) -> None:
    ticket = form.admit(None, (), {})
    try:
        _open_blocks.set((*_open_blocks.get(), (form, ticket)))
    except BaseException as exc:
        settle(form, ticket, exc)  # an interrupt here would leave the deadline to this thread for good
        raise


def _leave(form: _Form, exc: BaseException | None) -> None:
    blocks = _open_blocks.get()
    # Mostly the last one; but blocks in generators may end in any order.
    for position in reversed(range(len(blocks))):
        if blocks[position][0] is form:
            _open_blocks.set(blocks[:position] + blocks[position + 1 :])
            settle(form, blocks[position][1], exc)
            return
    msg = "a deadline block must be left in the context (task, thread) in which it was entered"
    raise RuntimeError(msg)


def deadline(seconds: Seconds, *, name: str | None = None, clock: Clock = MONOTONIC) -> Deadline:
    """Set a deadline for a block, a function or a pipeline, and for everything called from there.

    Retries, time limits and waits inside keep to it, and `time_left()` tells what is left. Deadlines nest:
    the earliest one counts. `async with` and coroutine functions are cut off when it passes, with
    `CallTimeoutError`; `with` and functions are not interrupted.

    Args:
        seconds: from now (or from the beginning of each call), in seconds or as a `timedelta`; greater
            than 0.
        name: in errors, events and statistics; made from the limit where it is None.
        clock: a monotonic clock, in seconds.

    Returns:
        An object for `with`, `async with`, as a decorator, and in a `Pipeline`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop; the deadline lives in the context.

    Source: Finagle's and gRPC's deadlines, which travel with the request.
    """
    return Deadline(seconds, name, clock)
