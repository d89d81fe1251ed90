"""How the tests of an incident have it played: one shop in a hurry and judged, or all of it by the demo."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from examples.children import ROOT
from examples.shop.figures import Run, summarise
from examples.shop.incident import Check, Incident, Outcome, Settings, Version
from examples.shop.scenario import play

__all__ = ["Demo", "Runs", "assert_sent_alike", "demo_of", "judged", "played"]

Runs = dict[str, dict[str, Any]]
"""What was measured, by the version of the shop."""

_LATE = 0.1  # seconds


def played(incident: Incident, version: Version, settings: Settings, logs: Path) -> Run:
    """Play an incident to one version of the shop, and return what was measured."""
    return asyncio.run(play(incident, version, settings, logs, lambda *_: None))


def judged(incident: Incident, settings: Settings, run: Run) -> list[Check]:
    """Return what came of each promise, where *run* stands for the runs of all versions."""
    phases = {span.name: summarise(run, span, settings.good_within) for span in run.spans}
    return incident.checks(settings, *[Outcome(run, phases)] * len(incident.versions))


class Demo:
    """The demo of an incident, played from the command line, and over."""

    def __init__(self, incident: str, out: Path, within: float) -> None:
        self._incident = incident
        self._out = out
        command = [sys.executable, "-m", "examples.shop", "--incident", incident, "--out", str(out)]
        self._done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=within
        )

    def assert_ended_well(self) -> None:
        """See that it says so on a terminal, in the exit code and in the report."""
        assert self._done.returncode == 0, self._done.stdout + self._done.stderr
        assert "Incident prevented." in self._done.stdout
        assert self._done.stderr == ""
        assert "Incident prevented" in (self._out / "report.html").read_text(encoding="utf-8")

    @cached_property
    def figures(self) -> dict[str, Any]:
        """All that it wrote down."""
        read = json.loads((self._out / "figures.json").read_text(encoding="utf-8"))
        figures: dict[str, Any] = read["incidents"][self._incident]
        return figures

    @cached_property
    def runs(self) -> Runs:
        """What it measured, by the version of the shop."""
        return {run["version"]: run for run in self.figures["runs"]}

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """Its table: a row for each run and phase, such as "bare fault"."""
        summaries = self.figures["summaries"]
        return {f"{run} {row['phase']}": row for run, rows in summaries.items() for row in rows}


def demo_of(incident: str, *, within: float) -> Any:
    """Return the fixture of a module's demo, which may take *within* seconds."""

    @pytest.fixture(scope="module")
    def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
        """The demo, over."""
        return Demo(incident, tmp_path_factory.mktemp("demo"), within)

    return demo


def assert_sent_alike(runs: Runs) -> None:
    """See that two shops were sent the same requests, each accounted for, and nearly all in time."""
    one, other = (
        sorted((sample["at"], sample["action"]) for sample in run["samples"]) for run in runs.values()
    )
    late = [sample["lag"] > _LATE for run in runs.values() for sample in run["samples"]]

    assert one == other
    assert sum(late) < 0.01 * len(late)
