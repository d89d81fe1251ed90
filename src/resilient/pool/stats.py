"""What a pool counts, and how it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.latency import Latency
    from .durations import Timings

__all__ = ["Counts", "PoolStats", "stats_of"]


@dataclass(slots=True)
class Counts:
    """What is counted under the lock of the pool."""

    waited: int = 0
    wait_seconds: float = 0.0
    timeouts: int = 0
    refused: int = 0
    connects: int = 0
    connect_seconds: float = 0.0
    connect_failures: int = 0
    closed: int = 0
    discarded: int = 0
    expired: int = 0
    leaks: int = 0
    collected: int = 0
    reclaimed: int = 0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has counted, and where it stands.

    Attributes:
        size: connections there are, those that are being made, mended or closed included.
        idle: connections that nobody has.
        used: connections that are lent.
        connecting: connections that are being made.
        waiting: callers that wait for one.
        min_size: connections that are kept open.
        max_size: the most there may be.
        checkouts: how often one was lent.
        waited: how often a caller had to wait for it, in vain or not.
        wait_seconds: how long all of them waited.
        use_seconds: how long connections were lent, those that still are not included.
        timeouts: callers that waited in vain.
        refused: callers that were refused at once: too many waited, or the server was known to be down.
        connects: connections that were made.
        connect_seconds: how long that took.
        connect_failures: attempts that failed.
        closed: connections that were closed, for whatever reason.
        discarded: of these, those that were broken.
        expired: of these, those that were idle for too long or had lived long enough.
        leaked: connections that are lent, and were reported as held too long.
        leaks: how often that was reported.
        collected: borrowers that were garbage-collected without returning their connection.
        reclaimed: connections that were taken from their borrowers.
        available: whether the server is, as far as is known.
        last_failure: why connecting failed last, as text; None if it has succeeded since.
        create_latency: how long it took lately to make a connection.
        wait_latency: how long it took lately until a caller was lent one: 0 where one was free; those who
            waited in vain are not included.
        use_latency: how long those were lent that came back lately; less than 10 us counts as 0.
    """

    size: int
    idle: int
    used: int
    connecting: int
    waiting: int
    min_size: int
    max_size: int
    checkouts: int
    waited: int
    wait_seconds: float
    use_seconds: float
    timeouts: int
    refused: int
    connects: int
    connect_seconds: float
    connect_failures: int
    closed: int
    discarded: int
    expired: int
    leaked: int
    leaks: int
    collected: int
    reclaimed: int
    available: bool
    last_failure: str | None
    create_latency: Latency
    wait_latency: Latency
    use_latency: Latency


def stats_of(facts: dict[str, Any], timings: Timings) -> PoolStats:
    """Return the statistics of which *facts* were read under the pool's lock; to be called without it."""
    return PoolStats(
        **facts,
        checkouts=timings.wait.count,
        use_seconds=timings.use.total,
        create_latency=timings.create.lately(),
        wait_latency=timings.wait.lately(),
        use_latency=timings.use.lately(),
    )
