"""Ports that are open, closed or black holes; names; certificates that are good, ending, or distrusted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.health.checks.servers import Answering, Certificates
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

from resilient.health import Finding, Status
from resilient.health.checks import DNSName, TCPPort, TLSCertificate
from resilient.health.checks.certificates import expiry_of

PATIENT = 20.0
BRIEF = 0.1
ENDS = datetime(2120, 1, 1, tzinfo=UTC).timestamp()
DAY = 86_400.0

Addresses = list[tuple[Any, ...]]


def named(*addresses: str) -> Callable[..., Addresses]:
    """Return a resolver that knows these addresses only, and any port."""

    def getaddrinfo(_host: str, port: int | None, **_options: object) -> Addresses:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port or 0)) for one in addresses]

    return getaddrinfo


class TestTCPPort:
    """Whether somebody accepts."""

    def test_open(self) -> None:
        """It passes with the time it took, and closes what it opened."""
        closed: list[bytes] = []
        with Answering(lambda conn: closed.append(conn.recv(1))) as server:
            finding = TCPPort("127.0.0.1", server.port, timeout=PATIENT)()
            wait_until(lambda: bool(closed), "the server sees it")
        assert (finding.status, finding.output, finding.unit) == (Status.PASS, "", "s")
        assert finding.value is not None
        assert finding.value >= 0.0
        assert closed == [b""]

    def test_refused(self) -> None:
        """Where nobody listens."""
        port = free_port()
        finding = TCPPort("127.0.0.1", port, timeout=PATIENT)()
        assert finding.status is Status.FAIL
        assert finding.output.startswith(f"127.0.0.1:{port} cannot be reached: ConnectionRefusedError")

    def test_black_hole(self) -> None:
        """A firewall that drops packets costs the timeout, and no more."""
        with TcpProxy(1) as proxy, proxy.deaf():
            begun = time.monotonic()
            finding = TCPPort("127.0.0.1", proxy.port, timeout=BRIEF)()
            assert time.monotonic() - begun < 5.0
        assert (finding.status, finding.output) == (
            Status.FAIL,
            f"127.0.0.1:{proxy.port} does not answer within 0.1 s",
        )

    def test_addresses_share_the_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten addresses that do not answer take as long as one."""
        with TcpProxy(1) as proxy, proxy.deaf():
            monkeypatch.setattr(socket, "getaddrinfo", named(*["127.0.0.1"] * 100))
            begun = time.monotonic()
            finding = TCPPort("many", proxy.port, timeout=BRIEF)()
            assert time.monotonic() - begun < 5.0
        assert "does not answer within" in finding.output

    def test_next_address_is_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where the first one is IPv6, and nobody listens there."""
        with Answering() as server:
            monkeypatch.setattr(socket, "getaddrinfo", named("127.0.0.99", "127.0.0.1"))
            assert TCPPort("two", server.port, timeout=PATIENT)().status is Status.PASS

    @pytest.mark.parametrize("host", ["no.such.name.invalid", "a" * 70, "a..b"])
    def test_no_such_host(self, host: str) -> None:
        """Names that nobody has, and that nobody could have."""
        finding = TCPPort(host, 80, timeout=PATIENT)()
        assert finding.status is Status.FAIL
        assert "cannot be reached" in finding.output

    def test_host_without_an_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A resolver may find nothing, and not say so."""
        monkeypatch.setattr(socket, "getaddrinfo", named())
        assert "nothing has no address" in TCPPort("nothing", 80)().output

    @pytest.mark.parametrize(
        ("port", "error", "message"),
        [
            (0, ValueError, "port must be at least 1, got 0"),
            (65_536, ValueError, "port must be at most 65535, got 65536"),
            ("80", TypeError, "port must be a whole number, got '80'"),
        ],
    )
    def test_bad_port_is_refused(self, port: Any, error: type[Exception], message: str) -> None:
        """When it is made, by name."""
        with pytest.raises(error, match=message):
            TCPPort("x", port)

    def test_name(self) -> None:
        """By what it looks at, or as it is told."""
        assert TCPPort("db", 5432).name == "tcp:db:5432"
        assert repr(TCPPort("db", 5432, name="database port")) == "<TCPPort 'database port' of db:5432>"


