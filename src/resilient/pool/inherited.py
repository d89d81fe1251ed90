"""Connections that a forked process has from its parent: not one byte of it may be sent on them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, Final

from .handling import Handling

__all__ = ["keep", "leave_to_parent"]

_inherited: Final[list[Any]] = []


def keep(thing: object) -> None:
    """Never let go of *thing*: what runs when it goes is written for the process that made it."""
    _inherited.append(thing)


def leave_to_parent(handling: Handling, connections: Iterable[Any]) -> None:
    """Turn this process's descriptors of *connections* away from the sockets that it shares with its parent.

    From then on, whatever is said goodbye with goes nowhere, and a socket that the parent closes is closed.
    """
    for conn in connections:
        keep(conn)
        with contextlib.suppress(Exception):  # of a client library, in a process that it does not know
            descriptor = handling.fileno(conn)
            if descriptor is not None and descriptor >= 0:
                _point_nowhere(descriptor)


def _point_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)
