"""Incident A4, for real and short: the bare shop goes down with the rates API, the protected one does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from examples.children import ROOT

OPTIONS = {"rate": 30, "warm-up": 0.6, "calm": 2, "fault": 4, "recovery": 0.4}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The demo, over."""
    out = tmp_path_factory.mktemp("demo")
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "examples.shop", "--incident", "a4", *options, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    done.args = out
    return done


@pytest.fixture(scope="module")
def figures(demo: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it measured."""
    read: dict[str, Any] = json.loads((Path(demo.args) / "figures.json").read_text(encoding="utf-8"))
    incident: dict[str, Any] = read["incidents"]["a4"]
    return incident


@pytest.fixture(scope="module")
def phases(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its table: a row for each run and phase, such as "bare fault"."""
    return {f"{run} {row['phase']}": row for run, rows in figures["summaries"].items() for row in rows}


# Twice as long as it takes: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(120)]


def test_demo_ends_well_and_says_so(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Incident prevented." in demo.stdout
    assert demo.stderr == ""


def test_bare_shop_goes_down_with_the_rates_api(phases: dict[str, dict[str, Any]]) -> None:
    calm, fault = phases["bare calm"], phases["bare fault"]

    slower = fault["checkout_p99"] / calm["checkout_p99"]
    assert slower >= 5 or fault["errors"] > 0.05 * fault["requests"]


def test_bare_shop_asks_the_api_for_every_page_that_shows_a_price(phases: dict[str, dict[str, Any]]) -> None:
    """Of the mix of 19, 16 ask once, a checkout twice and 2 (into the cart) not at all."""
    calm = phases["bare calm"]

    assert calm["api_calls"] == pytest.approx(calm["requests"] * 18 / 19, rel=0.1)


def test_protected_shop_fails_less_than_one_request_in_a_hundred(phases: dict[str, dict[str, Any]]) -> None:
    fault = phases["protected fault"]

    assert fault["errors"] < 0.01 * fault["requests"]


def test_protected_shop_stays_fast(phases: dict[str, dict[str, Any]]) -> None:
    assert phases["protected fault"]["p99"] < 2 * phases["protected calm"]["p99"]


def test_protected_shop_spares_the_api(phases: dict[str, dict[str, Any]]) -> None:
    def calls(run: str) -> int:
        return sum(row["api_calls"] for name, row in phases.items() if name.startswith(run))

    assert 1 <= calls("protected") * 10 <= calls("bare")


def test_breaker_in_front_of_the_api_opened(figures: dict[str, Any]) -> None:
    """Otherwise the cache alone did it, and half of the demo was not played."""
    bare, protected = figures["runs"]
    fault = next(span for span in protected["spans"] if span["name"] == "fault")

    opened = [change["at"] for change in protected["transitions"] if change["state"] == "open"]
    assert bare["transitions"] == []
    assert opened
    assert all(fault["start"] <= at < fault["end"] + 1 for at in opened)


def test_load_generator_kept_its_pace(figures: dict[str, Any]) -> None:
    """Every request that was due was sent and is accounted for."""
    expected = OPTIONS["rate"] * sum(OPTIONS[phase] for phase in ("warm-up", "calm", "fault", "recovery"))

    assert [len(run["samples"]) for run in figures["runs"]] == [expected, expected]


def test_report_opens_by_itself(demo: subprocess.CompletedProcess[str]) -> None:
    page = (Path(demo.args) / "report.html").read_text(encoding="utf-8")

    assert "Incident prevented" in page
    assert "http://" not in page
    assert "https://" not in page
