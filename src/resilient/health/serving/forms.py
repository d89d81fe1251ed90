"""The forms in which a report is told: JSON of three kinds, one word, and the lines of Kubernetes.

Without details a form holds the status and nothing else: no name, no figure, no reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl

from ...engine.finding import Fact, Status
from ..report import Report, Result

__all__ = ["DEFAULT", "Form", "View", "chosen"]

_LONGEST_HEADER: Final = 2_000  # what clients write is shorter; the rest is not looked at
_LONGEST_LINE: Final = 500
_LONGEST_NUMBER: Final = 64  # in bits
_LARGEST_WHOLE: Final = 2**53  # beyond, all floats are whole, and as integers longer than others can read
# What ends a line somewhere, and what a terminal would obey.
_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class View(NamedTuple):
    """How much of a report is shown, and to whom.

    Attributes:
        details: whether more than the status.
        word: what Kubernetes' form calls what was asked for, such as "readyz".
        groups: the names of the groups that there are.
    """

    details: bool
    word: str
    groups: tuple[str, ...]


class Form(NamedTuple):
    """A form: what it is called in `Content-Type`, and what it makes of a report."""

    content_type: str
    body: Callable[[Report, View], bytes]


_Members: TypeAlias = dict[str, Any]


def _health_json(report: Report, view: View) -> bytes:
    """Tell *report* as draft-inadarei-api-health-check-06 does."""
    members: _Members = _draft_status(report.status)
    if view.details:
        members |= _without_none(
            {
                "version": report.version,
                "serviceId": report.service,
                "description": f"{_ABOUT.get(report.group, report.group)} of {report.service}",
                "time": _instant(report.at),
                "output": _line(report.output) or None,
            }
        )
        checks: dict[str, list[_Members]] = {}
        for result in report.results:
            for measurement, entry in _entries(result):
                # What comes before the first colon is the component.
                key = f"{_line(result.name).replace(':', '_')}:{measurement}"
                checks.setdefault(key, []).append(entry)
        members["checks"] = checks
    return _json(members)


_ABOUT: Final = {"live": "Liveness", "ready": "Readiness", "startup": "Start", "all": "Health"}
# Our units that have a measurement of the draft's.
_MEASUREMENTS: Final = {"percent": "utilization", "connections": "connections"}


def _entries(result: Result) -> Iterable[tuple[str, _Members]]:
    status = _draft_status(result.status)
    common: _Members = {"componentType": "component" if result.external else "system"}
    time = {} if result.at is None else {"time": _instant(result.at)}
    value = _figure(result.value)
    passes = result.status is Status.PASS
    yield (
        _MEASUREMENTS.get(result.unit or "", "status"),
        common
        | _without_none({"observedValue": value, "observedUnit": None if value is None else result.unit})
        | status
        | time
        # The draft leaves it out where all is well.
        | ({"output": _line(result.output)} if result.output and not passes else {})
        | {"kind": result.kind, "critical": result.critical}
        | _without_none({"age": _seconds(result.age), "runningFor": _seconds(result.running_for)})
        | _true({"stale": result.stale, "failuresInARow": result.failures_in_a_row})
        | _true({"dependsOn": list(result.depends_on), "behind": list(result.behind)})
        | _true({"facts": _facts(result)}),
    )
    took = _milliseconds(result)
    if took is not None:
        yield (
            "responseTime",
            common | {"observedValue": took, "observedUnit": "ms"} | status | time,
        )


def _draft_status(status: Status) -> _Members:
    # The draft has no word for that.
    if status is Status.UNKNOWN:
        return {"status": Status.WARN.value, "unknown": True}
    return {"status": status.value}


def _spring(report: Report, view: View) -> bytes:
    """Tell *report* as Spring Boot's Actuator does."""
    out = report.status is Status.FAIL and report.output
    members: _Members = {"status": "OUT_OF_SERVICE" if out else _SPRING[report.status]}
    if view.details:
        if report.group == "all":
            members["groups"] = sorted(view.groups)
        members["components"] = {
            name: {"status": _SPRING[result.status]} | _true({"details": _spring_details(result)})
            for name, result in _by_name(report.results).items()
        }
    return _json(members)


