"""The network between the services, and the way in: TCP on loopback, that can be cut.

A cut is one by a network policy: packets are dropped, and nobody is told. Who is connected waits, who
connects waits, and what was sent meanwhile arrives when the cut is over, for TCP sends it again and again.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

_CHUNK = 65_536
_REFUSAL = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNREADY = _REFUSAL % b"503 Service Unavailable"
_GONE = _REFUSAL % b"502 Bad Gateway"


class Network:
    """Links to services, all of which are cut at once."""

    def __init__(self) -> None:
        self._whole = asyncio.Event()
        self._whole.set()

    def cut(self) -> None:
        """Drop everything from now on."""
        self._whole.clear()

    def heal(self) -> None:
        """Let through what waits, and what comes."""
        self._whole.set()

    @asynccontextmanager
    async def links(self, urls: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
        """Make a link to each service while the context is open; yield where they begin, by its name."""
        async with AsyncExitStack() as stack:
            links = {name: _Link(url, self._whole.wait) for name, url in urls.items()}
            yield {name: await stack.enter_async_context(link.open()) for name, link in links.items()}


@asynccontextmanager
async def way_in(url: str, is_ready: Callable[[], bool]) -> AsyncIterator[str]:
    """Balance the load of the only target, at *url*, while the context is open; yield where.

    While the target is not ready, requests are answered with 503, and with 502 when it is not there.
    """

    async def at_once() -> None:
        pass

    async with _Link(url, at_once, is_ready).open() as entrance:
        yield entrance


class _Link:
    """Forwards connections to one target.

    Args:
        url: The target.
        may_pass: Returns when something may pass.
        is_ready: Says whether the target may be asked; the link answers for it, in HTTP, when it may not.
    """

    def __init__(
        self,
        url: str,
        may_pass: Callable[[], Coroutine[Any, Any, object]],
        is_ready: Callable[[], bool] | None = None,
    ) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._may_pass = may_pass
        self._is_ready = is_ready
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: StreamReader, writer: StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await self._may_pass()
            there, here = await asyncio.open_connection(self._host, self._port)
        except OSError:
            await self._refuse(reader, writer)
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        ways = [
            asyncio.create_task(self._ask(reader, here, writer)),
            asyncio.create_task(self._pass(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            here.close()
            writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _ask(self, reader: StreamReader, target: StreamWriter, asker: StreamWriter) -> None:
        while data := await self._read(reader):
            if self._is_ready is not None and not self._is_ready():
                asker.write(_UNREADY)
                return
            await _write(target, data)

    async def _pass(self, reader: StreamReader, writer: StreamWriter) -> None:
        while data := await self._read(reader):
            await _write(writer, data)

    async def _read(self, reader: StreamReader) -> bytes:
        """Read what comes, when it may pass; nothing at the end, however it came about."""
        data = b""
        with suppress(OSError):
            data = await reader.read(_CHUNK)
        await self._may_pass()
        return data

    async def _refuse(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._is_ready is None:
            writer.transport.abort()
            return
        try:
            await self._read(reader)
            writer.write(_GONE if self._is_ready() else _UNREADY)
        finally:
            writer.close()


async def _write(writer: StreamWriter, data: bytes) -> None:
    with suppress(OSError):
        writer.write(data)
        await writer.drain()
