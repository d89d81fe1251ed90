"""Health as it is often written at first: one path for all who ask, and behind it everybody is asked.

It serves as the sign of life as well. So a service looks dead whose dependency is, and whoever asks it waits
for the slowest of all.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from examples.shop.neighbours import Neighbours

PATH = "/health"


def told(app: ASGIApp, neighbours: Neighbours) -> ASGIApp:
    """Return an application that asks its neighbours, one after the other, for as long as it takes."""

    async def healthy(request: Request) -> Response:
        for name in neighbours.names:
            await neighbours.ask(name, PATH)
        return JSONResponse({"status": "UP"})

    return Starlette(routes=[Route(PATH, healthy), Mount("/", app)])
