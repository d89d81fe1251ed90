"""The middlewares over real sockets: uvicorn and Starlette, wsgiref and Flask."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import flask
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.web.servers import connection, eventually, fetch, read, uvicorn_serving, wsgiref_serving
from tests.web.support import SpyGate

from resilient import asgi, time_left, wsgi
from resilient.errors import CircuitOpenError

Serve = Callable[..., AbstractContextManager[int]]

CHUNK = b"x" * 65_536


class Shop:
    """The same small app in both worlds, and what happens in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.gate = SpyGate()
        self.let_go = threading.Event()  # what slow answers wait for
        self.seen: list[Any] = []

    def options(self) -> dict[str, Any]:
        return {
            "shed": self.gate,
            "rate_limit": {"/limited": "1/hour", "*": "1000/second"},
            "deadline": 30,
            "trusted": "127.0.0.1",
        }


def starlette_app(shop: Shop) -> Any:  # noqa: C901 - one function for each path
    """Return the app as Starlette has it, the middleware added its way."""

    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def refused(request: Request) -> Response:
        raise CircuitOpenError("down", retry_after=1)

    async def stream(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.to_thread(shop.let_go.wait, 5)
            yield b"last"

        return StreamingResponse(chunks())

    async def endless(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield CHUNK
                await asyncio.sleep(0)

        return StreamingResponse(chunks())

    async def later(request: Request) -> Response:
        async def work() -> None:
            await asyncio.to_thread(shop.let_go.wait, 5)
            shop.seen.append((shop.gate.held, time_left()))

        return PlainTextResponse("done", background=BackgroundTask(work))

    async def hang(request: Request) -> Response:
        await asyncio.sleep(30)
        return PlainTextResponse("never")

    async def half(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.sleep(30)

        return StreamingResponse(chunks())

    async def upload(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def file(request: Request) -> Response:
        return FileResponse(shop.file)

    handlers = {
        "/": hello,
        "/limited": hello,
        "/refused": refused,
        "/stream": stream,
        "/endless": endless,
        "/later": later,
        "/hang": hang,
        "/half": half,
        "/file": file,
    }
    routes = [Route(path, handler) for path, handler in handlers.items()]
    app = Starlette(routes=[*routes, Route("/upload", upload, methods=["POST"])])
    app.add_middleware(asgi.ResilienceMiddleware, **shop.options())
    return app


def flask_app(shop: Shop) -> Any:
    """Return the app as Flask has it."""
    app = flask.Flask("shop")
    app.config["PROPAGATE_EXCEPTIONS"] = True  # refusals leave the app, and are answered outside

    @app.get("/")
    @app.get("/limited")
    def hello() -> str:
        return "hello"

    @app.get("/refused")
    def refused() -> str:
        raise CircuitOpenError("down", retry_after=1)

    @app.get("/stream")
    def stream() -> Iterator[bytes]:
        yield b"first"
        shop.let_go.wait(5)
        yield b"last"

    @app.get("/endless")
    def endless() -> Iterator[bytes]:
        while True:
            yield CHUNK

    @app.get("/file")
    def file() -> flask.Response:
        return flask.send_file(shop.file)

    app.wsgi_app = wsgi.ResilienceMiddleware(app.wsgi_app, **shop.options())  # type: ignore[method-assign]
    return app


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    file = tmp_path / "file.txt"
    file.write_bytes(CHUNK * 20)
    shop = Shop(file)
    yield shop
    shop.let_go.set()


SERVERS = {"uvicorn": (uvicorn_serving, starlette_app), "wsgiref": (wsgiref_serving, flask_app)}


@pytest.fixture(params=SERVERS)
def port(request: pytest.FixtureRequest, shop: Shop) -> Iterator[int]:
    serving = (
        uvicorn_serving(starlette_app(shop))
        if request.param == "uvicorn"
        else wsgiref_serving(flask_app(shop))
    )
    with serving as port:
        yield port


class TestBothWorlds:
    def test_answer_passes(self, port: int, shop: Shop) -> None:
        """With the fields of its limit, and its place given back."""
        status, fields, body = fetch(port)

        assert (status, body) == (200, b"hello")
        assert fields["ratelimit-policy"] == '"*";q=1000;w=1'
        assert eventually(lambda: shop.gate.left == [None])

    def test_denied_request_is_answered(self, port: int, shop: Shop) -> None:
        """429 on the wire, whole."""
        assert fetch(port, "/limited")[0] == 200

        status, fields, body = fetch(port, "/limited")

        assert status == 429
        assert fields["retry-after"] == "3600"
        assert int(fields["content-length"]) == len(body)

    def test_refusal_that_leaves_the_app_is_answered(self, port: int, shop: Shop) -> None:
        """The framework has not made an error of its own of it."""
        status, fields, _ = fetch(port, "/refused")

        assert status == 503
        assert fields["content-type"] == "application/problem+json"

    def test_refused_head_leaves_the_connection_usable(self, port: int, shop: Shop) -> None:
        """No body where none belongs, and the next request is understood."""
        fetch(port, "/limited")
        status, fields, body = fetch(port, "/limited", "HEAD")

        assert (status, body) == (429, b"")
        assert int(fields["content-length"]) > 0

    def test_stream_arrives_as_it_is_made_and_holds_its_place(self, port: int, shop: Shop) -> None:
        """The first chunk is there before the last one is made."""
        with connection(port) as client:
            client.request("GET", "/stream")
            response = client.getresponse()
            assert response.read(5) == b"first"
            assert shop.gate.held == 1
            shop.let_go.set()
            assert response.read() == b"last"

        assert eventually(lambda: shop.gate.left == [None])

    def test_client_that_leaves_in_the_middle_frees_its_place(self, port: int, shop: Shop) -> None:
        """Within a second, and without blaming the app."""
        with connection(port) as client:
            client.request("GET", "/endless")
            response = client.getresponse()
            assert response.read(10) == b"x" * 10
            assert shop.gate.held == 1
            response.close()  # under HTTP/1.0 the connection is the response's
        left_at = time.monotonic()

        assert eventually(lambda: shop.gate.held == 0)
        assert time.monotonic() - left_at < 1.0
        assert not isinstance(shop.gate.left[0], Exception)
        assert fetch(port)[0] == 200

    def test_file_arrives_whole(self, port: int, shop: Shop) -> None:
        """However the server sends it, its place is given back."""
        status, _, body = fetch(port, "/file")

        assert (status, len(body)) == (200, 20 * len(CHUNK))
        assert eventually(lambda: shop.gate.left == [None])

    def test_request_that_never_comes_takes_no_place(self, port: int, shop: Shop) -> None:
        """Half a header is no request."""
        with connection(port) as client:
            client.connect()
            client.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            assert fetch(port)[0] == 200
            assert eventually(lambda: shop.gate.held == 0)
            assert shop.gate.entered == 1

    def test_many_at_once_all_give_their_places_back(self, port: int, shop: Shop) -> None:
        """Threads, tasks and sockets together."""
        statuses: list[int] = []
        paths = ["/", "/refused", "/file", "/missing"]

        def visit(path: str) -> None:
            statuses.extend(fetch(port, path)[0] for _ in range(5))

        threads = [threading.Thread(target=visit, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(statuses) == [200] * 10 + [404] * 5 + [503] * 5
        assert eventually(lambda: shop.gate.held == 0)
        assert shop.gate.entered == 20


class TestAsgi:
    def test_background_task_runs_after_the_answer_without_a_place(self, shop: Shop) -> None:
        """The client has its answer, the place is free and the deadline over while the task works."""
        with uvicorn_serving(starlette_app(shop)) as port:
            assert fetch(port, "/later")[2] == b"done"
            assert eventually(lambda: shop.gate.held == 0)
            assert not shop.seen
            shop.let_go.set()
            assert eventually(lambda: bool(shop.seen))

        assert shop.seen == [(0, None)]

    def test_connection_is_kept_alive(self, shop: Shop) -> None:
        """Answers and refusals follow each other on one connection."""
        with uvicorn_serving(starlette_app(shop)) as port, connection(port) as client:
            statuses = []
            for path in ("/", "/limited", "/limited", "/refused", "/"):
                client.request("GET", path)
                statuses.append(read(client)[0])
                sock = client.sock

            assert statuses == [200, 200, 429, 503, 200]
            assert client.sock is sock is not None

    def test_app_that_hangs_is_answered_for(self, shop: Shop) -> None:
        """The client's deadline is over the wire what it is inside, and the connection lives on."""
        with uvicorn_serving(starlette_app(shop)) as port, connection(port) as client:
            for path, timeout, status in [("/hang", "50", 504), ("/hang", "0", 504), ("/", "5000", 200)]:
                client.request("GET", path, headers={"x-request-timeout-ms": timeout})
                assert read(client)[0] == status
                sock = client.sock

            assert client.sock is sock is not None
        assert [type(error) for error in shop.gate.left] == [asyncio.CancelledError, type(None)]

    def test_client_that_leaves_while_it_uploads_frees_its_place(self, shop: Shop) -> None:
        """A body that never ends holds a place only as long as its client is there, and blames nobody."""
        with uvicorn_serving(starlette_app(shop)) as port:
            with connection(port) as client:
                client.putrequest("POST", "/upload")
                client.putheader("Content-Length", "1000")
                client.endheaders(b"only a part")
                assert eventually(lambda: shop.gate.held == 1)
            left_at = time.monotonic()
            assert eventually(lambda: shop.gate.held == 0)

        assert time.monotonic() - left_at < 1.0
        assert not isinstance(shop.gate.left[0], Exception)

    def test_stream_that_hangs_is_broken_off(self, shop: Shop) -> None:
        """What has begun cannot become a 504: the client sees that the end is missing."""
        with uvicorn_serving(starlette_app(shop)) as port, connection(port) as client:
            client.request("GET", "/half", headers={"x-request-timeout-ms": "100"})
            response = client.getresponse()
            assert response.status == 200
            with pytest.raises(IncompleteRead):
                response.read()

        assert [type(error) for error in shop.gate.left] == [asyncio.CancelledError]


class TestWsgi:
    def test_length_of_a_plain_answer_is_told(self) -> None:
        """wsgiref works it out from a body of one part, through the middleware too."""

        def app(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]

        with wsgiref_serving(wsgi.ResilienceMiddleware(app, shed=SpyGate())) as port:
            assert fetch(port)[1]["content-length"] == "5"

    def test_server_recognises_its_file_wrapper(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """It gets the chance to send the file by itself."""
        from wsgiref.handlers import BaseHandler

        asked: list[Any] = []
        monkeypatch.setattr(
            BaseHandler, "sendfile", lambda handler: asked.append(handler.result.filelike.name)
        )

        with wsgiref_serving(flask_app(shop)) as port:
            assert fetch(port, "/file")[0] == 200

        assert asked == [str(shop.file)]
