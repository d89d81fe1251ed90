"""Who is shown more than the status: predicates of a request, for the `details` of a `Health`."""

from __future__ import annotations

import hmac
import inspect
import ipaddress
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ...engine import params
from .asked import Asked

__all__ = ["ALWAYS", "NEVER", "Details", "bearer", "details_of", "from_networks", "shows"]

Details: TypeAlias = str | Callable[[Asked], object]
"""Who is shown more than the status: "never" anybody, "always" everybody, or who a predicate says yes to."""

NEVER: Final = "never"
ALWAYS: Final = "always"

_SHORTEST_TOKEN: Final = 8
# Whoever comes through a proxy is not who the connection says.
_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-real-ip")


def details_of(parameter: str, details: Any) -> Details:
    """Return *details* if it says who is shown more than the status.

    Raises:
        TypeError: it is neither text nor an ordinary function.
        ValueError: it is text that says nothing.
    """
    if isinstance(details, str):
        return params.one_of(parameter, details, (NEVER, ALWAYS))
    if details in {bearer, from_networks}:
        params.refuse(
            TypeError, parameter, "must be a function: write bearer(...), from_networks(...)", details
        )
    return params.plain_function(parameter, details)


def shows(details: Details, asked: Asked) -> bool:
    """Tell whether whoever sent *asked* is shown more than the status; a predicate that raises says no."""
    if isinstance(details, str):
        return details == ALWAYS
    try:
        answer = details(asked)
        # A coroutine would count as a yes.
        return bool(answer) and not inspect.isawaitable(answer)
    except Exception:  # noqa: BLE001 - whatever goes wrong in there, nothing is shown
        return False


def bearer(*tokens: str) -> Callable[[Asked], bool]:
    """Show details to whoever sends one of *tokens*: `Authorization: Bearer ...`.

    Args:
        tokens: the secrets, each of 8 characters of ASCII or more, and without spaces. Several let one be
            replaced by another without a moment at which neither counts.

    Returns:
        A predicate for `details=`. How long it takes tells nothing about the tokens.

    Raises:
        TypeError: a token is not text, or there is none.
        ValueError: a token is too short, or holds what no header could.
    """
    if not tokens:
        raise TypeError("tokens must be one or more")
    for token in tokens:
        # The messages do not hold what may be a secret.
        if not isinstance(token, str):
            raise TypeError(f"tokens must be text, got {type(token).__name__}")
        if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError(f"tokens must be {_SHORTEST_TOKEN} or more characters of ASCII without spaces")
    secrets = [token.encode("ascii") for token in tokens]

    def knows_token(asked: Asked) -> bool:
        scheme, _, given = (asked.header("authorization") or "").strip().partition(" ")
        sent = given.strip().encode("utf-8", "replace")
        # Each is compared, whatever comes of the others.
        matches = [hmac.compare_digest(sent, secret) for secret in secrets]
        return scheme.lower() == "bearer" and any(matches)

    return knows_token


def from_networks(*networks: str, proxied: bool = False) -> Callable[[Asked], bool]:
    """Show details to whoever is in one of *networks*.

    A request with `X-Forwarded-For`, `X-Real-IP` or `Forwarded` has come through a proxy, and the address of
    the proxy says nothing about who sent it: it is shown nothing, unless the middleware's `trusted` proxies
    have told who that was.

    Args:
        networks: such as "10.0.0.0/8", "2001:db8::/32" or "192.0.2.1".
        proxied: whether the server in front of this app puts the true client in the place of the proxy, as
            uvicorn does for those in `--forwarded-allow-ips`. Then the fields do not matter.

    Returns:
        A predicate for `details=`. Who has no address, as behind a Unix socket, is in no network.

    Raises:
        TypeError: a network is not text, or there is none.
        ValueError: a network is none.
    """
    params.flag("proxied", proxied)
    if not networks:
        raise TypeError("networks must be one or more")
    known = [_network(network) for network in networks]

    def is_near(asked: Asked) -> bool:
        if not (proxied or asked.vouched) and any(asked.header(name) is not None for name in _FORWARDING):
            return False
        try:
            address = ipaddress.ip_address(asked.client or "")
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            # The zone is the server's business; and a socket for both kinds tells IPv4 inside IPv6.
            address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))
        return any(address in network for network in known)

    return is_near


def _network(network: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(network, str):
        params.refuse(TypeError, "networks", "must be text", network)
    try:
        return ipaddress.ip_network(network)
    except ValueError:
        rule = "must be like '10.0.0.0/8', '2001:db8::/32' or '192.0.2.1'"
        params.refuse(ValueError, "networks", rule, network)
