"""Whose word on the client is believed, and what is made of it."""

from __future__ import annotations

import functools
import ipaddress
import timeit
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.web.support import Ask, environ_of, http_scope

from resilient.asgi import TrustedProxies, api_key, client_address, combined, route, user
from resilient.web.addresses import address_of, proxies_of
from resilient.web.keys import key_function
from resilient.web.request import AsgiRequest, Request, WsgiRequest

PROXIES = ("10.0.0.0/8", "2001:db8:ffff::/48")
PROXY = "10.0.0.1"
XFF, FWD = "x-forwarded-for", "forwarded"
UNKNOWN = None


def request_with(peer: str | None, headers: dict[str, str], trusted: Any = PROXIES) -> Request:
    return AsgiRequest(http_scope(Ask(peer=peer, headers=headers)), proxies_of(trusted))


# peer, header fields, the client that comes of it
CASES: list[tuple[str | None, dict[str, str], str | None]] = [
    # A stranger's fields are not read.
    ("192.0.2.7", {}, "192.0.2.7"),
    ("192.0.2.7", {XFF: "198.51.100.1"}, "192.0.2.7"),
    ("192.0.2.7", {XFF: "10.0.0.1"}, "192.0.2.7"),
    ("192.0.2.7", {FWD: "for=198.51.100.1"}, "192.0.2.7"),
    ("192.0.2.7", {"x-real-ip": "198.51.100.1"}, "192.0.2.7"),
    (PROXY, {"x-real-ip": "198.51.100.1"}, PROXY),
    ("2001:db8::7", {XFF: "198.51.100.1"}, "2001:db8::7"),
    # A proxy's are: what it has added itself, at the right.
    (PROXY, {}, PROXY),
    (PROXY, {XFF: "198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "  198.51.100.1\t"}, "198.51.100.1"),
    (PROXY, {XFF: "203.0.113.66, 198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "203.0.113.66,127.0.0.1,198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "203.0.113.66, 198.51.100.1, 10.9.9.9"}, "198.51.100.1"),
    (PROXY, {XFF: "10.1.1.1, 198.51.100.1, 10.9.9.9, 10.8.8.8"}, "198.51.100.1"),
    (PROXY, {XFF: "10.1.1.1, 10.9.9.9"}, "10.1.1.1"),
    ("::ffff:10.0.0.1", {XFF: "198.51.100.1"}, "198.51.100.1"),
    ("2001:db8:ffff::1", {XFF: "198.51.100.1"}, "198.51.100.1"),
    # Addresses in all their forms.
    (PROXY, {XFF: "198.51.100.1:4711"}, "198.51.100.1"),
    (PROXY, {XFF: "2001:db8::1"}, "2001:db8::1"),
    (PROXY, {XFF: "[2001:db8::1]"}, "2001:db8::1"),
    (PROXY, {XFF: "[2001:db8::1]:4711"}, "2001:db8::1"),
    (PROXY, {XFF: "2001:DB8:0:0::1"}, "2001:db8::1"),
    (PROXY, {XFF: "fe80::1%eth0"}, "fe80::1"),
    (PROXY, {XFF: "::ffff:198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "198.51.100.1, ::ffff:10.9.9.9"}, "198.51.100.1"),
    (PROXY, {XFF: "64:ff9b::808:808"}, "8.8.8.8"),
    (PROXY, {XFF: "64:ff9b::808:808%eth0"}, "8.8.8.8"),
    (PROXY, {FWD: 'for="[64:ff9b::808:808]:4711"'}, "8.8.8.8"),
    # Nobody is in a private network by such an address, nor by one that only looks like it.
    ("64:ff9b::a00:1", {XFF: "198.51.100.1"}, "64:ff9b::a00:1"),
    ("64:ff9b:1::808:808", {}, "64:ff9b:1::808:808"),
    ("64:ff9b::1:808:808", {}, "64:ff9b::1:808:808"),
    # A hop that cannot be read: what is left of it is nobody's word.
    (PROXY, {XFF: ""}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1, "}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1,, 10.9.9.9"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1, unknown"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1, unix:, 10.9.9.9"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1.5"}, UNKNOWN),
    (PROXY, {XFF: "198.051.100.001"}, UNKNOWN),
    (PROXY, {XFF: "0x7f.1"}, UNKNOWN),
    (PROXY, {XFF: "2130706433"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1:port"}, UNKNOWN),
    (PROXY, {XFF: "[2001:db8::1"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1/24"}, UNKNOWN),
    (PROXY, {XFF: "\u00b9.1.1.1"}, UNKNOWN),
    (PROXY, {XFF: "garbage, 198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "198.51.100.1, " * 700 + "198.51.100.1"}, UNKNOWN),
    # RFC 7239.
    (PROXY, {FWD: "for=198.51.100.1"}, "198.51.100.1"),
    (PROXY, {FWD: "For=198.51.100.1;proto=https;by=10.0.0.1"}, "198.51.100.1"),
    (PROXY, {FWD: 'by=_a ; for="198.51.100.1:4711" ; host="a,b;for=1.1.1.1"'}, "198.51.100.1"),
    (PROXY, {FWD: 'for="[2001:db8::1]:4711"'}, "2001:db8::1"),
    (PROXY, {FWD: 'for="[2001:db8::1]:_hidden"'}, "2001:db8::1"),
    (PROXY, {FWD: "for=203.0.113.66, for=198.51.100.1, for=10.9.9.9"}, "198.51.100.1"),
    (PROXY, {FWD: 'for=198.51.100.1;host="a\\", for=1.1.1.1"'}, "198.51.100.1"),
    (PROXY, {FWD: "for=198.51.100.1, for=_hidden"}, UNKNOWN),
    (PROXY, {FWD: "for=198.51.100.1, for=unknown"}, UNKNOWN),
    (PROXY, {FWD: "for=198.51.100.1, proto=https"}, UNKNOWN),
    (PROXY, {FWD: "for=198.51.100.1, "}, UNKNOWN),
    (PROXY, {FWD: "for=1.1.1.1;for=198.51.100.1"}, UNKNOWN),
    (PROXY, {FWD: 'for="1.1.1.1, for=198.51.100.1'}, UNKNOWN),
    (PROXY, {FWD: "for = 198.51.100.1"}, UNKNOWN),
    (PROXY, {FWD: "198.51.100.1"}, UNKNOWN),
    (PROXY, {FWD: ""}, UNKNOWN),
    # Both: they have to agree, for the proxy may have written only one of them.
    (PROXY, {XFF: "198.51.100.1", FWD: "for=198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "::ffff:198.51.100.1", FWD: "for=198.51.100.1"}, "198.51.100.1"),
    (PROXY, {XFF: "198.51.100.1", FWD: "for=203.0.113.66"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1", FWD: "for=10.0.0.7"}, UNKNOWN),
    (PROXY, {XFF: "198.51.100.1", FWD: "nonsense"}, UNKNOWN),
    # Whoever has no address.
    (None, {}, UNKNOWN),
    (None, {XFF: "198.51.100.1"}, UNKNOWN),
    ("testclient", {}, UNKNOWN),
    ("testclient", {XFF: "198.51.100.1"}, UNKNOWN),
]


@pytest.mark.parametrize(("peer", "headers", "client"), CASES, ids=str)
def test_client_is_who_the_proxies_say(peer: str | None, headers: dict[str, str], client: str | None) -> None:
    """In both worlds alike."""
    expected = None if client is None else ipaddress.ip_address(client)

    assert request_with(peer, headers).client == expected
    if all(value.isascii() for value in headers.values()):
        environ = environ_of(Ask(peer=peer, headers=headers))
        assert WsgiRequest(environ, proxies_of(PROXIES)).client == expected


def test_field_that_the_proxies_write_is_the_only_one_where_it_is_named() -> None:
    """The other one, which a client may write, changes nothing."""
    headers = {XFF: "198.51.100.1", FWD: "for=203.0.113.66"}

    clients = [
        str(request_with(PROXY, headers, TrustedProxies(*PROXIES, header=header)).client)
        for header in (XFF, FWD)  # type: ignore[arg-type]
    ]

    assert clients == ["198.51.100.1", "203.0.113.66"]


def test_unix_sockets_can_be_trusted() -> None:
    """A proxy on the same machine may have no address, and a stranger then has one."""
    headers = {XFF: "198.51.100.1"}

    assert str(request_with(None, headers, "unix").client) == "198.51.100.1"
    assert str(request_with("192.0.2.7", headers, "unix").client) == "192.0.2.7"
    assert request_with(None, {}, "unix").client is None


@pytest.mark.parametrize("name", ["x-tenant", "X-Tenant"])
def test_header_is_found_however_its_name_is_written(name: str) -> None:
    """In both worlds; a content type too, which WSGI keeps elsewhere."""
    ask = Ask(headers={"x-tenant": "a", "content-type": "text/plain"})
    environ = environ_of(ask) | {"CONTENT_TYPE": "text/plain"}

    for request in (AsgiRequest(http_scope(ask), proxies_of(())), WsgiRequest(environ, proxies_of(()))):
        assert request.header(name) == "a"
        assert request.header("Content-Type") == "text/plain"
        assert request.header("x-other") is None


def test_several_lines_are_one_list() -> None:
    """A proxy may add a line of its own: what is last counts."""
    scope = http_scope(Ask(peer=PROXY))
    scope["headers"] = [(b"x-forwarded-for", b"203.0.113.66"), (b"x-forwarded-for", b"198.51.100.1")]

    assert str(AsgiRequest(scope, proxies_of(PROXIES)).client) == "198.51.100.1"


@pytest.mark.parametrize(
    "trusted", [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_address(PROXY), {PROXY}]
)
def test_networks_may_be_objects(trusted: Any) -> None:
    """Of the standard library, alone or several."""
    assert str(request_with(PROXY, {XFF: "198.51.100.1"}, trusted).client) == "198.51.100.1"


@pytest.mark.parametrize("network", ["::ffff:10.0.0.0/104", "64:ff9b::/96", "64:ff9b::808:808"])
def test_networks_of_ipv4_are_named_as_such(network: str) -> None:
    """Inside IPv6 they would match nobody: such clients are known by their IPv4 address."""
    with pytest.raises(ValueError, match="trusted must name IPv4 networks as such, not inside IPv6"):
        TrustedProxies(network)


def test_unknown_field_is_refused() -> None:
    """Only two fields are understood."""
    with pytest.raises(ValueError, match="header must be one of 'x-forwarded-for', 'forwarded'"):
        TrustedProxies("10.0.0.0/8", header="x-real-ip")  # type: ignore[arg-type]


@given(st.text(max_size=200), st.sampled_from([XFF, FWD]))
def test_garbage_never_raises_and_never_poses_as_somebody(text: str, name: str) -> None:
    """Whatever stands left of what the proxy wrote, the client is who the proxy says, or nobody."""
    seen = f"{text}, 198.51.100.1" if name == XFF else f"{text}, for=198.51.100.1"

    client = proxies_of(PROXIES).client(PROXY, {name: seen}.get)

    assert client in {"198.51.100.1", None}


@given(st.text(alphabet='for=";,\\ \t1.[]:', max_size=400))
def test_field_of_hostile_shape_never_raises(text: str) -> None:
    """Quotes, escapes and separators in any order."""
    proxies_of(PROXIES).client(PROXY, {FWD: text}.get)


@pytest.mark.parametrize(
    "value",
    ['"' * 100_000, "for=" * 25_000, "\\" * 100_000, 'for="' + "\\a" * 50_000, "," * 100_000, " " * 100_000],
)
@pytest.mark.parametrize("name", [XFF, FWD])
def test_long_fields_take_time_in_proportion_and_no_more_than_what_is_read_at_most(
    name: str, value: str
) -> None:
    """Eight times the text takes some eight times as long, not 64 times; from 4 kB on it is not read."""
    proxies = proxies_of(PROXIES)

    def seconds(length: int) -> float:
        read = functools.partial(proxies.client, PROXY, {name: value[:length]}.get)
        return min(timeit.repeat(read, number=3, repeat=7))

    unit = max(seconds(512), 20e-6)  # less is the noise of the clock
    assert seconds(4_096) < 24 * unit
    assert seconds(100_000) < unit


class TestKeys:
    def test_addresses_of_one_network_are_one_client(self) -> None:
        """IPv6 by /64, IPv4 by address, mapped and translated or not."""
        by_address = client_address()

        def key(peer: str) -> str | None:
            return by_address(request_with(peer, {}, ()))

        assert key("2001:db8:0:1::1") == key("2001:db8:0:1:ffff::2") == "2001:db8:0:1::/64"
        assert key("2001:db8:0:2::1") != key("2001:db8:0:1::1")
        assert key("192.0.2.1") == key("::ffff:192.0.2.1") == "192.0.2.1"
        assert key("192.0.2.1") != key("192.0.2.2")
        assert key("64:ff9b::808:808") == key("8.8.8.8") != key("64:ff9b::808:809")
        assert key("64:ff9b::a00:1") == key("64:ff9b::a00:2") == "64:ff9b::/64"

    def test_prefix_can_be_chosen(self) -> None:
        """128 bits tell every address apart."""
        assert (
            client_address(ipv6_prefix=56)(request_with("2001:db8:0:1ff::1", {}, ())) == "2001:db8:0:100::/56"
        )
        assert client_address(ipv6_prefix=128)(request_with("2001:db8::1", {}, ())) == "2001:db8::1/128"

    @pytest.mark.parametrize("peer", [None, "", "testclient", "x" * 1_000])
    def test_unknown_clients_share_a_key(self, peer: str | None) -> None:
        """Nobody gets a limit of his own by having no address."""
        assert client_address()(request_with(peer, {}, ())) == "unknown"

    def test_address_key_may_have_proxies_of_its_own(self) -> None:
        """Where no middleware has declared any."""
        request = request_with(PROXY, {XFF: "198.51.100.1"}, ())

        assert client_address()(request) == PROXY
        assert client_address(trusted="10.0.0.0/8")(request) == "198.51.100.1"
        assert client_address(trusted=["10.0.0.0/8"])(request) == "198.51.100.1"

    def test_secrets_are_digested(self) -> None:
        """The same secret makes the same key, another one another, and it cannot be read from it."""
        by_key = api_key("Authorization")
        keys = [
            by_key(request_with(PROXY, {"authorization": value}))
            for value in ("Bearer a", "Bearer b", "Bearer a")
        ]

        assert keys[0] == keys[2] != keys[1]
        assert "Bearer" not in str(keys[0])
        assert str(keys[0]).startswith("key:")

    def test_missing_secret_is_no_way_out(self) -> None:
        """Without one the address counts, unless the developer says otherwise."""
        request = request_with("192.0.2.1", {}, ())

        assert api_key()(request) == "192.0.2.1"
        assert user()(request) == "192.0.2.1"
        assert api_key(otherwise=None)(request) is None
        assert api_key()(request_with("192.0.2.1", {"x-api-key": ""}, ())) == "192.0.2.1"

    def test_key_and_user_of_the_same_text_are_two(self) -> None:
        """No kind of key can pose as another."""
        request = request_with("192.0.2.1", {"x-api-key": "ada"}, ())

        assert api_key()(request) != user(lambda _: "ada")(request)

    def test_user_is_found_by_what_frameworks_call_it(self) -> None:
        """Starlette's identity, else Django's primary key; zero is a user too."""

        class Django:
            is_authenticated = True
            pk = 0

        class Nameless:
            is_authenticated = True

            @property
            def identity(self) -> str:
                raise NotImplementedError  # as Starlette's base class does

        def key(who: object) -> str | None:
            scope = http_scope(Ask(peer="192.0.2.1")) | {"user": who}
            return user()(AsgiRequest(scope, proxies_of(())))

        assert str(key(Django())).startswith("user:")
        assert key(Django()) == key("0")
        assert key(Nameless()) == "192.0.2.1"

    def test_route_is_the_template_where_there_is_one(self) -> None:
        """In a middleware there is none yet, and the path counts."""

        class Route:
            path = "/items/{id}"

        scope = http_scope(Ask("/items/5", method="PUT"))
        proxies = proxies_of(())

        assert route()(AsgiRequest(scope, proxies)) == "PUT /items/5"
        assert route()(AsgiRequest(scope | {"route": Route()}, proxies)) == "PUT /items/{id}"
        assert route()(WsgiRequest(environ_of(Ask("/items/5", method="PUT")), proxies)) == "PUT /items/5"

    @given(*[st.lists(st.text(alphabet="a1,:", max_size=4), min_size=2, max_size=2)] * 2)
    @example(["a,1:b", "c"], ["a", "b,1:c"])
    @example(["a", "a,a"], ["a,a", "a"])
    def test_combined_keys_are_the_same_only_if_all_parts_are(self, one: list[str], other: list[str]) -> None:
        """Whatever the parts are made of, their own separators too."""
        request = request_with(PROXY, {})

        def key(parts: list[str]) -> str | None:
            return combined(*(lambda _, part=part: part for part in parts))(request)

        assert (key(one) == key(other)) == (one == other)

    def test_combined_key_with_an_exception_is_one(self) -> None:
        """One part that lifts the limit lifts it."""
        assert combined(client_address(), api_key(otherwise=None))(request_with(PROXY, {})) is None

    @pytest.mark.parametrize("make", [client_address, api_key, user, route, combined])
    def test_what_makes_a_key_function_is_none(self, make: Any) -> None:
        """The call that was forgotten is noticed before the first request."""
        with pytest.raises(TypeError, match=rf"key must be a key function: write {make.__name__}\("):
            key_function("key", make)

    @pytest.mark.parametrize("name", ["x-api-key", "X_Key", "x!#$%&'*+.^`|~1"])
    def test_any_name_of_a_field_will_do(self, name: str) -> None:
        """All that RFC 9110 calls a token."""
        request = request_with(PROXY, {name.lower(): "secret"})

        assert str(api_key(name)(request)).startswith("key:")

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: client_address(ipv6_prefix=0), ValueError, "ipv6_prefix must be at least 1"),
            (lambda: client_address(ipv6_prefix=129), ValueError, "ipv6_prefix must be at most 128, got 129"),
            (lambda: client_address(ipv6_prefix="64"), TypeError, "ipv6_prefix must be a whole number"),  # type: ignore[arg-type]
            (lambda: api_key(""), ValueError, "header must not be empty"),
            (lambda: api_key("schl\u00fcssel"), ValueError, "header must be the name of a header field, got"),
            (lambda: api_key("x\r\ny"), ValueError, "header must be the name of a header field, got"),
            (lambda: api_key("x-api-key "), ValueError, "header must be the name of a header field, got"),
            (lambda: api_key("x-api-key\n"), ValueError, "header must be the name of a header field, got"),
            (
                lambda: api_key(otherwise=client_address),
                TypeError,
                r"otherwise .*: write client_address\(...\)",
            ),  # type: ignore[arg-type]
            (
                lambda: combined(user(), route),
                TypeError,
                r"keys must be a key function: write route\(...\), got",
            ),  # type: ignore[arg-type]
            (lambda: api_key(otherwise="x"), TypeError, "otherwise must be callable"),  # type: ignore[arg-type]
            (lambda: user("ada"), TypeError, "find must be callable"),  # type: ignore[arg-type]
            (combined, ValueError, "keys must be at least one key function"),
            (lambda: combined(5), TypeError, "keys must be callable, got 5"),  # type: ignore[arg-type]
        ],
    )
    def test_bad_arguments_are_refused_by_name(self, make: Any, error: type[Exception], message: str) -> None:
        """The message tells parameter, rule and value."""
        with pytest.raises(error, match=message):
            make()


@given(st.ip_addresses().filter(lambda address: address not in ipaddress.ip_network("64:ff9b::/96")))
def test_every_address_reads_as_itself(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Bare and with a port; a mapped one is the IPv4 address. Translated ones stand among the cases above."""
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    expected = getattr(address, "ipv4_mapped", None) or address

    assert address_of(str(address)) == address_of(f"{bracketed}:80") == expected
