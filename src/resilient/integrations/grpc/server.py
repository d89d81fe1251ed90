"""The interceptor for servers of threads, `grpc.server`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from types import TracebackType
from typing import Any, Self

from ...web.wsgi import WAITS, at_once
from .. import needing
from .calls import Doorkeeper, Served, guarded
from .statuses import REFUSALS

with needing("grpcio", extra="grpc"):
    import grpc

__all__ = ["InThread", "ResilienceServerInterceptor", "wrap_in_threads"]


class ResilienceServerInterceptor(Doorkeeper, grpc.ServerInterceptor):  # type: ignore[misc]
    """Guard a gRPC server of threads: rate limits, shedding, deadlines, maintenance, answers to refusals.

    A call passes, in this order: *exempt* methods (which nothing here touches), *maintenance*, its deadline,
    *rate_limit*, *shed*. Who is refused gets `RESOURCE_EXHAUSTED`, `UNAVAILABLE` or `DEADLINE_EXCEEDED`, and
    where it is known, in `grpc-retry-pushback-ms`, when to try again. So does whoever's call ends in a
    `RejectedError` or `CallTimeoutError` that leaves the handler. Other errors pass as they are.

    The time that the client gives a call is the deadline of everything inside the handler: `time_left()`
    tells it, and calls to other services take it along. A thread cannot be interrupted: the deadline is
    obeyed by the retries, time limits and waits inside.

    The place that *shed* gave is given back when the handler has answered; for a stream, when that has ended.
    A call is refused in a thread of the server's, so that one that hangs costs a thread all the same.
    Handlers that are marked `experimental_non_blocking` are not guarded.

    Args:
        rate_limit: a `RateLimiter`; a rate such as "100/minute"; or a mapping of methods to either. The exact
            method, "/shop.Payment/Charge", wins, then the longest "/shop.Payment/*", then "*"; one limit
            applies to each call. Nobody waits: a limiter's `max_wait` and `key` are for functions. None: no
            limit.
        key: makes the key that a call is limited by, of a request whose header is the metadata; None from it
            lifts the limit. None: the client's address.
        shed: a gate such as a `Bulkhead` or a `CircuitBreaker`. It is told of errors and of the codes
            `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS` as failures, and of
            clients that have left as abandonments. None: nothing is shed.
        priority: tells the priority of a call, for *shed* and everything inside, such as
            `requested_priority()`. None, or None from it: that of the context.
        deadline: seconds that a call may take; above 0. A client's own counts where it is earlier; what fails
            when that is up is an abandonment for *shed*. None: only that.
        maintenance: the switch that closes the service. None: there is none.
        exempt: methods that nothing here touches, in the patterns of *rate_limit*; those of the health
            service in any case.
        headers: what tells of limits in the trailing metadata: "ietf" for `ratelimit` and `ratelimit-policy`,
            "legacy" for `x-ratelimit-*`, "both", or None.
        trusted: the proxies and services whose `x-forwarded-for`, priorities and deadlines are believed:
            networks, or `TrustedProxies`. None: nobody but for deadlines, which are everybody's: gRPC itself
            ends a call when its time is up.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of calls and threads at once; nothing of a call is kept here.

    Source: gRFC A6 for the pushback; draft-ietf-httpapi-ratelimit-headers-11.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Put what guards a call before its handler; gRPC asks for that.

        Args:
            continuation: finds the handler.
            handler_call_details: the method, and the metadata.

        Returns:
            A handler; None where there is no such method.
        """
        handler = continuation(handler_call_details)
        # Nothing is decided here: the one thread that takes in all calls would wait for it.
        request = None if handler is None else self._admit(handler_call_details)
        if request is None:
            return handler
        serve = self._serving(InThread, request)
        return guarded(handler, partial(wrap_in_threads, serve))


class InThread(Served):
    """A call that is served in a thread; a block around what serves it."""

    __slots__ = ()

    in_tasks = False
    waits = WAITS

    def __enter__(self) -> Self:
        try:
            at_once(self.visit.enter())
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._end(error)

    def give_back_when_over(self) -> None:
        """Give back what the call holds when gRPC has done with it, on a server of tasks.

        That leaves the generator of a client that has left hanging between two messages.
        """
        task = self.request.task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.add_done_callback, self.dropped)

    def is_gone(self, _error: BaseException | None) -> bool:
        """Tell whether the client has left."""
        # A thread of a server of tasks has a context that cannot be asked.
        is_active = getattr(self.context, "is_active", None)
        return self.request.is_over if is_active is None else not is_active()

    def _end(self, error: BaseException | None) -> bool:
        refusal, is_over = self.end(error), self.request.is_over
        if refusal is not None and not is_over:
            self.context.abort(refusal.code, refusal.details)  # raises, in place of *error*
        return is_over and isinstance(error, REFUSALS)  # nobody is there to be told


def wrap_in_threads(
    serve: Callable[[Any], Any], behaviour: Callable[[Any, Any], Any], streams: bool
) -> Callable[[Any, Any], Any]:
    """Return what serves a call in threads.

    Args:
        serve: makes an `InThread` of a context.
        behaviour: the handler's function.
        streams: whether it answers with a stream.
    """

    def one(request: Any, context: Any) -> Any:
        with serve(context):
            return behaviour(request, context)

    def many(request: Any, context: Any) -> Generator[Any]:
        with serve(context) as served:
            served.give_back_when_over()
            for message in behaviour(request, context):
                served.begun()
                yield message

    return many if streams else one
