"""Wrappers of the policies that lend a call something to hold until it ends, and may have it wait for that.

What is lent is a permit, which belongs to whoever holds the object. While nobody waits and nothing else is
to be seen to, it is taken from a deque and put back by the wrapper itself, each in one step.

A permit that is put back is put back first, and then it is seen whether somebody waits. Whoever begins to
wait says so first, and then looks for a permit once more. So one of the two sees the other.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

from ..permits import Permit
from ..shape import Shape
from .streams import PlainStream, drive_async_generator

__all__ = ["HoldBlock", "Lender", "hold"]


class Lender(Protocol):
    """Lends permits. For each that was lent, `leave` is called once, or it is put back in `free`."""

    free: deque[Permit]
    alert: list[bool]
    """Not empty while permits are to be had from `enter`, and given back to `leave`, only."""

    ticker: Any
    """Raised, with `next`, once for each permit that is taken from `free`."""

    def enter(self, fn: Any, args: Any, kwargs: Any, /, *, stream: bool = False) -> Permit: ...
    def aenter(self, fn: Any, args: Any, kwargs: Any, /, *, stream: bool = False) -> Awaitable[Permit]: ...
    def leave(self, permit: Permit, exc: BaseException | None, /) -> None: ...
    def answered(self, permit: Permit, exc: BaseException | None, /) -> None: ...
    def attend(self) -> None:
        """See to those who wait: a permit was put back when `alert` had just become true."""
        ...


def hold(core: Lender, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn*, of which each call holds a permit of *core*'s."""
    return _WRAPPERS[shape](core, fn)


class HoldBlock:
    """A block of code that holds a permit, for `with` and `async with`. Good for one use."""

    __slots__ = ("_core", "_facts", "_permit")

    def __init__(self, core: Lender, facts: Any) -> None:
        self._core = core
        self._facts = facts  # what `enter` is given in place of arguments
        self._permit: Permit | None = None

    def __enter__(self) -> None:
        if not self._taken():
            self._permit = self._core.enter(None, self._facts, {})

    async def __aenter__(self) -> None:
        if not self._taken():
            self._permit = await self._core.aenter(None, self._facts, {})

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._core.leave(permit, exc)

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        self.__exit__(kind, exc, traceback)

    def answered(self, exc: BaseException | None) -> None:
        """Let what is to be learnt from the call be learnt now; it keeps its permit until the block is left.

        Args:
            exc: how it ended, as far as anybody learns from it; None: well.
        """
        if self._permit is not None:
            self._core.answered(self._permit, exc)

    def _taken(self) -> bool:
        core = self._core
        if core.alert:
            return False
        try:
            self._permit = core.free.pop()
        except IndexError:
            return False
        next(core.ticker)
        return True


def _function(core: Lender, fn: Callable[..., Any]) -> Callable[..., Any]:
    alert, count, pop, append = core.alert, core.ticker, core.free.pop, core.free.append
    enter, leave, attend = core.enter, core.leave, core.attend

    @functools.wraps(fn)
    def holding(*args: Any, **kwargs: Any) -> Any:
        try:
            permit = None if alert else pop()
        except IndexError:
            permit = None
        if permit is None:
            permit = enter(fn, args, kwargs)
        else:
            next(count)
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            leave(permit, exc)
            del permit  # or its traceback would hold what belongs to others by then
            raise
        if alert:
            leave(permit, None)
        else:
            append(permit)
            if alert:
                attend()
        return result

    return holding


def _coroutine(core: Lender, fn: Callable[..., Any]) -> Callable[..., Any]:
    alert, count, pop, append = core.alert, core.ticker, core.free.pop, core.free.append
    enter, leave, attend = core.aenter, core.leave, core.attend

    @functools.wraps(fn)
    async def holding(*args: Any, **kwargs: Any) -> Any:
        try:
            permit = None if alert else pop()
        except IndexError:
            permit = None
        if permit is None:
            permit = await enter(fn, args, kwargs)
        else:
            next(count)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as exc:
            leave(permit, exc)
            del permit
            raise
        if alert:
            leave(permit, None)
        else:
            append(permit)
            if alert:
                attend()
        return result

    return holding


def _generator(core: Lender, fn: Callable[..., Any]) -> Callable[..., Any]:
    enter, leave = core.enter, core.leave

    @functools.wraps(fn)
    def holding(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        permit = enter(fn, args, kwargs, stream=True)
        try:
            result = yield from fn(*args, **kwargs)
        except BaseException as exc:
            leave(permit, exc)
            del permit
            raise
        leave(permit, None)
        return result

    return holding


def _async_generator(core: Lender, fn: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async_generator(fn, functools.partial(_HoldingStream, core))


class _HoldingStream(PlainStream):
    """A stream that holds a permit from its first step to its end, one way or another."""

    __slots__ = ("_core", "_permit")

    def __init__(self, core: Lender, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._core = core
        self._permit: Permit | None = None
        super().__init__(fn, args, kwargs)

    async def first(self) -> Any:
        self._permit = await self._core.aenter(self._fn, self._args, self._kwargs, stream=True)
        return await super().first()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._leave(GeneratorExit())

    async def advance(self, step: Awaitable[Any]) -> Any:
        try:
            return await step
        except StopAsyncIteration:
            self._leave(None)
            raise
        except BaseException as exc:
            self._leave(exc)
            raise
        finally:
            del step

    def _leave(self, exc: BaseException | None) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._core.leave(permit, exc)


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
