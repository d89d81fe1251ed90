"""One question over HTTP, with an end: whatever the server does, the answer or a reason is there in time."""

from __future__ import annotations

import threading
import time
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from ..health.serving.told import LARGEST, line

__all__ = ["FetchError", "Fetched", "Fetching", "checked_url"]

_ACCEPT: Final = (
    "application/health+json, application/json;q=0.9, application/vnd.spring-boot.actuator.v3+json;q=0.8, "
    "text/plain;q=0.5"
)
_SAFE: Final = "/%:@!$&'()*+,;=~?"  # in a path, as it is given


class FetchError(Exception):
    """There is no answer; the message says why, in one line."""


class Fetched(NamedTuple):
    """An answer: at most `LARGEST` bytes of its body, and one more where there are more."""

    status: int
    content_type: str
    body: bytes


def checked_url(url: str) -> SplitResult:
    """Return *url* in its parts.

    Raises:
        ValueError: it is none of HTTP, or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("must not hold a name or a password: give a token")
    parts.hostname.encode("idna")
    if parts.port == 0:
        raise ValueError("must not have the port 0")
    return parts


class Fetching:
    """A question that has been asked, and is answered elsewhere.

    Everything is done in a thread of its own: looking up a name has no timeout, and a server may send a byte
    now and then for ever. The thread is left to itself when its time is up, and keeps no process alive.

    Args:
        url: what `checked_url` has returned.
        timeout: seconds for all of it.
        token: for `Authorization: Bearer`; None: none is sent. No redirect is followed, nobody else gets it.
    """

    def __init__(self, url: SplitResult, timeout: float, token: str | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._headers = {"Accept": _ACCEPT, "User-Agent": "resilient", "Connection": "close"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._outcome: Fetched | FetchError | None = None
        self._until = time.monotonic() + timeout
        self._thread = threading.Thread(target=self._run, name="resilient-fetch", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            self._outcome = FetchError(str(exc))

    def result(self) -> Fetched:
        """Return the answer, when it has come.

        Raises:
            FetchError: it has not, or there is none.
        """
        if self._outcome is None:
            self._thread.join(max(0.0, self._until - time.monotonic()))
        outcome = self._outcome
        if outcome is None:
            raise FetchError(f"no answer within {self._timeout:g} s")
        if isinstance(outcome, FetchError):
            raise outcome
        return outcome

    def _run(self) -> None:
        try:
            self._outcome = self._ask()
        except TimeoutError:
            self._outcome = FetchError(f"no answer within {self._timeout:g} s")
        except Exception as exc:  # noqa: BLE001 - of a server that does whatever it likes
            reason = (
                exc.strerror if isinstance(exc, OSError) and exc.strerror else f"{type(exc).__name__}: {exc}"
            )
            self._outcome = FetchError(line(reason))

    def _ask(self) -> Fetched:
        url = self._url
        make = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = make(url.hostname or "", url.port, timeout=self._timeout)
        try:
            target = quote(url.path, _SAFE) or "/"
            query = f"?{quote(url.query, _SAFE)}" if url.query else ""
            connection.request("GET", target + query, headers=self._headers)
            response: HTTPResponse = connection.getresponse()
            with response:
                body = response.read(LARGEST + 1)
            return Fetched(response.status, line(response.headers.get("Content-Type", "")), body)
        finally:
            connection.close()
