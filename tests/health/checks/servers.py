"""Small servers that answer what a test says, to one connection after the other."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

# Certificates of a CA of their own (ca.pem), for 127.0.0.1: good.pem from 2020 to 2120, expired.pem until
# 2020-06-15 12:00; and selfsigned.pem, until 2121. Each with its key.
TLS = Path(__file__).parents[2] / "data" / "tls"


class Answering:
    """Listen on a port of its own, and have *answer* deal with each connection."""

    def __init__(
        self, answer: Callable[[socket.socket], object] = lambda _: None, *, certificate: str | None = None
    ) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._over = threading.Event()
        self._context = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._context is not None:
            self._context.load_cert_chain(TLS / f"{certificate}.pem")
        self._thread = threading.Thread(target=self._serve)

    @property
    def over(self) -> threading.Event:
        """Set when the test is over: for an answer that waits."""
        return self._over

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        with suppress(OSError), socket.socket() as waker:  # `create_connection` may be a test's own
            waker.connect(("127.0.0.1", self.port))
        self._thread.join(20.0)
        self._listener.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            conn, _ = self._listener.accept()
            if self._over.is_set():
                conn.close()
                return
            self.connections += 1
            with suppress(OSError), conn:
                conn.settimeout(20.0)
                if self._context is None:
                    self._answer(conn)
                else:
                    with self._context.wrap_socket(conn, server_side=True) as secure:
                        self._answer(secure)


def request_of(conn: socket.socket) -> bytes:
    """Return the head of a request."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = conn.recv(65_536)
        if not data:
            break
        head += data
    return head
