"""`resilient dashboards`: the dashboards, for Grafana."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..health.serving.told import line
from .fetching import checked_url

if TYPE_CHECKING:
    from ..telemetry.dashboards import Board

__all__ = ["add"]


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "dashboards",
        help="print dashboards for Grafana",
        description="Print a dashboard over the metrics of this library, for Grafana to import, or write all "
        "into a directory that it is provisioned from. Without a name, and without --out, list them.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a dashboard")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write to DIR/resilient-NAME.json instead: the dashboard NAME, or all",
    )
    parser.add_argument(
        "--runbooks",
        type=_url,
        metavar="URL",
        help="of a documentation of yours with the same pages, for links to lead to (default: to this one)",
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(arguments: argparse.Namespace) -> int:
    # They are made of what all policies measure, which other commands need not load.
    from ..telemetry.dashboards import DASHBOARDS  # noqa: PLC0415

    parser: argparse.ArgumentParser = arguments.parser
    if arguments.name is not None and arguments.name not in DASHBOARDS:
        parser.error(f"there is no dashboard {line(arguments.name)!r}; there are {', '.join(DASHBOARDS)}")
    boards = list(DASHBOARDS.values()) if arguments.name is None else [DASHBOARDS[arguments.name]]
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for board in boards:
            file: Path = arguments.out / f"{board.uid}.json"
            file.write_text(_json(board, arguments.runbooks), encoding="utf-8")
            print(file)  # noqa: T201
    elif arguments.name is not None:
        sys.stdout.write(_json(boards[0], arguments.runbooks))
    else:
        widest = max(map(len, DASHBOARDS))
        for board in boards:
            print(f"{board.name:{widest}}  {board.description}")  # noqa: T201
    return 0


def _json(board: Board, runbooks: str | None) -> str:
    made = board.to_dict() if runbooks is None else board.to_dict(runbooks)
    return json.dumps(made, indent=2) + "\n"


def _url(text: str) -> str:
    """Return *text* if it is a URL, for argparse."""
    try:
        checked_url(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"the URL {exc}") from None  # which may have a password in it
    return text
