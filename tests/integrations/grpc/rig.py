"""Real gRPC servers of both colours, and one service with a method of each shape.

The client is one of threads for both, so that each test is written once. What a handler does is said by one
function of its context; what that returns is awaited, where the server is one of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent import futures
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from tests.support.waiting import await_until, wait_until

from resilient.integrations.grpc import AioResilienceServerInterceptor, ResilienceServerInterceptor

T = TypeVar("T")
Act = Callable[[Any], Any]

COLOURS: Final = ("threads", "tasks")
SHAPES: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SERVICE: Final = "t.Service"
WITHIN: Final = 20.0  # seconds that a call of a test may take, which takes a few milliseconds


def plain_behaviours(act: Act) -> dict[str, Callable[..., Any]]:
    """Return the methods as plain functions and generators."""

    def unary_unary(request: bytes, context: Any) -> bytes:
        act(context)
        return request

    def unary_stream(request: bytes, context: Any) -> Iterator[bytes]:
        yield request
        act(context)
        yield request

    def stream_unary(requests: Iterator[bytes], context: Any) -> bytes:
        answer = b"".join(requests)
        act(context)
        return answer

    def stream_stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests
        act(context)

    return {
        "unary_unary": unary_unary,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }


def _aio_behaviours(act: Act) -> dict[str, Callable[..., Any]]:
    async def do(context: Any) -> None:
        answer = act(context)
        if inspect.isawaitable(answer):
            await answer

    async def unary_unary(request: bytes, context: Any) -> bytes:
        await do(context)
        return request

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await do(context)
        yield request

    async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
        answer = b"".join([request async for request in requests])
        await do(context)
        return answer

    async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        await do(context)

    return {
        "unary_unary": unary_unary,
        "unary_stream": unary_stream,
        "stream_unary": stream_unary,
        "stream_stream": stream_stream,
    }


def handlers(behaviours: dict[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    """Return the service, its methods named as their shapes; its messages are bytes."""
    made = {name: getattr(grpc, f"{name}_rpc_method_handler")(one) for name, one in behaviours.items()}
    return grpc.method_handlers_generic_handler(SERVICE, made)


def nothing(_context: Any) -> None:
    """Do nothing."""


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* there, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WITHIN)

    def release(self, threads: futures.Executor) -> None:
        """End *threads*, some of which may wait for the loop for ever: gRPC leaves them so (1.85)."""
        ending = threading.Thread(target=threads.shutdown)
        ending.start()
        self.run(self._wait_for_all())
        ending.join(0.2)
        if ending.is_alive():
            self.loop.set_exception_handler(lambda *_: None)  # nobody asks how those end
        while ending.is_alive():
            self.run(self._cancel_all())
            ending.join(0.02)

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    async def _wait_for_all(self) -> None:
        # gRPC's own tasks end a moment after their server.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=0.5)

    async def _cancel_all(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


class Host:
    """A server on a port of loopback, of threads or of tasks.

    Args:
        colour: which.
        words: of the interceptor; None: there is none.
        act: what the handlers do.
        prepare: called with the server before it starts.
        threads: of the server.
        behaviours: the methods, where they are others than those of all shapes.
    """

    def __init__(
        self,
        colour: str,
        words: dict[str, Any] | None = None,
        *,
        act: Act = nothing,
        prepare: Callable[[Any], object] = nothing,
        threads: int = 8,
        behaviours: dict[str, Callable[..., Any]] | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self.colour = colour
        self.executor = futures.ThreadPoolExecutor(threads)
        self.loop: Loop | None = None
        if colour == "threads":
            guard = [] if words is None else [ResilienceServerInterceptor(**words)]
            self.server = grpc.server(self.executor, interceptors=[*interceptors, *guard])
            self._prepare(prepare, handlers(behaviours or plain_behaviours(act)))
            self.server.start()
        else:
            self.loop = Loop()
            self.loop.run(
                self._start(words, prepare, handlers(behaviours or _aio_behaviours(act)), interceptors)
            )

    async def _start(
        self,
        words: dict[str, Any] | None,
        prepare: Callable[[Any], object],
        service: Any,
        others: Sequence[Any],
    ) -> None:
        guard = [] if words is None else [AioResilienceServerInterceptor(**words)]
        self.server = grpc.aio.server(self.executor, interceptors=[*others, *guard])
        self._prepare(prepare, service)
        await self.server.start()

    def _prepare(self, prepare: Callable[[Any], object], service: Any) -> None:
        self.server.add_generic_rpc_handlers((service,))
        prepare(self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def stop(self, grace: float | None = None) -> None:
        """Stop the server, and wait until it has."""
        if self.loop is None:
            self.server.stop(grace).wait(WITHIN)
        else:
            self.loop.run(self.server.stop(grace))

    def close(self) -> None:
        """Stop the server and its threads."""
        self.stop()
        if self.loop is None:
            self.executor.shutdown()
        else:
            self.loop.release(self.executor)
            self.loop.close()


@contextlib.contextmanager
def hosting(colour: str, words: dict[str, Any] | None = None, **how: Any) -> Iterator[Host]:
    """Return a `Host` that is closed at the end."""
    host = Host(colour, words, **how)
    try:
        yield host
    finally:
        host.close()


@contextlib.contextmanager
def channel_to(*hosts: Host, options: Any = None) -> Iterator[grpc.Channel]:
    """Return a channel to all *hosts*."""
    addresses = ",".join(f"127.0.0.1:{host.port}" for host in hosts)
    # Channels with equal options share connections, and would meet the server of an earlier test.
    own = [("grpc.use_local_subchannel_pool", 1), *(options or ())]
    with grpc.insecure_channel(f"ipv4:{addresses}", options=own) as channel:
        yield channel


@contextlib.contextmanager
def served(colour: str, words: dict[str, Any] | None = None, **how: Any) -> Iterator[grpc.Channel]:
    """Return a channel to a server of its own."""
    with hosting(colour, words, **how) as host, channel_to(host) as channel:
        yield channel


def begin(channel: grpc.Channel, shape: str = "unary_unary", service: str = SERVICE, **words: Any) -> Any:
    """Begin a call; what is returned can be cancelled, and tells how it has ended."""
    words.setdefault("timeout", WITHIN)
    method = getattr(channel, shape)(f"/{service}/{shape}")
    request: Any = iter([b"a", b"b"]) if shape.startswith("stream") else b"ab"
    return method(request, **words) if shape.endswith("stream") else method.future(request, **words)


def call(channel: grpc.Channel, shape: str = "unary_unary", service: str = SERVICE, **words: Any) -> Ended:
    """Make a call, and return how it has ended."""
    under_way = begin(channel, shape, service, **words)
    return ended(under_way, shape)


class Ended:
    """How a call has ended: its code, what it was told and the messages that came before."""

    def __init__(self, under_way: Any, messages: list[bytes]) -> None:
        self.code: grpc.StatusCode = under_way.code()
        self.details: str = under_way.details()
        self.trailing = dict(under_way.trailing_metadata() or ())
        self.messages = messages


def ended(under_way: Any, shape: str) -> Ended:
    """Wait for the end of a call that was begun."""
    messages: list[bytes] = []
    with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
        if shape.endswith("stream"):
            messages.extend(under_way)  # message by message: what came before an error stays
        else:
            messages.append(under_way.result())
    return Ended(under_way, messages)


class Hold:
    """Holds handlers up until they are let go.

    Attributes:
        entered: how many have come so far.
        left: how many are gone again, however that came.
    """

    def __init__(self) -> None:
        self._let_go = threading.Event()
        self.entered = 0
        self.left = 0

    def __call__(self, context: Any) -> Any:
        if is_of_tasks(context):
            return self._hold_task()
        self.entered += 1
        try:
            assert self._let_go.wait(WITHIN)
        finally:
            self.left += 1
        return None

    async def _hold_task(self) -> None:
        self.entered += 1
        try:
            await await_until(self._let_go.is_set, "let go")
        finally:
            self.left += 1

    def wait_for(self, handlers_inside: int) -> None:
        """Wait until so many have come."""
        wait_until(lambda: self.entered >= handlers_inside, "a handler has begun")

    def let_go(self) -> None:
        """Let all go on."""
        self._let_go.set()


def is_of_tasks(context: Any) -> bool:
    """Tell whether a handler that has *context* runs in a task."""
    return type(context).__name__ == "_ServicerContext"
