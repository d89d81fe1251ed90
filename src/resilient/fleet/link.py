"""Links to a store: requests that end in time, whatever the store does.

The clients' own settings are made for jobs that would rather wait: on a server that swallows packets, a
command of redis-py blocks for a minute. Here it gets one try, for as long as the link allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import Any, Final, TypeVar

import redis
from limits.storage import RedisClusterStorage, storage_from_string
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..engine import params
from ..engine.fork import renew_after_fork
from ..engine.waiting import TaskWaiter, ThreadWaiter
from ..engine.workers import Job, Stage, Workers
from ..policies.rate_limiter.ladder import StoreBusyError
from .bounded import bound
from .lane import Lane, patience
from .script import Command, Conversation, Meeting
from .settings import TRUSTED_FOR, is_answer, new_connection, settings_for

__all__ = ["Link", "link_to"]

R = TypeVar("R")

_DIALLERS: Final = 8  # threads that connect, where none is connected
_IDLE: Final = 64  # connections kept; more threads than that at a time connect anew


class Link:
    """Requests to the store at *uri*, each over in *timeout* seconds.

    Concurrency: safe from any thread, task and loop. Threads use connections in turn; each event loop has
    its own. A forked child starts with none.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self._uri = uri
        self.timeout = timeout
        self._storage: Any = None  # of limits; it knows the topologies and their clients
        self._lanes: dict[asyncio.AbstractEventLoop, Lane] = {}
        self._inherited: object = None
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
            new_connection(self._open().get_connection())
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
        with contextlib.suppress(IndexError):  # another thread took the last one
            while self._idle:
                self._idle.pop()[0].disconnect()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those of `close`."""
        self.close()
        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            await lane.aclose()

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
            stage = Stage.DONE if ended else job.withdraw()
        if stage is Stage.QUEUED or (not ended and time.monotonic() - self._heard < self.timeout):
            raise StoreBusyError("too many threads wanted a connection at the same time")
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
            if time.monotonic() - since < TRUSTED_FOR:
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
            if is_answer(exc):
                self._keep(connection)
                raise
            # An answer may still be on its way, and would be taken for that to the next request.
            connection.disconnect()
            if isinstance(exc, redis.RedisError):
                self.close()  # the others are from before, too
            raise
        self._heard = time.monotonic()
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
        connection = new_connection(client)
        connection.connect()
        return self._exchange(connection, command)

    def _open(self) -> Any:
        with self._lock:
            if self._storage is None:
                # On a cluster, this asks the nodes already.
                storage: Any = storage_from_string(
                    self._uri, **settings_for(self._uri, Retry(NoBackoff(), 0), self.timeout)
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
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop) or self._open_lane(loop)
        try:
            async with patience(due - time.monotonic()):
                return await lane.request(command)
        except TimeoutError:
            if lane.is_silent:
                raise
        raise StoreBusyError("the event loop had no time for the answer")

    def _open_lane(self, loop: asyncio.AbstractEventLoop) -> Lane:
        with self._lock:
            # Their connections refer to them, so nobody else would ever forget those that are closed.
            self._lanes = {known: lane for known, lane in self._lanes.items() if not known.is_closed()}
            lane = self._lanes[loop] = Lane(self._uri, self.timeout)
            return lane

    def after_fork(self) -> None:
        """Begin with no connection in a forked child: what is said on the parent's is not for us."""
        self._lock = threading.RLock()
        self._idle: deque[tuple[Any, float]] = deque()
        self._heard = -math.inf  # when a thread had an answer, last
        self._late: set[Job] = set()
        self._storage = None
        self._workers = Workers(_DIALLERS, "resilient-store")
        # Kept: to close them here would take their sockets out of the set that the parent's loop watches.
        self._inherited = self._lanes
        self._lanes = {}


class _Links:
    """The links of this process, one for each address and time.

    Concurrency: safe from any thread.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[tuple[str, float], Link] = weakref.WeakValueDictionary()
        self.after_fork()
        renew_after_fork(self)

    def to(self, uri: str, timeout: float) -> Link:
        """Return the link to the store at *uri*: one for all who ask it for the same."""
        with self._lock:
            link = self._known.get((uri, timeout))
            if link is None:
                link = Link(uri, timeout)
                link.check()
                self._known[uri, timeout] = link
            return link

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()


link_to: Final = _Links().to


def _is_alive(connection: Any) -> bool:
    try:
        # Something to read, with nothing asked, is either the end or an answer to somebody else.
        return not connection.can_read()
    except (redis.RedisError, OSError):
        return False
