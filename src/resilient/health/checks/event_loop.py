"""Whether an event loop still turns: how late what it has to do is begun."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from collections.abc import Callable

from ...engine import params
from ...engine.finding import Finding, Status
from ...engine.waiting import running_loop
from ...typing import Clock, Seconds
from .base import Check, duration

__all__ = ["EventLoopLag"]


class EventLoopLag(Check):
    """Tell how late an event loop begins what is due: it beats, and a beat that is overdue is lag.

    The loop notes its beats, and the check, in a thread, looks at them: so a loop that is blocked is seen to
    be, for as long as it is. With a *fail* of many seconds, and in the group "live", it finds a loop that
    will never turn again.

    It belongs to one loop: the one it is made in, or else the one that `attach` is called in or given.

    Args:
        warn: seconds of lag, above 0, from which on it warns, for up to *window* seconds after it. None:
            never.
        fail: seconds, above 0, from which on it fails: of the last beat, or one that is still overdue. None:
            never.
        interval: seconds from one beat to the next, above 0.
        window: for how many seconds, at most, the worst lag is remembered, above 0.
        name: in reports.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *fail* lower than *warn*.

    Concurrency: safe from any thread. A beat takes the loop some microseconds; there are no more of them when
        nobody has the check any more. A forked child has no loop before it attaches one.
    """

    def __init__(
        self,
        warn: Seconds | None = 0.1,
        fail: Seconds | None = 1.0,
        *,
        interval: Seconds = 0.5,
        window: Seconds = 30.0,
        name: str = "event-loop",
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name)
        self._warn = params.optional_seconds("warn", warn)
        self._fail = params.optional_seconds("fail", fail)
        if self._warn is not None and self._fail is not None and self._fail < self._warn:
            params.refuse(ValueError, "fail", f"must be at least warn, which is {self._warn:g}", fail)
        self._interval = params.seconds("interval", interval, above=True)
        self._window = params.seconds("window", window, above=True)
        self._clock = params.plain_function("clock", clock)
        self._lock = threading.Lock()
        self._pulse: _Pulse | None = None
        loop = running_loop()
        if loop is not None:
            self.attach(loop)

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Have a loop beat from now on, instead of the one that did.

        Args:
            loop: any loop, running or not. None: the one that is running here.

        Raises:
            RuntimeError: there is none running here, or it is closed.

        Concurrency: safe from any thread. To attach the loop that beats already does nothing.
        """
        loop = asyncio.get_running_loop() if loop is None else loop
        with self._lock:
            before = self._pulse
            if before is not None and before.loop() is loop and before.pid == os.getpid():
                return
            pulse = _Pulse(loop, self._interval, self._window, self._clock)
            loop.call_soon_threadsafe(_begin, weakref.ref(pulse))
            self._pulse = pulse

    def offer_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have *loop* beat, unless there is one that does; `Health` offers those on which it is asked."""
        pulse = self._pulse
        beating = None if pulse is None or pulse.pid != os.getpid() else pulse.loop()
        if beating is None or beating.is_closed():
            self.attach(loop)

    def __call__(self) -> Finding:
        """Tell the lag; to be called in a thread, since in the loop there is none to see.

        Returns:
            The worst lag of the last time, in seconds. Where no loop is attached, or it does not run, nobody
            knows.
        """
        pulse = self._pulse
        if pulse is None or pulse.pid != os.getpid():
            return Finding(Status.UNKNOWN, "no event loop is attached: make it in the loop, or call attach()")
        loop = pulse.loop()
        if loop is None or loop.is_closed():
            return Finding(Status.UNKNOWN, "the event loop is closed")
        if not loop.is_running():
            return Finding(Status.UNKNOWN, "the event loop does not run")
        overdue, last, worst = pulse.lags()
        lag = max(overdue, worst)
        status = Status.PASS
        if self._fail is not None and max(overdue, last) >= self._fail:
            status = Status.FAIL
        elif self._warn is not None and lag >= self._warn:
            status = Status.WARN
        if overdue >= max(last, self._warn or 0.0, self._interval):
            told = f"the event loop has not turned for {duration(overdue)}"
        else:
            told = f"the event loop was up to {1000.0 * lag:.0f} ms late in the last {duration(self._window)}"
        return Finding(status, told, round(lag, 4), "s", {"overdue_seconds": round(overdue, 4)})


class _Pulse:
    """The beats of one loop. The loop refers to it weakly: when its check is gone, it beats no more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float, window: float, clock: Clock) -> None:
        self.loop = weakref.ref(loop)
        self.pid = os.getpid()
        self._interval = interval
        self._half = window / 2.0
        self._clock = clock
        # Written by the loop and read by other threads, each in one step. A loop that does not run yet has
        # nothing to do; one that does should begin at once.
        now = clock()
        self._due = now if loop.is_running() else math.inf
        self._last = 0.0
        # Since when, the worst lag since then, and that of the half of a window before it.
        self._worst = (now, 0.0, 0.0)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Beat for the first time."""
        self._due = min(self._due, self._clock())
        self.beat(loop)

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note how late this beat is, and have another one."""
        now = self._clock()
        lag = max(0.0, now - self._due)
        since, worst, before = self._worst
        if not 0.0 <= now - since < self._half:
            before = worst if 0.0 <= now - since < 2.0 * self._half else 0.0
            since, worst = now, 0.0
        self._worst = (since, max(worst, lag), before)
        self._last = lag
        self._due = now + self._interval
        loop.call_later(self._interval, _beat, weakref.ref(self))

    def lags(self) -> tuple[float, float, float]:
        """Return for how long a beat is overdue, the lag of the last one, and the worst in the window."""
        _, worst, before = self._worst
        return max(0.0, self._clock() - self._due), self._last, max(worst, before)


def _begin(reference: Callable[[], _Pulse | None]) -> None:
    pulse, loop = reference(), asyncio.get_running_loop()
    if pulse is not None:
        pulse.begin(loop)


def _beat(reference: Callable[[], _Pulse | None]) -> None:
    pulse, loop = reference(), asyncio.get_running_loop()
    if pulse is not None:
        pulse.beat(loop)
