"""What this process has of what it may have: processors, threads, descriptors, room on disks."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from ...engine import params
from ...engine.finding import Fact, Finding, Status
from ...engine.fork import renew_after_fork
from ...typing import Clock
from .base import Check, by_share, megabytes, reason, thresholds
from .cgroups import Cgroups

__all__ = ["CPU", "DiskSpace", "FileDescriptors", "Threads"]

_STATUS: Final = Path("/proc/self/status")
_DESCRIPTORS: Final = ("/proc/self/fd", "/dev/fd")
_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
_LONG_ENOUGH: Final = 1.0  # seconds


class CPU(Check):
    """Tell how much of the processors that this process may use it does use, since it was last asked.

    What it may use is the quota of its control groups, or else the processors it may run on.

    Args:
        warn: share, above 0 and at most 1, from which on it warns. None: never.
        fail: the same for a failure.
        name: in reports.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread. Whoever asks again within a second is told of the time since whoever
        asked before. A forked child begins anew.
    """

    def __init__(
        self,
        warn: float | None = 0.8,
        fail: float | None = None,
        *,
        name: str = "cpu",
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name)
        thresholds(warn, fail, most=1.0)
        self._warn, self._fail = warn, fail
        self._clock = params.plain_function("clock", clock)
        self.after_fork()
        renew_after_fork(self)

    def __call__(self) -> Finding:
        """Tell the share that was used.

        Returns:
            The share in percent, how many processors that is, and in what share of its periods the control
            group was held up.
        """
        groups = Cgroups()
        allowed = _allowed(groups)
        with self._lock:
            now, used, periods = self._clock(), time.process_time(), groups.throttling()
            samples = self._samples
            if samples and now < samples[-1][0]:  # the clock ran backwards
                samples.clear()
            # Of those that are old enough, the latest; and all are kept that will be.
            while len(samples) > 1 and now - samples[1][0] >= _LONG_ENOUGH:
                samples.popleft()
            before = samples[0] if samples else None
            if not samples or now - samples[-1][0] >= _LONG_ENOUGH:
                samples.append((now, used, periods))
        if before is None or (passed := now - before[0]) < _LONG_ENOUGH:
            return Finding(
                Status.PASS, "too early to tell: it takes a second", facts={"cpus_allowed": allowed}
            )
        busy = (used - before[1]) / passed
        share = busy / allowed
        facts: dict[str, Fact] = {"cpus_used": round(busy, 3), "cpus_allowed": round(allowed, 3)}
        held_up = _share_of_periods(before[2], periods)
        if held_up is not None:
            facts["throttled_percent"] = round(100.0 * held_up, 1)
        return Finding(
            by_share(share, self._warn, self._fail),
            f"{busy:.2g} of {allowed:g} processors used, {share:.0%}"
            + (f"; held up in {held_up:.0%} of the periods of its quota" if held_up else ""),
            round(100.0 * share, 1),
            "percent",
            facts,
        )

    def after_fork(self) -> None:
        """Begin anew: a child has not used any time yet."""
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float, tuple[int, int] | None]] = deque(maxlen=3)
        self._samples.append((self._clock(), time.process_time(), Cgroups().throttling()))


class Threads(Check):
    """Tell how many threads this process has, those that are not Python's included.

    Args:
        warn: how many are too many, at least 1. None: it never warns.
        fail: the same for a failure.
        name: in reports.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread.
    """

    def __init__(self, warn: int | None = 200, fail: int | None = None, *, name: str = "threads") -> None:
        super().__init__(name)
        for parameter, value in (("warn", warn), ("fail", fail)):
            if value is not None:
                params.count(parameter, value)
        thresholds(warn, fail)
        self._warn, self._fail = warn, fail

    def __call__(self) -> Finding:
        """Tell how many there are.

        Returns:
            Their number, and how many of them are Python's.
        """
        python, count = threading.active_count(), _threads()
        return Finding(
            by_share(count, self._warn, self._fail),
            f"{count} thread{'' if count == 1 else 's'}"
            + (f", {python} of them Python's" if python != count else ""),
            float(count),
            None,
            {"python_threads": python},
        )


class FileDescriptors(Check):
    """Tell how many of the file descriptors that this process may have are open: files, sockets, pipes.

    Args:
        warn: share of the limit, above 0 and at most 1, from which on it warns. None: never.
        fail: the same for a failure.
        name: in reports.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread. It takes time in proportion to what is open, a fraction of a
        microsecond each, and one descriptor for as long.
    """

    def __init__(
        self, warn: float | None = 0.8, fail: float | None = 0.95, *, name: str = "file-descriptors"
    ) -> None:
        super().__init__(name)
        thresholds(warn, fail, most=1.0)
        self._warn, self._fail = warn, fail

    def __call__(self) -> Finding:
        """Tell the share that is open.

        Returns:
            The share in percent, and how many there are of how many. It fails where not even one is left to
            count them, and cannot tell on a system that does not.
        """
        limit = _descriptor_limit()
        try:
            count = _descriptors()
        except OSError as exc:
            if exc.errno in _NONE_LEFT:
                return Finding(Status.FAIL, f"no file descriptor is left: {reason(exc)}", 100.0, "percent")
            return Finding(Status.UNKNOWN, f"nothing tells the open file descriptors: {reason(exc)}")
        if limit is None:
            return Finding(Status.PASS, f"{count} file descriptors, without a limit", facts={"open": count})
        share = count / limit
        return Finding(
            by_share(share, self._warn, self._fail),
            f"{count} of {limit} file descriptors open, {share:.0%}",
            round(100.0 * share, 1),
            "percent",
            {"open": count, "limit": limit},
        )


class DiskSpace(Check):
    """Tell how full the disk is that a file or folder is on.

    Args:
        path: of the file or folder.
        warn: share of the space, or of the inodes, above 0 and at most 1, from which on it warns. None:
            never.
        fail: the same for a failure.
        min_free: bytes below which it fails whatever the share is, above 0. None: only the share counts.
        name: in reports.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread. A disk that is far away and does not answer holds up the thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        warn: float | None = 0.9,
        fail: float | None = 0.98,
        min_free: float | None = None,
        *,
        name: str = "disk",
    ) -> None:
        super().__init__(name)
        if not isinstance(path, str | os.PathLike):
            params.refuse(TypeError, "path", "must be a path", path)
        thresholds(warn, fail, most=1.0)
        self._path = os.fspath(path)
        self._warn, self._fail = warn, fail
        self._min_free = None if min_free is None else params.number("min_free", min_free, above=True)

    def __call__(self) -> Finding:
        """Tell how full it is.

        Returns:
            The share in percent, of the space or of the inodes, whichever is more, and the bytes that are
            free. It fails where there is no such path.
        """
        try:
            used, free, inodes = _disk(self._path)
        except OSError as exc:
            return Finding(Status.FAIL, f"nothing tells how full {self._path} is: {reason(exc)}")
        share = used / (used + free) if used + free else 1.0
        worst = max(share, inodes or 0.0)
        status = by_share(worst, self._warn, self._fail)
        if self._min_free is not None and free < self._min_free:
            status = Status.FAIL
        facts: dict[str, Fact] = {"free_bytes": free, "used_bytes": used, "path": self._path}
        told = f"{share:.0%} of the disk of {self._path} in use, {megabytes(free)} free"
        if inodes is not None:
            facts["inodes_used_percent"] = round(100.0 * inodes, 1)
            if inodes > share:
                told += f"; {inodes:.0%} of its inodes"
        return Finding(status, told, round(100.0 * worst, 1), "percent", facts)

    def _subject(self) -> str:
        return self._path


