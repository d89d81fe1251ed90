"""Wrappers of the policies that may call again.

The first attempt runs inline: a call that succeeds at once costs one increment and one frame. Waiting
happens outside the `except` block of the failed attempt, so attempts do not become each other's context.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..shape import Shape
from .streams import PlainStream, drive_async_generator, resume

__all__ = ["Loop", "LoopRun", "loop"]


class Loop(Protocol):
    """Decides whether a call is made again."""

    ticker: Any
    """Raised once per call, with `next`."""

    refuses: Callable[[Any], bool | float] | None
    """Judges the result of a first attempt: the verdict is for `refused`. None where every result will do."""

    def begin(self, fn: Any, args: Any, kwargs: Any, /) -> LoopRun: ...


class LoopRun(Protocol):
    """The further attempts of one call, from its first failure on.

    `failed`, `refused` and `returned` answer with the seconds to wait before the next attempt, or None for no
    other. `again` is entered around each of them.
    """

    def failed(self, exc: Exception, /) -> float | None: ...
    def refused(self, result: Any, verdict: bool | float, /) -> float | None: ...
    def returned(self, result: Any, /) -> float | None: ...
    def recovered(self) -> None: ...
    def sleep(self, delay: float, /) -> None: ...
    def asleep(self, delay: float, /) -> Awaitable[None]: ...
    def again(self) -> AbstractContextManager[None]: ...


def loop(core: Loop, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn*, called again as *core* decides."""
    return _WRAPPERS[shape](core, fn)


def _function(core: Loop, fn: Callable[..., Any]) -> Callable[..., Any]:
    count, refuses, begin = core.ticker, core.refuses, core.begin

    @functools.wraps(fn)
    def retried(*args: Any, **kwargs: Any) -> Any:
        next(count)
        try:
            result = fn(*args, **kwargs)
        except Exception as exc:
            run = begin(fn, args, kwargs)
            if (delay := run.failed(exc)) is None:
                raise
        else:
            if refuses is None or not (verdict := refuses(result)):
                return result
            run = begin(fn, args, kwargs)
            if (delay := run.refused(result, verdict)) is None:
                return result
        return _further_attempts(run, delay, fn, args, kwargs)

    return retried


def _further_attempts(run: LoopRun, delay: float, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    while True:
        run.sleep(delay)
        try:
            with run.again():
                result = fn(*args, **kwargs)
        except Exception as exc:
            if (pause := run.failed(exc)) is None:
                raise
        else:
            if (pause := run.returned(result)) is None:
                return result
        delay = pause


def _coroutine(core: Loop, fn: Callable[..., Any]) -> Callable[..., Any]:
    count, refuses, begin = core.ticker, core.refuses, core.begin

    @functools.wraps(fn)
    async def retried(*args: Any, **kwargs: Any) -> Any:
        next(count)
        try:
            result = await fn(*args, **kwargs)
        except Exception as exc:
            run = begin(fn, args, kwargs)
            if (delay := run.failed(exc)) is None:
                raise
        else:
            if refuses is None or not (verdict := refuses(result)):
                return result
            run = begin(fn, args, kwargs)
            if (delay := run.refused(result, verdict)) is None:
                return result
        return await _afurther_attempts(run, delay, fn, args, kwargs)

    return retried


async def _afurther_attempts(
    run: LoopRun, delay: float, fn: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    while True:
        await run.asleep(delay)
        try:
            with run.again():
                result = await fn(*args, **kwargs)
        except Exception as exc:
            if (pause := run.failed(exc)) is None:
                raise
        else:
            if (pause := run.returned(result)) is None:
                return result
        delay = pause


def _generator(core: Loop, fn: Callable[..., Any]) -> Callable[..., Any]:
    count, begin = core.ticker, core.begin

    @functools.wraps(fn)
    def retried(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        next(count)
        run: LoopRun | None = None
        while True:
            stream = fn(*args, **kwargs)
            try:
                item = next(stream) if run is None else _first_again(run, stream)
            except StopIteration as stop:
                return stop.value
            except Exception as exc:
                run = run or begin(fn, args, kwargs)
                if (delay := run.failed(exc)) is None:
                    raise
            else:
                break
            run.sleep(delay)
        if run is not None:
            run.recovered()
        return (yield from resume(stream, item))

    return retried


def _first_again(run: LoopRun, stream: Generator[Any, Any, Any]) -> Any:
    with run.again():
        return next(stream)


def _async_generator(core: Loop, fn: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async_generator(fn, functools.partial(_RetriedStream, core))


class _RetriedStream(PlainStream):
    """A stream that may begin anew until its consumer has seen an item: after that it would repeat itself."""

    __slots__ = ("_core",)

    def __init__(self, core: Loop, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        next(core.ticker)
        self._core = core
        super().__init__(fn, args, kwargs)

    async def first(self) -> Any:
        run: LoopRun | None = None
        while True:
            try:
                if run is None:
                    item = await super().first()
                else:
                    with run.again():
                        item = await super().first()
            except StopAsyncIteration:
                raise
            except Exception as exc:
                run = run or self._core.begin(self._fn, self._args, self._kwargs)
                if (delay := run.failed(exc)) is None:
                    raise
            else:
                break
            await run.asleep(delay)
            self.restart()
        if run is not None:
            run.recovered()
        return item


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
