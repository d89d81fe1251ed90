"""Keep services standing when what they depend on fails.

A policy is a named object that is a decorator: `breaker = CircuitBreaker("payments")`, then `@breaker`. One
object serves threads, tasks and event loops at once, and functions of every shape.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from .policies.adaptive_throttle import AdaptiveThrottle
    from .policies.backoff import (
        stop_at_deadline,
        wait_decorrelated_jitter,
        wait_equal_jitter,
        wait_full_jitter,
        wait_retry_after,
    )
    from .policies.bulkhead import AIMD, Bulkhead, Gradient, Pressure, Vegas
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

# Where each name lives. Each is loaded when it is first asked for: most programs use a few of them, and a
# probe that is a command, such as `resilient health`, is to start quickly.
_HOMES = {
    "engine.deadline": ["time_left"],
    "engine.priority": ["Priority", "current_priority", "priority", "service_criticality"],
    "engine.window": ["Calls"],
    "errors": [name for name in __all__ if name.endswith("Error")],
    "policies.adaptive_throttle": ["AdaptiveThrottle"],
    "policies.backoff": [name for name in __all__ if name.startswith(("stop_", "wait_"))],
    "policies.bulkhead": ["AIMD", "Bulkhead", "Gradient", "Pressure", "Vegas"],
    "policies.cache.cache": ["Cache"],
    "policies.cache.core": ["freshness"],
    "policies.cache.store": ["SieveCache"],
    "policies.circuit_breaker.breaker": ["CircuitBreaker"],
    "policies.fallback": ["Fallback"],
    "policies.pipeline": ["Pipeline"],
    "policies.rate_limiter": ["Decision", "Quota", "RateLimiter"],
    "policies.retry": ["Retry"],
    "policies.retry_budget": ["RetryBudget"],
    "policies.timeout": ["Timeout", "deadline"],
    "pool": ["AsyncConnectionPool", "AsyncReplicaSet", "ConnectionPool", "ReplicaSet"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in {"errors", "events"}:
        return importlib.import_module(f"{__name__}.{name}")  # which makes it an attribute
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
