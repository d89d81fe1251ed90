"""One service as a process: `python -m examples.shop.service currency --fd 7`.

The parent binds the socket and hands it over, so that the address is known, and connections queue, before the
service is up. Standard output is the service's journal, standard error its log.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from examples.children import allow_many_connections, when_parent_leaves
from examples.shop.calls import Calls
from examples.shop.health import health_of
from examples.shop.journal import RAISED, Journal, Stopwatch, say, tell_limit
from examples.shop.neighbours import Neighbours
from resilient import events
from resilient.errors import ConnectionReclaimedError, RejectedError
from resilient.health import Health

NAMES = ("rates", "catalogue", "currency", "checkout", "frontend")
# What only those incidents have that are about it.
MORE = ("orders", "cart", "recommendation")
PROTECTIONS = ("calls", "door", "shedding", "pool", "failover", "model", "bounded", "static", "payments")
_GRACE = 1
# Longer than httpx keeps idle connections, or a call may meet one that is being closed.
_KEEP_ALIVE = 30


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return a service as an application: its routes, a sign of life, and how errors are told."""
    return Starlette(
        routes=[Route("/healthz", _healthy), Route("/ping", _healthy), *routes],
        exception_handlers={
            httpx.HTTPStatusError: _wrong_answer,
            httpx.TransportError: _no_answer,
            RejectedError: _not_asked,
            ConnectionReclaimedError: _taken_away,
            TimeoutError: _too_late,
        },
    )


def calls_class(name: str, protections: Collection[str]) -> type[Calls]:
    """Return the shop's calls as first written, or with policies on."""
    # Imported only here, as the door below: the bare shop builds no policy at all.
    if name == "frontend" and "static" in protections:
        from examples.shop.static import StaticCalls

        return StaticCalls
    if "calls" in protections:
        from examples.shop.protected import ProtectedCalls

        return ProtectedCalls
    return Calls


def behind_door(app: ASGIApp, name: str, protections: Collection[str]) -> ASGIApp:
    """Return the application, behind what is on of the shop's doors if this service is at the front."""
    if name == "frontend" and "door" in protections:
        from examples.shop import door

        app = door.guarded(app)
    if name == "frontend" and "shedding" in protections:
        from examples.shop import shedding

        app = shedding.guarded(app)
    return app


def with_health(app: ASGIApp, health: Health, neighbours: Neighbours) -> ASGIApp:
    """Return the application, behind what answers for its health."""
    if os.environ.get("SHOP_HEALTH") != "naive":
        return health.asgi(app)
    from examples.shop import naive

    return naive.told(app, neighbours)


@asynccontextmanager
async def limit_told(name: str, protections: Collection[str]) -> AsyncIterator[None]:
    """Write down the limit of the frontend's bulkhead while the context is open, if it has one."""
    if name != "frontend" or "shedding" not in protections:
        yield
        return
    from examples.shop.shedding import frontend

    telling = asyncio.create_task(tell_limit(frontend))
    try:
        yield
    finally:
        telling.cancel()


@asynccontextmanager
async def opened(
    name: str, calls: Calls, protections: Collection[str], health: Health
) -> AsyncIterator[Sequence[BaseRoute]]:
    """Yield the routes of a service; what it keeps open for them, say a database, is closed afterwards."""
    module = importlib.import_module(f"{__package__}.services.{name}")
    if not hasattr(module, "opened"):
        yield module.routes(calls)
        return
    async with module.opened(calls, protections, health) as routes:
        yield routes


async def serve(name: str, protections: Collection[str], listener: socket.socket) -> None:
    """Run one service until the parent lets go of standard input."""
    events.add_listener(Journal().note)
    urls = json.loads(os.environ["SHOP_URLS"])
    # No timeout, as in many a client library's defaults: what waiting for ever costs is what the demo shows.
    transport = Stopwatch(httpx.AsyncHTTPTransport(), urls)
    client = httpx.AsyncClient(transport=transport, timeout=None)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(client)
        await stack.enter_async_context(limit_told(name, protections))
        calls = calls_class(name, protections)(http, urls)
        # Connections of its own: to ask how others are is no call that the shop makes.
        asking = await stack.enter_async_context(httpx.AsyncClient(timeout=None))
        neighbours = Neighbours(name, asking, urls)
        health = stack.enter_context(health_of(name, neighbours, protections))
        routes = await stack.enter_async_context(opened(name, calls, protections, health))
        guarded = behind_door(application(routes), name, protections)
        # Before the door: who probes is not kept out, however full it is.
        app = with_health(guarded, health, neighbours)
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_GRACE, timeout_keep_alive=_KEEP_ALIVE
        )
        server = uvicorn.Server(config)
        when_parent_leaves(lambda: setattr(server, "should_exit", True))
        await server.serve(sockets=[listener])


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop.service")
    parser.add_argument("name", choices=NAMES + MORE)
    parser.add_argument("--protect", choices=PROTECTIONS, action="append", default=[], help="what is on")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket, inherited from the parent")
    args = parser.parse_args()
    allow_many_connections()
    asyncio.run(serve(args.name, args.protect, socket.socket(fileno=args.fd)))


async def _healthy(request: Request) -> Response:
    return JSONResponse({"status": "pass", "cpu": time.process_time()})


async def _wrong_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, httpx.HTTPStatusError)
    status = error.response.status_code
    return _problem(status if status < 500 else 502, error)


async def _no_answer(request: Request, error: Exception) -> Response:
    return _problem(502, error)


async def _not_asked(request: Request, error: Exception) -> Response:
    assert isinstance(error, RejectedError)
    headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    return _problem(503, error, headers)


async def _taken_away(request: Request, error: Exception) -> Response:
    say(json.dumps({"note": RAISED, "error": type(error).__name__, "text": str(error)}))
    return _problem(500, error)


async def _too_late(request: Request, error: Exception) -> Response:
    return _problem(504, error)


def _problem(status: int, error: Exception, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, status_code=status, headers=headers)


if __name__ == "__main__":
    main()
