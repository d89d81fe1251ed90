"""Keep services standing when what they depend on fails.

A policy is a named object that is a decorator: `breaker = CircuitBreaker("payments")`, then `@breaker`. One
object serves threads, tasks and event loops at once, and functions of every shape.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import errors, events
from .engine.deadline import time_left
from .engine.priority import Priority, current_priority, priority, service_criticality
from .engine.window import Calls
from .errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConnectionReclaimedError,
    ConnectionReturnedError,
    DeadlineExceededError,
    MaintenanceError,
    PipelineOrderError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RateLimitedError,
    RejectedError,
    ResilientError,
    ThrottledError,
)
from .policies.backoff import (
    stop_at_deadline,
    wait_decorrelated_jitter,
    wait_equal_jitter,
    wait_full_jitter,
    wait_retry_after,
)
from .policies.cache.cache import Cache
from .policies.cache.core import freshness
from .policies.cache.store import SieveCache
from .policies.circuit_breaker.breaker import CircuitBreaker
from .policies.fallback import Fallback
from .policies.pipeline import Pipeline
from .policies.rate_limiter import Decision, Quota, RateLimiter
from .policies.retry import Retry
from .policies.retry_budget import RetryBudget
from .policies.timeout import Timeout, deadline

if TYPE_CHECKING:
    from .policies.adaptive_throttle import AdaptiveThrottle
    from .policies.bulkhead import AIMD, Bulkhead, Gradient, Pressure, Vegas
    from .pool import AsyncConnectionPool, AsyncReplicaSet, ConnectionPool, ReplicaSet

__version__ = "0.1.0.dev0"

__all__ = [
    "AIMD",
    "AdaptiveThrottle",
    "AsyncConnectionPool",
    "AsyncReplicaSet",
    "Bulkhead",
    "BulkheadFullError",
    "Cache",
    "CallTimeoutError",
    "Calls",
    "CircuitBreaker",
    "CircuitOpenError",
    "ConnectionPool",
    "ConnectionReclaimedError",
    "ConnectionReturnedError",
    "DeadlineExceededError",
    "Decision",
    "Fallback",
    "Gradient",
    "MaintenanceError",
    "Pipeline",
    "PipelineOrderError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "PoolUnavailableError",
    "Pressure",
    "Priority",
    "Quota",
    "RateLimitedError",
    "RateLimiter",
    "RejectedError",
    "ReplicaSet",
    "ResilientError",
    "Retry",
    "RetryBudget",
    "SieveCache",
    "ThrottledError",
    "Timeout",
    "Vegas",
    "current_priority",
    "deadline",
    "errors",
    "events",
    "freshness",
    "priority",
    "service_criticality",
    "stop_at_deadline",
    "time_left",
    "wait_decorrelated_jitter",
    "wait_equal_jitter",
    "wait_full_jitter",
    "wait_retry_after",
]

# Loaded when first asked for: `import resilient` is to take little longer than importing what it stands on.
_LATER = {
    "AIMD": "policies.bulkhead",
    "AdaptiveThrottle": "policies.adaptive_throttle",
    "AsyncConnectionPool": "pool",
    "AsyncReplicaSet": "pool",
    "Bulkhead": "policies.bulkhead",
    "ConnectionPool": "pool",
    "Gradient": "policies.bulkhead",
    "Pressure": "policies.bulkhead",
    "ReplicaSet": "pool",
    "Vegas": "policies.bulkhead",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LATER[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LATER.keys())
