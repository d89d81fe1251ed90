"""Health as a WSGI app, and for the WSGI middleware."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Unpack
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ...engine import params
from .asked import Answer, Asked
from .handler import Endpoints, EndpointWords, Reporter, without_drain_delay

__all__ = ["WsgiHealth", "asked_of", "send_answer", "wsgi_app"]


def wsgi_app(
    health: Reporter, app: WSGIApplication | None = None, **words: Unpack[EndpointWords]
) -> WsgiHealth:
    """Make a WSGI app that answers for the health of a service.

    Args:
        health: the `Health` that is reported.
        app: a WSGI app that gets everything else, its own pages below `/health` included; None: everything
            else is answered with 404.
        **words: the arguments of `Endpoints`, without *drain_delay*: WSGI does not say when a server starts.

    Returns:
        The app.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    return WsgiHealth(Endpoints(health, **words), app)


class WsgiHealth:
    """A WSGI app that answers for health, before another one or by itself.

    Args:
        endpoints: what is asked for where.
        app: gets everything else, and what is below `/health` and no name that may be asked for; None: there
            is nothing else.

    Raises:
        TypeError: *app* is no app.
        ValueError: *endpoints* are to put SIGTERM off.

    Concurrency: serves any number of requests and threads at once.
    """

    def __init__(self, endpoints: Endpoints, app: WSGIApplication | None = None) -> None:
        self._endpoints = without_drain_delay(endpoints)
        self._app: WSGIApplication | None = None if app is None else params.callback("app", app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request; see PEP 3333.

        Args:
            environ: the facts of the request.
            start_response: takes status and header.

        Returns:
            The body.
        """
        asked = asked_of(environ)
        endpoints = self._endpoints
        place = endpoints.find(asked.path)
        if self._app is None or (place is not None and endpoints.claims(place, asked)):
            return send_answer(endpoints.respond(place, asked), start_response)
        return self._app(environ, start_response)


def asked_of(environ: WSGIEnvironment) -> Asked:
    """Return what the environ of a request asks."""

    def header(name: str) -> str | None:
        value = environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return None if value is None else str(value)

    path = str(environ.get("PATH_INFO") or "/")
    return Asked(
        str(environ.get("REQUEST_METHOD", "GET")),
        # PEP 3333: bytes in the guise of latin-1.
        path if path.isascii() else path.encode("latin-1", "replace").decode("utf-8", "replace"),
        str(environ.get("QUERY_STRING") or ""),
        header,
        environ.get("REMOTE_ADDR") or None,
    )


def send_answer(answer: Answer, start_response: StartResponse) -> list[bytes]:
    """Start a whole response, and return its body."""
    start_response(f"{int(answer.status)} {HTTPStatus(answer.status).phrase}", answer.headers)
    return [answer.body]
