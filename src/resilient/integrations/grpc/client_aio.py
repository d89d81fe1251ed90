"""Policies around the calls of a channel of `grpc.aio`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, overload

from ...engine import params
from ...engine.deadline import innermost
from ...engine.policy import Policy
from ...typing import Seconds
from .. import needing
from .client_aio_calls import Answers, Chat, Later, Stream
from .client_errors import FAILURES, AbandonedError, rpc_error
from .client_guards import BEGUN, Attempts, Guard, Guards
from .client_replay import AsyncReplay, Once
from .client_rpc import ClientStats, Counts, Rpc
from .statuses import REFUSALS

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode

__all__ = ["AioResilienceClientInterceptors"]


class AioResilienceClientInterceptors(Sequence[grpc.aio.ClientInterceptor]):
    """Put policies around every call of a channel of `grpc.aio`, which takes it as `interceptors=`.

    It is a sequence of interceptors, one for each kind of call, which is how gRPC wants them; with others it
    goes as `[*AioResilienceClientInterceptors(...), other]`. It does what `ResilienceClientInterceptor` does,
    and has the same words.

    Requests that are written one by one (`call.write`) are not sent again: nobody keeps them.

    Args:
        *policies: for all methods, outermost first, in the order of a `Pipeline`. Key functions and handlers
            of fallbacks are given an `Rpc`.
        methods: other policies for single methods (`"/shop.Payment/Charge"`) or services
            (`"/shop.Payment/*"`): one, several or None for none.
        timeout: seconds for a call whose caller names none, its retries included; above 0. None: no limit. A
            mapping by method, in the same words as *methods*.
        failures: the status codes that are evidence against the server.
        name: in errors.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
        PipelineOrderError: the order of policies is known to go wrong.

    Concurrency: safe from any task; one object may serve many channels, on several loops.

    Source: gRFC A6 for retries and pushback; gRPC's deadlines.
    """

    def __init__(
        self,
        *policies: Policy,
        methods: Mapping[str, Policy | Iterable[Policy] | None] | None = None,
        timeout: Seconds | Mapping[str, Seconds | None] | None = None,
        failures: Collection[StatusCode] = FAILURES,
        name: str = "grpc-client",
    ) -> None:
        client = _Client(
            params.named("name", name),
            Guards(policies, methods, timeout, failures, Attempts(_attempt, _stream_attempt), is_async=True),
        )
        self.name = name
        self._client = client
        self._interceptors = (
            _UnaryUnary(client),
            _UnaryStream(client),
            _StreamUnary(client),
            _StreamStream(client),
        )

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies of all methods that are not named."""
        return self._client.guards.policies

    def stats(self) -> ClientStats:
        """Return what the calls have come to so far."""
        return self._client.counts.read()

    def __len__(self) -> int:
        return len(self._interceptors)

    def __iter__(self) -> Iterator[grpc.aio.ClientInterceptor]:
        return iter(self._interceptors)

    @overload
    def __getitem__(self, index: int) -> grpc.aio.ClientInterceptor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[grpc.aio.ClientInterceptor]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._interceptors[index]


class _Client:
    """What the interceptors of one client share."""

    def __init__(self, name: str, guards: Guards) -> None:
        self.guards = guards
        self.counts = Counts()
        self._name = name

    def rpc(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> tuple[Rpc, Guard]:
        method = details.method
        if isinstance(method, bytes):
            method = method.decode("latin-1")
        guard = self.guards.of(method)
        rpc = Rpc(method, details, request, continuation, name=self._name, counts=self.counts)
        if streams and guard.replays:
            rpc.replay = Once(request) if _is_written(request) else AsyncReplay(request)
        rpc.within(self.guards.timeout_of(method))
        return rpc, guard

    async def stream(self, rpc: Rpc, guard: Guard, kind: type[Stream]) -> Any:
        """Begin a call with streamed answers, and return it."""
        begin, whole = guard.streams(_resumed)
        first = begin(rpc)
        before = innermost.get()
        try:
            if rpc.instant is not None:
                innermost.set(rpc.instant)
            rpc.limit = guard.limit
            await anext(first)
            rpc.begun = first
        except Exception as error:  # noqa: BLE001 - it is raised here, or where the stream is read
            if not guard.is_split:
                raise rpc_error(error) from error.__cause__
            rpc.begun = error
        finally:
            rpc.limit = None
            innermost.set(before)
        return kind(rpc, whole(rpc))


def _is_written(requests: Any) -> bool:
    """Tell whether requests are written to the call, one by one: gRPC makes a generator of that."""
    frame = requests.ag_frame if inspect.isasyncgen(requests) else None
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("grpc.")


async def _made(rpc: Rpc, guard: Guard) -> Any:
    """Make a call with one answer, and return that."""
    if rpc.instant is not None:
        innermost.set(rpc.instant)  # this task's context ends with the call
    try:
        return await guard.unary(rpc)
    except AbandonedError as abandoned:
        raise abandoned.error from None
    except REFUSALS as error:
        raise rpc_error(error) from error.__cause__
    finally:
        rpc.end()


async def _attempt(rpc: Rpc) -> Any:
    call = rpc.call = await rpc.send()
    if rpc.begun is not None:
        rpc.begun.set()
    try:
        response = await call
    except grpc.RpcError as error:
        failed = rpc.failed(error)
        if failed is error:
            raise
        raise failed from error
    except asyncio.CancelledError:
        rpc.lost()
        call.cancel()
        raise
    return rpc.answered(response)


async def _stream_attempt(rpc: Rpc) -> AsyncGenerator[Any, Any]:
    call = rpc.call = await rpc.send()
    try:
        yield BEGUN
        messages = aiter(call)
        while True:
            try:
                item = await anext(messages)
            except StopAsyncIteration:
                break
            except grpc.RpcError as error:
                failed = rpc.failed(error)
                if failed is error:
                    raise
                raise failed from error
            yield item
        rpc.answered()
    except (GeneratorExit, asyncio.CancelledError):
        rpc.lost()
        raise
    finally:
        call.cancel()  # nothing, once it has ended


def _resumed(begin: Callable[[Rpc], Any]) -> Callable[[Rpc], Any]:
    async def resumed(rpc: Rpc) -> AsyncGenerator[Any, Any]:
        stream, rpc.begun = rpc.begun, None
        if isinstance(stream, Exception):
            try:
                raise stream
            finally:
                del stream
        if stream is None:
            stream = begin(rpc)
            await anext(stream)
        async with contextlib.aclosing(stream):
            async for item in stream:
                yield item

    return resumed


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request, streams=False)
        response = await _made(rpc, guard)
        return rpc.call if rpc.response is response else response


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request, streams=False)
        return await self._client.stream(rpc, guard, Answers)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request_iterator, streams=True)
        # Not awaited: what writes the requests waits until there is a call to write to.
        return Later(rpc, _made(rpc, guard))


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request_iterator, streams=True)
        return await self._client.stream(rpc, guard, Chat)
