"""`resilient map`: what services depend on, in one picture."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final
from urllib.parse import SplitResult

from ..engine.finding import Status
from ..health.mapping.dependency_map import DependencyMap, Node, NodeKind, map_of, merge
from ..health.serving.told import line, report_in
from .arguments import add_question, token_of
from .fetching import FetchError, Fetching, checked_url

__all__ = ["add"]

_DEFAULT_PATH: Final = "/health"
_MOST: Final = 200  # services of one picture; each is asked by a thread
_FORMS: Final = {
    "mermaid": DependencyMap.to_mermaid,
    "dot": DependencyMap.to_dot,
    "json": DependencyMap.to_json,
}


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "map",
        help="draw what services depend on, and how that is doing",
        description="Ask services how they are doing, and draw them and what they depend on. Who does not "
        "answer is in the picture, too. The exit code is 0 if any of them has told, else 2.",
    )
    parser.add_argument(
        "services",
        nargs="+",
        metavar="[NAME=]URL",
        help=f"of the health of a service; without a path, {_DEFAULT_PATH} is asked for. NAME: what it is "
        "called if it does not say",
    )
    parser.add_argument("--format", choices=sorted(_FORMS), default="mermaid", help="(default: %(default)s)")
    add_question(parser, timeout=2.0)
    parser.set_defaults(run=_run, parser=parser)


def _run(arguments: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = arguments.parser
    if len(arguments.services) > _MOST:
        parser.error(f"at most {_MOST} services fit into one picture")
    services = [_service(parser, given) for given in arguments.services]
    token = token_of(parser, arguments.token)
    asked = [(name, url, Fetching(url, arguments.timeout, token)) for name, url in services]
    maps: list[DependencyMap] = []
    anybody = False
    for name, url, fetching in asked:
        one, complaint = _map_of(name, fetching)
        maps.append(one)
        anybody = anybody or one.at is not None
        if complaint:
            print(f"resilient: {line(url.geturl())}: {complaint}", file=sys.stderr)  # noqa: T201
    sys.stdout.write(_FORMS[arguments.format](merge(maps)).rstrip("\n") + "\n")
    return 0 if anybody else 2


def _service(parser: argparse.ArgumentParser, given: str) -> tuple[str, SplitResult]:
    name, separator, address = given.partition("=")
    if not separator or "/" in name:  # the "=" of a query
        name, address = "", given
    try:
        url = checked_url(address)
    except ValueError as exc:
        parser.error(f"{line(given)!r}: the URL {line(str(exc))}")
    if url.path in {"", "/"}:
        url = url._replace(path=_DEFAULT_PATH)
    return name or url.netloc, url


def _map_of(name: str, fetching: Fetching) -> tuple[DependencyMap, str]:
    """Return the map of a service, and what there is to complain of."""
    try:
        fetched = fetching.result()
    except FetchError as exc:
        return _alone(name, Status.FAIL, str(exc)), str(exc)
    report = report_in(fetched.body, name)
    if report is None:
        fails = fetched.status >= 500  # noqa: PLR2004
        reason = f"HTTP {fetched.status}, and no health report"
        return _alone(name, Status.FAIL if fails else Status.UNKNOWN, reason), reason
    hint = "" if report.results else "it tells no details; is a token needed?"
    return map_of(report), hint


def _alone(name: str, status: Status, output: str) -> DependencyMap:
    return DependencyMap((Node(f"{NodeKind.SERVICE}:{name}", name, NodeKind.SERVICE, status, output),))
