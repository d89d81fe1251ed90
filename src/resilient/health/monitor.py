"""The checks at work: begun when they are due, waited for by many, and told of when they change."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Sequence
from contextvars import Context
from datetime import UTC, datetime
from typing import Final

from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.waiting import Waiter, running_loop
from ..events import Announcer, HealthChanged, log_fault
from ..typing import Clock
from .aggregation import behind_failures
from .registration import Checked, Entry, Registry
from .report import Result
from .runs import Run, Runner
from .tidy import tidy

__all__ = ["Monitor"]

_log = logging.getLogger("resilient")

_LOOK_EVERY: Final = 1.0  # seconds, at least as often as which the background looks what is due
_SPIN: Final = 0.01
_PATIENCE: Final = 2  # runs in a row that were cancelled with their loops, before one of our own is used


class Monitor:
    """Runs the checks of one `Health`, and knows how they stand.

    Args:
        service: its name, for the log.
        threads: checks that are plain functions and run at the same time.
        announcer: by which changes are told.
        clock: tells the time in seconds.

    Concurrency: safe from any thread and any loop. Neither a check nor a witness is called under the lock.
    """

    def __init__(self, service: str, threads: int, announcer: Announcer, clock: Clock) -> None:
        self.registry = Registry()
        self.lock = threading.RLock()  # re-entrant: a signal handler may ask, too
        self._service = service
        self._announcer = announcer
        self._clock = clock
        self._runner = Runner(self, threads, self._begun, self._ended)
        self._looks = 0  # how often all were looked at, so that nobody announces what is old news
        self._pulsing_on: asyncio.AbstractEventLoop | None = None
        self._closed = False
        renew_after_fork(self)

    def start(self) -> None:
        """Begin with what runs in the background; let the loop of this thread be the one for coroutines."""
        self._runner.settle_here()
        self._offer(running_loop())
        if self._closed or not any(map(_is_background, self.registry.entries)):
            return
        with self.lock:
            try:
                loop = self._runner.keeper.loop
            except RuntimeError:  # no more threads, for now: the next question tries again
                return
            if loop is self._pulsing_on:
                return
            # Not in the context of whoever asks, which would be kept as long as the thread lives.
            reference: weakref.ref[Monitor] = weakref.ref(self)
            loop.call_soon_threadsafe(_begin_pulse, loop, reference, context=Context())
            self._pulsing_on = loop

    def open(self) -> None:
        """Run again what is due, after `close`."""
        self._closed = False

    def close(self) -> None:
        """Run nothing any more."""
        self._closed = True
        self._runner.keeper.stop()

    def begin(self, entries: Sequence[Entry]) -> list[Run]:
        """Begin what is due among *entries*; return the runs under way that are worth waiting for."""
        if self._closed:
            return []
        worth = []
        for entry in entries:
            if isinstance(entry, Checked):
                with self.lock:
                    now = self._clock()
                    wanting = entry.record.is_wanting(now, entry.lag)
                    # In the background it is run in time, unless that is not to be had.
                    run = entry.begin(now) if wanting or not _is_background(entry) else None
                    if wanting and entry.run is not None:
                        worth.append(entry.run)
                if run is not None:
                    self._start(entry, run)
        return worth

    def join(self, run: Run, waiter: Waiter) -> bool:
        """Have *waiter* woken when *run* ends; return whether it has not yet."""
        with self.lock:
            if not run.ended:
                run.waiters.append(waiter)
            return not run.ended

    def leave(self, run: Run, waiter: Waiter) -> None:
        """Wake *waiter* no more."""
        with self.lock:
            if waiter in run.waiters:
                run.waiters.remove(waiter)

    def results(self, entries: Sequence[Entry]) -> dict[Entry, Result]:
        """Return how *entries* are doing now, and announce what has changed.

        Args:
            entries: with all that they stand on. Nobody else is looked at: a witness that hangs, against what
                it promises, holds up those only who want to know of it.
        """
        results = self._look(entries)
        self._announcer.deliver()
        return results

    def beat(self) -> float | None:
        """Begin what is due in the background; return in how many seconds to look again, None: never."""
        if self._closed:
            return None
        wait = _LOOK_EVERY
        for entry in self.registry.entries:
            if isinstance(entry, Checked) and _is_background(entry):
                with self.lock:
                    now = self._clock()
                    run = entry.begin(now, entry.lag)
                    # Nobody says when a run has ended; the next one is not due before this.
                    due_in = entry.record.due_at + entry.lag - now
                    wait = min(wait, entry.record.period if entry.run is not None else due_in)
                if run is not None:
                    self._start(entry, run)
        self.results(self.registry.links.apart)
        return max(wait, _SPIN)

    def after_fork(self) -> None:
        """Forget what belonged to the parent: its runs, its threads and what it has found."""
        self.lock = threading.RLock()
        self._announcer.after_fork()
        self._pulsing_on = None
        for entry in self.registry.entries:
            if isinstance(entry, Checked):
                entry.renew(self._clock())

    def _offer(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Offer *loop* to those checks that look at the loop of questions."""
        for entry in self.registry.entries if loop is not None else ():
            if isinstance(entry, Checked) and entry.offer_loop is not None:
                try:
                    entry.offer_loop(loop)
                except Exception:  # noqa: BLE001 - of somebody else's; it will say itself that it has no loop
                    entry.offer_loop = None
                    log_fault("%r does not take the loop %r", entry.check, loop)

    def _start(self, entry: Checked, run: Run) -> None:
        testimony = entry.testimony()
        if testimony is not None:
            self._settle(run, testimony)
            return
        try:
            at_home = entry.abandoned < _PATIENCE
            self._runner.start(run, entry.context, is_async=entry.is_async, at_home=at_home)
        except RuntimeError as error:  # no more threads: for now, or because the interpreter ends
            self._settle(run, Finding(Status.UNKNOWN, f"it could not be run: {error}"))

    def _settle(self, run: Run, finding: Finding) -> None:
        if self._begun(run):
            self._ended(run, finding)

    def _begun(self, run: Run) -> bool:
        entry: Checked = run.place
        with self.lock:
            return entry.begun(run, self._clock())

    def _ended(self, run: Run, finding: Finding | None) -> None:
        entry: Checked = run.place
        found = None if finding is None else tidy(finding)
        with self.lock:
            entry.end(run, found, self._clock())
        try:
            # Logged before those go on who wait for it. Where a witness has a say, none are looked at: those
            # are asked by whoever wants to know of them, and by nobody else. One that hangs, against what it
            # promises, must not hang up our own threads.
            self._look(self.registry.links.touched_by(entry))
        finally:
            with self.lock:
                run.ended = True
                waiters, run.waiters = run.waiters, []
            for waiter in waiters:
                waiter.wake()
        self._announcer.deliver()
        entry.hear()

    def _look(self, entries: Sequence[Entry]) -> dict[Entry, Result]:
        with self.lock:
            self._looks += 1
            look, now, at = self._looks, self._clock(), datetime.now(UTC)
            found: dict[Entry, Result] = {
                entry: entry.result(now, at) for entry in entries if isinstance(entry, Checked)
            }
        for entry in entries:
            if entry not in found:  # a witness, which has a lock of its own
                found[entry] = entry.result(now, at)
        results = dict(zip(entries, behind_failures([found[entry] for entry in entries]), strict=True))
        for entry, result in results.items():
            self._announce(entry, result, look)
        return results

    def _announce(self, entry: Entry, result: Result, look: int) -> None:
        with self.lock:
            # Who has looked before somebody else may come after him. And that something is old is no news
            # while it is being looked at: it may have been nobody's concern before.
            is_news = not (result.stale and result.running_for is not None)
            if result.at is None or look < entry.told_at or not is_news:
                return
            previous, entry.told, entry.told_at = entry.told, result.status, look
            if result.status is previous:
                return
            # Under the lock, so that changes are told in order.
            self._announcer.post(HealthChanged(result.name, result.status, previous, result.output))
        level = logging.INFO if result.status is Status.PASS else logging.WARNING
        _log.log(level, "health of %s: %s %s: %s", self._service, result.name, result.status, result.output)


def _begin_pulse(loop: asyncio.AbstractEventLoop, reference: weakref.ref[Monitor]) -> None:
    task = loop.create_task(_pulse(reference))
    _pulses.add(task)  # a loop refers to its tasks weakly
    task.add_done_callback(_pulses.discard)


_pulses: set[asyncio.Task[None]] = set()


async def _pulse(reference: weakref.ref[Monitor]) -> None:
    """Run what is due in the background, for as long as the monitor lives."""
    wait: float | None = _LOOK_EVERY
    while (monitor := reference()) is not None:
        try:
            wait = monitor.beat()
        except Exception:  # noqa: BLE001 - of a clock, say; whatever it is, the next one may go well
            log_fault("%r failed in the background", monitor)
        del monitor
        if wait is None:
            return
        await asyncio.sleep(wait)


def _is_background(entry: Entry) -> bool:
    return isinstance(entry, Checked) and entry.record.rules.background
