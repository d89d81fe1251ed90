"""Functions that are given a connection for each call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from types import CodeType
from typing import Any

from ..engine.shape import Shape, describe, shape_of, without_partials
from .borrowed import held_by
from .members import Member

__all__ = ["lending"]


def lending(pool: Any, fn: Callable[..., Any], shapes: Sequence[Shape]) -> Callable[..., Any]:
    """Return *fn*, which has one of *shapes*, without the parameter for a connection of *pool*'s.

    Raises:
        TypeError: it is of another shape.
    """
    shape = shape_of(fn)
    if shape not in shapes:
        wanted = " or ".join(one.value for one in shapes)
        raise TypeError(f"{pool.kind} {pool.name!r} needs a {wanted}, and {describe(fn)} is a {shape.value}")
    place, signature = _signature(fn)
    target = without_partials(inspect.unwrap(fn))
    code = getattr(target, "__code__", None) or getattr(type(target).__call__, "__code__", None)
    wrapper = functools.wraps(fn)(_WRAPPERS[shape](pool, _Given(fn, place, code)))
    if signature is not None:
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return wrapper


def _signature(fn: Callable[..., Any]) -> tuple[int, inspect.Signature | None]:
    """Return which argument the connection is, and the signature without it."""
    with suppress(ValueError, TypeError):  # a callable that does not tell its parameters
        signature = inspect.signature(fn)
        parameters = [*signature.parameters.values()]
        place = 1 if parameters and parameters[0].name in {"self", "cls"} else 0
        if place < len(parameters) and parameters[place].kind in _POSITIONAL:
            del parameters[place]
        return place, signature.replace(parameters=parameters)
    return 0, None


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Given:
    """A function that is to be given a connection."""

    __slots__ = ("_code", "_fn", "_place")

    def __init__(self, fn: Callable[..., Any], place: int, code: CodeType | None) -> None:
        self._fn = fn
        self._place = place
        self._code = code

    def __call__(self, conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it."""
        if self._code is not None:
            # It is who borrows, in the place of our own frame.
            member = held_by(conn)[0].member
            if isinstance(member, Member):  # or it was taken away just now
                member.site = (self._code, 0, *member.site[2:])
        return self._fn(*args[: self._place], conn, *args[self._place :], **kwargs)


def _function(pool: Any, given: _Given) -> Callable[..., Any]:
    def lent(*args: Any, **kwargs: Any) -> Any:
        with pool.connection() as conn:
            return given(conn, args, kwargs)

    return lent


def _coroutine(pool: Any, given: _Given) -> Callable[..., Any]:
    async def lent(*args: Any, **kwargs: Any) -> Any:
        async with pool.connection() as conn:
            return await given(conn, args, kwargs)

    return lent


def _generator(pool: Any, given: _Given) -> Callable[..., Any]:
    def lent(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with pool.connection() as conn:
            return (yield from given(conn, args, kwargs))

    return lent


def _async_generator(pool: Any, given: _Given) -> Callable[..., Any]:
    async def lent(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with pool.connection() as conn:
            stream = given(conn, args, kwargs)
            try:
                async for item in stream:
                    yield item
            finally:
                await stream.aclose()

    return lent


_WRAPPERS = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}
