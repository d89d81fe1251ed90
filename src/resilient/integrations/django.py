"""Django: the middleware as one of Django's, synchronous and asynchronous, and health as urls."""

# Django has no types.
# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any, ClassVar, Final, TypeVar, Unpack

from ..engine import params
from ..health.serving.asked import Answer as HealthAnswer
from ..health.serving.asked import Asked
from ..health.serving.handler import (
    Endpoints,
    EndpointWords,
    Place,
    Reporter,
    place_below,
    without_drain_delay,
)
from ..web import asgi, wsgi
from ..web.addresses import TrustedProxies
from ..web.door import Door, Visit, asked_of, outcome, words_of
from ..web.keys import Key, key_function
from ..web.notes import answer_inside, believed
from ..web.problem import REFUSALS, Answer
from ..web.request import AsgiRequest, Request, WsgiRequest
from ..web.surroundings import Surroundings, restore, surroundings, swap
from . import needing

with needing("Django", extra="django"):
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase
    from django.urls import path

__all__ = ["ResilienceMiddleware", "health_urls", "request_key"]

V = TypeVar("V", bound=Callable[..., Any])

_SETTING: Final = "RESILIENT"


class ResilienceMiddleware:
    """Guard Django's views: rate limits, load shedding, deadlines, maintenance, and answers to refusals.

    Name it in `MIDDLEWARE`, first, or after `AuthenticationMiddleware` where keys are users. Its arguments
    are those of `resilient.asgi.ResilienceMiddleware`, and stand in the setting `RESILIENT`:

        RESILIENT = {"rate_limit": "100/minute", "deadline": 10.0}

    Whatever raises a `RejectedError` or a `CallTimeoutError` in a view, such as an open circuit or a
    `RateLimiter` as its decorator, is answered with 429, 503 or 504 and, where it is known, a `Retry-After`.

    The place that *shed* gave and the deadline are given back when Django has made the response; if it
    streams, when the body ends or is closed. Only asynchronous views are cut off at the deadline: a thread
    cannot be interrupted, and under ASGI works on when the client has had its 504 and the place is free.

    Args:
        get_response: what Django calls next, a function or a coroutine function.

    Raises:
        ImproperlyConfigured: an argument has the wrong type or an unknown name, or is out of range.

    Concurrency: serves any number of requests and tasks at once; nothing of a request is kept here.
    """

    sync_capable: ClassVar = True
    async_capable: ClassVar = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        # As Django asks: on Python 3.11, `inspect` does not know whom Django has marked.
        self._in_tasks: bool = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated]
        if self._in_tasks:
            markcoroutinefunction(self)
        self._door = _door(in_tasks=self._in_tasks)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request.

        Args:
            request: Django's.

        Returns:
            The response; where Django awaits, what it awaits.
        """
        facts, health = _facts(request, self._door.proxies), self._door.health
        if health is not None and (place := health.find(facts.path)) is not None:
            asked = asked_of(facts)
            if health.claims(place, asked):
                return self._told(health, place, asked)
        if self._door.exempts(facts):
            return self._get_response(request)
        return self._served_in_task(request, facts) if self._in_tasks else self._served(request, facts)

    def _told(self, health: Endpoints, place: Place, asked: Asked) -> HttpResponse | Awaitable[HttpResponse]:
        if self._in_tasks:
            return _told_in_task(health, place, asked)
        return _health_response(health.respond(place, asked))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer a view's refusal; Django calls this.

        Args:
            request: Django's.
            exception: what the view has raised.

        Returns:
            The response; None for any other exception.
        """
        return _response(answer_inside(exception, _raw(request))) if isinstance(exception, REFUSALS) else None

    def _served(self, request: HttpRequest, facts: Request) -> HttpResponseBase:
        visit = Visit(self._door, facts, wsgi.WAITS)
        around = surroundings()
        try:
            try:
                wsgi.at_once(visit.enter())
                response = self._get_response(request)
            except BaseException as error:
                visit.leave(error)
                raise
            return _let_out(response, visit, None)
        except REFUSALS as error:
            return _response(visit.answer(error))
        finally:
            # A body may come later, and until then this thread may serve others.
            restore(around)

    async def _served_in_task(self, request: HttpRequest, facts: Request) -> HttpResponseBase:
        visit = Visit(self._door, facts, asgi.WAITS)
        around = surroundings()
        try:
            try:
                await _enter(visit, request)
                response = await self._get_response(request)
            except BaseException as error:
                visit.leave(error)
                raise
            return _let_out(response, visit, asyncio.get_running_loop())
        except REFUSALS as error:
            return _response(visit.answer(error))
        finally:
            restore(around)


