"""What the tests of the fleet share: processes that hammer, and a look at what is left on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.support.hammer import Hammers
from tests.support.links import close_connections
from tests.support.valkey import ValkeyServer

from resilient.fleet.link import Link

PROCESSES = 4


@pytest.fixture(scope="session")
def hammers() -> Iterator[Hammers]:
    """As many processes as a small service has, to hammer one limit together."""
    with Hammers(PROCESSES) as hammers:
        yield hammers


@pytest.fixture
def empty_valkey(shared_valkey: ValkeyServer) -> ValkeyServer:
    """The shared server, with nothing on it yet."""
    with shared_valkey.client() as client:
        client.flushall()
    return shared_valkey


@pytest.fixture
async def own_connections(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close the connections of the test's event loop before the loop is closed.

    The test's limiters may be gone by then, and their links with them, so these are held on to.
    """
    held: list[Link] = []
    begin = Link.__init__

    def hold(link: Link, *args: Any) -> None:
        begin(link, *args)
        held.append(link)

    monkeypatch.setattr(Link, "__init__", hold)
    yield
    await close_connections()
