"""Threads of a bulkhead's own, for functions that block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from ...engine.deadline import time_left
from ...engine.drive.holds import Lender
from ...engine.permits import Permit
from ...engine.workers import Job, Stage, Workers
from ...errors import CallTimeoutError, DeadlineExceededError

__all__ = ["ThreadForm"]

_NEVER_BEGUN: Final = (Stage.QUEUED, Stage.WITHDRAWN)


class ThreadForm:
    """Runs functions in threads, each with a slot, which is kept until the function has really ended.

    Concurrency: safe from any thread.
    """

    def __init__(self, core: Lender, name: str, size: int) -> None:
        self._core = core
        self._name = name
        # No call waits for a thread: who has a slot finds one free, or about to be.
        self.workers = Workers(size, f"resilient-{name}")

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return *fn*, run in a thread."""

        @functools.wraps(fn)
        def elsewhere(*args: Any, **kwargs: Any) -> Any:
            return self._run(fn, args, kwargs)

        return elsewhere

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        permit = self._core.enter(fn, args, kwargs)
        seconds = time_left()
        job = Job(functools.partial(self._work, permit, fn, args, kwargs), self.workers.overdue)
        try:
            late = seconds is not None and seconds <= 0.0
            stage = job.withdraw() if late else self.workers.carry_out(job, seconds)
        finally:
            # Withdrawn once more: if an interrupt kept it from being so, it would be begun after all.
            if job.stage in _NEVER_BEGUN and job.withdraw() in _NEVER_BEGUN:
                self._core.leave(permit, GeneratorExit())
            del permit  # or the traceback of an error would hold what belongs to others by then
        if stage is Stage.DONE:
            return job.outcome()
        raise self._late(stage, seconds)

    def _work(self, permit: Permit, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            self._core.leave(permit, exc)
            del permit
            raise
        self._core.leave(permit, None)
        return result

    def _late(self, stage: Stage, seconds: float | None) -> Exception:
        if stage is Stage.RUNNING:
            message = (
                f"bulkhead {self._name!r}: the caller's deadline passed after {seconds or 0.0:.3g} s; "
                "the call runs on in its thread, and keeps its slot"
            )
            return CallTimeoutError(message, policy=self._name, seconds=seconds)
        message = f"bulkhead {self._name!r}: the caller's deadline had passed before the call was begun"
        return DeadlineExceededError(message, policy=self._name)
