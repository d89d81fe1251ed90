"""Wrappers of the policies that let a call in and learn how it ended."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Protocol

from ..shape import Shape
from .streams import PlainStream, drive_async_generator

__all__ = ["NO_RESULT", "Gate", "GateBlock", "gate", "settle"]

NO_RESULT: Final = object()
"""What a gate is told where a call has no result to judge: at the end of a block or a stream."""


class Gate(Protocol):
    """Lets calls in. For each ticket exactly one of `success`, `failure` and `abandon` is called.

    `admit` refuses by raising; `failure` and `abandon` may raise in place of the exception they are given.
    """

    def admit(self, fn: Any, args: Any, kwargs: Any, /) -> Any: ...
    def admit_stream(self, fn: Any, args: Any, kwargs: Any, /) -> Any: ...
    def success(self, ticket: Any, result: Any, /) -> None: ...
    def failure(self, ticket: Any, exc: Exception, /) -> None: ...
    def abandon(self, ticket: Any, exc: BaseException, /) -> None: ...


def gate(core: Gate, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn* behind *core*."""
    return _WRAPPERS[shape](core, fn)


class GateBlock:
    """A block of code behind a gate, for `with` and `async with`. Good for one use."""

    __slots__ = ("_core", "_ticket")

    def __init__(self, core: Gate) -> None:
        self._core = core

    def __enter__(self) -> None:
        self._ticket = self._core.admit(self.__enter__, (), {})

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        settle(self._core, self._ticket, exc)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        settle(self._core, self._ticket, exc)


def settle(core: Gate, ticket: Any, exc: BaseException | None) -> None:
    """Tell *core* how a block ended."""
    if exc is None:
        core.success(ticket, NO_RESULT)
    elif isinstance(exc, Exception):
        core.failure(ticket, exc)
    else:
        core.abandon(ticket, exc)


def _function(core: Gate, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit, success, failure, abandon = core.admit, core.success, core.failure, core.abandon

    @functools.wraps(fn)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        ticket = admit(fn, args, kwargs)
        try:
            result = fn(*args, **kwargs)
        except Exception as exc:
            failure(ticket, exc)
            raise
        except BaseException as exc:
            abandon(ticket, exc)
            raise
        success(ticket, result)
        return result

    return guarded


def _coroutine(core: Gate, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit, success, failure, abandon = core.admit, core.success, core.failure, core.abandon

    @functools.wraps(fn)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        ticket = admit(fn, args, kwargs)
        try:
            result = await fn(*args, **kwargs)
        except Exception as exc:
            failure(ticket, exc)
            raise
        except BaseException as exc:
            abandon(ticket, exc)
            raise
        success(ticket, result)
        return result

    return guarded


def _generator(core: Gate, fn: Callable[..., Any]) -> Callable[..., Any]:
    admit, success, failure, abandon = core.admit_stream, core.success, core.failure, core.abandon

    @functools.wraps(fn)
    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        ticket = admit(fn, args, kwargs)
        try:
            result = yield from fn(*args, **kwargs)
        except Exception as exc:
            failure(ticket, exc)
            raise
        except BaseException as exc:
            abandon(ticket, exc)
            raise
        success(ticket, NO_RESULT)
        return result

    return guarded


def _async_generator(core: Gate, fn: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async_generator(fn, functools.partial(_GatedStream, core))


class _GatedStream(PlainStream):
    """A stream behind a gate: admitted at its first step, settled when it ends, one way or another."""

    __slots__ = ("_core", "_ticket")

    def __init__(self, core: Gate, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._core = core
        self._ticket = core.admit_stream(fn, args, kwargs)
        super().__init__(fn, args, kwargs)

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._core.abandon(self._ticket, GeneratorExit())

    async def advance(self, step: Awaitable[Any]) -> Any:
        try:
            return await step
        except StopAsyncIteration:
            self._core.success(self._ticket, NO_RESULT)
            raise
        except Exception as exc:
            self._core.failure(self._ticket, exc)
            raise
        except BaseException as exc:
            self._core.abandon(self._ticket, exc)
            raise
        finally:
            del step


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
