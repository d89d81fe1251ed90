"""Links, pictures and tests that a page names are there, and the navigation names exactly the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it.token import Token
from tests.docs.pages import ROOT, WITH_LINKS, name, tokens

_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_NAV_ENTRY = re.compile(r"^\s+- .*?([\w./-]+\.md)\s*$", re.MULTILINE)


def dead_links(page: Path) -> list[str]:
    """Return the relative targets in *page* that do not exist."""
    targets = (target.partition("#")[0] for target in _targets(tokens(page.read_text())))
    return [target for target in targets if not (page.parent / target).exists()]


def missing_tests(page: Path) -> list[str]:
    """Return the tests that *page* names as `tests/file.py::test_name` and that are not there."""
    named = _TEST.findall(page.read_text())
    return [f"{file}::{test}" for file, test in named if not _defines(ROOT / file, test)]


def _defines(file: Path, test: str) -> bool:
    return file.exists() and re.search(rf"\bdef {test}\(", file.read_text()) is not None


def _targets(blocks: list[Token]) -> Iterator[str]:
    for token in (child for block in blocks for child in block.children or ()):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if target and not _ELSEWHERE.match(target):
            yield target


@pytest.mark.parametrize("page", WITH_LINKS, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", WITH_LINKS, ids=name)
def test_named_tests_are_there(page: Path) -> None:
    assert missing_tests(page) == []


def test_navigation_names_every_page() -> None:
    listed = _NAV_ENTRY.findall((ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    present = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]

    assert sorted(listed) == sorted(present)


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#part) [b](gone.md) ![c](gone.png) [d](https://example.org/gone.md) [e](#part)\n"
        "[f][reference] <mailto:a@example.org>\n\n```text\n[g](gone-too.md)\n```\n\n[reference]: lost.md\n"
    )

    assert dead_links(page) == ["gone.md", "gone.png", "lost.md"]


def test_missing_tests_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`tests/docs/test_links.py::test_missing_tests_are_found`, `tests/docs/test_links.py::test_missing`, "
        "`tests/docs/test_gone.py::test_missing`"
    )

    assert missing_tests(page) == [
        "tests/docs/test_links.py::test_missing",
        "tests/docs/test_gone.py::test_missing",
    ]
