"""Dashboards for Grafana over the metrics of this library: one for each pattern, and an overview.

They are made here, as code: each query from the metrics themselves. `resilient dashboards` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .board import Board
from .bulkhead import BULKHEAD
from .cache import CACHE
from .circuit_breaker import CIRCUIT_BREAKER
from .connection_pool import CONNECTION_POOL
from .health import HEALTH
from .overview import OVERVIEW
from .rate_limiter import RATE_LIMITER
from .retry import RETRY
from .timeout import TIMEOUT

__all__ = ["DASHBOARDS", "Board"]

DASHBOARDS: Final[Mapping[str, Board]] = MappingProxyType(
    {
        board.name: board
        for board in (
            OVERVIEW,
            CIRCUIT_BREAKER,
            RETRY,
            TIMEOUT,
            RATE_LIMITER,
            BULKHEAD,
            CACHE,
            CONNECTION_POOL,
            HEALTH,
        )
    }
)
"""All dashboards, by name; the overview first."""
