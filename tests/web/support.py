"""What the tests of the middlewares share: both of them behind one driver, and gates that keep count."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from resilient import Priority, asgi, current_priority, wsgi
from resilient.errors import BulkheadFullError

Fields = list[tuple[str, str]]


@dataclass
class Reply:
    """What a client got."""

    status: int
    fields: Fields
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """Return the value of a header field; None where there is none."""
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands there {len(values)} times"
        return values[0] if values else None


@dataclass
class Ask:
    """A request."""

    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: str | None = "192.0.2.1"
    extra: Mapping[str, Any] = field(default_factory=dict)


Handler = Callable[[], tuple[int, bytes]]
"""An app: returns status and body, or raises."""


def hello() -> tuple[int, bytes]:
    """Answer that all is well."""
    return 200, b"hello"


class World:
    """One of the two worlds; the same words for both."""

    module: Any

    def middleware(self, handler: Handler = hello, **options: Any) -> Any:
        """Return the middleware around *handler*."""
        return self.module.ResilienceMiddleware(self.app(handler), **options)

    def app(self, handler: Handler) -> Any:
        raise NotImplementedError

    def send(self, app: Any, ask: Ask) -> Reply:
        raise NotImplementedError

    def get(self, app: Any, path: str = "/", **ask: Any) -> Reply:
        """Ask *app* for *path*."""
        return self.send(app, Ask(path, **ask))

    def __repr__(self) -> str:
        return type(self).__name__


class Asgi(World):
    """ASGI, without a server."""

    module = asgi

    def app(self, handler: Handler) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            status, body = handler()
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return app

    def send(self, app: Any, ask: Ask) -> Reply:
        return asyncio.run(asend(app, ask))


def http_scope(ask: Ask) -> dict[str, Any]:
    """Return the scope of a request as a server would make it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in ask.headers.items()],
        "client": ask.peer and (ask.peer, 49152),
        "server": ("127.0.0.1", 80),
        **ask.extra,
    }


class Client:
    """The server's side of one ASGI connection: hands messages in, checks and keeps what comes out.

    When it has handed in all that there is, the client has left.
    """

    def __init__(self, *incoming: dict[str, Any]) -> None:
        self.incoming = list(incoming) or [{"type": "http.request", "body": b"", "more_body": False}]
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self.incoming:
            return self.incoming.pop(0)
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.sent, "a second response was begun"
        elif message["type"] == "http.response.body":
            assert self.sent[0]["type"] == "http.response.start"
            assert not self.complete, "a body went on after its end"
        self.sent.append(message)

    @property
    def complete(self) -> bool:
        """Whether the body has ended."""
        return (
            bool(self.sent) and self.sent[-1]["type"].endswith("body") and not self.sent[-1].get("more_body")
        )

    @property
    def reply(self) -> Reply:
        """The response so far."""
        start, *rest = self.sent
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return Reply(start["status"], fields, b"".join(message.get("body", b"") for message in rest))


class Patient(Client):
    """A client that stays until it is told to leave."""

    def __init__(self, *incoming: dict[str, Any]) -> None:
        super().__init__(*incoming)
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self.incoming:
            await self.left.wait()
        return await super().receive()


async def asend(app: Any, ask: Ask) -> Reply:
    """Send one request to an ASGI app."""
    client = Client()
    await app(http_scope(ask), client.receive, client.send)
    assert client.complete
    return client.reply


class Wsgi(World):
    """WSGI, without a server; both sides of the middleware are watched by the standard's validator."""

    module = wsgi

    def app(self, handler: Handler) -> Any:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            status, body = handler()
            start_response(f"{status} Whatever", [("Content-Type", "text/plain")])
            return [body]

        return validator(app)

    def send(self, app: Any, ask: Ask) -> Reply:
        return wsend(validator(app), ask)


def environ_of(ask: Ask) -> dict[str, Any]:
    """Return the environ of a request as a server would make it."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": ask.method,
        "PATH_INFO": ask.path.encode().decode("latin-1"),
        "REMOTE_ADDR": ask.peer or "",
        "QUERY_STRING": "",
        "SCRIPT_NAME": "",
        "wsgi.input": io.BytesIO(),
    }
    for name, value in ask.headers.items():
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    setup_testing_defaults(environ)
    return environ | dict(ask.extra)


class Response:
    """The server's side of one WSGI response, by the letter of PEP 3333."""

    def __init__(self) -> None:
        self.status = ""
        self.fields: Fields = []
        self.written: list[bytes] = []

    def start(self, status: str, headers: Fields, exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info:
            try:
                if any(self.written):
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        else:
            assert not self.status, "start_response was called twice"
        self.status, self.fields = status, headers
        return self.written.append

    @property
    def reply(self) -> Reply:
        return Reply(int(self.status[:3]), self.fields, b"".join(self.written))


def wsend(app: Any, ask: Ask) -> Reply:
    """Send one request to a WSGI app."""
    response = Response()
    body = app(environ_of(ask), response.start)
    try:
        response.written.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return response.reply


WORLDS = (Asgi(), Wsgi())


class SpyGate:
    """A gate that notes who came, and how each one left."""

    def __init__(self, places: int = 1_000) -> None:
        self.entered = 0
        self.priorities: list[Priority] = []
        self.left: list[BaseException | None] = []
        self._places = places

    @property
    def held(self) -> int:
        """Places taken now."""
        return self.entered - len(self.left)

    def calling(self) -> _Place:
        return _Place(self)

    def enter(self) -> None:
        if self.held >= self._places:
            raise BulkheadFullError("full", policy="spy")
        self.entered += 1
        self.priorities.append(current_priority())


class _Place:
    def __init__(self, gate: SpyGate) -> None:
        self._gate = gate
        self._held = False

    def __enter__(self) -> None:
        self._gate.enter()
        self._held = True

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        assert self._held, "a place was given back twice"
        self._held = False
        self._gate.left.append(error)

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.__enter__()


def once(values: list[Any]) -> Iterator[Any]:
    """Yield *values*; a body that has no length."""
    yield from values
