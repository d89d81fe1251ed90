"""Rate limiter: how often, on one machine and across many."""

from .decision import Decision
from .limiter import RateLimiter
from .quota import Quota

__all__ = ["Decision", "Quota", "RateLimiter"]
