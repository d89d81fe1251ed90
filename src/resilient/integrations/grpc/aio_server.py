"""The interceptor for servers of tasks, `grpc.aio.server`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from ...typing import Seconds
from ...web.addresses import Trusted
from ...web.asgi import WAITS
from ...web.door import Gate, RateLimit
from ...web.headers import Dialect
from ...web.keys import Key
from ...web.maintenance import Maintenance
from ...web.priorities import PriorityKey
from .. import needing
from .calls import Doorkeeper, Served, guarded
from .server import InThread, wrap_in_threads

with needing("grpcio", extra="grpc"):
    import grpc.aio
    from grpc.aio import AbortError, BaseError, InternalError, UsageError

__all__ = ["AioResilienceServerInterceptor"]


class AioResilienceServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guard a gRPC server of tasks: rate limits, shedding, deadlines, maintenance, answers to refusals.

    A call passes, in this order: *exempt* methods (which nothing here touches), *maintenance*, its deadline,
    *rate_limit*, *shed*. Who is refused gets `RESOURCE_EXHAUSTED`, `UNAVAILABLE` or `DEADLINE_EXCEEDED`, and
    where it is known, in `grpc-retry-pushback-ms`, when to try again. So does whoever's call ends in a
    `RejectedError` or `CallTimeoutError` that leaves the handler. Other errors pass as they are.

    The time that the client gives a call is the deadline of everything inside the handler: `time_left()`
    tells it, and calls to other services take it along. When it is up, the handler is cancelled.

    The place that *shed* gave is given back when the handler has answered; for a stream, when that has ended.
    Handlers that are plain functions run in the server's threads, and are guarded there. A plain generator
    whose client leaves may hang in gRPC for ever, with its thread; its place is given back.

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

    Concurrency: serves any number of calls and loops at once; nothing of a call is kept here.

    Source: gRFC A6 for the pushback; draft-ietf-httpapi-ratelimit-headers-11.
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
        self._doorkeeper = Doorkeeper(
            {
                "rate_limit": rate_limit,
                "key": key,
                "shed": shed,
                "priority": priority,
                "deadline": deadline,
                "maintenance": maintenance,
                "exempt": exempt,
                "headers": headers,
                "trusted": trusted,
            }
        )

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Put what guards a call before its handler; gRPC asks for that.

        Args:
            continuation: finds the handler.
            handler_call_details: the method, and the metadata.

        Returns:
            A handler; None where there is no such method.
        """
        handler = await continuation(handler_call_details)
        request = None if handler is None else self._doorkeeper.admit(handler_call_details)
        if request is None:
            return handler

        def wrap(behaviour: Callable[[Any, Any], Any], streams: bool) -> Callable[[Any, Any], Any]:
            if inspect.isasyncgenfunction(behaviour):
                return _many(self._doorkeeper.serving(_InTask, request), behaviour)
            # A coroutine function may answer with a stream, too: it writes to its context.
            if inspect.iscoroutinefunction(behaviour):
                return _one(self._doorkeeper.serving(_InTask, request), behaviour)
            return wrap_in_threads(self._doorkeeper.serving(InThread, request), behaviour, streams)

        return guarded(handler, wrap)


class _InTask(Served):
    """A call that is served in a task; a block around what serves it."""

    __slots__ = ()

    in_tasks = True
    waits = WAITS

    async def __aenter__(self) -> Self:
        try:
            await self.visit.enter()
        except BaseException as error:
            await self._end(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end(error)

    def is_gone(self, error: BaseException | None) -> bool:
        """Tell whether the client has left."""
        # Of gRPC's own errors these say that a message could not be sent or received any more.
        return isinstance(error, BaseError) and not (
            isinstance(error, AbortError | UsageError) or type(error) is InternalError
        )

    async def _end(self, error: BaseException | None) -> None:
        refusal = self.end(error)
        if refusal is not None:
            await self.context.abort(refusal.code, refusal.details)  # raises, in place of *error*


def _one(
    serve: Callable[[Any], _InTask], behaviour: Callable[[Any, Any], Awaitable[Any]]
) -> Callable[[Any, Any], Any]:
    async def one(request: Any, context: Any) -> Any:
        async with serve(context):
            return await behaviour(request, context)

    return one


def _many(
    serve: Callable[[Any], _InTask], behaviour: Callable[[Any, Any], AsyncGenerator[Any, None]]
) -> Callable[[Any, Any], Any]:
    async def many(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        async with serve(context) as served, aclosing(behaviour(request, context)) as messages:
            async for message in messages:
                served.begun()
                yield message

    return many