class TestDNSName:
    """Whether a name has an address."""

    def test_known(self) -> None:
        """With its addresses."""
        finding = DNSName("127.0.0.1", slow_after=None)()
        assert (finding.status, finding.output) == (Status.PASS, "")
        assert finding.facts["addresses"] == "127.0.0.1"

    @pytest.mark.parametrize("host", ["no.such.name.invalid", "a" * 70])
    def test_unknown(self, host: str) -> None:
        """Nobody has it."""
        finding = DNSName(host)()
        assert finding.status is Status.FAIL
        assert finding.output.startswith(f"{host} is not known: ")

    def test_expected_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Among others."""
        monkeypatch.setattr(socket, "getaddrinfo", named("10.0.0.2", "10.0.0.1"))
        assert DNSName("db", "10.0.0.1", slow_after=None)().status is Status.PASS
        assert DNSName("db", ["10.0.0.1", "10.0.0.2"], slow_after=None)().status is Status.PASS

    def test_expected_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name leads elsewhere."""
        monkeypatch.setattr(socket, "getaddrinfo", named("10.0.0.2"))
        finding = DNSName("db", "10.0.0.1")()
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "db is 10.0.0.2, and should be 10.0.0.1",
        )

    def test_slow_one_warns(self) -> None:
        """A resolver that takes its time is about to fail."""
        finding = DNSName("127.0.0.1", slow_after=1e-9)()
        assert finding.status is Status.WARN

    def test_name(self) -> None:
        """By what it looks up."""
        assert repr(DNSName("db")) == "<DNSName 'dns:db' of db>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of all kinds."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def certificate(server: Answering, cafile: Path | None, **options: Any) -> Finding:
    options.setdefault("timeout", PATIENT)
    options["cafile"] = None if cafile is None else str(cafile)
    return TLSCertificate(options.pop("host", "127.0.0.1"), server.port, **options)()


