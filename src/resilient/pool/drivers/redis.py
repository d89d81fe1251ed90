"""Connections of redis-py, and of valkey-py, which is made like it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from .base import Driver, Steps, cut, descriptor_in, has, is_named, outcome

__all__ = ["RedisClient", "RedisLink"]


class RedisLink(Driver):
    """Knows `redis.connection.Connection` and its relatives: the order tells which answer is to which.

    A command that was abandoned leaves its answer to whoever reads next (CVE-2023-28858), and so does one
    that timed out. Clients of today disconnect then, older ones do not; such a connection is not used again.
    """

    __slots__ = ()

    name: ClassVar[str] = "redis"

    def close(self, conn: Any) -> Steps:
        yield conn.disconnect()

    def abort(self, conn: Any) -> None:
        for link in self._links(conn):
            cut(partial(_descriptor_of, link))

    def check(self, conn: Any) -> Steps:
        """Send PING, and see that it is this which is answered."""
        yield conn.send_command("PING")
        made = conn.read_response()
        _pong(outcome(made, (yield made)))

    def dirty(self, conn: Any) -> bool:
        return self.at_rest(conn) is False

    def reset(self, conn: Any) -> Steps:
        if self.at_rest(conn) is False:
            raise ConnectionError("returned closed, or with answers that nobody had read")
        yield None

    def at_rest(self, conn: Any) -> bool | None:
        # Its owner reads each answer by hand, and may have left some.
        try:
            return None if conn.is_connected and not _unread(conn) else False
        except Exception:  # noqa: BLE001 - it has ended; each of its parsers says so in its own way
            return False

    def fatal(self, exc: BaseException) -> bool:
        # Their errors are no relatives of Python's of the same name. Who is read-only is a replica by now.
        return super().fatal(exc) or is_named(
            exc, "ConnectionError", "TimeoutError", "ReadOnlyError", "InvalidResponse"
        )

    def fileno(self, conn: Any) -> int | None:
        return next(
            (number for link in self._links(conn) if (number := _descriptor_of(link)) is not None), None
        )

    def _links(self, conn: Any) -> Iterator[Any]:
        yield conn


class RedisClient(RedisLink):
    """Knows `redis.Redis` and `redis.asyncio.Redis`, best made with `single_connection_client=True`.

    Otherwise each has a pool of its own inside. Pipelines and subscriptions have one in any case.
    """

    __slots__ = ()

    def close(self, conn: Any) -> Steps:
        yield conn.aclose() if has(conn, "aclose") else conn.close()

    def check(self, conn: Any) -> Steps:
        """Send PING, and see that it is this which is answered."""
        made = conn.ping()
        _pong(outcome(made, (yield made)))

    def at_rest(self, conn: Any) -> bool | None:
        # A client that lost its connection would make another in the middle of the next borrower's call.
        # Asynchronous ones have none until they are first used; others are closed then, unless they are many.
        link = conn.connection
        lost = (
            not link.is_connected if link is not None else getattr(conn, "_single_connection_client", False)
        )
        return False if lost else None

    def _links(self, conn: Any) -> Iterator[Any]:
        if conn.connection is not None:
            yield conn.connection
        # Not where it was given a pool that others use, too.
        if getattr(conn, "auto_close_connection_pool", False):
            inside = getattr(conn, "connection_pool", None)
            for name in ("_available_connections", "_in_use_connections"):
                yield from tuple(getattr(inside, name, ()))


def _pong(answer: Any) -> None:
    # Clients answer True. An answer of 1, which is equal to that, would be somebody else's.
    if answer is not True and answer not in (b"PONG", "PONG"):
        raise ConnectionError(f"PING was answered {answer!r}: this must have been for somebody else")


def _descriptor_of(link: Any) -> int | None:
    writer = getattr(link, "_writer", None)  # asyncio's
    return descriptor_in(link if writer is None else writer.get_extra_info("socket"))


def _unread(link: Any) -> bool:
    """Tell whether an answer waits to be read, as far as that is known without waiting."""
    reader = getattr(link, "_reader", None)  # asyncio's
    if reader is not None:
        return bool(reader._buffer)  # noqa: SLF001 - as redis-py itself does
    return bool(has(link, "can_read") and link.can_read(0))
