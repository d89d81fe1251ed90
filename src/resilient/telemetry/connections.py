"""The `db.client.connection.*` metrics of connection pools, our own and those that are watched.

What is a count is read from the pools when somebody collects, by one set of observable instruments. Durations
cannot be read; they are kept until a background thread, or the collection, records them: whoever borrows a
connection does not wait for that.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from .. import __version__
from ..engine.fork import renew_after_fork
from ..events import log_fault

__all__ = ["ConnectionCounts", "ConnectionSource", "Connections", "Durations", "forget", "observe", "times"]

_POOL: Final = "db.client.connection.pool.name"
_STATE: Final = "db.client.connection.state"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"

# The SDK's own boundaries are made for milliseconds.
_CREATE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAIT_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
_USE_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)

_KEPT: Final = 20_000  # durations of a kind that wait to be recorded; the oldest give way


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Where a pool stands. What is None is not reported: nobody knows it, or somebody else reports it.

    Attributes:
        idle: open connections that nobody has.
        used: connections that are lent.
        idle_max: the most idle ones that are kept.
        idle_min: the fewest idle ones that are kept.
        limit: the most connections there may be.
        pending: callers that wait for a connection.
        timeouts: callers that waited in vain, in all.
        leaked: connections that are lent, and were reported as held too long.
    """

    idle: int | None = None
    used: int | None = None
    idle_max: int | None = None
    idle_min: int | None = None
    limit: int | None = None
    pending: int | None = None
    timeouts: int | None = None
    leaked: int | None = None


class ConnectionSource(Protocol):
    """A pool that can be asked where it stands."""

    @property
    def name(self) -> str:
        """The pool's name; what pools of one name count is added up."""
        ...

    def counts(self) -> ConnectionCounts:
        """Return where it stands. Must not wait: it is called while metrics are collected."""
        ...


class _Place(weakref.ref[ConnectionSource]):
    """A source's place among the others, and whether it was logged as faulty."""

    __slots__ = ("faulty",)

    faulty: bool


class Durations:
    """Durations of one pool, in seconds, that wait to be recorded: appended by anybody, taken by `record`.

    *without* names what is not to be recorded when it is time: "create", "wait" or "use".
    """

    __slots__ = ("__weakref__", "_connections", "_pool", "_without", "create", "use", "wait")

    def __init__(self, connections: Connections, pool: str, without: Callable[[], Collection[str]]) -> None:
        self._connections = connections
        self._pool = {_POOL: pool}
        self._without = without
        self.create: deque[float] = deque(maxlen=_KEPT)
        self.wait: deque[float] = deque(maxlen=_KEPT)
        self.use: deque[float] = deque(maxlen=_KEPT)

    def record(self) -> None:
        """Record what has piled up."""
        left_out = self._without()
        for kind, histogram in self._connections.histograms.items():
            kept: deque[float] = getattr(self, kind)
            while kept:
                try:
                    seconds = kept.popleft()
                except IndexError:  # somebody else records too
                    break
                if kind not in left_out:
                    histogram.record(seconds, self._pool)


