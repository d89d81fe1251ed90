"""Reports as other services tell them: of whatever make, and with whatever in it.

`application/health+json`, ours and that of others; Spring Boot's Actuator; MicroProfile; ASP.NET Core; or a
word. What comes from elsewhere is believed as far as it can be understood, and never raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeAlias

from ...engine.finding import Status, worst
from ..report import Report, Result

__all__ = ["LARGEST", "line", "report_in"]

LARGEST: Final = 1 << 20
"""Bytes of an answer beyond which nothing of it is read."""

_MOST: Final = 1_000  # checks of a report
_DEEPEST: Final = 5  # components of components
_LONGEST: Final = 300  # characters of a text
_LONGEST_NAME: Final = 200

_Members: TypeAlias = Mapping[str, Any]

_WORDS: Final = {
    Status.PASS: ("pass", "passed", "ok", "up", "healthy", "serving", "working"),
    Status.WARN: ("warn", "warning", "degraded"),
    Status.FAIL: ("fail", "failed", "error", "down", "unhealthy", "out_of_service", "not_serving"),
    Status.UNKNOWN: ("unknown",),
}
_STATUS: Final = {word: status for status, words in _WORDS.items() for word in words}

# Members that hold the checks: of the draft and MicroProfile, Spring's, ASP.NET Core's.
_HOLDERS: Final = ("checks", "components", "details", "entries", "results")
_REASONS: Final = ("output", "error", "reason", "warning", "description", "exception", "message")
# What others have that looks at nothing outside of the process.
_OWN: Final = frozenset({"diskspace", "ping", "ssl", "livenessstate", "readinessstate", "self"})


def report_in(body: bytes, name: str) -> Report | None:
    """Return the report that *body* is, at most `LARGEST` bytes of it; None: it is none.

    Args:
        body: what a service has answered.
        name: what to call the service, if it does not say.
    """
    if len(body) > LARGEST:
        return None
    text = body.decode("utf-8", "replace").strip().removeprefix("\ufeff")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):  # of nonsense; and of 100,000 brackets
        status = _status_of_lines(text)
        return None if status is None else _report(name, status, (), {})
    if isinstance(told, str):
        status = _status_in(told)
        return None if status is None else _report(name, status, (), {})
    if not isinstance(told, dict):
        return None
    results = tuple(_results(told))
    status = _status_of(told)
    if status is None:
        if not results:
            return None
        status = worst(*(result.status for result in results))
    return _report(name, status, results, told)


def line(text: object, most: int = _LONGEST) -> str:
    """Return *text* as one short line that does nothing to a terminal."""
    written = text if isinstance(text, str) else str(text)
    short = " ".join(written[: 4 * most].split())
    short = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in short)
    return short if len(short) <= most else f"{short[: most - 1]}…"


def _report(name: str, status: Status, results: tuple[Result, ...], told: _Members) -> Report:
    service, version, uptime = told.get("serviceId"), told.get("version"), _number(told.get("uptime"))
    return Report(
        group="all",
        status=status,
        service=line(service, _LONGEST_NAME) if isinstance(service, str) and service.strip() else name,
        version=line(version, _LONGEST_NAME) if isinstance(version, str) else None,
        at=_instant(told.get("time")) or datetime.now(UTC),
        uptime=0.0 if uptime is None else uptime,
        results=results,
        output=line(told["output"]) if isinstance(told.get("output"), str) else "",
    )


def _results(told: _Members) -> Iterator[Result]:
    entries = [*_entries(told, "", 0)][: 2 * _MOST]
    # What has a kind says all there is to say; how long it took has none.
    named = {name for name, kind, _ in entries if kind is not None}
    found: dict[tuple[str, str], Result] = {}
    for name, kind, entry in entries:
        if kind is not None or name not in named:
            result = _result(name, kind or "check", entry)
            former = found.get((name, result.kind))
            found[name, result.kind] = result if former is None else _of_both(former, result)
    return islice(found.values(), _MOST)


def _entries(told: _Members, above: str, depth: int) -> Iterator[tuple[str, str | None, _Members]]:
    """Return what is told of each component: its name, its kind if that is told, and the rest."""
    held = next((told[key] for key in _HOLDERS if isinstance(told.get(key), dict | list)), None)
    if isinstance(held, list):  # MicroProfile
        for entry in held:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield _name(above, entry["name"]), _kind(entry), entry
    elif isinstance(held, dict):
        for key, value in held.items():
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    yield from _entries_of(key, entry, above, depth)


def _entries_of(
    key: str, entry: _Members, above: str, depth: int
) -> Iterator[tuple[str, str | None, _Members]]:
    measured = "observedValue" in entry or "componentType" in entry or ":" in key
    name = _name(above, _component(key) if measured else key)
    below = [*_entries(entry, name, depth + 1)] if depth < _DEEPEST and "components" in entry else []
    if below:
        yield from below
    elif _status_of(entry) is not None or measured:
        yield name, _kind(entry), entry


def _component(key: str) -> str:
    """Return the component in a key of the draft, "component:measurement"; some have a URL for the one."""
    component, _, rest = key.partition(":")
    if rest.startswith("//"):
        component, _, measurement = key.rpartition(":")
        if not measurement[:1].isalpha():  # but the URL's own port, or path
            return key
    return component or key


def _result(name: str, kind: str, entry: _Members) -> Result:
    # What is told with a figure and without a status is a measurement, and there is nothing to complain of.
    status = _status_of(entry) or Status.PASS
    depends_on, facts = entry.get("dependsOn"), entry.get("details", entry.get("data"))
    reasons: list[Any] = [
        holder.get(key) for holder in (entry, facts) if isinstance(holder, dict) for key in _REASONS
    ]
    is_own = entry.get("componentType") == "system" or name.lower() in _OWN
    return Result(
        name,
        kind,
        status,
        next((line(reason) for reason in reasons if reason and isinstance(reason, str)), ""),
        critical=entry.get("critical") is True,
        external=not is_own,
        depends_on=tuple(_name("", one) for one in depends_on[:_MOST] if isinstance(one, str))
        if isinstance(depends_on, list)
        else (),
    )


def _of_both(one: Result, other: Result) -> Result:
    """Return what is told of a component by two of its measurements."""
    bad = other if worst(one.status, other.status) is not one.status else one
    return Result(
        one.name,
        one.kind,
        bad.status,
        bad.output,
        critical=one.critical or other.critical,
        external=one.external,
        depends_on=tuple(dict.fromkeys((*one.depends_on, *other.depends_on))),
    )


def _status_of(told: _Members) -> Status | None:
    status = _status_in(told.get("status"))
    # Our own: the draft has no word for it.
    return Status.UNKNOWN if status is Status.WARN and told.get("unknown") is True else status


def _status_in(word: object) -> Status | None:
    return _STATUS.get(word.strip().lower()) if isinstance(word, str) else None


def _status_of_lines(text: str) -> Status | None:
    """Return what a word says, or the last line as Kubernetes has it: "readyz check passed"."""
    last = text[-_LONGEST:].splitlines()[-1:]
    if not last:
        return None
    words = last[0].partition(":")[0].split()
    if text == last[0] and len(words) == 1:
        return _status_in(words[0])
    return _status_in(words[2]) if len(words) == 3 and words[1] == "check" else None  # noqa: PLR2004


def _kind(entry: _Members) -> str | None:
    kind = entry.get("kind")
    return line(kind, _LONGEST_NAME) if isinstance(kind, str) and kind.strip() else None


def _name(above: str, name: str) -> str:
    # Names in keys have no colons; those that refer to them might.
    short = line(name, _LONGEST_NAME).replace(":", "_") or "?"
    return f"{above}/{short}" if above else short


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _instant(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
