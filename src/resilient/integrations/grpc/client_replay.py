"""Streamed requests that may have to be sent again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

__all__ = ["AsyncReplay", "Once", "Replay"]

_MOST: Final = 100  # requests that are kept of one call


class Once:
    """Requests that nobody keeps: they are sent with one attempt, and with no other."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.is_lost = False

    def again(self) -> Any:
        """Return the requests, for the only attempt."""
        self.is_lost = True
        return self._source


class Replay:
    """Requests that may have to be sent again: what was taken is kept, up to a hundred of them.

    gRPC takes requests in a thread of its own, which may still be waiting for one when its attempt has failed
    and another is under way. What it takes then is kept for the other one, and it takes no more.

    Concurrency: safe from any thread. Whoever waits for a request makes others wait, who want the same one.
    """

    def __init__(self, source: Any) -> None:
        self._source = iter(source)
        self._kept: list[Any] = []
        self._is_over = False
        self._latest: _Again | None = None
        self._lock = threading.Lock()
        self.is_lost = False
        """Whether requests were sent that are not kept, so that no other attempt can be made."""

    def again(self) -> Iterator[Any]:
        """Return the requests from the first one on, for a new attempt."""
        self._latest = again = _Again(self)
        return again

    def take(self, attempt: _Again, number: int) -> Any:
        """Return the request with this *number*, for *attempt*."""
        with self._lock:
            if self._latest is not attempt or (number >= len(self._kept) and self._is_over):
                raise StopIteration
            if number < len(self._kept):
                return self._kept[number]
            try:
                request = next(self._source)
            except StopIteration:
                self._is_over = True
                raise
            except BaseException:
                self.is_lost = True  # the source has come to an end, but not to the end
                raise
            if len(self._kept) < _MOST or self._latest is not attempt:
                self._kept.append(request)
            else:
                self.is_lost = True
                self._kept.clear()
            return request


class _Again:
    """The requests, for one attempt."""

    __slots__ = ("_number", "_replay")

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._number = 0

    def __iter__(self) -> _Again:
        return self

    def __next__(self) -> Any:
        request = self._replay.take(self, self._number)
        self._number += 1
        return request


class AsyncReplay:
    """As `Replay`, for tasks of one loop; the source may be an ordinary iterator, too."""

    def __init__(self, source: Any) -> None:
        self._source = _asynchronous(source)
        self._kept: list[Any] = []
        self._is_over = False
        self._latest: AsyncIterator[Any] | None = None
        self._lock = asyncio.Lock()
        self.is_lost = False
        """Whether requests were sent that are not kept, so that no other attempt can be made."""

    def again(self) -> AsyncIterator[Any]:
        """Return the requests from the first one on, for a new attempt."""
        self._latest = again = _AgainAsync(self)
        return again

    async def take(self, attempt: AsyncIterator[Any], number: int) -> Any:
        """Return the request with this *number*, for *attempt*."""
        async with self._lock:
            if self._latest is not attempt or (number >= len(self._kept) and self._is_over):
                raise StopAsyncIteration
            if number < len(self._kept):
                return self._kept[number]
            try:
                request = await anext(self._source)
            except StopAsyncIteration:
                self._is_over = True
                raise
            except BaseException:
                # Also where a task is cancelled with its attempt: a generator ends then.
                self.is_lost = True
                raise
            if len(self._kept) < _MOST:
                self._kept.append(request)
            else:
                self.is_lost = True
                self._kept.clear()
            return request


class _AgainAsync:
    __slots__ = ("_number", "_replay")

    def __init__(self, replay: AsyncReplay) -> None:
        self._replay = replay
        self._number = 0

    def __aiter__(self) -> _AgainAsync:
        return self

    async def __anext__(self) -> Any:
        request = await self._replay.take(self, self._number)
        self._number += 1
        return request


async def _asynchronous(source: Any) -> AsyncIterator[Any]:
    if hasattr(source, "__aiter__"):
        async for request in source:
            yield request
    else:
        for request in source:
            yield request
