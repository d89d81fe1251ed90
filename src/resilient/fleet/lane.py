"""One event loop's lane to the store: whatever its tasks ask at the same time goes out together.

A connection for each request at the same time would cost a handshake each when a burst comes, and the burst
would be over before the first of them was answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import redis
from limits.aio.storage import RedisClusterStorage
from limits.storage import storage_from_string
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..events import error_text
from .script import Command
from .settings import TRUSTED_FOR, is_answer, new_connection, settings_for

__all__ = ["Lane", "patience"]

_BATCH: Final = 500  # requests that go out together
_CLUSTER_REQUESTS: Final = 32  # at the same time, each on a connection to its node
_SILENCE: Final = 0.8  # of the time for a request, after which no answer means that there is none
_DEAD: Final = 2  # times the time for a request, after which a silent connection is given up
_CONNECT: Final = 0.5  # seconds a connection may take to come up, at least; nobody need wait for that


@asynccontextmanager
async def patience(seconds: float) -> AsyncGenerator[None]:
    """End the block with `TimeoutError` after *seconds*; but not where what it waits for is there by then.

    A loop that was busy with other things finds the answer and the end of the time in the same turn. As
    `asyncio.timeout` has it, the time would win.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        done = False

        def end() -> None:
            if not done:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds, loop.call_soon, end)
        try:
            yield
        finally:
            done = True
            timer.cancel()


class StoreLostError(Exception):
    """Tell one who waits for an answer that it will not come, and why."""


class _Asked:
    """A request that waits for its answer."""

    __slots__ = ("answer", "command")

    def __init__(self, command: Command, answer: asyncio.Future[Any]) -> None:
        self.command = command
        self.answer = answer

    def fail(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)

    def settle(self, answer: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class Lane:
    """The way from one event loop to the store at *uri*. Whoever asks limits how long to wait.

    One task speaks to the server, for all who ask. So who is cancelled leaves nothing behind: the answer
    comes, and is dropped.

    Concurrency: belongs to its loop's thread.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        # No limits of the client's own: each would cost a task for every command.
        settings = settings_for(uri, Retry(NoBackoff(), 0), timeout=None)
        storage: Any = storage_from_string(f"async+{uri}", implementation="redispy", **settings)
        self._bridge = storage.bridge
        self._client = storage.bridge.get_connection()
        self._timeout = timeout
        self._asked: deque[_Asked] = deque()
        self._speaker: asyncio.Task[None] | None = None
        self._is_free = True  # nobody speaks
        self._connection: Any = None
        self._used = 0.0  # when it was, last
        self._waiting_since = math.inf  # when the server was asked, or when it answered after that
        in_cluster = isinstance(storage, RedisClusterStorage)
        self._places = asyncio.Semaphore(_CLUSTER_REQUESTS) if in_cluster else None

    async def request(self, command: Command) -> Any:
        """Return the server's answer to *command*."""
        if self._places is not None:
            # Which node, and what to do when slots move, is the client's business.
            async with self._places:
                return await self._client.execute_command(*command)
        if self._is_free and (connection := self._connection) is not None and not self._is_stale():
            return await self._ask_alone(connection, command)
        asked = _Asked(command, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._is_free:
            self._start_speaker()
        return await asked.answer

    @property
    def is_silent(self) -> bool:
        """Whether the server has had nearly all the time there is, and has not answered.

        Where not, a request that ran out of time stood in line here, or its event loop was busy with other
        things: that says nothing about the server.
        """
        in_cluster = self._places is not None  # there, nobody knows
        return in_cluster or time.monotonic() - self._waiting_since > _SILENCE * self._timeout

    async def aclose(self) -> None:
        """Hang up."""
        if self._speaker is not None:
            self._speaker.cancel()
            await asyncio.wait((self._speaker,))
        await self._hang_up()
        await self._client.aclose()
        if (sentinel := getattr(self._bridge, "sentinel", None)) is not None:
            for client in sentinel.sentinels:
                await client.aclose()

    async def _ask_alone(self, connection: Any, command: Command) -> Any:
        """Ask without the speaker, where nobody else does: that takes a third off the time."""
        self._is_free = False
        self._waiting_since = time.monotonic()
        try:
            await connection.send_command(*command)
            answer = await connection.read_response()
        except BaseException as exc:
            if not is_answer(exc):
                # An answer may still be on its way, and would be taken for that to the next request.
                await self._hang_up()
            raise
        else:
            self._used, self._waiting_since = time.monotonic(), math.inf
            return answer
        finally:
            self._is_free = True
            if self._asked:
                self._start_speaker()

    def _start_speaker(self) -> None:
        self._is_free = False
        self._speaker = asyncio.get_running_loop().create_task(self._speak())

    async def _speak(self) -> None:
        """Serve all who ask, until nobody does."""
        batch: list[_Asked] = []
        try:
            while self._asked:
                batch = self._next_batch()
                try:
                    await self._serve(batch)
                except Exception as exc:  # noqa: BLE001 - it goes to those who wait
                    await self._hang_up()
                    _fail_all(batch, exc)
        finally:
            # With nothing awaited in between: who asks from now on gets a speaker of its own.
            self._speaker, self._is_free, self._waiting_since = None, True, math.inf
            _fail_all([*batch, *self._asked], StoreLostError("the event loop ends"))
            self._asked.clear()

    def _next_batch(self) -> list[_Asked]:
        """Return the next requests whose askers still wait."""
        batch: list[_Asked] = []
        while self._asked and len(batch) < _BATCH:
            asked = self._asked.popleft()
            if not asked.answer.done():
                batch.append(asked)
        return batch

    async def _serve(self, batch: list[_Asked]) -> None:
        self._waiting_since = time.monotonic()
        async with asyncio.timeout(max(_CONNECT, self._timeout)):
            connection = await self._connected()
        async with asyncio.timeout(_DEAD * self._timeout) as limit:
            self._waiting_since = time.monotonic()
            await connection.send_packed_command(connection.pack_commands([asked.command for asked in batch]))
            for asked in batch:
                try:
                    asked.settle(await connection.read_response())
                except redis.ResponseError as exc:
                    asked.fail(exc)
                    if not is_answer(exc):
                        raise
                # It is the silence that is limited, not how many there are to answer.
                self._used = self._waiting_since = time.monotonic()
                limit.reschedule(asyncio.get_running_loop().time() + _DEAD * self._timeout)

    def _is_stale(self) -> bool:
        return time.monotonic() - self._used > TRUSTED_FOR

    async def _connected(self) -> Any:
        connection = self._connection
        if connection is not None:
            if not self._is_stale() or await _is_alive(connection):
                return connection
            await self._hang_up()
        self._connection = connection = new_connection(self._client)
        await connection.connect()
        return connection

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _fail_all(batch: list[_Asked], exc: Exception) -> None:
    for asked in batch:
        asked.fail(StoreLostError(error_text(exc)))  # each its own: a shared one would grow with every raise


async def _is_alive(connection: Any) -> bool:
    try:
        # Something to read, with nothing asked, is either the end or an answer to somebody else. Its new name
        # is redis-py 8's; asking by the old one warns there.
        look = getattr(connection, "can_read", None) or connection.can_read_destructive
        return not await look()
    except (redis.RedisError, OSError):
        return False
