"""FastAPI: rate limits as dependencies, refusals as problem documents, and health as a router.

Annotations are not postponed in this module: FastAPI reads those of `rate_limit.__call__`, and looks names up
for functions only.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Unpack

from ..engine import params
from ..health.serving.asgi import places_of
from ..health.serving.handler import Endpoints, EndpointWords, Reporter
from ..policies.rate_limiter.decision import Decision, refusal
from ..policies.rate_limiter.limiter import RateLimiter
from ..web.asgi import ResilienceMiddleware, close_code, deniable
from ..web.door import Words, key_of
from ..web.headers import Dialect, Fields, RateFields
from ..web.keys import Key
from ..web.notes import answer_inside, fresh_notes, notes_of
from ..web.problem import REFUSALS, Answer, problem
from ..web.request import AsgiRequest
from . import needing

with needing("FastAPI", extra="fastapi"):
    from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketException
    from fastapi.requests import HTTPConnection
    from fastapi.websockets import WebSocketState
    from starlette.routing import Route
    from starlette.types import ASGIApp

__all__ = ["RESPONSES", "health_routes", "install", "rate_limit"]

_DIALECTS: Final[tuple[Dialect, ...]] = ("ietf", "legacy", "both", None)


class rate_limit:  # noqa: N801 - reads as a function: Depends(rate_limit("100/minute"))
    """Make a dependency that limits how often requests are let in: `Depends(rate_limit("100/minute"))`.

    It decides at once and never waits. The answer, whichever it is, tells of the limit in header fields;
    where a route returns a `Response` of its own making, `install` is needed for that. A refusal is an
    `HTTPException` with status 429, whose cause is the `RateLimitedError`. A WebSocket is refused before it
    is accepted.

    All routes that depend on the same object share its limit, and a request counts once. The value of the
    dependency is the `Decision`, for `RateLimiter.arefund` and `asettle`, or None where there is no limit.

    Args:
        rate: a rate such as "100/minute", or a `RateLimiter`; its own `key` and `max_wait` do not count here.
        key: makes the key a request is limited by; None from it lifts the limit. None: the client's address.
        cost: permits a request takes; at least 1.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of requests and loops at once.
    """

    def __init__(self, rate: RateLimiter | str, *, key: Key | None = None, cost: int = 1) -> None:
        if not isinstance(rate, RateLimiter | str):
            params.refuse(TypeError, "rate", "must be a RateLimiter or a rate such as '100/minute'", rate)
        self._limiter = RateLimiter(rate) if isinstance(rate, str) else rate
        self._key = key_of(key)
        self._cost = params.count("cost", cost)
        self._fields = {dialect: RateFields(self._limiter.quotas, dialect) for dialect in _DIALECTS}

    @property
    def limiter(self) -> RateLimiter:
        """The limiter that decides."""
        return self._limiter

    async def __call__(self, connection: HTTPConnection, response: Response) -> Decision | None:
        """Let a request in, or refuse it; FastAPI calls this.

        Args:
            connection: the request or the WebSocket.
            response: what FastAPI takes header fields from.

        Returns:
            The decision; None where the request has no limit.

        Raises:
            HTTPException: the limit is used up.
            WebSocketException: so it is, and the server can give a WebSocket no response.
        """
        notes = notes_of(connection.scope) or fresh_notes()
        key = self._key(_Request(connection.scope, notes.proxies))
        if key is None:
            return None
        decision = await self._limiter.ahit(key, self._cost)
        notes.tell(decision, self._fields[notes.dialect].of(decision))
        own = [] if notes.is_told else notes.fields  # else a middleware around the app tells them
        if not decision.allowed:
            error = refusal(self._limiter.name, decision)
            notes.refuse(error)
            raise _http_error(error, own, connection) from error
        for name, value in own:
            response.headers.append(name, value)
        return decision

    def __repr__(self) -> str:
        return f"<rate_limit {self._limiter!r}>"


class _Request(AsgiRequest):
    __slots__ = ()

    @property
    def route(self) -> str:
        """The template of the route, with the prefixes of the routers that it is included in."""
        # Newer versions of FastAPI keep the prefixes here, and no longer in `scope["route"]`.
        context = self.raw.get("fastapi", {}).get("effective_route_context")
        return getattr(context, "path", None) or super().route


class _Denied(HTTPException):
    """A refusal in FastAPI's words, which it answers where `install` has not been called."""

    def __init__(self, error: Exception, answer: Answer) -> None:
        # The body is FastAPI's, so what tells of ours does not fit.
        fields = {name: value for name, value in answer.fields if not name.startswith("Content-")}
        super().__init__(answer.status, "There were too many requests.", fields)
        self.refusal = error


