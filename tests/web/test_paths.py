"""Path patterns: what they stand for, and which are refused because they would stand for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.web.paths import Paths, several_paths

segments = st.text(alphabet="ab", min_size=1, max_size=3)
plain_paths = st.lists(segments, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


class TestFinding:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/login", "login"),
            ("/login/", "login"),
            ("/login/new", "rest"),
            ("/LOGIN", "rest"),
            ("/docs", "docs"),
            ("/docs/", "docs"),
            ("/static", "static"),
            ("/static/", "static"),
            ("/static/a.css", "static"),
            ("/static/js", "js"),
            ("/static/js/", "js"),
            ("/static/js/a.js", "js"),
            ("/statics", "rest"),
            ("/", "rest"),
            ("", "rest"),
        ],
    )
    def test_entry_is_the_nearest(self, path: str, expected: str) -> None:
        """The exact path, with or without a slash at its end; then the longest prefix; then the rest."""
        table = Paths(
            "rate_limit",
            {"/login": "login", "/docs/": "docs", "/static/*": "static", "/static/js/*": "js", "*": "rest"},
        )

        assert table.find(path) == expected

    def test_both_ways_may_be_told_apart(self) -> None:
        """Who names the path with a slash and without one means each."""
        table = Paths("rate_limit", {"/a/": "with", "/a": "without", "/a/*": "below"})

        assert [table.find(path) for path in ("/a", "/a/", "/a/b")] == ["without", "with", "below"]

    def test_root_is_itself_alone(self) -> None:
        """It ends in a slash as it is; nothing else is meant by it."""
        table = several_paths("exempt", ["/"])

        assert (table.find("/"), table.find(""), table.find("/a")) == (True, None, None)

    def test_everything_below_the_root_is_everything(self) -> None:
        """As `*` is."""
        assert several_paths("exempt", ["/*"]).find("/a/b") is True

    @given(plain_paths, st.sampled_from(["", "/"]), st.sampled_from(["", "/"]))
    def test_slash_at_the_end_makes_no_difference(self, path: str, named: str, asked: str) -> None:
        """Whichever of the two has one."""
        assert several_paths("exempt", [path + named]).find(path + asked) is True


class TestRefusing:
    @pytest.mark.parametrize(
        ("patterns", "error", "message"),
        [
            (
                ["/users/{id}"],
                ValueError,
                r"exempt must name paths and no templates: .*, got '/users/\{id\}'",
            ),
            (["/users/<int:id>"], ValueError, "exempt must name paths and no templates: write '/users/\\*'"),
            (["/users?page=1"], ValueError, "exempt must name paths without a query or fragment, got"),
            (["/users#top"], ValueError, "exempt must name paths without a query or fragment, got"),
            (["/caf%C3%A9"], ValueError, "exempt must name paths as they read when decoded"),
            (["login"], ValueError, "exempt must name paths like"),
            ([["/x"]], TypeError, r"exempt must name paths as text, got \['/x'\]"),
            (None, TypeError, "exempt must be several paths, got None"),
            (5, TypeError, "exempt must be several paths, got 5"),
            ("/x", TypeError, "exempt must be several paths, not one text, got '/x'"),
            (b"/x", TypeError, "exempt must be several paths, not one text, got b'/x'"),
        ],
    )
    def test_what_would_never_match_is_refused_with_advice(
        self, patterns: Any, error: type[Exception], message: str
    ) -> None:
        """A limit that applies to nothing would be found out by an attacker first."""
        with pytest.raises(error, match=message):
            several_paths("exempt", patterns)

    def test_mapping_is_checked_alike(self) -> None:
        """By the name of its parameter."""
        with pytest.raises(ValueError, match="rate_limit must name paths and no templates"):
            Paths("rate_limit", {"/users/{id}": 1})
