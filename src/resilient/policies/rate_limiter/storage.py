"""Where the permits of many processes are counted: which storage a URI means."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ...engine import params

if TYPE_CHECKING:
    from .ladder import Ladder
    from .limiter import Desk
    from .quota import Quota

__all__ = ["open_shared", "storage_uri"]

_SHARED: Final = frozenset({"redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster"})


def storage_uri(storage: object) -> str | None:
    """Return the URI for limits, or None for memory.

    Valkey speaks Redis: one client, that of the extra, serves both.
    """
    if not isinstance(storage, str):
        params.refuse(
            TypeError, "storage", "must be a URI such as 'memory://' or 'redis://host:6379'", storage
        )
    scheme, colon, rest = storage.partition("://")
    if scheme == "memory" and colon:
        return None
    scheme = scheme.replace("valkeys", "rediss").replace("valkey", "redis")
    if scheme not in _SHARED or not colon:
        # The rest of it may hold a password.
        rule = f"must be memory:// or begin with one of {', '.join(sorted(_SHARED))}"
        params.refuse(ValueError, "storage", rule, storage.partition("://")[0] + colon + "…")
    if importlib.util.find_spec("redis") is None:
        msg = "storage on Redis or Valkey needs the client: pip install 'resilient-py[redis]'"
        raise ModuleNotFoundError(msg, name="redis")
    return f"{scheme}://{rest}"


def open_shared(
    uri: str,
    timeout: float,
    name: str,
    strategy: str,
    quotas: Sequence[Quota],
    ladder: Ladder,
    lease: int | None,
    max_keys: int,
) -> Desk:
    """Return the desk that asks the store at *uri*, and *ladder* where that does not answer."""
    # By name: what is shared stands above the policies, and brings in the client.
    rates = importlib.import_module("resilient.fleet.rates")
    desk: Desk = rates.open_desk(uri, timeout, name, strategy, quotas, ladder, lease, max_keys)
    return desk
