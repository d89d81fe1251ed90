"""From what a check returns or raises to a finding, whatever it does."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Final

from ..engine.finding import Finding, Status
from ..errors import BulkheadFullError, MaintenanceError, RateLimitedError, ThrottledError
from .tidy import reason

__all__ = ["Check", "afound_by", "found_by"]

Check = Callable[[], Any]

# They say that nobody was asked, not how it is doing.
_NOT_ASKED: Final = (BulkheadFullError, MaintenanceError, RateLimitedError, ThrottledError)


def found_by(check: Check) -> Finding:
    """Return what *check* finds, in a thread of ours."""
    try:
        answer = check()
        if inspect.iscoroutine(answer):
            answer.close()
    except BaseException as error:  # noqa: BLE001 - `sys.exit()` in a check is no reason to end the process
        return _failure(error)
    return _of_answer(answer)


async def afound_by(check: Check) -> Finding:
    """Return what *check* finds, in a task of its own, unless that is cancelled from outside."""
    task = asyncio.current_task()
    try:
        answer = await check()
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        return _failure(error)  # of something that it waited for
    except GeneratorExit as error:
        if not _is_current(task):  # it was collected with its loop
            raise
        return _failure(error)
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            raise  # it was not meant for the check
        return _failure(error)
    except BaseException as error:  # noqa: BLE001 - as above
        return _failure(error)
    return _of_answer(answer)


def _is_current(task: asyncio.Task[Any] | None) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs
        return False


def _failure(error: BaseException) -> Finding:
    status = Status.UNKNOWN if isinstance(error, _NOT_ASKED) else Status.FAIL
    return Finding(status, reason(error))


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
    if inspect.iscoroutine(answer):
        return "a coroutine, and is no coroutine function"
    return type(answer).__name__
