"""Incidents A2 and E4, for real: the carts' Valkey is killed and replaced, with all that protects them.

`make soak` plays them in full, and to the shop as first written, too.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from examples.shop.figures import Run
from examples.shop.incident import Check
from examples.shop.incidents.lost_cart import BACK, KILLED, REPLACED, LostCart
from tests.incidents.playing import Demo, assert_sent_alike, demo_of, judged, played

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(150)]

in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="a minute: make soak")
HURRY = {"warm_up": 0.5, "calm": 0.5, "onset": 2.0, "recovery": 1.2, "fault": 5.4}
PROMISES = ("few errors", "in time", "soon back", "left alone", "nothing lost", "own carts")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The protected shop, in a hurry."""
    incident = LostCart()
    [_, protected] = incident.versions
    settings, logs = replace(incident.defaults, **HURRY), tmp_path_factory.mktemp("logs")
    return played(incident, protected, settings, logs)


@pytest.fixture(scope="module")
def checks(run: Run) -> dict[str, Check]:
    """What came of the promises about it."""
    incident = LostCart()
    settings = replace(incident.defaults, **HURRY)
    _, _, *promised = judged(incident, settings, run)
    return dict(zip(PROMISES, promised, strict=True))


demo = demo_of("a2", within=140)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(checks: dict[str, Check], promise: str) -> None:
    """Under load, from the kill to the end."""
    check = checks[promise]
    assert check.held, f"{check.promise}: {check.measured}"


def test_store_was_killed_and_replaced(run: Run) -> None:
    """Or the promises would be easy to keep."""
    [killed], [back], [promoted], [replaced] = (
        run.noted(what) for what in (KILLED, BACK, "promoted", REPLACED)
    )

    assert killed.at < back.at < promoted.at < replaced.at
    assert killed.told["port"] == replaced.told["port"] != promoted.told["port"]


def test_customers_are_told_the_truth_while_the_store_is_away(run: Run) -> None:
    """What they see is the replica's, and what they put in is noted; who buys waits for the primary."""
    [killed], [starting] = run.noted(KILLED), run.noted("starting")
    answers = Counter(
        (note.told["did"], note.told["outcome"])
        for note in run.noted("cart")
        if killed.at + 1 < note.at < starting.at
    )

    assert answers["view", "replica"] > 0
    assert answers["add", "noted"] > 0
    assert answers.keys() <= {("view", "replica"), ("view", "memory"), ("add", "noted"), ("take", "noted")}


def test_old_primary_is_left_for_the_new_one(run: Run) -> None:
    """By everybody: the connections to the one that is a replica now are not used again."""
    [replaced] = run.noted(REPLACED)
    later = [note.told["outcome"] for note in run.noted("cart") if note.at > replaced.at + 1]

    assert later
    assert set(later) <= {"primary", "stored"}


@in_full
def test_demo_ends_well_and_says_so(demo: Demo) -> None:
    """On a terminal, in the exit code and in the report."""
    demo.assert_ended_well()


@in_full
def test_bare_shop_hangs_and_then_fails(demo: Demo) -> None:
    """Connections that wait to be made are taken, and who finds none fails; a replica takes no change."""
    notes = [note["told"] for note in demo.runs["bare"]["notes"] if note["what"] == "cart"]
    failed = Counter(note["did"] for note in notes if note["outcome"] == "failed")

    assert max(note["seconds"] for note in notes) >= 5.0
    assert failed.keys() == {"view", "add", "take", "buy"}


@in_full
def test_load_generator_kept_its_pace(demo: Demo) -> None:
    """The same requests for both, each accounted for, and sent when they were due."""
    assert_sent_alike(demo.runs)
