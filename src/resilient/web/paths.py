"""Path patterns: which entry of a table is about a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

from ..engine import params

__all__ = ["Paths", "check_pattern", "several_paths"]

V = TypeVar("V")


class Paths(Generic[V]):
    """A table by path. An exact path wins, then the longest `/prefix/*`, then `*`.

    A slash at the end makes no difference, and `/prefix/*` stands for `/prefix` too: frameworks often answer
    either, and a limit that ended where somebody adds or leaves out a slash would be none.

    Args:
        parameter: what the user calls the table; for error messages.
        entries: pattern -> value.

    Raises:
        TypeError: a pattern is not text.
        ValueError: a pattern is neither `*` nor begins with `/`, has a `*` elsewhere than at its end, or is
            none that a path could match: a framework's template, a query, a percent-encoded path.

    Concurrency: read only.
    """

    __slots__ = ("_anything", "_exact", "_prefixes")

    def __init__(self, parameter: str, entries: Mapping[str, V]) -> None:
        for pattern in entries:
            check_pattern(parameter, pattern)
        self._anything = entries.get("*")
        below = {pattern[:-1]: value for pattern, value in entries.items() if pattern.endswith("/*")}
        self._prefixes = tuple(sorted(below.items(), key=lambda entry: -len(entry[0])))
        exact = {pattern: value for pattern, value in entries.items() if "*" not in pattern}
        # What is said for the very path comes last, and so wins.
        self._exact = {prefix[:-1]: value for prefix, value in below.items() if prefix != "/"}
        self._exact.update((_other_way(path), value) for path, value in exact.items() if path != "/")
        self._exact.update(exact)

    def find(self, path: str) -> V | None:
        """Return what the table says about *path*; None where nothing."""
        found = self._exact.get(path)
        if found is not None:
            return found
        for prefix, value in self._prefixes:
            if path.startswith(prefix):
                return value
        return self._anything


def _other_way(path: str) -> str:
    return path[:-1] if path.endswith("/") else f"{path}/"


def several_paths(parameter: str, patterns: Iterable[str]) -> Paths[bool]:
    """Return a table of *patterns* and nothing else: what it finds is True."""
    if isinstance(patterns, str | bytes):  # its letters would be the paths
        params.refuse(TypeError, parameter, "must be several paths, not one text", patterns)
    if not isinstance(patterns, Iterable):
        params.refuse(TypeError, parameter, "must be several paths", patterns)
    several = tuple(patterns)
    for pattern in several:  # before they are hashed, which not everything can be
        check_pattern(parameter, pattern)
    return Paths(parameter, dict.fromkeys(several, True))


# What people write who have another kind of path in mind. No path would ever match it, silently.
_MISTAKES: Final = (
    (re.compile("[{}<>]"), "must name paths and no templates: write '/users/*' for '/users/{id}'"),
    (re.compile("[?#]"), "must name paths without a query or fragment"),
    (re.compile("%"), "must name paths as they read when decoded, such as '/caf\u00e9' for '/caf%C3%A9'"),
)


def check_pattern(parameter: str, pattern: Any) -> None:
    """Refuse what is no path pattern."""
    if not isinstance(pattern, str):
        params.refuse(TypeError, parameter, "must name paths as text", pattern)
    for mistake, rule in _MISTAKES:
        if mistake.search(pattern):
            params.refuse(ValueError, parameter, rule, pattern)
    fixed = pattern.removesuffix("*")
    if "*" in fixed or not (
        pattern == "*" or (pattern.startswith("/") and fixed[-1:] in {"/", pattern[-1:]})
    ):
        params.refuse(ValueError, parameter, "must name paths like '/login', '/static/*' or '*'", pattern)
