"""What a replica set tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from ...policies.circuit_breaker.states import BreakerStats
from ..stats import PoolStats

__all__ = ["ReplicaSetStats", "ReplicaStats"]


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """How a replica does.

    Attributes:
        name: its pool's name.
        lag: by how many seconds it was behind when it was last asked; None if that is not known.
        breaker: what its breaker has counted; the reason of an override is in its event.
        pool: what its pool has counted.
    """

    name: str
    lag: float | None
    breaker: BreakerStats
    pool: PoolStats


@dataclass(frozen=True, slots=True)
class ReplicaSetStats:
    """What a replica set has counted, and how its pools do.

    Attributes:
        primary: what the primary's pool has counted.
        replicas: how each replica does, in the order in which they were given.
        failovers: reads that found no connection where they looked first, and one elsewhere.
        on_primary: reads that the primary served because no replica could.
        pinned: reads that went to the primary because the same context had just written.
        refused: reads that found no connection at all.
        demotions: how often a write was told that the primary is read-only, and its connections were
            replaced.
    """

    primary: PoolStats
    replicas: tuple[ReplicaStats, ...]
    failovers: int
    on_primary: int
    pinned: int
    refused: int
    demotions: int
