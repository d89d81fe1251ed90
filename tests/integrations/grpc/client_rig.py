"""A gRPC server that answers as it is told to, for clients under policies.

Run as a program, `python client_rig.py PORT`, it is a process that can be killed, and always answers.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

PUSHBACK = "grpc-retry-pushback-ms"


@dataclass(frozen=True)
class Told:
    """What the server does with one call, or one message of a stream, instead of answering."""

    code: grpc.StatusCode
    pushback: str | None = None


@dataclass
class Call:
    """What the server was asked."""

    method: str
    request: Any
    time_remaining: float | None


@dataclass
class Backend:
    """A server with a method of each kind: `Unary`, `Stream` (five messages), `Collect` and `Chat`."""

    port: int = 0
    told: deque[Told | None] = field(default_factory=deque)
    calls: list[Call] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def tell(self, *told: Told | grpc.StatusCode | None) -> None:
        """Have the next calls end with these; None answers."""
        self.told.extend(Told(one) if isinstance(one, grpc.StatusCode) else one for one in told)

    def obey(self, context: grpc.ServicerContext) -> None:
        """End a call as told."""
        told = self.told.popleft() if self.told else None
        if told is not None:
            if told.pushback is not None:
                context.set_trailing_metadata(((PUSHBACK, told.pushback),))
            context.abort(told.code, "as told")

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer with the request."""
        self.calls.append(Call("Unary", request, context.time_remaining()))
        self.obey(context)
        return request

    def held(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer when `hold` is set, and note a cancellation."""
        self.calls.append(Call("Held", request, context.time_remaining()))
        context.add_callback(self.cancelled.release)
        self.begun.release()
        self.hold.wait(10)
        return request

    def stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer with five messages."""
        self.calls.append(Call("Stream", request, context.time_remaining()))
        context.add_callback(self.cancelled.release)
        self.begun.release()
        for number in range(5):
            self.obey(context)
            yield b"%d" % number

    def endless(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer with one message, and with another when `hold` is set."""
        self.calls.append(Call("Endless", request, context.time_remaining()))
        context.add_callback(self.cancelled.release)
        self.begun.release()
        yield b"first"
        self.hold.wait(10)
        yield b"last"

    def collect(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Answer with all that was sent."""
        got = list(requests)
        self.calls.append(Call("Collect", got, context.time_remaining()))
        self.obey(context)
        return b",".join(got)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer each request."""
        self.calls.append(Call("Chat", None, context.time_remaining()))
        for request in requests:
            self.obey(context)
            yield b"re:" + request


class Handlers(grpc.GenericRpcHandler):
    """The methods of a backend, of whatever service."""

    def __init__(self, backend: Backend) -> None:
        self._methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(backend.unary),
            "Held": grpc.unary_unary_rpc_method_handler(backend.held),
            "Stream": grpc.unary_stream_rpc_method_handler(backend.stream),
            "Endless": grpc.unary_stream_rpc_method_handler(backend.endless),
            "Collect": grpc.stream_unary_rpc_method_handler(backend.collect),
            "Chat": grpc.stream_stream_rpc_method_handler(backend.chat),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        return self._methods.get(handler_call_details.method.rpartition("/")[2])


@contextmanager
def serving(port: int = 0, threads: int = 8) -> Iterator[Backend]:
    """Run a backend in threads of this process."""
    backend = Backend()
    pool = ThreadPoolExecutor(threads)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers((Handlers(backend),))
    backend.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield backend
    finally:
        backend.hold.set()
        server.stop(None).wait()
        pool.shutdown()


class Stub:
    """The methods of a channel, of either colour."""

    def __init__(self, channel: Any, service: str = "test.Backend") -> None:
        self.unary = channel.unary_unary(f"/{service}/Unary")
        self.held = channel.unary_unary(f"/{service}/Held")
        self.stream = channel.unary_stream(f"/{service}/Stream")
        self.endless = channel.unary_stream(f"/{service}/Endless")
        self.collect = channel.stream_unary(f"/{service}/Collect")
        self.chat = channel.stream_stream(f"/{service}/Chat")


def main() -> None:
    """Serve for ever."""
    with serving(int(sys.argv[1])):
        threading.Event().wait()


if __name__ == "__main__":
    main()
