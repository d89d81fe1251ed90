"""What callers of a channel of `grpc.aio` under policies get: calls as grpc's own are."""

# The methods are grpc's, and documented there.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Final

from ...engine.deadline import innermost
from .. import needing
from .client_errors import AbandonedError, rpc_error
from .client_rpc import Rpc
from .statuses import REFUSALS

with needing("grpcio", extra="grpc"):
    import grpc.aio
    from grpc import StatusCode

__all__ = ["Answers", "Chat", "Later", "Stream"]

_EOF: Final[Any] = vars(grpc.aio)["EOF"]  # which it exports, and type checkers do not find


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


class Stream(_Call):
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


class Answers(Stream, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A call with one request and streamed answers."""


class Chat(Stream, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A call with streamed requests and answers."""


class Later(_Call, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A call with streamed requests and one answer, made by a task of its own."""

    def __init__(self, rpc: Rpc, making: Coroutine[Any, Any, Any]) -> None:
        self._rpc = rpc
        rpc.begun = asyncio.Event()
        self._task = asyncio.ensure_future(making)
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
