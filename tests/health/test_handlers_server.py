"""The server for processes that have none, over real sockets: slow clients, too many of them, forks."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.health.standin import StandIn, result
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.web.servers import fetch

from resilient.health import Status
from resilient.health.serving import server
from resilient.health.serving.server import HealthServer, serve


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Open a connection and say nothing yet."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        yield client


def everything(client: socket.socket) -> bytes:
    """Read until the server hangs up, in whichever way."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def test_answers_and_closes() -> None:
    """It is there at once, tells where, and gives the port back."""
    with serve(StandIn(Status.WARN, [result()], details="always"), port=0) as serving:
        assert serving.url == f"http://127.0.0.1:{serving.port}"
        status, fields, body = fetch(serving.port, "/health/postgres?format=json")
        assert (status, json.loads(body)["status"]) == (200, "pass")
        assert fields["connection"] == "close"
        assert fetch(serving.port, "/readyz", "HEAD")[::2] == (200, b"")
        assert fetch(serving.port, "/nothing")[0] == 404
        assert fetch(serving.port, "/health", "POST")[0] == 405
        assert repr(serving) == f"<HealthServer {serving.url}>"
        port = serving.port

    assert repr(serving).endswith(" closed>")
    with pytest.raises(ConnectionRefusedError), connected(port):
        pass
    serving.close()  # once more does nothing
    with serve(StandIn(), port=port) as again:
        assert fetch(again.port, "/livez")[0] == 200


def test_header_tells_nothing_of_the_software() -> None:
    """Neither the version of Python nor that of anything else."""
    with serve(StandIn(), port=0) as serving:
        for path in ("/livez", "/nothing"):
            assert fetch(serving.port, path)[1].keys() == {
                "content-type",
                "content-length",
                "cache-control",
                "connection",
            }


def test_path_is_decoded_and_fields_are_joined() -> None:
    """As the other servers do."""
    health = StandIn(results=[result("caf\u00e9")], details=lambda asked: asked.header("x-a") == "1,2")
    with (
        serve(health, port=0) as serving,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", serving.port, timeout=5)) as client,
    ):
        client.putrequest("GET", "/health/caf%C3%A9")
        client.putheader("X-A", "1")
        client.putheader("X-A", "2")
        client.endheaders()
        assert client.getresponse().status == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"\xff\xfe / HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "no path", "version", "long", "many fields", "empty", "no url", "no method"],
)
def test_what_is_no_request_is_hung_up_on(request_line: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a page that tells the software, and without a word in the log."""
    with serve(StandIn(), port=0) as serving:
        with connected(serving.port) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(request_line)
            got = everything(client)
        assert b"Python" not in got
        assert b"html" not in got
        assert fetch(serving.port, "/livez")[0] == 200
    assert capfd.readouterr().err == ""


def test_client_that_drips_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps no thread for ever: the time is one for the whole request."""
    monkeypatch.setattr(server, "_PATIENCE", 0.3)
    with serve(StandIn(), port=0) as serving, connected(serving.port) as client:
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /livez HTTP/1.1\r\n")
            while time.monotonic() - begun < 5:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < 3


def test_silent_client_is_hung_up_on_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever says nothing is no error of anybody's."""
    monkeypatch.setattr(server, "_PATIENCE", 0.3)
    with serve(StandIn(), port=0) as serving, connected(serving.port) as client:
        assert fetch(serving.port, "/livez")[0] == 200
        assert everything(client) == b""
    assert capfd.readouterr().err == ""


def test_one_too_many_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come, there are so many threads and no more; room is there again when they have left."""
    monkeypatch.setattr(server, "_MOST_CLIENTS", 3)
    answering, go_on = threading.Semaphore(0), threading.Event()

    def slow(_asked: Any) -> bool:
        answering.release()
        return go_on.wait(20)

    with serve(StandIn(details=slow), port=0) as serving, contextlib.ExitStack() as clients:
        clients.callback(go_on.set)
        asked = [clients.enter_context(connected(serving.port)) for _ in range(3)]
        for one in asked:
            one.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert answering.acquire(timeout=20)
        with connected(serving.port) as client:
            assert everything(client) == b""
        go_on.set()
        assert all(everything(one).startswith(b"HTTP/1.1 200 ") for one in asked)

        def answers() -> bool:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                return fetch(serving.port, "/livez")[0] == 200
            return False

        wait_until(answers, "room for a client")


def test_silent_clients_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port for kubelets is open to all pods: a few connections would have the worker killed.

    Whoever comes gets the place of the one that has been silent for longest, byte by byte or altogether.
    """
    monkeypatch.setattr(server, "_MOST_CLIENTS", 3)
    with serve(StandIn(), port=0) as serving, contextlib.ExitStack() as clients:
        silent = [clients.enter_context(connected(serving.port)) for _ in range(3)]
        for one in silent:
            one.sendall(b"GET /livez HTTP/1.1\r\n")
        assert fetch(serving.port, "/livez")[0] == 200
        assert everything(silent[0]) == b""
        silent[2].sendall(b"\r\n")
        assert everything(silent[2]).startswith(b"HTTP/1.1 200 ")
        assert [fetch(serving.port, "/livez")[0] for _ in range(10)] == [200] * 10


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://10.1.2.3:8081/livez", 200),
        (b"HTTP://worker/health?format=json", 200),
        (b"https://worker/livez/", 200),
        (b"http://worker/nothing", 404),
        (b"http://worker", 404),
        (b"http://worker?a=/livez", 404),
        (b"ftp://worker/livez", 404),
        (b"/livezhttp://worker", 404),
        (b"/livez?next=http://worker/nothing", 200),
        (b"*", 404),
    ],
)
def test_absolute_form_is_understood(target: bytes, status: int) -> None:
    """RFC 9112, 3.2.2: a server must accept it, though only clients of proxies send it."""
    with serve(StandIn(), port=0) as serving, connected(serving.port) as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: worker\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 %d " % status)


