"""A TCP proxy inside the test process that breaks connections on demand.

The faults carry the names they have in toxiproxy. One proxy stands before one server:

    with TcpProxy(server.port) as proxy, proxy.toxic(Latency(0.2)):
        ...
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar

from tests.support.ports import free_port

T = TypeVar("T")
Stream = Literal["upstream", "downstream"]
Forward = Callable[[bytes], Awaitable[None]]

_CHUNK = 65_536
_ANSWER_WITHIN = 5.0
# Loopback connects in microseconds or, with a full queue, not at all. How many fit into a queue of length 0
# is up to the kernel: one on Linux.
_HANGS_AFTER = 0.1
_MOST_IN_QUEUE = 16
# A socket closed with this option set sends RST instead of FIN.
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Toxic(Protocol):
    """What is done to each chunk of data before the next toxic, or the socket, gets it."""

    async def __call__(self, data: bytes, forward: Forward) -> None:
        """Pass *data* on with *forward*: later, in pieces, or not at all."""


@dataclass(frozen=True)
class Latency:
    """Delay each chunk by *seconds*, give or take up to *jitter*; chunks queue, so their order is kept."""

    seconds: float
    jitter: float = 0.0

    async def __call__(self, data: bytes, forward: Forward) -> None:
        await asyncio.sleep(max(0.0, self.seconds + random.uniform(-self.jitter, self.jitter)))
        await forward(data)


@dataclass(frozen=True)
class Timeout:
    """Swallow all data; close the connection after *seconds*, or never with None."""

    seconds: float | None = None

    async def __call__(self, data: bytes, forward: Forward) -> None:
        if self.seconds is not None:
            await asyncio.sleep(self.seconds)
            raise ConnectionAbortedError


@dataclass(frozen=True)
class ResetPeer:
    """Answer the next chunk with a TCP reset of the connection, *seconds* later."""

    seconds: float = 0.0

    async def __call__(self, data: bytes, forward: Forward) -> None:
        await asyncio.sleep(self.seconds)
        raise ConnectionResetError


@dataclass(frozen=True)
class Bandwidth:
    """Let at most *bytes_per_second* through."""

    bytes_per_second: float

    async def __call__(self, data: bytes, forward: Forward) -> None:
        await asyncio.sleep(len(data) / self.bytes_per_second)
        await forward(data)


@dataclass(frozen=True)
class Slicer:
    """Cut the data into pieces of *size* bytes, each sent *seconds* after the one before."""

    size: int = 1
    seconds: float = 0.0

    async def __call__(self, data: bytes, forward: Forward) -> None:
        for start in range(0, len(data), self.size):
            await forward(data[start : start + self.size])
            await asyncio.sleep(self.seconds)


class TcpProxy:
    """Forward a port of its own to *upstream_port*, through the toxics in force at the moment.

    Toxics act on connections old and new, from the next chunk on. The proxy runs in a thread with an event
    loop of its own, so it serves blocking tests and tests with a loop alike. Any thread may call its methods.
    """

    def __init__(self, upstream_port: int, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = free_port(host)
        self._upstream_port = upstream_port
        # Each tuple is replaced as a whole, so that the pumps read it without the lock.
        self._toxics: dict[Stream, tuple[Toxic, ...]] = {"upstream": (), "downstream": ()}
        self._lock = threading.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name=f"tcp-proxy-{self.port}", daemon=True)
        self._started = threading.Event()

    @property
    def connections(self) -> int:
        """How many connections pass through at the moment."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(_ANSWER_WITHIN):
            raise RuntimeError(f"the proxy on port {self.port} did not start")
        self._on_loop(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._finished.set)
        self._thread.join(_ANSWER_WITHIN)

    @contextmanager
    def toxic(self, toxic: Toxic, *, stream: Stream = "downstream") -> Iterator[None]:
        """Apply *toxic* for the length of the block, to requests ("upstream") or answers ("downstream")."""
        with self._lock:
            self._toxics[stream] += (toxic,)
        try:
            yield
        finally:
            with self._lock:
                self._toxics[stream] = tuple(one for one in self._toxics[stream] if one is not toxic)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Refuse connections, and reset those there are, for the length of the block."""
        self._on_loop(self._close())
        try:
            yield
        finally:
            self._on_loop(self._listen())

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Let attempts to connect hang, and reset the connections there are, for the length of the block.

        So behaves a host behind a firewall that drops packets, or a server with a full queue of connections.
        """
        self._on_loop(self._close())
        with _full_queue(self.host, self.port):
            yield
        self._on_loop(self._listen())

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_WITHIN)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._finished = asyncio.Event()
        self._started.set()
        await self._finished.wait()
        await self._close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connect, self.host, self.port)

    async def _close(self) -> None:
        self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(reader, writer)
        finally:
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with _resetting(writer):
                server_reader, server_writer = await asyncio.open_connection(self.host, self._upstream_port)
                async with _resetting(server_writer), asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(reader, server_writer, "upstream"))
                    pumps.create_task(self._pump(server_reader, writer, "downstream"))
        except* (OSError, asyncio.CancelledError):
            # The connection was broken: by a toxic, by `down`, or by one of its two ends.
            pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
        while data := await reader.read(_CHUNK):
            forward: Forward = partial(_send, writer)
            for toxic in reversed(self._toxics[stream]):
                forward = partial(toxic, forward=forward)
            await forward(data)
        writer.write_eof()


@contextmanager
def _full_queue(host: str, port: int) -> Iterator[None]:
    """Listen on *port* with a queue that has no place left: the kernel drops whatever asks to connect."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(_MOST_IN_QUEUE):
            client = sockets.enter_context(socket.socket())
            client.settimeout(_HANGS_AFTER)
            try:
                client.connect((host, port))
            except TimeoutError:
                break
        else:
            raise RuntimeError(f"{_MOST_IN_QUEUE} connections did not fill the queue of port {port}")
        yield


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@asynccontextmanager
async def _resetting(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close *writer* in peace when the block ends well, with a TCP reset when it does not."""
    try:
        yield
    except BaseException:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        writer.transport.abort()
        raise
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
