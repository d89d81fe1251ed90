"""The command `resilient`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["main"]

_UNKNOWN: Final = 2
_INTERRUPTED: Final = 130
_SIGPIPE: Final = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments. None: those of this process.

    Returns:
        The exit code; that of a wrong usage is 2.

    Raises:
        SystemExit: the usage is wrong, or was asked for.
    """
    from .command import alerts, dashboards, health  # noqa: PLC0415 - nobody who imports this module need have them
    from .command import map as dependency_map  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="resilient",
        description="Ask services how they are, draw what they depend on, print alert rules and dashboards.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    health.add(subparsers)
    dependency_map.add(subparsers)
    alerts.add(subparsers)
    dashboards.add(subparsers)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    if sys.stdout is None:  # closed by whoever wants the exit code only
        sys.stdout = io.StringIO()
    # A name may hold what this terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # nobody reads it any more, as with `| head`
        _silence()
        return _SIGPIPE
    except OSError as exc:  # the disk is full that it was to be written to
        _silence()
        print(f"resilient: cannot write: {exc.strerror or exc}", file=sys.stderr)  # noqa: T201
        return _UNKNOWN
    return code


def _silence() -> None:
    """Have what is still to be written go nowhere; or Python would try again at its end, and complain."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - it is no path, but a place
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
