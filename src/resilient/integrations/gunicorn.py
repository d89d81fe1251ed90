"""gunicorn: workers that go on serving for a while when they are told to end, and fail readiness meanwhile.

Nothing of gunicorn is imported here.
"""

from __future__ import annotations

import functools
import importlib
import signal
from collections.abc import Callable
from typing import Any

from ..engine import params
from ..health.serving.asgi import DrainingAsgi
from ..health.serving.drain import Drained, drain_in_loop, drain_on_sigterm
from ..typing import Seconds

__all__ = ["draining"]


def draining(health: Drained | str, delay: Seconds = 5.0) -> Callable[[Any], None]:
    """Make a hook for `gunicorn.conf.py` that drains a worker before it ends; see `drain_on_sigterm`.

    For example: `post_worker_init = draining("shop.app:health", delay=10)`. It works for gunicorn's own
    workers, sync, threads and ASGI, and for those of uvicorn. `graceful_timeout` has to exceed *delay* by
    what the slowest request takes. Where gunicorn reloads (SIGHUP), the old workers drain beside the new
    ones: until they have ended, readiness fails at some of the requests for it.

    Args:
        health: the `Health` of the app; or where it is, as "module:name", which is imported by the worker and
            not before it is forked.
        delay: seconds to go on serving; 0 or more.

    Returns:
        The hook `post_worker_init`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: *delay* is out of range, or *health* is text of another form.
    """
    seconds = params.seconds("delay", delay)
    if isinstance(health, str):
        module, _, name = health.partition(":")
        if not module or not name:
            params.refuse(ValueError, "health", "must be like 'module:name'", health)
    elif isinstance(health, type) or not callable(getattr(health, "drain", None)):
        params.refuse(TypeError, "health", "must be a Health, or 'module:name'", health)

    def post_worker_init(worker: Any) -> None:
        _drain(worker, _found(health) if isinstance(health, str) else health, seconds)

    return post_worker_init


def _found(name: str) -> Drained:
    module, _, path = name.partition(":")
    found: Drained = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    return found


def _drain(worker: Any, health: Drained, delay: float) -> None:
    patience: float = worker.cfg.graceful_timeout
    if delay >= patience:
        worker.log.warning(
            "draining for %g s: gunicorn kills its workers after graceful_timeout = %g s", delay, patience
        )
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        # A worker of uvicorn's: its server is yet to install its handlers, and then starts the app.
        worker.wsgi = DrainingAsgi(worker.wsgi, health, delay)
    elif hasattr(worker, "handle_exit_signal"):  # the ASGI worker, whose loop gets the signals
        drain_in_loop(health, delay, worker.loop, worker.handle_exit_signal)
    else:
        drain_on_sigterm(health, delay)
        # As gunicorn has it: a request is not disturbed in the middle of a system call.
        signal.siginterrupt(signal.SIGTERM, False)
