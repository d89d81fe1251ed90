"""A call as a request: what gRPC tells of it, in the words of the web."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resilient.asgi import TrustedProxies, client_address, combined, route, user
from resilient.integrations.grpc.calls import CallRequest


class Context:
    """What gRPC tells of who calls, and how long that waits."""

    def __init__(
        self, peer: str = "ipv4:192.0.2.7:4711", *, left: float | None = None, who: Any = None
    ) -> None:
        self._peer, self._left, self._who = peer, left, who

    def peer(self) -> str:
        """Return who calls."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Return how long it waits."""
        return self._left

    def peer_identities(self) -> Any:
        """Return whose certificate it has shown."""
        return self._who


def request_of(
    context: Context, *metadata: tuple[str, str | bytes], trusted: str = "192.0.2.7"
) -> CallRequest:
    request = CallRequest("/t.S/Do", metadata, TrustedProxies(trusted), believed=False)
    request.arrived(context)
    return request


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3::7%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:3::7]:4711", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", "192.0.2.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::/64"),
        ("unix:/run/app.sock", "unknown"),
        ("unix-abstract:app", "unknown"),
        ("vsock:3:4711", "unknown"),
        ("unknown", "unknown"),
        ("", "unknown"),
        ("ipv4:", "unknown"),
        ("ipv4:nonsense", "unknown"),
    ],
)
def test_the_peer_is_an_address(peer: str, key: str) -> None:
    """Whatever gRPC calls it; what is none has one key for all."""
    assert client_address()(request_of(Context(peer), trusted="198.51.100.1")) == key


def test_a_proxy_that_is_trusted_tells_the_client() -> None:
    """In the metadata, as in header fields."""
    request = request_of(Context(), ("x-forwarded-for", "198.51.100.9"))
    assert str(request.client) == "198.51.100.9"
    assert request.is_from_proxy


def test_a_unix_socket_may_be_trusted() -> None:
    """It has no address."""
    request = request_of(Context("unix:"), ("x-forwarded-for", "198.51.100.9"), trusted="unix")
    assert str(request.client) == "198.51.100.9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0.0, "0u"),
        (0.25, "250000u"),
        (99.0, "99000000u"),
        (100.0, "100000m"),
        (86_400.0, "86400000m"),
        (100_000.0, None),
        (9.2e18, None),
        (math.inf, None),
    ],
)
def test_the_time_of_a_call_is_told_as_on_the_wire(seconds: float | None, text: str | None) -> None:
    """gRPC takes the field off the metadata; whoever reads it finds it all the same."""
    request = request_of(Context(left=seconds), ("other", "1"))
    assert request.header("grpc-timeout") == text
    assert set(request.present) == ({b"other"} if text is None else {b"other", b"grpc-timeout"})


def test_who_has_shown_a_certificate_is_a_user() -> None:
    """By TLS of both sides; others are known by their address."""
    known = user()(request_of(Context(who=(b"shop.example", b"checkout"))))
    assert known is not None
    assert known.startswith("user:")
    assert known != user()(request_of(Context(who=(b"shop.example",))))
    assert user()(request_of(Context())) == "192.0.2.7"


def test_keys_of_methods_can_be_combined() -> None:
    """The route of a call is its method."""
    assert route()(request_of(Context())) == "POST /t.S/Do"
    assert combined(client_address(), route())(request_of(Context())) == "9:192.0.2.7,12:POST /t.S/Do"


def test_nobody_is_known_when_a_call_is_over() -> None:
    """gRPC's context must not be asked any more."""
    request = request_of(Context(who=(b"checkout",)))
    request.departed()
    request.departed()
    assert (request.peer, request.client, request.user) == (None, None, None)
    assert request.header("grpc-timeout") is None


def test_nobody_is_known_before_a_call_is_served() -> None:
    """What is exempt is decided by the method alone."""
    request = CallRequest("/t.S/Do", None, TrustedProxies(), believed=True)
    assert (request.path, request.peer, request.user, request.header("a")) == ("/t.S/Do", None, None, None)
