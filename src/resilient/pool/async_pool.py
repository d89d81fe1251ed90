"""The pool for tasks of one event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Concatenate, Self, cast

from ..engine import params
from ..engine.shape import Shape
from ..engine.waiting import TaskWaiter, running_loop, spells
from ..typing import P, Seconds, T
from . import chores
from .blocks import AsyncConnectionBlock
from .crews import TaskCrew
from .decorating import lending
from .front import C, Front
from .handling import Act, through
from .line import Watch
from .members import Token

__all__ = ["AsyncConnectionPool"]


class AsyncConnectionPool(Front[C, Awaitable[C]]):
    """Lend connections to the tasks of one event loop, and have every one of them back.

    It is `ConnectionPool` for asynchronous connections, and what is said there holds here. Its arguments are
    those of `ConnectionPool`, too, but `connect` returns an awaitable, and `close`, `check` and `reset` may.
    It belongs to the event loop in which it is first used, as its connections do.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any task of one event loop; a task that is cancelled while it waits, borrows or
    returns loses nothing. Used in another loop it raises RuntimeError.
    """

    kind: ClassVar[str] = "AsyncConnectionPool"
    _crew: TaskCrew

    def connection(self, timeout: Seconds | None = None) -> AsyncConnectionBlock[C]:
        """Return a block, for `async with`, that holds a connection.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the pool's.

        Returns:
            An asynchronous context manager; entering it does what `getconn` does, leaving it what `putconn`
            does, and with `commit` what that says.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return AsyncConnectionBlock(self, self._checked(timeout))

    async def getconn(self, timeout: Seconds | None = None) -> C:
        """Borrow a connection; `putconn` gives it back.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the pool's.

        Returns:
            What stands for the connection, until it is returned.

        Raises:
            PoolTimeoutError: none came free in time; the message says who has them.
            PoolUnavailableError: there is none, and the server is known to be down.
            PoolFullError: there is none, and too many wait already.
            PoolClosedError: the pool is closed.
            RuntimeError: the pool belongs to another event loop.
        """
        self._settle()
        seconds = self._checked(timeout)
        conn = self._core.take()
        return cast("C", await self._checkout(seconds) if conn is None else conn)

    async def putconn(self, conn: C) -> None:
        """Give a connection back; what was not committed is rolled back.

        Args:
            conn: what `getconn` returned.

        Raises:
            TypeError: *conn* was not borrowed from a pool.
            ValueError: it was borrowed from another one.
            ConnectionReturnedError: it was returned already.
            ConnectionReclaimedError: it was taken away before.

        Concurrency: waits until an open transaction has been rolled back, for `check_timeout` at most.
        """
        token = self._token_of(conn)
        if not self._core.put(token):
            await self._finish(token, None, well=False)

    def __call__(
        self, fn: Callable[Concatenate[C, P], Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return *fn*, which is given a connection for each call, as its first argument.

        Args:
            fn: a coroutine function or asynchronous generator function. If its first parameter is called
                `self` or `cls`, the connection is the second.

        Returns:
            A function of the same kind without that parameter.

        Raises:
            TypeError: *fn* is not asynchronous.
        """
        return lending(self, fn, (Shape.COROUTINE, Shape.ASYNC_GENERATOR))

    async def wait(self, timeout: Seconds = 30.0) -> None:
        """Wait until there are as many connections as `min_size` says, and at least one.

        Args:
            timeout: seconds, 0 or more.

        Raises:
            PoolTimeoutError: there were not, in time; the message says why.
            PoolClosedError: the pool is closed.
            RuntimeError: the pool belongs to another event loop.
        """
        self._settle()
        core = self._core
        watch = core.filling(TaskWaiter(), seconds := params.seconds("timeout", timeout))
        if not await self._wait_for(watch) or self.closed:
            raise core.not_filled(seconds)

    async def close(self, drain: Seconds = 5.0) -> None:
        """Lend nothing any more, wait for what is lent, and then cut it.

        Args:
            drain: seconds to wait, 0 or more.

        Raises:
            RuntimeError: the pool belongs to another event loop.

        Concurrency: safe from any task, any number of times. Those that wait for a connection get a
            `PoolClosedError`, those that have one a `ConnectionReclaimedError` when it was cut.
        """
        self._settle()
        core = self._core
        watch = core.emptying(TaskWaiter(), params.seconds("drain", drain))
        core.shut()
        try:
            drained = await self._wait_for(watch)
        except BaseException:
            core.cut()  # whoever closes it has no more time
            raise
        if not drained:
            core.cut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _settle(self) -> None:
        """See that the pool is used in its own event loop."""
        loop = self._crew.loop
        if loop is not None and running_loop() is loop:
            return
        if loop is None:
            self._crew.settle(self._core)
            return
        state = ", which has been closed" if loop.is_closed() else ""
        raise RuntimeError(
            f"pool {self.name!r} belongs to the event loop it was first used in{state}: its connections work "
            "in no other; make a pool in each event loop"
        )

    @staticmethod
    def _task_name() -> str | None:
        task = asyncio.current_task()
        return None if task is None else task.get_name()

    def _make_crew(self, connect: Callable[[], Any], name: str, max_size: int) -> TaskCrew:  # noqa: ARG002
        self._crew = TaskCrew(partial(_awaitable, connect))
        return self._crew

    def _act(self, parameter: str, act: Act | None) -> Act | None:
        return None if act is None else params.callback(parameter, act)

    async def _checkout(self, seconds: float | None) -> Any:
        core = self._core
        found = core.begin(seconds, TaskWaiter)
        if isinstance(found, Token):
            return core.lend_at_last(found)
        return core.lend_at_last(await core.await_(found), found.since)

    async def _finish(self, token: Token, exc: BaseException | None, *, well: bool = True) -> None:
        """Have a connection back that takes more than to be put down."""
        core, member = self._core, token.member
        steps = core.ending(token, exc, well=well)
        if steps is not None:
            try:
                await chores.adrive(through(steps))
            except BaseException as failure:
                core.give_back(token, failure)
                # What cannot be committed is told; what cannot be undone is gone with its connection.
                if (well and exc is None) or not isinstance(failure, Exception):
                    raise
                return
        core.give_back(token, exc)
        watch = core.undoing(member, exc, TaskWaiter, well=well)
        if watch is not None:
            await self._wait_for(watch)

    async def _wait_for(self, watch: Watch) -> bool:
        core = self._core
        try:
            for seconds in spells(watch, core.stock.lock, core.now, core.round):
                await cast("TaskWaiter", watch.waiter).park(seconds)
        finally:
            core.unwatch(watch)
        return watch.decided


def _awaitable(connect: Callable[[], Any]) -> Any:
    """Call *connect*, and see that it has not blocked the event loop to make a connection for threads."""
    made = connect()
    if not inspect.isawaitable(made):
        with suppress(Exception):
            made.close()
        raise TypeError(f"connect must return an awaitable, as a coroutine function does, got {made!r}")
    return made
