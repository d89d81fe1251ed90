"""What a service tells of itself: lines of JSON on its standard output, for whoever started it.

Pushed and not asked for: a service under more requests than it can answer would not answer that one either.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import count
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx

from resilient import Bulkhead
from resilient.events import Event

Write: TypeAlias = Callable[[str], object]

RAISED = "raised"
"""What the notes of errors that nobody else would tell of are called."""

_TELL_EVERY = 0.2


def say(line: str) -> None:
    """Write a line to standard output, at once."""
    print(line, flush=True)


class Journal:
    """Writes down what the policies of a process report."""

    def __init__(self, write: Write = say) -> None:
        self._write = write

    def note(self, event: Event) -> None:
        """Write down an event; a listener for `resilient.events`."""
        self._write(json.dumps({"event": type(event).__name__, **asdict(event)}, default=str))


async def tell_limit(bulkhead: Bulkhead, write: Write = say) -> None:
    """Write down the limit of a bulkhead a few times a second, until cancelled."""
    while True:
        write(json.dumps({"limit": bulkhead.limit}))
        await asyncio.sleep(_TELL_EVERY)


class Stopwatch(httpx.AsyncBaseTransport):
    """Writes down when the service begins to wait for an answer of another, and when that ends.

    The wait for a connection is part of it. Both are written, so that a wait without an end is seen as well.

    Args:
        transport: What asks the others.
        urls: Where each service listens, by its name.
        write: Where to.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, urls: Mapping[str, str], write: Write = say
    ) -> None:
        self._transport = transport
        self._names = {urlsplit(url).netloc: name for name, url in urls.items()}
        self._write = write
        self._numbers = count(1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Ask; a call that fails or is given up ends as well."""
        number, service = next(self._numbers), self._names[request.url.netloc.decode()]
        self._write(json.dumps({"call": number, "of": service}))
        try:
            return await self._transport.handle_async_request(request)
        finally:
            self._write(json.dumps({"ended": number}))

    async def aclose(self) -> None:
        """Close what it asks with."""
        await self._transport.aclose()
