"""A report as a file, for workers that serve nothing and are probed by a command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ...engine.finding import Status
from ...engine.fork import renew_after_fork
from ..report import Report
from .forms import DEFAULT, View
from .told import LARGEST, report_in

__all__ = ["StatusFile", "Written", "read_status"]

_ALL_OF_IT: Final = View(details=True, word="", groups=())
# Seconds since the machine was started, for all of its processes: a step of the wall clock makes no file old.
_WRITTEN: Final = "monotonic"


class StatusFile:
    """Write reports to a file, each in the place of the one before.

    Whoever reads sees a whole report or the one before, never a half. The file is for its owner only: it has
    all the details.

    Args:
        path: of the file; its directory has to be there.
        clock: a monotonic clock in seconds, the same for those who read.

    Concurrency: safe from any thread and process; the last one counts.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.path: Final = Path(path)
        self._clock = clock
        self.after_fork()
        renew_after_fork(self)

    def write(self, report: Report) -> None:
        """Have the file tell *report*, and that it was written now.

        Raises:
            OSError: it cannot be written; then it stays as it was, and grows old.
        """
        members = json.loads(DEFAULT.body(report, _ALL_OF_IT)) | {_WRITTEN: self._clock()}
        # Beside it, as it could not be moved here from elsewhere; one for each process, so that those that
        # are killed in between leave few.
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        # Never into a file that is there, which would have the owner and the mode that somebody has given it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with self._lock:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            try:
                with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                    file.write(json.dumps(members).encode("ascii"))
                draft.replace(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    draft.unlink()
                raise

    def remove(self) -> None:
        """Take the file away, as a worker does that ends; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()  # re-entrant, for signal handlers


class Written(NamedTuple):
    """What a file tells: how it stands and why, and the report if there is one."""

    status: Status
    output: str
    report: Report | None = None


def read_status(
    path: str | os.PathLike[str], max_age: float, clock: Callable[[], float] = time.monotonic
) -> Written:
    """Return what the file at *path* tells; it fails where it is missing, or older than *max_age* seconds."""
    try:
        body = _body_of(path)
    except OSError as exc:
        return Written(Status.FAIL, f"the file cannot be read: {exc.strerror or exc}")
    report = report_in(body, "worker")
    written = _written(body)
    if report is None or written is None:
        return Written(Status.FAIL, "the file holds no report")
    age = clock() - written
    if age < 0.0:
        return Written(Status.FAIL, "the report was written before this machine was started", report)
    if age > max_age:
        return Written(
            Status.FAIL, f"the report is {age:.3g} s old, which is more than {max_age:g} s", report
        )
    return Written(report.status, report.output, report)


def _body_of(path: str | os.PathLike[str]) -> bytes:
    # A pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST + 1)
    finally:
        os.close(descriptor)


def _written(body: bytes) -> float | None:
    try:
        at = json.loads(body).get(_WRITTEN)
    except (ValueError, RecursionError, AttributeError):
        return None
    return at if isinstance(at, float) else None
