"""The facts of a request, in the same words for ASGI and WSGI."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, MutableMapping
from typing import Any, Final

from .addresses import Address, TrustedProxies, address_of

__all__ = ["AsgiRequest", "Request", "WsgiRequest"]


class Request(metaclass=ABCMeta):
    """Tell the facts of one request; each is looked up when it is asked for, and none costs anything before.

    Args:
        raw: the ASGI scope or the WSGI environ; an attribute, too.
        proxies: whose word on the client is believed; an attribute, too.

    Concurrency: belongs to its request.
    """

    __slots__ = ("path", "proxies", "raw")

    path: str
    """The path below where the app is mounted, decoded."""

    def __init__(self, raw: MutableMapping[str, Any], proxies: TrustedProxies) -> None:
        self.raw = raw
        self.proxies = proxies
        self.path = self._own_path()

    @property
    def client(self) -> Address | None:
        """The client's address, as the connection or the declared proxies tell it; None if nobody knows."""
        origin = self.proxies.client(self.peer, self.header)
        return None if origin is None else address_of(origin)

    @property
    def is_from_proxy(self) -> bool:
        """Whether the connection comes from a declared proxy, whose word counts."""
        return self.proxies.believe(self.peer)

    @property
    @abstractmethod
    def method(self) -> str:
        """The method, such as "GET"; a WebSocket is opened by GET."""

    @property
    @abstractmethod
    def peer(self) -> str | None:
        """The other end of the connection, as the server tells it; None for a Unix socket."""

    @property
    @abstractmethod
    def user(self) -> object:
        """Who the framework or the server says has logged in; None where nobody has."""

    @property
    def query(self) -> str:
        """What follows the question mark, as it was sent; empty where nothing does."""
        return ""

    @property
    def route(self) -> str:
        """The template of the route where the framework has found one already, else the path."""
        return self.path

    @property
    @abstractmethod
    def present(self) -> Iterable[object]:
        """The names of the header fields that there are, as the server writes them, and maybe others."""

    @abstractmethod
    def header(self, name: str) -> str | None:
        """Return a header field.

        Args:
            name: its name.

        Returns:
            Its value; several lines of it joined by commas; None where there is none.
        """

    @abstractmethod
    def _own_path(self) -> str: ...


class AsgiRequest(Request):
    """A request told by an ASGI scope.

    Concurrency: belongs to its request.
    """

    __slots__ = ()

    @property
    def method(self) -> str:
        """The method."""
        return str(self.raw.get("method", "GET"))

    @property
    def peer(self) -> str | None:
        """The other end of the connection."""
        client = self.raw.get("client")
        return client[0] if client else None

    @property
    def query(self) -> str:
        """What follows the question mark."""
        query = self.raw.get("query_string", b"")
        return (
            query if isinstance(query, str) else bytes(query).decode("latin-1")
        )  # text: Django's test client

    @property
    def user(self) -> object:
        """What an authentication middleware outside has left in the scope."""
        return self.raw.get("user")

    @property
    def route(self) -> str:
        """The template of the route."""
        return getattr(self.raw.get("route"), "path", None) or self.path

    @property
    def present(self) -> Iterable[object]:
        """The names of the header fields."""
        return dict(self.raw.get("headers", ()))

    def header(self, name: str) -> str | None:
        """Return a header field.

        Args:
            name: its name.

        Returns:
            Its value; several lines of it joined by commas; None where there is none.
        """
        wanted = name.lower().encode("latin-1")
        values = [value for key, value in self.raw.get("headers", ()) if key == wanted]
        return b",".join(values).decode("latin-1") if values else None

    def _own_path(self) -> str:
        path: str = self.raw["path"]
        root: str = self.raw.get("root_path") or ""
        # Some put it in front of the path, some do not; and "/apiary" is not below "/api".
        if root and f"{path}/".startswith(f"{root}/"):
            return path[len(root) :] or "/"
        return path


_UNPREFIXED: Final = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})


class WsgiRequest(Request):
    """A request told by a WSGI environ.

    Concurrency: belongs to its request.
    """

    __slots__ = ()

    @property
    def method(self) -> str:
        """The method."""
        return str(self.raw.get("REQUEST_METHOD", "GET"))

    @property
    def peer(self) -> str | None:
        """The other end of the connection."""
        return self.raw.get("REMOTE_ADDR") or None

    @property
    def query(self) -> str:
        """What follows the question mark."""
        return self.raw.get("QUERY_STRING") or ""

    @property
    def user(self) -> object:
        """What the server or a middleware outside has left in `REMOTE_USER`."""
        return self.raw.get("REMOTE_USER")

    @property
    def present(self) -> Iterable[object]:
        """The keys of the environ, those of the header fields among them."""
        return self.raw

    def header(self, name: str) -> str | None:
        """Return a header field.

        Args:
            name: its name.

        Returns:
            Its value; several lines of it joined by commas; None where there is none.
        """
        key = name.upper().replace("-", "_")
        return self.raw.get(key if key in _UNPREFIXED else f"HTTP_{key}")

    def _own_path(self) -> str:
        path: str = self.raw.get("PATH_INFO") or "/"
        # PEP 3333: bytes in the guise of latin-1.
        return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")
