"""Database connections by PEP 249, and sqlite3's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Final

from .base import Driver, Steps, has, is_named, outcome

__all__ = ["DbApi", "Sqlite", "is_lost_state", "sqlstate_of"]

# Connection exceptions; operator intervention; a primary that is one no longer; "disconnect error"; and
# sessions that the server ended because they were idle, or too long, in a transaction.
_LOST_CLASS: Final = "08"
_LOST_STATES: Final = frozenset(
    {"57P01", "57P02", "57P03", "57P04", "57P05", "25006", "25P03", "25P04", "01002"}
)
_STATE_LENGTH: Final = 5

# What PostgreSQL does when a statement prepared on the connection is out of date; which it stays.
_FEATURE_NOT_SUPPORTED: Final = "0A000"
_STALE_PLAN: Final = "RevalidateCachedQuery"

# MySQL and MariaDB: lost, gone, out of step, timed out; shutting down; killed; read-only now.
_LOST_CODES: Final = frozenset({2006, 2013, 2014, 2045, 2055, 4031, 1053, 1927, 1836})
_PREVENTED_BY_OPTION: Final = 1290
_STATUS_IN_TRANSACTION: Final = 1
_STATUS_AUTOCOMMIT: Final = 2

# I/O error, file is corrupt, not a database; and a file that was moved or replaced.
_LOST_FILE: Final = frozenset({10, 11, 26})
_FILE_MOVED: Final = 1032


class DbApi(Driver):
    """Knows connections that have `cursor()`, `commit()` and `rollback()`: MySQL clients and many others.

    Whether a transaction is open most of them do not tell, so it is rolled back whenever one is returned.
    """

    __slots__ = ()

    name: ClassVar[str] = "DB-API"
    transactional: ClassVar[bool] = True
    tells: ClassVar[bool] = False

    def check(self, conn: Any) -> Steps:
        """Ask the server, by `ping()` where there is one, and leave no transaction open."""
        if has(conn, "ping"):
            yield _ping(conn.ping)
            return
        made = conn.cursor()
        cursor = outcome(made, (yield made))
        yield cursor.execute("SELECT 1")
        yield cursor.fetchone()
        yield cursor.close()
        yield conn.rollback()

    def dirty(self, conn: Any) -> bool:
        try:
            return _in_transaction(conn)
        except Exception:  # noqa: BLE001 - closed; each library says so in its own way, and `reset` will
            return True

    def reset(self, conn: Any) -> Steps:
        return self.rollback(conn)

    def commit(self, conn: Any) -> Steps:
        yield conn.commit()

    def rollback(self, conn: Any) -> Steps:
        yield conn.rollback()

    def fatal(self, exc: BaseException) -> bool:
        # "Error": the base of what a library by PEP 249 raises.
        return super().fatal(exc) or (is_named(exc, "Error") and _is_lost(exc))


class Sqlite(DbApi):
    """Knows `sqlite3.Connection`, which is a file and a lock: there is no server to be lost."""

    __slots__ = ()

    name: ClassVar[str] = "sqlite3"
    local: ClassVar[bool] = True
    tells: ClassVar[bool] = True

    def abort(self, conn: Any) -> None:
        with suppress(Exception):  # closed
            conn.interrupt()

    def check(self, conn: Any) -> Steps:
        # It reads nothing of the file: whether that is locked now does not matter.
        yield conn.execute("SELECT 1").close()

    def commit(self, conn: Any) -> Steps:
        if self.at_rest(conn):  # or its borrower closed it, and knew what he did
            yield conn.commit()

    def at_rest(self, conn: Any) -> bool:
        try:
            return conn.in_transaction is not None
        except Exception:  # noqa: BLE001 - sqlite3.ProgrammingError: closed
            return False

    def fatal(self, exc: BaseException) -> bool:
        code = getattr(exc, "sqlite_errorcode", None)
        return isinstance(code, int) and (code == _FILE_MOVED or code & 0xFF in _LOST_FILE)

    def fileno(self, conn: Any) -> None:  # noqa: ARG002 - its files are SQLite's own affair
        return None


def sqlstate_of(exc: BaseException) -> str | None:
    """Return the SQLSTATE that *exc* carries; None if there is none."""
    for name in ("sqlstate", "pgcode"):
        state = getattr(exc, name, None)
        if isinstance(state, str):
            return state
    return None


def is_lost_state(state: str | None, exc: BaseException) -> bool:
    """Tell whether *state*, of *exc*, is one after which a connection is of no more use."""
    if state is None:
        return False
    if state == _FEATURE_NOT_SUPPORTED:
        # Only so can it be told from all else that is not supported: the message comes in many languages.
        place = getattr(getattr(exc, "diag", exc), "source_function", None)
        return _STALE_PLAN in {place, getattr(exc, "server_source_function", None)}
    return state in _LOST_STATES or state.startswith(_LOST_CLASS)


def _is_lost(exc: BaseException) -> bool:
    # Whoever uses a closed connection gets an InterfaceError, MySQL's clients' without a code.
    if is_named(exc, "InterfaceError") or is_lost_state(sqlstate_of(exc), exc):
        return True
    code = exc.args[0] if exc.args else None
    if isinstance(code, int):
        return code in _LOST_CODES or (code == _PREVENTED_BY_OPTION and "read-only" in str(exc))
    return isinstance(code, str) and len(code) == _STATE_LENGTH and is_lost_state(code, exc)  # pyodbc's


def _in_transaction(conn: Any) -> bool:
    """Tell whether a transaction is open, or may be."""
    # Not `autocommit`: there are clients that ask the server for that.
    for name in ("in_transaction", "transaction_in_progress"):
        if hasattr(conn.__class__, name):
            return bool(getattr(conn, name))
    status = getattr(conn, "server_status", None)
    if isinstance(status, int):
        # PyMySQL's is of the last answer without rows: SELECT may have begun a transaction unseen, unless
        # each statement is one of its own.
        return status & (_STATUS_IN_TRANSACTION | _STATUS_AUTOCOMMIT) != _STATUS_AUTOCOMMIT
    return True


def _ping(ping: Callable[..., Any]) -> Any:
    try:
        # Not another connection in the place of this one, without anybody knowing.
        return ping(reconnect=False)
    except TypeError:
        return ping()
