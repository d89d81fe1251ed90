"""What every test gets: real servers on request, and a check that it left nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from resilient.engine import living
from tests.support.alone import AloneLast
from tests.support.naming import ADDRESS
from tests.support.valkey import ValkeyServer

# How `make test` shares the tests. These measure how long something takes, or how much gets done, and are
# busy: they run one after another when all others are done.
_ALONE = (
    "tests/incidents/test_a[47]_demo.py",
    "tests/incidents/test_d9_demo.py",
    "tests/incidents/test_d9_overload.py",
)
# These measure as well, and wait for most of their time: they get on with one another, and begin together.
_FIRST = (
    "tests/incidents/test_a[2568]_demo.py",
    "tests/incidents/test_b1_demo.py",
    "tests/incidents/test_d7_fleet.py",
    "tests/fleet/test_outages.py",
    "tests/fleet/test_failover.py",
    "tests/faults/test_state_storage.py",
    "tests/test_bench.py",  # takes long, and would be among the last, when nobody is left to work beside it
)
# All else may run beside anything, so its limits of time are generous.

# gRPC, once it is loaded, looks after its threads whenever its process forks, also where the child becomes
# another program at once: psql, say, has ended of what they left behind. No test forks and goes on with gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A task or thread that is on its way out gets this long to be gone, in seconds.
_GRACE = 0.5

# The machine may be slow and shared: how long an example takes says nothing about the code.
_ANY_PACE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", _ANY_PACE, derandomize=True, max_examples=60, stateful_step_count=40)
settings.register_profile("deep", _ANY_PACE, max_examples=2_000, stateful_step_count=100, print_blob=True)
settings.load_profile(os.environ.get("RESILIENT_HYPOTHESIS", "ci"))


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Refuse names that differ from process to process: these share the tests by name."""
    for item in items:
        if ADDRESS.search(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid}: an address; write ids=tests.support.naming.named")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> AloneLast:
    """Say which tests get on with others."""
    return AloneLast(config, log, _FIRST, _ALONE)


@pytest.fixture(scope="module", autouse=True)
def _nobody_to_measure() -> None:
    """Have the tests of a module collect metrics of its own policies, not of those that others keep."""
    living._places.clear()
    living._sweep_at = living._FEW


@pytest.fixture(scope="module", autouse=True)
def _collected_so_far() -> None:
    """Exempt what imports and earlier modules made from garbage collection, which then costs next to nothing.

    `nothing_left_behind` collects after every test: some 20 ms without this, and with web frameworks in the
    process more than twice as much, 5,000 tests long.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to be stopped, killed or frozen at will."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyServer]:
    """One Valkey for all tests that leave it running; use keys of your own."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, _no_thread_left_behind: None) -> None:
    """Fail a test that leaves a task pending, a thread running or an asyncio complaint.

    Exceptions in threads and in finalizers, files left open and coroutines never awaited are caught by pytest
    itself, and are failures because warnings are errors.
    """
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_no_task_left_behind")


@pytest.fixture
def _no_thread_left_behind() -> Iterator[None]:
    # The first fixture set up is the last one torn down: the test's loop, and its threads, are gone by then.
    threads_before = set(threading.enumerate())
    complaints = _Complaints()
    logger = logging.getLogger("asyncio")
    logger.addHandler(complaints)
    yield
    # Finalizers run now, so that the blame falls on the test that earned it.
    gc.collect()
    logger.removeHandler(complaints)
    assert not complaints.messages, "asyncio complained"
    assert not _threads_still_running(threads_before), "the test left threads behind"


@pytest.fixture
async def _no_task_left_behind() -> AsyncIterator[None]:
    yield
    # Set up before the test's own fixtures, this ends after them: what they clean up is gone by now.
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=_GRACE)
    assert not tasks, "the test left tasks pending"


# It reads from a pipe that another loop has read empty; grpc#25364. It goes on.
_OF_GRPC = "PollerCompletionQueue._handle_events"


class _Complaints(logging.Handler):
    """Collect what asyncio can only log, such as an exception nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _OF_GRPC not in message:
            self.messages.append(message)


def _threads_still_running(before: set[threading.Thread]) -> list[threading.Thread]:
    give_up_at = time.monotonic() + _GRACE
    new = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in new:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    return [thread for thread in new if thread.is_alive()]
