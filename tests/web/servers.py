"""Real servers in threads: uvicorn for ASGI, wsgiref with a thread a request for WSGI."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn

Got: TypeAlias = tuple[int, dict[str, str], bytes]

_PATIENCE = 5.0  # how long what must happen may take on a busy machine, in seconds


def eventually(condition: Callable[[], bool], within: float = _PATIENCE) -> bool:
    """Tell whether *condition* comes true in time."""
    give_up_at = time.monotonic() + within
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def uvicorn_serving(app: Any) -> Iterator[int]:
    """Serve an ASGI app; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert eventually(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False  # they are waited for at the end


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Keep the output of the tests clean."""

    def get_stderr(self) -> Any:
        return _Silence()


class _Silence:
    """Where wsgiref prints the traceback of a client that has gone."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def wsgiref_serving(app: Any) -> Iterator[int]:
    """Serve a WSGI app; yield the port."""
    with make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """Open a connection to a local server."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as client:
        yield client


def fetch(
    port: int, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Make one request; return status, header fields by lower-case name, and body."""
    with connection(port) as client:
        client.request(method, path, headers=headers)
        return read(client)


def read(client: http.client.HTTPConnection) -> Got:
    """Read one response."""
    response = client.getresponse()
    body = response.read()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body
