"""A server that remembers who said what on which connection, and clients that say who they are.

A client says its process's id in each line, so a byte that another process sends on its connection is seen.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

__all__ = ["Ears", "Heard", "Speaker", "connector"]

_GOODBYE = "goodbye"


class Heard:
    """What was heard on one connection."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ended = False

    @property
    def speakers(self) -> set[int]:
        """The processes that said something."""
        return {int(line.split()[0]) for line in self.lines}

    @property
    def goodbyes(self) -> int:
        """How often it was said goodbye."""
        return sum(line.endswith(_GOODBYE) for line in self.lines)


class Ears:
    """Listens on a port of its own, and answers each line with itself."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return sum(not heard.ended for heard in self.heard)

    def of(self, process: int) -> list[Heard]:
        """Return the connections on which *process* spoke."""
        return [heard for heard in self.heard if process in heard.speakers]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self.heard.append(heard := Heard())
                thread = threading.Thread(target=self._listen, args=(client, heard), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _listen(self, client: socket.socket, heard: Heard) -> None:
        with suppress(OSError), client, client.makefile("rw") as stream:
            for line in stream:
                heard.lines.append(line.strip())
                stream.write(line)
                stream.flush()
        heard.ended = True


class Speaker:
    """A connection to `Ears`. It says goodbye when it is closed, and when it is collected unclosed."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._stream = self._sock.makefile("rw")
        self._said = 0
        self.ask()

    def ask(self) -> None:
        """Say something, and fail unless that is what is answered."""
        self._said += 1
        line = f"{os.getpid()} {id(self)} {self._said}\n"
        self._stream.write(line)
        self._stream.flush()
        answer = self._stream.readline()
        assert answer == line, (answer, line)

    def close(self) -> None:
        """Say goodbye, and end the connection."""
        if not self._sock._closed:
            with suppress(OSError):
                self._sock.sendall(f"{os.getpid()} {_GOODBYE}\n".encode())
            self._stream.close()
            self._sock.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


def connector(port: int) -> Callable[[], Speaker]:
    """Return what makes connections to that port."""
    return lambda: Speaker(port)
