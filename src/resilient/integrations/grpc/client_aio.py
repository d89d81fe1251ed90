"""Policies around the calls of a channel of `grpc.aio`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final, overload

from ...engine import params
from ...engine.deadline import innermost
from ...engine.policy import Policy
from ...typing import Seconds
from .. import needing
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


_EOF: Final[Any] = vars(grpc.aio)["EOF"]  # which it exports, and type checkers do not find


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

    async def stream(self, rpc: Rpc, guard: Guard, kind: type[_Stream]) -> Any:
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
        return await self._client.stream(rpc, guard, _Answers)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request_iterator, streams=True)
        # Not awaited: what writes the requests waits until there is a call to write to.
        return _Later(rpc, guard)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        rpc, guard = self._client.rpc(continuation, client_call_details, request_iterator, streams=True)
        return await self._client.stream(rpc, guard, _Chat)


class _Call:
    """What a call under policies is asked, answered for the attempt under way."""

    _rpc: Rpc
    # Older versions' channels ask each call whose it is when they are closed. The attempt's is theirs.
    _channel: Any = None

    async def _told(self) -> Any:
        """Return what tells of the call: an attempt, or an error."""
        return self._rpc.call

    def cancelled(self) -> bool:
        return bool(self._rpc.is_cancelled)

    def time_remaining(self) -> float | None:
        remaining: float | None = None if self._rpc.call is None else self._rpc.call.time_remaining()
        return remaining

    async def initial_metadata(self) -> Any:
        return await _asked(await self._told(), "initial_metadata")

    async def trailing_metadata(self) -> Any:
        return await _asked(await self._told(), "trailing_metadata")

    async def code(self) -> Any:
        return await _asked(await self._told(), "code")

    async def details(self) -> Any:
        return await _asked(await self._told(), "details")

    async def debug_error_string(self) -> Any:
        return await _asked(await self._told(), "debug_error_string")

    async def wait_for_connection(self) -> None:
        await _asked(await self._told(), "wait_for_connection")

    async def write(self, request: Any) -> None:
        await (await self._told()).write(request)

    async def done_writing(self) -> None:
        await (await self._told()).done_writing()

    @property
    def _done_writing_flag(self) -> bool:  # gRPC looks at it before it writes
        return getattr(self._rpc.call, "_done_writing_flag", False)


async def _asked(told: Any, what: str) -> Any:
    if isinstance(told, Exception) and not hasattr(told, what):
        raise told
    answer = getattr(told, what)()
    return await answer if inspect.isawaitable(answer) else answer


class _Stream(_Call):
    """A call with streamed answers."""

    def __init__(self, rpc: Rpc, items: AsyncGenerator[Any, Any]) -> None:
        self._rpc = rpc
        self._items = items
        self._error: Exception | None = None
        self._is_over = False
        self._is_cut = False  # cancelled: what comes next is not the end
        self._callbacks: list[Callable[[Any], None]] = []
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._ahead: deque[Any] = deque()  # messages nobody had asked for when the call ended
        self._reading = asyncio.Lock()
        self._watched: Any = None
        self._draining: asyncio.Task[None] | None = None
        self._watch()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        async with self._reading:
            if self._is_cut:
                raise asyncio.CancelledError
            if self._ahead:
                return self._ahead.popleft()
            item = await self._next()
            self._watch()
            return item

    async def _next(self) -> Any:
        if self._error is not None:
            raise self._error
        rpc = self._rpc
        before = innermost.get()
        try:
            if rpc.instant is not None:
                innermost.set(rpc.instant)
            return await anext(self._items)
        except StopAsyncIteration:
            self._end()
            raise
        except AbandonedError as abandoned:
            self._end(abandoned.error)
            raise abandoned.error from None
        except REFUSALS as error:
            both = rpc_error(error)
            self._end(both)
            raise both from error.__cause__
        except Exception as error:
            self._end(error)
            raise
        except asyncio.CancelledError:
            self._is_cut = True
            self._end()
            raise
        finally:
            innermost.set(before)

    def _end(self, error: Exception | None = None) -> None:
        self._error = error
        self._is_over = True
        self._rpc.end()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._loop.call_soon(callback, self)

    # A call may end, by its deadline, while nobody reads, and somebody may have gone without reading to the
    # end: gRPC does not tell. What the call held for its policies is given back all the same.

    def _watch(self) -> None:
        call = self._rpc.call
        if call is not None and call is not self._watched:
            self._watched = call
            call.add_done_callback(self._drain_soon)

    def _drain_soon(self, _call: Any) -> None:
        if self._draining is None and not self._reading.locked() and not self._rpc.is_cancelled:
            self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with self._reading:
                self._rpc.is_unread = True
                while self._rpc.call.done():
                    self._ahead.append(await self._next())
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, S110 - it is kept for who reads
            pass
        finally:
            self._draining = None
            self._rpc.is_unread = False
        self._watch()

    async def read(self) -> Any:
        try:
            return await anext(self)
        except StopAsyncIteration:
            return _EOF

    def done(self) -> bool:
        call = self._rpc.call
        return self._is_over or (call is not None and bool(call.done()))

    def cancel(self) -> bool:
        """Cancel the call, and give back what it holds."""
        if self._is_over or self._is_cut:
            return False
        self._is_cut = True
        self._rpc.cancel()
        # It may be a finalizer that cancels, in whatever thread.
        with contextlib.suppress(RuntimeError):  # the loop is closed, and what it held is gone
            self._loop.call_soon_threadsafe(self._close_soon)
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._is_over:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def _told(self) -> Any:
        if self._rpc.call is not None and not isinstance(self._error, REFUSALS):
            return self._rpc.call
        begun = self._rpc.begun
        return self._error or (rpc_error(begun) if isinstance(begun, Exception) else self._rpc.call)

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        begun, self._rpc.begun = self._rpc.begun, None
        if begun is not None and not isinstance(begun, Exception):
            await begun.aclose()
        # Whoever waits for the next message, if anybody does, is cancelled and gives back.
        with contextlib.suppress(RuntimeError):
            await self._items.aclose()
        self._end()


class _Answers(_Stream, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A call with one request and streamed answers."""


class _Chat(_Stream, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A call with streamed requests and answers."""


class _Later(_Call, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A call with streamed requests and one answer, made by a task of its own."""

    def __init__(self, rpc: Rpc, guard: Guard) -> None:
        self._rpc = rpc
        rpc.begun = asyncio.Event()
        self._task = asyncio.ensure_future(_made(rpc, guard))
        self._task.add_done_callback(self._settled)

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._task.__await__())

    def done(self) -> bool:
        return self._task.done()

    def cancelled(self) -> bool:
        return self._task.cancelled()

    def cancel(self) -> bool:
        return self._task.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._task.add_done_callback(lambda _: callback(self))

    async def code(self) -> Any:
        # Of the whole and not of an attempt: gRPC stops writing when it knows the code.
        await asyncio.wait([self._task])
        return StatusCode.CANCELLED if self._task.cancelled() else await super().code()

    async def _told(self) -> Any:
        if not self._task.done():
            await self._rpc.begun.wait()
        if self._task.done() and not self._task.cancelled() and (error := self._task.exception()) is not None:
            return error
        return self._rpc.call

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._rpc.begun.set()
        if not task.cancelled():
            task.exception()  # asked for, or asyncio would complain that nobody did
