"""Connections whose exchanges end at a given time, however the server spreads its answer over it.

The timeout of a socket is one for each read. A server that sends a byte now and then never runs into it.
"""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["bound"]


class _BoundedSocket:
    """A socket that neither sends nor receives after *due*; everything else is the socket's."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._timeout: float | None = sock.gettimeout()
        self.due = math.inf

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def recv(self, *args: Any) -> Any:
        self._limit()
        return self._sock.recv(*args)

    def recv_into(self, *args: Any) -> Any:
        self._limit()
        return self._sock.recv_into(*args)

    def sendall(self, *args: Any) -> Any:
        self._limit()
        return self._sock.sendall(*args)

    def _limit(self) -> None:
        left = self.due - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("the time for this exchange is over")
        timeout = self._timeout
        self._sock.settimeout(timeout if timeout is not None and timeout < left else left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Bounded:
    """Mixed into a connection class of redis-py."""

    _sock: Any

    def _connect(self) -> Any:
        return _BoundedSocket(super()._connect())  # type: ignore[misc]

    def end_by(self, due: float) -> None:
        """Let whatever is sent and received from now on end by *due*."""
        if self._sock is not None:
            self._sock.due = due


def bound(pool: Any) -> None:
    """Have the connections that *pool* makes know `end_by`."""
    if not issubclass(pool.connection_class, _Bounded):
        kind = pool.connection_class
        pool.connection_class = type(f"Bounded{kind.__name__}", (_Bounded, kind), {})
