"""The metrics that OpenTelemetry has words for of any pool: of our own, and of those that are watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..engine.measure import Instrument, Measure, Metric, define, up_down

if TYPE_CHECKING:
    from ..engine.latency import Histogram

__all__ = [
    "COUNT",
    "CREATE_TIME",
    "DURATIONS",
    "IDLE_MAX",
    "IDLE_MIN",
    "LEAKED",
    "MAX",
    "PENDING",
    "TIMEOUTS",
    "USE_TIME",
    "WAIT_TIME",
    "ConnectionCounts",
    "of_connections",
]

_POOL: Final = "db.client.connection.pool.name"


def _up_down(name: str, unit: str, description: str, *attributes: str) -> Metric:
    return define(Metric(name, Instrument.UP_DOWN_COUNTER, unit, description, attributes, subject=_POOL))


def _histogram(name: str, description: str, *boundaries: float) -> Metric:
    return define(Metric(name, Instrument.HISTOGRAM, "s", description, boundaries=boundaries, subject=_POOL))


COUNT: Final = _up_down(
    "db.client.connection.count",
    "{connection}",
    "The number of connections that are currently in the state described by the state attribute.",
    "db.client.connection.state",
)
IDLE_MAX: Final = _up_down(
    "db.client.connection.idle.max", "{connection}", "The maximum number of idle open connections allowed."
)
IDLE_MIN: Final = _up_down(
    "db.client.connection.idle.min", "{connection}", "The minimum number of idle open connections allowed."
)
MAX: Final = _up_down(
    "db.client.connection.max", "{connection}", "The maximum number of open connections allowed."
)
PENDING: Final = _up_down(
    "db.client.connection.pending_requests",
    "{request}",
    "The number of pending requests for a connection.",
)
TIMEOUTS: Final = define(
    Metric(
        "db.client.connection.timeouts",
        Instrument.COUNTER,
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        subject=_POOL,
    )
)
LEAKED: Final = up_down(
    "resilient.pool.leaked",
    "{connection}",
    "The number of connections that are lent, and were reported as held too long.",
)

CREATE_TIME: Final = _histogram(
    "db.client.connection.create_time",
    "The time it took to create a new connection.",
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
WAIT_TIME: Final = _histogram(
    "db.client.connection.wait_time",
    "The time it took to obtain an open connection from the pool.",
    *(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0),
)
USE_TIME: Final = _histogram(
    "db.client.connection.use_time",
    "The time between borrowing a connection and returning it to the pool.",
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)

DURATIONS: Final[Mapping[str, Metric]] = {"create": CREATE_TIME, "wait": WAIT_TIME, "use": USE_TIME}
"""What of a connection is timed, by what pools call that."""


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


def of_connections(counts: ConnectionCounts, durations: Mapping[str, Histogram]) -> Iterator[Measure]:
    """Return what can be told of any pool; *durations* by what they are of: see `DURATIONS`."""
    for metric, value, labels in (
        (COUNT, counts.idle, ("idle",)),
        (COUNT, counts.used, ("used",)),
        (IDLE_MAX, counts.idle_max, ()),
        (IDLE_MIN, counts.idle_min, ()),
        (MAX, counts.limit, ()),
        (PENDING, counts.pending, ()),
        (TIMEOUTS, counts.timeouts, ()),
        (LEAKED, counts.leaked, ()),
    ):
        if value is not None:
            yield metric, value, labels
    for what, histogram in durations.items():
        yield DURATIONS[what], histogram, ()
