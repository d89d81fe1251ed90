"""Opens the desk at which a limiter's decisions are made."""

from __future__ import annotations

from collections.abc import Sequence

from ..policies.rate_limiter.ladder import Ladder
from ..policies.rate_limiter.quota import Quota
from .lease import LeaseDesk
from .link import link_to
from .rates import SharedDesk, SharedRates

__all__ = ["open_desk"]


def open_desk(
    uri: str, timeout: float, *, strategy: str, quotas: Sequence[Quota], ladder: Ladder, lease: int | None
) -> SharedDesk | LeaseDesk:
    """Return a desk that asks the store at *uri*, and *ladder* where that does not answer."""
    desk = SharedDesk(link_to(uri, timeout), SharedRates(ladder.name, strategy, quotas), ladder)
    return desk if lease is None else LeaseDesk(desk, lease)
