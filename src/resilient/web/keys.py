"""Whose limit it is: functions that make a key of a request.

A key function returns text, the same for requests that share a limit, or None for a request without one.
What it makes of secrets is a digest: no key, user or token stands in a store, an event or a log.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from ..engine import params
from .addresses import Trusted, address_of, proxies_of
from .request import Request

__all__ = ["Key", "api_key", "client_address", "combined", "field_name", "key_function", "route", "user"]

Key: TypeAlias = Callable[[Request], str | None]
"""Makes the key of a request; None means that it has no limit."""

_UNKNOWN: Final = "unknown"
_IPV6_BITS: Final = 128
_TOKEN: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110, 5.6.2


def client_address(*, ipv6_prefix: int = 64, trusted: Trusted | None = None) -> Key:
    """Make keys of the client's address, and one common key for all whose address is not known.

    Args:
        ipv6_prefix: bits of an IPv6 address that count, 1 to 128: a client with one address of a network
            mostly has them all.
        trusted: the proxies to believe, where they are others than the middleware's. None: the middleware's.

    Returns:
        A key function.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    if params.count("ipv6_prefix", ipv6_prefix) > _IPV6_BITS:
        params.refuse(ValueError, "ipv6_prefix", f"must be at most {_IPV6_BITS}", ipv6_prefix)
    own = None if trusted is None else proxies_of(trusted)

    def by_client_address(request: Request) -> str:
        proxies = request.proxies if own is None else own
        return _network_of(proxies.client(request.peer, request.header), ipv6_prefix)

    return by_client_address


@functools.lru_cache(maxsize=4_096)  # writing an address takes longer than deciding on it
def _network_of(client: str | None, ipv6_prefix: int) -> str:
    address = None if client is None else address_of(client)
    if address is None:
        return _UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    rest = _IPV6_BITS - ipv6_prefix
    return f"{ipaddress.IPv6Address(int(address) >> rest << rest)}/{ipv6_prefix}"


_BY_ADDRESS: Final = client_address()


def api_key(header: str = "x-api-key", *, otherwise: Key | None = _BY_ADDRESS) -> Key:
    """Make keys of an API key or token in a header field.

    Whether the key is a valid one is not asked: limit by address, too, where inventing keys is cheap.

    Args:
        header: the name of the field, such as "x-api-key" or "authorization".
        otherwise: makes the key where there is no such field. None: such requests have no limit.

    Returns:
        A key function.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: *header* is not the name of a header field.
    """
    name = field_name("header", header)
    fallback = _checked(otherwise)

    def by_api_key(request: Request) -> str | None:
        value = request.header(name)
        return _digest("key", value) if value else fallback(request)

    return by_api_key


def field_name(parameter: str, header: str) -> str:
    """Return *header* in lower case if it can be the name of a header field.

    Args:
        parameter: the name of the argument; for error messages.
        header: what was given for it.

    Raises:
        TypeError: *header* is not text.
        ValueError: *header* is no such name.
    """
    name = params.named(parameter, header).lower()
    if not _TOKEN.fullmatch(name):
        params.refuse(ValueError, parameter, "must be the name of a header field", header)
    return name


def user(find: Callable[[Request], object] | None = None, *, otherwise: Key | None = _BY_ADDRESS) -> Key:
    """Make keys of who has logged in.

    Args:
        find: returns the user of a request, or None. Where it is None: what the framework's authentication
            has left in `scope["user"]` or `REMOTE_USER`, for which that must stand outside this middleware.
        otherwise: makes the key where nobody has logged in. None: such requests have no limit.

    Returns:
        A key function.

    Raises:
        TypeError: an argument has the wrong type.
    """
    who = _logged_in if find is None else params.plain_function("find", find)
    fallback = _checked(otherwise)

    def by_user(request: Request) -> str | None:
        found = who(request)
        return fallback(request) if found is None or found == "" else _digest("user", str(found))

    return by_user


def _logged_in(request: Request) -> object:
    """Return what identifies the user: Starlette's words, then Django's; or the text itself."""
    found = request.user
    if found is None or isinstance(found, str):
        return found
    if not getattr(found, "is_authenticated", False):
        return None
    for attribute in ("identity", "pk", "username", "display_name"):
        try:
            identity: object = getattr(found, attribute, None)
        except NotImplementedError:  # Starlette's base class offers words that not every user has
            continue
        if identity is not None:
            return identity
    return None


def route() -> Key:
    """Make keys of method and route.

    In a middleware no framework has found the route yet, so the path stands for it. Where paths hold what
    clients choose, such as identifiers, give `rate_limit` a mapping of patterns instead. The method is what
    the client has sent: where an app answers any, an invented one has a limit of its own.

    Returns:
        A key function.
    """
    return _by_route


def _by_route(request: Request) -> str:
    return f"{request.method} {request.route}"


def combined(*keys: Key) -> Key:
    """Make one key of several, such as `combined(user(), route())`.

    Args:
        *keys: key functions, at least one. If any of them returns None, the request has no limit.

    Returns:
        A key function.

    Raises:
        TypeError: one of *keys* is no function.
        ValueError: there are none.
    """
    if not keys:
        params.refuse(ValueError, "keys", "must be at least one key function", keys)
    functions = [key_function("keys", key) for key in keys]

    def by_all(request: Request) -> str | None:
        parts: list[str] = []
        for key in functions:
            part = key(request)
            if part is None:
                return None
            parts.append(f"{len(part)}:{part}")  # with its length, no part can pose as two
        return ",".join(parts)

    return by_all


_MAKERS: Final[tuple[object, ...]] = (client_address, api_key, user, route, combined)


def key_function(parameter: str, key: Key) -> Key:
    """Return *key* if it is a key function; what only makes one is refused, which would fail on each request.

    Args:
        parameter: the name of the argument; for error messages.
        key: what was given for it.

    Raises:
        TypeError: *key* is none.
    """
    if key in _MAKERS:
        params.refuse(TypeError, parameter, f"must be a key function: write {key.__name__}(...)", key)
    return params.plain_function(parameter, key)


def _checked(otherwise: Key | None) -> Key:
    return _unlimited if otherwise is None else key_function("otherwise", otherwise)


def _unlimited(_request: Request) -> None:
    return None


def _digest(kind: str, secret: str) -> str:
    digest = hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=16, person=b"resilient")
    return f"{kind}:{digest.hexdigest()}"
