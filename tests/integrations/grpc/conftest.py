"""What the tests of clients share: one server for each file."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.integrations.grpc.client_rig import Backend, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Backend]:
    """One server, of threads, for all tests of a file."""
    with serving(threads=32) as backend:
        yield backend


@pytest.fixture
def backend(server: Backend) -> Iterator[Backend]:
    """The server, as if it were new."""
    server.told.clear()
    server.calls.clear()
    server.hold = threading.Event()
    server.begun = threading.Semaphore(0)
    server.cancelled = threading.Semaphore(0)
    yield server
    server.hold.set()
