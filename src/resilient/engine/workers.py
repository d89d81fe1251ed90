"""A bounded set of threads for calls that a caller may stop waiting for.

There are no permits to lose: a job waits in the queue until a thread is free, and a caller that goes away
withdraws it. A thread stays taken until its job really ends, whoever still waits for it.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from .fork import renew_after_fork
from .threads import start
from .waiting import ThreadWaiter

__all__ = ["Job", "Stage", "Workers"]

_IDLE_SECONDS = 10.0
_SLACK = 64  # jobs that may stand in the queue before the withdrawn ones are swept out


class Stage(Enum):
    """How far a job has come."""

    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()
    WITHDRAWN = auto()


class Job:
    """One call, to be made in the context of whoever made the job.

    Concurrency: `withdraw` and the thread that runs the job meet under the job's lock, so a caller knows for
    certain whether the call was begun.
    """

    __slots__ = ("_call", "_context", "_lock", "_overdue", "_waiter", "error", "result", "stage")

    def __init__(self, call: Callable[[], Any], overdue: set[Job]) -> None:
        self._call: Callable[[], Any] | None = call
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._lock = threading.Lock()
        self._waiter = ThreadWaiter()
        self._overdue = overdue  # the jobs that run on without anybody waiting for them
        self.stage = Stage.QUEUED
        self.result: Any = None
        self.error: BaseException | None = None

    def wait(self, seconds: float | None) -> bool:
        """Wait for the end, for at most *seconds*; return whether it came."""
        return self._waiter.park(seconds)

    def withdraw(self) -> Stage:
        """Stop waiting; return how far the job had come. What was not begun will not be."""
        with self._lock:
            stage = self.stage
            if stage is Stage.QUEUED:
                self.stage = Stage.WITHDRAWN
                self._call = self._context = None  # it may stand in the queue for as long as others hang
            elif stage is Stage.RUNNING:
                self._overdue.add(self)
            return stage

    def outcome(self) -> Any:
        """Return what the call returned, or raise what it raised; to be asked once, when it has ended."""
        error, self.error = self.error, None
        if error is None:
            return self.result
        context = error.__context__
        try:
            raise error
        finally:
            if context is not None:  # its own: raised here, it would have what its caller is handling
                error.__context__ = context
            del error, context  # or this frame and its traceback would keep each other alive

    def run(self) -> None:
        """Make the call, unless it was withdrawn."""
        with self._lock:
            call, context = self._call, self._context
            if self.stage is not Stage.QUEUED or call is None or context is None:
                return
            self.stage = Stage.RUNNING
            self._call = self._context = None
        try:
            self.result = context.run(call)
        except BaseException as exc:  # noqa: BLE001 - it is raised again in the caller's thread
            self.error = exc
        del call, context  # this frame is in the traceback: who keeps the error must not keep these
        with self._lock:
            self.stage = Stage.DONE
            if self in self._overdue:
                self._overdue.discard(self)
                self.result = self.error = None  # nobody asks; the error leads back here by its traceback
        self._waiter.wake()


class _Worker(threading.Thread):
    """A thread, and the jobs that were given to it and to no other."""

    def __init__(self, pool: Workers, name: str) -> None:
        # A daemon: a call that hangs must not keep the process from ending.
        super().__init__(name=name, daemon=True)
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._pool: Workers | None = pool

    @property
    def has_come(self) -> bool:
        """Whether it has begun. That it has an `ident` does not say so: it may hang just before."""
        return self._pool is None

    def run(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None or not pool.expects(self):
            return
        job: Job | None = self.inbox.get()
        while job is not None:
            job.run()
            del job  # or the idle thread would keep the last call's arguments and result alive
            job = pool.next_job(self)


class Workers:
    """At most *size* threads, started when needed and gone when idle for a while.

    A place belongs to its thread: if an interrupt keeps that from starting, the place comes back by itself.
    But Python keeps a thread for ever whose start was interrupted at a bad moment, with all that it has: so
    it loses its place and its job then, unless it has come.

    Concurrency: safe from any thread; in a forked child it starts empty.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self.after_fork()
        renew_after_fork(self)

    def submit(self, job: Job) -> None:
        """Have *job* run by the next free thread. If an interrupt strikes here, it may not be begun.

        Raises:
            RuntimeError: there are no more threads, for now, or because the interpreter ends.
        """
        thread = None
        with self._lock:
            idle = [*self._idle]  # in one step: threads take themselves out without the lock
            if idle:
                # Whoever is given a job is idle no more from that moment on, awake or not. Given first: an
                # interrupt in between must not leave a thread without a job that nobody takes for idle.
                idle[-1].inbox.put(job)
                self._idle.pop(idle[-1], None)
            elif len(self._threads) < self.size:
                thread = _Worker(self, self._name)
                # Weak references call C code: Python code could be interrupted there, and the interrupt lost.
                self._threads.add(weakref.ref(thread, self._threads.discard))
                thread.inbox.put(job)
            else:
                self._wait_in_line(job)
        if thread is not None:
            self._start(thread, job)

    def carry_out(self, job: Job, seconds: float | None) -> Stage:
        """Have *job* run, and wait for its end, for at most *seconds* (None: without end).

        Return how far it had come by then: done, running on without anybody who waits for it, or queued, and
        then it will not be begun.
        """
        ended = False
        try:
            self.submit(job)
            ended = job.wait(seconds)
        finally:
            # Also when an interrupt ends the wait: what was not begun must not be begun without a caller.
            stage = Stage.DONE if ended else job.withdraw()
        return stage

    def expects(self, thread: _Worker) -> bool:
        """Tell whether *thread*, which has come, has its place still."""
        with self._lock:
            return weakref.ref(thread) in self._threads

    def next_job(self, thread: _Worker) -> Job | None:
        """Return what *thread* is to do next; None if it is to end."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._idle[thread] = None
        try:
            return thread.inbox.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            return self._leave(thread)
        finally:
            self._idle.pop(thread, None)  # it is still there if an interrupt hit who gave the job

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return len(self._threads)

    def _start(self, thread: _Worker, job: Job) -> None:
        try:
            start(thread)
        except RuntimeError:
            raise
        except BaseException:
            with self._lock:
                if not thread.has_come:  # if it comes now, it sees that it is not expected
                    self._threads.discard(weakref.ref(thread))
            job.withdraw()
            raise

    def _leave(self, thread: _Worker) -> Job | None:
        with self._lock:
            try:
                return thread.inbox.get_nowait()  # it may have come between the last look and this one
            except queue.Empty:
                self._idle.pop(thread, None)
                self._threads.discard(weakref.ref(thread))
                return None

    def _wait_in_line(self, job: Job) -> None:
        self._waiting.append(job)
        if len(self._waiting) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Take withdrawn jobs out of the line: while all threads hang, nobody else does."""
        waiting = self._waiting
        for _ in range(len(waiting)):
            if not waiting:  # a signal handler made a call, which swept too
                break
            if waiting[0].stage is Stage.QUEUED:
                waiting.rotate(-1)
            else:
                waiting.popleft()
        self._sweep_at = max(_SLACK, 2 * len(waiting))

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may make a call too
        self._waiting: deque[Job] = deque()  # for a thread to come free
        self._idle: dict[_Worker, None] = {}  # a set in order: who came last goes first
        self._sweep_at = _SLACK
        self._threads: set[weakref.ref[_Worker]] = set()
        self.overdue: set[Job] = set()  # for jobs that run on without anybody waiting for them
