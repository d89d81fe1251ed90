"""A site of Django's for the tests: its settings, and views that do as they are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.asyncio import async_unsafe
from django.utils.decorators import sync_and_async_middleware
from django.utils.functional import SimpleLazyObject

from resilient import RateLimiter, current_priority, time_left
from resilient.asgi import combined, route, user
from resilient.integrations.django import request_key

OURS = "resilient.integrations.django.ResilienceMiddleware"

if not settings.configured:
    settings.configure(
        SECRET_KEY="for the tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[OURS],
        LOGGING_CONFIG=None,
    )
    django.setup()


class Orders:
    """What a test tells the views, and what they tell it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seen: list[Any] = []
        self.let_go = threading.Event()


orders = Orders()


def hello(request: HttpRequest) -> HttpResponse:
    if orders.error is not None:
        raise orders.error
    orders.seen.append(time_left())
    return HttpResponse("hello")


async def ahello(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return hello(request)


async def hang(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(30)
    return HttpResponse("never")


def wait(request: HttpRequest) -> HttpResponse:
    orders.let_go.wait(5)
    orders.seen.append("worked on")
    return HttpResponse("too late")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        orders.seen.append(time_left())
        yield b"first"
        orders.let_go.wait(5)
        if orders.error is not None:
            raise orders.error
        yield b"last"
        for _ in range(int(request.GET.get("more", 0))):
            yield b"." * 100_000

    return StreamingHttpResponse(chunks())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[bytes]:
        orders.seen.append(time_left())
        yield b"first"
        await asyncio.to_thread(orders.let_go.wait, 5)
        if orders.error is not None:
            raise orders.error
        yield b"last"

    return StreamingHttpResponse(chunks())


def importance(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        orders.seen.append(current_priority())
        yield b"x"

    orders.seen.append(current_priority())
    return StreamingHttpResponse(chunks())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(Path(__file__).open("rb"))


limiter = RateLimiter("1/hour", name="view", key=request_key(combined(route(), user(otherwise=None))))


@limiter
def item(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(number))


class Items:
    """A view whose request is not its first argument."""

    @limiter
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("items")


urlpatterns = [
    path("", hello),
    path("livez", hello),
    path("async", ahello),
    path("hang", hang),
    path("wait", wait),
    path("stream", stream),
    path("astream", astream),
    path("importance", importance),
    path("file", file),
    path("items/<int:number>", item),
    path("items", Items().get),
]


@sync_and_async_middleware
def knowing_users(get_response: Any) -> Any:
    """Set `request.user` as `AuthenticationMiddleware` does: looked up when asked for, and not in a loop."""

    @async_unsafe
    def look_up(name: str | None) -> Any:
        orders.seen.append(name)
        return SimpleNamespace(is_authenticated=name is not None, pk=name)

    def with_user(request: HttpRequest) -> HttpRequest:
        request.user = SimpleLazyObject(lambda: look_up(request.headers.get("who")))
        return request

    async def in_task(request: HttpRequest) -> Any:
        return await get_response(with_user(request))

    def in_thread(request: HttpRequest) -> Any:
        return get_response(with_user(request))

    return in_task if asyncio.iscoroutinefunction(get_response) else in_thread


def replacing(get_response: Any) -> Any:
    """Answer something else than the response, which is dropped and not closed."""

    def replaced(request: HttpRequest) -> HttpResponse:
        get_response(request)
        return HttpResponse("replaced")

    return replaced
