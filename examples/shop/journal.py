"""What the policies of a process reported, kept for whoever asks over HTTP."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from resilient.events import Event

MAX_ENTRIES = 2000


class Journal:
    """The latest events of a process, numbered, each with its age.

    Ages and not times: the clocks of two processes need not have a common zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: deque[tuple[int, float, Event]] = deque(maxlen=MAX_ENTRIES)
        self._written = 0

    def write(self, event: Event) -> None:
        """Keep an event; a listener for `resilient.events`."""
        self._written += 1
        self._entries.append((self._written, self._clock(), event))

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the entries that followed entry *number*, oldest first."""
        now = self._clock()
        return [
            {"number": n, "age": now - at, "event": type(event).__name__, **asdict(event)}
            for n, at, event in self._entries
            if n > number
        ]

    async def page(self, request: Request) -> Response:
        """Serve the entries after the number that the query asks for."""
        return JSONResponse(self.after(int(request.query_params.get("after", "0"))))
