"""What an ASGI client sends while its request waits at a gate; above all, whether it is still there.

Servers do not cancel an app whose client has gone. They tell it by a message, and nobody asks for messages
while the request waits: so they are asked for here, and kept for the app in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

__all__ = ["Ahead", "ClientGoneError", "Message", "Receive"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

_MOST: Final = 65_536  # bytes that are kept: servers read about as much ahead themselves
_MESSAGE: Final = 1_024  # what a message takes beside the bytes in it, so that there is an end to empty ones


class ClientGoneError(Exception):
    """The client has left before it was let in. It never leaves the middleware."""


class Ahead:
    """Receives ahead of the app while *task* waits, and cancels that if the client leaves.

    Args:
        receive: asks the server for the next message.
        task: what waits.

    Concurrency: belongs to its request, and to the tasks of it in one event loop.
    """

    __slots__ = ("_before", "_gone", "_kept", "_left_alone", "_listener", "_receive", "_room", "_task")

    def __init__(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._task: asyncio.Task[Any] | None = task
        self._before = task.cancelling()
        self._room = _MOST
        self._gone = False
        self._left_alone = False
        self._kept: deque[Message] = deque()
        listener = asyncio.get_running_loop().create_task(self._listen())
        listener.add_done_callback(_heeded)
        self._listener: asyncio.Task[None] | None = listener

    async def _listen(self) -> None:
        while self._task is not None and self._room > 0:
            message = await self._receive()
            self._kept.append(message)
            self._room -= _MESSAGE + len(message.get("body", b""))
            if message["type"] in _LEAVINGS:
                self._break_off()
                return

    def _break_off(self) -> None:
        if self._task is not None:
            self._gone = True
            self._task.cancel()

    def stop(self) -> bool:
        """Watch no longer; tell whether the wait was broken off, and by nobody but us.

        What is being received at this moment is still the app's: to cancel that might lose a message.
        """
        task, self._task = self._task, None
        if task is not None and self._gone:
            self._left_alone = task.uncancel() <= self._before
        return self._left_alone

    async def receive(self) -> Message:
        """Return the next message that the app has not had, whoever has received it."""
        while not self._kept:
            listener = self._listener
            if listener is None:
                return await self._receive()
            # An app may give up waiting, and come back for the same message later.
            await asyncio.wait((listener,))
            if self._listener is listener:
                self._listener = None
                listener.result()  # raises what the server has
        return self._kept.popleft()

    def close(self) -> None:
        """End with the request: nobody asks any more."""
        # Not kept: the traceback of its cancellation leads back here.
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()


_LEAVINGS: Final = frozenset({"http.disconnect", "websocket.disconnect"})


def _heeded(listener: asyncio.Task[None]) -> None:
    """Look at how *listener* has ended; asyncio complains of errors that nobody has seen."""
    if not listener.cancelled():
        listener.exception()
