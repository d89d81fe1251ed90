"""Endpoints that answer well, badly, slowly, endlessly or not at all; and what they say of themselves."""

from __future__ import annotations

import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from tests.health.checks.servers import Answering, Certificates, request_of
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy

from resilient.health import Finding, Status
from resilient.health.checks import HTTPEndpoint

PATIENT = 20.0


def response(status: str = "200 OK", body: str | bytes = "", **headers: str) -> bytes:
    """Return an answer."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def told(data: object, status: str = "200 OK", kind: str = "application/health+json") -> bytes:
    """Return an answer in JSON."""
    return response(status, json.dumps(data), Content_Type=kind)


class Endpoint(Answering):
    """Answers each request with *answer*, and keeps the requests."""

    def __init__(self, answer: bytes, certificate: Path | None = None) -> None:
        super().__init__(self._reply, certificate=certificate)
        self.requests: list[bytes] = []
        self._bytes = answer

    def _reply(self, conn: socket.socket) -> None:
        self.requests.append(request_of(conn))
        conn.sendall(self._bytes)

    def check(self, **options: Any) -> Finding:
        options.setdefault("timeout", PATIENT)
        options.setdefault("slow_after", None)
        scheme, path = options.pop("scheme", "http"), options.pop("path", "/health")
        return HTTPEndpoint(f"{scheme}://127.0.0.1:{self.port}{path}", **options)()


def check(answer: bytes, **options: Any) -> Finding:
    """Check an endpoint that answers so."""
    with Endpoint(answer) as endpoint:
        finding = endpoint.check(**options)
        assert endpoint.connections == 1, "nothing is tried twice"
        return finding


class TestStatus:
    """What counts as well."""

    @pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299 Whatever"])
    def test_well(self, status: str) -> None:
        """Anything from 200 to 299, unless it is told otherwise."""
        finding = check(response(status))
        assert (finding.status, finding.output, finding.unit) == (Status.PASS, "", "s")
        assert finding.facts == {"http_status": int(status[:3])}

    @pytest.mark.parametrize(
        ("status", "output"),
        [
            ("500 Internal Server Error", "it answers 500 Internal Server Error"),
            ("404 Not Found", "it answers 404 Not Found"),
            ("599 Odd", "it answers 599"),
        ],
    )
    def test_not_well(self, status: str, output: str) -> None:
        """Anything else."""
        finding = check(response(status))
        assert (finding.status, finding.output) == (Status.FAIL, output)

    @pytest.mark.parametrize(
        ("well", "status", "expected"),
        [
            (404, "404 Not Found", Status.PASS),
            (404, "200 OK", Status.FAIL),
            ((200, 301), "301 Moved Permanently", Status.PASS),
            (range(200, 500), "404 Not Found", Status.PASS),
        ],
    )
    def test_other_statuses(self, well: Any, status: str, expected: Status) -> None:
        """As they are given."""
        assert check(response(status), status=well).status is expected

    def test_redirects_are_not_followed(self) -> None:
        """They would lead to a login page that answers 200; the target has no secrets when it is told."""
        finding = check(response("302 Found", Location="https://login/?token=Zq7&next=x"))
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "it answers 302 Found, to https://login/?token=***&next=x",
        )

    def test_body_that_must_contain_something(self) -> None:
        """A page of errors may be a 200, too."""
        assert check(response(body="all is well"), contains="well").status is Status.PASS
        finding = check(response(body="<h1>Sorry</h1>"), contains="well")
        assert (finding.status, finding.output) == (Status.FAIL, "its answer does not contain 'well'")

    def test_slow_answer_warns(self) -> None:
        """It answers, and somebody should look at it."""
        finding = check(response(), slow_after=1e-9)
        assert finding.status is Status.WARN
        assert finding.output.startswith("it answered after ")


class TestPermission:
    """E7: `AccessDenied`, which was tried again and again."""

    def test_reason_in_xml(self) -> None:
        """As cloud storage answers."""
        body = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        finding = check(response("403 Forbidden", body, Content_Type="application/xml"))
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "it refuses permission: 403 Forbidden, AccessDenied: Access Denied",
        )
        assert finding.facts == {"http_status": 403, "permission": False}

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ({"error": {"code": "AccessDenied", "message": "not yours"}}, "AccessDenied: not yours"),
            ({"code": "AccessDeniedException", "message": "no"}, "AccessDeniedException: no"),
            ({"title": "Forbidden", "detail": "ask ops"}, "Forbidden: ask ops"),
            ({"error": "access_denied", "error_description": "expired"}, "access_denied: expired"),
        ],
    )
    def test_reason_in_json(self, said: object, why: str) -> None:
        """As other APIs do."""
        finding = check(told(said, "401 Unauthorized", "application/json; charset=utf-8"))
        assert finding.output == f"it refuses permission: 401 Unauthorized, {why}"

    def test_reason_has_no_secrets(self) -> None:
        """Some tell what they were given."""
        said = {"message": f"bad credentials: token=Zq7 {'x' * 500}"}
        finding = check(told(said, "401 Unauthorized", "application/problem+json"))
        assert "Zq7" not in finding.output
        assert len(finding.output) < 300

    def test_no_reason(self) -> None:
        """The status alone, then."""
        assert check(response("403 Forbidden")).output == "it refuses permission: 403 Forbidden"


class TestHealthOfOthers:
    """What a service says of itself is passed on."""

    @pytest.mark.parametrize(
        ("word", "status"),
        [
            ("pass", Status.PASS),
            ("UP", Status.PASS),
            ("ok", Status.PASS),
            ("warn", Status.WARN),
            ("fail", Status.FAIL),
            ("DOWN", Status.FAIL),
            ("maintenance", Status.PASS),
            (200, Status.PASS),
        ],
    )
    def test_status(self, word: object, status: Status) -> None:
        """By the words of `application/health+json` and of Spring; others say nothing to us."""
        assert check(told({"status": word})).status is status

    def test_reason_and_version(self) -> None:
        """They are told, without secrets."""
        finding = check(told({"status": "warn", "output": "disk\nfull, password=Zq7", "version": "1.4.2"}))
        assert finding.output == "it says it warns: disk full, password=***"
        assert finding.facts["version"] == "1.4.2"

    def test_failure_with_503(self) -> None:
        """The status of the answer counts first."""
        finding = check(told({"status": "fail", "output": "no database"}, "503 Service Unavailable"))
        assert (finding.status, finding.output) == (
            Status.FAIL,
            "it answers 503 Service Unavailable: no database",
        )

    @pytest.mark.parametrize(
        "body", ["", "{", "[1]", '"fail"', "null", "[" * 50_000, '{"status": {}}', "\x00"]
    )
    def test_strange_json(self, body: str) -> None:
        """What cannot be understood says nothing."""
        assert check(response(body=body, Content_Type="application/json")).status is Status.PASS

    def test_other_kinds_are_not_read(self) -> None:
        """A text that looks like it is a text."""
        assert check(response(body='{"status": "fail"}', Content_Type="text/plain")).status is Status.PASS


class TestTransport:
    """Servers that do not behave."""

    def test_refused(self) -> None:
        """Nobody listens."""
        port = free_port()
        finding = HTTPEndpoint(f"http://127.0.0.1:{port}", timeout=PATIENT)()
        assert finding.status is Status.FAIL
        assert finding.output.startswith(f"no answer from 127.0.0.1:{port}: ConnectionRefusedError")

    def test_black_hole(self) -> None:
        """Nobody accepts."""
        with TcpProxy(1) as proxy, proxy.deaf():
            finding = HTTPEndpoint(f"http://127.0.0.1:{proxy.port}", timeout=0.1)()
        assert finding.output == f"no answer from 127.0.0.1:{proxy.port} within 0.1 s"

    @pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
    def test_dripping(self, beginning: bytes) -> None:
        """Each byte comes in time; all of them never do. Nothing, in a header, in the body."""

        def drip(conn: socket.socket) -> None:
            request_of(conn)
            conn.sendall(beginning)
            while not server.over.wait(0.02):
                conn.sendall(b"x" if beginning else b"")

        with Answering(drip) as server:
            begun = time.monotonic()
            finding = HTTPEndpoint(f"http://127.0.0.1:{server.port}", timeout=0.3)()
            assert time.monotonic() - begun < 5.0
        assert (finding.status, finding.output) == (
            Status.FAIL,
            f"no answer from 127.0.0.1:{server.port} within 0.3 s",
        )

    def test_endless_body(self) -> None:
        """No more than 64 KB of it are read."""

        def pour(conn: socket.socket) -> None:
            request_of(conn)
            conn.sendall(b"HTTP/1.1 200 OK\r\n\r\nwell")
            while not server.over.is_set():
                conn.sendall(b"x" * 65_536)

        with Answering(pour) as server:
            finding = HTTPEndpoint(
                f"http://127.0.0.1:{server.port}", contains="well", timeout=PATIENT, slow_after=None
            )()
        assert finding.status is Status.PASS

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        ],
    )
    def test_no_http(self, answer: bytes) -> None:
        """Somebody else listens."""
        finding = check(answer)
        assert finding.status is Status.FAIL
        assert "no answer from" in finding.output

    def test_cut_off(self) -> None:
        """Less than it announced is read as what it is."""
        finding = check(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly", contains="lots")
        assert finding.status is Status.FAIL

    def test_bad_header_is_told(self) -> None:
        """The client refuses to send it."""
        finding = check_unasked(headers={"X-Key": "a\r\nb"})
        assert finding.status is Status.FAIL
        assert "ValueError" in finding.output


def check_unasked(**options: Any) -> Finding:
    """Check an endpoint that is connected to, and not asked."""
    with Answering() as server:
        return HTTPEndpoint(f"http://127.0.0.1:{server.port}", timeout=PATIENT, **options)()


class TestTLS:
    """HTTPS, trusted and not."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Certificates:
        """Certificates of all kinds."""
        return Certificates(tmp_path)

    def test_trusted(self, made: Certificates) -> None:
        """By a context of the user's."""
        context = ssl.create_default_context(cafile=made.path("ca"))
        with Endpoint(response(), certificate=made.path("good")) as endpoint:
            assert endpoint.check(scheme="https", context=context).status is Status.PASS

    def test_not_trusted(self, made: Certificates) -> None:
        """It says why."""
        with Endpoint(response(), certificate=made.path("selfsigned")) as endpoint:
            finding = endpoint.check(scheme="https")
        assert finding.status is Status.FAIL
        assert "SSLCertVerificationError" in finding.output

    def test_handshake_that_does_not_come(self) -> None:
        """It costs the timeout."""
        with Answering(lambda _: server.over.wait(20.0)) as server:
            finding = HTTPEndpoint(f"https://127.0.0.1:{server.port}", timeout=0.1)()
        assert finding.output.endswith("within 0.1 s")


