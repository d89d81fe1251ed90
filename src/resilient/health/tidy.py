"""Findings made fit for a report: short, in one line, without secrets, and nothing that JSON cannot say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Final

from ..engine.finding import Fact, Finding, Status
from .secrets import masked

__all__ = ["one_line", "reason", "tidy"]

_LONGEST: Final = 300  # characters of a text in a report
_LOOKED_AT: Final = 16_384  # of a text, beyond which nothing of it is looked at
_LARGEST: Final = 2**63  # of a whole number; there are readers of JSON that take no larger one
_MOST_FACTS: Final = 32
_SHORT: Final = 64  # characters


def tidy(finding: Finding) -> Finding:
    """Return *finding* as a report may show it; whatever is in it, it does not raise.

    A check is anybody's code: it may have found ten thousand lines, a password, or an infinity.
    """
    try:
        return replace(
            finding,
            status=Status(finding.status),
            output=one_line(finding.output),
            value=_number(finding.value),
            unit=None if finding.unit is None else one_line(finding.unit),
            facts=_facts(finding.facts),
        )
    except (Exception, SystemExit):  # noqa: BLE001 - a word that fails when it is read
        return Finding(Status.FAIL, f"a {type(finding).__name__} of the check cannot be read")


def reason(error: BaseException) -> str:
    """Return *error* as a text for `Finding.output`, which is not masked yet."""
    try:
        return f"{type(error).__name__}: {error}"
    except (Exception, SystemExit):  # noqa: BLE001 - a __str__ of somebody else's
        return type(error).__name__


def _facts(facts: Mapping[str, Fact]) -> Mapping[str, Fact]:
    few = islice(facts.items(), _MOST_FACTS)
    return {name: _fact(name, value) for name, value in ((_name(name), value) for name, value in few)}


def _name(name: object) -> str:
    # Nothing is kept of what may be anything.
    return _short_name(name) if type(name) is str and len(name) <= _SHORT else one_line(name)


@lru_cache(maxsize=512)
def _short_name(name: str) -> str:
    """Return the name of a fact; they are the same few for ever."""
    return one_line(name)


def _fact(name: str, value: object) -> Fact:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    # With its name, which may say that it is a secret.
    return one_line(f"{name}={value if isinstance(value, str) else repr(value)}").removeprefix(f"{name}=")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and -_LARGEST < value < _LARGEST:
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def one_line(value: object, most: int = _LONGEST) -> str:
    """Return *value* as a text for a report: of at most so many characters, in one line, without secrets."""
    text = value if isinstance(value, str) else repr(value)
    words = text[:_LOOKED_AT].split()
    if len(text) > _LOOKED_AT and not text[_LOOKED_AT - 1].isspace():
        # Cut before anything else looks at it, as it may be long. Half a password would not be recognised as
        # one: so the word that was cut through goes, and the rest is masked before it is cut short.
        del words[-1:]
    line = masked(" ".join(words))
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"
