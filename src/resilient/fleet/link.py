"""Links to a store: requests that end in time, whatever the store does.

The clients' own settings are made for jobs that would rather wait: on a server that swallows packets, a
command of redis-py blocks for a minute. Here it gets one try, for as long as the link allows.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import redis
from limits.aio.storage import RedisStorage as AsyncRedisStorage
from limits.storage import RedisClusterStorage, RedisStorage, storage_from_string
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..engine.fork import renew_after_fork
from ..engine.workers import Job, Workers
from .script import Command, Conversation

__all__ = ["Link", "link_to"]

R = TypeVar("R")

_DIALLERS: Final = 4  # threads that connect, where none is connected
_IDLE: Final = 32  # connections kept; more threads than that at a time connect anew
_ASYNC_CONNECTIONS: Final = 32  # for each event loop; who comes later waits for one, within its time
_TRUSTED_FOR: Final = 0.5  # seconds since its last use for which a connection is taken to be alive
_SLACK: Final = 0.001  # seconds by which a first request may be late, on its way from the clock to the socket


class Link:
    """Requests to the store at *uri*, each over in *timeout* seconds.

    Concurrency: safe from any thread, task and loop. Threads use connections in turn; each event loop has
    its own. A forked child starts with none.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self._uri = uri
        self._timeout = timeout
        self.after_fork()
        renew_after_fork(self)

    def hold(self, conversation: Conversation[R]) -> R:
        """Hold *conversation* with the store, from a thread."""
        due = time.monotonic() + self._timeout
        try:
            command = next(conversation)
            while True:
                try:
                    answer = self._request(command, due)
                except BaseException as exc:  # noqa: BLE001 - what to make of it is for the conversation
                    command = conversation.throw(exc)
                else:
                    command = conversation.send(answer)
        except StopIteration as stop:
            result: R = stop.value
            return result

    async def ahold(self, conversation: Conversation[R]) -> R:
        """Hold *conversation* with the store, from a task."""
        due = time.monotonic() + self._timeout
        try:
            command = next(conversation)
            while True:
                try:
                    answer = await self._arequest(command, due)
                except BaseException as exc:  # noqa: BLE001 - what to make of it is for the conversation
                    command = conversation.throw(exc)
                else:
                    command = conversation.send(answer)
        except StopIteration as stop:
            result: R = stop.value
            return result

    def close(self) -> None:
        """Close the connections that no thread uses now; the next request connects anew."""
        while self._idle:
            self._idle.pop()[0].disconnect()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        store = self._loops.pop(asyncio.get_running_loop(), None)
        if store is not None:
            await store.client.aclose()

    # From threads.

    def _request(self, command: Command, due: float) -> Any:
        # A connection's own limit is the whole timeout. Where less than that is left, or none is connected
        # and connecting may take any time, a worker does it, whom one can stop waiting for.
        if time.monotonic() <= due - self._timeout + _SLACK and (connection := self._connected()) is not None:
            return self._exchange(connection, command)
        job = Job(partial(self._dial, command), self._late)
        self._workers.submit(job)
        ended = False
        try:
            ended = job.wait(due - time.monotonic())
        finally:
            if not ended:
                job.withdraw()
        if not ended:
            raise TimeoutError("the store did not answer in time")
        if job.error is not None:
            raise job.error
        return job.result

    def _connected(self) -> Any:
        """Return a connection that is up, or None."""
        while self._idle:
            try:
                connection, since = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            if time.monotonic() - since < _TRUSTED_FOR or _is_alive(connection):
                return connection
            connection.disconnect()
        return None

    def _exchange(self, connection: Any, command: Command) -> Any:
        try:
            connection.send_command(*command)
            answer = connection.read_response()
        except redis.ReadOnlyError:
            # It was the primary and is no more: whoever asks next finds the new one.
            connection.disconnect()
            self.close()
            raise
        except redis.ResponseError:
            self._keep(connection)
            raise
        except BaseException as exc:
            # An answer may still be on its way, and would be taken for that to the next request.
            connection.disconnect()
            if isinstance(exc, redis.ConnectionError):
                self.close()  # the others are from before, too
            raise
        self._keep(connection)
        return answer

    def _keep(self, connection: Any) -> None:
        if len(self._idle) < _IDLE:
            self._idle.append((connection, time.monotonic()))
        else:
            connection.disconnect()

    def _dial(self, command: Command) -> Any:
        """Make a request on a new connection, and keep that; in a worker."""
        storage = self._open()
        if isinstance(storage, RedisClusterStorage):
            # Which node, and what to do when slots move, is the client's business.
            return storage.get_connection().execute_command(*command)  # type: ignore[no-untyped-call]
        connection: Any = storage.get_connection().connection_pool.make_connection()
        connection.connect()
        return self._exchange(connection, command)

    def _open(self) -> RedisStorage:
        with self._lock:
            if self._storage is None:
                # On a cluster, this asks the nodes already.
                self._storage = storage_from_string(self._uri, **self._settings(redis.retry.Retry))
            return self._storage

    # From tasks.

    async def _arequest(self, command: Command, due: float) -> Any:
        async with asyncio.timeout(due - time.monotonic()):
            store = self._loops.get(asyncio.get_running_loop())
            if store is None:
                store = self._open_loop()
            async with store.places:
                return await store.client.execute_command(*command)

    def _open_loop(self) -> _LoopStore:
        settings = self._settings(redis.asyncio.retry.Retry)
        storage = storage_from_string(f"async+{self._uri}", implementation="redispy", **settings)
        assert isinstance(storage, AsyncRedisStorage)  # noqa: S101 - all that a link is made for are
        store = self._loops[asyncio.get_running_loop()] = _LoopStore(storage)
        return store

    def _settings(self, retry: Callable[..., Any]) -> dict[str, Any]:
        common = {
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "retry": retry(NoBackoff(), 0),
            "protocol": 2,  # a round trip less when connecting, and no messages between the answers
        }
        if "+sentinel" in self._uri:
            common["sentinel_kwargs"] = dict(common)
        return common

    def after_fork(self) -> None:
        """Begin with no connection in a forked child: what is said on the parent's is not for us."""
        self._lock = threading.RLock()
        self._idle: deque[tuple[Any, float]] = deque()
        self._late: set[Job] = set()
        self._storage: RedisStorage | None = None
        self._workers = Workers(_DIALLERS, "resilient-store")
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopStore] = (
            weakref.WeakKeyDictionary()
        )


class _LoopStore:
    """The client of one event loop."""

    def __init__(self, storage: AsyncRedisStorage) -> None:
        self.client: Any = storage.bridge.get_connection()
        self.places = asyncio.Semaphore(_ASYNC_CONNECTIONS)


_links: weakref.WeakValueDictionary[tuple[str, float], Link] = weakref.WeakValueDictionary()
_links_lock = threading.RLock()


def link_to(uri: str, timeout: float) -> Link:
    """Return the link to the store at *uri*: one for all who ask it for the same."""
    with _links_lock:
        link = _links.get((uri, timeout))
        if link is None:
            link = _links[uri, timeout] = Link(uri, timeout)
        return link


def _is_alive(connection: Any) -> bool:
    try:
        # Something to read, with nothing asked, is either the end or an answer to somebody else.
        return not connection.can_read()
    except (redis.RedisError, OSError):
        return False
