"""The replica sets users hold."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar, Concatenate, Final, Generic, Self, cast

from ...engine import params
from ...engine.clock import MONOTONIC
from ...engine.shape import Shape
from ...errors import PoolTimeoutError
from ...policies.circuit_breaker.breaker import CircuitBreaker
from ...typing import Clock, P, Seconds, T
from ..async_pool import AsyncConnectionPool
from ..decorating import lending
from ..front import C, Front
from ..pool import ConnectionPool
from .blocks import AsyncReadBlock, AsyncWriteBlock, ReadBlock, WriteBlock
from .gauges import Gauge, TaskGauge, ThreadGauge
from .routing import Routing
from .stats import ReplicaSetStats

__all__ = ["AsyncReplicaSet", "ReplicaSet"]

_SLICE: Final = 0.05  # seconds that one of several pools is waited for at a time

# What opens a breaker that nobody gave: failures in a row, or half of at least ten within ten seconds.
_FAILURES: Final = 3
_WINDOW: Final = 10.0
_FIRST_PAUSE: Final = 1.0  # seconds it stays open; twice as long each further time
_LONGEST_PAUSE: Final = 15.0


class _Base(Generic[C], metaclass=ABCMeta):
    """What both replica sets have in common; see `ReplicaSet` for the arguments."""

    kind: ClassVar[str]
    _pool: ClassVar[type[Front[Any, Any]]]
    _other: ClassVar[str]
    _gauge: Gauge | None = None

    def __init__(
        self,
        primary: Front[C, Any],
        replicas: Iterable[Front[C, Any]],
        *,
        name: str | None = None,
        timeout: Seconds | None = None,
        breaker: Callable[[str], CircuitBreaker] | None = None,
        fallback_to_primary: bool = True,
        primary_share: float = 0.5,
        sticky: Seconds = 1.0,
        lag: Callable[[C], Any] | None = None,
        max_lag: Seconds | None = None,
        lag_every: Seconds = 1.0,
        clock: Clock = MONOTONIC,
    ) -> None:
        pools = self._checked(primary, replicas)
        label = primary.name if name is None else params.named("name", name)
        share = params.ratio("primary_share", primary_share)
        if not params.flag("fallback_to_primary", fallback_to_primary) and not pools:
            rule = "must not be empty where the primary is not to be read from"
            params.refuse(ValueError, "replicas", rule, replicas)
        if (lag is None) is not (max_lag is None):
            params.refuse(ValueError, "max_lag", "must be given with lag, and not without it", max_lag)
        time = params.callback("clock", clock)
        self._routing = Routing(
            label,
            primary,
            _with_breakers(label, pools, breaker, time),
            timeout=primary._core.rules.timeout if timeout is None else params.seconds("timeout", timeout),  # noqa: SLF001
            sticky=params.seconds("sticky", sticky),
            share=share if fallback_to_primary else None,
            clock=time,
        )
        every = params.seconds("lag_every", lag_every, above=True)
        if lag is not None and max_lag is not None:
            most = params.seconds("max_lag", max_lag)
            self._gauge = self._gauge_for(self._lag(lag), most, every)
            self._routing.watch(self._gauge.start)

    @property
    def name(self) -> str:
        """The replica set's name."""
        return self._routing.name

    @property
    def breakers(self) -> dict[str, CircuitBreaker]:
        """The replicas' breakers, by the names of their pools: to be forced open, or listened to."""
        return {replica.pool.name: replica.breaker for replica in self._routing.replicas}

    def stats(self) -> ReplicaSetStats:
        """Return what the replica set has counted, and how its pools do."""
        return self._routing.stats()

    def __repr__(self) -> str:
        up, all_of_them = len(self._routing.up), len(self._routing.replicas)
        return f"<{self.kind} {self.name!r} {up} of {all_of_them} replicas up>"

    @abstractmethod
    def _gauge_for(self, lag: Callable[[C], Any], max_lag: float, every: float) -> Gauge: ...

    def _lag(self, lag: Callable[[C], Any]) -> Callable[[C], Any]:
        return params.plain_function("lag", lag)

    @property
    def _pools(self) -> list[Any]:
        return [self._routing.primary, *self._replicas]

    @property
    def _replicas(self) -> tuple[Any, ...]:
        return tuple(replica.pool for replica in self._routing.replicas)

    def _timeout(self, timeout: Seconds | None) -> float:
        return self._routing.timeout if timeout is None else params.seconds("timeout", timeout)

    def _checked(self, primary: Front[C, Any], replicas: Iterable[Front[C, Any]]) -> list[Front[C, Any]]:
        self._check("primary", primary)
        if not isinstance(replicas, Iterable):
            params.refuse(TypeError, "replicas", "must be a collection of pools", replicas)
        pools = [*replicas]
        names = {primary.name}
        for pool in pools:
            self._check("replicas", pool)
            if pool is primary:
                params.refuse(
                    ValueError, "replicas", "must not hold the primary, which is read from anyway", pool
                )
            if pool.name in names:
                params.refuse(ValueError, "replicas", "must have a name of its own each", pool)
            names.add(pool.name)
        return pools

    def _check(self, parameter: str, pool: object) -> None:
        if isinstance(pool, self._pool):
            return
        rule = (
            f"must be a {self._pool.__name__}"
            if parameter == "primary"
            else f"must hold {self._pool.__name__}s"
        )
        hint = f"; {self._other} takes this one" if isinstance(pool, Front) else ""
        params.refuse(TypeError, parameter, rule + hint, pool)

    def _lender(self, connection: Callable[[], Any]) -> Any:
        """Return what stands for a pool where a function is to be lent connections."""
        return SimpleNamespace(kind=self.kind, name=self.name, connection=connection)