class TestRequest:
    """What is sent."""

    def request(self, **options: Any) -> str:
        with Endpoint(response()) as endpoint:
            endpoint.check(**options)
            return endpoint.requests[0].decode()

    def test_as_it_is(self) -> None:
        """One request, and then the connection is closed."""
        request = self.request(path="/health?full=1")
        assert request.startswith("GET /health?full=1 HTTP/1.1\r\n")
        assert request.count("\r\nHost: 127.0.0.1:") == 1
        assert "\r\nConnection: close\r\n" in request
        assert "\r\nAccept: application/health+json" in request

    def test_root_and_head(self) -> None:
        """Without a path it is the root."""
        assert self.request(path="", method="HEAD").startswith("HEAD / HTTP/1.1\r\n")

    def test_headers_of_the_user(self) -> None:
        """They replace those there are."""
        request = self.request(headers={"accept": "text/plain", "X-Key": "Zq7"})
        assert "\r\naccept: text/plain\r\n" in request
        assert "health+json" not in request
        assert "\r\nX-Key: Zq7\r\n" in request

    def test_credentials_in_the_url(self) -> None:
        """They are sent, and never shown."""
        with Endpoint(response()) as endpoint:
            url = f"http://shop:Zq7%40@127.0.0.1:{endpoint.port}/health?key=Zq7"
            check = HTTPEndpoint(url, timeout=PATIENT)
            check()
            assert b"\r\nAuthorization: Basic c2hvcDpacTdA\r\n" in endpoint.requests[0]
        assert (
            repr(check)
            == f"<HTTPEndpoint 'http:127.0.0.1:{endpoint.port}' of http://127.0.0.1:{endpoint.port}/health>"
        )


