"""A bounded set of threads for calls that a caller may stop waiting for.

There are no permits to lose: a job waits in the queue until a thread is free, and a caller that goes away
withdraws it. A thread stays taken until its job really ends, whoever still waits for it.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from .fork import renew_after_fork
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

    def run(self) -> None:
        """Make the call, unless it was withdrawn."""
        with self._lock:
            call, context = self._call, self._context
            if self.stage is not Stage.QUEUED or call is None or context is None:
                return
            self.stage = Stage.RUNNING
        try:
            self.result = context.run(call)
        except BaseException as exc:  # noqa: BLE001 - it is raised again in the caller's thread
            self.error = exc
        with self._lock:
            self.stage = Stage.DONE
            if self in self._overdue:
                self._overdue.discard(self)
                self.result = self.error = None  # nobody asks; the error leads back here by its traceback
        self._waiter.wake()


class Workers:
    """At most *size* threads, started when needed and gone when idle for a while.

    A place belongs to its thread: if an interrupt keeps that from starting, the place comes back by itself.

    Concurrency: safe from any thread; in a forked child it starts empty.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self.after_fork()
        renew_after_fork(self)

    def submit(self, job: Job) -> None:
        """Have *job* run by the next free thread."""
        self._jobs.put(job)
        thread = self._further_thread()
        if thread is not None:
            thread.start()

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return len(self._threads)

    def _further_thread(self) -> threading.Thread | None:
        with self._lock:
            waiting = self._jobs.qsize()
            if waiting > self._sweep_at:
                self._sweep()
            if self._idle >= waiting or len(self._threads) >= self.size:
                return None
            # A daemon: a call that hangs must not keep the process from ending.
            thread = threading.Thread(target=self._work, args=(self._jobs,), name=self._name, daemon=True)
            self._threads.add(thread)
            return thread

    def _sweep(self) -> None:
        """Take withdrawn jobs out of the queue: while all threads hang, nobody else does."""
        jobs = [self._jobs.get_nowait() for _ in range(self._jobs.qsize())]
        live = [job for job in jobs if job.stage is Stage.QUEUED]
        for job in live:
            self._jobs.put(job)
        self._sweep_at = max(_SLACK, 2 * len(live))

    def _work(self, jobs: queue.SimpleQueue[Job]) -> None:
        while (job := self._next(jobs)) is not None:
            job.run()
            del job  # or the idle thread would keep the last call's arguments and result alive

    def _next(self, jobs: queue.SimpleQueue[Job]) -> Job | None:
        with self._lock:
            self._idle += 1
        try:
            return jobs.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            return self._leave(jobs)
        finally:
            with self._lock:
                self._idle -= 1

    def _leave(self, jobs: queue.SimpleQueue[Job]) -> Job | None:
        # A job may have come between the last look and this one; who submitted it saw an idle thread and
        # started none.
        with self._lock:
            try:
                return jobs.get_nowait()
            except queue.Empty:
                self._threads.discard(threading.current_thread())
                return None

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may make a call too
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._sweep_at = _SLACK
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._idle = 0