class ReplicaSet(_Base[C]):
    """Read from replicas, write to the primary, and go on while one of them is away.

    A read goes to the less busy of two replicas that are chosen by chance; one with a larger pool takes more.
    A replica whose breaker is open is left alone until a single read, the probe, has found it well. A read
    that gets no connection where it looks first looks elsewhere, within the same timeout. The body of a block
    is never run twice.

    If no replica has a connection, the primary serves the read, as long as it serves no more of them at a
    time than *primary_share* allows.

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
        if self._gauge is not None:
            self._gauge.stop()
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


class AsyncReplicaSet(_Base[C]):
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
        if self._gauge is not None:
            self._gauge.stop()
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


def _with_breakers(
    label: str, pools: list[Front[Any, Any]], make: Callable[[str], CircuitBreaker] | None, clock: Clock
) -> list[tuple[Front[Any, Any], CircuitBreaker]]:
    """Return *pools* with a breaker for each."""
    make = _breaker_by(clock) if make is None else params.plain_function("breaker", make, classes=True)
    breakers: list[CircuitBreaker] = []
    for pool in pools:
        breaker = make(f"{label}/{pool.name}")
        if not isinstance(breaker, CircuitBreaker):
            params.refuse(TypeError, "breaker", "must return a CircuitBreaker", breaker)
        if breaker in breakers:
            params.refuse(ValueError, "breaker", "must return another one for each replica", breaker)
        breakers.append(breaker)
    return [*zip(pools, breakers, strict=True)]


def _breaker_by(clock: Clock) -> Callable[[str], CircuitBreaker]:
    """Return what makes the breakers where nobody says how."""
    return lambda name: CircuitBreaker(
        name,
        failure_ratio=0.5,
        window=_WINDOW,
        fail_max=_FAILURES,
        reset_timeout=_pause_after,
        clock=clock,
    )


def _pause_after(times: int) -> float:
    """Return for how long a breaker stays open that opens for so many times in a row."""
    return min(_FIRST_PAUSE * 2.0 ** min(times - 1, 10), _LONGEST_PAUSE)


def _until(clock: Clock, seconds: float) -> Callable[[], float]:
    """Return a function for how many of *seconds* are left."""
    end = clock() + seconds
    return lambda: max(0.0, end - clock())
