"""A process that is forked has connections of its own, and not one byte of it is seen on its parent's."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pool.ears import Ears
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
TIMEOUT = 600.0 if os.environ.get("RESILIENT_SOAK") else 50.0
# Python warns of what is done here on purpose.
PYTHON = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning"]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.timeout(TIMEOUT + 10.0),
]


@pytest.fixture
def ears() -> Iterator[Ears]:
    """A server that remembers who said what."""
    with Ears() as server:
        yield server


def fork(moment: str, where: object) -> int:
    """Do what forks in a process of its own, and fail as that does; return its id."""
    command = [*PYTHON, "-m", "tests.pool.forking", moment, str(where)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as it:
        try:
            said, _ = it.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            it.kill()
            raise
    assert (it.returncode, said) == (0, "")
    return it.pid


def assert_nobody_spoke_for_another(ears: Ears, parent: int) -> None:
    """Fail unless each connection had one speaker, and the parent ended all of its own in good order."""
    wait_until(lambda: not ears.open, "all connections have ended")
    assert all(len(heard.speakers) == 1 for heard in ears.heard), [heard.speakers for heard in ears.heard]
    assert ears.of(parent)
    for heard in ears.of(parent):
        assert heard.goodbyes == 1
        assert heard.lines[-1].endswith("goodbye")


@pytest.mark.parametrize("moment", ["load", "locks", "loop", "processes"])
def test_no_byte_of_a_child_is_on_its_parents_connections(ears: Ears, moment: str) -> None:
    """It uses the pool, what it inherited, and ends: in threads' midst, with locks held, in an event loop."""
    parent = fork(moment, ears.port)

    assert_nobody_spoke_for_another(ears, parent)
    assert len(ears.heard) > len(ears.of(parent)), "no child had a connection"


def test_children_leave_the_parents_sessions_alone_on_postgres() -> None:
    """The sessions at the server stay the same, and go on answering."""
    with PostgresServer() as server:
        fork("postgres", server.url)
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        wait_until(lambda: server.query(sessions) == "1", "all sessions but the one that asks have ended")


def test_children_leave_the_parents_connections_alone_on_valkey(shared_valkey: ValkeyServer) -> None:
    """Answers come to whoever asked."""
    fork("valkey", shared_valkey.url)
    with shared_valkey.client() as client:
        assert client.ping()


def test_workers_of_gunicorn_have_connections_of_their_own(ears: Ears) -> None:
    """The application is loaded before the fork, and has borrowed from its pool by then."""
    pytest.importorskip("gunicorn")
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", "--preload", "--workers=3", f"--bind=127.0.0.1:{port}",
        "--log-level=warning", "--graceful-timeout=5", "tests.pool.forking:application",
    ]  # fmt: skip
    environment = {**os.environ, "EARS": str(ears.port)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_until(lambda: answer(port) is not None, "gunicorn answers")
            workers = {answer(port) for _ in range(60)}
        finally:
            server.terminate()
            _, said = server.communicate(timeout=TIMEOUT)

    assert (server.returncode, said) == (0, "")
    assert_nobody_spoke_for_another(ears, server.pid)
    assert workers
    assert server.pid not in workers
    for worker in workers:
        assert len(ears.of(worker)) == 1
        assert ears.of(worker)[0].goodbyes == 1


def answer(port: int) -> Any:
    """Return the id of the process that answers a request; None if there is none yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5.0) as response:
            return int(response.read())
    except OSError:
        return None
