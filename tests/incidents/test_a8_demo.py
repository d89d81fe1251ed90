"""Incident A8, for real and short: the checkout pays at two services, and one is in every sort of trouble.

`make soak` plays it in full, and to the shop as first written, too.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from examples.shop.figures import Run
from examples.shop.incident import Check
from examples.shop.incidents.failing_grpc import (
    CHECKOUT,
    FROZEN,
    HANDSHAKE,
    IN_BOOK,
    REFUSED,
    SICK,
    VICTIM,
    FailingGrpc,
)
from examples.shop.till import STATS, TOLD
from tests.incidents.playing import Demo, assert_sent_alike, demo_of, judged, played

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(150)]

in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="most of a minute: make soak")
HURRY = {"warm_up": 0.4, "calm": 0.5, "fault": 2.4, "onset": 1.6, "recovery": 0.4}
PROMISES = ("few errors", "in time", "charged once", "told")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The protected shop, in a hurry."""
    incident = FailingGrpc()
    [_, protected] = incident.versions
    settings, logs = replace(incident.defaults, **HURRY), tmp_path_factory.mktemp("logs")
    return played(incident, protected, settings, logs)


@pytest.fixture(scope="module")
def checks(run: Run) -> dict[str, Check]:
    """What came of the promises about it alone."""
    incident = FailingGrpc()
    settings = replace(incident.defaults, **HURRY)
    _, _, errors, in_time, _, charged, told = judged(incident, settings, run)
    return dict(zip(PROMISES, (errors, in_time, charged, told), strict=True))


demo = demo_of("a8", within=140)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(checks: dict[str, Check], promise: str) -> None:
    """Under load, from the first fault to the end."""
    check = checks[promise]
    assert check.held, f"{check.promise}: {check.measured}"


def test_service_was_in_trouble(run: Run) -> None:
    """Or the promises would be easy to keep: the victim failed in every way, and its breaker opened."""
    victim = run.noted(STATS)[-1].told["services"][VICTIM]

    assert victim["connection_failures"] > 0
    assert victim["statuses"].keys() >= {"UNAVAILABLE"}
    assert victim["cancelled"] + victim["statuses"].get("DEADLINE_EXCEEDED", 0) > 0
    assert run.events[f"checkout: {VICTIM} CircuitOpened"] >= 1


def test_other_service_paid(run: Run) -> None:
    """While one is frozen, gone or a stranger, all is paid at the other."""
    for phase in (FROZEN, REFUSED, HANDSHAKE):
        span = run.span(phase)
        late = [note.told for note in run.noted(TOLD) if span.start + 1 < note.at < span.end]
        assert {told["outcome"] for told in late} <= {"paid"}
        assert VICTIM not in {told["by"] for told in late}


def test_every_checkout_is_told_of(run: Run) -> None:
    """As many payments were told of as there were checkouts that got so far, and each order once."""
    told = Counter(note.told["order"] for note in run.noted(TOLD))
    checkouts = [sample for sample in run.samples if sample.action == CHECKOUT]
    [book] = run.noted(IN_BOOK)

    assert set(told.values()) == {1}
    assert sum(sample.ok for sample in checkouts) <= len(told) <= len(checkouts)
    assert len(book.told["orders"]) == len(set(book.told["orders"]))


@in_full
def test_demo_ends_well_and_says_so(demo: Demo) -> None:
    """On a terminal, in the exit code and in the report."""
    demo.assert_ended_well()


@in_full
def test_bare_shop_goes_on_asking_the_sick_one(demo: Demo) -> None:
    """Half of its calls go there, and customers are charged for orders that came to nothing."""
    bare = demo.runs["bare"]
    [sick] = [span for span in bare["spans"] if span["name"] == SICK]
    asked = Counter(
        note["told"]["by"]
        for note in bare["notes"]
        if note["what"] == "asked" and sick["start"] <= note["at"] < sick["end"]
    )
    told = [note["told"] for note in bare["notes"] if note["what"] == TOLD]
    failed = {each["order"] for each in told if each["outcome"] != "paid"}
    [book] = [note["told"]["orders"] for note in bare["notes"] if note["what"] == IN_BOOK]

    assert asked[VICTIM] >= 0.4 * asked.total()
    assert failed & set(book)


@in_full
def test_load_generator_kept_its_pace(demo: Demo) -> None:
    """The same requests for both, each accounted for, and sent when they were due."""
    assert_sent_alike(demo.runs)
