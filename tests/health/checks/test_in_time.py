"""A check that `Health` gives less time than its own ends in that, and still says what it has waited for."""

from __future__ import annotations

import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from tests.health.checks.servers import Answering

from resilient import ConnectionPool, deadline
from resilient.health import Health, Status
from resilient.health.checks import Database, HTTPEndpoint, RedisServer, TLSCertificate

SIX_TENTHS = r"within 0\.(?:2\d+|3|5\d+|6) s"  # of half a second, or of a whole one
PATIENT = 20.0
LONG = 60.0  # seconds: what the checks would take


@pytest.fixture
def silent() -> Iterator[Answering]:
    """A server that accepts, and says nothing."""

    def wait(_: socket.socket) -> None:
        server.over.wait(30.0)

    with Answering(wait) as server:
        yield server


CHECKS: dict[str, Callable[[int], Any]] = {
    "http": lambda port: HTTPEndpoint(f"http://127.0.0.1:{port}", timeout=LONG),
    "tls": lambda port: TLSCertificate("127.0.0.1", port, timeout=LONG),
    "redis": lambda port: RedisServer(redis.Redis(port=port), timeout=LONG),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_deadline_of_the_caller_holds(silent: Answering, kind: str) -> None:
    """Most of what is left is the check's."""
    check = CHECKS[kind](silent.port)
    begun = time.monotonic()
    with deadline(0.2):
        finding = check()
    assert time.monotonic() - begun < 5.0
    assert finding.status is Status.FAIL
    assert "within 0.12 s" in finding.output


@pytest.mark.parametrize("kind", CHECKS)
def test_health_is_told_what_was_waited_for(silent: Answering, kind: str) -> None:
    """And not only that the time was up."""
    health = Health("shop", timeout=0.5)
    health.add(CHECKS[kind](silent.port), name="it")
    output = health.report(within=PATIENT).result("it").output
    health.close()
    assert "no answer" in output or "does not answer" in output
    assert re.search(SIX_TENTHS, output)


async def test_asynchronous_ones_as_well(silent: Answering) -> None:
    """A client of asyncio, in the loop that asks."""
    async with redis.asyncio.Redis(port=silent.port) as client:
        health = Health("shop", timeout=0.5)
        health.add(RedisServer(client, timeout=LONG), name="it")
        output = (await health.areport(within=PATIENT)).result("it").output
        health.close()
    assert re.match(f"no answer {SIX_TENTHS}", output)


def test_borrowers_are_named_in_time() -> None:
    """Who has the connections is told by the report, with the default timeouts of both."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(":memory:", check_same_thread=False)

    with ConnectionPool(connect, name="orders", max_size=1) as pool:
        health = Health("shop")
        health.add(Database(pool))
        with pool.connection():
            result = health.report(within=PATIENT).result("database")
        health.close()
    assert result.status is Status.WARN
    assert re.match(f"no connection came free {SIX_TENTHS}", result.output)
    assert "test_in_time.py" in result.output
