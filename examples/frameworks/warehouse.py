"""What all three services depend on: a warehouse that does not answer, behind a breaker."""

from __future__ import annotations

from resilient import CircuitBreaker

breaker = CircuitBreaker("warehouse", fail_max=2, reset_timeout=30)


class WarehouseError(Exception):
    """Tell that the warehouse did not answer."""


@breaker
def stock_of(item: str) -> int:
    """Return how many of *item* there are; for this example, the line is dead."""
    raise WarehouseError(f"no answer about {item!r}")
