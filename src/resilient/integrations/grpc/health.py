"""`grpc.health.v1`, told from what a `Health` knows: for threads and for tasks."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent import futures
from functools import cached_property, partial
from typing import Any, ClassVar, Final, Generic, NamedTuple, NoReturn, TypeVar

from ...engine import params
from ...engine.finding import Status
from ...engine.waiting import TaskWaiter, ThreadWaiter, Waiter
from ...engine.workers import Job, Workers
from ...events import Event
from ...health.health import Health
from ...health.report import Report
from ...typing import Seconds
from .. import needing

with needing("grpcio and grpcio-health-checking", extra="grpc"):
    import grpc
    import grpc.aio
    from grpc import StatusCode
    from grpc_health.v1.health_pb2 import HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthServicer as _Servicer
    from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

__all__ = ["AioHealthServicer", "HealthServicer", "add_health"]

W = TypeVar("W", bound=Waiter)

_SERVICES: Final = {"": "ready", "liveness": "live", "readiness": "ready", "startup": "startup"}
"""What may be asked for in any case, by the words of Kubernetes' probes; and the group that tells."""

_UNKNOWN: Final = "There is no such service."
_TOO_MANY: Final = "There are too many watches already."
_THREADS: Final = 32
_TASKS: Final = 1_024
_OF_THE_SERVERS: Final = 2  # of its threads that watches may take, where they cannot have their own
_SHARE: Final = 0.8  # of the time that a prober has: the answer takes its way, too


class _Seat(Generic[W]):
    """The place of one watch.

    Concurrency: whoever watches puts a new waiter here before it looks, and `gone` is set before the waiter
    is woken. So whoever wakes the one before has been seen.
    """

    __slots__ = ("gone", "waiter")

    def __init__(self, waiter: W) -> None:
        self.waiter = waiter
        self.gone = False

    def leave(self) -> None:
        """End the watch."""
        self.gone = True
        self.waiter.wake()


class _Look(NamedTuple):
    status: Any
    rings: int  # there had been when somebody looked
    at: float


class _Desk(Generic[W]):
    """What the two servicers have in common: who asks for what, and who watches.

    The arguments are documented where users find them: at the servicers.
    """

    _most: ClassVar[int]
    """Watches at the same time, where nobody has said how many."""

    def __init__(
        self,
        health: Health,
        *,
        services: Mapping[str, str] | None = None,
        max_watchers: int | None = None,
        every: Seconds = 1.0,
    ) -> None:
        if not isinstance(health, Health):
            params.refuse(TypeError, "health", "must be a Health", health)
        self._health = health
        self._services = {**_SERVICES, **_mapped(services)}
        most = self._most if max_watchers is None else max_watchers
        self._limit = params.count("max_watchers", most, least=0)
        self._every = params.seconds("every", every, above=True)
        self._lock = threading.Lock()
        self._seats: set[_Seat[W]] = set()
        self._rings = 0
        self._looked: dict[str, _Look] = {}
        self._closed = False
        # Not the other way round: a Health that outlives its server must not keep that alive.
        self._heard = _Ring(weakref.ref(self))
        health.add_listener(self._heard)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._seats)

    def close(self) -> None:
        """Tell all watchers `NOT_SERVING`, and end their calls; closing twice does nothing.

        Concurrency: safe from any thread and task; waits for nobody.
        """
        self._closed = True
        with contextlib.suppress(ValueError):
            self._health.remove_listener(self._heard)
        self.ring()

    def ring(self) -> None:
        """Have all watchers look."""
        self._rings += 1
        for seat in self._seats.copy():
            seat.waiter.wake()

    def _group(self, service: str) -> str:
        return self._services.get(service, service)

    def _serving(self, service: str) -> Any:
        """Return how *service* is doing as far as is known."""
        group, rings, now = self._group(service), self._rings, time.monotonic()
        # A thousand who watch one group look once. What nobody knows is not kept: anybody may invent names.
        known = self._looked.get(group)
        if known is not None and known.rings == rings and now - known.at < self._every / 2:
            return known.status
        try:
            status = _told(self._health.latest(group))
        except KeyError:
            return HealthCheckResponse.SERVICE_UNKNOWN
        self._looked[group] = _Look(status, rings, now)
        return status

    def _listed(self) -> Any:
        # Not in every version of the generated module.
        from grpc_health.v1.health_pb2 import HealthListResponse  # noqa: PLC0415

        services = sorted({*self._services, *self._health.groups})
        told = {service: self._serving(service) for service in services}
        known = {
            name: status for name, status in told.items() if status != HealthCheckResponse.SERVICE_UNKNOWN
        }
        return HealthListResponse(
            statuses={name: HealthCheckResponse(status=status) for name, status in known.items()}
        )

    @contextlib.contextmanager
    def _seat(self, waiter: W, limit: int) -> Generator[_Seat[W] | None]:
        """Take a place for one watch; None where there is none left."""
        seat = _Seat(waiter)
        with self._lock:
            if len(self._seats) < limit:
                self._seats.add(seat)
        try:
            yield seat if seat in self._seats else None
        finally:
            with self._lock:
                self._seats.discard(seat)

    def _changes(self, service: str, first: Any, seat: _Seat[W], wait: type[W]) -> Generator[Any]:
        """Return what to tell a watcher, one after the other; None: wait at the seat."""
        told, status = None, first
        while not seat.gone:
            closed = self._closed
            if closed:
                status = HealthCheckResponse.NOT_SERVING
            if status != told:
                told = status
                yield HealthCheckResponse(status=status)
            if closed:
                return
            yield None
            seat.waiter = wait()
            status = self._serving(service)


