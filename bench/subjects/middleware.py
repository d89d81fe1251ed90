"""Rate limits at the door of a web app: one request that is let in, and one that is refused.

A family per kind of app, since a limit is as dear as what it needs below itself: the plainest ASGI and WSGI
apps there can be, a route of Starlette's, a route of FastAPI's. `bare app` is the same without a limit.
Each limit that lets requests in has a row that refuses them, so that none is timed which limits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bench import resources
from bench.subjects.deciders import PLENTY, SPENT, Limit, Setting, make_resilient, throttled_quota
from bench.subjects.model import ARGUMENT, Outcome, Row, Subject, Work, family
from bench.subjects.requests import (
    AsgiApp,
    driven,
    fastapi,
    plain_asgi,
    plain_wsgi,
    served,
    starlette,
    starlette_route,
)

CALLED = Setting()
AWAITED = Setting(awaited=True)

LimitedRow = tuple[str, str, Callable[[Limit, Work], Any]]
"""A row with a limit to set: name, package, builder."""

# -- the plainest apps -----------------------------------------------------------------------------------


def bare(work: Work) -> Work:
    """Drive the plain ASGI app without a limit."""
    return driven(plain_asgi(work))


def resilient(limit: Limit, work: Work) -> Work:
    """Drive the plain ASGI app behind our middleware: a limit per client, headers of the IETF's draft."""
    return driven(_behind_ours(limit, plain_asgi(work)))


def resilient_idle(work: Work) -> Work:
    """Drive the plain ASGI app behind our middleware with nothing switched on."""
    from resilient.asgi import ResilienceMiddleware

    return driven(ResilienceMiddleware(plain_asgi(work)))


def _behind_ours(limit: Limit, app: AsgiApp) -> AsgiApp:
    from resilient.asgi import ResilienceMiddleware

    return ResilienceMiddleware(app, rate_limit=make_resilient(AWAITED, limit))


def wsgi_bare(work: Work) -> Work:
    """Call the plain WSGI app without a limit."""
    return served(plain_wsgi(work))


def wsgi_resilient(limit: Limit, work: Work) -> Work:
    """Call the plain WSGI app behind our middleware."""
    from resilient.wsgi import ResilienceMiddleware

    return served(ResilienceMiddleware(plain_wsgi(work), rate_limit=make_resilient(CALLED, limit)))


# -- Starlette -------------------------------------------------------------------------------------------


def starlette_bare(work: Work) -> Work:
    """Drive a route of Starlette's without a limit."""
    return driven(starlette(starlette_route(work)))


def starlette_resilient(limit: Limit, work: Work) -> Work:
    """Drive a route of Starlette's behind our middleware."""
    return driven(_behind_ours(limit, starlette(starlette_route(work))))


def slowapi_asgi(limit: Limit, work: Work) -> Work:
    """Drive a route of Starlette's behind slowapi's middleware."""
    from slowapi.middleware import SlowAPIASGIMiddleware

    return _behind_slowapi(limit, work, SlowAPIASGIMiddleware)


def slowapi_base(limit: Limit, work: Work) -> Work:
    """Drive a route of Starlette's behind slowapi's older middleware, on Starlette's `BaseHTTPMiddleware`."""
    from slowapi.middleware import SlowAPIMiddleware

    return _behind_slowapi(limit, work, SlowAPIMiddleware)


def _behind_slowapi(limit: Limit, work: Work, middleware: Any) -> Work:
    app = _with_slowapi(_slowapi(default_limits=[str(limit)]), starlette_route(work))
    app.add_middleware(middleware)
    return driven(app)


def slowapi_decorator(limit: Limit, work: Work) -> Work:
    """Drive a route of Starlette's that is decorated with slowapi."""
    limiter = _slowapi()
    return driven(_with_slowapi(limiter, limiter.limit(str(limit))(starlette_route(work))))


def _slowapi(**settings: Any) -> Any:
    from slowapi import Limiter
    from slowapi.util import get_remote_address

    return Limiter(get_remote_address, headers_enabled=True, **settings)


def _with_slowapi(limiter: Any, route: Any) -> Any:
    from slowapi import _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded

    app = starlette(route)
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    return app


# -- FastAPI ---------------------------------------------------------------------------------------------


def fastapi_bare(work: Work) -> Work:
    """Drive a route of FastAPI's that depends on nothing."""
    return driven(fastapi(work))


