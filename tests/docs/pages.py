"""The documents whose code, links and tables the tests in this folder check."""

from __future__ import annotations

import os
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

# What a reader may copy code from.
WITH_CODE = sorted(
    {ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")}
)
# What a reader may click in.
WITH_LINKS = sorted({*ROOT.glob("*.md"), *WITH_CODE, *(ROOT / "bench").rglob("README.md")})


def name(page: Path) -> str:
    """Return the path of *page* as the reader knows it."""
    return os.path.relpath(page, ROOT)


def tokens(markdown: str) -> list[Token]:
    """Return the blocks of *markdown*, tables included."""
    return MarkdownIt("commonmark").enable("table").parse(markdown)
