"""Every form a callable can have, built around one body, and one way to run them all to their end."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock

import pytest

Body = Callable[..., Any]
Decorator = Callable[[Any], Any]

PLAIN, COROUTINE, GENERATOR, ASYNC_GENERATOR = "plain", "coroutine", "generator", "async generator"


@dataclass(frozen=True)
class Form:
    """One way to write a callable: `guard(policy, body)` returns it under a policy."""

    name: str
    kind: str
    guard: Callable[[Decorator, Body], Callable[..., Any]]
    decorated: str | None = "work"
    """The `__name__` of what is decorated; None where it has none."""


# One body of each kind. A stream yields "item" first, so that there is something before the end.


def plain(body: Body) -> Callable[..., Any]:
    def work(value: object, *, times: int = 1) -> Any:
        """Do the work."""
        return body(value)

    return work


def coroutine(body: Body) -> Callable[..., Any]:
    async def work(value: object, *, times: int = 1) -> Any:
        """Do the work."""
        await asyncio.sleep(0)
        return body(value)

    return work


def generator(body: Body) -> Callable[..., Any]:
    def work(value: object, *, times: int = 1) -> Any:
        """Do the work."""
        yield "item"
        return body(value)

    return work


def async_generator(body: Body) -> Callable[..., Any]:
    async def work(value: object, *, times: int = 1) -> Any:
        """Do the work."""
        yield "item"
        await asyncio.sleep(0)
        yield body(value)

    return work


def _function(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: policy(make(body))


def _method_of(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    def guard(policy: Decorator, body: Body) -> Any:
        return type("Owner", (), {"work": policy(_with_self(make(body)))})().work

    return guard


def _with_self(work: Any) -> Any:
    """Return *work* as a function that takes an instance, or a class, first; of the same kind."""
    if inspect.iscoroutinefunction(work):

        async def method(self: object, value: object, *, times: int = 1) -> Any:
            """Do the work."""
            return await work(value, times=times)

    elif inspect.isasyncgenfunction(work):

        async def method(self: object, value: object, *, times: int = 1) -> Any:
            """Do the work."""
            async for item in work(value, times=times):
                yield item

    elif inspect.isgeneratorfunction(work):

        def method(self: object, value: object, *, times: int = 1) -> Any:
            """Do the work."""
            return (yield from work(value, times=times))

    else:

        def method(self: object, value: object, *, times: int = 1) -> Any:
            """Do the work."""
            return work(value, times=times)

    method.__name__ = "work"
    return method


def _class_method(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: type("Owner", (), {"work": policy(classmethod(_with_self(make(body))))}).work


def _static_method(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: type("Owner", (), {"work": policy(staticmethod(make(body)))}).work


def _partial(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: policy(functools.partial(functools.partial(make(body), times=1)))


def _callable_object(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: policy(type("Worker", (), {"__call__": _with_self(make(body))})())


def _bound(make: Callable[[Body], Any]) -> Callable[[Decorator, Body], Any]:
    return lambda policy, body: policy(type("Owner", (), {"work": _with_self(make(body))})().work)


def _async_mock(policy: Decorator, body: Body) -> Any:
    def work(value: object, *, times: int = 1) -> Any:
        return body(value)

    return policy(AsyncMock(side_effect=work))


def _marked(policy: Decorator, body: Body) -> Any:
    inner = coroutine(body)

    def work(value: object, *, times: int = 1) -> Any:
        """Do the work."""
        return inner(value, times=times)

    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(work)
    else:
        work._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return policy(work)


_KINDS = ((PLAIN, plain), (COROUTINE, coroutine), (GENERATOR, generator), (ASYNC_GENERATOR, async_generator))

FORMS: tuple[Form, ...] = (
    *(Form(f"{kind} function", kind, _function(make)) for kind, make in _KINDS),
    *(Form(f"{kind} method", kind, _method_of(make)) for kind, make in _KINDS),
    *(Form(f"bound {kind} method", kind, _bound(make)) for kind, make in _KINDS),
    *(Form(f"{kind} classmethod", kind, _class_method(make)) for kind, make in _KINDS),
    *(Form(f"{kind} staticmethod", kind, _static_method(make)) for kind, make in _KINDS),
    *(Form(f"partial of a {kind}", kind, _partial(make), decorated=None) for kind, make in _KINDS),
    *(
        Form(f"object with a {kind} __call__", kind, _callable_object(make), decorated=None)
        for kind, make in _KINDS
    ),
    Form("AsyncMock", COROUTINE, _async_mock, decorated=None),
    Form("marked as a coroutine function", COROUTINE, _marked),
)

STREAMS = {GENERATOR, ASYNC_GENERATOR}


def each_form(*kinds: str) -> pytest.MarkDecorator:
    """Parametrise a test with `form`, for all forms or those of *kinds*."""
    forms = [form for form in FORMS if not kinds or form.kind in kinds]
    return pytest.mark.parametrize("form", forms, ids=lambda form: form.name.replace(" ", "-"))


class Driver:
    """Runs calls of every kind to their end, on an event loop of its own where they need one."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __call__(self, form: Form, guarded: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a call: of a stream, what came after its first item."""
        if form.kind == COROUTINE:
            return self.wait_for(guarded(*args))
        if form.kind == GENERATOR:
            return _exhaust(guarded(*args))
        if form.kind == ASYNC_GENERATOR:
            return self.wait_for(_aexhaust(guarded(*args)))
        return guarded(*args)

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """Return what *awaitable* results in, or raise what it raises; an interrupt does not end the loop."""

        async def wait() -> Any:
            try:
                return await awaitable, None
            except BaseException as exc:
                return None, exc

        result, error = self._runner.run(wait())
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Close the loop."""
        self._runner.close()


def _exhaust(stream: Any) -> Any:
    def collect() -> Any:
        items.append((yield from stream))

    items: list[Any] = []
    assert list(collect()) == ["item"]
    return items[0]


async def _aexhaust(stream: Any) -> Any:
    items = [item async for item in stream]
    assert items[0] == "item"
    return items[1]
