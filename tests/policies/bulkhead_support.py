"""What the tests of bulkheads share: slots taken by hand, threads and tasks that wait, time in hand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from resilient import Bulkhead, BulkheadFullError, Priority, deadline
from resilient.engine.drive.holds import HoldBlock
from resilient.testing import FakeClock

_MOST_TURNS = 1_000
_PATIENCE = 10.0  # seconds until a thread that does not come is a failure


class Bell(FakeClock):
    """A clock that tells when somebody looks at it: whoever waits for a slot does so, once in the line."""

    def __init__(self) -> None:
        super().__init__(1_000.0)
        self._rung = threading.Event()

    def __call__(self) -> float:
        self._rung.set()
        return super().__call__()

    def until(self, condition: Callable[[], bool]) -> None:
        """Return once *condition* holds; it is asked again after each look at the clock."""
        while not condition():
            assert self._rung.wait(_PATIENCE), "nothing happens any more"
            self._rung.clear()


class Caller:
    """A thread that takes a slot, notes its name, and holds the slot until it is told to end."""

    def __init__(self, bulkhead: Bulkhead, served: list[Any], name: object = None) -> None:
        self._error: BaseException | None = None
        self._begun = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bulkhead, served, name), daemon=True)
        self._thread.start()

    def _run(self, bulkhead: Bulkhead, served: list[Any], name: object) -> None:
        try:
            with bulkhead.calling():
                served.append(name)
                self._begun.set()
                assert self._end.wait(_PATIENCE)
        except BaseException as exc:
            self._error = exc

    def begun(self) -> bool:
        """Wait until the call has begun; return whether it has."""
        return self._begun.wait(_PATIENCE)

    def end(self) -> BaseException | None:
        """End the call, as soon as it has begun or was refused; return what it raised."""
        self._end.set()
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive()
        return self._error


def take(bulkhead: Bulkhead, priority: Priority | str | None = None, key: str | None = None) -> HoldBlock:
    """Take a slot, and hold it until it is given back or the block that is returned is forgotten."""
    block = bulkhead.calling(priority, key)
    block.__enter__()
    return block


def give(block: HoldBlock, error: BaseException | None = None) -> None:
    """Give the slot of *block* back: the call ended well, or with *error*."""
    block.__exit__(None if error is None else type(error), error, None)


def fill(
    bulkhead: Bulkhead, priority: Priority | str | None = None, key: str | None = None
) -> list[HoldBlock]:
    """Take all slots that there are for *priority* now, without waiting for more."""
    blocks: list[HoldBlock] = []
    with contextlib.suppress(BulkheadFullError), no_time_left():
        while True:
            blocks.append(take(bulkhead, priority, key))
    return blocks


@contextlib.contextmanager
def no_time_left() -> Iterator[None]:
    """Have nobody wait inside the block: the deadline has passed."""
    clock = FakeClock()
    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        yield


async def turns(condition: Callable[[], bool]) -> None:
    """Let the loop turn until *condition* holds."""
    for _ in range(_MOST_TURNS):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the loop turns in vain")


async def queue_up(bulkhead: Bulkhead, *calls: Callable[[], Any]) -> list[asyncio.Task[Any]]:
    """Have one task after the other wait for a slot; return them."""
    tasks = []
    for call in calls:
        before = bulkhead.stats().waiting
        tasks.append(asyncio.ensure_future(call()))
        await turns(lambda before=before: bulkhead.stats().waiting == before + 1)  # type: ignore[misc]
    return tasks


def patient(clock: FakeClock, limit: int = 1, **options: Any) -> Bulkhead:
    """Make a bulkhead that has calls wait."""
    return Bulkhead("b", limit, **({"max_wait": 60.0, "clock": clock} | options))


def queue_threads(bulkhead: Bulkhead, clock: Bell, served: list[Any], *names: object) -> list[Caller]:
    """Have one thread after the other wait for a slot; return them."""
    callers = []
    for name in names:
        before = bulkhead.stats().waiting
        callers.append(Caller(bulkhead, served, name))
        clock.until(lambda before=before: bulkhead.stats().waiting == before + 1)  # type: ignore[misc]
    return callers


def noting(bulkhead: Bulkhead, served: list[Any], name: object) -> Callable[[], Any]:
    """Return a coroutine function that takes a slot, notes its name and is over."""

    async def call() -> None:
        async with bulkhead.calling():
            served.append(name)

    return call


def slots_left(bulkhead: Bulkhead) -> int:
    """Return how many slots can be had, by having them."""
    blocks = fill(bulkhead)
    for block in blocks:
        give(block)
    return len(blocks)
