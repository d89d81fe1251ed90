"""From the results of single checks to the status of a group: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..engine.finding import Status
from .report import Result

__all__ = ["ALL", "LIVE", "READY", "STARTUP", "behind_failures", "overall", "with_dependencies"]

LIVE: Final = "live"
READY: Final = "ready"
STARTUP: Final = "startup"
ALL: Final = "all"


def with_dependencies(names: Iterable[str], depends_on: Mapping[str, Sequence[str]]) -> list[str]:
    """Return *names* and all that they stand on, each once, the nearest first."""
    found = dict.fromkeys(names)
    ahead = list(found)
    while ahead:
        for name in depends_on.get(ahead.pop(0), ()):
            if name not in found:
                found[name] = None
                ahead.append(name)
    return list(found)


def behind_failures(results: Sequence[Result]) -> tuple[Result, ...]:
    """Return *results*, where no one counts as failed whose failure another one explains."""
    failing = {result.name for result in results if result.status is Status.FAIL}
    depends_on = _dependencies(results)
    roots = {name for name in failing if failing.isdisjoint(with_dependencies(depends_on[name], depends_on))}
    return tuple(_explained(result, roots, depends_on) for result in results)


def overall(results: Iterable[Result], *, strict: bool) -> Status:
    """Return the status of a group: the worst that a result in it can do to it.

    What a critical check stands on fails the group where it explains why that is not known; while that
    passes, it is a warning.

    Args:
        results: of the group and of all that it stands on.
        strict: whether it fails where nobody knows of something critical how it is doing.
    """
    status = Status.PASS
    for result in results:
        if result.status is Status.PASS:
            continue
        if result.critical and _fails(result, strict=strict):
            return Status.FAIL
        status = Status.WARN
    return status


def _fails(result: Result, *, strict: bool) -> bool:
    if result.status is Status.UNKNOWN:
        return strict or bool(result.behind)
    return result.status is Status.FAIL


def _explained(result: Result, roots: Collection[str], depends_on: Mapping[str, Sequence[str]]) -> Result:
    if result.status is not Status.FAIL or result.name in roots:
        return result
    behind = tuple(name for name in with_dependencies(result.depends_on, depends_on) if name in roots)
    if not behind:  # in a circle; it cannot be registered
        return result
    output = f"not known, as {', '.join(behind)} {'fails' if len(behind) == 1 else 'fail'}: {result.output}"
    return replace(result, status=Status.UNKNOWN, output=output, behind=behind)


def _dependencies(results: Sequence[Result]) -> Mapping[str, Sequence[str]]:
    edges: dict[str, list[str]] = {}
    for result in results:  # several may have one name: a check, and a policy that is watched
        edges.setdefault(result.name, []).extend(result.depends_on)
    return edges
