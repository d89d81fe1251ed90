"""Connections to PostgreSQL: psycopg 3 and asyncpg, and psycopg 2."""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter
from typing import Any, ClassVar, Final

from .base import Driver, Steps, descriptor_in, evidence, is_named
from .dbapi import is_lost_state, sqlstate_of

__all__ = ["Asyncpg", "Psycopg", "Psycopg2"]

# libpq's PGTransactionStatusType.
_IDLE: Final = 0
_ACTIVE: Final = 1
_IN_TRANSACTION: Final = 2
_IN_ERROR: Final = 3

# In one call, because every return asks for it. The properties behind some would make it five times as slow.
_state_of: Final = attrgetter(
    "pgconn.transaction_status",
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "row_factory",
    "cursor_factory",
)
_SETTERS: Final = ("set_autocommit", "set_isolation_level", "set_read_only", "set_deferrable")


class _Libpq(Driver):
    """What both psycopgs have in common: the status of the transaction is known without asking the server."""

    __slots__ = ()

    transactional: ClassVar[bool] = True

    def _status(self, conn: Any) -> int:
        """Return the status of its transaction; some other number if it is closed."""
        raise NotImplementedError

    def _was_closed(self, conn: Any) -> bool:
        """Tell whether its borrower closed it, other than by losing it."""
        raise NotImplementedError

    def dirty(self, conn: Any) -> bool:
        return self._status(conn) != _IDLE

    def reset(self, conn: Any) -> Steps:
        yield from self.rollback(conn)
        if self._status(conn) != _IDLE:
            raise ConnectionError("returned closed, or in the middle of a command")

    def commit(self, conn: Any) -> Steps:
        # Where the connection was lost this fails: nothing was committed. Who closed it knew what he did.
        if not self._was_closed(conn):
            yield conn.commit()

    def rollback(self, conn: Any) -> Steps:
        # In the middle of a command it would wait for the end of that.
        if self._status(conn) in {_IN_TRANSACTION, _IN_ERROR}:
            yield conn.rollback()

    def at_rest(self, conn: Any) -> bool:
        return self._status(conn) in {_IDLE, _IN_TRANSACTION, _IN_ERROR}

    def fatal(self, exc: BaseException) -> bool:
        return is_lost_state(sqlstate_of(exc), exc)


class Psycopg(_Libpq):
    """Knows `psycopg.Connection` and `psycopg.AsyncConnection`.

    What a borrower changes of autocommit, isolation level, read-only, deferrable and the factories of rows
    and cursors is brought back. What it sets on the server for the session (SET, LISTEN, advisory locks,
    temporary tables) stays: to undo that takes a round trip, so that is left to a pool's own `reset`.
    """

    __slots__ = ()

    name: ClassVar[str] = "psycopg"

    def note(self, conn: Any) -> None:
        # Of a connection that nobody closed it warns, unless it is a pool's, which is known by this.
        if not hasattr(conn, "_pool"):
            conn._pool = None  # noqa: SLF001
        with suppress(AttributeError):  # of a psycopg whose attributes are called something else
            if _noted(conn) is None:
                conn._resilient_note = (_IDLE, *_state_of(conn)[1:])  # noqa: SLF001

    def check(self, conn: Any) -> Steps:
        """Send an empty query: the shortest round trip there is, and it needs no transaction."""
        autocommit = conn.autocommit
        if not autocommit:
            yield conn.set_autocommit(True)
        yield conn.execute("", prepare=False)
        # Not where that failed: what is dead need not be set right.
        if not autocommit:
            yield conn.set_autocommit(False)

    def dirty(self, conn: Any) -> bool:
        try:
            changed: bool = _state_of(conn) != conn._resilient_note  # noqa: SLF001
        except AttributeError:
            return super().dirty(conn)
        return changed

    def reset(self, conn: Any) -> Steps:
        yield from super().reset(conn)
        noted = _noted(conn)
        if noted is None:
            return
        for setter, now, before in zip(_SETTERS, _state_of(conn)[1:5], noted[1:5], strict=True):
            if now != before:
                yield getattr(conn, setter)(before)
        conn.row_factory, conn.cursor_factory = noted[5:]

    def fileno(self, conn: Any) -> int | None:
        # Not `conn.fileno()`, which is the same in Python: this cannot be interrupted.
        with suppress(Exception):  # psycopg.OperationalError: closed
            number = conn.pgconn.socket
            return number if isinstance(number, int) and number >= 0 else None
        return None

    def _status(self, conn: Any) -> int:
        return int(conn.pgconn.transaction_status)

    def _was_closed(self, conn: Any) -> bool:
        return bool(conn.closed and not conn.broken)


class Psycopg2(_Libpq):
    """Knows `psycopg2.extensions.connection`."""

    __slots__ = ()

    name: ClassVar[str] = "psycopg2"

    def check(self, conn: Any) -> Steps:
        """Send a query, without a transaction around it."""
        autocommit = conn.autocommit
        if not autocommit:
            conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1")
        if not autocommit:
            conn.autocommit = False
        yield None

    def _status(self, conn: Any) -> int:
        return -1 if conn.closed else int(conn.get_transaction_status())

    def _was_closed(self, conn: Any) -> bool:
        return bool(conn.closed == 1)


class Asyncpg(Driver):
    """Knows `asyncpg.Connection`. Its transactions are blocks; what is still open was begun by hand."""

    __slots__ = ()

    name: ClassVar[str] = "asyncpg"
    transactional: ClassVar[bool] = True

    def check(self, conn: Any) -> Steps:
        """Send a query; not an empty one, of which asyncpg does not understand the answer."""
        yield conn.execute("SELECT 1")

    def dirty(self, conn: Any) -> bool:
        return bool(conn.is_closed() or conn.is_in_transaction())

    def reset(self, conn: Any) -> Steps:
        if conn.is_closed():
            raise ConnectionError("returned closed")
        yield from self.rollback(conn)

    def commit(self, conn: Any) -> Steps:
        yield from self._end(conn, "COMMIT")

    def rollback(self, conn: Any) -> Steps:
        yield from self._end(conn, "ROLLBACK")

    def _end(self, conn: Any, statement: str) -> Steps:
        if not conn.is_closed() and conn.is_in_transaction():
            # Or the next one to begin a transaction would be told that there is one.
            conn._top_xact = None  # noqa: SLF001
            yield conn.execute(statement)

    def broken(self, conn: Any, exc: BaseException) -> bool:
        # It hears when a command is cancelled, but not when the coroutine is closed or the loop stopped.
        return super().broken(conn, exc) or any(
            not isinstance(one, Exception | BaseExceptionGroup) and not is_named(one, "CancelledError")
            for one in evidence(exc)
        )

    def at_rest(self, conn: Any) -> bool:
        if conn.is_closed():
            return False
        # After a command was cancelled, the server is asked to cancel it, too, which takes a while.
        return not conn._protocol._is_cancelling()  # noqa: SLF001

    def fatal(self, exc: BaseException) -> bool:
        return is_lost_state(sqlstate_of(exc), exc)

    def fileno(self, conn: Any) -> int | None:
        transport = getattr(conn, "_transport", None)
        return None if transport is None else descriptor_in(transport.get_extra_info("socket"))


def _noted(conn: Any) -> tuple[Any, ...] | None:
    return getattr(conn, "_resilient_note", None)
