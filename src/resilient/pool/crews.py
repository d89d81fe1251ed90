"""Who does the chores: threads for synchronous pools, tasks for asynchronous ones."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final

from ..engine.clock import asleep, sleep
from ..engine.waiting import running_loop
from ..engine.workers import Job, Workers
from . import chores
from .core import Core, Crew
from .inherited import keep
from .members import Chore, Errand

__all__ = ["LastCrew", "TaskCrew", "ThreadCrew"]

_ROUNDS_EVERY: Final = 1.0  # seconds
_FAREWELL: Final = 2.0  # seconds that the end of a loop waits for the last chores
_SPARE: Final = 4  # threads beyond those that may be stuck, each with a connection


class ThreadCrew:
    """Does chores in threads, which are started when needed and gone when idle for a while.

    Concurrency: safe from any thread.
    """

    def __init__(self, name: str, connect: Callable[[], Any], max_size: int) -> None:
        self._connect = connect
        self._workers = Workers(_threads_for(max_size), f"resilient-pool-{name}")

    def resize(self, max_size: int) -> None:
        """Be enough for so many connections."""
        self._workers.size = _threads_for(max_size)

    def after_fork(self) -> None:
        """Do nothing: its threads see to that themselves."""

    def carry_out(self, core: Core, chore: Chore) -> None:
        """Have *chore* done, in a context of its own: nobody's deadline or trace belongs to it."""
        job = Context().run(Job, partial(_do, core, chore, self._connect), self._workers.overdue)
        self._workers.submit(job)


def _threads_for(max_size: int) -> int:
    return 2 * max_size + _SPARE


def _do(core: Core, chore: Chore, connect: Callable[[], Any]) -> None:
    if chore.delay:
        sleep(chore.delay)
    chores.drive(chores.begin(core, chore, connect))


class LastCrew:
    """Closes what there is when the interpreter ends, and does nothing else.

    From Python 3.12 on, no thread can be started by then. What those that are there do not do is done where
    it stands, if it is known to wait for nothing.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def resize(self, max_size: int) -> None:
        """Do nothing."""

    def after_fork(self) -> None:
        """Do nothing."""

    def carry_out(self, core: Core, chore: Chore) -> None:
        """Do *chore*, if it is an end."""
        if chore.errand not in {Errand.CLOSE, Errand.CUT}:
            return
        try:
            self._crew.carry_out(core, chore)
        except RuntimeError:
            if core.handling.closes_at_once:
                chores.drive(chores.begin(core, chore, _nothing))


def _nothing() -> None:
    """Return no connection."""


class TaskCrew:
    """Does chores in tasks of one event loop.

    Concurrency: for use in that loop.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._farewell: AsyncGenerator[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that it works in, once it does."""
        return self._loop

    def settle(self, core: Core) -> None:
        """Work in the running loop from now on, and make rounds there."""
        self._loop = asyncio.get_running_loop()
        self._farewell = farewell = _farewell(weakref.ref(core), self._tasks)
        with suppress(StopIteration):
            farewell.__anext__().send(None)  # to its `yield`, and no further
        self._loop.call_later(_ROUNDS_EVERY, _make_rounds, weakref.ref(core), self._loop, context=Context())

    def resize(self, max_size: int) -> None:
        """Do nothing: there are always enough tasks."""

    def after_fork(self) -> None:
        """Forget the loop, and what runs in it, which is the parent's."""
        keep((self._farewell, self._tasks))
        self._loop = None
        self._farewell = None
        self._tasks = set()

    def carry_out(self, core: Core, chore: Chore) -> None:
        """Have *chore* done, in a context of its own: nobody's deadline or trace belongs to it.

        Raises:
            RuntimeError: there is no loop yet, or not any more.
        """
        loop = self._loop
        if loop is None:
            raise RuntimeError("the pool is in no event loop")
        if chore.errand is Errand.CUT:
            # It waits for nothing, and a task for it might never run: the loop may end with the pool.
            chores.drive(chores.begin(core, chore, self._connect))
        elif running_loop() is loop:
            self._begin(core, chore)
        else:
            loop.call_soon_threadsafe(self._begin, core, chore)

    def _begin(self, core: Core, chore: Chore) -> None:
        assert self._loop is not None  # noqa: S101 - `carry_out` has looked
        task = self._loop.create_task(self._do(core, chore), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, core: Core, chore: Chore) -> None:
        rules = core.rules
        limit = rules.connect_timeout if chore.errand is Errand.CONNECT else rules.check_timeout
        if chore.delay:
            await asleep(chore.delay)
        await chores.adrive(chores.begin(core, chore, self._connect), limit)


async def _farewell(reference: weakref.ref[Core], tasks: set[asyncio.Task[None]]) -> AsyncGenerator[None]:
    """Wait for the end of the event loop, and have the connections closed in good order.

    By then `asyncio.run` has cancelled the tasks there were, and some may have given connections back, so
    that there are chores. Of asynchronous generators that are not exhausted it sees to the end, last of all.
    """
    try:
        yield
    finally:
        core = reference()
        if core is not None:
            core.shut()
        until = asyncio.get_running_loop().time() + _FAREWELL
        while tasks and (left := until - asyncio.get_running_loop().time()) > 0.0:
            await asyncio.wait([*tasks], timeout=left)
        for task in tasks:
            task.cancel()


def _make_rounds(reference: weakref.ref[Core], loop: asyncio.AbstractEventLoop) -> None:
    core = reference()
    if core is not None:
        core.round()
        loop.call_later(_ROUNDS_EVERY, _make_rounds, reference, loop)
