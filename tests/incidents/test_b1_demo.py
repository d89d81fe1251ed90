"""Incidents B1 and C2, for real: a leak takes the bare shop down, and has a name in the protected one.

In a hurry the leak alone; `make soak` plays it at full length, and has the demo play both.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples.children import ROOT
from examples.shop.crowds import NEWCOMERS, REGULARS
from examples.shop.figures import Run, Summary, summarise
from examples.shop.incident import Outcome, Settings
from examples.shop.incidents.leak import Leak, culprit
from examples.shop.scenario import play
from examples.shop.services.orders import MAX_SIZE

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
HURRY = {"warm_up": 0.4, "calm": 0.8, "onset": 2.3, "fault": 0.9, "recovery": 1.2, "patience": 1.0}
SETTINGS = Leak.defaults if SOAK else replace(Leak.defaults, **HURRY)

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(120)]

Played = dict[str, Run]


async def _play(settings: Settings, logs: Path) -> Played:
    leak = Leak()
    return {
        version.name: await play(leak, version, settings, logs / version.name, lambda *_: None)
        for version in leak.versions
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shops print."""
    folder = tmp_path_factory.mktemp("logs")
    for version in Leak.versions:
        (folder / version.name).mkdir()
    return folder


@pytest.fixture(scope="module")
def played(logs: Path) -> Played:
    """What was measured in the two shops, one after the other."""
    return asyncio.run(_play(SETTINGS, logs))


def _row(run: Run, phase: str) -> Summary:
    return summarise(run, run.span(phase), SETTINGS.good_within)


def _used(run: Run, phase: str) -> list[int]:
    return [note.told["used"] for note in run.noted("pool") if note.at in run.span(phase)]


def test_promises_are_kept(played: Played) -> None:
    """All of the demo's own verdicts; in a hurry but for the one about latency.

    A phase has forty requests then: their p95 is the second slowest, which tells of the machine.
    """
    outcomes = [
        Outcome(run, {span.name: _row(run, span.name) for span in run.spans}) for run in played.values()
    ]
    dry, dies, few_errors, as_fast, named = Leak().checks(SETTINGS, *outcomes)
    promised = [dry, dies, few_errors, named, *([as_fast] if SOAK else [])]

    assert [check for check in promised if not check.held] == []


def test_bare_pool_runs_dry(played: Played) -> None:
    """From half of it in use to all of it, and then for good."""
    assert sum(_used(played["bare"], "calm")) / len(_used(played["bare"], "calm")) <= 0.75 * MAX_SIZE
    assert {*_used(played["bare"], "fault"), *_used(played["bare"], "recovery")} == {MAX_SIZE}


def test_bare_pool_is_full_of_connections_that_do_not_exist(played: Played) -> None:
    """The server knows of none of those that it says are in use."""
    [*_, last] = played["bare"].noted("sessions")

    assert last.told["open"] == 0


def test_bare_shop_dies(played: Played) -> None:
    """Whoever looks at their orders waits in vain; and all others soon do as well."""
    calm, fault = _row(played["bare"], "calm"), _row(played["bare"], "fault")

    assert calm.errors == 0
    assert fault.error_ratio >= 0.45
    assert fault.p95 >= 0.99 * SETTINGS.patience
    assert fault.served["orders"][0] == 0


def test_protected_shop_does_not_notice(played: Played) -> None:
    """Less than 1 % fail, in all phases together, and the pool is never dry for long."""
    shopping = [
        sample for span in played["protected"].spans[1:] for sample in played["protected"].sent_in(span)
    ]
    used = _used(played["protected"], "fault")

    assert sum(not sample.ok for sample in shopping) < 0.01 * len(shopping)
    assert sum(used) / len(used) < 0.95 * MAX_SIZE
    assert {crowd: len(played["protected"].of(crowd)) for crowd in (REGULARS, NEWCOMERS)} == {
        crowd: len(played["bare"].of(crowd)) for crowd in (REGULARS, NEWCOMERS)
    }


def test_running_service_names_file_and_line_of_the_leak(played: Played, logs: Path) -> None:
    """In its events, once for each; and in its log, for who reads that."""
    named = [note.told["where"] for note in played["protected"].noted("ConnectionCollected")]
    log = (logs / "protected" / "orders.log").read_text(encoding="utf-8")

    assert named == [culprit()] * len(played["protected"].of(NEWCOMERS))
    assert f"Borrowed at {culprit()}" in log


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Both incidents, played by the demo."""
    out = tmp_path_factory.mktemp("demo")
    chosen = [word for key in ("b1", "c2") for word in ("--incident", key)]
    command = [sys.executable, "-m", "examples.shop", *chosen, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    done.args = out
    return done


@pytest.mark.skipif(not SOAK, reason="more than a minute: make soak")
@pytest.mark.timeout(240)
class TestDemo:
    """What somebody sees who plays them."""

    def test_ends_well_and_says_so(self, demo: subprocess.CompletedProcess[str]) -> None:
        """On a terminal, in the exit code and in the report."""
        page = (Path(demo.args) / "report.html").read_text(encoding="utf-8")

        assert demo.returncode == 0, demo.stdout + demo.stderr
        assert demo.stdout.count("Incident prevented.") == 2
        assert demo.stderr == ""
        # At the top of the page, and at each incident.
        assert page.count("Incident prevented") == 4

    def test_names_the_leak(self, demo: subprocess.CompletedProcess[str]) -> None:
        """On the terminal, and on the page."""
        place = culprit().removeprefix(f"{ROOT}/")

        assert place in demo.stdout
        assert place in (Path(demo.args) / "report.html").read_text(encoding="utf-8")

    def test_server_is_rid_of_what_is_idle_and_of_what_is_held(
        self, demo: subprocess.CompletedProcess[str]
    ) -> None:
        """By its own figures."""
        figures = json.loads((Path(demo.args) / "figures.json").read_text(encoding="utf-8"))
        runs: dict[str, Any] = {run["version"]: run for run in figures["incidents"]["c2"]["runs"]}
        seen = {
            version: [note["told"] for note in run["notes"] if note["what"] == "sessions"]
            for version, run in runs.items()
        }

        assert max(told["oldest"] for told in seen["bare"]) > 4
        assert max(told["oldest"] for told in seen["protected"]) < 3.5
        assert max(told["open"] for told in seen["protected"]) > 3
        assert seen["protected"][-1]["open"] == 2