class _Ring:
    """Has the watchers look when anything has changed."""

    def __init__(self, desk: weakref.ref[Any]) -> None:
        self._desk = desk

    def __call__(self, _event: Event) -> None:
        desk = self._desk()
        if desk is not None:
            desk.ring()


class HealthServicer(_Desk[ThreadWaiter], _Servicer):  # type: ignore[misc]
    """Tell gRPC's probes and channels how a service is doing; for `grpc.server`.

    The service "" is the server as a whole, which is as ready as the group "ready". "liveness", "readiness"
    and "startup" are there for Kubernetes' probes, all groups by their names, and what *services* names.

    `Check` waits for what is not known yet, but answers in the prober's time. `Watch` tells what is known at
    once, and then what changes. What fails is `NOT_SERVING`, what warns is `SERVING`.

    Each watch has a thread, and not one of the server's. Behind an interceptor that wraps handlers, it cannot
    have one of its own, and no more than two watches are let in.

    Args:
        health: what knows.
        services: names of gRPC services, and the group of checks that each stands for; such as
            `{"shop.Payment": "payments"}`. None: no more than those above.
        max_watchers: watches at the same time; who comes then gets `RESOURCE_EXHAUSTED`. 0: nobody may watch.
            None: 32.
        every: seconds after which watches look, beside the moments in which *health* tells of a change; above
            0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of calls at once; may be registered with several servers.

    Source: gRPC health checking protocol.
    """

    _most = _THREADS

    @cached_property
    def Watch(self) -> Any:  # noqa: N802 # pyright: ignore[reportIncompatibleMethodOverride]
        """What tells how a service is doing, now and whenever that changes."""
        # One more: for who is told that there are too many.
        return _InOwnThreads(self._watch, Workers(self._limit + 1, "resilient-grpc-watch"))

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell how a service is doing.

        Args:
            request: a `HealthCheckRequest`.
            context: of the call.

        Returns:
            A `HealthCheckResponse`.
        """
        return HealthCheckResponse(status=self._ask(request.service, context))

    def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Tell of all services, as far as is known.

        Returns:
            A `HealthListResponse`.
        """
        return self._listed()

    def _ask(self, service: str, context: Any) -> Any:
        try:
            report = self._health.report(self._group(service), within=_patience(context, self._health))
        except KeyError:
            _abort(context, StatusCode.NOT_FOUND, _UNKNOWN)
        return _told(report)

    def _watch(self, request: Any, context: Any) -> Generator[Any]:
        limit = self._limit if _here.is_for_watches else min(self._limit, _OF_THE_SERVERS)
        with self._seat(ThreadWaiter(), limit) as seat:
            if seat is None:
                _abort(context, StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)
            if not context.add_callback(seat.leave):
                return  # the client has left already
            try:
                first = _told(self._health.report(self._group(request.service)))
            except KeyError:
                first = HealthCheckResponse.SERVICE_UNKNOWN
            for change in self._changes(request.service, first, seat, ThreadWaiter):
                if change is None:
                    seat.waiter.park(self._every)
                else:
                    yield change


