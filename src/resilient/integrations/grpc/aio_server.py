"""The interceptor for servers of tasks, `grpc.aio.server`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from ...web.asgi import WAITS
from .. import needing
from .calls import Doorkeeper, Served, guarded
from .server import InThread, wrap_in_threads

with needing("grpcio", extra="grpc"):
    import grpc.aio
    from grpc.aio import AbortError, BaseError, InternalError, UsageError

__all__ = ["AioResilienceServerInterceptor"]


class AioResilienceServerInterceptor(Doorkeeper, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guard a gRPC server of tasks: rate limits, shedding, deadlines, maintenance, answers to refusals.

    It is `ResilienceServerInterceptor` for `grpc.aio.server`. What is said there holds here, but where it
    speaks of threads, and the arguments are the same.

    When a call's time is up, the handler is cancelled. Handlers that are plain functions run in the server's
    threads, and are guarded there. A plain generator whose client leaves may hang in gRPC for ever, with its
    thread; its place is given back.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of calls and loops at once; nothing of a call is kept here.

    Source: gRFC A6 for the pushback; draft-ietf-httpapi-ratelimit-headers-11.
    """

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
        request = None if handler is None else self._admit(handler_call_details)
        if request is None:
            return handler

        def wrap(behaviour: Callable[[Any, Any], Any], streams: bool) -> Callable[[Any, Any], Any]:
            if inspect.isasyncgenfunction(behaviour):
                return _many(self._serving(_InTask, request), behaviour)
            # A coroutine function may answer with a stream, too: it writes to its context.
            if inspect.iscoroutinefunction(behaviour):
                return _one(self._serving(_InTask, request), behaviour)
            return wrap_in_threads(self._serving(InThread, request), behaviour, streams)

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
