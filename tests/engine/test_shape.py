"""What kind a callable is, and how it is named."""

from __future__ import annotations

import functools
import operator
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from tests.support.naming import named

from resilient.engine.shape import Shape, describe, shape_of


class Worker:
    """One of everything."""

    def plain(self) -> None: ...
    async def coroutine(self) -> None: ...

    def generator(self) -> Iterator[None]:
        yield

    async def agenerator(self) -> AsyncIterator[None]:
        yield


class Caller:
    """An object that is called."""

    def __call__(self) -> None: ...


class AsyncCaller:
    """An object that is called and awaited."""

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (len, Shape.FUNCTION),
        ("".join, Shape.FUNCTION),
        (operator.itemgetter(0), Shape.FUNCTION),
        (lambda: None, Shape.FUNCTION),
        (Mock(), Shape.FUNCTION),
        (Worker().plain, Shape.FUNCTION),
        (Caller(), Shape.FUNCTION),
        (functools.lru_cache(Worker.plain), Shape.FUNCTION),
        (Worker().coroutine, Shape.COROUTINE),
        (AsyncMock(), Shape.COROUTINE),
        (AsyncCaller(), Shape.COROUTINE),
        (AsyncCaller().__call__, Shape.COROUTINE),
        (functools.partial(AsyncCaller()), Shape.COROUTINE),
        (functools.partial(functools.partial(Worker().coroutine)), Shape.COROUTINE),
        (Worker().generator, Shape.GENERATOR),
        (functools.partial(Worker().generator), Shape.GENERATOR),
        (Worker().agenerator, Shape.ASYNC_GENERATOR),
        (functools.partial(Worker().agenerator), Shape.ASYNC_GENERATOR),
    ],
    ids=named,
)
def test_shape_of_callables(fn: Any, shape: Shape) -> None:
    """The answer is the one that decides between `f()` and `await f()`."""
    assert shape_of(fn) is shape


def test_asynchronous_shapes() -> None:
    """Two of the four have to be awaited."""
    assert {shape for shape in Shape if shape.is_async} == {Shape.COROUTINE, Shape.ASYNC_GENERATOR}


def test_names_for_messages() -> None:
    """The qualified name where there is one, else that of the type."""
    assert describe(Worker().plain) == "Worker.plain"
    assert describe(functools.partial(functools.partial(Worker.plain))) == "Worker.plain"
    assert describe(Caller()) == "Caller"