def _http_error(error: Exception, fields: Fields, connection: HTTPConnection) -> Exception:
    answer = problem(error, fields)
    if isinstance(connection, WebSocket) and not _can_be_answered(connection):
        return WebSocketException(close_code(answer.status))
    return _Denied(error, answer)


def _can_be_answered(websocket: WebSocket) -> bool:
    return websocket.application_state is WebSocketState.CONNECTING and deniable(websocket.scope)


def install(app: FastAPI, **words: Unpack[Words]) -> None:
    """Guard an app by the middleware, and answer refusals inside it as problem documents.

    Whatever raises a `RejectedError` or a `CallTimeoutError` in routes and dependencies, such as an open
    circuit, is answered with 429, 503 or 504 and, where it is known, a `Retry-After`. A WebSocket that is
    accepted is closed, with code 1008 or 1013.

    Call it before the app adds middlewares that are to see the refusals, such as the one for CORS: what is
    added later stands further outside. An app mounted in this one answers its own errors, so it needs an
    `install` of its own.

    A `deadline` cuts off routes that are coroutine functions. Any other works on in its thread when its
    request has been answered with 504, and *shed* does not see it.

    Args:
        app: the app, before its first request.
        **words: the arguments of `resilient.asgi.ResilienceMiddleware`.

    Raises:
        TypeError: an argument has the wrong type, or an unknown name.
        ValueError: an argument is out of range.
        RuntimeError: the app is guarded already, or serves requests.
    """
    if _Denied in app.exception_handlers:  # by `install`: nobody else knows the class
        raise RuntimeError(f"{app!r} is guarded already: install was called before")
    # Made now, so that a bad word fails here and not at the start.
    app.add_middleware(_placed(ResilienceMiddleware(app, **words)))
    for error in REFUSALS:
        app.add_exception_handler(error, _answer)
    app.add_exception_handler(_Denied, _answer)


def health_routes(health: Reporter, **words: Unpack[EndpointWords]) -> APIRouter:
    """Make a router by which the health of a service is asked for; `app.include_router` takes it.

    Its paths are not in the generated documentation. A middleware that refuses requests stands before it;
    with `install(app, health=health)` health is answered first.

    Args:
        health: the `Health` that is reported.
        **words: the arguments of `resilient.health.Endpoints`, without *drain_delay*: a route does not see
            the server start, as the middleware and `health.asgi()` do.

    Returns:
        The router.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    endpoints = Endpoints(health, **words)
    return APIRouter(routes=[Route(path, app, include_in_schema=False) for path, app in places_of(endpoints)])


def _placed(guard: ResilienceMiddleware) -> Callable[[ASGIApp], ResilienceMiddleware]:
    # The argument has the name by which older versions of Starlette pass it.
    def around(app: ASGIApp) -> ResilienceMiddleware:
        guard.app = app
        return guard

    return around


# `Any` is a Response or None: Starlette's types know handlers of the one or of the other.
async def _answer(connection: Request | WebSocket, error: Exception) -> Any:
    answer = answer_inside(error.refusal if isinstance(error, _Denied) else error, connection.scope)
    if isinstance(connection, WebSocket) and not _can_be_answered(connection):
        await connection.close(close_code(answer.status))
        return None
    return Response(answer.body, answer.status, dict(answer.fields))


def _documented(status: HTTPStatus) -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "integer"}
    names = {"type": "array", "items": text}
    members = {"type": text, "title": text, "status": number, "detail": text, "violated-policies": names}
    return {
        "description": status.phrase,
        "headers": {"Retry-After": {"description": "Seconds to stay away.", "schema": number}},
        "content": {"application/problem+json": {"schema": {"type": "object", "properties": members}}},
    }


RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    int(status): _documented(status)
    for status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
}
"""What `install` answers, for the generated documentation: `FastAPI(responses=RESPONSES)`, or of a route."""
