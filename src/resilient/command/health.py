"""`resilient health`: how one service is doing, as an exit code."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Final, NamedTuple

from ..engine.finding import Status
from ..health.report import Report
from ..health.serving.told import LARGEST, line, report_in
from .arguments import add_question, seconds, token_of
from .fetching import Fetched, FetchError, Fetching, checked_url

__all__ = ["add", "judge"]

_PASSED: Final = 0
_FAILED: Final = 1
_UNREACHABLE: Final = 2

_SUCCESS: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)
_SERVER_ERRORS: Final = range(500, 600)


class Verdict(NamedTuple):
    """What came of it: the exit code, a word, a reason, and what was told."""

    code: int
    word: str
    output: str
    report: Report | None = None


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "health",
        help="tell how a service is doing, as an exit code for exec probes",
        description="Ask a service, or look into the file that a worker writes, and tell how it is doing: in "
        "one line, and by the exit code. That is 0 for pass and warn, 1 for fail, 2 if nobody can tell.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--url", metavar="URL", help="of the health of a service, such as http://127.0.0.1:8000/readyz"
    )
    what.add_argument(
        "--file", metavar="PATH", help="that a worker writes by health.write(); fail if it is missing"
    )
    parser.add_argument(
        "--max-age",
        type=seconds,
        metavar="S",
        help="seconds after which the file is too old, and that is a failure (default: 30)",
    )
    add_question(parser, timeout=1.0)
    parser.add_argument("--json", action="store_true", help="tell it as JSON")
    parser.set_defaults(run=_run, parser=parser)


def judge(fetched: Fetched, name: str) -> Verdict:
    """Return what *fetched* says of the service; *name* is for one that does not say its own."""
    report = report_in(fetched.body, name)
    http = f"HTTP {fetched.status}"
    if fetched.status in _SERVER_ERRORS:
        told = "" if report is None else _summary(report)
        return Verdict(_FAILED, Status.FAIL.value, f"{http}, {told}" if told else http, report)
    if fetched.status in _REDIRECTS:
        return Verdict(_UNREACHABLE, "unreachable", f"{http}: it points elsewhere, which is not followed")
    if fetched.status not in _SUCCESS:
        return Verdict(_UNREACHABLE, "unreachable", http)
    if report is None:
        much = (
            f"more than {LARGEST} bytes" if len(fetched.body) > LARGEST else fetched.content_type or "no type"
        )
        return Verdict(_UNREACHABLE, "unreachable", f"{http}, but what was sent is no health report: {much}")
    return _verdict_of(report)


def _run(arguments: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = arguments.parser
    begun = time.monotonic()
    if arguments.url is not None:
        if arguments.max_age is not None:
            parser.error("--max-age goes with --file")
        where, verdict = arguments.url, _ask(parser, arguments)
    else:
        where, verdict = arguments.file, _look(arguments)
    if arguments.json:
        print(json.dumps(_told(where, verdict, time.monotonic() - begun)))  # noqa: T201 - that is what it is for
        return verdict.code
    name = where if verdict.report is None else verdict.report.service
    print(": ".join(filter(None, (f"{verdict.word} {line(name)}", line(verdict.output)))))  # noqa: T201
    return verdict.code


def _ask(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Verdict:
    try:
        url = checked_url(arguments.url)
    except ValueError as exc:
        parser.error(f"--url {line(str(exc))}")
    try:
        fetched = Fetching(url, arguments.timeout, token_of(parser, arguments.token)).result()
    except FetchError as exc:
        return Verdict(_UNREACHABLE, "unreachable", str(exc))
    return judge(fetched, url.netloc)


def _look(arguments: argparse.Namespace) -> Verdict:
    from ..health.serving.status_file import read_status  # noqa: PLC0415 - of no use to those who ask

    written = read_status(arguments.file, 30.0 if arguments.max_age is None else arguments.max_age)
    if written.status is Status.FAIL and written.output:
        return Verdict(_FAILED, Status.FAIL.value, written.output, written.report)
    assert written.report is not None  # noqa: S101 - or it fails
    return _verdict_of(written.report)


def _verdict_of(report: Report) -> Verdict:
    return Verdict(_PASSED if report.ok else _FAILED, report.status.value, _summary(report), report)


def _summary(report: Report) -> str:
    """Return what is amiss, the worst first; or how much is not."""
    parts = [report.output] if report.output else []
    for status in (Status.FAIL, Status.WARN, Status.UNKNOWN):
        parts += [
            f"{result.name}: {result.output or status.value}"
            for result in report.results
            if result.status is status
        ]
    if not parts and report.results:
        many = len(report.results)
        parts = ["1 check passes" if many == 1 else f"{many} checks pass"]
    return "; ".join(parts)


def _told(where: str, verdict: Verdict, took: float) -> dict[str, Any]:
    report = verdict.report
    return {
        "status": verdict.word,
        "code": verdict.code,
        "where": where,
        "service": None if report is None else report.service,
        "output": line(verdict.output),
        "took": round(took, 4),
        "checks": [
            {"name": result.name, "kind": result.kind, "status": result.status, "output": result.output}
            for result in (() if report is None else report.results)
        ],
    }