def _door(*, in_tasks: bool) -> Door:
    given = getattr(settings, _SETTING, {})
    try:
        if not isinstance(given, Mapping):
            params.refuse(TypeError, _SETTING, "must be a dictionary", given)
        door = Door(in_tasks=in_tasks, **words_of(_SETTING, given))
        if door.health is not None:
            without_drain_delay(door.health)
        return door
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"{_SETTING}: {error}") from error


async def _enter(visit: Visit, request: HttpRequest) -> None:
    try:
        await visit.enter()
    except SynchronousOnlyOperation:
        # A key or priority function has asked for the user, who comes from the database. Once asked for in a
        # thread, which is how Django calls what is synchronous, the user is at hand.
        visit.leave()
        await sync_to_async(_load_user)(request)
        await visit.enter()


def _load_user(request: HttpRequest) -> None:
    bool(getattr(request, "user", None))


async def _told_in_task(endpoints: Endpoints, place: Place, asked: Asked) -> HttpResponse:
    return _health_response(await endpoints.arespond(place, asked))


def _health_response(answer: HealthAnswer) -> HttpResponse:
    return _response(Answer(*answer))


def _response(answer: Answer) -> HttpResponse:
    response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.fields))
    # Django would log each as an error of the app, and mail those of 500 and above to its administrators.
    response._has_been_logged = True  # noqa: SLF001
    return response


def _let_out(
    response: HttpResponseBase, visit: Visit, loop: asyncio.AbstractEventLoop | None
) -> HttpResponseBase:
    for name, value in visit.notes.fields:
        response.headers[name] = value
    if response.streaming:
        visit.answered(response.status_code)
        _Stay(visit, response.status_code, loop).follow(response)
    else:
        visit.leave(outcome(response.status_code, None, gone=False))
    return response


_END: Any = object()


