"""A program that ends with a pool open ends at once, without a word, and says goodbye where it can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pool import exiting
from tests.pool.ears import Ears
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
QUICK = 10.0  # seconds that a program has for starting, what it does, and its end, on a busy machine
PYTHON = [sys.executable, "-X", "dev", "-W", "error"]

# How many connections are said goodbye to, at least: those that nobody has.
SYNC = {
    exiting.open_at_the_end: 2,
    exiting.open_in_a_local_variable: 2,
    exiting.lent_at_the_end: 1,
    exiting.in_the_hands_of_a_daemon: 1,
    exiting.with_threads_in_the_line: 0,
    exiting.while_connecting: 2,
    exiting.in_an_exit_handler: 2,
    exiting.used_in_an_exit_handler: 2,
    exiting.with_a_thread_that_goes_on: 2,
    exiting.by_an_exception: 1,  # the last one: it ends the program
}
ASYNC = {
    exiting.in_a_loop: 2,
    exiting.in_a_loop_with_a_task_that_has_one: 1,
    exiting.in_a_loop_with_tasks_in_the_line: 0,
    exiting.in_a_loop_while_connecting: 1,
    exiting.in_a_loop_with_work_to_do: 1,
    exiting.in_two_loops: 4,
    exiting.in_a_loop_by_interrupt: 1,
}
# Each end by itself takes a program, and these take their time to start.
ENDS = [{end: least} for end, least in (SYNC | ASYNC).items()] if SOAK else [SYNC, ASYNC]
ON_SIGTERM = {exiting.terminated: 1, exiting.closed_by_a_signal: 1}


@pytest.fixture
def ears() -> Iterator[Ears]:
    """A server that remembers who said what."""
    with Ears() as server:
        yield server


def run(port: int, *ends: Any, terminate: bool = False) -> None:
    """Run a program that ends so; fail if it says anything, or takes its time."""
    command = [*PYTHON, "-m", "tests.pool.exiting", str(port), *(end.__name__ for end in ends)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as it:
        if terminate:
            assert it.stdout.readline() == "ready\n"
            time.sleep(0.05)  # into the middle of what it does
            it.send_signal(signal.SIGTERM)
        try:
            _, said = it.communicate(timeout=QUICK)
        except subprocess.TimeoutExpired:
            it.kill()
            raise
    assert (it.returncode, said) == (0, "")


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: next(iter(ends)).__name__)
def test_program_ends_in_good_order(ears: Ears, ends: dict[Any, int]) -> None:
    """Nothing is written, nothing hangs, and the server is told of connections that nobody has."""
    run(ears.port, *ends)

    wait_until(lambda: not ears.open, "all connections have ended")
    assert sum(heard.goodbyes == 1 for heard in ears.heard) >= sum(ends.values())
    assert all(heard.goodbyes <= 1 for heard in ears.heard)


@pytest.mark.parametrize("end", ON_SIGTERM, ids=lambda end: end.__name__)
def test_program_ends_in_good_order_on_sigterm(ears: Ears, end: Any) -> None:
    """From the middle of a call, and while a connection is lent."""
    run(ears.port, end, terminate=True)

    wait_until(lambda: not ears.open, "all connections have ended")
    assert sum(heard.goodbyes == 1 for heard in ears.heard) >= ON_SIGTERM[end]


FROZEN = """
import sys
import psycopg
from resilient import ConnectionPool

pool = ConnectionPool(lambda: psycopg.connect(sys.argv[1]), name="orders", timeout=1.0)
with pool.connection() as conn, pool.connection() as another:
    conn.execute("SELECT 1")
    another.execute("SELECT 1")
print("ready", flush=True)
sys.stdin.readline()
try:
    with pool.connection() as conn:
        pass
except Exception:
    pass
"""


def test_program_ends_though_its_server_is_frozen() -> None:
    """It waits for no answer, also not where it cannot say goodbye."""
    with PostgresServer() as server:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [*PYTHON, "-c", FROZEN, server.url]
        with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as it:
            assert it.stdout.readline() == "ready\n"
            server.pause()
            _, said = it.communicate("go\n", timeout=QUICK)
        server.resume()

    assert (it.returncode, said) == (0, "")


def test_program_ends_though_closing_hangs() -> None:
    """What hangs is somebody's `close`: it gets its time, and no more."""
    hangs = """
import time
from resilient import ConnectionPool

pool = ConnectionPool(object, name="p", close=lambda conn: time.sleep(3600), check_timeout=0.2)
with pool.connection():
    pass
"""
    done = subprocess.run(
        [*PYTHON, "-c", hangs], cwd=ROOT, capture_output=True, text=True, timeout=QUICK, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
