"""One service as a process: `python -m examples.shop.service currency --fd 7`.

The parent binds the socket and hands it over, so that the address is known, and connections queue, before the
service is up.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import math
import os
import socket
from collections.abc import Sequence

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from examples.shop.journal import Journal
from examples.shop.parent import when_parent_leaves
from resilient import events
from resilient.errors import RejectedError

NAMES = ("rates", "catalogue", "currency", "checkout", "frontend")
_GRACE = 1


def application(routes: Sequence[BaseRoute], journal: Journal) -> Starlette:
    """Return a service as an application: its routes, a health page, its journal, and how errors are told."""
    return Starlette(
        routes=[Route("/healthz", _healthy), Route("/journal", journal.page), *routes],
        exception_handlers={
            httpx.HTTPStatusError: _wrong_answer,
            httpx.TransportError: _no_answer,
            RejectedError: _not_asked,
            TimeoutError: _too_late,
        },
    )


def calls_class(version: str) -> type[Calls]:
    """Return the shop's calls as first written (`bare`) or with policies on (`protected`)."""
    if version == "bare":
        return Calls
    from examples.shop.protected import (
        ProtectedCalls,  # imported only here: the bare shop builds no policy at all
    )

    return ProtectedCalls


async def serve(name: str, version: str, listener: socket.socket) -> None:
    """Run one service until the parent lets go of standard input."""
    journal = Journal()
    events.add_listener(journal.write)
    module = importlib.import_module(f"{__package__}.services.{name}")
    # No timeout, as in many a client library's defaults: what waiting for ever costs is what the demo shows.
    async with httpx.AsyncClient(timeout=None) as http:
        calls = calls_class(version)(http, json.loads(os.environ["SHOP_URLS"]))
        app = application(module.routes(calls), journal)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE))
        when_parent_leaves(lambda: setattr(server, "should_exit", True))
        await server.serve(sockets=[listener])


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop.service")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--version", choices=("bare", "protected"), default="bare")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket, inherited from the parent")
    args = parser.parse_args()
    asyncio.run(serve(args.name, args.version, socket.socket(fileno=args.fd)))


async def _healthy(request: Request) -> Response:
    return JSONResponse({"status": "pass"})


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


async def _too_late(request: Request, error: Exception) -> Response:
    return _problem(504, error)


def _problem(status: int, error: Exception, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, status_code=status, headers=headers)


if __name__ == "__main__":
    main()
