"""Where the permits of many processes are counted: which storage a URI means."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ...engine import params

if TYPE_CHECKING:
    from .ladder import Ladder
    from .limiter import Desk
    from .quota import Quota

__all__ = ["open_shared", "storage_uri"]

_SHARED: Final = frozenset({"redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster"})
_SEVERAL_HOSTS: Final = frozenset({"redis+sentinel", "redis+cluster"})


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
        rule = f"must be memory:// or begin with one of {', '.join(sorted(_SHARED))}, or the same of valkey"
        params.refuse(ValueError, "storage", rule, scheme + colon + "…" if colon else "text without ://")
    if (lacking := _lacking(scheme, rest)) is not None:
        params.refuse(ValueError, "storage", lacking, f"{scheme}://…")
    if importlib.util.find_spec("redis") is None:
        msg = "storage on Redis or Valkey needs the client: pip install 'resilient-py[redis]'"
        raise ModuleNotFoundError(msg, name="redis")
    return f"{scheme}://{rest}"


def _lacking(scheme: str, rest: str) -> str | None:
    """Return the rule that an address breaks; the client would miss what it lacks at the first call only."""
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        named = all(host.hostname and host.port for host in hosts)
    except ValueError:
        return "must have a host and a numeric port, as in redis://host:6379"
    if scheme in _SEVERAL_HOSTS and not named:
        return f"must name host and port of each, as in {scheme}://first:6379,second:6379"
    if scheme == "redis+sentinel" and not parts.path.strip("/"):
        return "must end in the name of the service, as in redis+sentinel://host:26379/mymaster"
    return None


def open_shared(
    uri: str, timeout: float, *, strategy: str, quotas: Sequence[Quota], ladder: Ladder, lease: int | None
) -> Desk:
    """Return the desk that asks the store at *uri*, and *ladder* where that does not answer."""
    # By name: what is shared stands above the policies, and brings in the client.
    desks = importlib.import_module("resilient.fleet.desks")
    desk: Desk = desks.open_desk(uri, timeout, strategy=strategy, quotas=quotas, ladder=ladder, lease=lease)
    return desk
