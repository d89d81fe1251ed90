"""What the stress tests share."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
from tests.stress.signals import Interrupter, interrupting


@pytest.fixture
def restless() -> Iterator[None]:
    """Let threads take turns every microsecond: races that are rare become common."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody who waits look again by itself: that makes good for a wake-up that was lost."""
    monkeypatch.setattr("resilient.engine.waiting._LOOK_AGAIN", 3_600.0)


@pytest.fixture
def threads_that_leave_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have idle threads end at once: hundreds that end in ten seconds would be in the way of other tests."""
    monkeypatch.setattr("resilient.engine.workers._IDLE_SECONDS", 0.1)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What dies in here dies because nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """A handler in place of SIGALRM's, and a count of how often it struck."""
    with interrupting() as made:
        yield made