class AioHealthServicer(_Desk[TaskWaiter], _Servicer):  # type: ignore[misc]
    """Tell gRPC's probes and channels how a service is doing; for `grpc.aio.server`.

    It does as `HealthServicer`, and the arguments are the same. But a watch is a task, and takes no thread:
    None as *max_watchers* stands for 1024, and interceptors let in as many.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of calls at once; may be registered with several servers and loops.

    Source: gRPC health checking protocol.
    """

    _most = _TASKS

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell how a service is doing.

        Args:
            request: a `HealthCheckRequest`.
            context: of the call.

        Returns:
            A `HealthCheckResponse`.
        """
        status = await self._ask(request.service, _patience(context, self._health))
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(StatusCode.NOT_FOUND, _UNKNOWN)
        return HealthCheckResponse(status=status)

    async def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Tell of all services, as far as is known.

        Returns:
            A `HealthListResponse`.
        """
        return self._listed()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Tell how a service is doing, now and whenever that changes.

        Args:
            request: a `HealthCheckRequest`.
            context: of the call.
        """
        # It writes to the context, and is no generator: gRPC would leave that to the garbage collector.
        with self._seat(TaskWaiter(), self._limit) as seat:
            if seat is None:
                await context.abort(StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)
                return
            first = await self._ask(request.service, None)
            for change in self._changes(request.service, first, seat, TaskWaiter):
                if change is None:
                    await seat.waiter.park(self._every)
                else:
                    await context.write(change)

    async def _ask(self, service: str, patience: float | None) -> Any:
        try:
            return _told(await self._health.areport(self._group(service), within=patience))
        except KeyError:
            return HealthCheckResponse.SERVICE_UNKNOWN


def add_health(
    health: Health,
    server: Any,
    *,
    services: Mapping[str, str] | None = None,
    max_watchers: int | None = None,
    every: Seconds = 1.0,
) -> HealthServicer | AioHealthServicer:
    """Have a gRPC server tell its health, before it is started.

    When the server is stopped, watchers are told `NOT_SERVING` and their calls end: they would use up all the
    time that `stop` leaves to the others.

    Args:
        health: what knows.
        server: made by `grpc.server` or `grpc.aio.server`.
        services: see `HealthServicer`.
        max_watchers: see `HealthServicer` and `AioHealthServicer`.
        every: see `HealthServicer`.

    Returns:
        What was registered.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    kind: type[HealthServicer | AioHealthServicer]
    if isinstance(server, grpc.aio.Server):
        kind = AioHealthServicer
    elif isinstance(server, grpc.Server):
        kind = HealthServicer
    else:
        params.refuse(TypeError, "server", "must be a gRPC server", server)
    servicer = kind(health, services=services, max_watchers=max_watchers, every=every)
    add_HealthServicer_to_server(servicer, server)
    # Nobody is told when a server stops. The class's own method, of a server that is referred to weakly: a
    # server stops when it is dropped, and must not hold itself.
    before = vars(server).get("stop") or partial(_stop, weakref.ref(server))
    server.stop = partial(_close_and_stop, servicer, before)
    return servicer


def _close_and_stop(
    servicer: HealthServicer | AioHealthServicer, stop: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    servicer.close()
    return stop(*args, **kwargs)


def _stop(reference: weakref.ref[Any], *args: Any, **kwargs: Any) -> Any:
    server: Any = reference()
    return type(server).stop(server, *args, **kwargs)


def _abort(context: Any, code: StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort() has raised")


def _mapped(services: Mapping[str, str] | None) -> dict[str, str]:
    if services is None:
        return {}
    if not isinstance(services, Mapping):
        params.refuse(TypeError, "services", "must map names of services to groups", services)
    for service, group in services.items():
        if not isinstance(service, str):
            params.refuse(TypeError, "services", "must name services as text", service)
        params.named(f"services[{service!r}]", group)
    return dict(services)


def _told(report: Report) -> Any:
    return HealthCheckResponse.NOT_SERVING if report.status is Status.FAIL else HealthCheckResponse.SERVING


def _patience(context: Any, health: Health) -> float:
    """Return how long to wait for what is not known yet, so that the answer comes in whoever asks's time."""
    left = context.time_remaining()
    return health.answer_within if left is None else min(health.answer_within, max(0.0, left * _SHARE))


class _Here(threading.local):
    """What kind of thread this is. gRPC gives calls a context of their own, so it cannot be told by that."""

    is_for_watches = False


_here: Final = _Here()


class _InOwnThreads:
    """A handler, and the threads that the server is to run it in."""

    def __init__(self, behaviour: Callable[[Any, Any], Any], workers: Workers) -> None:
        self._behaviour = behaviour
        self.experimental_thread_pool = _Threads(workers)  # by this name gRPC knows it

    def __call__(self, request: Any, context: Any) -> Any:
        return self._behaviour(request, context)


class _Threads(futures.ThreadPoolExecutor):
    """Threads that do not keep the process from ending, as a true pool's would while anybody watches."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(max_workers=1)  # never started
        self._workers = workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        self._workers.submit(Job(partial(_run, future, partial(fn, *args, **kwargs)), self._workers.overdue))
        return future


def _run(future: futures.Future[Any], call: Callable[[], Any]) -> None:
    _here.is_for_watches = True
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it is whoever waits for the future that is to know
        future.set_exception(error)