def fastapi_dependency(work: Work) -> Work:
    """Drive a route of FastAPI's with the least a dependency can be."""

    async def nothing() -> None:
        pass

    return driven(fastapi(work, nothing))


def fastapi_resilient(limit: Limit, work: Work) -> Work:
    """Drive a route of FastAPI's that depends on our limit, kept in memory."""
    return _depends_on_ours(work, make_resilient(AWAITED, limit))


def fastapi_resilient_shared(limit: Limit, work: Work) -> Work:
    """Drive a route of FastAPI's that depends on our limit, kept on the run's server."""
    return _depends_on_ours(work, make_resilient(Setting(shared=True, awaited=True), limit))


def _depends_on_ours(work: Work, limiter: Any) -> Work:
    from resilient.integrations.fastapi import rate_limit

    return driven(fastapi(work, rate_limit(limiter)))


async def fastapi_redis(limit: Limit, work: Work) -> Work:
    """Drive a route of FastAPI's that depends on fastapi-redis-sdk, which always needs a server."""
    from redis_fastapi import FastAPIRedis, get_settings, rate_limit

    get_settings().url = resources.valkey_url()
    app = fastapi(work, rate_limit((limit.amount, limit.seconds)))
    FastAPIRedis(app).lifespan().rate_limiting()
    await resources.keep_open(app.router.lifespan_context(app))
    return driven(app)


def fastapi_throttled(limit: Limit, work: Work) -> Work:
    """Drive a route of FastAPI's that is decorated with throttled-py, headers added by its middleware."""
    from fastapi import FastAPI, Request
    from fastapi.responses import PlainTextResponse
    from throttled.asyncio.contrib import fastapi as lib

    async def hello(request: Any) -> PlainTextResponse:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    # FastAPI could not look up the name of a type that is imported here.
    hello.__annotations__.update({"request": Request, "return": PlainTextResponse})
    limiter = lib.Limiter(throttled_quota(limit), key_func=lib.get_remote_address)
    app = FastAPI(openapi_url=None)
    app.add_middleware(lib.RateLimitMiddleware)
    app.add_exception_handler(lib.RateLimitExceededError, lib.rate_limit_exceeded_handler)
    app.get("/")(limiter.limit()(hello))
    return driven(app)


# -- tables ----------------------------------------------------------------------------------------------


def _doors(
    title: str, *limited: LimitedRow, without: tuple[Row, ...], awaited: bool = True
) -> tuple[Subject, ...]:
    """Return the family of those who let a request in, and that of those who refuse it."""

    def rows(limit: Limit) -> list[Row]:
        return [(name, package, partial(build, limit)) for name, package, build in limited]

    return (
        *family(title, *without, *rows(PLENTY), awaited=awaited, outcome=Outcome.ANSWERS),
        *family(f"{title}, denied", *rows(SPENT), awaited=awaited, outcome=Outcome.REFUSES),
    )


SUBJECTS = (
    *_doors(
        "asgi middleware",
        ("resilient", "resilient-py", resilient),
        without=(
            ("bare app", None, bare),
            ("resilient (nothing switched on)", "resilient-py", resilient_idle),
        ),
    ),
    *_doors(
        "wsgi middleware",
        ("resilient", "resilient-py", wsgi_resilient),
        without=(("bare app", None, wsgi_bare),),
        awaited=False,
    ),
    *_doors(
        "starlette middleware",
        ("resilient", "resilient-py", starlette_resilient),
        ("slowapi (ASGI)", "slowapi", slowapi_asgi),
        ("slowapi (BaseHTTPMiddleware)", "slowapi", slowapi_base),
        ("slowapi (decorator)", "slowapi", slowapi_decorator),
        without=(("bare app", "starlette", starlette_bare),),
    ),
    *_doors(
        "fastapi dependency",
        ("resilient", "resilient-py", fastapi_resilient),
        ("resilient (redis)", "resilient-py", fastapi_resilient_shared),
        ("throttled-py (decorator and middleware)", "throttled-py", fastapi_throttled),
        ("fastapi-redis-sdk (redis)", "fastapi-redis-sdk", fastapi_redis),
        without=(
            ("bare app", "fastapi", fastapi_bare),
            ("a dependency that does nothing", "fastapi", fastapi_dependency),
        ),
    ),
)
