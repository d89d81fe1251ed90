"""Who is shown more than the status: tokens and networks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.health.standin import StandIn

from resilient.health import Asked, Endpoints, bearer, from_networks

SECRET, OTHER = "correct-horse-battery", "staple-0123456789"


def asked(client: str | None = None, *, vouched: bool = False, **fields: str) -> Asked:
    """Return a request."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return Asked("GET", "/health", header=named.get, client=client, vouched=vouched)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (f"Bearer {SECRET}", True),
        (f"bearer  {OTHER} ", True),
        (f"Bearer {SECRET}x", False),
        (f"Bearer {SECRET[:-1]}", False),
        (f"Basic {SECRET}", False),
        (SECRET, False),
        ("Bearer", False),
        ("", False),
        (f"Bearer {SECRET}, Bearer {OTHER}", False),
        ("Bearer \u00e9\ud800", False),
    ],
)
def test_token_is_known_or_not(sent: str, expected: bool) -> None:
    """Whole, by its scheme, and any of several."""
    assert bearer(SECRET, OTHER)(asked(authorization=sent)) is expected


def test_no_token_is_no() -> None:
    """Nobody is known who says nothing."""
    assert not bearer(SECRET)(asked())


def test_each_token_is_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever was sent: how long it takes tells nothing."""
    compared: list[bytes] = []

    def compare(_sent: bytes, secret: bytes) -> bool:
        compared.append(secret)
        return True

    monkeypatch.setattr("hmac.compare_digest", compare)

    assert bearer(SECRET, OTHER)(asked(authorization="Bearer x"))
    assert compared == [SECRET.encode(), OTHER.encode()]


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ((), TypeError),
        ((7,), TypeError),
        (("short",), ValueError),
        (("has a space in it",), ValueError),
        (("\u00fcberlang-genug",), ValueError),
        ((SECRET, "line\nbreak-in"), ValueError),
    ],
)
def test_bad_tokens_are_refused_without_being_told(tokens: Any, error: type[Exception]) -> None:
    """The message may end up in a log."""
    with pytest.raises(error, match="tokens must be") as refused:
        bearer(*tokens)
    assert not any(str(token) in str(refused.value) for token in tokens)


def test_token_is_not_in_the_repr_of_the_predicate() -> None:
    """Nor in that of what holds it."""
    assert SECRET not in f"{bearer(SECRET)!r} {Endpoints(StandIn(), details=bearer(SECRET))!r}"


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("2001:db8::7%eth0", True),
        ("testclient", False),
        ("", False),
        (None, False),
        ("10.1.2.3:80", False),
        ("10.0.0.0/8", False),
    ],
)
def test_network_holds_a_client_or_not(client: str | None, expected: bool) -> None:
    """What is no address is in no network."""
    assert from_networks("10.0.0.0/8", "192.0.2.1", "2001:db8::/32")(asked(client)) is expected


@pytest.mark.parametrize("name", ["x_forwarded_for", "forwarded", "x_real_ip"])
def test_proxy_is_not_its_client(name: str) -> None:
    """Behind a proxy in the cluster the whole world has an address of the cluster's."""
    through: Any = {name: "198.51.100.7"}

    assert not from_networks("10.0.0.0/8")(asked("10.0.0.1", **through))
    assert from_networks("10.0.0.0/8")(asked("10.0.0.1", vouched=True, **through))
    assert from_networks("10.0.0.0/8", proxied=True)(asked("10.0.0.1", **through))
    assert not from_networks("10.0.0.0/8", proxied=True)(asked("198.51.100.7", **through))


@pytest.mark.parametrize(
    ("networks", "error", "match"),
    [
        ((), TypeError, "one or more"),
        ((7,), TypeError, "networks must be text"),
        (("10.0.0.1/8",), ValueError, "networks must be like"),
        (("localhost",), ValueError, "networks must be like"),
        ((["10.0.0.0/8"],), TypeError, "networks must be text"),
    ],
)
def test_bad_networks_are_refused(networks: Any, error: type[Exception], match: str) -> None:
    """The message says what one looks like."""
    with pytest.raises(error, match=match):
        from_networks(*networks)


@pytest.mark.parametrize("maker", [bearer, from_networks])
def test_maker_of_predicates_is_none(maker: Any) -> None:
    """`details=bearer` would say yes to everybody."""
    with pytest.raises(TypeError, match=r"write bearer\(...\)"):
        Endpoints(StandIn(), details=maker)
