"""The command `resilient`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["main"]

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
    from .command import health  # noqa: PLC0415 - nobody who imports this module need have it
    from .command import map as dependency_map  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="resilient", description="Ask services how they are, and draw what they depend on."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    health.add(subparsers)
    dependency_map.add(subparsers)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
