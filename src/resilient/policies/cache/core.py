"""The cache's decisions: what is fresh, who loads, who waits, what is served when a load fails.

No loading and no waiting happens here. A *flight* is one load under way; everybody who wants its key takes
part in it, whatever thread, task or loop they are in.
"""

from __future__ import annotations

import copy
import random
import threading
import weakref
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ...engine.flight import Flight, Follow, Lead, Outcome, Serve, Step
from ...engine.fork import renew_after_fork
from ...engine.matching import Matcher
from ...engine.waiting import Waiter
from ...engine.window import Tally
from ...errors import RejectedError
from ...events import Announcer, RefreshFailed, StaleServed, error_text
from ...typing import Clock
from .store import Entry, Store

__all__ = ["CacheCore", "Freshness", "Lifetimes", "freshness", "replica", "served"]


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
        self.led = self.refreshes = self.load_failures = self.joined = self.stale = self.negative = 0
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
            now = self.clock()
            entry = self.store.find(key) if self.enabled else None
            if entry is not None:
                if now < entry.fresh_until:  # loaded while this call was on its way here
                    next(self.hits.ticker)
                    return Serve(entry)
                if entry.error is not None and now < entry.retry_at:
                    self.negative += 1
                    raise replica(entry.error)
                if entry.error is None and (now < entry.stale_until or now < entry.retry_at):
                    self.stale += 1
                    age = Freshness(self.name, "stale", now - entry.stored_at)
                    return Serve(entry, age, self._refresh(key, entry, now))
            flight = self._flights.get(key)
            if flight is None:
                self.led += 1
                return self._take_off(key, background=False)
            self.joined += 1
            return Follow(flight)

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
            if flight.keep and self.enabled:
                self.store.keep(flight.key, entry)
            flight.entry = entry
            self._end(flight, Outcome.LANDED)
        return entry

    def fail(self, flight: Flight, exc: Exception) -> Serve | None:
        """Settle *flight*, whose load raised *exc*; return the last known good if that may answer."""
        with self._lock:
            now = self.clock()
            self.load_failures += 1
            entry = self._last_known_good(flight.key, exc, now)
            if entry is None:
                self._remember_failure(flight, exc, now)
                flight.error = replica(exc)
                self._end(flight, Outcome.FAILED)
            else:
                entry.retry_at = now + self._hold_off(exc)
                flight.entry, flight.stale = entry, Freshness(self.name, "stale", now - entry.stored_at)
                self.stale += not flight.background
                self._end(flight, Outcome.LANDED)
        self._announce(flight, exc)
        return None if flight.entry is None else Serve(flight.entry, flight.stale)

    def abandon(self, flight: Flight) -> None:
        """Settle *flight*, whose load was interrupted: nothing is known, and somebody else may try."""
        with self._lock:
            self._end(flight, Outcome.ABANDONED)

    def last_resort(self, key: Hashable, exc: Exception) -> Serve | None:
        """Return the last known good for a caller that cannot wait any longer."""
        with self._lock:
            now = self.clock()
            entry = self._last_known_good(key, exc, now)
            if entry is None:
                return None
            self.stale += 1
            return Serve(entry, Freshness(self.name, "stale", now - entry.stored_at))

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
            for key in self._flights:
                self._disown(key)
            self._flights.clear()
            self.store.clear()

    def held(self, key: Hashable) -> Entry | None:
        """Return the entry of *key* as it is, fresh or not."""
        entry = self.store.find(key)
        return entry if entry is not None and entry.error is None else None

    # All below require the lock.

    def _take_off(self, key: Hashable, *, background: bool) -> Lead:
        flight = Flight(key, background=background)
        if self.enabled:  # a cache that is switched off lets every call load for itself
            self._flights[key] = flight
        lead = Lead(flight)
        weakref.finalize(lead, self._crashed, flight).atexit = False
        return lead

    def _crashed(self, flight: Flight) -> None:
        if flight.outcome is Outcome.PENDING:
            self.abandon(flight)

    def _refresh(self, key: Hashable, entry: Entry, now: float) -> Lead | None:
        if key in self._flights or now < entry.retry_at:
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

    def _last_known_good(self, key: Hashable, exc: Exception, now: float) -> Entry | None:
        entry = self.store.find(key) if self.enabled else None
        if entry is None or entry.error is not None or now >= entry.error_until:
            return None
        # A refusal of ours means that the value could not be had: that is what the last one is kept for.
        return entry if isinstance(exc, RejectedError) or self._on.match(exc) else None

    def _hold_off(self, exc: Exception) -> float:
        """Return for how long not to load again after *exc*: a refusal tells when another try makes sense."""
        asked = exc.retry_after if isinstance(exc, RejectedError) else None
        return max(self.lifetimes.negative_ttl, asked or 0.0)

    def _remember_failure(self, flight: Flight, exc: Exception, now: float) -> None:
        if not (self.lifetimes.negative_ttl and flight.keep and self.enabled):
            return
        if isinstance(exc, RejectedError):  # not the dependency's answer
            return
        entry = Entry(self, None, now)
        entry.error = replica(exc)
        entry.retry_at = now + self.lifetimes.negative_ttl
        self.store.keep(flight.key, entry)

    def _disown(self, key: Hashable) -> None:
        flight = self._flights.get(key)
        if flight is not None:
            flight.keep = False

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
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
        self._lock = threading.RLock()
        self._flights.clear()  # their loaders are threads and loops of the parent


def replica(exc: Exception) -> Exception:
    """Return a copy of *exc* without traceback, for another waiter or for later.

    One instance raised in several places would collect all their tracebacks, and keep their frames alive.
    """
    try:
        twin = copy.copy(exc)
    except Exception:  # noqa: BLE001 - a class that cannot be copied is raised as it is
        return exc
    return twin.with_traceback(None) if type(twin) is type(exc) else exc
