"""Memory: whether this process grows, and how much of its container is in use."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...engine import params
from ...engine.finding import Fact, Finding, Status
from ...engine.fork import renew_after_fork
from ...typing import Clock, Seconds
from .base import MB, Check, by_share, duration, megabytes, reason, thresholds
from .cgroups import Cgroups, Memory, machine_memory
from .trend import Growth, Trend

__all__ = ["ContainerMemory", "MemoryGrowth", "resident_memory"]

_STATM: Final = Path("/proc/self/statm")
_MINUTE: Final = 60.0
_WHOLE: Final = 0.9  # of a window
_STILL: Final = 0.1  # of the limit: a trend below it is none

Read = Callable[[], float]


def resident_memory() -> float:
    """Return how many bytes of memory this process has.

    Raises:
        RuntimeError: nothing tells.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    try:
        import psutil  # noqa: PLC0415 - only where it is needed, and may be missing
    except ImportError:
        raise RuntimeError("this system has no /proc, and psutil is not installed") from None
    return float(psutil.Process().memory_info().rss)


class MemoryGrowth(Check):
    """Warn when this process grows by more than *limit* in *window* seconds, as one that leaks does.

    Each call takes a sample, so it has to be called again and again, as background refreshing and probes do:
    at least three times in a window. What grows and is collected is not growth: the lowest samples count. A
    process that is *limit* bigger than before counts as grown, too, when it does not go on growing.

    Args:
        limit: bytes by which it may grow, above 0.
        window: seconds in which it may, above 0.
        settle: seconds from the start, 0 or more, that do not count: caches fill, modules are imported.
        fails: whether too much growth is a failure, and not a warning.
        name: in reports.
        read: returns the memory in use, in bytes. None: the resident memory of this process.
        container: returns what is in use in the container and its limit, to tell when that will be reached;
            or None where there is no limit.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread. A forked child begins anew.

    Source: the alert that a leak which ended in twelve restarts in six hours had lacked.
    """

    _begun: float

    def __init__(
        self,
        limit: float = 50 * MB,
        window: Seconds = 600.0,
        *,
        settle: Seconds = 60.0,
        fails: bool = False,
        name: str = "memory-growth",
        read: Read | None = None,
        container: Callable[[], Memory | None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name)
        self._limit = params.number("limit", limit, above=True)
        self._window = params.seconds("window", window, above=True)
        self._settle = params.seconds("settle", settle)
        self._bad = Status.FAIL if params.flag("fails", fails) else Status.WARN
        self._read = resident_memory if read is None else params.plain_function("read", read)
        self._container = Cgroups().memory if container is None else params.callback("container", container)
        self._clock = params.plain_function("clock", clock)
        self.after_fork()
        renew_after_fork(self)

    def __call__(self) -> Finding:
        """Take a sample, and tell whether the process has grown too much.

        Returns:
            The growth in bytes, with its rate, and when the container's limit is reached at that rate. It is
            not known yet while there are too few samples, and cannot be where nothing tells the memory.
        """
        try:
            size = self._read()
        except Exception as exc:  # noqa: BLE001 - whoever reads it, in whichever way that fails
            return Finding(Status.UNKNOWN, f"the memory of this process is not known: {reason(exc)}")
        with self._lock:
            now = self._clock()
            if now >= self._begun + self._settle:
                self._trend.add(now, size)
            elif now < self._begun:  # the clock ran backwards
                self._begun = now
            growth = self._trend.growth()
        facts: dict[str, Fact] = {"resident_bytes": size, "limit_bytes": self._limit}
        if growth is None:
            return Finding(Status.PASS, f"now {megabytes(size)}; too early to tell its growth", facts=facts)
        return self._judge(size, growth, facts)

    def _judge(self, size: float, growth: Growth, facts: dict[str, Fact]) -> Finding:
        grown = growth.steady
        if growth.span >= _WHOLE * self._window:
            # In less than a window, the rise of a slow wave looks like a step.
            grown = max(grown, growth.grown)
        per_minute = growth.rate * _MINUTE
        facts |= {"bytes_per_minute": round(per_minute), "over_seconds": round(growth.span)}
        over = f"in {duration(growth.span)}"
        if grown <= self._limit:
            return Finding(
                Status.PASS,
                f"grew {megabytes(max(0.0, grown))} {over}, now {megabytes(size)}",
                max(0.0, grown),
                "bytes",
                facts,
            )
        told = f"grew {megabytes(grown)} {over}"
        if growth.rate * self._window > _STILL * self._limit:
            told += (
                f", {per_minute / MB:.1f} MB/min, now {megabytes(size)}{self._outlook(growth.rate, facts)}"
            )
        else:
            told += f", and does not go on growing, now {megabytes(size)}"
        return Finding(self._bad, told, grown, "bytes", facts)

    def _outlook(self, rate: float, facts: dict[str, Fact]) -> str:
        """Tell when the container's limit is reached if it goes on like this."""
        memory = self._container()
        if memory is None:
            return ""
        left = max(0.0, memory.limit - memory.used) / rate
        facts |= {"container_limit_bytes": memory.limit, "seconds_left": round(left)}
        return (
            f"; at this rate the container limit of {megabytes(memory.limit)} is reached in {duration(left)}"
        )

    def after_fork(self) -> None:
        """Begin anew: what the parent has grown by is the parent's."""
        self._lock = threading.Lock()
        self._trend = Trend(self._window)
        self._begun = self._clock()


class ContainerMemory(Check):
    """Tell how much of the memory that the container may have is in use; without a limit, of the machine's.

    What is in use is what cannot be taken back at once, as the kubelet counts it. Of nested groups, the one
    that is nearest to its limit counts.

    Args:
        warn: share of the limit, above 0 and at most 1, from which on it warns. None: never.
        fail: the same for a failure.
        name: in reports.
        read: returns what is in use, and the limit; or None where nothing is known. None: the files of Linux
            control groups, of version 2 and 1, or else what the machine has.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread.
    """

    def __init__(
        self,
        warn: float | None = 0.8,
        fail: float | None = 0.95,
        *,
        name: str = "container-memory",
        read: Callable[[], Memory | None] | None = None,
    ) -> None:
        super().__init__(name)
        thresholds(warn, fail, most=1.0)
        self._warn, self._fail = warn, fail
        self._read = _memory if read is None else params.plain_function("read", read)

    def __call__(self) -> Finding:
        """Tell the share that is in use.

        Returns:
            The share in percent, and the figures in bytes.
        """
        try:
            memory = self._read()
        except Exception as exc:  # noqa: BLE001 - whoever reads it, in whichever way that fails
            return Finding(Status.UNKNOWN, f"the memory in use is not known: {reason(exc)}")
        if memory is None:
            return Finding(Status.UNKNOWN, "no control group and no /proc/meminfo tells the memory in use")
        share = memory.used / memory.limit
        whose = "the machine's" if memory.source == "machine" else "the container's"
        return Finding(
            by_share(share, self._warn, self._fail),
            f"{megabytes(memory.used)} of {whose} {megabytes(memory.limit)} in use, {share:.0%}",
            round(100.0 * share, 1),
            "percent",
            {"used_bytes": memory.used, "limit_bytes": memory.limit, "source": memory.source},
        )


def _memory() -> Memory | None:
    return Cgroups().memory() or machine_memory()