def _by_name(results: Iterable[Result]) -> dict[str, Result]:
    """Return *results* by names that differ; a breaker and a limiter may share theirs, checks do not."""
    named: dict[str, Result] = {}
    for result in results:
        name = _line(result.name)
        named[name if name not in named else f"{name} ({result.kind})"] = result
    return named


_SPRING: Final = {Status.PASS: "UP", Status.WARN: "UP", Status.FAIL: "DOWN", Status.UNKNOWN: "UNKNOWN"}


def _spring_details(result: Result) -> _Members:
    told = "warning" if result.status is Status.WARN else "reason"
    return _facts(result) | _true({told: _line(result.output), "stale": result.stale}) | _observed(result)


def _microprofile(report: Report, view: View) -> bytes:
    """Tell *report* as Eclipse MicroProfile Health does.

    There all is up where each check is, and clients count on that: what does not fail the report is up, and
    has the reason for not being well in its data.
    """
    downs = _downs(report)
    checks: list[_Members] = [
        {"name": _line(result.name), "status": "DOWN" if down else "UP"}
        | _true({"data": _facts(result) | _true({"reason": _line(result.output)}) | _observed(result)})
        for result, down in zip(report.results, downs, strict=True)
    ]
    if not report.ok and (report.output or not any(downs)):  # as while it drains: no check is to blame
        data = _true({"reason": _line(report.output)})
        checks.append({"name": _line(view.word), "status": "DOWN"} | _true({"data": data}))
    return _json({"status": "UP" if report.ok else "DOWN", "checks": checks if view.details else []})


def _downs(report: Report) -> list[bool]:
    """Tell of each result whether *report* fails because of it."""
    if report.ok:
        return [False] * len(report.results)
    downs = [result.critical and result.status in {Status.FAIL, Status.UNKNOWN} for result in report.results]
    if any(downs) or report.output:
        return downs
    # Asked for by its name, a check fails for itself, critical or not.
    return [result.status is Status.FAIL for result in report.results]


def _plain(report: Report, _view: View) -> bytes:
    word: str = _draft_status(report.status)["status"]
    return word.encode("ascii")


def _verbose(report: Report, view: View) -> bytes:
    """Tell *report* as Kubernetes' own servers do for `?verbose`."""
    lines = [_verbose_line(result) for result in (report.results if view.details else ())]
    lines.append(f"{_line(view.word)} check {'passed' if report.ok else 'failed'}")
    if view.details and report.output:
        lines[-1] += f": {_line(report.output)}"
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _verbose_line(result: Result) -> str:
    name, reason = _line(result.name), _line(result.output)
    if not _is_up(result):
        verb = "failed" if result.status is Status.FAIL else "unknown"
        return f"[-]{name} {verb}: {reason or 'reason withheld'}"
    if result.status is Status.PASS:
        return f"[+]{name} ok"
    return f"[+]{name} ok: {result.status.value}" + (f", {reason}" if reason else "")


def _is_up(result: Result) -> bool:
    return result.status is not Status.FAIL and not (result.status is Status.UNKNOWN and result.critical)


def _observed(result: Result) -> _Members:
    value, took = _figure(result.value), _milliseconds(result)
    return _without_none(
        {
            "value": value,
            "unit": None if value is None else result.unit,
            "responseTime": None if took is None else f"{took} ms",
        }
    )


def _facts(result: Result) -> _Members:
    return {str(name): _fact(fact) for name, fact in (result.facts or {}).items()}


def _fact(fact: Any) -> Fact:
    if isinstance(fact, str):
        return _line(fact)
    if isinstance(fact, float):
        return _short(fact) if math.isfinite(fact) else str(fact)  # JSON has no such numbers
    if isinstance(fact, int) and fact.bit_length() > _LONGEST_NUMBER:
        return "out of range"
    return fact if fact is None or isinstance(fact, int | float) else _line(str(fact))


def _figure(value: float | None) -> float | None:
    try:
        return _short(value) if value is not None and math.isfinite(value) else None
    except (TypeError, OverflowError):  # what a check says is no number, or beyond all floats
        return None


