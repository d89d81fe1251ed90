"""`resilient alerts`: the alert rules, for Prometheus."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from .. import __version__
from ..health.serving.told import line
from .fetching import checked_url

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["add"]

_OBJECTIVE: Final = "99.9"
_RUNBOOKS: Final = "https://resilient-py.readthedocs.io/en/latest"

# Below it, the errors that have to be reached for the first page would be more than all there can be.
_LOWEST: Final = 95
_PLAIN: Final = re.compile(r"[\w.~:/?#!$&'()*+,;=%\[\]-]+", re.ASCII)


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "alerts",
        help="print alert rules for Prometheus",
        description="Print alert rules over the metrics of this library, as one file for Prometheus: "
        "resilient alerts > /etc/prometheus/rules/resilient.yaml",
    )
    parser.add_argument(
        "--objective",
        type=_objective,
        default=_OBJECTIVE,
        metavar="PERCENT",
        help="of the operations that are to succeed in 30 days (default: %(default)s)",
    )
    parser.add_argument(
        "--runbooks",
        type=_runbooks,
        default=_RUNBOOKS,
        metavar="URL",
        help="of this documentation, or of one of yours with the same pages (default: %(default)s)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the names of the alerts instead, with their severities and pages",
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(arguments: argparse.Namespace) -> int:
    from ..telemetry.alerts import alerts, rules  # noqa: PLC0415 - of no use to the other subcommands

    if arguments.list:
        widest = max(len(alert.name) for alert in alerts())
        for alert in alerts():
            print(f"{alert.severity:6}  {alert.name:{widest}}  {arguments.runbooks.rstrip('/')}/{alert.page}")  # noqa: T201
        return 0
    sys.stdout.write(
        f"# Alert rules of resilient {__version__} for Prometheus, as `resilient alerts` prints them.\n"
    )
    sys.stdout.write(rules(arguments.objective, arguments.runbooks))
    return 0


def _objective(text: str) -> Decimal:
    """Return the percentage that *text* says, for argparse."""
    from decimal import Decimal, InvalidOperation  # noqa: PLC0415

    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not (value.is_finite() and _LOWEST <= value < 100):  # noqa: PLR2004 - percent
        raise argparse.ArgumentTypeError(f"must be a percentage, at least {_LOWEST} and below 100: {text!r}")
    return value


def _runbooks(text: str) -> str:
    """Return *text* if it is a URL that can stand in the rules, for argparse."""
    try:
        checked_url(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"the URL {line(str(exc))}") from None
    if not _PLAIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"the URL must be of ASCII, without spaces, quotes or braces: {text!r}"
        )
    return text
