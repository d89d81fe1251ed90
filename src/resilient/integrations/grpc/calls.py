"""What the two server interceptors have in common: a call as a request, its door, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote

from ...engine import params
from ...engine.waiting import running_loop
from ...typing import Seconds
from ...web.addresses import Trusted, TrustedProxies
from ...web.deadlines import TimeLimits
from ...web.door import PROBES, Door, FaultyAnswerError, Gate, RateLimit, Visit, Waits, outcome
from ...web.headers import Dialect
from ...web.keys import Key
from ...web.maintenance import Maintenance
from ...web.priorities import PriorityKey
from ...web.request import Request
from ...web.surroundings import restore, surroundings
from .. import needing
from .statuses import FAULTS, REFUSALS, Refusal, refusal_of

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode

__all__ = ["HEALTH", "CallRequest", "Doorkeeper", "Served", "guarded"]

HEALTH: Final = "/grpc.health.v1.Health/*"
"""Exempt always: an orchestrator that is refused would restart the service."""

_TIMEOUT: Final = "grpc-timeout"
_MOST: Final = 99_999_999  # it has eight digits


class CallRequest(Request):
    """A call told by gRPC: its path is the full name of the method, its header the metadata.

    While the call is served, `raw` has the context as "grpc.context"; afterwards nobody is known any more.

    Attributes:
        task: that gRPC serves the call in; None on a server of threads.

    Concurrency: belongs to its call.
    """

    __slots__ = ("_believed", "_metadata", "_timeout", "task")

    def __init__(self, method: str, metadata: Any, proxies: TrustedProxies, *, believed: bool) -> None:
        self._metadata: tuple[tuple[str, str | bytes], ...] = tuple(metadata or ())
        self._believed = believed
        self._timeout: str | None = None
        self.task = None if running_loop() is None else asyncio.current_task()
        super().__init__({"grpc.method": method}, proxies)

    def arrived(self, context: Any) -> None:
        """Note that the call is served from now on."""
        self.raw["grpc.context"] = context
        self._timeout = _written(context.time_remaining())

    def departed(self) -> None:
        """Note that it is not any more."""
        self.raw.pop("grpc.context", None)

    @property
    def is_over(self) -> bool:
        """Whether gRPC has done with the call, though a thread may still serve it."""
        return self.task is not None and self.task.done()

    @property
    def method(self) -> str:
        """The method of HTTP, which is the same for all; the path is what gRPC calls so."""
        return "POST"

    @property
    def peer(self) -> str | None:
        """The other end of the connection; None for a Unix socket."""
        context = self._context()
        kind, _, address = ("" if context is None else context.peer()).partition(":")
        return unquote(address) if kind in _ADDRESSED else None

    @property
    def user(self) -> object:
        """Whose certificate the client has shown; None where it has not."""
        context = self._context()
        identities = None if context is None else context.peer_identities()
        return b",".join(identities).decode("latin-1") if identities else None

    def _context(self) -> Any:
        # To ask who calls when gRPC has done with a call would end the process: it looks at freed memory.
        return None if self.is_over else self.raw.get("grpc.context")

    @property
    def is_from_proxy(self) -> bool:
        """Whether what the call says of its time counts."""
        return self._believed or super().is_from_proxy

    @property
    def present(self) -> Iterable[object]:
        """The names of the metadata, as ASGI writes those of header fields."""
        names = {name.encode("latin-1", "replace") for name, _ in self._metadata}
        return names if self._timeout is None else {*names, _TIMEOUT.encode()}

    def header(self, name: str) -> str | None:
        """Return metadata.

        Args:
            name: its name.

        Returns:
            Its value; several of one name joined by commas; None where there is none.
        """
        wanted = name.lower()
        if wanted == _TIMEOUT:
            return self._timeout
        values = [_text(value) for key, value in self._metadata if key == wanted]
        return ",".join(values) if values else None

    def _own_path(self) -> str:
        return str(self.raw["grpc.method"])


_ADDRESSED: Final = frozenset({"ipv4", "ipv6"})


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _written(seconds: float | None) -> str | None:
    """Return the time of a call as the wire says it; None where there is none, or more than a day of it."""
    if seconds is None:
        return None
    for factor, unit in ((1e6, "u"), (1e3, "m")):
        if seconds * factor <= _MOST:
            return f"{int(seconds * factor)}{unit}"
    return None


B = TypeVar("B", bound="Served")


class Doorkeeper:
    """What a server interceptor is set to. The arguments are documented at `ResilienceServerInterceptor`.

    Concurrency: read only.
    """

    def __init__(
        self,
        *,
        rate_limit: RateLimit | None = None,
        key: Key | None = None,
        shed: Gate | None = None,
        priority: PriorityKey | None = None,
        deadline: Seconds | None = None,
        maintenance: Maintenance | None = None,
        exempt: Iterable[str] = (),
        headers: Dialect = "ietf",
        trusted: Trusted | None = None,
    ) -> None:
        if isinstance(exempt, str | bytes):  # its letters would be the paths
            params.refuse(TypeError, "exempt", "must be several paths, not one text", exempt)
        if not isinstance(exempt, Iterable):
            params.refuse(TypeError, "exempt", "must be several paths", exempt)
        self._believes_all = trusted is None
        self._tasks = Door(
            in_tasks=True,
            rate_limit=rate_limit,
            key=key,
            shed=shed,
            priority=priority,
            deadline=deadline,
            maintenance=maintenance,
            # The probes of the web are none of gRPC's methods: exempt, nobody looks for them.
            exempt=(*PROBES, HEALTH, *exempt),
            headers=headers,
            trusted=() if trusted is None else trusted,
        )
        # A server of tasks runs plain functions in threads: with the same limits, and none is cut off.
        self._threads = copy(self._tasks)
        seconds = params.optional_seconds("deadline", deadline)
        self._threads.time_limits = TimeLimits(seconds, in_tasks=False)

    def _admit(self, details: Any) -> CallRequest | None:
        """Return a call as a request; None where it is none of our business."""
        proxies, metadata = self._tasks.proxies, details.invocation_metadata
        request = CallRequest(details.method, metadata, proxies, believed=self._believes_all)
        return None if self._tasks.exempts(request) else request

    def _serving(self, kind: type[B], request: CallRequest) -> Callable[[Any], B]:
        """Return what makes a call that is served of its context."""
        door = self._tasks if kind.in_tasks else self._threads

        def serve(context: Any) -> B:
            request.arrived(context)
            return kind(door, request, context)

        return serve


class LateAnswerError(FaultyAnswerError, TimeoutError):
    """The handler has answered `DEADLINE_EXCEEDED`. It is never raised."""


class Served:
    """One call that is served, between its door and its end.

    Concurrency: belongs to its call. `end` may be called by any thread.
    """

    __slots__ = ("_around", "_begun", "_once", "context", "request", "visit")

    in_tasks: ClassVar[bool]
    """Whether it is served in a task, and else in a thread."""

    waits: ClassVar[Waits]
    """How that waits."""

    def __init__(self, door: Door, request: CallRequest, context: Any) -> None:
        self.context = context
        self.request = request
        self.visit = Visit(door, request, self.waits)
        self._begun = False
        self._once = threading.Lock()
        self._around = surroundings()

    def begun(self) -> None:
        """Note that the first message of a stream is on its way: it is the client that sets the pace now."""
        if not self._begun:
            self._begun = True
            self.visit.answered(_OK)

    def end(self, error: BaseException | None) -> Refusal | None:
        """Give back what the call holds; return how it is to be refused, where *error* says so.

        Whoever comes first does so; to come again does nothing.

        Raises:
            Exception: what is to be raised in place of *error*, and is none of `REFUSALS`.
        """
        dropped = isinstance(error, GeneratorExit)
        try:
            if not self._once.acquire(blocking=False):
                return None
            self.visit.leave(self._evidence(error))
        except REFUSALS as late:
            error = late
        finally:
            self.request.departed()
            if not dropped:  # then it may be another context that this runs in
                restore(self._around)
        if isinstance(error, REFUSALS):
            self.visit.notes.tell_refusal(error)
            refusal = refusal_of(error)
            self._tell(refusal.trailing)
            return refusal
        if not dropped:
            self._tell(())
        return None

    def dropped(self, _task: object) -> None:
        """Give back what the call still holds when it is over."""
        self.end(GeneratorExit())

    def is_gone(self, error: BaseException | None, /) -> bool:
        """Tell whether the client has left."""
        raise NotImplementedError

    def _evidence(self, error: BaseException | None) -> BaseException | None:
        """Return what a gate is told of the end: None for a success."""
        if self.is_gone(error):
            return outcome(_OK, error, gone=True)
        if isinstance(error, REFUSALS) or (error is not None and not isinstance(error, Exception)):
            return error
        code = _code(self.context)
        if code is None or code is StatusCode.OK:
            return outcome(_OK, error, gone=False)
        # The client is told of the code, whether or not an exception goes with it.
        if code not in FAULTS:
            return None
        kind = LateAnswerError if code is StatusCode.DEADLINE_EXCEEDED else FaultyAnswerError
        return kind(f"answered {code.name}")

    def _tell(self, more: Any) -> None:
        """Tell of limits, and *more*, in the metadata that goes with the status."""
        fields = [(name.lower(), value) for name, value in self.visit.notes.fields]
        if fields or more:
            # What runs in threads of a server of tasks cannot ask what was set.
            asked = getattr(self.context, "trailing_metadata", None)
            told: Any = () if asked is None else asked() or ()
            self.context.set_trailing_metadata((*told, *fields, *more))


_OK: Final = 200  # what success is called where the door is


_BY_NUMBER: Final[dict[Any, StatusCode]] = {code.value[0]: code for code in StatusCode}


def _code(context: Any) -> StatusCode | None:
    """Return the code that the handler has set; None where it has set none, or nobody can tell."""
    asked = getattr(context, "code", None)
    code: Any = None if asked is None else asked()
    return code if isinstance(code, StatusCode) else _BY_NUMBER.get(code)


_SHAPES: Final = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def guarded(handler: Any, wrap: Callable[[Callable[[Any, Any], Any], bool], Any]) -> Any:
    """Return *handler* with its function wrapped.

    Args:
        handler: what gRPC has found for a method.
        wrap: takes the function and whether it answers with a stream; returns what stands before it.
    """
    name, make = _SHAPES[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = getattr(handler, name)
    if getattr(behaviour, "experimental_non_blocking", False):
        return handler  # it has ended before its call has, and nobody would know when that is
    return make(
        wrap(behaviour, bool(handler.response_streaming)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
