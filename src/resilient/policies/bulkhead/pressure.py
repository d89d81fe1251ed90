"""Pressure on the process itself: how late its event loops are, and how busy its processor is.

A loop that is late delays every answer, and a process that has no processor time left cannot answer faster by
taking on more. Both show before the latency does: a call that waits for the loop is not timed yet.
"""

from __future__ import annotations

import contextvars
import math
import os
import sys
import time
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from threading import get_ident
from typing import Final, NamedTuple

from ...engine import params
from ...engine.fork import renew_after_fork
from ...engine.waiting import running_loop
from ...engine.window import HAS_GIL
from ...typing import Clock

__all__ = ["Pressure", "PressureMeter", "Reading"]

LEAST: Final = 0.5
"""The limit is never lowered further: a process that is busy with refusing must not talk itself down."""

BEAT: Final = 0.05
"""Seconds from one look at a loop to the next."""

HALF_LIFE: Final = 0.25
"""Seconds in which the worst lag fades to half."""

KEEP: Final = 1.0
"""Seconds a loop stays watched after the last call was admitted on it."""

CPU_WINDOW: Final = 0.25
"""Seconds of processor time that are looked at together, or more."""


class Reading(NamedTuple):
    """What a meter has found.

    Attributes:
        lag: seconds by which the latest of the event loops is late, of late or at this moment.
        cpu: processor time the process uses, as a share of what its Python code can use: of one core; without
            a global interpreter lock, of all that it may run on. Native threads may bring it above 1.
        factor: what the limit is multiplied by for these two, from 0.5 to 1.
    """

    lag: float
    cpu: float
    factor: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """Lower an adaptive limit while the process itself is under pressure, before latency shows it.

    The limit that is enforced is the algorithm's, times the smaller of `lag / measured lag` and
    `cpu / measured cpu`, from 0.5 to 1. While it is below 1 the algorithm's limit grows no
    further than it was when that began.

    Args:
        lag: seconds an event loop may be late; above 0. None: the limit does not go by it.
        cpu: the share of its processor that the process may use; above 0, at most 1. None: the limit does not
            go by it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or both are None.

    Concurrency: immutable.

    Source: Node's `toobusy` and `under-pressure` for the lag of a loop as a signal of overload.
    """

    lag: float | None = 0.05
    cpu: float | None = 0.9

    def __post_init__(self) -> None:
        if self.lag is not None:
            params.number("lag", self.lag, above=True, what="a number of seconds")
        if self.cpu is not None:
            params.ratio("cpu", self.cpu)
        if self.lag is self.cpu is None:
            params.refuse(ValueError, "lag", "or cpu must be given", None)

    def meter(self, clock: Clock) -> PressureMeter:
        """Return what measures, for one policy."""
        return PressureMeter(self, clock)

    def factor(self, lag: float, cpu: float) -> float:
        """Return what the limit is multiplied by."""
        return min(_share(self.lag, lag), _share(self.cpu, cpu))


def _share(target: float | None, measured: float) -> float:
    if target is None or measured <= target:
        return 1.0
    return max(target / measured, LEAST)


def usable_cores() -> int:
    """Return how many cores the Python code of this process can use at once."""
    if HAS_GIL:
        return 1
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


