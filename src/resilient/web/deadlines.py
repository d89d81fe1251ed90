"""The deadline of a request: read from its header, set for the app, told to the services behind it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Final

from ..engine import params
from ..engine.clock import MONOTONIC
from ..engine.cutoff import Cutoff
from ..engine.deadline import Instant, current_deadline, innermost, time_left
from ..engine.drive.gates import GateBlock
from ..errors import CallTimeoutError
from ..policies.timeout import Deadline
from .request import Request

__all__ = ["RequestTime", "TimeLimits", "deadline_headers"]

_A_DAY: Final = 86_400.0  # a request that may take longer may take for ever
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC: Final = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
_MILLISECONDS: Final = re.compile(r"\d{1,15}", re.ASCII)
_MOST_GRPC: Final = 99_999_999


def _grpc(value: str) -> float | None:
    told = _GRPC.fullmatch(value)
    return None if told is None else int(told[1]) * _UNITS[told[2]]


def _milliseconds(value: str) -> float | None:
    return int(value) / 1e3 if _MILLISECONDS.fullmatch(value) else None


_READERS: Final[tuple[tuple[str, Callable[[str], float | None]], ...]] = (
    ("grpc-timeout", _grpc),
    ("x-envoy-expected-rq-timeout-ms", _milliseconds),
    ("x-request-timeout-ms", _milliseconds),
)
# As ASGI writes them, and as WSGI does.
_FIELDS: Final = frozenset({name.encode() for name, _ in _READERS}) | {
    f"HTTP_{name.upper().replace('-', '_')}" for name, _ in _READERS
}


def told_seconds(request: Request) -> float | None:
    """Return how many seconds the client gives *request*, the least of what it says; None where nothing.

    Only a declared proxy is believed. Anybody else could have the calls inside time out, and so open the
    breakers that all clients share.
    """
    # Mostly there is none, and that is looked at on every request.
    if _FIELDS.isdisjoint(request.present) or not request.is_from_proxy:
        return None
    told = [read(value.strip()) for name, read in _READERS if (value := request.header(name)) is not None]
    return min((seconds for seconds in told if seconds is not None), default=None)


class RequestTime:
    """The deadline of one request, from `TimeLimits.begin` until `end`."""

    __slots__ = ("_block", "_instant", "_patience", "_told")

    def __init__(self, block: GateBlock, told: _Told | None, patience: _Told | None) -> None:
        self._block = block
        self._instant = innermost.get()  # the block's
        self._told = told
        self._patience = patience

    @property
    def client_gave_up(self) -> bool:
        """Whether the client's time has run out, and was less than the service's own."""
        patience = self._patience
        return patience is not None and patience.when <= patience.clock()

    def end(self, error: BaseException | None) -> None:
        """End it; to be called once.

        Raises:
            CallTimeoutError: *error* is the cancellation by which this deadline cut the app off.
        """
        if self._told is not None:
            self._told.over = True
        self._block.__exit__(None, error, None)

    def check(self, error: BaseException | None) -> None:
        """Look at how the app has ended, where that was after `end`.

        A task of the app's may complete the answer in the very moment in which the deadline cuts off the one
        that the request runs in. The cancellation is on its way then, and cannot be taken back.

        Raises:
            CallTimeoutError: *error* is that cancellation: no server expects one that it has not asked for.
        """
        cut = self._instant
        if not (isinstance(cut, Cutoff) and cut.fired and isinstance(error, asyncio.CancelledError)):
            return
        task = asyncio.current_task()
        if task is not None and task.cancelling() <= cut.cancelling:
            reason = "the deadline passed as the answer was completed; what was to follow it is lost"
            raise CallTimeoutError(f"request: {reason}", policy="request", seconds=cut.seconds) from error


class TimeLimits:
    """Gives each request its deadline: the service's own, or the client's if that is earlier.

    Args:
        seconds: the service's own; None: only the client's.
        in_tasks: whether requests run in tasks, which are cut off. Threads cannot be.

    Concurrency: safe from any thread, task and loop.
    """

    __slots__ = ("_deadline", "_in_tasks", "_limited", "_seconds")

    def __init__(self, seconds: float | None, *, in_tasks: bool) -> None:
        self._limited = seconds is not None
        self._in_tasks = in_tasks
        self._seconds = _A_DAY if seconds is None else seconds
        self._deadline = Deadline(self._seconds, "request", MONOTONIC)

    def begin(self, request: Request) -> RequestTime | None:
        """Set the deadline of *request* in this context; return None where it has none.

        Raises:
            DeadlineExceededError: it has passed already.
        """
        seconds = told_seconds(request)
        if seconds is None and not self._limited:
            return None
        told = None if seconds is None else _promised(seconds)
        patience = _patience(self._seconds)
        block = self._deadline.block(in_task=self._in_tasks, recurring=True)
        try:
            block.__enter__()
        except BaseException:
            if told is not None:
                told.over = True
            raise
        return RequestTime(block, told, patience)


class _Told(Instant):
    """A deadline that a client has set."""

    __slots__ = ()


def _promised(seconds: float) -> _Told | None:
    """Set the client's deadline, in which the service's own then nests; None where one around is earlier."""
    outer = current_deadline()
    if outer is not None and outer.when - outer.clock() <= seconds:
        return None
    instant = _Told()
    instant.clock = MONOTONIC
    instant.when = MONOTONIC() + seconds
    instant.outer = outer
    instant.over = False
    innermost.set(instant)
    return instant


def _patience(own: float) -> _Told | None:
    """Return the client's deadline, by whichever middleware it was set, if it is before *own*."""
    instant = innermost.get()
    while instant is not None and (instant.over or not isinstance(instant, _Told)):
        instant = instant.outer
    return None if instant is None or instant.when - instant.clock() > own else instant


def deadline_headers(header: str = "x-request-timeout-ms") -> dict[str, str]:
    """Return what tells a service called from here how much time is left.

    Args:
        header: "x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms" or "grpc-timeout".

    Returns:
        One header field with the milliseconds left, rounded down: 0 where the deadline has passed; nothing
        where there is no deadline.

    Raises:
        ValueError: *header* is another one.

    Concurrency: reads the current context only.
    """
    params.one_of("header", header, [name for name, _ in _READERS])
    left = time_left()
    if left is None:
        return {}
    milliseconds = max(0, math.floor(left * 1e3))
    if header == "grpc-timeout":
        return {header: f"{min(milliseconds, _MOST_GRPC)}m"}
    return {header: str(milliseconds)}
