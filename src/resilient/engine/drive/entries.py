"""Wrappers of the policies that let a call in and ask no more of it, but may have it wait for that."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

from ..shape import Shape
from .streams import PlainStream, drive_async_generator

__all__ = ["Entry", "entry"]


class Entry(Protocol):
    """Lets calls in, by returning, or refuses, by raising. A stream is let in at its first step."""

    def admit(self, fn: Any, args: Any, kwargs: Any, /) -> object: ...
    def aadmit(self, fn: Any, args: Any, kwargs: Any, /) -> Awaitable[object]: ...


def entry(core: Entry, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn*, let in by *core*."""
    return _WRAPPERS[shape](core, fn)


def _function(core: Entry, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit = core.admit

    @functools.wraps(fn)
    def admitted(*args: Any, **kwargs: Any) -> Any:
        admit(fn, args, kwargs)
        return fn(*args, **kwargs)

    return admitted


def _coroutine(core: Entry, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit = core.aadmit

    @functools.wraps(fn)
    async def admitted(*args: Any, **kwargs: Any) -> Any:
        await admit(fn, args, kwargs)
        return await fn(*args, **kwargs)

    return admitted


def _generator(core: Entry, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit = core.admit

    @functools.wraps(fn)
    def admitted(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        admit(fn, args, kwargs)
        return (yield from fn(*args, **kwargs))

    return admitted


def _async_generator(core: Entry, fn: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async_generator(fn, functools.partial(_AdmittedStream, core))


class _AdmittedStream(PlainStream):
    __slots__ = ("_core",)

    def __init__(self, core: Entry, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._core = core
        super().__init__(fn, args, kwargs)

    async def first(self) -> Any:
        await self._core.aadmit(self._fn, self._args, self._kwargs)
        return await super().first()


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
