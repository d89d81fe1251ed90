"""The cache's decisions: what is fresh, who loads, who waits, what is served when a load fails.

No loading and no waiting happens here. A *flight* is one load under way; everybody who wants its key takes
part in it, whatever thread, task or loop they are in.
"""

from __future__ import annotations

import copy
import math
import random
import threading
import weakref
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, NamedTuple

from ...engine.deadline import time_left
from ...engine.finding import Status
from ...engine.flight import Flight, Follow, Lead, Outcome, Serve, Step
from ...engine.fork import renew_after_fork
from ...engine.latency import Stopwatch
from ...engine.matching import Matcher, is_refusal
from ...engine.waiting import Waiter
from ...engine.window import Tally
from ...events import Announcer, RefreshFailed, StaleServed, error_text, log_fault
from ...typing import Clock
from .store import Entry, Store

__all__ = ["CacheCore", "Freshness", "Lifetimes", "freshness", "replica", "served"]


_REFRESH_PAUSE: Final = 1.0  # the most seconds between a refresh that failed and the next one
_LATELY: Final = 60.0  # seconds for which the oldest answer is told of
_REMEMBERED: Final = 60.0  # seconds at least for which a load that failed is told of, if none comes after it


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things are good for, in seconds."""

    ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float
    jitter: float


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a cache served.

    Attributes:
        cache: the cache's name.
        state: "fresh" or "stale".
        age: seconds since the value was loaded.
    """

    cache: str
    state: str
    age: float


class Failing(NamedTuple):
    """The last load that ended, which failed: when, why, and whether what was kept answered instead."""

    at: float
    error: str
    rescued: bool


served: ContextVar[Entry | Freshness | None] = ContextVar("resilient_served", default=None)


def freshness() -> Freshness | None:
    """Tell how fresh the value is that a cache served last in this context, for a `Cache-Status` header.

    Returns:
        The cache's name, "fresh" or "stale", and the value's age in seconds; None where no cache has served.

    Concurrency: reads the current context only.

    Source: RFC 9211.
    """
    last = served.get()
    if isinstance(last, Entry):
        return Freshness(last.origin.name, "fresh", max(0.0, last.origin.clock() - last.stored_at))
    return last


