"""Wrappers of the policies that may answer in a call's place.

The answer is made inside the `except` block, so an answer that itself fails carries the call's exception as
its context. A stream is answered for only until its consumer has seen an item.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from typing import Any, Protocol

from ..shape import Shape
from .streams import PlainStream, drive_async_generator, resume

__all__ = ["Rescue", "rescue"]


class Rescue(Protocol):
    """Answers in place of a call that failed."""

    def takes(self, exc: Exception, /) -> bool: ...
    def answer(self, exc: Exception, args: Any, kwargs: Any, /) -> Any: ...
    def aanswer(self, exc: Exception, args: Any, kwargs: Any, /) -> Awaitable[Any]: ...


def rescue(core: Rescue, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn*, answered for by *core* where it fails."""
    return _WRAPPERS[shape](core, fn)


def _function(core: Rescue, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def rescued(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception as exc:
            if not core.takes(exc):
                raise
            return core.answer(exc, args, kwargs)

    return rescued


def _coroutine(core: Rescue, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def rescued(*args: Any, **kwargs: Any) -> Any:
        try:
            return await fn(*args, **kwargs)
        except Exception as exc:
            if not core.takes(exc):
                raise
            return await core.aanswer(exc, args, kwargs)

    return rescued


def _generator(core: Rescue, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def rescued(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        stream = fn(*args, **kwargs)
        try:
            item = next(stream)
        except StopIteration as stop:
            return stop.value
        except Exception as exc:
            if not core.takes(exc):
                raise
            rest: Iterable[Any] = core.answer(exc, args, kwargs)
        else:
            rest = resume(stream, item)
        return (yield from rest)

    return rescued


def _async_generator(core: Rescue, fn: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async_generator(fn, functools.partial(_RescuedStream, core))


class _RescuedStream(PlainStream):
    """A stream that is replaced by another one where its first step fails."""

    __slots__ = ("_core",)

    def __init__(self, core: Rescue, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._core = core
        super().__init__(fn, args, kwargs)

    async def first(self) -> Any:
        try:
            return await super().first()
        except StopAsyncIteration:
            raise
        except Exception as exc:
            if not self._core.takes(exc):
                raise
            self._inner = _as_stream(await self._core.aanswer(exc, self._args, self._kwargs))
        return await super().first()


def _as_stream(answer: Any) -> AsyncGenerator[Any, Any]:
    return answer if isinstance(answer, AsyncGenerator) else _iterate(answer)


async def _iterate(answer: Any) -> AsyncGenerator[Any, Any]:
    if hasattr(answer, "__aiter__"):
        async for item in answer:
            yield item
    else:
        for item in answer:
            yield item


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
