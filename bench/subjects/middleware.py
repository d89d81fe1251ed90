"""Rate limits at the door of a web app: one request that is let in, driven in-process, no socket.

A family per kind of app, since a limit is as dear as what it needs below itself: the plainest ASGI app there
can be, a route of Starlette's, a route of FastAPI's. `bare app` is the same without a limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bench import resources
from bench.subjects.deciders import PLENTY
from bench.subjects.model import ARGUMENT, OK, Outcome, Work, family

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any]

RATE = str(PLENTY)

HEADERS = (
    (b"host", b"shop.example"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
)

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "client": ("192.0.2.1", 50000),
    "server": ("192.0.2.2", 80),
}


def driven(app: App) -> Work:
    """Return a coroutine function that sends one request into an app and returns the status."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def request(_: int) -> Any:
        status = None

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]

        # A scope of its own, as a server makes it: frameworks write into it.
        await app({**SCOPE, "headers": list(HEADERS), "state": {}}, receive, send)
        return status

    return request


# -- the plainest app ------------------------------------------------------------------------------------


def plain_app(work: Work) -> App:
    """Return the least an ASGI app can be."""

    async def app(_scope: Message, _receive: Any, send: Any) -> None:
        await work(ARGUMENT)
        await send(
            {"type": "http.response.start", "status": OK, "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": b"hello"})

    return app


def bare(work: Work) -> Work:
    """Drive the plain app without a limit."""
    return driven(plain_app(work))


# -- Starlette -------------------------------------------------------------------------------------------


def starlette_app(work: Work) -> Any:
    """Return an app of one route of Starlette's."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    return Starlette(routes=[Route("/", _starlette_route(work))])


def _starlette_route(work: Work) -> Callable[..., Any]:
    from starlette.responses import PlainTextResponse

    async def hello(request: Any) -> Any:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    return hello


def starlette_bare(work: Work) -> Work:
    """Drive a route of Starlette's without a limit."""
    return driven(starlette_app(work))


def slowapi_asgi(work: Work) -> Work:
    """Drive a route of Starlette's behind slowapi's middleware."""
    from slowapi.middleware import SlowAPIASGIMiddleware

    return driven(_behind_slowapi(starlette_app(work), SlowAPIASGIMiddleware))


def slowapi_base(work: Work) -> Work:
    """Drive a route of Starlette's behind slowapi's older middleware, on Starlette's `BaseHTTPMiddleware`."""
    from slowapi.middleware import SlowAPIMiddleware

    return driven(_behind_slowapi(starlette_app(work), SlowAPIMiddleware))


def _behind_slowapi(app: Any, middleware: Any) -> App:
    app.state.limiter = _slowapi(default_limits=[RATE])
    app.add_middleware(middleware)
    limited: App = app
    return limited


def slowapi_decorator(work: Work) -> Work:
    """Drive a route of Starlette's that is decorated with slowapi."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    limiter = _slowapi()
    app = Starlette(routes=[Route("/", limiter.limit(RATE)(_starlette_route(work)))])
    app.state.limiter = limiter
    return driven(app)


def _slowapi(**settings: Any) -> Any:
    from slowapi import Limiter
    from slowapi.util import get_remote_address

    return Limiter(get_remote_address, headers_enabled=True, **settings)


# -- FastAPI ---------------------------------------------------------------------------------------------


def fastapi_app(work: Work, *dependencies: Callable[..., Any]) -> Any:
    """Return an app of one route of FastAPI's that depends on these."""
    from fastapi import Depends, FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI(openapi_url=None)

    @app.get("/", dependencies=[Depends(one) for one in dependencies])
    async def hello() -> PlainTextResponse:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    return app


async def _depended_on_by_nobody() -> None:
    """Do nothing, as the least a dependency can be."""


def fastapi_bare(work: Work) -> Work:
    """Drive a route of FastAPI's that depends on nothing."""
    return driven(fastapi_app(work))


def fastapi_dependency(work: Work) -> Work:
    """Drive a route of FastAPI's with a dependency that does nothing."""
    return driven(fastapi_app(work, _depended_on_by_nobody))


async def fastapi_redis(work: Work) -> Work:
    """Drive a route of FastAPI's that depends on fastapi-redis-sdk, which always needs a server."""
    from redis_fastapi import FastAPIRedis, get_settings, rate_limit

    settings = get_settings()
    settings.url = resources.valkey_url()
    app = fastapi_app(work, rate_limit(RATE))
    FastAPIRedis(app).lifespan().rate_limiting()
    await resources.keep_open(app.router.lifespan_context(app))
    return driven(app)


def _client(request: Any) -> str:
    host: str = request.client.host
    return host


def fastapi_throttled(work: Work) -> Work:
    """Drive a route of FastAPI's that is decorated with throttled-py, headers added by its middleware."""
    from fastapi import FastAPI, Request
    from fastapi.responses import PlainTextResponse
    from throttled.asyncio.contrib.fastapi import Limiter, RateLimitMiddleware

    async def hello(request: Any) -> PlainTextResponse:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    # FastAPI could not look up the name of a type that is imported here.
    hello.__annotations__.update({"request": Request, "return": PlainTextResponse})
    limiter = Limiter(f"{PLENTY.amount}/s", key_func=_client)
    app = FastAPI(openapi_url=None)
    app.add_middleware(RateLimitMiddleware)
    app.get("/")(limiter.limit()(hello))
    return driven(app)


SUBJECTS = (
    *family(
        "asgi middleware",
        ("bare app", None, bare),
        awaited=True,
        outcome=Outcome.ANSWERS,
    ),
    *family(
        "starlette middleware",
        ("bare app", "starlette", starlette_bare),
        ("slowapi (ASGI)", "slowapi", slowapi_asgi),
        ("slowapi (BaseHTTPMiddleware)", "slowapi", slowapi_base),
        ("slowapi (decorator)", "slowapi", slowapi_decorator),
        awaited=True,
        outcome=Outcome.ANSWERS,
    ),
    *family(
        "fastapi dependency",
        ("bare app", "fastapi", fastapi_bare),
        ("a dependency that does nothing", "fastapi", fastapi_dependency),
        ("throttled-py (decorator and middleware)", "throttled-py", fastapi_throttled),
        ("fastapi-redis-sdk (redis)", "fastapi-redis-sdk", fastapi_redis),
        awaited=True,
        outcome=Outcome.ANSWERS,
    ),
)
