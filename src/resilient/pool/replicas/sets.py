"""The replica sets users hold."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ClassVar, Concatenate, Final, Self, cast

from ...engine import params
from ...engine.shape import Shape
from ...errors import PoolTimeoutError
from ...typing import Clock, P, Seconds, T
from ..async_pool import AsyncConnectionPool
from ..decorating import lending
from ..front import C, Front
from ..pool import ConnectionPool
from .base import Base
from .blocks import AsyncReadBlock, AsyncWriteBlock, ReadBlock, WriteBlock
from .gauges import Gauge, TaskGauge, ThreadGauge

__all__ = ["AsyncReplicaSet", "ReplicaSet"]

_SLICE: Final = 0.05  # seconds that one of several pools is waited for at a time


class ReplicaSet(Base[C]):
    """Read from replicas, write to the primary, and go on while one of them is away.

    A read goes to the less busy of two replicas that are chosen by chance; one with a larger pool takes more.
    A replica whose breaker is open is left alone until a single read, the probe, has found it well. A read
    that gets no connection where it looks first looks elsewhere, within the same timeout. The body of a block
    is never run twice.

    If no replica has a connection, the primary serves the read; no more of them at a time than
    *primary_share* allows, while others wait for their turn.

    After a write, reads in the same context go to the primary for *sticky* seconds, and so do those in tasks
    begun there. If the primary has no connection then, they go to a replica after all.

    Writes never go elsewhere. While the primary is away they fail as its pool says. Which server is the
    primary is for the pool's `connect` to find out: when a write is told that the server is read-only, all
    connections of the primary's pool are replaced.

    Args:
        primary: the pool to write to.
        replicas: the pools to read from, each with a name of its own. May be empty: then reads go to the
            primary, as many as come.
        name: in errors and statistics. None: the primary's.
        timeout: seconds that a caller waits for a connection, wherever it comes from in the end, 0 or more;
            its deadline, if that is earlier, counts instead. None: the primary's.
        breaker: makes the breaker for a replica, given a name for it. What counts as its failures is that
            there was no connection to be had, and exceptions after which the pool finds one broken. None: it
            opens after 3 of these in a row, or half of at least 10 in 10 s, for 1 s at first and up to 15 s.
        fallback_to_primary: whether the primary serves reads that no replica can.
        primary_share: the share of the primary's connections that they may have, above 0, at most 1.
        sticky: seconds for which a context reads from the primary after a write, 0 or more. 0: not at all.
        lag: returns by how many seconds the server of the connection it is given is behind, as a number or a
            `timedelta`; None if it cannot tell. It is asked in the background.
        max_lag: seconds that a replica may be behind, 0 or more; one that is farther behind, or does not
            answer any more, is left alone. Goes with *lag*.
        lag_every: seconds after which it is asked again, above 0; with threads no less than one.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type, such as an asynchronous pool.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any thread. While all is well, a choice takes no lock.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """

    kind: ClassVar[str] = "ReplicaSet"
    _pool: ClassVar[type[Front[Any, Any]]] = ConnectionPool
    _other: ClassVar[str] = "AsyncReplicaSet"

    @property
    def primary(self) -> ConnectionPool[C]:
        """The pool that is written to."""
        return cast("ConnectionPool[C]", self._routing.primary)

    @property
    def replicas(self) -> tuple[ConnectionPool[C], ...]:
        """The pools that are read from."""
        return self._replicas

    def reading(self, timeout: Seconds | None = None) -> ReadBlock[C]:
        """Return a block, for `with`, that holds a connection to read from.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the replica set's.

        Returns:
            A context manager. Entering it raises `PoolTimeoutError`, `PoolUnavailableError`, `PoolFullError`
            or `PoolClosedError` if no pool had a connection; the last one's, with a note on each other.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return ReadBlock(self._routing, self._timeout(timeout))

    def writing(self, timeout: Seconds | None = None) -> WriteBlock[C]:
        """Return a block, for `with`, that holds a connection to write to.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the replica set's.

        Returns:
            A context manager that does what `connection` of the primary's pool returns does.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return WriteBlock(self._routing, self._timeout(timeout))

    def reads(self, fn: Callable[Concatenate[C, P], T], /) -> Callable[P, T]:
        """Return *fn*, which is given a connection to read from for each call, as its first argument.

        Args:
            fn: a function or generator function. If its first parameter is called `self` or `cls`, the
                connection is the second.

        Returns:
            A function without that parameter.

        Raises:
            TypeError: *fn* is asynchronous, or cannot be called.
        """
        return lending(self._lender(self.reading), fn, (Shape.FUNCTION, Shape.GENERATOR))

    def writes(self, fn: Callable[Concatenate[C, P], T], /) -> Callable[P, T]:
        """Return *fn*, which is given a connection to write to for each call, as its first argument.

        Args:
            fn: as for `reads`.

        Returns:
            A function without that parameter.

        Raises:
            TypeError: *fn* is asynchronous, or cannot be called.
        """
        return lending(self._lender(self.writing), fn, (Shape.FUNCTION, Shape.GENERATOR))

    def wait(self, timeout: Seconds = 30.0) -> None:
        """Wait until the primary, and a replica if there are any, have the connections they are to keep.

        A replica that is down does not keep anybody from starting.

        Args:
            timeout: seconds, 0 or more.

        Raises:
            PoolTimeoutError: they had not, in time; the message says why.
        """
        left = _until(self._routing.clock, params.seconds("timeout", timeout))
        for pool in self._pools:
            with suppress(PoolTimeoutError):
                pool.wait(0.0)  # all begin at once
        self._pools[0].wait(left())
        while self.replicas:
            for pool in self._pools[1:]:
                try:
                    pool.wait(min(_SLICE, left()))
                except PoolTimeoutError:
                    if not left():
                        raise
                else:
                    return

    def close(self, drain: Seconds = 5.0) -> None:
        """Close all pools: wait for what is lent, and then cut it.

        Args:
            drain: seconds to wait, for all of them, 0 or more.

        Concurrency: safe from any thread, any number of times.
        """
        left = _until(self._routing.clock, params.seconds("drain", drain))
        self._stop_asking()
        for pool in self._pools:
            pool._core.shut()  # noqa: SLF001 - before the first is waited for
        for pool in self._pools:
            pool.close(left())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _gauge_for(self, lag: Callable[[C], Any], max_lag: float, every: float) -> Gauge:
        routing = self._routing
        return ThreadGauge(routing, lag, max_lag, every)


class AsyncReplicaSet(Base[C]):
    """Read from replicas, write to the primary, and go on while one of them is away: for asyncio.

    It is `ReplicaSet` for asynchronous pools, and what is said there holds here. Its arguments are
    those of `ReplicaSet`, too, but the pools are asynchronous, and `lag` may be a coroutine function.

    Raises:
        TypeError: an argument has the wrong type, such as a synchronous pool.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any task of one event loop, that of its pools.
    """

    kind: ClassVar[str] = "AsyncReplicaSet"
    _pool: ClassVar[type[Front[Any, Any]]] = AsyncConnectionPool
    _other: ClassVar[str] = "ReplicaSet"

    @property
    def primary(self) -> AsyncConnectionPool[C]:
        """The pool that is written to."""
        return cast("AsyncConnectionPool[C]", self._routing.primary)

    @property
    def replicas(self) -> tuple[AsyncConnectionPool[C], ...]:
        """The pools that are read from."""
        return self._replicas

    def reading(self, timeout: Seconds | None = None) -> AsyncReadBlock[C]:
        """Return a block, for `async with`, that holds a connection to read from.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the replica set's.

        Returns:
            An asynchronous context manager; it raises what `ReplicaSet.reading` says.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return AsyncReadBlock(self._routing, self._timeout(timeout))

    def writing(self, timeout: Seconds | None = None) -> AsyncWriteBlock[C]:
        """Return a block, for `async with`, that holds a connection to write to.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the replica set's.

        Returns:
            An asynchronous context manager that does what `connection` of the primary's pool returns does.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return AsyncWriteBlock(self._routing, self._timeout(timeout))

    def reads(
        self, fn: Callable[Concatenate[C, P], Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return *fn*, which is given a connection to read from for each call, as its first argument.

        Args:
            fn: a coroutine function or asynchronous generator function. If its first parameter is called
                `self` or `cls`, the connection is the second.

        Returns:
            A function of the same kind without that parameter.

        Raises:
            TypeError: *fn* is not asynchronous.
        """
        return lending(self._lender(self.reading), fn, (Shape.COROUTINE, Shape.ASYNC_GENERATOR))

    def writes(
        self, fn: Callable[Concatenate[C, P], Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return *fn*, which is given a connection to write to for each call, as its first argument.

        Args:
            fn: as for `reads`.

        Returns:
            A function of the same kind without that parameter.

        Raises:
            TypeError: *fn* is not asynchronous.
        """
        return lending(self._lender(self.writing), fn, (Shape.COROUTINE, Shape.ASYNC_GENERATOR))

    async def wait(self, timeout: Seconds = 30.0) -> None:
        """Wait until the primary, and a replica if there are any, have the connections they are to keep.

        A replica that is down does not keep anybody from starting.

        Args:
            timeout: seconds, 0 or more.

        Raises:
            PoolTimeoutError: they had not, in time; the message says why.
            RuntimeError: the pools belong to another event loop.
        """
        left = _until(self._routing.clock, params.seconds("timeout", timeout))
        for pool in self._pools:
            with suppress(PoolTimeoutError):
                await pool.wait(0.0)  # all begin at once
        await self._pools[0].wait(left())
        while self.replicas:
            for pool in self._pools[1:]:
                try:
                    await pool.wait(min(_SLICE, left()))
                except PoolTimeoutError:
                    if not left():
                        raise
                else:
                    return

    async def close(self, drain: Seconds = 5.0) -> None:
        """Close all pools: wait for what is lent, and then cut it.

        Args:
            drain: seconds to wait, for all of them, 0 or more.

        Raises:
            RuntimeError: the pools belong to another event loop.

        Concurrency: safe from any task, any number of times.
        """
        seconds = params.seconds("drain", drain)
        self._stop_asking()
        ends = await asyncio.gather(*(pool.close(seconds) for pool in self._pools), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _lag(self, lag: Callable[[C], Any]) -> Callable[[C], Any]:
        return params.callback("lag", lag)

    def _gauge_for(self, lag: Callable[[C], Any], max_lag: float, every: float) -> Gauge:
        routing = self._routing
        return TaskGauge(routing, lag, max_lag, every)


def _until(clock: Clock, seconds: float) -> Callable[[], float]:
    """Return a function for how many of *seconds* are left."""
    end = clock() + seconds
    return lambda: max(0.0, end - clock())
