"""What the visitors browse with: HTTP/1.1 over as many connections as there are requests under way.

On h11, and without a pool that could make requests queue: a queue in here would look like a slow shop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import h11

_MAX_IDLE = 100


class BrokenError(ConnectionError):
    """The connection ended, or what came over it was no HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, and what its `Retry-After` said, if it did."""

    status: int
    retry_after: float | None


class Browser:
    """Talks to one server; a context, at whose end the idle connections are closed.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._idle: list[_Connection] = []

    async def ask(
        self, method: str, path: str, address: str, fields: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """Send a request that comes from *address*, as a load balancer in front of the shop would say.

        Raises:
            BrokenError: There was no answer, and there will be none.
        """
        connection: _Connection | None = None
        try:
            connection = self._pick() or await self._connect()
            headers = [("host", "shop"), ("x-forwarded-for", address), ("content-length", "0"), *fields]
            answer = await connection.ask(h11.Request(method=method, target=path, headers=headers))
        except (OSError, h11.ProtocolError) as error:
            raise BrokenError(repr(error)) from error
        finally:
            # Also after a cancellation: an answer that nobody waits for would be the next one's.
            self._put_back(connection)
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _pick(self) -> _Connection | None:
        while self._idle:
            # The latest: those unused for long may go, for the server ends them at some time.
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        return _Connection(*await asyncio.open_connection(self._host, self._port))

    def _put_back(self, connection: _Connection | None) -> None:
        if connection is None:
            return
        if connection.usable and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)

    @property
    def usable(self) -> bool:
        return self._http.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE} and not self._reader.at_eof()

    async def ask(self, request: h11.Request) -> Answer:
        self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        answer = None
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                answer = _read(event)
            elif isinstance(event, h11.ConnectionClosed):
                break
        if answer is None:
            raise BrokenError("no answer")
        with suppress(h11.LocalProtocolError):  # a connection that the server is about to close
            self._http.start_next_cycle()
        return answer

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(65_536))
        return event

    def close(self) -> None:
        self._writer.close()


def _read(response: h11.Response) -> Answer:
    headers = dict(response.headers)
    told = headers.get(b"retry-after", b"")
    return Answer(response.status_code, float(told) if told.isdigit() else None)