class PressureMeter:
    """Measures how late the loops are on which calls are admitted, and the processor time of the process.

    Args:
        settings: what the readings are compared with.
        clock: a monotonic clock, in seconds.
        cpu_clock: the processor time the process has used, in seconds.
        cores: how many cores it could use at once. None: as many as there are for its Python code.

    Concurrency: safe from any thread, task and loop, without a lock. Nothing runs where nothing is admitted:
    the timer on a loop ends by itself, and does not keep the loop from ending.
    """

    def __init__(
        self,
        settings: Pressure,
        clock: Clock,
        cpu_clock: Clock = time.process_time,
        cores: int | None = None,
    ) -> None:
        self._settings = settings
        self.clock = clock
        self._cpu_clock = cpu_clock
        self._cores = usable_cores() if cores is None else cores
        self.after_fork()
        renew_after_fork(self)

    def touch(self) -> None:
        """Have the loop that runs here watched for another second; for every admission."""
        # By thread, as asking for the running loop costs Python 3.11 a system call. A thread that has got
        # another loop since, or one at all, is noticed at the next reading.
        try:
            self.watched[get_ident()].touched = True
        except KeyError:
            loop = running_loop()
            self.watched[get_ident()] = _NO_LOOP if loop is None else _Heartbeat(self, loop)

    def read(self) -> Reading:
        """Return how things stand, the worst of the loops counting."""
        now, lag = self.clock(), 0.0
        for thread, watched in self.watched.copy().items():
            if watched.runs:
                lag = max(lag, watched.lag(now))
            else:
                self.watched.pop(thread, None)
        cpu = self._cpu_share(now)
        return Reading(lag, cpu, self._settings.factor(lag, cpu))

    def after_fork(self) -> None:
        """Begin afresh: a forked child has none of the loops, and processor time of its own."""
        self.watched: dict[int, _NoLoop] = {}
        self._cpu = (self.clock(), self._cpu_clock(), 0.0)

    def _cpu_share(self, now: float) -> float:
        # One tuple, replaced: of several threads that measure at once, one wins, and none mixes two looks.
        since, used_then, share = self._cpu
        if now - since >= CPU_WINDOW:
            used = self._cpu_clock()
            share = (used - used_then) / (now - since) / self._cores
            self._cpu = (now, used, share)
        return share


class _NoLoop:
    """Stands for a thread without a loop: nothing to watch, until it is asked again."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = True

    @property
    def runs(self) -> bool:
        """Whether there is a loop, and it runs. One that stands still is not late."""
        return False

    def lag(self, now: float) -> float:  # noqa: ARG002 - it is never late
        """Return by how many seconds it is late."""
        return 0.0


_NO_LOOP: Final = _NoLoop()


class _Heartbeat(_NoLoop):
    """A timer on the loop of this thread that looks how late it runs.

    Concurrency: beats in the loop's thread, and is read from any.
    """

    __slots__ = ("_due", "_loop", "_meter", "_run", "_thread", "_touched_at", "_worst")

    def __init__(self, meter: PressureMeter, loop: AbstractEventLoop) -> None:
        super().__init__()
        self._meter = meter
        self._loop = loop
        self._thread = get_ident()
        self._run = _this_run()
        self._touched_at = now = meter.clock()
        self._worst = (0.0, now)
        # Before anybody knows it: one that is known and has no timer would look like a loop that hangs.
        self._rest(now)

    @property
    def runs(self) -> bool:
        """Whether the loop runs."""
        return self._loop.is_running()

    def lag(self, now: float) -> float:
        """Return the worst lag, as far as it has not faded; or that of this moment."""
        worst, when = self._worst
        faded = worst * math.exp2(min(0.0, when - now) / HALF_LIFE)
        # A loop that is blocked right now cannot say so: the beat that does not come does.
        return max(faded, now - self._due)

    def _beat(self) -> None:
        watched, now, run = self._meter.watched, self._meter.clock(), _this_run()
        if watched.get(self._thread) is not self:  # forgotten, or left behind by a fork
            return
        if run is self._run:
            self._worst = (self.lag(now), now)
        self._run = run
        if self.touched:
            self.touched = False
            self._touched_at = now
        elif now - self._touched_at >= KEEP:
            del watched[self._thread]
            return
        self._rest(now)

    def _rest(self, now: float) -> None:
        self._due = now + BEAT
        # In a context of its own: that of the call at hand would live as long as the heart beats.
        self._loop.call_later(BEAT, self._beat, context=contextvars.Context())


def _this_run() -> object:
    """Return what differs from one `run_forever` to the next.

    A loop may be run in pieces, call by call. How long it stood still in between is no lag, and nothing else
    tells that it did: each run hooks itself up to asynchronous generators anew.
    """
    return sys.get_asyncgen_hooks().firstiter
