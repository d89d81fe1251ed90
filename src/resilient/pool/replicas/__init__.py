"""Reads from replicas, writes to the primary."""

from __future__ import annotations

from .sets import AsyncReplicaSet, ReplicaSet
from .stats import ReplicaSetStats, ReplicaStats

__all__ = ["AsyncReplicaSet", "ReplicaSet", "ReplicaSetStats", "ReplicaStats"]
