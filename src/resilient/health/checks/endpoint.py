"""Endpoints that speak HTTP: whether one answers as it should, and what it says of its service's health."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from ...engine import params
from ...engine.finding import Fact, Finding, Status
from ...pool.drivers.base import cut
from ...typing import Seconds
from ..secrets import masked
from .base import Check, Watchdog, duration, in_time, reason, seconds_of
from .network import connected, port_of

__all__ = ["HTTPEndpoint"]

_HEADERS: Final = {
    "Accept": "application/health+json, application/json;q=0.9, */*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "resilient-health",
}
_METHODS: Final = ("GET", "HEAD")
_PORTS: Final = {"http": 80, "https": 443}
_MOST_BODY: Final = 65_536
_MOST_TOLD: Final = 200
_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_OK: Final = range(200, 300)
_JSON: Final = re.compile(r"application/(?:[\w.+-]+\+)?json\b", re.IGNORECASE)
_XML_WORDS: Final = ("Code", "Message")
_JSON_WORDS: Final = ("code", "error", "title", "message", "detail", "error_description")
# What services say of themselves: RFC drafts of application/health+json, Spring's and others' words.
_STATUSES: Final = {
    "pass": Status.PASS,
    "ok": Status.PASS,
    "up": Status.PASS,
    "healthy": Status.PASS,
    "warn": Status.WARN,
    "degraded": Status.WARN,
    "fail": Status.FAIL,
    "error": Status.FAIL,
    "down": Status.FAIL,
    "unhealthy": Status.FAIL,
    "out_of_service": Status.FAIL,
}


class HTTPEndpoint(Check):
    """Ask a URL, and look at the answer.

    Redirects are not followed: they are an answer. Where the answer says in `application/health+json`, or in
    another JSON, that its service warns or fails, so does the check. An answer of 401 or 403 is told as
    missing permission, with the reason given; nothing is tried twice.

    Args:
        url: beginning with http:// or https://. A user and password in it are sent as Basic credentials.
        status: the status, or several, that are well.
        contains: text that the first 64 KB of the answer must have. None: any answer.
        method: "GET" or "HEAD".
        headers: sent along, such as credentials.
        slow_after: seconds above 0 that the answer may take, or it warns. None: any time.
        context: how TLS is spoken. None: as the system trusts.
        timeout: seconds above 0 for all of it, but for finding the host's address.
        name: in reports. None: host and port.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, which it blocks. Each call has a connection of its own, closed at its
        end.
    """

    external: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        status: int | Collection[int] = _OK,
        *,
        contains: str | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        slow_after: Seconds | None = 0.5,
        context: ssl.SSLContext | None = None,
        timeout: Seconds = 1.0,
        name: str | None = None,
    ) -> None:
        self._address = _Address(params.named("url", url))
        self._well = _statuses(status)
        self._contains = None if contains is None else params.named("contains", contains)
        self._method = params.one_of("method", method, _METHODS)
        if contains is not None and method == "HEAD":
            params.refuse(ValueError, "contains", "needs an answer with a body, and HEAD has none", contains)
        self._headers = {**_HEADERS, **self._address.headers}
        for word, value in _checked(headers).items():
            self._headers.pop(word.title(), None)
            self._headers[word] = value
        self._slow_after = params.optional_seconds("slow_after", slow_after)
        if self._address.secure:
            self._context = ssl.create_default_context() if context is None else context
        self._timeout = seconds_of(timeout)
        super().__init__(f"http:{self._address.place}" if name is None else name)

    def __call__(self) -> Finding:
        """Ask it.

        Returns:
            The seconds until the answer was read, and its status.
        """
        begun, seconds = time.perf_counter(), in_time(self._timeout)
        try:
            status, headers, body = self._answer(seconds)
        except TimeoutError:
            return Finding(Status.FAIL, f"no answer from {self._address.place} within {seconds:.3g} s")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            return Finding(Status.FAIL, f"no answer from {self._address.place}: {reason(exc)}")
        return self._judge(status, headers, body, time.perf_counter() - begun)

    def _answer(self, seconds: float) -> tuple[int, http.client.HTTPMessage, bytes]:
        address, until = self._address, time.monotonic() + seconds
        link = http.client.HTTPConnection(address.host, address.port, timeout=seconds)
        sock: Any = connected(address.host, address.port, seconds)
        link.sock = sock  # which `link` closes

        def bite() -> None:
            cut(sock.fileno)

        try:
            # The timeout of a socket is for each piece that is read, and there may be many small ones.
            with Watchdog(max(0.0, until - time.monotonic()), bite) as dog:
                try:
                    if address.secure:
                        link.sock = sock = self._context.wrap_socket(
                            sock, server_hostname=address.host, do_handshake_on_connect=False
                        )
                        sock.do_handshake()
                    link.request(self._method, address.target, headers=self._headers)
                    with link.getresponse() as response:
                        answer = response.status, response.headers, response.read(_MOST_BODY)
                except Exception as exc:
                    if dog.bit:
                        raise TimeoutError from exc
                    raise
            if dog.bit:  # what was cut looks as if it had ended
                raise TimeoutError
            return answer
        finally:
            link.close()

    def _judge(self, status: int, headers: http.client.HTTPMessage, body: bytes, took: float) -> Finding:
        said = _parsed(headers, body)
        facts: dict[str, Fact] = {"http_status": status}
        health, told = self._verdict(status, headers, body, said)
        if health is Status.FAIL and status in _REFUSED:
            facts["permission"] = False
        version = said.get("version")
        if isinstance(version, str):
            facts["version"] = _short(version)
        if health is Status.PASS and self._slow_after is not None and took >= self._slow_after:
            health, told = Status.WARN, f"it answered after {duration(took)}"
        return Finding(health, told, round(took, 6), "s", facts)

    def _verdict(
        self, status: int, headers: http.client.HTTPMessage, body: bytes, said: Mapping[str, Any]
    ) -> tuple[Status, str]:
        theirs = _STATUSES.get(str(said.get("status", "")).lower())
        if status not in self._well:
            return Status.FAIL, self._complaint(status, headers, body, said)
        if theirs is Status.FAIL or theirs is Status.WARN:
            why = _short(said.get("output") or said.get("message") or "")
            return (
                theirs,
                f"it says it {'fails' if theirs is Status.FAIL else 'warns'}{': ' if why else ''}{why}",
            )
        if self._contains is not None and self._contains not in body.decode("utf-8", "replace"):
            return Status.FAIL, f"its answer does not contain {self._contains!r}"
        return Status.PASS, ""

    @staticmethod
    def _complaint(
        status: int, headers: http.client.HTTPMessage, body: bytes, said: Mapping[str, Any]
    ) -> str:
        """Tell what an unexpected status means."""
        line = str(status)
        with suppress(ValueError):  # a status of their own
            line += f" {HTTPStatus(status).phrase}"
        why = _why(said, body)
        if status in _REFUSED:
            return f"it refuses permission: {line}{', ' if why else ''}{why}"
        if status // 100 == 3:  # noqa: PLR2004 - the class of redirects
            return f"it answers {line}, to {_short(headers.get('Location') or 'nowhere')}"
        return f"it answers {line}{': ' if why else ''}{why}"

    def _subject(self) -> str:
        return self._address.shown


class _Address:
    """A URL in its parts, with the secrets in it where nobody sees them."""

    def __init__(self, url: str) -> None:
        # The value is not shown: it may have a password in it.
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ValueError(f"url must be a URL: {masked(str(exc))}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"url must begin with http:// or https:// and have a host, got {masked(url)!r}")
        if any(character <= " " or character > "~" for character in url):
            raise ValueError(f"url must be encoded: printable ASCII without spaces, got {masked(url)!r}")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = _PORTS[parts.scheme] if port is None else port_of(port)
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.place = f"{host}:{self.port}"
        self.shown = f"{parts.scheme}://{self.place}{parts.path}"
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        if self.port != _PORTS[parts.scheme] or ":" in self.host:
            self.headers["Host"] = self.place
        else:
            self.headers["Host"] = host


def _statuses(status: int | Collection[int]) -> Collection[int]:
    if isinstance(status, int) and not isinstance(status, bool):
        return (params.count("status", status, least=100),)
    if not isinstance(status, Collection):
        params.refuse(TypeError, "status", "must be a status or several", status)
    for one in status if not isinstance(status, range) else ():
        params.count("status", one, least=100)
    return status


def _checked(headers: object) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping) or not all(
        isinstance(word, str) for pair in headers.items() for word in pair
    ):
        # Not shown: they may be credentials.
        params.refuse(TypeError, "headers", "must be a mapping of text to text", type(headers))
    return dict(headers)


def _parsed(headers: http.client.HTTPMessage, body: bytes) -> Mapping[str, Any]:
    """Return the JSON object that the answer is; of anything else, nothing."""
    if _JSON.match(headers.get("Content-Type") or ""):
        with suppress(ValueError, RecursionError):
            said = json.loads(body)
            if isinstance(said, dict):
                return said
    return {}


def _why(said: Mapping[str, Any], body: bytes) -> str:
    """Return the reason that an answer gives: a cloud API's code and message, or what a problem says."""
    inner = said.get("error") or said.get("Error")
    words = {**said, **inner} if isinstance(inner, dict) else said
    told = [str(words[word]) for word in _JSON_WORDS if isinstance(words.get(word), str)]
    if not said:
        text = body.decode("utf-8", "replace")
        found = (re.search(rf"<{word}>([^<]{{1,{_MOST_TOLD}}})</{word}>", text) for word in _XML_WORDS)
        told = [match[1] for match in found if match is not None]
    if said.get("output"):
        told.append(str(said["output"]))
    return _short(": ".join(dict.fromkeys(told)))


def _short(text: object) -> str:
    line = masked(" ".join(str(text).split()))
    return line if len(line) <= _MOST_TOLD else f"{line[: _MOST_TOLD - 1]}…"