class _Stay:
    """What a streaming response holds: it goes back when its body ends or is closed, whatever comes first.

    Django closes the responses of tasks in a thread. They leave in their loop all the same.

    It refers to nothing that leads back to the response: a response that is dropped, as by a middleware that
    answers something else, gives its place back at once and not when the garbage is collected.
    """

    def __init__(self, visit: Visit, status: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self._visit = visit
        self._status = status
        self._loop = loop
        self._inside = surroundings()
        self._is_file = False

    def follow(self, response: HttpResponseBase) -> None:
        """Stay until *response* has been sent."""
        # A file is left alone: servers send it by themselves, and only its end can be seen.
        self._is_file = getattr(response, "file_to_stream", None) is not None
        if not self._is_file:
            # What `streaming_content` returns would refer to the response.
            content = response._iterator  # noqa: SLF001
            response.streaming_content = (
                self._achunks(content) if response.is_async else self._chunks(content)
            )
        # As Django itself has requests closed.
        response._resource_closers.append(self._close)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    def _close(self) -> None:
        self._leave_soon(gone=not self._is_file)

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        # A response that is replaced by another one is not closed. When the interpreter exits, this module
        # may be gone already, and nobody waits for a place any more.
        if not _at_exit():
            self._leave_soon(gone=True)

    def _chunks(self, content: Iterable[bytes]) -> Iterator[bytes]:
        chunks = iter(content)
        try:
            while (chunk := self._next(chunks)) is not _END:
                yield chunk
        except BaseException as error:
            self._leave_soon(error)
            raise
        self._leave_soon()

    async def _achunks(self, content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        chunks = aiter(content)
        try:
            while (chunk := await self._anext(chunks)) is not _END:
                yield chunk
        except BaseException as error:
            self._leave(error)
            raise
        self._leave()

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        with _within(self._inside):
            return next(chunks, _END)

    async def _anext(self, chunks: AsyncIterator[bytes]) -> bytes:
        with _within(self._inside):
            return await anext(chunks, _END)

    def _leave_soon(self, error: BaseException | None = None, *, gone: bool = False) -> None:
        leave = functools.partial(self._leave, error, gone=gone)
        if self._loop is None:
            leave()
        elif self._visit.holds:
            try:
                self._loop.call_soon_threadsafe(leave)
            except RuntimeError:  # it is closed: nobody else is left
                leave()

    def _leave(self, error: BaseException | None = None, *, gone: bool = False) -> None:
        self._visit.leave(outcome(self._status, error, gone=gone))


@contextlib.contextmanager
def _within(inside: Surroundings) -> Generator[None]:
    """Let *inside* hold for a part of a body, in whichever context the server asks for that."""
    around = swap(inside)
    try:
        yield
    finally:
        restore(around)


def health_urls(health: Reporter, *, asynchronous: bool = False, **words: Unpack[EndpointWords]) -> list[Any]:
    """Make the urls by which the health of a service is asked for; `urlpatterns` are to hold them.

    The middlewares of the site stand before them. One of those refuses a host that is not in
    `ALLOWED_HOSTS`, which is what Kubernetes' probes send, and one may redirect to HTTPS. With
    `RESILIENT = {"health": health}` and our middleware in the first place, health is answered first.

    Args:
        health: the `Health` that is reported.
        asynchronous: whether the views are coroutine functions, for a site that is served by ASGI.
        **words: the arguments of `resilient.health.Endpoints`, without *drain_delay*.

    Returns:
        The patterns: for each path, without a slash at its end and with one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    params.flag("asynchronous", asynchronous)
    endpoints = without_drain_delay(Endpoints(health, **words))
    view = _aview if asynchronous else _view
    # A slash at the end does no harm: who has mistyped a probe's path would have no service.
    places: list[tuple[str, Place | None]] = [
        (f"{route}{end}", place) for route, place in endpoints.places for end in ("", "/")
    ]
    places += [(f"{beginning}<path:name>", None) for beginning in endpoints.below]
    return [path(route[1:], view(endpoints, place)) for route, place in places]


def _view(endpoints: Endpoints, place: Place | None) -> Callable[..., HttpResponse]:
    def tell(request: HttpRequest, name: str = "") -> HttpResponse:
        facts = _facts(request, believed(_raw(request)))
        return _health_response(endpoints.respond(place or place_below(name), asked_of(facts)))

    return _exempted(tell)


def _aview(endpoints: Endpoints, place: Place | None) -> Callable[..., Awaitable[HttpResponse]]:
    async def tell(request: HttpRequest, name: str = "") -> HttpResponse:
        facts = _facts(request, believed(_raw(request)))
        return await _told_in_task(endpoints, place or place_below(name), asked_of(facts))

    return _exempted(tell)


def _exempted(view: V) -> V:
    # As `csrf_exempt` does, but for the wrapper: a wrong method gets our answer.
    view.csrf_exempt = True  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    return view


def request_key(key: Key) -> Callable[..., str | None]:
    """Make the key of a limiter around a view of Django's request.

    For example: `@RateLimiter("10/minute", key=request_key(user()))`.

    Args:
        key: makes the key; None from it lets the call in uncounted.

    Returns:
        A function for `RateLimiter(key=...)`, of arguments among which there is a request.

    Raises:
        TypeError: *key* is no key function; from the function, there is no request.
    """
    key_function("key", key)

    def of_request(*args: Any, **kwargs: Any) -> str | None:
        # Not by its class: that of Django REST framework stands for Django's.
        request = next((arg for arg in (*args, *kwargs.values()) if hasattr(arg, "META")), None)
        if request is None:
            params.refuse(TypeError, "the arguments of a limited view", "must hold a request", args)
        return key(_facts(request, believed(_raw(request))))

    return of_request


def _raw(request: HttpRequest) -> dict[str, Any]:
    raw: dict[str, Any] = getattr(request, "scope", None) or request.META
    return raw


def _facts(request: HttpRequest, proxies: TrustedProxies) -> Request:
    return (_Asgi if hasattr(request, "scope") else _Wsgi)(request, proxies)


class _Django(Request):
    """What a request of Django's knows beside the scope or environ, as attributes of a `Request`.

    Attributes:
        django: Django's own request.
    """

    __slots__ = ()

    django: HttpRequest

    def __init__(self, request: HttpRequest, proxies: TrustedProxies) -> None:
        self.django = request
        super().__init__(_raw(request), proxies)

    @property
    def user(self) -> object:
        """Who has logged in, if `AuthenticationMiddleware` stands outside."""
        return getattr(self.django, "user", None)

    @property
    def route(self) -> str:
        """The route of the view, once Django has found one."""
        match = self.django.resolver_match
        return self.path if match is None else f"/{match.route}"


class _Asgi(_Django, AsgiRequest):
    __slots__ = ("django",)


class _Wsgi(_Django, WsgiRequest):
    __slots__ = ("django",)
