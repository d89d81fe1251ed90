"""Incident A6, for real: the network between the services is cut, and the protected shop goes on.

In a hurry that one alone; `make soak` has the demo play both.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from examples.shop.figures import FAULT, Run
from examples.shop.incident import Check
from examples.shop.incidents.cut_off import DEPENDENT, OUR_OWN, PAGES, TOLD_WITHIN, CutOff
from examples.shop.orchestrator import ENDED, KILLED, LIVE, PROBE, READY
from tests.incidents.playing import Demo, demo_of, judged, played

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(120)]

in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="most of a minute: make soak")
CUT_OFF = CutOff()
SETTINGS = replace(CUT_OFF.defaults, warm_up=0.3, calm=0.7, fault=3.7, recovery=2.6)
PROMISES = ("stays alive", "tells the truth", "pages are served", "the rest is told soon", "soon back")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The protected shop, in a hurry."""
    [_, protected] = CUT_OFF.versions
    return played(CUT_OFF, protected, SETTINGS, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def checks(run: Run) -> dict[str, Check]:
    """What came of the promises about it."""
    _, _, *promised = judged(CUT_OFF, SETTINGS, run)
    return dict(zip(PROMISES, promised, strict=True))


demo = demo_of("a6", within=110)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(checks: dict[str, Check], promise: str) -> None:
    """Under load, from the cut to the end."""
    check = checks[promise]
    assert check.held, f"{check.promise}: {check.measured}"


def test_network_was_cut(run: Run) -> None:
    """Or the promises would be easy to keep: nobody got through to the checkout, and its breaker opened."""
    span = run.span(FAULT)
    # Whoever came last may have been answered after it.
    early = [sample for sample in run.sent_in(span) if sample.at < span.end - TOLD_WITHIN]

    assert {sample.action for sample in early if sample.ok} == set(PAGES)
    assert run.events["frontend: checkout CircuitOpened"] >= 1


def test_only_who_cannot_work_is_not_ready(run: Run) -> None:
    """The rest have what they need, or a fallback."""
    unready = {note.told["of"] for note in run.noted(PROBE) if note.told["answer"] == "503"}
    probed = {(note.told["of"], note.told["kind"]) for note in run.noted(PROBE)}

    assert unready == {DEPENDENT}
    assert probed == {(name, kind) for name in OUR_OWN for kind in (LIVE, READY)}


@in_full
def test_demo_ends_well_and_says_so(demo: Demo) -> None:
    """On a terminal, in the exit code and in the report."""
    demo.assert_ended_well()


@in_full
def test_bare_services_are_ended_by_who_probes(demo: Demo) -> None:
    """With SIGTERM, and for their signs of life; nothing else was wrong with them."""
    notes = demo.runs["bare"]["notes"]
    ended = {note["told"]["code"] for note in notes if note["what"] == ENDED}
    why = {note["told"]["why"] for note in notes if note["what"] == KILLED}

    assert (ended, why) == ({-15}, {LIVE})
    assert not [note for note in demo.runs["protected"]["notes"] if note["what"] in {ENDED, KILLED}]
