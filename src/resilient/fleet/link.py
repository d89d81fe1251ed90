"""Links to a store: requests that end in time, whatever the store does.

The clients' own settings are made for jobs that would rather wait: on a server that swallows packets, a
command of redis-py blocks for a minute. Here it gets one try, for as long as the link allows.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import Any, Final, TypeVar

import redis
from limits.aio.storage import RedisClusterStorage as AsyncRedisClusterStorage
from limits.storage import RedisClusterStorage, storage_from_string
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..engine import params
from ..engine.fork import renew_after_fork
from ..engine.waiting import TaskWaiter, ThreadWaiter
from ..engine.workers import Job, Workers
from .bounded import bound
from .script import Command, Conversation, Meeting

__all__ = ["Link", "link_to"]

R = TypeVar("R")

_DIALLERS: Final = 4  # threads that connect, where none is connected
_IDLE: Final = 32  # connections kept; more threads than that at a time connect anew
_ASYNC_CONNECTIONS: Final = 32  # for each event loop; who comes later waits for one, within its time
_TRUSTED_FOR: Final = 0.5  # seconds since its last use for which a connection is taken to be alive


class Link:
    """Requests to the store at *uri*, each over in *timeout* seconds.

    Concurrency: safe from any thread, task and loop. Threads use connections in turn; each event loop has
    its own. A forked child starts with none.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self._uri = uri
        self.timeout = timeout
        self._storage: Any = None  # of limits; it knows the topologies and their clients
        self._loops: dict[asyncio.AbstractEventLoop, _LoopStore] = {}
        self.after_fork()
        renew_after_fork(self)

    def check(self) -> None:
        """Refuse an address that no connection could ever be made of, as far as that can be told by itself.

        Raises:
            ValueError: an option in it is unknown to the client, or has a bad value.
        """
        if "+cluster:" in self._uri:
            return  # to open one is to ask it
        try:
            self._open().get_connection().connection_pool.make_connection()
        except (TypeError, ValueError) as exc:
            rule = f"must have options that the client knows ({exc})"
            # Without the rest: it may hold a password.
            params.refuse(ValueError, "storage", rule, self._uri.partition("://")[0] + "://…")

    def hold(self, conversation: Conversation[R]) -> R:
        """Hold *conversation* with the store, from a thread."""
        due = time.monotonic() + self.timeout
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
        due = time.monotonic() + self.timeout
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
        """Close the connections of the running event loop, and those of `close`."""
        self.close()
        store = self._loops.pop(asyncio.get_running_loop(), None)
        if store is not None:
            await store.aclose()

    # From threads.

    def _request(self, command: Command | Meeting, due: float) -> Any:
        if not isinstance(command, tuple):
            waiter = ThreadWaiter()
            return not command.join(waiter) or waiter.park(due - time.monotonic())
        if (connection := self._connected()) is not None:
            connection.end_by(due)
            return self._exchange(connection, command)
        # Connecting takes any time: names, handshakes, sentinels. So a worker does it, whom one can stop
        # waiting for.
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
            if time.monotonic() - since < _TRUSTED_FOR:
                return connection
            connection.end_by(math.inf)
            if _is_alive(connection):
                return connection
            connection.disconnect()
        return None

    def _exchange(self, connection: Any, command: Command) -> Any:
        try:
            connection.send_command(*command)
            answer = connection.read_response()
        except BaseException as exc:
            if _is_answer(exc):
                self._keep(connection)
                raise
            # An answer may still be on its way, and would be taken for that to the next request.
            connection.disconnect()
            if isinstance(exc, redis.RedisError):
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
        client: Any = storage.get_connection()
        if isinstance(storage, RedisClusterStorage):
            # Which node, and what to do when slots move, is the client's business.
            return client.execute_command(*command)
        connection = client.connection_pool.make_connection()
        connection.connect()
        return self._exchange(connection, command)

    def _open(self) -> Any:
        with self._lock:
            if self._storage is None:
                # On a cluster, this asks the nodes already.
                storage: Any = storage_from_string(
                    self._uri, **_settings(self._uri, Retry(NoBackoff(), 0), self.timeout)
                )
                if not isinstance(storage, RedisClusterStorage):
                    bound(storage.get_connection().connection_pool)
                self._storage = storage
            return self._storage

    # From tasks.

    async def _arequest(self, command: Command | Meeting, due: float) -> Any:
        if not isinstance(command, tuple):
            waiter = TaskWaiter()
            return not command.join(waiter) or await waiter.park(due - time.monotonic())
        async with asyncio.timeout(due - time.monotonic()):
            loop = asyncio.get_running_loop()
            store = self._loops.get(loop) or self._open_in(loop)
            return await store.request(command)

    def _open_in(self, loop: asyncio.AbstractEventLoop) -> _LoopStore:
        with self._lock:
            # Their connections refer to them, so nobody else would ever forget those that are closed.
            self._loops = {known: store for known, store in self._loops.items() if not known.is_closed()}
            store = self._loops[loop] = _LoopStore(self._uri)
            return store

    def after_fork(self) -> None:
        """Begin with no connection in a forked child: what is said on the parent's is not for us."""
        self._lock = threading.RLock()
        self._idle: deque[tuple[Any, float]] = deque()
        self._late: set[Job] = set()
        self._storage = None
        self._workers = Workers(_DIALLERS, "resilient-store")
        self._loops = {}


