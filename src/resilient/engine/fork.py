"""Fork safety: in a child process, nothing waits for a thread that was not copied."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renew_after_fork"]


class _Renewable(Protocol):
    def after_fork(self) -> None: ...


# Not a WeakSet: that runs Python code when one of them dies, in which an interrupt would be lost.
_known: set[weakref.ref[_Renewable]] = set()


def renew_after_fork(part: _Renewable) -> None:
    """Have `part.after_fork()` called in every child process, for as long as *part* lives.

    A lock that another thread held at the fork would stay locked for ever in the child: locks are made anew
    there, and what belonged to threads of the parent is dropped.
    """
    _known.add(weakref.ref(part, _known.discard))


def _renew_all() -> None:
    for reference in list(_known):
        part = reference()
        if part is not None:
            part.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
