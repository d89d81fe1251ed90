"""A thread with an event loop of its own, for what has to happen though nobody asks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import Context
from typing import Final

from ..engine.fork import renew_after_fork
from ..engine.threads import start

__all__ = ["Keeper"]


class Keeper:
    """An event loop in a daemon thread, there from the first time that somebody wants it.

    Concurrency: safe from any thread. A forked child has none until it is wanted there.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._own: asyncio.AbstractEventLoop | None = None
        self.after_fork()
        renew_after_fork(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; it runs, or is about to.

        Raises:
            RuntimeError: no thread could be started.
        """
        with self._lock:
            if self._own is None:
                self._begin()
            assert self._own is not None  # noqa: S101 - by now
            return self._own

    def keeps(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether *loop* is this one, and has not been stopped."""
        return self._own is loop

    def stop(self) -> None:
        """End the thread; what runs on the loop is cancelled."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            with contextlib.suppress(RuntimeError):  # it has come to its end by itself
                own.call_soon_threadsafe(own.stop)

    def after_fork(self) -> None:
        """Forget the loop: its thread was not copied."""
        self._lock = threading.RLock()  # re-entrant: a signal handler may ask, too
        inherited, self._own = self._own, None
        if inherited is not None:
            # Not `close()`: that would take the parent's sockets out of a selector that both share.
            _inherited.append(inherited)

    def _begin(self) -> None:
        """Start the thread; requires the lock."""
        # Not in the context of whoever asks first, which both would keep.
        nobody = Context()
        own = nobody.run(asyncio.new_event_loop)
        thread = threading.Thread(target=self._keep, args=(own,), name=self._name, daemon=True)
        self._own = own
        try:
            nobody.run(start, thread)
        except BaseException as error:
            # Where that was an interrupt, the thread may come all the same, and finds that nobody wants it.
            self._own = None
            if isinstance(error, RuntimeError):
                own.close()
            raise

    def _keep(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            wanted = self._own is loop
        asyncio.set_event_loop(loop)
        try:
            if wanted:
                loop.run_forever()
        finally:
            with self._lock:
                if self._own is loop:  # a check has stopped it
                    self._own = None
            _wind_up(loop)


_inherited: list[
    asyncio.AbstractEventLoop
] = []  # never collected, or they would complain of not being closed
_PATIENCE: Final = 1.0


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            # Those that ignore it are left to their fate: nobody waits for this thread, and it is to end.
            loop.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
