"""Connections that are lent, and come back: leak-safe pools, for threads and for tasks."""

from __future__ import annotations

from .async_pool import AsyncConnectionPool
from .borrowers import Borrower
from .pool import ConnectionPool
from .replicas import AsyncReplicaSet, ReplicaSet, ReplicaSetStats, ReplicaStats
from .stats import PoolStats
from .watching import watch

__all__ = [
    "AsyncConnectionPool",
    "AsyncReplicaSet",
    "Borrower",
    "ConnectionPool",
    "PoolStats",
    "ReplicaSet",
    "ReplicaSetStats",
    "ReplicaStats",
    "watch",
]
