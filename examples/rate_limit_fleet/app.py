"""The service: each of its users may make 100 requests a minute, however many processes it runs as.

`python -m examples.rate_limit_fleet.app --fd 7` is one of these processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from examples.children import when_parent_leaves
from resilient import RateLimiter, events
from resilient.asgi import ResilienceMiddleware, user


def application(store: str) -> ASGIApp:
    """Return the service, whose processes count in *store* together, and without it not at all."""
    limiter = RateLimiter(
        "100/minute",
        name="per-user",
        storage=store,
        # Never more than 100 in whatever 60 seconds: a fixed window lets 200 pass around its edge.
        strategy="moving-window",
        # Better some requests too many than none at all.
        on_outage="allow",
        # Longer than the default: here, four processes and their load share a machine, and count exactly.
        decision_timeout=0.25,
    )
    # A gateway in front has checked who it is.
    by_user = user(lambda request: request.header("x-user"))
    app = Starlette(routes=[Route("/", _greet)])
    return ResilienceMiddleware(app, rate_limit=limiter, key=by_user, headers="both")


async def _greet(request: Request) -> Response:
    return PlainTextResponse(f"Good day, {request.headers.get('x-user', 'stranger')}!")


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until the parent lets go of standard input; tell on standard output what happens."""
    events.add_listener(_tell)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    when_parent_leaves(lambda: setattr(server, "should_exit", True))
    await server.serve(sockets=[listener])


def _tell(event: events.Event) -> None:
    if isinstance(event, events.RungChanged):
        print(f"{event.policy} goes from {event.previous!r} to {event.rung!r}: {event.reason}", flush=True)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m examples.rate_limit_fleet.app")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket, inherited from the parent")
    listener = socket.socket(fileno=parser.parse_args().fd)
    asyncio.run(serve(application(os.environ["STORE"]), listener))


if __name__ == "__main__":
    main()
