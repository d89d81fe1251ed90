"""Arguments that several subcommands have."""

from __future__ import annotations

import argparse
import math
import os
from typing import Final

__all__ = ["TOKEN_VARIABLE", "add_question", "seconds", "token_of"]

TOKEN_VARIABLE: Final = "RESILIENT_HEALTH_TOKEN"  # noqa: S105 - where it is, not what it is
_LONGEST: Final = 3_600.0


def seconds(text: str) -> float:
    """Return the seconds that *text* says, for argparse.

    Raises:
        ArgumentTypeError: it says none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"must be seconds, above 0 and at most {_LONGEST:g}: {text!r}")
    return value


def add_question(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Add what goes with a question over HTTP."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=timeout,
        metavar="S",
        help="seconds for the whole answer (default: %(default)g)",
    )
    parser.add_argument(
        "--token",
        metavar="T",
        help=f"sent as 'Authorization: Bearer T'; better in the environment, as {TOKEN_VARIABLE}: arguments "
        "are seen by everybody on the machine",
    )


def token_of(parser: argparse.ArgumentParser, given: str | None) -> str | None:
    """Return the token to send; None: there is none."""
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (
        token.isascii() and token.isprintable() and token.strip() == token and token
    ):
        parser.error("the token must be of ASCII, without spaces around it")  # which it is, is not told
    return token
