"""Keep services standing when what they depend on fails."""

from __future__ import annotations

from . import errors, events
from .engine.deadline import time_left
from .engine.window import Calls
from .policies.circuit_breaker.breaker import CircuitBreaker
from .policies.fallback import Fallback
from .policies.retry import Retry
from .policies.retry_budget import RetryBudget
from .policies.timeout import Timeout, deadline

__version__ = "0.1.0.dev0"