class Connections:
    """One set of instruments on the meter `resilient`, and the pools that they are read from.

    The instruments are made when the first pool comes, of *meter_provider*, or of the application's: that may
    be set later, too.

    Concurrency: safe from any thread. Neither pools nor durations are kept alive.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._provider = meter_provider
        self._lock = threading.RLock()
        self._started = False
        # Not WeakSets: those run Python code when one of them dies, in which an interrupt would be lost.
        self._places: set[_Place] = set()
        self._durations: set[weakref.ref[Durations]] = set()
        self.histograms: dict[str, Histogram] = {}
        renew_after_fork(self)

    def observe(self, source: ConnectionSource) -> None:
        """Report *source* from now on, for as long as it lives."""
        place = _Place(source, self._places.discard)
        place.faulty = False
        self._start()
        self._places.add(place)

    def forget(self, source: ConnectionSource) -> None:
        """Report *source* no more."""
        self._places.discard(_Place(source))

    def times(self, pool: str, without: Callable[[], Collection[str]] = tuple) -> Durations:
        """Return where the durations of the pool named *pool* go."""
        durations = Durations(self, pool, without)
        self._start()
        self._durations.add(weakref.ref(durations, self._durations.discard))
        return durations

    def after_fork(self) -> None:
        """Free the lock: the thread that had it may not exist in this process."""
        self._lock = threading.RLock()

    def _start(self) -> None:
        """Make the instruments, once. Not at a collection: the SDK holds its lock then."""
        with self._lock:
            if self._started:
                return
            self._started = True
            meter = get_meter("resilient", __version__, self._provider, _SCHEMA)
            self._make_histograms(meter)
            self._make_observables(meter)

    def _make_histograms(self, meter: Meter) -> None:
        for kind, says, boundaries in (
            ("create", "The time it took to create a new connection.", _CREATE_BUCKETS),
            ("wait", "The time it took to obtain an open connection from the pool.", _WAIT_BUCKETS),
            ("use", "The time between borrowing a connection and returning it to the pool.", _USE_BUCKETS),
        ):
            self.histograms[kind] = meter.create_histogram(
                f"db.client.connection.{kind}_time",
                "s",
                says,
                explicit_bucket_boundaries_advisory=boundaries,
            )

    def _make_observables(self, meter: Meter) -> None:
        meter.create_observable_up_down_counter(
            "db.client.connection.count",
            [self._states],
            "{connection}",
            "The number of connections that are currently in the state described by the state attribute.",
        )
        for name, field, unit, says in (
            ("idle.max", "idle_max", "connection", "The maximum number of idle open connections allowed."),
            ("idle.min", "idle_min", "connection", "The minimum number of idle open connections allowed."),
            ("max", "limit", "connection", "The maximum number of open connections allowed."),
            ("pending_requests", "pending", "request", "The number of pending requests for a connection."),
        ):
            meter.create_observable_up_down_counter(
                f"db.client.connection.{name}", [self._reader(field)], f"{{{unit}}}", says
            )
        meter.create_observable_counter(
            "db.client.connection.timeouts",
            [self._reader("timeouts")],
            "{timeout}",
            "The number of callers that waited for a connection of the pool in vain.",
        )
        meter.create_observable_up_down_counter(
            "resilient.pool.leaked",
            [self._reader("leaked")],
            "{connection}",
            "The number of connections that are lent, and were reported as held too long.",
        )

    def _states(self, _options: CallbackOptions) -> Sequence[Observation]:
        # The first to be read: what is recorded here is part of this collection.
        for reference in list(self._durations):
            durations = reference()
            if durations is not None:
                durations.record()
        return [
            Observation(value, {_POOL: pool, _STATE: state})
            for state in ("idle", "used")
            for pool, value in self._totals(state)
        ]

    def _reader(self, field: str) -> Callable[[CallbackOptions], Sequence[Observation]]:
        def read(_options: CallbackOptions) -> Sequence[Observation]:
            return [Observation(value, {_POOL: pool}) for pool, value in self._totals(field)]

        return read

    def _totals(self, field: str) -> Iterable[tuple[str, int]]:
        """Return what the pools of each name have of *field*, where any knows it."""
        totals: Counter[str] = Counter()
        for place in list(self._places):
            source = place()
            if source is None:
                continue
            try:
                value: int | None = getattr(source.counts(), field)
                if value is not None:
                    totals[source.name] += value
            except Exception:  # noqa: BLE001 - of one pool, in the thread that collects for all of them
                if not place.faulty:
                    place.faulty = True
                    log_fault("the counts of %r cannot be read; that will not be reported again", source)
        return totals.items()


_shared = Connections()
observe = _shared.observe
forget = _shared.forget
times = _shared.times
