"""Every moment of a question: an interrupt, another question, the collector comes in between.

Whatever it is, the checks are found in the end, none runs beside itself, and nobody who waits is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.health.scripted import AScripted, Scripted
from tests.stress.moments import EVENTS, INTERRUPTIBLE, Moments
from tests.support.waiting import wait_until

from resilient.health import Health, Status
from resilient.health.keeper import Keeper

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
STRIDE = 1 if SOAK else 17  # each so many-th moment
TIMEOUT = 0.02  # seconds, after which what an interrupt has kept from beginning is begun anew

pytestmark = [
    # One that is made and struck before it is assigned, as with `asyncio.run`, is closed by the collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("without_collector", "threads_that_leave_soon"),
    pytest.mark.timeout(600.0 if SOAK else 60.0),
]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is tried elsewhere."""
    caplog.set_level("CRITICAL", "resilient")


def asks(health: Health) -> None:
    with contextlib.suppress(RuntimeError):  # there may be a loop
        health.report(within=0.001)
    health.latest("ready")


def drains(health: Health) -> None:
    health.drain("a signal")
    health.resume()


def interrupts(_health: object) -> None:
    raise KeyboardInterrupt


def collects(_health: Health) -> None:
    gc.collect()


def changes(health: Health) -> None:
    health.add(Scripted(), "new")
    health.remove("new")


ACTS = {asks: EVENTS, drains: EVENTS, interrupts: INTERRUPTIBLE, collects: EVENTS, changes: EVENTS}


def report(health: Health) -> None:
    health.report()


def areport(health: Health) -> None:
    asyncio.run(health.areport())


def latest(health: Health) -> None:
    health.latest()


def start(health: Health) -> None:
    health.start()


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("step", [report, areport, latest, start], ids=lambda step: step.__name__)
def test_whatever_comes_in_between_the_checks_are_found(
    step: Callable[[Any], None], act: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """One function, one coroutine function, one in the background, one that stands on another."""
    if act is interrupts:
        caplog.set_level("CRITICAL", "asyncio")  # it says so of a task that was interrupted
    for moment in itertools.count(0, STRIDE):
        checks: dict[str, Any] = {
            "function": Scripted(),
            "coroutine": AScripted(),
            "background": Scripted(),
            "behind": Scripted(),
        }
        health = _health(checks)
        moments = Moments("health", moment, lambda health=health: act(health), ACTS[act])
        with contextlib.suppress(KeyboardInterrupt), moments:
            step(health)
        try:
            wait_until(lambda health=health: _all_pass(health), "all are found", within=5.0)
        except TimeoutError as exc:
            raise AssertionError(f"struck at {moments.struck}: {health.latest()}") from exc
        assert not health.draining
        assert {one.most for one in checks.values()} == {1}, moments.struck
        assert not any(
            entry.run and entry.run.waiters
            for entry in health._monitor.registry.entries  # type: ignore[attr-defined]
        )
        health.close()
        if not moments.struck:
            break
    assert moment > 15, "too few moments to mean anything"
    gc.collect()


def test_whatever_comes_in_between_the_start_of_a_loop_of_ours_it_can_be_had() -> None:
    """The interrupts are in the steps in which a thread starts, and that may be lost by Python itself."""
    for moment in itertools.count():
        keeper = Keeper("resilient-test-loop")
        moments = Moments(threading.__file__, moment, lambda: interrupts(None), INTERRUPTIBLE)
        # Python's own locks may raise the second one, where they are struck.
        with contextlib.suppress(KeyboardInterrupt, RuntimeError), moments:
            assert keeper.loop
        answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "here"), keeper.loop)
        assert answer.result(5.0) == "here", moments.struck
        keeper.stop()
        if not moments.struck:
            break
    assert moment > 5, "too few moments to mean anything"
    gc.collect()


def _health(checks: dict[str, Any]) -> Health:
    health = Health("shop", timeout=TIMEOUT, ttl=60.0, answer_within=2 * TIMEOUT)
    for name, check in checks.items():
        health.add(
            check,
            name,
            critical=True,
            failed_ttl=0.01,
            interval=60.0 if name == "background" else None,
            depends_on=["function"] if name == "behind" else (),
        )
    return health


def _all_pass(health: Health) -> bool:
    results = health.report().results
    return len(results) == 4 and all(result.status is Status.PASS for result in results)
