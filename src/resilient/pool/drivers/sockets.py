"""Sockets, plain and with TLS, and asyncio's streams."""

from __future__ import annotations

import socket
import sys
from typing import Any, ClassVar

from .base import Driver, Steps, descriptor_in, is_named

__all__ = ["Plain", "Streams", "Tls"]

_OUT_OF_STEP = "a connection has an answer waiting that nobody asked for"
_ENDED = "a connection was ended by the other side"


class Plain(Driver):
    """Knows `socket.socket`. What goes over it, it does not know: only that nobody should speak unasked."""

    __slots__ = ()

    name: ClassVar[str] = "socket"

    def check(self, conn: Any) -> Steps:
        """See whether anything came in, without waiting for it."""
        fault = self._fault(conn)
        if fault is not None:
            raise ConnectionError(fault)
        yield None

    def at_rest(self, conn: Any) -> bool | None:
        try:
            return None if self._fault(conn) is None else False
        except (OSError, ValueError):  # closed
            return False

    def fatal(self, exc: BaseException) -> bool:
        # An answer too long for the reader's buffer is still in there.
        return super().fatal(exc) or isinstance(exc, OSError) or is_named(exc, "LimitOverrunError")

    def _fault(self, conn: Any) -> str | None:
        """Return what is wrong with it; None if nothing came in."""
        patience = conn.gettimeout()
        # With a timeout, Python waits for something to come in before it asks the system, whatever the flags.
        conn.settimeout(0.0)
        try:
            return _OUT_OF_STEP if self._peek(conn) else _ENDED
        except BlockingIOError:
            return None
        finally:
            conn.settimeout(patience)

    def _peek(self, conn: Any) -> Any:
        return conn.recv(1, socket.MSG_PEEK)


class Tls(Plain):
    """Knows `ssl.SSLSocket`."""

    __slots__ = ()

    name: ClassVar[str] = "ssl"

    def _peek(self, conn: Any) -> Any:
        # What came in may be no more than a session ticket, so it has to be read. An answer gets lost so, but
        # it had got into the wrong place already.
        try:
            return conn.recv(1)
        except sys.modules["ssl"].SSLWantReadError:
            raise BlockingIOError from None


class Streams(Plain):
    """Knows what `asyncio.open_connection` returns: a reader and a writer."""

    __slots__ = ()

    name: ClassVar[str] = "streams"

    def close(self, conn: Any) -> Steps:
        writer = conn[1]
        writer.close()
        yield writer.wait_closed()

    def fileno(self, conn: Any) -> int | None:
        return descriptor_in(conn[1].get_extra_info("socket"))

    def _fault(self, conn: Any) -> str | None:
        reader, writer = conn
        if writer.is_closing() or reader.at_eof() or reader.exception() is not None:
            return _ENDED
        return _OUT_OF_STEP if reader._buffer else None  # noqa: SLF001 - there is no other way to see it
