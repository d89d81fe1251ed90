"""Starlette: health as routes."""

from __future__ import annotations

from typing import Unpack

from ..health.serving.asgi import places_of
from ..health.serving.handler import Endpoints, EndpointWords, Reporter
from . import needing

with needing("Starlette", extra="starlette"):
    from starlette.routing import Route

__all__ = ["health_routes"]


def health_routes(health: Reporter, **words: Unpack[EndpointWords]) -> list[Route]:
    """Make the routes by which the health of a service is asked for: `Starlette(routes=[*health_routes(h)])`.

    Args:
        health: the `Health` that is reported.
        **words: the arguments of `resilient.health.Endpoints`, without *drain_delay*: a route does not see
            the server start, as the middleware and `health.asgi()` do.

    Returns:
        The routes, for an app, a router or a mount.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    endpoints = Endpoints(health, **words)
    return [Route(path, app, include_in_schema=False) for path, app in places_of(endpoints)]
