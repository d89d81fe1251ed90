"""What the tests of the fleet share: processes that hammer, and a look at what is left on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from tests.fleet.leftovers import Keep
from tests.support.cluster import ClusterFleet
from tests.support.hammer import Hammers
from tests.support.valkey import ValkeyServer

from resilient import RateLimiter

PROCESSES = 4


@pytest.fixture(scope="session")
def hammers() -> Iterator[Hammers]:
    """As many processes as a small service has, to hammer one limit together."""
    with Hammers(PROCESSES) as hammers:
        yield hammers


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterFleet]:
    """Three nodes that share the slots."""
    with ClusterFleet() as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def limiters_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every limiter that the test makes, also those it never gave a name."""
    begin = RateLimiter.__init__
    with ExitStack() as made:

        def begin_and_note(limiter: RateLimiter, *args: Any, **options: Any) -> None:
            begin(limiter, *args, **options)
            made.callback(limiter.close)

        monkeypatch.setattr(RateLimiter, "__init__", begin_and_note)
        yield


@pytest.fixture
def empty_valkey(shared_valkey: ValkeyServer) -> ValkeyServer:
    """The shared server, with nothing on it yet."""
    with shared_valkey.client() as client:
        client.flushall()
    return shared_valkey


@pytest.fixture
async def keep() -> AsyncIterator[Keep]:
    """Have a limiter closed before the test's event loop is."""
    async with AsyncExitStack() as kept:

        def keep(limiter: RateLimiter) -> RateLimiter:
            kept.push_async_callback(limiter.aclose)
            return limiter

        yield keep
