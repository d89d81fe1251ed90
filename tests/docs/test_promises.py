"""The promises that the page on performance makes are those that the benchmark judges."""

from __future__ import annotations

from bench.targets import SURPLUSES, TARGETS
from tests.docs.pages import ROOT, tokens

PAGE = ROOT / "docs" / "explanation" / "performance.md"
COLUMNS = ["Ours", "Against", "At most"]


def test_promises_are_the_targets() -> None:
    """A row for each target, in the same order and with the same limit."""
    cells = [token.content for token in tokens(PAGE.read_text()) if token.type == "inline"]
    begin = cells.index(COLUMNS[0])
    assert cells[begin : begin + len(COLUMNS)] == COLUMNS
    limits = [f"{target.at_most:.2f}" for target in TARGETS]
    limits += [f"+{surplus.at_most:g} µs" for surplus in SURPLUSES]

    rows = cells[begin + len(COLUMNS) : begin + len(COLUMNS) * (1 + len(limits))]

    assert rows[2::3] == limits
    assert cells[begin + len(COLUMNS) * (1 + len(limits))].startswith("The results")
