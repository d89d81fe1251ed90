"""A small HTTP server in threads, for processes that have none: workers, consumers, batch jobs."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import selectors
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, Self, Unpack
from urllib.parse import unquote

from ...engine import params
from ...engine.fork import renew_after_fork
from .asked import Asked
from .handler import Endpoints, EndpointWords, Reporter, without_drain_delay

__all__ = ["HealthServer", "serve"]

_log = logging.getLogger("resilient")

_PATIENCE: Final = 5.0  # seconds that a client has for its request and for taking the answer
_MOST_CLIENTS: Final = 64
_PAUSE: Final = 0.1  # seconds
_FAREWELL: Final = 0.5  # seconds in which the thread of a client that is hung up on ends; it takes none
# What a client that takes this for a proxy puts before the path (RFC 9112, 3.2.2); a server has to take it.
_AUTHORITY: Final = re.compile(r"\Ahttps?://[^/?]*", re.ASCII | re.IGNORECASE)


def serve(
    health: Reporter, host: str = "127.0.0.1", port: int = 8081, **words: Unpack[EndpointWords]
) -> HealthServer:
    """Serve the health of a process that has no web server, in threads that do not keep it alive.

    At most 64 clients are served at a time, and each has 5 seconds for its request: whoever is slower is hung
    up on. So is, when another one comes, whoever has had the longest of them and not sent its request yet.

    Args:
        health: the `Health` that is reported.
        host: the address to listen at; "0.0.0.0" or "::" for all of them, as Kubernetes' probes need.
        port: 0: any that is free, which the server's `port` then tells.
        **words: the arguments of `Endpoints`, without *drain_delay*: call `drain_on_sigterm`.

    Returns:
        The server, which serves already.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
        OSError: nobody can listen there.
    """
    return HealthServer(Endpoints(health, **words), host, port)


class HealthServer:
    """A server of health that runs in the background; closed by `close` or by the end of a `with` block.

    Args:
        endpoints: what is asked for where.
        host: the address to listen at.
        port: 0: any that is free.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
        OSError: nobody can listen there.

    Concurrency: safe from any thread. A forked child has no server: it serves nothing, and holds no port.
    """

    def __init__(self, endpoints: Endpoints, host: str = "127.0.0.1", port: int = 8081) -> None:
        without_drain_delay(endpoints)
        params.named("host", host)
        if params.count("port", port, least=0) > 65_535:  # noqa: PLR2004
            params.refuse(ValueError, "port", "must be at most 65535", port)
        self._server = _Server((host, port), endpoints)
        self._host = host
        self._port: int = self._server.server_address[1]
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._server.run, name="resilient-health-server", daemon=True)
        renew_after_fork(self)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def url(self) -> str:
        """Where to ask, from this machine, without a path."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - replaced by another
        return f"http://[{here}]:{self._port}" if ":" in here else f"http://{here}:{self._port}"

    def close(self) -> None:
        """Stop listening; whoever is being answered gets the answer. Nothing happens when it is closed."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._server.end()
            self._thread.join()
            self._server.server_close()

    def after_fork(self) -> None:
        """Let go of the port in a forked child, which has no thread to serve: clients would wait for it."""
        self._closing = threading.Lock()
        if not self._closed:
            self._closed = True
            self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HealthServer {self.url}{' closed' if self._closed else ''}>"


class _Server(ThreadingMixIn, TCPServer):
    # Not `http.server`'s: that asks the name service for its own name, which takes seconds in an outage.
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        # Those whose request has not been read, the oldest first.
        self._unheard: dict[Any, None] = {}
        self._lock = threading.Lock()
        self._ears, self._mouth = socket.socketpair()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, _Handler)
        except BaseException:
            self._close_pair()
            raise
        self.socket.setblocking(False)

    def run(self) -> None:
        """Take in clients until `end` is called; not `serve_forever`, which wakes up now and then to look."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._ears, selectors.EVENT_READ)
            while all(key.fileobj is self.socket for key, _ in selector.select()):
                self._take_in()

    def end(self) -> None:
        """Have `run` return."""
        self._mouth.send(b"\0")

    def server_close(self) -> None:
        super().server_close()
        self._close_pair()

    def _take_in(self) -> None:
        try:
            request, address = self.get_request()
        except (BlockingIOError, ConnectionError):  # it has gone again
            return
        except OSError:  # there can be no more files, and it goes on knocking
            time.sleep(_PAUSE)
            return
        try:
            self.process_request(request, address)
        except Exception:  # noqa: BLE001 - one client's misfortune is not that of the others
            self.shutdown_request(request)

    def _close_pair(self) -> None:
        self._ears.close()
        self._mouth.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        with self._lock:
            self._unheard[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:  # there can be no more threads
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def heard(self, request: Any) -> None:
        """Take note that the request of a client has been read, or that there will be none."""
        with self._lock:
            self._unheard.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        # First, so that nobody hangs up on a socket that is another's by then.
        self.heard(request)
        super().shutdown_request(request)

    def _make_room(self) -> bool:
        """Hang up on whoever has been silent for longest: a few silent ones would keep all probes out."""
        with self._lock:
            oldest = next(iter(self._unheard), None)
            if oldest is None:
                return False
            del self._unheard[oldest]
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        return self._places.acquire(timeout=_FAREWELL)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        # Clients that leave or are too slow are none of anybody's business.
        if not isinstance(sys.exception(), OSError):
            _log.exception("A request for health was not answered")


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - no other server makes one
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Timed(self.connection, time.monotonic() + _PATIENCE))

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.heard(self.connection)
        if parsed:
            self._respond()
        return False

    def _respond(self) -> None:
        path, _, query = _AUTHORITY.sub("", self.path).partition("?")
        asked = Asked(
            self.command,
            unquote(path, errors="replace") or "/",
            query,
            self._field,
            str(self.client_address[0]),
        )
        endpoints = self.server.endpoints
        answer = endpoints.respond(endpoints.find(asked.path), asked)
        # Not `send_response`, which tells the version of Python.
        self.send_response_only(answer.status)
        for name, value in (*answer.headers, ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def _field(self, name: str) -> str | None:
        values = self.headers.get_all(name)
        return ",".join(map(str, values)) if values else None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer what is no HTTP: without the page that tells the software."""
        self.close_connection = True
        self.send_response_only(code)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Write nothing: probes come all the time."""


class _Timed(io.RawIOBase):
    """What a client sends, for as long as it has time altogether, however it spreads that over its bytes."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client was too slow")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