class CacheCore:
    """Decides, per key, between serving, loading and waiting.

    Concurrency: safe from any thread, task and loop; everything but the fresh hit is under a short lock.
    """

    def __init__(self, name: str, lifetimes: Lifetimes, store: Store, on: Matcher, clock: Clock) -> None:
        self.name = name
        self.lifetimes = lifetimes
        self.store = store
        self.clock = clock
        self.enabled = True
        self.announcer = Announcer()
        self.hits = Tally()
        self.loads = Stopwatch(clock)
        self._oldest = (0.0, -math.inf)  # the age of the oldest value past its time that was served, and when
        self.led = self.refreshes = self.load_failures = self.joined = 0
        self.stale = self.rescued = self.negative = 0
        self.failing: Failing | None = None
        self.at_work: set[Any] = set()  # jobs and tasks: somebody has to hold them
        self._on = on
        self._random = random.random
        self._lock = threading.RLock()
        self._flights: dict[Hashable, Flight] = {}
        renew_after_fork(self)

    def begin(self, key: Hashable) -> Step:
        """Decide about a call that found nothing fresh.

        Raises:
            Exception: the failure that is remembered for *key*.
        """
        with self._lock:
            step = self._decide(key, self.clock())
        if isinstance(step, Exception):
            raise replica(step)
        return step

    def depart(self, flight: Flight) -> bool:
        """Tell that a thread is free for *flight*; False if somebody has loaded in the meantime."""
        with self._lock:
            flight.running = flight.outcome is Outcome.PENDING
            return flight.running

    def join(self, flight: Flight, waiter: Waiter) -> bool:
        """Have *waiter* woken when *flight* ends; False if it has ended already."""
        with self._lock:
            if flight.outcome is not Outcome.PENDING:
                return False
            flight.waiters.append(waiter)
            return True

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """Take *waiter* out again. A foreground load that nobody waits for any more is cancelled."""
        with self._lock:
            if waiter in flight.waiters:
                flight.waiters.remove(waiter)
            pending = flight.outcome is Outcome.PENDING
            cancel = flight.cancel if pending and not flight.waiters and not flight.background else None
        if cancel is not None:
            cancel()

    def land(self, flight: Flight, value: Any) -> Entry:
        """Settle *flight* with the *value* it loaded."""
        with self._lock:
            now = self.clock()
            entry = self._entry(value, now)
            self.loads.good.record(now - flight.begun)
            if flight.keep and self.enabled and flight.outcome is Outcome.PENDING:
                self._keep(flight, entry)
            flight.entry = entry
            if self.failing is not None:
                self.failing = None
            self._end(flight, Outcome.LANDED)
        return entry

    def fail(self, flight: Flight, exc: Exception) -> Serve | None:
        """Settle *flight*, whose load raised *exc*; return the last known good if that may answer."""
        # The user's code: not under the lock.
        excused, twin, text = self._excused(exc), replica(exc), error_text(exc)
        late = not flight.background and (left := time_left()) is not None and left <= 0.0
        with self._lock:
            now = self.clock()
            self.load_failures += 1
            self.loads.bad.record(now - flight.begun)
            answer = self._instead(flight.key, now, excused=excused)
            if answer is not None or not late:
                self.failing = Failing(now, text, answer is not None)
            if answer is not None:
                self._land_elsewhere(flight, answer, now + self._hold_off(flight, exc))
            elif late:  # it ran out of its caller's time, which says nothing about the others'
                self._end(flight, Outcome.ABANDONED)
            else:
                self._remember_failure(flight, twin, now)
                flight.error = twin
                self._end(flight, Outcome.FAILED)
        self._announce(flight, exc)
        return answer

    def abandon(self, flight: Flight) -> None:
        """Settle *flight*, whose load was interrupted: nothing is known, and somebody else may try."""
        with self._lock:
            self._end(flight, Outcome.ABANDONED)

    def last_resort(self, flight: Flight, exc: Exception, *, overdue: bool) -> Serve | None:
        """Return the last known good for a caller that cannot wait for *flight* any longer."""
        excused, text = self._excused(exc), error_text(exc)
        with self._lock:
            flight.overdue |= overdue
            now = self.clock()
            answer = self._instead(flight.key, now, excused=excused)
            self.rescued += answer is not None
            if overdue:
                self.failing = Failing(now, text, answer is not None)
        if answer is not None and answer.stale is not None and self.announcer.heard:
            self.announcer.announce(StaleServed(self.name, answer.stale.age, error_text(exc)))
        return answer

    def put(self, key: Hashable, value: Any) -> None:
        """Store *value* as if it had been loaded now."""
        with self._lock:
            self._disown(key)
            self.store.keep(key, self._entry(value, self.clock()))

    def invalidate(self, key: Hashable) -> None:
        """Forget *key*, and do not keep what is being loaded for it."""
        with self._lock:
            self._disown(key)
            self.store.drop(key)

    def clear(self) -> None:
        """Forget everything, and do not keep what is being loaded."""
        with self._lock:
            for key in list(self._flights):
                self._disown(key)
            self.store.clear()

    def held(self, key: Hashable) -> Entry | None:
        """Return the entry of *key* as it is, fresh or not."""
        entry = self.store.find(key)
        return entry if entry is not None and entry.error is None else None

    @property
    def stale_age(self) -> float:
        """The age of the oldest value past its time that was served in the last minute, or 0."""
        age, at = self._oldest
        return age if self.clock() - at < _LATELY else 0.0

    def standing(self) -> tuple[Status, str]:
        """Tell how the cache stands, and why."""
        if not self.enabled:
            return Status.WARN, "switched off: every call loads for itself"
        failing = self.failing
        ago = math.inf if failing is None else self.clock() - failing.at
        if failing is None or ago > max(self.lifetimes.ttl, _REMEMBERED):
            return Status.PASS, ""
        instead = ", and what was kept answers instead" if failing.rescued else ""
        return Status.WARN, f"the last load failed {ago:.3g} s ago{instead}: {failing.error}"

    # All below require the lock, but for the one that says so.

    def _decide(self, key: Hashable, now: float) -> Step | Exception:
        entry = self.store.find(key) if self.enabled else None
        if entry is not None:
            if now < entry.fresh_until:  # loaded while this call was on its way here
                next(self.hits.ticker)
                return Serve(entry)
            if entry.error is not None and now < entry.retry_at:
                self.negative += 1
                return entry.error
            if now < entry.stale_until or now < min(entry.retry_at, entry.error_until):
                self.stale += 1
                return Serve(entry, self._staleness(entry, now), self._refresh(key, entry, now))
        flight = self._flights.get(key)
        if flight is None or flight.overdue or not flight.running or flight.stranded:
            self.led += 1
            return self._take_off(key, background=False)
        self.joined += 1
        return Follow(flight)

    def _take_off(self, key: Hashable, *, background: bool) -> Lead:
        flight = Flight(key, background=background, begun=self.clock())
        flight.keep = self.enabled
        # The lead comes first: an interrupt after the flight is known must find somebody whose death is seen.
        # Seen, not announced: a finalizer written in Python would swallow an interrupt that comes within it.
        lead = Lead(flight)
        flight.lead = weakref.ref(lead)
        if self.enabled:  # a cache that is switched off lets every call load for itself
            former = self._flights.get(key)
            if former is not None and former.running and not former.stranded:
                flight.older = former  # overdue: it may still land
            elif former is not None:
                self._end(former, Outcome.ABANDONED)
            self._flights[key] = flight
        return lead

    def _refresh(self, key: Hashable, entry: Entry, now: float) -> Lead | None:
        under_way = self._flights.get(key)
        if now < entry.retry_at or (under_way is not None and not under_way.stranded):
            return None
        self.refreshes += 1
        return self._take_off(key, background=True)

    def _entry(self, value: Any, now: float) -> Entry:
        times = self.lifetimes
        entry = Entry(self, value, now)
        # Shorter, never longer: a value must not be served as fresh beyond the time that was asked for.
        entry.fresh_until = now + times.ttl * (1.0 - times.jitter * self._random())
        entry.stale_until = entry.fresh_until + times.stale_while_revalidate
        entry.error_until = entry.fresh_until + times.stale_if_error
        return entry

    def _keep(self, flight: Flight, entry: Entry) -> None:
        try:
            self.store.keep(flight.key, entry)
        except Exception:  # noqa: BLE001 - a `getsizeof` of the user's: it costs the caller no answer
            log_fault("cache %r could not keep a value", self.name)
            self.store.drop(flight.key)
        _disown(flight.older)  # what began before must not be kept after

    def _instead(self, key: Hashable, now: float, *, excused: bool) -> Serve | None:
        """Return what may answer in place of a load that failed, or does not end."""
        entry = self.store.find(key) if self.enabled else None
        if entry is None or entry.error is not None:
            return None
        if now < entry.fresh_until:  # put there in the meantime
            return Serve(entry)
        return Serve(entry, self._staleness(entry, now)) if excused and now < entry.error_until else None

    def _staleness(self, entry: Entry, now: float) -> Freshness:
        age = now - entry.stored_at
        if age >= self._oldest[0] or now - self._oldest[1] >= _LATELY:
            self._oldest = (age, now)
        return Freshness(self.name, "stale", age)

    def _land_elsewhere(self, flight: Flight, answer: Serve, retry_at: float) -> None:
        """End *flight*, whose load failed, with *answer* for all who wait for it."""
        flight.entry, flight.stale = answer.entry, answer.stale
        if answer.stale is not None:
            answer.entry.retry_at = retry_at
        loads_itself = flight.loop is None and not flight.background  # in its own thread: nobody's waiter
        self.rescued += len(flight.waiters) + loads_itself
        self._end(flight, Outcome.LANDED)

    def _excused(self, exc: Exception) -> bool:
        """Tell whether the last known good may answer for *exc*. Without the lock: asks the user's code."""
        # A refusal of ours means that the value could not be had: that is what the last one is kept for.
        return is_refusal(exc) or bool(self._on.match(exc))

    def _hold_off(self, flight: Flight, exc: Exception) -> float:
        """Return for how long not to load again after *exc*: a refusal tells when another try makes sense."""
        asked = exc.retry_after if is_refusal(exc) else None
        # Who is served something stale does not wait: without a pause, each hit would begin a new refresh.
        pause = min(_REFRESH_PAUSE, self.lifetimes.ttl / 10) if flight.background else 0.0
        return max(self.lifetimes.negative_ttl, asked or 0.0, pause)

    def _remember_failure(self, flight: Flight, exc: Exception, now: float) -> None:
        if not (flight.keep and self.enabled):
            return
        retry_at = now + self._hold_off(flight, exc)
        former = self.store.find(flight.key)
        if former is not None and now < former.stale_until:
            former.retry_at = min(retry_at, former.stale_until)  # its time as an answer is not over
        elif former is not None and former.error is None and now < former.error_until:
            pass  # it may yet answer for a failure of another kind
        elif now < retry_at and not is_refusal(exc):  # a refusal is not the dependency's answer
            entry = Entry(self, None, now)
            entry.error = exc
            entry.retry_at = retry_at
            self.store.keep(flight.key, entry)

    def _disown(self, key: Hashable) -> None:
        # Out of the table, too: who asks from now on must not get what was read before the change.
        _disown(self._flights.pop(key, None))

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if flight.outcome is not Outcome.PENDING:
            return
        flight.outcome = outcome
        flight.cancel = None
        waiters, flight.waiters = flight.waiters, []
        for waiter in waiters:
            waiter.wake()

    def _announce(self, flight: Flight, exc: Exception) -> None:
        if not self.announcer.heard:
            return
        if flight.background:
            self.announcer.announce(RefreshFailed(self.name, error_text(exc)))
        elif flight.stale is not None:
            self.announcer.announce(StaleServed(self.name, flight.stale.age, error_text(exc)))

    def after_fork(self) -> None:
        """Begin afresh in a forked child."""
        # A thread that changed the store in the middle of the fork was not copied: it will not finish.
        torn = not self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._flights.clear()  # their loaders are threads and loops of the parent
        self.at_work.clear()
        self.announcer.after_fork()
        self.store.after_fork(torn=torn)


def _disown(flight: Flight | None) -> None:
    """Have what *flight* loads, and those it stands in for, not be kept."""
    while flight is not None:
        flight.keep = False
        flight = flight.older


def replica(exc: Exception) -> Exception:
    """Return a copy of *exc* without traceback, for another waiter or for later.

    One instance raised in several places would collect all their tracebacks, and keep their frames alive.
    """
    try:
        twin = _twin(exc)
    except Exception:  # noqa: BLE001 - a class that cannot be copied is raised as it is
        return exc
    if hasattr(twin, "__notes__"):
        twin.__notes__ = list(twin.__notes__)  # each gets its own notes from here on
    return twin.with_traceback(None) if type(twin) is type(exc) else exc


def _twin(exc: Exception) -> Exception:
    kind = type(exc)
    if not isinstance(kind.__init__, FunctionType):
        return copy.copy(exc)
    # A constructor in Python may make its message out of its arguments, and would make one of the message.
    twin = kind.__new__(kind, *exc.args)
    inits = (vars(base).get("__init__") for base in kind.__mro__)
    builtin = next(init for init in inits if init is not None and not isinstance(init, FunctionType))
    builtin(twin, *exc.args)
    twin.__dict__.update(exc.__dict__)
    return twin
