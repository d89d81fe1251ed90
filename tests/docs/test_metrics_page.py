"""The metrics are those on file, and the reference tells what they are."""

from __future__ import annotations

import difflib
import os
import re

import pytest
from tests.docs.pages import ROOT
from tests.support.metrics_page import MARK, frozen, metrics, reference

from resilient.engine.measure import Instrument

PAGE = ROOT / "docs" / "reference" / "metrics.md"
SNAPSHOT = ROOT / "tests" / "data" / "metrics.txt"


@pytest.mark.parametrize(
    ("path", "now"),
    [
        (PAGE, PAGE.read_text(encoding="utf-8").partition(MARK)[0] + reference()),
        (SNAPSHOT, "".join(f"{line}\n" for line in frozen())),
    ],
    ids=["reference", "list"],
)
def test_is_on_file(path, now):
    """Names, units, instruments, attributes, their values and buckets are for ever; see `metrics_page`.

    A new metric may be added; what is there is not changed: people's dashboards and alerts go by it.
    """
    if os.environ.get("RESILIENT_UPDATE_API"):
        path.write_text(now, encoding="utf-8")
    on_file = path.read_text(encoding="utf-8") if path.exists() else ""
    changes = difflib.unified_diff(on_file.splitlines(), now.splitlines(), "on file", "now", lineterm="", n=0)
    assert on_file == now, "\n".join(changes)


class TestNames:
    """OpenTelemetry's rules for names, and what all of ours have in common."""

    @pytest.mark.parametrize("metric", metrics(), ids=lambda metric: metric.name)
    def test_follow_the_rules(self, metric):
        """Lower case, words divided by dots, no unit in the name, a sentence that says what it is."""
        assert re.fullmatch(r"[a-z]+(\.[a-z][a-z_]*)+", metric.name)
        if metric.name.startswith("resilient."):  # the others are OpenTelemetry's own words
            assert not re.search(r"(total|seconds|ratio_|_time|bytes|percent)$", metric.name)
            assert re.fullmatch(r"1|s|\{[a-z]+\}|", metric.unit), metric.unit
            assert all(name.startswith("resilient.") for name in metric.attributes)
        assert metric.description[0].isupper()
        assert metric.description.endswith(".")
        assert len(metric.attributes) <= 2
        assert not {"resilient.policy.kind", "resilient.policy.name"} & {*metric.attributes}

    @pytest.mark.parametrize("metric", metrics(), ids=lambda metric: metric.name)
    def test_only_histograms_have_buckets(self, metric):
        """And theirs are in order, in seconds."""
        assert bool(metric.boundaries) is (metric.instrument is Instrument.HISTOGRAM)
        assert sorted(set(metric.boundaries)) == list(metric.boundaries)
        if metric.boundaries:
            assert metric.unit == "s"

    def test_are_told_apart(self):
        """No two metrics of one name."""
        names = [metric.name for metric in metrics()]
        assert len(set(names)) == len(names) > 50
