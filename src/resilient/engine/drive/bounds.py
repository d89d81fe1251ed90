"""Wrappers that limit how long a function, or each step of a stream, may take.

A limit cannot simply be left on across a `yield`: a context variable would leak to the consumer, and the
consumer may drive each step from another task. So every step is bounded on its own, by what is left.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

from ..deadline import Instant
from ..latency import BATCH, Stopwatch
from ..shape import Shape
from .streams import PlainStream, drive_async_generator

__all__ = ["StreamBound", "bound_function", "bound_stream"]


class StreamBound(Protocol):
    """The limit of one stream."""

    def step(self, advance: Callable[[Any], Any], value: Any, /) -> Any: ...
    def astep(self, step: Awaitable[Any], /) -> Awaitable[Any]: ...
    def end(self) -> None: ...


def bound_function(
    begin: Callable[[Instant], object],
    fn: Callable[..., Any],
    stopwatch: Stopwatch,
) -> Callable[..., Any]:
    """Return the function *fn* with each of its calls within an instant that *begin* sets."""
    took, pending = stopwatch.good.add, stopwatch.good.pending

    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        instant = Instant()
        # Not a gate: an interrupt between the admission and the `try` would leave the deadline to this
        # thread, and when it had passed, every later call would be refused.
        try:
            begin(instant)
            timed = instant.begun >= stopwatch.resumes
            result = fn(*args, **kwargs)
        finally:
            instant.over = True
        if timed:
            now = instant.clock()
            took(now - instant.begun)
            if len(pending) >= BATCH:
                stopwatch.rest(now)
        return result

    return bounded


def bound_stream(
    open_bound: Callable[[], StreamBound], fn: Callable[..., Any], shape: Shape
) -> Callable[..., Any]:
    """Return the generator function *fn* with each of its runs under a limit of its own."""
    if shape is Shape.GENERATOR:
        return _generator(open_bound, fn)
    return drive_async_generator(fn, functools.partial(_BoundStream, open_bound))


def _generator(open_bound: Callable[[], StreamBound], fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def bounded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        bound = open_bound()
        try:
            return (yield from _in_steps(bound, fn(*args, **kwargs)))
        finally:
            bound.end()

    return bounded


def _in_steps(bound: StreamBound, stream: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    advance: Callable[[Any], Any] = stream.send
    value: Any = None
    while True:
        try:
            item = bound.step(advance, value)
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # if it was thrown in and comes back, this frame is in its traceback
        try:
            advance, value = stream.send, (yield item)
        except GeneratorExit:
            stream.close()
            raise
        except BaseException as exc:  # noqa: BLE001 - handed on, like all that is thrown in
            advance, value = stream.throw, exc


class _BoundStream(PlainStream):
    __slots__ = ("_bound",)

    def __init__(
        self, open_bound: Callable[[], StreamBound], fn: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        self._bound = open_bound()
        super().__init__(fn, args, kwargs)

    async def advance(self, step: Awaitable[Any]) -> Any:
        try:
            return await self._bound.astep(step)
        except BaseException:
            self._bound.end()
            raise
        finally:
            del step

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._bound.end()
