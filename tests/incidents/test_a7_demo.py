"""Incident A7, for real and short: a flood takes the bare shop down, and ends at the protected one's door."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from examples.children import ROOT

OPTIONS = {"warm-up": 1, "calm": 3, "fault": 4, "recovery": 0.5}
LIMIT_OF_CALM_RATE, BURST_OF_CALM_RATE, FLOOD_OF_CALM_RATE = 1 / 2, 1, 10

# Twice as long as it takes: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The demo, over."""
    out = tmp_path_factory.mktemp("demo")
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "examples.shop", "--incident", "a7", *options, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    done.args = out
    return done


@pytest.fixture(scope="module")
def figures(demo: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it measured."""
    read: dict[str, Any] = json.loads((Path(demo.args) / "figures.json").read_text(encoding="utf-8"))
    incident: dict[str, Any] = read["incidents"]["a7"]
    return incident


@pytest.fixture(scope="module")
def phases(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its table: a row for each run and phase, such as "bare fault"."""
    return {f"{run} {row['phase']}": row for run, rows in figures["summaries"].items() for row in rows}


def test_demo_ends_well_and_says_so(demo: subprocess.CompletedProcess[str]) -> None:
    """On a terminal, in the exit code and in the report."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Incident prevented." in demo.stdout
    assert demo.stderr == ""
    assert "Incident prevented" in (Path(demo.args) / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("service", ["catalogue", "currency", "checkout"])
def test_bare_service_is_waited_for_five_times_as_long(
    phases: dict[str, dict[str, Any]], service: str
) -> None:
    """Behind the frontend, everybody is slow."""
    calm, fault = phases["bare calm"], phases["bare fault"]

    assert fault["services"][service] >= 5 * calm["services"][service]


def test_bare_frontend_is_five_times_slower(phases: dict[str, dict[str, Any]]) -> None:
    """Which is what customers see."""
    assert phases["bare fault"]["page_p95"] >= 5 * phases["bare calm"]["page_p95"]


@pytest.mark.parametrize("kind", ["page_p95", "checkout_p95"])
def test_protected_shop_stays_fast(phases: dict[str, dict[str, Any]], kind: str) -> None:
    """For whom it lets in."""
    assert phases["protected fault"][kind] < 2 * phases["protected calm"][kind]


def test_protected_shop_turns_no_customer_away(figures: dict[str, Any]) -> None:
    """All of them come in, in the middle of the flood."""
    assert _outcomes(figures, "customers").keys() == {"200"}


def test_protected_shop_gives_the_flood_its_limit_and_429_beyond(figures: dict[str, Any]) -> None:
    """Nothing fails, and nothing slips in: no more than burst and rate allow."""
    rate, flood = figures["settings"]["rate"], _outcomes(figures, "flood")
    seconds = OPTIONS["fault"] + figures["settings"]["onset"]

    allowed = BURST_OF_CALM_RATE * rate + LIMIT_OF_CALM_RATE * rate * seconds
    assert flood.keys() == {"200", "429"}
    assert flood["200"] == pytest.approx(allowed, rel=0.05)
    assert flood.total() == pytest.approx((FLOOD_OF_CALM_RATE - 1) * rate * seconds, abs=2)


def test_client_that_waits_as_long_as_it_was_told_is_let_in(figures: dict[str, Any]) -> None:
    """Every time; and it was told the next whole second, not to come back some day."""
    samples = figures["runs"][1]["samples"]
    refused = [sample["retry_after"] for sample in samples if sample["outcome"] == "429"]
    returned = [sample["outcome"] for sample in samples if sample["action"] == "come back"]

    assert set(refused) == {1.0}
    assert len(returned) >= 3
    assert set(returned) == {"200"}


def _outcomes(figures: dict[str, Any], crowd: str) -> Counter[str]:
    samples = figures["runs"][1]["samples"]
    return Counter(sample["outcome"] for sample in samples if sample["crowd"] == crowd)
