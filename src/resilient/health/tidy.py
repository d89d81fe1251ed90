"""Findings made fit for a report: short, in one line, without secrets, and nothing that JSON cannot say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Final

from ..engine.finding import Fact, Finding, Status
from .secrets import masked

__all__ = ["tidy"]

_LONGEST: Final = 300  # characters of a text in a report
_LOOKED_AT: Final = 4096  # of a text, beyond which nothing of it is looked at
_MOST_FACTS: Final = 32


def tidy(finding: Finding) -> Finding:
    """Return *finding* as a report may show it; whatever is in it, it does not raise.

    A check is anybody's code: it may have found ten thousand lines, a password, or an infinity.
    """
    try:
        return replace(
            finding,
            status=Status(finding.status),
            output=_text(finding.output),
            value=_number(finding.value),
            unit=None if finding.unit is None else _text(finding.unit),
            facts=_facts(finding.facts),
        )
    except Exception:  # noqa: BLE001 - a word that fails when it is read
        return Finding(Status.FAIL, f"a {type(finding).__name__} of the check cannot be read")


def _facts(facts: Mapping[str, Fact]) -> Mapping[str, Fact]:
    return {_text(name): _fact(value) for name, value in islice(facts.items(), _MOST_FACTS)}


def _fact(value: object) -> Fact:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    return _text(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    # Cut before anything else looks at it, as it may be long; and masked before it is cut short, as half a
    # password would not be recognised.
    line = " ".join(masked(text[:_LOOKED_AT]).split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