class TestTLSCertificate:
    """For how long it is good, and whether it is trusted."""

    @pytest.mark.parametrize(
        ("days", "status"),
        [(22, Status.PASS), (21, Status.WARN), (4, Status.WARN), (3, Status.FAIL), (0.5, Status.FAIL)],
    )
    def test_days_left(self, made: Certificates, days: float, status: Status) -> None:
        """It warns 21 days before the end, and fails 3 days before."""
        with Answering(certificate=made.path("good")) as server:
            finding = certificate(server, made.path("ca"), clock=lambda: ENDS - days * DAY)
        assert finding.status is status
        assert finding.output == f"it ends in {int(days)} days, 2120-01-01 00:00 UTC"
        assert (finding.value, finding.unit) == (days, "days")
        assert finding.facts == {"ends": "2120-01-01T00:00:00+00:00", "trusted": True}

    def test_ended_by_this_clock(self, made: Certificates) -> None:
        """A second too late is too late."""
        with Answering(certificate=made.path("good")) as server:
            finding = certificate(server, made.path("ca"), clock=lambda: ENDS + 1.0)
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "it ended 1 day ago, 2120-01-01 00:00 UTC",
        )

    def test_expired(self, made: Certificates) -> None:
        """Clients refuse it, and it is told since when."""
        now = datetime(2020, 6, 17, 12, tzinfo=UTC).timestamp()
        with Answering(certificate=made.path("expired")) as server:
            finding = certificate(server, made.path("ca"), clock=lambda: now)
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "clients do not trust it: certificate has expired; it ended 2 days ago, 2020-06-15 12:00 UTC",
        )
        assert finding.facts["trusted"] is False

    def test_self_signed(self, made: Certificates) -> None:
        """Not trusted, and its end is told nevertheless."""
        with Answering(certificate=made.path("selfsigned")) as server:
            finding = certificate(server, made.path("ca"))
        assert finding.status is Status.FAIL
        assert finding.output.startswith("clients do not trust it: self")
        assert finding.output.endswith(", 2121-01-01 00:00 UTC")
        assert server.connections == 2

    def test_self_signed_and_trusted(self, made: Certificates) -> None:
        """By who says so."""
        with Answering(certificate=made.path("selfsigned")) as server:
            assert certificate(server, made.path("selfsigned")).status is Status.PASS

    def test_unknown_authority(self, made: Certificates) -> None:
        """The system does not know ours."""
        with Answering(certificate=made.path("good")) as server:
            finding = certificate(server, None)
        assert finding.status is Status.FAIL
        assert "unable to get local issuer certificate" in finding.output

    def test_for_another_name(self, made: Certificates) -> None:
        """It is good, and for somebody else."""
        with Answering(certificate=made.path("good")) as server:
            finding = certificate(server, made.path("ca"), host="localhost")
        assert finding.status is Status.FAIL
        assert finding.output.startswith("clients do not trust it: Hostname mismatch")

    def test_no_tls_on_the_port(self, made: Certificates) -> None:
        """Somebody says hello in plain text."""
        with Answering(lambda conn: conn.sendall(b"220 mail.example.com ESMTP\r\n")) as server:
            finding = certificate(server, made.path("ca"))
        assert finding.status is Status.FAIL
        assert finding.output.startswith("no handshake: SSLError")

    def test_nobody_says_anything(self, made: Certificates) -> None:
        """The port is open, and there it ends: it costs the timeout."""
        with Answering(lambda _: server.over.wait(20.0)) as server:
            begun = time.monotonic()
            finding = certificate(server, made.path("ca"), timeout=BRIEF)
            assert time.monotonic() - begun < 5.0
        assert finding.status is Status.FAIL
        assert finding.output == f"127.0.0.1:{server.port} does not answer within 0.1 s"

    def test_handshake_in_small_pieces(self, made: Certificates) -> None:
        """Each of them comes in time; all of them do not."""

        def drip(conn: socket.socket) -> None:
            conn.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KB, which comes very slowly
            while not server.over.wait(0.02):
                conn.sendall(b"\x02")

        with Answering(drip) as server:
            begun = time.monotonic()
            finding = certificate(server, made.path("ca"), timeout=0.3)
            assert time.monotonic() - begun < 5.0
        assert (finding.status, finding.output) == (
            Status.FAIL,
            f"127.0.0.1:{server.port} does not answer within 0.3 s",
        )

    def test_black_hole(self) -> None:
        """Nobody accepts."""
        with TcpProxy(1) as proxy, proxy.deaf():
            finding = TLSCertificate("127.0.0.1", proxy.port, timeout=BRIEF)()
        assert "does not answer within 0.1 s" in finding.output

    def test_refused(self) -> None:
        """Nobody listens."""
        finding = TLSCertificate("127.0.0.1", free_port(), timeout=PATIENT)()
        assert (finding.status, "cannot be reached" in finding.output) == (Status.FAIL, True)

    def test_bad_settings_are_refused(self) -> None:
        """When it is made, by name."""
        with pytest.raises(ValueError, match="fail_days must be at most warn_days, which is 3, got 21"):
            TLSCertificate("x", warn_days=3, fail_days=21)
        with pytest.raises(FileNotFoundError):
            TLSCertificate("x", cafile="/no/such/file")

    def test_name(self) -> None:
        """By what it looks at."""
        assert (
            repr(TLSCertificate("shop.example"))
            == "<TLSCertificate 'tls:shop.example:443' of shop.example:443>"
        )


class TestReading:
    """A certificate as it is sent."""

    def test_both_forms_of_time(self, made: Certificates) -> None:
        """Two digits of the year until 2049, and four from then on."""
        assert expiry_of(made.der("expired")) == datetime(2020, 6, 15, 12, tzinfo=UTC)
        assert expiry_of(made.der("good")) == datetime(2120, 1, 1, tzinfo=UTC)

    def test_last_century(self, made: Certificates) -> None:
        """50 and more are 1950 and more."""
        old = made.der("expired").replace(b"200615120000Z", b"990615120000Z")
        assert expiry_of(old) == datetime(1999, 6, 15, 12, tzinfo=UTC)

    @given(st.data())
    def test_anything_else_is_refused(self, made: Certificates, data: st.DataObject) -> None:
        """A server may send what it likes: there is no other error."""
        whole = made.der(data.draw(st.sampled_from(["good", "expired"])))
        cut = whole[: data.draw(st.integers(0, len(whole)))]
        broken = bytearray(cut)
        for at in data.draw(st.lists(st.integers(0, max(0, len(cut) - 1)), max_size=3)):
            if broken:
                broken[at] = data.draw(st.integers(0, 255))
        for some in (bytes(broken), data.draw(st.binary(max_size=200))):
            try:
                assert expiry_of(some).tzinfo is UTC
            except ValueError:
                continue
