"""Every Python block a reader may copy from README, docs and examples runs.

The blocks of one page run in order and share their names, as if typed into one session; `await` is allowed
outside functions, as in `python -m asyncio`. A block that cannot run here is exempted by name and reason:

    <!-- skip: next "needs a browser" -->

Where a page says `localhost:6379`, its blocks get a server of their own, empty, and its address.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from traceback import extract_tb
from typing import Any

import pytest
from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from tests.docs.pages import WITH_CODE, name
from tests.support.valkey import ValkeyServer

# The exemptions there are at most, in all pages together. Raise it only with a reason that holds for good.
MOST_EXEMPTIONS = 0

PageMaker = Callable[[str], Path]

# Where the reader's server is; ours is elsewhere.
STORE = "localhost:6379"

RUN = "python"
# Shown, not run. An unknown or missing language fails, so that a typing error cannot switch a block off.
SHOWN = {
    "bash",
    "console",
    "diff",
    "dot",
    "html",
    "http",
    "ini",
    "json",
    "promql",
    "text",
    "toml",
    "xml",
    "yaml",
}

_FENCE = RawFencedCodeBlockLexer(re.compile(r"[ \t]*(?P<language>[^\s{]*)[^\n]*\n"))
_SKIP = re.compile(r"^[ \t]*<!--\s*skip:(?P<what>.*?)-->[ \t]*\n*", re.MULTILINE)
_NEXT_WITH_REASON = re.compile(r'\s*next\s+"[^"]{8,}"\s*')


@dataclass
class Page:
    """The blocks of one page: those that run, and those exempted."""

    path: Path
    blocks: list[Example] = field(default_factory=list)
    exempted: list[Example] = field(default_factory=list)

    @property
    def needs_store(self) -> bool:
        """Whether its blocks speak to a server."""
        return any(STORE in _source(block) for block in self.blocks)


def read(path: Path) -> Page:
    """Find the blocks of a page.

    Raises:
        ValueError: a block has no known language, or an exemption no reason or no block.
    """
    document, page = Document.parse(str(path), _fences), Page(path)
    skips = {skip.end(): skip for skip in _SKIP.finditer(document.text)}
    for block in document:
        language, skip = block.parsed, skips.pop(block.region.start, None)
        if skip and not _NEXT_WITH_REASON.fullmatch(skip["what"]):
            raise ValueError(f'{_place(block)}: an exemption reads <!-- skip: next "reason" -->')
        if language == RUN:
            (page.exempted if skip else page.blocks).append(block)
        elif skip or language not in SHOWN:
            raise ValueError(f"{_place(block)}: {language!r} is neither {RUN} nor one of {sorted(SHOWN)}")
    if skips:
        raise ValueError(f"{name(path)}: an exemption stands before no code block")
    return page


def run(page: Page, store: str = STORE) -> dict[str, Any]:
    """Run the blocks of *page* in one namespace and loop, their server at *store*; return the namespace."""
    # A block may guard its last lines with `if __name__ == "__main__":`, as scripts do.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in page.blocks:
            result = eval(_compiled(block, store), namespace)
            if inspect.iscoroutine(result):
                runner.run(result)
    return namespace


def _fences(document: Document) -> Iterator[Region]:
    for region in _FENCE(document):
        region.parsed, region.evaluator = region.lexemes["language"], _compiled
        yield region


def _source(block: Example) -> Any:
    return block.region.lexemes["source"]


def _compiled(block: Example, store: str = STORE) -> Any:
    source = _source(block)
    # Line numbers as in the page, so that a traceback leads there.
    padded = "\n" * (block.line + source.line_offset) + source.replace(STORE, store)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return compile(padded, block.path, "exec", flags=flags, dont_inherit=True)


def _place(block: Example) -> str:
    return f"{name(Path(block.path))}, line {block.line}"


@pytest.fixture
def page(tmp_path: Path) -> PageMaker:
    def make(markdown: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(dedent(markdown))
        return path

    return make


@pytest.mark.parametrize("path", WITH_CODE, ids=name)
def test_code_blocks_run(path: Path, request: pytest.FixtureRequest) -> None:
    page = read(path)
    if page.needs_store:
        server: ValkeyServer = request.getfixturevalue("valkey")
        run(page, f"{server.host}:{server.port}")
    else:
        run(page)


def test_exemptions_do_not_creep() -> None:
    exempted = [_place(block) for path in WITH_CODE for block in read(path).exempted]

    assert len(exempted) <= MOST_EXEMPTIONS, exempted


class TestRunner:
    """The runner itself: it must fail where it should."""

    def test_blocks_share_names_and_may_await(self, page: PageMaker) -> None:
        path = page("""
            ```python title="first.py"
            import asyncio
            value = await asyncio.sleep(0, "slept")
            ```

            1. In a list:

                ```python
                assert value == "slept"
                seen = True
                ```
            """)

        assert run(read(path))["seen"]

    def test_failing_block_is_reported_at_its_line(self, page: PageMaker) -> None:
        path = page("""
            Text.

            ```python

            1 / 0
            ```
            """)

        with pytest.raises(ZeroDivisionError) as failure:
            run(read(path))

        failed_at = extract_tb(failure.tb)[-1].lineno or 0
        assert path.read_text().splitlines()[failed_at - 1] == "1 / 0"

    def test_store_is_the_tests_own(self, page: PageMaker, valkey: ValkeyServer) -> None:
        path = page("""
            ```python
            import redis
            with redis.Redis.from_url("redis://localhost:6379/0") as client:
                port, keys = client.info("server")["tcp_port"], client.dbsize()
            ```
            """)

        assert read(path).needs_store
        names = run(read(path), f"{valkey.host}:{valkey.port}")
        assert (names["port"], names["keys"]) == (valkey.port, 0)

    @pytest.mark.parametrize("language", ["pyhton", "Python", "", "{.python}"])
    def test_unknown_language_is_refused(self, page: PageMaker, language: str) -> None:
        path = page(f"""
            ```{language}
            1 / 0
            ```
            """)

        with pytest.raises(ValueError, match="neither python nor"):
            read(path)

    def test_exempted_block_is_counted_and_not_run(self, page: PageMaker) -> None:
        path = page("""
            <!-- skip: next "needs a browser" -->

            ```python
            1 / 0
            ```

            ```python
            seen = True
            ```
            """)

        assert run(read(path))["seen"]
        assert len(read(path).exempted) == 1

    @pytest.mark.parametrize("skip", ["next", 'next ""', "start", 'start "for some reason"'])
    def test_exemption_without_a_reason_is_refused(self, page: PageMaker, skip: str) -> None:
        path = page(f"""
            <!-- skip: {skip} -->
            ```python
            1 / 0
            ```
            """)

        with pytest.raises(ValueError, match="an exemption reads"):
            read(path)

    def test_exemption_of_nothing_is_refused(self, page: PageMaker) -> None:
        path = page("""
            <!-- skip: next "needs a browser" -->
            Some text.
            """)

        with pytest.raises(ValueError, match="before no code block"):
            read(path)