def test_error_inside_is_a_failure_and_no_traceback_to_the_client() -> None:
    """As everywhere."""
    with serve(StandIn(error=RuntimeError("boom")), port=0) as serving:
        status, _, body = fetch(serving.port, "/livez")

    assert (status, body) == (503, b'{"status": "fail"}')


def test_error_of_ours_is_logged_and_the_next_client_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not printed, as `socketserver` would."""

    def boom(*_: Any) -> Any:
        raise ZeroDivisionError

    with serve(StandIn(), port=0) as serving:
        with monkeypatch.context() as broken, connected(serving.port) as client:
            broken.setattr(server.Endpoints, "respond", boom)
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert everything(client) == b""
        assert fetch(serving.port, "/livez")[0] == 200

    assert [record.message for record in caplog.records] == ["A request for health was not answered"]
    assert capfd.readouterr().err == ""


def test_no_more_threads_cost_a_client_and_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes when there are some again is served."""
    monkeypatch.setattr(server, "_MOST_CLIENTS", 1)

    def no_more(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with serve(StandIn(), port=0) as serving:
        with monkeypatch.context() as broken:
            broken.setattr("socketserver.ThreadingMixIn.process_request", no_more)
            with connected(serving.port) as client:
                assert everything(client) == b""
        assert fetch(serving.port, "/livez")[0] == 200


def test_several_threads_close_it_once() -> None:
    """And all of them return when it is closed."""
    serving = serve(StandIn(), port=0)
    threads = [threading.Thread(target=serving.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)

    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(ConnectionRefusedError), connected(serving.port):
        pass


def test_ipv6() -> None:
    """The url has its brackets; a machine without IPv6 says so by an OSError."""
    try:
        serving = serve(StandIn(), "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with serving:
        assert serving.url == f"http://[::1]:{serving.port}"


def test_all_addresses_are_told_as_this_machine() -> None:
    """Nobody can ask 0.0.0.0."""
    with serve(StandIn(), "0.0.0.0", 0) as serving:
        assert serving.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"host": ""}, ValueError, "host must not be empty"),
        ({"host": None}, TypeError, "host must be text"),
        ({"port": -1}, ValueError, "port must be at least 0"),
        ({"port": 65_536}, ValueError, "port must be at most 65535"),
        ({"port": "80"}, TypeError, "port must be a whole number"),
        ({"port": 0, "drain_delay": 1}, ValueError, "drain_delay must be None"),
        ({"port": 0, "prefix": 1}, TypeError, "prefix must be text"),
    ],
)
def test_bad_arguments_are_refused(words: Any, error: type[Exception], match: str) -> None:
    """Before anything listens."""
    with pytest.raises(error, match=match):
        serve(StandIn(), **words)


def test_port_that_is_taken_is_an_error_that_leaves_nothing_open() -> None:
    """Neither a socket nor a thread."""
    with serve(StandIn(), port=0) as serving:
        threads = threading.active_count()
        with pytest.raises(OSError, match="in use"):
            serve(StandIn(), port=serving.port)
        assert threading.active_count() == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_lets_go_of_the_port() -> None:
    """It has no thread to serve: whoever connected would wait for ever if the parent ended first."""
    port = free_port()
    serving = HealthServer(server.Endpoints(StandIn()), "127.0.0.1", port)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            ours.close()
            serving.close()  # does nothing here
            theirs.send(b"ready")
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    try:
        ours.settimeout(20)
        assert ours.recv(5) == b"ready"
        serving.close()
        with pytest.raises(ConnectionRefusedError), connected(port):
            pass
    finally:
        ours.close()
        assert os.waitpid(child, 0)[1] == 0


def test_no_more_files_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that knocks meanwhile is served when there are some again; nothing spins until then."""
    tries: list[float] = []
    accept = server._Server.get_request

    def get_request(serving: Any) -> Any:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(serving)

    monkeypatch.setattr(server, "_PAUSE", 0.02)
    monkeypatch.setattr(server._Server, "get_request", get_request)
    with serve(StandIn(), port=0) as serving:
        assert fetch(serving.port, "/livez")[0] == 200

    assert len(tries) == 3
    assert tries[2] - tries[0] >= 0.04