class _LoopStore:
    """The connections of one event loop. Whoever asks limits the time.

    Concurrency: belongs to its loop's thread.
    """

    def __init__(self, uri: str) -> None:
        # No limits of the client's own: each would cost a task for every command.
        settings = _settings(uri, AsyncRetry(NoBackoff(), 0), timeout=None)
        storage: Any = storage_from_string(f"async+{uri}", implementation="redispy", **settings)
        self._bridge = storage.bridge
        self._client = storage.bridge.get_connection()
        self._in_cluster = isinstance(storage, AsyncRedisClusterStorage)
        self._places = asyncio.Semaphore(_ASYNC_CONNECTIONS)
        self._idle: list[tuple[Any, float]] = []

    async def request(self, command: Command) -> Any:
        async with self._places:
            if self._in_cluster:
                return await self._client.execute_command(*command)
            return await self._exchange(await self._connected(), command)

    async def _connected(self) -> Any:
        while self._idle:
            connection, since = self._idle.pop()
            if time.monotonic() - since < _TRUSTED_FOR or await _is_alive_async(connection):
                return connection
            await connection.disconnect(nowait=True)
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            # One cancelled in the middle of its greeting is still open.
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _exchange(self, connection: Any, command: Command) -> Any:
        try:
            await connection.send_command(*command)
            answer = await connection.read_response()
        except BaseException as exc:
            if _is_answer(exc):
                self._idle.append((connection, time.monotonic()))
                raise
            # An answer may still be on its way, and would be taken for that to the next request.
            await connection.disconnect(nowait=True)
            if isinstance(exc, redis.RedisError):
                await self.drop_idle()  # the others are from before, too
            raise
        self._idle.append((connection, time.monotonic()))
        return answer

    async def drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop()[0].disconnect(nowait=True)

    async def aclose(self) -> None:
        await self.drop_idle()
        await self._client.aclose()
        if (sentinel := getattr(self._bridge, "sentinel", None)) is not None:
            for client in sentinel.sentinels:
                await client.aclose()


_links: weakref.WeakValueDictionary[tuple[str, float], Link] = weakref.WeakValueDictionary()
_links_lock = threading.RLock()


def link_to(uri: str, timeout: float) -> Link:
    """Return the link to the store at *uri*: one for all who ask it for the same."""
    with _links_lock:
        link = _links.get((uri, timeout))
        if link is None:
            link = Link(uri, timeout)
            link.check()
            _links[uri, timeout] = link
        return link


def _settings(uri: str, retry: Retry | AsyncRetry, timeout: float | None) -> dict[str, Any]:
    common = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": retry,
        "protocol": 2,  # a round trip less when connecting, and no messages between the answers
    }
    return common | {"sentinel_kwargs": common} if "+sentinel:" in uri else common


def _is_answer(exc: BaseException) -> bool:
    """Whether *exc* is what the server answered, so that the connection is good for the next request.

    Not so where it was the primary and is no more: a new connection finds the one that is.
    """
    return isinstance(exc, redis.ResponseError) and not isinstance(exc, redis.ReadOnlyError)


# Something to read, with nothing asked, is either the end or an answer to somebody else.


def _is_alive(connection: Any) -> bool:
    try:
        return not connection.can_read()
    except (redis.RedisError, OSError):
        return False


async def _is_alive_async(connection: Any) -> bool:
    # redis-py renamed it in release 8, and warns of the old name.
    can_read = getattr(connection, "can_read", None) or connection.can_read_destructive
    try:
        return not await can_read()
    except (redis.RedisError, OSError):
        return False