class TestArguments:
    """What is refused, when it is made, without secrets."""

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("ftp://shop:Zq7@x/", "must begin with http:// or https:// and have a host, got 'ftp://shop:"),
            ("http://", "must begin with http"),
            ("http://x:99999/", "must be a URL: Port out of range"),
            ("http://x/ä", "must be encoded"),
            ("http://x/a b", "must be encoded"),
            ("http://[::1/", "must be a URL"),
        ],
    )
    def test_url(self, url: str, message: str) -> None:
        """Only web addresses, encoded."""
        with pytest.raises(ValueError, match="url") as refusal:
            HTTPEndpoint(url)
        assert message in str(refusal.value)
        assert "Zq7" not in str(refusal.value)

    def test_ipv6(self) -> None:
        """In brackets."""
        assert HTTPEndpoint("http://[::1]:8080/x").name == "http:[::1]:8080"

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"method": "POST"}, ValueError, "method must be one of 'GET', 'HEAD'"),
            ({"status": "200"}, TypeError, "status must be"),
            ({"status": True}, TypeError, "status must be a status or several, got True"),
            ({"status": [20]}, ValueError, "status must be at least 100, got 20"),
            ({"headers": {"X": 1}}, TypeError, "headers must be a mapping of text to text"),
            ({"contains": "x", "method": "HEAD"}, ValueError, "contains needs an answer with a body"),
            ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ],
    )
    def test_settings(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        """By name."""
        with pytest.raises(error, match=message):
            HTTPEndpoint("http://x/", **options)
