"""Everything that can be measured, as OpenTelemetry metrics: read from the policies when somebody collects.

One set of observable instruments serves all of them. The SDK asks instrument after instrument; the first one
has everything read once, and the others find theirs in what was read. So a policy is asked once, whatever
the number of its metrics, and nothing is done on any call for this.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Final

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter

from .. import __version__
from ..engine.measure import Instrument, Metric, defined
from ..events import log_fault
from .bulk import NOWHERE, is_heard, record
from .reading import Column, Reader

__all__ = ["SCHEMA", "Collector"]

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"


class Collector:
    """The instruments of one meter provider, and what they are read from.

    Args:
        meter_provider: whose meter "resilient" it uses. None: the application's, which may be set later.

    Concurrency: safe from any thread; collections may overlap. Nothing that is measured is kept alive.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self.enabled = False
        self._meter: Meter = get_meter("resilient", __version__, meter_provider, SCHEMA)
        self._made: set[Metric] = set()
        self._histograms: dict[Metric, Histogram] = {}
        self._first: Metric | None = None
        self._faulty = False
        self._reader = Reader()
        self._here = _Here()
        self._making = threading.RLock()
        _collectors.add(weakref.ref(self, _collectors.discard))

    def make_instruments(self) -> None:
        """Make the instruments of those metrics that have none. Not to be called by a collection.

        While it collects, the SDK holds a lock that making an instrument takes; so it is not done under the
        lock that a collection takes.
        """
        with self._making:
            for metric in defined():
                if metric not in self._made:
                    self._made.add(metric)
                    try:
                        self._make(metric)
                    except Exception:  # noqa: BLE001 - what one provider will not have is not told there
                        log_fault("%r has no instrument for %s", self._meter, metric.name)

    def _make(self, metric: Metric) -> None:
        name, unit, says = metric.name, metric.unit, metric.description
        if metric.instrument is Instrument.HISTOGRAM:
            self._histograms[metric] = self._meter.create_histogram(
                name, unit, says, explicit_bucket_boundaries_advisory=metric.boundaries
            )
            return
        self._first = self._first or metric
        make: Callable[..., object] = {
            Instrument.COUNTER: self._meter.create_observable_counter,
            Instrument.UP_DOWN_COUNTER: self._meter.create_observable_up_down_counter,
            Instrument.GAUGE: self._meter.create_observable_gauge,
        }[metric.instrument]
        make(name, [self._callback(metric)], unit, says)

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        # Weakly: the SDK keeps its instruments for ever.
        reference = weakref.ref(self)

        def read(_options: CallbackOptions) -> Iterable[Observation]:
            collector = reference()
            return () if collector is None else collector.take(metric)

        return read

    def take(self, metric: Metric) -> Iterable[Observation]:
        """Return what there is of *metric*, as of one moment for all metrics of a collection."""
        if not self.enabled:
            return ()
        here = self._here
        # Each collection is by one thread, from the first instrument to the last.
        if metric is self._first or metric in here.taken:
            here.taken = set()
            here.columns = self._read()
        here.taken.add(metric)
        column = here.columns.pop(metric, None)
        if column is None:
            return ()
        return map(Observation, column.values, column.attributes, repeat(NOWHERE))

    def _read(self) -> dict[Metric, Column]:
        heard = frozenset(metric for metric, one in [*self._histograms.items()] if is_heard(one))
        columns, fresh = self._reader.read(heard)
        for metric, series in fresh.items():
            try:
                record(self._histograms[metric], series)
            except Exception:  # noqa: BLE001 - of the SDK's insides; counters and states are told all the same
                if not self._faulty:
                    self._faulty = True
                    log_fault("durations cannot be recorded; that will not be reported again")
        return columns

    def after_fork(self) -> None:
        """Begin anew in a child process."""
        self._making = threading.RLock()
        self._here = _Here()
        self._reader.after_fork()


class _Here(threading.local):
    """What the collection of this thread has read, and which metrics have been handed out of it."""

    def __init__(self) -> None:
        self.columns: dict[Metric, Column] = {}
        self.taken: set[Metric] = set()


_collectors: set[weakref.ref[Collector]] = set()


def _renew() -> None:
    for reference in list(_collectors):
        collector = reference()
        if collector is not None:
            collector.after_fork()


# By itself and not by `renew_after_fork`, which comes before: what it reads must have its locks anew by then.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
