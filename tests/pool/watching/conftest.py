"""The servers behind the pools, and a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.pool.watching.libraries import Library
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

from resilient.engine import workers
from resilient.pool.watching import watched


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all these tests, which leave it running."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def library(
    request: pytest.FixtureRequest, postgres: PostgresServer, shared_valkey: ValkeyServer
) -> AsyncIterator[Library]:
    """The open pool of the library that the test is for."""
    made: Library = request.param(postgres.url, shared_valkey.url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def _rounds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no round made but by the test: one in the middle of it would be told apart by nobody."""
    monkeypatch.setattr(watched, "attend", lambda _party: None)


@pytest.fixture(autouse=True)
def _short_idleness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the threads of checks go at once."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.01)
