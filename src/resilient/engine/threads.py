"""Starting threads, by which no interrupt may be mistaken for a want of threads."""

from __future__ import annotations

import sys
import threading

__all__ = ["start"]


def start(thread: threading.Thread) -> None:
    """Start *thread*. After an interrupt it may come all the same, at any time, or never.

    Raises:
        RuntimeError: there are no more threads, for now, or because the interpreter ends.
    """
    handled = sys.exc_info()[1]
    try:
        thread.start()
    except RuntimeError as error:
        # `start` waits for the thread on a condition. An interrupt that strikes while the condition has let
        # go of its lock comes out as the complaint that it cannot let go of it again.
        interrupt = error.__context__
        if interrupt is None or interrupt is handled:
            raise
    else:
        return
    try:
        raise interrupt
    finally:
        del interrupt  # or its traceback would keep this frame alive, and this frame it
