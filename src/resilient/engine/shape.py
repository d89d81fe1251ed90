"""What kind of callable a policy was put on: the four shapes, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

__all__ = ["Shape", "describe", "shape_of", "without_partials"]


class Shape(Enum):
    """How a callable gives its answer."""

    FUNCTION = "function"
    COROUTINE = "coroutine function"
    GENERATOR = "generator function"
    ASYNC_GENERATOR = "async generator function"

    @property
    def is_async(self) -> bool:
        """Whether the answer has to be awaited."""
        return self in {Shape.COROUTINE, Shape.ASYNC_GENERATOR}


def shape_of(fn: Callable[..., Any]) -> Shape:
    """Return the shape of *fn*, looking through partials, methods and objects with `__call__`.

    Raises:
        TypeError: *fn* is a class, a descriptor or no callable at all; the message says what to do.
    """
    if isinstance(fn, type):
        msg = f"cannot guard the class {describe(fn)}: guard its methods, or a function that makes instances"
        raise TypeError(msg)
    if not callable(fn):
        raise TypeError(f"cannot guard {fn!r}: it is not callable; put the policy on the function inside it")
    for candidate in _faces(fn):
        if _is_coroutine_function(candidate):
            return Shape.COROUTINE
        if inspect.isasyncgenfunction(candidate):
            return Shape.ASYNC_GENERATOR
        if inspect.isgeneratorfunction(candidate):
            return Shape.GENERATOR
    return Shape.FUNCTION


def describe(fn: Callable[..., Any]) -> str:
    """Return a short name for *fn*: its qualified name, or that of its type."""
    fn = without_partials(fn)
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _faces(fn: Callable[..., Any]) -> tuple[Any, ...]:
    """Return where the shape may show: on the callable itself, and on its type's `__call__`."""
    plain = without_partials(fn)
    # Not `callable`: what is wanted is the method itself, to see of which kind it is.
    return plain, without_partials(getattr(type(plain), "__call__", None))  # noqa: B004


def without_partials(fn: Any) -> Any:
    """Return what *fn* calls in the end, if it is a `partial`; else *fn* itself."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _is_coroutine_function(fn: Any) -> bool:
    if inspect.iscoroutinefunction(fn):
        return True
    # Before 3.12 the mark that mocks and wrappers set is known to asyncio only; from 3.14 on, asking
    # asyncio is deprecated.
    return sys.version_info < (3, 12) and asyncio.iscoroutinefunction(fn)  # pyright: ignore[reportDeprecated]
