"""The "Defaults" tables of the policy pages agree with the constructors' signatures.

CONTRIBUTING.md describes the tables.
"""

from __future__ import annotations

import inspect
import random
import re
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from markdown_it.token import Token
from tests.docs.pages import ROOT, name, tokens

import resilient
import resilient.health

PAGES = sorted((ROOT / "docs" / "policies").glob("*.md"))

HOMES = (resilient, resilient.health)
HEADER = ("Parameter", "Default", "Meaning")
REQUIRED = "required"

Row = tuple[str, str]
_NAME_IN_HEADING = re.compile(r"^`([\w.]+)(?:\(\))?`$")


def documented(markdown: str, page_title: str) -> dict[str, list[Row]]:
    """Return the parameters and defaults per public name, as the tables of a page give them.

    A table under a heading that is a name in backticks is about that name, any other about *page_title*.
    """
    tables: dict[str, list[Row]] = {}
    heading = ""
    blocks = tokens(markdown)
    for index, token in enumerate(blocks):
        if token.type == "heading_open":
            heading = blocks[index + 1].content
        elif token.type == "table_open":
            header, *rows = _rows(blocks[index:])
            if tuple(header) == HEADER:
                match = _NAME_IN_HEADING.match(heading)
                tables[match[1] if match else page_title] = [(_bare(row[0]), _bare(row[1])) for row in rows]
    return tables


def actual(public: Callable[..., Any]) -> list[Row]:
    """Return the parameters and defaults of *public*, as a table gives them."""
    parameters = inspect.signature(public).parameters.values()
    return [_row(parameter) for parameter in parameters if parameter.name != "self"]


def found(public: str) -> Callable[..., Any]:
    """Return what has this name, or dotted name, in one of the modules that users import from."""
    home: Any = next(module for module in HOMES if hasattr(module, public.partition(".")[0]))
    return attrgetter(public)(home)


def _rows(blocks: list[Token]) -> Iterator[list[str]]:
    row: list[str] = []
    for index, token in enumerate(blocks):
        if token.type == "table_close":
            return
        if token.type == "tr_open":
            row = []
        elif token.type in {"th_open", "td_open"}:
            row.append(blocks[index + 1].content)
        elif token.type == "tr_close":
            yield row


def _bare(cell: str) -> str:
    return cell[1:-1] if cell.startswith("`") and cell.endswith("`") else cell


def _row(parameter: inspect.Parameter) -> Row:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}", "()"
    if parameter.default is inspect.Parameter.empty:
        return parameter.name, REQUIRED
    return parameter.name, _shown(parameter.default)


def _shown(default: Any) -> str:
    """Return *default* as one would type it: functions and classes by name, the rest by its repr."""
    if callable(default) and hasattr(default, "__qualname__"):
        module = default.__module__
        if module is None:  # a method of an object that its module shows as functions, as `random` does
            return f"{type(default.__self__).__module__}.{default.__name__}"
        return default.__qualname__ if module == "builtins" else f"{module}.{default.__qualname__}"
    return repr(default)


def _title(page: Path) -> str:
    """Return the public name a page is about: circuit-breaker.md is about CircuitBreaker."""
    return page.stem.replace("-", " ").title().replace(" ", "")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_defaults_agree_with_the_signatures(page: Path) -> None:
    tables = documented(page.read_text(), _title(page))

    assert _title(page) in tables, f"no table {HEADER} under the heading Defaults"
    assert tables == {public: actual(found(public)) for public in tables}


class Sample:
    def __init__(
        self,
        *policies: int,
        on: type | tuple[type, ...],
        wait: float = 0.5,
        clock: Any = time.monotonic,
        dice: Any = random.random,
    ) -> None: ...


_SAMPLE_TABLE = """
## Defaults

| Parameter | Default | Meaning |
|---|---|---|
| `*policies` | `()` | what to run |
| `on` | required | a type \\| a tuple |
| `wait` | `0.5` | seconds |
| `clock` | `time.monotonic` | the clock |
| `dice` | `random.random` | the dice |

## Telemetry

| Name | Unit | Meaning |
|---|---|---|
| `calls` | 1 | all calls |

### `Other()`

| Parameter | Default | Meaning |
|---|---|---|
| `on` | `Exception` | what is caught |
"""


def test_table_of_a_page_is_read_and_compared() -> None:
    tables = documented(_SAMPLE_TABLE, "Sample")

    assert tables == {"Sample": actual(Sample), "Other": [("on", "Exception")]}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("| `wait` | `0.5` | seconds |\n", "", id="missing"),
        pytest.param("| `wait` | `0.5` |", "| `wait` | `0.6` |", id="wrong default"),
        pytest.param("| `wait` |", "| `waits` |", id="wrong name"),
        pytest.param("| `on` | required |", "| `on` | `None` |", id="not required"),
        pytest.param("the dice |\n", "the dice |\n| `more` | `1` | one too many |\n", id="too many"),
    ],
)
def test_wrong_table_is_found(right: str, wrong: str) -> None:
    assert right in _SAMPLE_TABLE

    assert documented(_SAMPLE_TABLE.replace(right, wrong), "Sample")["Sample"] != actual(Sample)
