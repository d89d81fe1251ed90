"""The command, as a process where that matters: its exit codes, its one line, and its end in time."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from resilient import CircuitBreaker
from resilient.cli import main
from resilient.command.fetching import Fetched
from resilient.command.health import judge
from resilient.health import Health, Report, Result, Status, bearer
from resilient.health.serving.forms import View, chosen
from resilient.health.serving.status_file import StatusFile
from tests.support.ports import free_port

LONGEST = 20.0  # seconds that a process of ours may take on a busy machine, beyond what it is told
TOKEN = "correct-horse-battery"


class Scripted:
    """A server that answers each request with what the test says, or with silence."""

    def __init__(self, answer: bytes | Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.netloc = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def url(self, path: str = "/readyz") -> str:
        return f"http://{self.netloc}{path}"

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                conn, _ = self._socket.accept()
                self._connections.append(conn)
                self._threads.append(threading.Thread(target=self._talk, args=(conn,)))
                self._threads[-1].start()

    def _talk(self, conn: socket.socket) -> None:
        request = b""
        with suppress(OSError):
            while b"\r\n\r\n" not in request and (part := conn.recv(65_536)):
                request += part
            self.requests.append(request)
            if callable(self._answer):
                self._answer(conn)
            else:
                conn.sendall(self._answer)
                conn.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._shut(self._socket)
        self._threads[0].join()  # from here on there are no more connections
        for conn in self._connections:
            self._shut(conn)
        for thread in self._threads:
            thread.join()
        for one in (self._socket, *self._connections):
            one.close()

    @staticmethod
    def _shut(one: socket.socket) -> None:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


Serve = Callable[..., Scripted]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Make servers that are gone at the end."""
    made: list[Scripted] = []

    def make(answer: Any) -> Scripted:
        made.append(Scripted(answer))
        return made[-1]

    yield make
    for server in made:
        server.close()


def http(body: bytes | str, status: str = "200 OK", kind: str = "application/health+json") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + content


def report_of(status: Status, *results: Result, service: str = "checkout", output: str = "") -> Report:
    return Report("all", status, service, None, datetime.now(UTC), 1.0, results, output)


def told(report: Report, status: str = "200 OK") -> bytes:
    """Return *report* as our handlers send it, with details."""
    return http(chosen("", None).body(report, View(details=True, word="", groups=())), status)


UP = told(report_of(Status.PASS, Result("postgres", "check", Status.PASS)))
DOWN = told(
    report_of(
        Status.FAIL,
        Result("cache", "check", Status.WARN, "stale"),
        Result("postgres", "check", Status.FAIL, "connection refused", critical=True),
    ),
    "503 Service Unavailable",
)


def silence(conn: socket.socket) -> None:
    """Say nothing until the other side has gone."""
    while conn.recv(1):
        pass


def drip(conn: socket.socket) -> None:
    """Send a header a bit at a time, so that no single wait is long."""
    conn.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        conn.sendall(b"x")
        time.sleep(0.05)


def endless(conn: socket.socket) -> None:
    """Send a body without an end."""
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        conn.sendall(b" " * 65_536)


