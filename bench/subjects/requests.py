"""One request sent into a web app in-process, without a socket, and the apps that answer it."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from bench.subjects.model import ARGUMENT, OK, Work

Message: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

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

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "192.0.2.2",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "192.0.2.1",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "bench",
    "HTTP_ACCEPT": "*/*",
    "HTTP_ACCEPT_ENCODING": "gzip, deflate",
    "HTTP_CONNECTION": "keep-alive",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": io.StringIO(),
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def driven(app: AsgiApp) -> Work:
    """Return a coroutine function that sends one request into an ASGI app and returns the status."""

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


def served(app: WsgiApp) -> Work:
    """Return a function that sends one request into a WSGI app, reads the body and returns the status."""

    def request(_: int) -> Any:
        status = None

        def start_response(line: str, _headers: Any, _exc_info: Any = None) -> None:
            nonlocal status
            status = int(line[:3])

        body = app(ENVIRON.copy(), start_response)
        for _part in body:
            pass
        if hasattr(body, "close"):
            body.close()
        return status

    return request


def plain_asgi(work: Work) -> AsgiApp:
    """Return the least an ASGI app can be."""

    async def app(_scope: Message, _receive: Any, send: Any) -> None:
        await work(ARGUMENT)
        fields = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": OK, "headers": fields})
        await send({"type": "http.response.body", "body": b"hello"})

    return app


def plain_wsgi(work: Work) -> WsgiApp:
    """Return the least a WSGI app can be."""

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        work(ARGUMENT)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    return app


def starlette_route(work: Work) -> Callable[[Any], Awaitable[Any]]:
    """Return what a route of Starlette's calls."""
    from starlette.responses import PlainTextResponse

    async def hello(request: Any) -> Any:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    return hello


def starlette(route: Callable[[Any], Awaitable[Any]]) -> Any:
    """Return an app of Starlette's with one route."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    return Starlette(routes=[Route("/", route)])


def fastapi(work: Work, *dependencies: Callable[..., Any]) -> Any:
    """Return an app of FastAPI's with one route, which depends on these."""
    from fastapi import Depends, FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI(openapi_url=None)

    @app.get("/", dependencies=[Depends(one) for one in dependencies])
    async def hello() -> PlainTextResponse:
        await work(ARGUMENT)
        return PlainTextResponse("hello")

    return app
