"""Half-open: at most so many probes at once, and a place that always comes back."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from functools import partial
from typing import Final

from .states import Period, Probe, Refused

__all__ = ["count_slow", "get_off", "leave", "ride", "rides_along", "take_place"]

# The probe this context runs inside, so that a guarded call made from within a probe rides along instead of
# being refused by the probe that waits for it. Weak: the variable must not keep a lost probe's place.
_riding: Final[ContextVar[weakref.ref[Probe] | None]] = ContextVar("resilient_probe", default=None)


def take_place(period: Period, now: float, places: int, lifetime: float) -> Probe | Refused:
    """Return a probe of the half-open *period*, if one of its *places* is free. Requires the core's lock."""
    oldest = _expire(period, now, lifetime)
    if len(period.probes) >= places:
        return Refused(max(0.0, oldest + lifetime - now), "half-open, with all its probes under way")
    probe = Probe(period, now)
    # `dict.pop` and `partial` are C: a callback in Python could itself be interrupted and swallowed.
    period.probes[id(probe)] = weakref.ref(probe, partial(period.probes.pop, id(probe)))
    return probe


def _expire(period: Period, now: float, lifetime: float) -> float:
    """Take the place of probes that outlived their time; return when the oldest one left began."""
    oldest = now
    # The copy is one C call: garbage collection, which may come at any moment, frees places too.
    for key, place in period.probes.copy().items():
        probe = place()
        if probe is None or now - probe.since > lifetime:
            period.probes.pop(key, None)
        else:
            oldest = min(oldest, probe.since)
    return oldest


def count_slow(period: Period, now: float, slow_after: float) -> int:
    """Return how many probes under way have taken longer than *slow_after*. Requires the core's lock."""
    probes = [place() for place in period.probes.copy().values()]
    return sum(probe is not None and now - probe.timed_from > slow_after for probe in probes)


def ride(probe: Probe) -> None:
    """Mark this context as running inside *probe*."""
    probe.above = _riding.get()
    _riding.set(weakref.ref(probe))


def rides_along(period: Period) -> bool:
    """Tell whether this context runs inside a probe that holds a place in *period*."""
    above = _riding.get()
    while above is not None and (probe := above()) is not None:
        if probe.period is period and id(probe) in period.probes:
            return True
        above = probe.above
    return False


def get_off(probe: Probe) -> None:
    """Mark this context as running outside *probe* again."""
    riding = _riding.get()
    if riding is not None and riding() is probe:
        _riding.set(probe.above)


def leave(probe: Probe) -> bool:
    """Give the place of *probe* back; return whether it still had one."""
    get_off(probe)
    return probe.period.probes.pop(id(probe), None) is not None