def _short(number: float) -> float:
    """Return a number as people write it: a whole one without ".0"."""
    if isinstance(number, int) or not number.is_integer() or abs(number) >= _LARGEST_WHOLE:
        return number
    return int(number)


def _seconds(value: float | None) -> float | None:
    """Return seconds, to the millisecond."""
    seconds = _figure(value)
    return None if seconds is None else _short(round(seconds, 3))


def _milliseconds(result: Result) -> float | None:
    """Return how long a check took, in milliseconds; a round trip takes less than one."""
    took = _figure(result.took)
    return None if took is None else _figure(round(took * 1_000, 3))


def _line(text: str) -> str:
    """Return *text* as one short line."""
    line = _NO_TEXT.sub(" ", str(text)).strip()
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}\u2026"


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_none(members: _Members) -> _Members:
    return {name: value for name, value in members.items() if value is not None}


def _true(members: _Members) -> _Members:
    return {name: value for name, value in members.items() if value}


def _json(members: _Members) -> bytes:
    return json.dumps(members, allow_nan=False).encode("ascii")


DEFAULT: Final = Form("application/health+json", _health_json)
_PLAIN: Final = Form("text/plain; charset=utf-8", _plain)
_SPRING_FORM: Final = Form("application/vnd.spring-boot.actuator.v3+json", _spring)

# Each with the media types by which it is asked for; of two that are as good, the first is taken.
_BY_TYPE: Final = {
    "application/health+json": DEFAULT,
    "application/json": Form("application/json", _health_json),
    "text/plain": _PLAIN,
    "application/vnd.spring-boot.actuator.v3+json": _SPRING_FORM,
    "application/vnd.spring-boot.actuator.v2+json": _SPRING_FORM,
}
_BY_NAME: Final = {
    "json": DEFAULT,
    "plain": _PLAIN,
    "spring": _SPRING_FORM,
    "microprofile": Form("application/json", _microprofile),
    "verbose": Form("text/plain; charset=utf-8", _verbose),
}

# A media range and its weight (RFC 9110, 12.5.1); other parameters do not matter here.
_RANGE: Final = re.compile(r"\s*([\w!#$&^.+*-]+/[\w!#$&^.+*-]+)\s*((?:;[^;]*)*)", re.ASCII)
_WEIGHT: Final = re.compile(
    r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|\Z)", re.ASCII | re.IGNORECASE
)
_HAS_WEIGHT: Final = re.compile(r";\s*q\s*=", re.ASCII | re.IGNORECASE)


def chosen(query: str, accept: str | None) -> Form:
    """Return the form that is asked for: by `?verbose`, by `?format=`, by *accept*; else the default.

    Nothing that a client writes is an error.
    """
    if query:
        asked = dict(parse_qsl(query[:_LONGEST_HEADER], keep_blank_values=True))
        if "verbose" in asked:
            return _BY_NAME["verbose"]
        named = _BY_NAME.get(asked.get("format", "").lower())
        if named is not None:
            return named
    return _accepted(accept) if accept else DEFAULT


def _accepted(accept: str) -> Form:
    weights: dict[str, tuple[float, int]] = {}
    for place, item in enumerate(accept[:_LONGEST_HEADER].split(",")):
        found = _RANGE.fullmatch(item)
        if found is None:
            continue
        weight = _WEIGHT.search(found[2])
        if weight is not None or not _HAS_WEIGHT.search(found[2]):
            weights.setdefault(found[1].lower(), (float(weight[1]) if weight else 1.0, -place))
    best, form = (0.0, 0, 0), DEFAULT
    for media, candidate in _BY_TYPE.items():
        # The closest range decides. Of types that weigh the same, the one named closer wins, then the first.
        for closeness, media_range in ((2, media), (1, f"{media.partition('/')[0]}/*"), (0, "*/*")):
            if media_range in weights:
                weight_of, place_of = weights[media_range]
                rank = (weight_of, closeness, place_of)
                if weight_of > 0 and rank > best:
                    best, form = rank, candidate
                break
    return form
