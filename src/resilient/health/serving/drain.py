"""Draining: readiness fails when the process is told to end, and it goes on serving for a while."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Protocol

from ...engine import params
from ...typing import Seconds

__all__ = ["drain_in_loop", "drain_on_sigterm"]

_REASON: Final = "the process was told to end"


class Drained(Protocol):
    """What drains."""

    def drain(self, reason: str = "") -> object:
        """Have readiness fail from now on."""


def drain_on_sigterm(health: Drained, delay: Seconds = 5.0) -> None:
    """Have readiness fail at SIGTERM, and the process end only *delay* seconds later.

    A balancer goes on sending requests until it has seen readiness fail, and so does Kubernetes until the
    news has reached every node. Until then this process has to serve them: only afterwards does SIGTERM go to
    whoever handled it before, such as uvicorn, gunicorn, an event loop, or Python, which ends the process. A
    second SIGTERM goes there at once. SIGINT is not touched.

    Call it after the server has installed its own handlers, or they take the place of this one:
    `health.asgi(drain_delay=...)` and `resilient.integrations.gunicorn.draining` do so. Calling it again
    changes the delay; several `Health`s drain together, for the longest of their delays.

    Args:
        health: what drains.
        delay: seconds to go on serving; 0 or more. It has to exceed the time in which the balancer notices,
            and be well below the time after which the process is killed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: *delay* is out of range.
        RuntimeError: this is not the main thread, to which signals go; or SIGTERM is handled by something
            that cannot be asked to handle it later.

    Concurrency: the main thread only. `health.drain()` is called in a thread of its own, not in the handler.
        Python calls handlers when the main thread runs, and the system may have another thread take the
        signal: a main thread that has nothing to do is to wait in steps of a second, not for hours.
    """
    if not callable(getattr(health, "drain", None)) or isinstance(health, type):
        params.refuse(TypeError, "health", "must be a Health", health)
    seconds = params.seconds("delay", delay)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("drain_on_sigterm must be called in the main thread: signals are handled there")
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(getattr(handler, "__self__", None), _Draining):
        draining: _Draining = handler.__self__  # type: ignore[union-attr]
        draining.add(health, seconds)
    elif handler is None:
        raise RuntimeError("SIGTERM is handled by something other than Python, which cannot be put off")
    elif getattr(handler, "__module__", None) == "asyncio.unix_events":
        _put_before_loop(health, seconds)
    else:
        draining = _Draining(health, seconds, _passing_to(handler))
        draining.installed = draining.signalled
        signal.signal(signal.SIGTERM, draining.signalled)


def drain_in_loop(
    health: Drained, delay: Seconds, loop: asyncio.AbstractEventLoop, pass_on: Callable[[], object]
) -> None:
    """Do as `drain_on_sigterm` where an event loop handles SIGTERM.

    Args:
        health: what drains.
        delay: seconds to go on serving; 0 or more.
        loop: whose handler takes the place of its former one.
        pass_on: what that one did.
    """
    _give_to(_Draining(health, params.seconds("delay", delay), lambda _frame: pass_on()), loop)


class _Draining:
    """A handler of SIGTERM before another one: the first signal is put off, and each further one is not.

    Attributes:
        installed: what `signal.getsignal` returns for as long as this is the handler.

    Concurrency: it is called in the main thread only, between any two steps of what that does. So it takes no
    lock, and does in a thread of its own what may take one.
    """

    def __init__(self, health: Drained, delay: float, pass_on: Callable[[FrameType | None], object]) -> None:
        self._delays = {health: delay}
        self._pass_on = pass_on
        self.installed: Any = None
        self._begun = False
        self._passed = False

    def add(self, health: Drained, delay: float) -> None:
        self._delays[health] = delay

    def signalled(self, _number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Handle the signal."""
        if not self._begun:
            self._begun = True
            # Not a `Thread`, which takes locks to start and which the interpreter would wait for at its end.
            with contextlib.suppress(RuntimeError):  # there can be no more threads: there is no delay then
                _thread.start_new_thread(self._drain, ())
                return
        self._passed = True
        self._pass_on(frame)

    def _drain(self) -> None:
        for health in tuple(self._delays):
            # Whatever it raises, the process has been told to end.
            with contextlib.suppress(Exception):
                health.drain(_REASON)
        time.sleep(max(self._delays.values()))
        # Where the server has ended meanwhile, as at SIGINT, the handler is not ours any more: the signal
        # would break off what the process still does.
        if not self._passed and signal.getsignal(signal.SIGTERM) == self.installed:
            if sys.platform == "win32":
                signal.raise_signal(signal.SIGTERM)
            else:  # to the thread that has to wake up for it
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _passing_to(handler: Any) -> Callable[[FrameType | None], object]:
    def pass_on(frame: FrameType | None) -> None:
        if callable(handler):  # the two of the system's are numbers
            handler(signal.SIGTERM, frame)
        elif handler == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
            # Only the first process of a container is still there: the kernel spares it the default.
            raise SystemExit(128 + signal.SIGTERM)

    return pass_on


def _put_before_loop(health: Drained, delay: float) -> None:
    """Put a handler before the one of the running loop, to which signals go whatever `signal.signal` says."""
    try:
        loop = asyncio.get_running_loop()
        former: Any = loop._signal_handlers[signal.SIGTERM]  # type: ignore[attr-defined]  # noqa: SLF001
    except (RuntimeError, AttributeError, KeyError):
        raise RuntimeError(
            "SIGTERM is handled by an event loop: call drain_on_sigterm in a task of that loop, or "
            "health.drain() in the handler"
        ) from None
    owner = getattr(former._callback, "__self__", None)  # noqa: SLF001
    if isinstance(owner, _Draining):
        owner.add(health, delay)
        return

    def pass_on(_frame: FrameType | None) -> None:
        former._run()  # noqa: SLF001

    _give_to(_Draining(health, delay, pass_on), loop)


def _give_to(draining: _Draining, loop: asyncio.AbstractEventLoop) -> None:
    loop.add_signal_handler(signal.SIGTERM, draining.signalled)
    draining.installed = signal.getsignal(signal.SIGTERM)
