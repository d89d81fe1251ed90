"""How the clients of a store are set up, and what their errors mean; the same for threads and tasks."""

from __future__ import annotations

from typing import Any, Final

import redis

__all__ = ["TRUSTED_FOR", "is_answer", "new_connection", "settings_for"]

TRUSTED_FOR: Final = 0.5
"""Seconds since its last use for which a connection is taken to be alive."""


def settings_for(uri: str, retry: Any, timeout: float | None) -> dict[str, Any]:
    """Return the settings of a client that tries once, and gives up a connection after *timeout* seconds."""
    common: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": retry,
        "protocol": 2,  # a round trip less when connecting, and no messages between the answers
    }
    if "+sentinel:" in uri:
        return common | {"sentinel_kwargs": common}
    if "+cluster:" in uri:
        # A slot that moved is noted by itself. To read the whole map again holds up everybody for too long.
        return common | {"reinitialize_steps": 0}
    return common


def is_answer(exc: BaseException) -> bool:
    """Tell whether *exc* is what the server answered, so that the connection is good for the next request.

    Not so where it was the primary and is no more: a new connection finds the one that is.
    """
    return isinstance(exc, redis.ResponseError) and not isinstance(exc, redis.ReadOnlyError)


def new_connection(client: Any) -> Any:
    """Return a connection as *client* would make it, for threads or tasks, not yet connected.

    Not by its pool: that makes a number of them in its life, and counts those it never sees again.
    """
    pool = client.connection_pool
    return pool.connection_class(**pool.connection_kwargs)
