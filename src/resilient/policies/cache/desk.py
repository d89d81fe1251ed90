"""Where calls of a cache come first: what the wrappers read on a hit, and whom they ask on a miss."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from ...engine.flight import Flight, Serve
from ...engine.workers import Workers
from ...errors import CallTimeoutError
from .core import CacheCore, replica, served
from .keys import key_maker

__all__ = ["Desk"]

_REFRESH_THREADS: Final = 4


class Desk:
    """Answers what is fresh, and hands the rest to *core*. What the wrappers bind is an attribute of it.

    Concurrency: safe from any thread, task and loop.
    """

    def __init__(
        self, core: CacheCore, make_key: Callable[..., Hashable] | None, load_timeout: float | None
    ) -> None:
        self._core = core
        self._make_key = make_key
        self.load_timeout = load_timeout
        self.plain_keys = make_key is None
        self.switch = core
        self.clock = core.clock
        self.find = core.store.find
        self.hit_ticker = core.hits.ticker
        self.note: Callable[[Any], object] = served.set
        self.begin, self.depart, self.join, self.leave = core.begin, core.depart, core.join, core.leave
        self.land, self.fail, self.abandon = core.land, core.fail, core.abandon
        self.refreshes = core.at_work
        self.refreshers = Workers(_REFRESH_THREADS, f"resilient-refresh-{core.name}")

    def fresh(self, key: Hashable) -> tuple[bool, Any]:
        """Return whether there is a fresh answer for *key*, and which."""
        try:
            entry = self.find(key)
        except TypeError as exc:
            raise self.bad_key(exc) from exc
        if entry is None or self.clock() >= entry.fresh_until or not self._core.enabled:
            return False, None
        entry.visited = True
        next(self.hit_ticker)
        self.note(entry)
        return True, entry.value

    def keys_for(self, fn: Callable[..., Any]) -> Callable[[Any, Any], Hashable]:
        """Return what makes a key of the arguments of a call of *fn*."""
        return key_maker(self._make_key, fn)

    def bad_key(self, exc: TypeError) -> TypeError:
        """Return the error for arguments that cannot be a key."""
        name = self._core.name
        return TypeError(f"cache {name!r} cannot make a key of these arguments ({exc}): give it key=")

    def overdue(self, flight: Flight, waited: float | None) -> Serve:
        """Return what may answer a caller that has *waited* as long as it can for *flight*, or raise."""
        limit = self.load_timeout
        error = self.too_slow(waited)
        overdue = waited is not None and limit is not None and waited >= limit
        answer = self._core.last_resort(flight, error, overdue=overdue)
        if answer is None:
            raise error
        return answer

    def too_slow(self, waited: float | None) -> CallTimeoutError:
        """Return the error for a load that did not end in time."""
        name = self._core.name
        message = f"cache {name!r}: no answer in {waited:.3g} s"
        return CallTimeoutError(message, policy=name, seconds=waited)

    def failure_of(self, flight: Flight) -> Exception:
        """Return the failure of a load for one of those who waited for it."""
        assert flight.error is not None  # noqa: S101 - a failed flight has one
        return replica(flight.error)
