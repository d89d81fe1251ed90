"""The block form of a retry: `for attempt in retry: with attempt: ...`, and its asynchronous twin."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from ..engine.drive.gates import GateBlock
from ..engine.resends import Resend

if TYPE_CHECKING:
    from .retry import Retry, Run

__all__ = ["AsyncAttempts", "Attempt", "Attempts"]


class _Loop:
    """What the loops of both colours share: the state of one retried block."""

    # None until an attempt has failed and another one was granted, and again once that one is under way.
    _delay: float | None = None

    def __init__(self, policy: Retry) -> None:
        if policy.refuses is not None:
            msg = f"Retry {policy.name!r} judges results, and a block has none: decorate a function instead"
            raise TypeError(msg)
        next(policy.ticker)
        self._policy = policy
        self._until = None if policy.timeout is None else policy.clock() + policy.timeout
        self._run: Run | None = None
        self._number = 0
        self._over = False

    def __del__(self) -> None:
        # The loop was left between a failure and the attempt that was granted for it.
        if self._delay is not None and self._run is not None:
            self._run.unsent()

    def _take_delay(self) -> tuple[Run, float] | None:
        """Return what to wait before the next attempt; None before the first one."""
        run, delay, self._delay = self._run, self._delay, None
        return None if run is None or delay is None else (run, delay)

    def _attempt(self, *, in_task: bool) -> Attempt:
        self._over = True  # until this one fails: going on without `with attempt` ends the loop
        self._number += 1
        return Attempt(self, self._number, self._limit(in_task=in_task))

    def _limit(self, *, in_task: bool) -> GateBlock | None:
        if self._until is None:
            return None
        left = self._until - self._policy.clock()
        # A sleep may end a little late; the attempt that was granted then meets a deadline that has passed.
        return self._policy.limit(max(left, 1e-9)).block(in_task=in_task)

    def passed(self) -> None:
        """Note that an attempt ended well."""
        if self._run is not None:
            self._run.recovered()

    def failed(self, exc: Exception) -> bool:
        """Judge a failed attempt; return whether there will be another one."""
        if self._run is None:
            self._run = self._policy.begin(None, (), {}, self._until)
        self._delay = self._run.failed(exc)
        self._over = self._delay is None
        return not self._over


class Attempts(_Loop):
    """The attempts of one `for attempt in retry` loop."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        if self._over:
            raise StopIteration
        if (pause := self._take_delay()) is not None:
            run, delay = pause
            run.sleep(delay)
        return self._attempt(in_task=False)


class AsyncAttempts(_Loop):
    """The attempts of one `async for attempt in retry` loop.

    No async generator: a loop that is left early, as most are, would leave that one to the event loop to
    close.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        if self._over:
            raise StopAsyncIteration
        if (pause := self._take_delay()) is not None:
            run, delay = pause
            await run.asleep(delay)
        return self._attempt(in_task=True)


class Attempt(AbstractContextManager["Attempt", bool]):
    """One attempt of a retried block.

    Attributes:
        number: the number of the attempt; the first one is 1.
    """

    __slots__ = ("_limit", "_loop", "_resend", "number")

    def __init__(self, loop: _Loop, number: int, limit: GateBlock | None) -> None:
        self._loop = loop
        self._limit = limit
        self._resend = Resend(number - 1) if number > 1 else None
        self.number = number

    def __enter__(self) -> Self:
        if self._limit is not None:
            self._limit.__enter__()
        if self._resend is not None:
            self._resend.__enter__()
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if self._resend is not None:
            self._resend.count = 0
        if self._limit is not None:
            self._limit.__exit__(kind, exc, traceback)
        if exc is None:
            self._loop.passed()
        return isinstance(exc, Exception) and self._loop.failed(exc)
