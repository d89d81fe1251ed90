"""How generators of both colours are handed through a wrapper."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

__all__ = ["PlainStream", "drive_async_generator", "resume"]


def resume(stream: Generator[Any, Any, Any], item: Any) -> Generator[Any, Any, Any]:
    """Hand on a generator whose first *item* was taken already, as `yield from` would have (PEP 380)."""
    try:
        while True:
            try:
                sent = yield item
            except GeneratorExit:
                stream.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - handed on, like all that is thrown in
                item = stream.throw(exc)
            else:
                if sent is None:
                    return (yield from stream)
                item = stream.send(sent)
    except StopIteration as stop:
        return stop.value


class PlainStream:
    """One run of an async generator function; a family overrides the steps it has a say in."""

    __slots__ = ("_args", "_fn", "_inner", "_kwargs")

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._inner: AsyncGenerator[Any, Any] = fn(*args, **kwargs)

    async def first(self) -> Any:
        """Take the first item."""
        return await self.advance(self._inner.__anext__())

    async def send(self, value: Any) -> Any:
        """Take the next item in exchange for *value*."""
        return await self.advance(self._inner.asend(value))

    async def throw(self, exc: BaseException) -> Any:
        """Raise *exc* inside and take the next item."""
        try:
            return await self.advance(self._inner.athrow(exc))
        finally:
            del exc  # if it comes back, this frame is in its traceback: they would keep each other alive

    async def close(self) -> None:
        """End the run early."""
        await self._inner.aclose()

    async def advance(self, step: Awaitable[Any]) -> Any:
        """Await one step.

        The step may hold an exception that was thrown in: whoever awaits it must let go of it too.
        """
        try:
            return await step
        finally:
            del step

    def restart(self) -> None:
        """Begin anew: only before the consumer has seen an item."""
        self._inner = self._fn(*self._args, **self._kwargs)


def drive_async_generator(
    fn: Callable[..., Any], open_stream: Callable[[Callable[..., Any], Any, Any], PlainStream]
) -> Callable[..., Any]:
    """Return *fn* with each of its runs driven through `open_stream(fn, args, kwargs)`.

    There is no `yield from` for async generators: this is the one place that hands items, sent values,
    thrown exceptions and the close through.
    """

    @functools.wraps(fn)
    async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        stream = open_stream(fn, args, kwargs)
        try:
            item = await stream.first()
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    await stream.close()
                    raise
                except BaseException as exc:  # noqa: BLE001 - handed on, like all that is thrown in
                    item = await stream.throw(exc)
                else:
                    item = await stream.send(sent)
        except StopAsyncIteration:
            return

    return guarded