# As processes.


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, as an exec probe does."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("RESILIENT_")}
    return subprocess.run(
        [sys.executable, "-m", "resilient.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**surroundings, **(environment or {})},
    )


def test_service_that_is_well_ends_in_0(serve: Serve) -> None:
    """One line, and nothing on standard error."""
    done = command("health", "--url", serve(UP).url())

    assert (done.returncode, done.stdout, done.stderr) == (0, "pass checkout: 1 check passes\n", "")


@pytest.mark.parametrize(("many", "told"), [(1, "1 check passes"), (2, "2 checks pass")])
def test_checks_that_pass_are_counted(many: int, told: str) -> None:
    """In words that people read."""
    checks = {f"c{number}:status": [{"status": "pass"}] for number in range(many)}
    body = json.dumps({"status": "pass", "checks": checks}).encode()

    assert judge(Fetched(200, "application/health+json", body), "shop").output == told


def test_service_that_is_not_ends_in_1_and_says_why(serve: Serve) -> None:
    """The worst first."""
    done = command("health", "--url", serve(DOWN).url())

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "fail checkout: HTTP 503, postgres: connection refused; cache: stale\n"


def test_server_that_does_not_come_to_an_end_is_left_in_time(serve: Serve) -> None:
    """A timeout for each byte would wait for ever; and the process ends, whatever its thread is at."""
    begun = time.monotonic()
    done = command("health", "--url", serve(drip).url(), "--timeout", "0.3")

    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.endswith("no answer within 0.3 s\n")
    assert time.monotonic() - begun < LONGEST


def test_token_of_the_environment_is_sent_and_told_to_nobody(serve: Serve) -> None:
    """It is in no argument, and in no output."""
    server = serve(UP)
    done = command("health", "--url", server.url(), environment={"RESILIENT_HEALTH_TOKEN": TOKEN})

    (request,) = server.requests
    assert f"\r\nAuthorization: Bearer {TOKEN}\r\n".encode() in request
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0


def test_fleet_is_drawn(serve: Serve) -> None:
    """Three services, one of which is away; and a pipe into `head`, which reads one line."""
    checkout = serve(
        told(report_of(Status.WARN, Result("payments", "circuit_breaker", Status.WARN, "open for 3 s")))
    )
    payments = serve(told(report_of(Status.PASS, Result("bank", "check", Status.PASS), service="payments")))
    nobody = f"127.0.0.1:{free_port()}"
    done = command("map", checkout.netloc.join(("http://", "")), payments.url("/"), f"cart=http://{nobody}")

    assert done.returncode == 0
    assert checkout.requests[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert payments.requests[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert done.stdout.split("\n")[:7] == [
        "flowchart LR",
        '    n0(["checkout"]):::warn',
        '    n1(["payments<br/>circuit breaker"]):::pass',
        '    n2(["cart"]):::fail',
        '    n3[("bank<br/>check")]:::pass',
        '    n0 -->|"open for 3 s"| n1',
        "    n1 --> n3",
    ]
    assert done.stderr == f"resilient: http://{nobody}/health: {os.strerror(errno.ECONNREFUSED)}\n"


def test_reader_that_goes_away_is_no_error(serve: Serve) -> None:
    """As `resilient map ... | head -1` does."""
    with subprocess.Popen(
        [sys.executable, "-m", "resilient.cli", "map", serve(UP).url()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_told_in_one_line(serve: Serve) -> None:
    """A full disk; and a closed one is nobody's fault, there is still the exit code."""
    server = serve(UP)
    line = f"{shlex.quote(sys.executable)} -m resilient.cli health --url {server.url()}"
    full = subprocess.run(
        ["sh", "-c", f"{line} >/dev/full; echo $? >&2; {line} >&-; echo $? >&2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert full.stderr == f"resilient: cannot write: {os.strerror(errno.ENOSPC)}\n2\n0\n"


# In this process.


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command; what it returns, prints and complains of."""
    monkeypatch.delenv("RESILIENT_HEALTH_TOKEN", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exc:
            code = int(exc.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [
        (http('{"status": "warn"}'), 0, "warn "),
        (http('{"status": "fail"}'), 1, "fail "),
        (http("OK", kind="text/plain"), 0, "pass "),
        (http('{"status": "UP"}', kind="image/png"), 0, "pass "),
        (http('{"status": "pass"}', "500 Oops"), 1, "fail "),
        (http("", "502 Bad Gateway"), 1, "HTTP 502"),
        (http("<html>Welcome</html>", kind="text/html"), 2, "no health report: text/html"),
        (http("\x00\x01\xff garbage"), 2, "no health report"),
        (http("", "404 Not Found"), 2, "HTTP 404"),
        (http("", "401 Unauthorized"), 2, "HTTP 401"),
        (http("", "301 Moved\r\nLocation: http://192.0.2.1/"), 2, "HTTP 301: it points elsewhere"),
        (http(b" " * 10_000_000), 2, "no health report: more than 1048576 bytes"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 2, "BadStatusLine"),
        (b"", 2, "RemoteDisconnected"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", 2, "got more than 100 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 2, "LineTooLong"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", 2, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 2, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", 2, ""),
        (b"HTTP/1.1 999999999999 \xff\r\n\r\n", 2, ""),
        (endless, 2, "more than 1048576 bytes"),
    ],
    ids=range(21),
)
def test_exit_code_tells_what_came(serve: Serve, run: Run, answer: Any, code: int, line: str) -> None:
    """One line in any case, whatever the server sends."""
    found, out, err = run("health", "--url", serve(answer).url(), "--timeout", "10")

    assert (found, err) == (code, "")
    assert out.count("\n") == 1
    assert line in out


@pytest.mark.parametrize("answer", [silence, drip], ids=["hangs", "drips"])
def test_no_answer_in_time_ends_in_2(serve: Serve, run: Run, answer: Any) -> None:
    """E.g. a worker that is stuck."""
    server = serve(answer)

    assert run("health", "--url", server.url(), "--timeout", "0.1") == (
        2,
        f"unreachable {server.url()}: no answer within 0.1 s\n",
        "",
    )


def test_nobody_there_ends_in_2(run: Run) -> None:
    """Nothing listens."""
    url = f"http://127.0.0.1:{free_port()}/readyz"

    assert run("health", "--url", url) == (2, f"unreachable {url}: {os.strerror(errno.ECONNREFUSED)}\n", "")


def test_redirect_is_followed_nowhere(serve: Serve, run: Run) -> None:
    """The token is for who was asked."""
    elsewhere = serve(UP)
    server = serve(http("", f"302 Found\r\nLocation: {elsewhere.url()}"))

    assert run("health", "--url", server.url(), "--token", TOKEN)[0] == 2
    assert elsewhere.requests == []


def test_service_of_ours_tells_those_who_know_the_token(run: Run) -> None:
    """With all of it real: the checks, the server, the details; others see the status."""
    health = Health("checkout", details=bearer(TOKEN))
    breaker = CircuitBreaker("payments", fail_max=1)
    health.check("network")(lambda: None)
    health.watch(breaker, depends_on=["network"])
    breaker.force_open(reason="INC-7")
    with health.serve(port=0) as server:
        url = f"{server.url}/health"
        assert run("health", "--url", url, "--token", TOKEN) == (
            0,
            "warn checkout: payments: forced open (INC-7)\n",
            "",
        )
        assert "INC-7" not in run("health", "--url", url)[1]
        _, drawn, _ = run("map", server.url, "--token", TOKEN)

    assert drawn == health.map().to_mermaid()
    health.close()


def test_json_tells_the_checks(serve: Serve, run: Run) -> None:
    """For scripts."""
    server = serve(DOWN)
    code, out, _ = run("health", "--url", server.url(), "--json")
    found = json.loads(out)

    assert code == found["code"] == 1
    assert (found["status"], found["service"], found["where"]) == ("fail", "checkout", server.url())
    assert found["checks"][1] == {
        "name": "postgres",
        "kind": "check",
        "status": "fail",
        "output": "connection refused",
    }
    assert found["took"] >= 0.0


def test_what_it_prints_does_nothing_to_a_terminal(serve: Serve, run: Run) -> None:
    """Names and reasons are the other side's."""
    report = report_of(
        Status.FAIL, Result("\x1b[31ma\nb", "check", Status.FAIL, "\x07\u202e"), service="x\ry"
    )
    _, out, _ = run("health", "--url", serve(told(report)).url())

    assert out.rstrip("\n").isprintable()


def test_path_and_query_are_sent_as_they_are(serve: Serve, run: Run) -> None:
    """With what HTTP does not allow in entities."""
    server = serve(UP)
    run("health", "--url", server.url("/größe/a%20b?group=a b&x=y/z#fragment"))

    assert server.requests[0].startswith(b"GET /gr%C3%B6%C3%9Fe/a%20b?group=a%20b&x=y/z HTTP/1.1\r\n")
    assert b"\r\nAccept: application/health+json" in server.requests[0]
    assert b"Authorization" not in server.requests[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "required: COMMAND"),
        (("heal",), "invalid choice"),
        (("health",), "one of the arguments --url --file is required"),
        (("health", "--url", "http://127.0.0.1/", "--file", "x"), "not allowed with"),
        (("health", "--url", "ftp://127.0.0.1/"), "must begin with http://"),
        (("health", "--url", "http://"), "must begin with http://"),
        (("health", "--url", "127.0.0.1:80"), "must begin with http://"),
        (("health", "--url", "http://127.0.0.1:99999/"), "--url"),
        (("health", "--url", "http://127.0.0.1:0/"), "port 0"),
        (("health", "--url", "http://[::1/"), "--url"),
        (("health", "--url", f"http://{'x' * 100}.example/"), "--url"),
        (("health", "--url", "http://me:secret@127.0.0.1/"), "give a token"),
        (("health", "--url", "http://127.0.0.1/", "--timeout", "0"), "above 0"),
        (("health", "--url", "http://127.0.0.1/", "--timeout", "nan"), "above 0"),
        (("health", "--url", "http://127.0.0.1/", "--timeout", "soon"), "above 0"),
        (("health", "--url", "http://127.0.0.1/", "--token", "a\nX: y"), "the token must be"),
        (("health", "--url", "http://127.0.0.1/", "--token", ""), "the token must be"),
        (("health", "--url", "http://127.0.0.1/", "--max-age", "3"), "--max-age goes with --file"),
        (("map",), "required: [NAME=]URL"),
        (("map", "checkout"), "'checkout': the URL must begin"),
        (("map", *["http://127.0.0.1"] * 201), "at most 200"),
        (("map", "http://127.0.0.1", "--format", "png"), "invalid choice"),
        (("alerts", "--objective", "94.9"), "at least 95 and below 100: '94.9'"),
        (("alerts", "--objective", "100"), "at least 95 and below 100: '100'"),
        (("alerts", "--objective", "nan"), "at least 95 and below 100: 'nan'"),
        (("alerts", "--objective", "most"), "at least 95 and below 100: 'most'"),
        (("alerts", "--runbooks", "wiki"), "the URL must begin with http://"),
        (("alerts", "--runbooks", "http://me:secret@wiki.example"), "give a token"),
        (("alerts", "--runbooks", 'http://wiki.example/"'), "without spaces, quotes or braces"),
        (("alerts", "--runbooks", "http://wiki.example/{{x}}"), "without spaces, quotes or braces"),
    ],
    ids=range(30),
)
def test_wrong_usage_says_what_is_wrong(run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    """And ends in 2; a password is not repeated."""
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert complaint in err.splitlines()[-1]
    assert "secret" not in err


# The file of a worker.


def test_file_that_is_young_and_well_ends_in_0(run: Run, tmp_path: Path) -> None:
    """As the worker says."""
    path = tmp_path / "health"
    StatusFile(path).write(report_of(Status.WARN, Result("queue", "check", Status.WARN, "7 jobs wait")))

    assert run("health", "--file", str(path)) == (0, "warn checkout: queue: 7 jobs wait\n", "")


def test_file_that_says_it_fails_ends_in_1(run: Run, tmp_path: Path) -> None:
    """With what fails; and with what the service says of itself."""
    path = tmp_path / "health"
    StatusFile(path).write(report_of(Status.FAIL, Result("queue", "check", Status.FAIL, "gone")))
    assert run("health", "--file", str(path)) == (1, "fail checkout: queue: gone\n", "")

    StatusFile(path).write(report_of(Status.FAIL, Result("queue", "check", Status.PASS), output="draining"))
    assert run("health", "--file", str(path)) == (1, "fail checkout: draining\n", "")


def test_file_that_is_old_or_missing_ends_in_1(run: Run, tmp_path: Path) -> None:
    """The worker hangs, or has not come up."""
    path = tmp_path / "health"
    assert run("health", "--file", str(path))[0] == 1

    StatusFile(path, lambda: time.monotonic() - 100.0).write(report_of(Status.PASS))
    code, out, err = run("health", "--file", str(path), "--max-age", "60")
    assert (code, err) == (1, "")
    assert out.startswith("fail checkout: the report is 100 s old")
    assert run("health", "--file", str(path), "--max-age", "120")[0] == 0


# The map.


def test_map_is_drawn_in_each_form(serve: Serve, run: Run) -> None:
    """From the same answer."""
    url = serve(UP).url("/v1/health")

    assert run("map", url)[1].startswith("flowchart LR\n")
    assert run("map", url, "--format", "dot")[1].startswith("digraph dependencies {\n")
    assert [node["id"] for node in json.loads(run("map", url, "--format", "json")[1])["nodes"]] == [
        "service:checkout",
        "dependency:postgres",
    ]


def test_who_tells_nothing_is_in_the_picture(serve: Serve, run: Run) -> None:
    """Red where it fails, grey where nobody can tell; and nobody told anything, so it ends in 2."""
    page, broken = serve(http("<html>", "404 Not Found")), serve(http("", "502 Bad Gateway"))
    code, out, err = run("map", f"page={page.url()}", f"broken={broken.url()}")

    assert code == 2
    assert '(["page"]):::unknown' in out
    assert '(["broken"]):::fail' in out
    assert err.count("and no health report\n") == 2


def test_service_without_details_is_a_node_and_a_hint(serve: Serve, run: Run) -> None:
    """It does not know us."""
    server = serve(http('{"status": "pass"}'))
    code, out, err = run("map", server.url("/health?a=b"))

    assert (code, f'(["{server.netloc.replace(":", "#58;")}"]):::pass' in out) == (0, True)
    assert "it tells no details; is a token needed?" in err


def test_all_services_are_asked_at_once(serve: Serve, run: Run) -> None:
    """Twenty that hang take as long as one."""
    hanging = serve(silence)
    begun = time.monotonic()
    code, _, err = run("map", *[f"n{n}={hanging.url()}" for n in range(20)], "--timeout", "0.5")

    assert (code, err.count("no answer within 0.5 s")) == (2, 20)
    assert time.monotonic() - begun < 8.0  # one after the other, it would be 10