def _allowed(groups: Cgroups) -> float:
    """Return how many processors' time this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = groups.cpus()
    return float(processors) if quota is None else min(float(processors), quota)


def _share_of_periods(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def _threads() -> int:
    try:
        text = _STATUS.read_text()
    except (OSError, ValueError):
        return threading.active_count()
    _, _, rest = text.partition("\nThreads:")
    words = rest.split(None, 1)
    return int(words[0]) if words and words[0].isdecimal() else threading.active_count()


def _descriptors() -> int:
    """Return how many descriptors are open; the one that is open to count them is not among them."""
    for folder in _DESCRIPTORS:
        try:
            return len(os.listdir(folder)) - 1  # noqa: PTH208 - the quickest there is
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise OSError(errno.ENOENT, "there is no folder of them on this system")


def _descriptor_limit() -> int | None:
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY or soft <= 0 else soft


def _disk(path: str) -> tuple[int, int, float | None]:
    """Return the bytes in use, those that are free for us, and the share of inodes in use, if it has any."""
    if not hasattr(os, "statvfs"):
        usage = shutil.disk_usage(path)
        return usage.used, usage.free, None
    disk = os.statvfs(path)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    taken = disk.f_files - disk.f_ffree
    inodes = taken / (taken + disk.f_favail) if disk.f_files and taken + disk.f_favail else None
    return used, disk.f_bavail * disk.f_frsize, inodes
