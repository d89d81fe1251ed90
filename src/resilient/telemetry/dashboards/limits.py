"""From which values on something is worth a look: those of the alerts."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANY",
    "BULKHEAD_USE",
    "ERRORS",
    "LAG",
    "POOL_USE",
    "RESPONSE",
    "RETRIES",
    "STALE",
    "STALE_AGE",
    "STORE_ERRORS",
    "THROTTLED",
    "UTILIZATION",
]

ANY: Final = 0.001
"""A second, or share: anything at all. There is no alert for it."""
ERRORS: Final = 0.01
"""Share of the calls that fail or are refused."""
RESPONSE: Final = 1.0
"""Seconds that 95 of 100 calls stay below."""
RETRIES: Final = 0.1
"""Retries for each first attempt."""
THROTTLED: Final = 0.05
"""Share of the calls that a throttle does not send."""
STORE_ERRORS: Final = 0.01
"""Errors of a shared store for each decision."""
BULKHEAD_USE: Final = 0.9
"""Share of the slots that are taken."""
POOL_USE: Final = 0.8
"""Share of the connections that are lent."""
LAG: Final = 30.0
"""Seconds by which a replica is behind."""
STALE: Final = 0.05
"""Share of the answers of a cache that are past their time."""
STALE_AGE: Final = 3_600.0
"""Seconds of age of such an answer."""
UTILIZATION: Final = 80.0
"""Percent of the processors, or of the memory."""
