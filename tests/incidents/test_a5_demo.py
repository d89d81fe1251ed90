"""Incident A5, for real: a service leaks, its health says so, and then it is killed and comes back.

In a hurry that run alone; `make soak` has the demo play all of it.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from examples.shop.figures import Run
from examples.shop.incidents.growing import HEALTH, LIMIT, SERVICE, GrowingService
from examples.shop.orchestrator import ENDED, KILLED, MEMORY, STARTED
from tests.incidents.playing import Demo, demo_of, judged, played

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(120)]

in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="most of a minute: make soak")
GROWING = GrowingService()
SETTINGS = replace(GROWING.defaults, warm_up=0.5, fault=13.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shop whose recommendations leak, and whose health is looked at."""
    [_, watched, _] = GROWING.versions
    return played(GROWING, watched, SETTINGS, tmp_path_factory.mktemp("logs"))


demo = demo_of("a5", within=110)


def test_leak_is_told_before_the_kill(run: Run) -> None:
    """The demo's own verdicts about it: how long before, and how fast it grows."""
    _, *told, _, _, _ = judged(GROWING, SETTINGS, run)

    assert len(told) == 2
    assert [check for check in told if not check.held] == []


def test_leaking_service_is_killed_for_its_memory(run: Run) -> None:
    """It alone, at the limit, with SIGKILL; and it is started again."""
    killed, ended = run.noted(KILLED)[0], run.noted(ENDED)[0]

    assert {note.told["of"] for note in run.noted(KILLED)} == {SERVICE}
    assert (killed.told["why"], ended.told["code"]) == (MEMORY, -9)
    assert LIMIT < killed.told["mb"] < 1.5 * LIMIT
    assert {"of": SERVICE, "number": 2} in [note.told for note in run.noted(STARTED)]


def test_warning_takes_nobody_out(run: Run) -> None:
    """It is a 200, and there was no warning while there was nothing to warn of."""
    [killed, *_] = run.noted(KILLED)
    said = [note.told for note in run.noted(HEALTH) if note.at < killed.at]

    assert said[0]["status"] == "pass"
    assert said[-1]["status"] == "warn"
    # Others may not have been heard of in time, on a busy machine; this has not to do with it.
    assert Counter(told["http"] for told in said).most_common(1)[0][0] == 200


@in_full
def test_demo_ends_well_and_says_so(demo: Demo) -> None:
    """On a terminal, in the exit code and in the report."""
    demo.assert_ended_well()


@in_full
def test_bare_shop_is_killed_again_and_again(demo: Demo) -> None:
    """And the protected one never comes near its limit."""
    killed = {name: [n for n in run["notes"] if n["what"] == KILLED] for name, run in demo.runs.items()}
    taken = [note["told"]["mb"] for note in demo.runs["protected"]["notes"] if note["what"] == MEMORY]

    assert len(killed["bare"]) >= 2
    assert not killed["protected"]
    assert max(taken) < 0.8 * LIMIT
