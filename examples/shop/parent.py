"""Children end with their parent: it holds the other end of their standard input."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def when_parent_leaves(then: Callable[[], object]) -> None:
    """Call *then*, from a thread, once standard input ends: the parent has closed it, or is no more."""
    threading.Thread(target=_wait, args=(then,), daemon=True).start()


def _wait(then: Callable[[], object]) -> None:
    # os.read and not sys.stdin: a daemon thread inside a buffered reader upsets the interpreter's exit.
    while os.read(0, 1024):
        pass
    then()
