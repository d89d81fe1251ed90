"""Who is calling: addresses, networks, and what declared proxies say of the client behind them."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias

from ..engine import params

__all__ = ["NETWORK_LIKE", "Address", "Networks", "Trusted", "TrustedProxies", "address_of", "proxies_of"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
NetworkLike: TypeAlias = str | Address | Network
NETWORK_LIKE: Final = (
    str,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
"""What names one network."""

_LONGEST_ADDRESS: Final = 80  # the longest IPv6 address with a zone and a port is shorter
_LONGEST_HEADER: Final = 4_096  # what a chain of proxies writes is shorter; the rest is not looked at

# RFC 7239: a port may be a number or an invented name.
_PORT: Final = r"(?::(?:\d{1,5}|_[\w.-]{1,32}))?"
_BRACKETED: Final = re.compile(rf"\[([^\[\]]+)\]{_PORT}", re.ASCII)
_DOTTED: Final = re.compile(rf"([\d.]+){_PORT}", re.ASCII)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@functools.lru_cache(maxsize=4_096)
def _parsed(text: str) -> Address | None:
    form = _BRACKETED.fullmatch(text) or _DOTTED.fullmatch(text)
    try:
        address = ipaddress.ip_address(form[1] if form else text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # The zone is the server's business, and would make of one client as many as somebody cares to write.
    return address.ipv4_mapped or _behind_nat64(address) or ipaddress.IPv6Address(int(address))


def _behind_nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return who an IPv6-only network tells of by RFC 6052: all of IPv4 would be one /64 otherwise.

    Only public addresses are told of that way (its section 3.1). A private one is nobody's, and taking it for
    that of a proxy or an administrator would be a way in.
    """
    inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return inner if address in _NAT64 and inner.is_global else None


def address_of(text: str) -> Address | None:
    """Return the address that *text* is, with or without port and brackets; None where it is none.

    An IPv4 address that is mapped into IPv6, or translated (NAT64), is the IPv4 address.
    """
    return _parsed(text) if len(text) <= _LONGEST_ADDRESS else None


class Networks:
    """A set of networks, to ask whether an address is in one of them."""

    __slots__ = ("_networks",)

    def __init__(self, parameter: str, networks: Iterable[NetworkLike]) -> None:
        self._networks = tuple(_network(parameter, network) for network in networks)

    def __contains__(self, address: Address | None) -> bool:
        if not self._networks or address is None:
            return False
        return any(address in network for network in self._networks)


def _network(parameter: str, network: NetworkLike) -> Network:
    if not isinstance(network, NETWORK_LIKE):  # a number would be taken for an address
        params.refuse(TypeError, parameter, "must name networks as text or ipaddress objects", network)
    try:
        found = ipaddress.ip_network(network)
    except ValueError:
        rule = "must name networks like '10.0.0.0/8', '2001:db8::/32' or '192.0.2.1'"
        params.refuse(ValueError, parameter, rule, network)
    if isinstance(found, ipaddress.IPv6Network) and (found.subnet_of(_MAPPED) or found.subnet_of(_NAT64)):
        params.refuse(ValueError, parameter, "must name IPv4 networks as such, not inside IPv6", network)
    return found


class TrustedProxies:
    """Declare which proxies stand before the service, so that what they say of the client is believed.

    `X-Forwarded-For` and `Forwarded` (RFC 7239) are read only if the connection itself comes from one of
    *networks*, from right to left: each proxy has added who connected to it. The first address that is not
    one of the proxies is the client; what stands left of it was written by the client and is not read.

    A hop that cannot be read makes the client unknown, and so do two header fields that disagree: one of
    them was not written by the proxies, and nobody can tell which. Name the one they write in *header*.

    Args:
        *networks: networks or addresses, as text or as `ipaddress` objects; `"unix"` for whoever connects
            through a Unix socket.
        header: `"x-forwarded-for"` or `"forwarded"`, the only one that is read. None: whichever is there.

    Raises:
        TypeError: a network is neither text nor an `ipaddress` object.
        ValueError: a network cannot be read, or *header* is another one.

    Concurrency: read only.
    """

    __slots__ = ("_networks", "_readers", "_unix")

    def __init__(
        self, *networks: NetworkLike, header: Literal["x-forwarded-for", "forwarded"] | None = None
    ) -> None:
        if header is not None:
            params.one_of("header", header, tuple(_READERS))
        self._unix = "unix" in networks
        self._networks = Networks("trusted", [network for network in networks if network != "unix"])
        self._readers = _READERS if header is None else {header: _READERS[header]}

    def believe(self, peer: str | None) -> bool:
        """Tell whether the other end of a connection is one of the proxies.

        Args:
            peer: as the server tells it; None or empty for a Unix socket.
        """
        return address_of(peer) in self._networks if peer else self._unix

    def client(self, peer: str | None, header: Callable[[str], str | None]) -> str | None:
        """Return who the client is, as text that `address_of` reads.

        Args:
            peer: the other end of the connection as the server tells it; None or empty for a Unix socket.
            header: returns the value of a header field by its name in lower case; None where there is none.

        Returns:
            The client as it is told; None where it is not known.
        """
        if not self.believe(peer):
            return peer
        clients = [
            self._walk(read(value) if len(value) <= _LONGEST_HEADER else [""])
            for name, read in self._readers.items()
            if (value := header(name)) is not None
        ]
        if not clients:
            return peer  # a proxy that speaks for itself, such as its health check
        addresses = {address_of(client) for client in clients}
        return clients[0] if len(addresses) == 1 and None not in addresses else None

    def _walk(self, hops: list[str]) -> str:
        # A list of hops is never empty; if all of them are proxies, the first one began.
        return next((hop for hop in reversed(hops) if address_of(hop) not in self._networks), hops[0])


Trusted: TypeAlias = TrustedProxies | NetworkLike | Iterable[NetworkLike]
"""Names the proxies whose word counts."""


def proxies_of(trusted: Trusted) -> TrustedProxies:
    """Return *trusted*, whichever way it is given, as proxies."""
    if isinstance(trusted, TrustedProxies):
        return trusted
    if isinstance(trusted, NETWORK_LIKE):
        return TrustedProxies(trusted)
    if not isinstance(trusted, Iterable):
        params.refuse(TypeError, "trusted", "must be networks or TrustedProxies", trusted)
    return TrustedProxies(*trusted)


def _x_forwarded_for(value: str) -> list[str]:
    return [hop.strip() for hop in value.split(",")]


# One `name=value` of RFC 7239, or none, and what ends it. Quotes count: a proxy may tell the `Host` that the
# client sent, and what is in there must not be taken for a hop.
_PAIR: Final = re.compile(
    r"""[ \t]*(?:(?P<name>[\w!#$%&'*+.^`|~-]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s",;=]+)))?"""
    r"""[ \t]*(?P<end>[;,]|\Z)""",
    re.ASCII,
)


def _forwarded(value: str) -> list[str]:
    hops, heard, position = [], list[str](), 0
    while position <= len(value):
        pair = _PAIR.match(value, position)
        if pair is None:
            return [""]
        if (pair["name"] or "").lower() == "for":
            heard.append(pair["plain"] or pair["quoted"] or "")
        if pair["end"] != ";":
            hops.append(heard[0] if len(heard) == 1 else "")
            heard.clear()
        position = pair.end() + (not pair["end"])
    return hops


_READERS: Final[dict[str, Callable[[str], list[str]]]] = {
    "x-forwarded-for": _x_forwarded_for,
    "forwarded": _forwarded,
}
