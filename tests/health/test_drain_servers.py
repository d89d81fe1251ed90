"""Real servers told to end: readiness fails at once, requests are served for the delay, then they end."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.health.drained import DELAY
from tests.support import reaper
from tests.support.ports import free_port
from tests.web.servers import eventually, fetch

ROOT = Path(__file__).parents[2]
APPS = "tests.health.drained"
# What a server takes beside the delay on a busy machine, in seconds. gunicorn itself looks once a second.
GRACE = 10.0

_GUNICORN = (
    "-W",
    "ignore",
    "-m",
    "gunicorn",
    "-c",
    "python:tests.health.gunicorn_conf",
    "--no-control-socket",
    "--bind",
    "127.0.0.1:{}",
)
SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("-m", "uvicorn", f"{APPS}:draining_asgi", "--log-level", "warning", "--port", "{}"),
    "gunicorn": (*_GUNICORN, f"{APPS}:wsgi"),
    "gunicorn, threads": (*_GUNICORN, "-k", "gthread", "--threads", "2", f"{APPS}:wsgi"),
    "gunicorn, ASGI": (*_GUNICORN, "-k", "asgi", f"{APPS}:asgi"),
    "gunicorn, uvicorn": (*_GUNICORN, "-k", "uvicorn.workers.UvicornWorker", f"{APPS}:asgi"),
    "no web server": ("-m", APPS, "{}"),
}
# uvicorn and Python's default end by the signal itself: 143 for a shell, and for Kubernetes.
BY_SIGNAL = {"uvicorn", "no web server"}
WORK = "/work"


@dataclass
class Server:
    """A server in a process of its own."""

    name: str
    log: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        command = [sys.executable, *(word.format(self.port) for word in SERVERS[self.name])]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        reaper.hold(self.process.pid, self.log.parent)

    def status(self, path: str) -> int | None:
        """Return the status of an answer; None where there is none."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return fetch(self.port, path)[0]
        return None

    def all(self) -> tuple[int | None, ...]:
        """Return what readiness, liveness and a request come to."""
        return (
            self.status("/readyz"),
            self.status("/livez"),
            self.status(WORK if "no web" in self.name else "/"),
        )

    def wait_until_ready(self) -> None:
        """Wait until it serves; fail where it ends instead."""
        ended = self.process.poll
        assert eventually(lambda: self.status("/readyz") == 200 or ended() is not None, 30), self.name
        assert ended() is None, self.log.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        reaper.drop(self.process.pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def started(name: str) -> Server:
        servers.append(Server(name, tmp_path / f"{name}.log"))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


@dataclass
class Seen:
    """What came of SIGTERM."""

    before: tuple[int | None, ...]
    draining: tuple[int | None, ...]
    too_slow: bool
    took: float
    code: int


def told_to_end(server: Server) -> Seen:
    """Send SIGTERM, and look at what the server does until it has ended."""
    before, begun = server.all(), time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.status("/readyz") != 200)
    draining = server.all()
    too_slow = time.monotonic() - begun > 0.9 * DELAY
    code = server.process.wait(DELAY + GRACE)
    return Seen(before, draining, too_slow, time.monotonic() - begun, code)


def test_every_server_drains(start: Callable[[str], Server]) -> None:
    """All of them together, as they do nothing but wait."""
    servers = [start(name) for name in SERVERS]
    for server in servers:
        server.wait_until_ready()
    with ThreadPoolExecutor(len(servers)) as pool:
        seen = dict(zip(SERVERS, pool.map(told_to_end, servers), strict=True))

    told = "\n".join(f"{server.name}: {seen[server.name]}\n{server.log.read_text()}" for server in servers)
    for name, one in seen.items():
        # Where no web server works, the request was for a report of everything.
        request = 503 if name == "no web server" else 200
        assert one.before == (200, 200, 200), told
        # On a machine so slow that the delay is over by now, there is nothing to see.
        assert one.draining == (503, 200, request) or one.too_slow, told
        assert DELAY <= one.took < DELAY + GRACE, told
        assert one.code == (-signal.SIGTERM if name in BY_SIGNAL else 0), told


@pytest.mark.parametrize(("name", "second"), [("uvicorn", signal.SIGINT), ("gunicorn", signal.SIGQUIT)])
def test_second_signal_ends_it_at_once(
    name: str, second: signal.Signals, start: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody at a terminal, or an orchestrator that is out of patience."""
    monkeypatch.setenv("RESILIENT_TEST_DELAY", "60")
    server = start(name)
    server.wait_until_ready()

    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: server.status("/readyz") == 503)
    server.process.send_signal(second)

    server.process.wait(20)
