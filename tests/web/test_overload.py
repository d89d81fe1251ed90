"""More than a service can do, over real sockets: uvicorn with tasks, wsgiref with threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from tests.web.servers import Got, connection, eventually, fetch, uvicorn_serving, wsgiref_serving

from resilient import Bulkhead, CircuitBreaker, Gradient, current_priority
from resilient.asgi import ResilienceMiddleware, requested_priority
from resilient.asgi import ResilienceMiddleware as AsgiMiddleware
from resilient.wsgi import ResilienceMiddleware as WsgiMiddleware

LIMIT = 4
CROWD = 4 * LIMIT
LONG = 5.0  # seconds that nobody should need


class Kitchen:
    """An app in both worlds that takes as long as the test wants, and notes how many are in it at once."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.at_once = self.most = self.served = 0
        self.worst_lag = 0.0
        self._lock = threading.Lock()

    def _come(self) -> None:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)

    def _go(self) -> None:
        with self._lock:
            self.at_once -= 1
            self.served += 1

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve as an ASGI app; paths of probes at once, any other when the test lets it go."""
        length, more = 0, True
        if scope["path"] == "/livez":
            await self._measure()
        elif scope["path"] != "/readyz":
            self._come()
            while more:
                message = await receive()
                length += len(message["body"])
                more = message["more_body"]
            await asyncio.to_thread(self.let_go.wait, 2 * LONG)
            self._go()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(length).encode()})

    async def _measure(self) -> None:
        for _ in range(20):
            asleep = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst_lag = max(self.worst_lag, time.monotonic() - asleep - 0.01)

    def wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        """Serve as a WSGI app."""
        if environ["PATH_INFO"] not in {"/livez", "/readyz"}:
            self._come()
            self.let_go.wait(2 * LONG)
            self._go()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"0"]


Serve = Callable[..., AbstractContextManager[int]]


@pytest.fixture
def kitchen() -> Iterator[Kitchen]:
    kitchen = Kitchen()
    yield kitchen
    kitchen.let_go.set()


@pytest.fixture(params=["uvicorn", "wsgiref"])
def serve(request: pytest.FixtureRequest, kitchen: Kitchen) -> Serve:
    """Return what serves the kitchen behind a middleware with some options."""
    if request.param == "uvicorn":
        return lambda **options: uvicorn_serving(AsgiMiddleware(kitchen.asgi, **options))
    return lambda **options: wsgiref_serving(WsgiMiddleware(kitchen.wsgi, **options))


@contextmanager
def crowd(kitchen: Kitchen) -> Iterator[Callable[..., Future[Got]]]:
    """Yield what makes a request in a thread of its own; at the end, let all of them be served."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2 * CROWD))
        stack.callback(kitchen.let_go.set)
        yield lambda port, path="/", **headers: pool.submit(fetch, port, path, **headers)


def done(requests: list[Future[Got]]) -> list[Got]:
    return [request.result() for request in requests if request.done()]


def statuses(requests: list[Future[Got]]) -> list[int]:
    return sorted(request.result(LONG)[0] for request in requests)


class TestFixedLimit:
    def test_no_more_are_let_in_than_there_are_slots(self, serve: Serve, kitchen: Kitchen) -> None:
        """Four times as many come: a quarter is served, and the others know at once."""
        gate = Bulkhead("kitchen", LIMIT)
        with serve(shed=gate) as port, crowd(kitchen) as ask:
            requests = [ask(port) for _ in range(CROWD)]
            assert eventually(lambda: len(done(requests)) == CROWD - LIMIT)
            refused = done(requests)
            assert kitchen.at_once == LIMIT
            kitchen.let_go.set()
            assert statuses(requests) == [200] * LIMIT + [503] * (CROWD - LIMIT)
            assert eventually(lambda: gate.stats().in_use == 0)

        assert kitchen.most == kitchen.served == LIMIT
        assert {int(fields["retry-after"]) for _, fields, _ in refused} <= {1, 2, 3}
        assert {fields["content-type"] for _, fields, _ in refused} == {"application/problem+json"}

    def test_queue_is_served_by_and_by(self, serve: Serve, kitchen: Kitchen) -> None:
        """Whoever finds room in it is served, never more at a time than there are slots."""
        gate = Bulkhead("kitchen", LIMIT, max_wait=2 * LONG, max_queue=LIMIT)
        with serve(shed=gate) as port, crowd(kitchen) as ask:
            requests = [ask(port) for _ in range(CROWD)]
            assert eventually(lambda: len(done(requests)) == CROWD - 2 * LIMIT)
            assert (kitchen.at_once, gate.stats().waiting) == (LIMIT, LIMIT)
            kitchen.let_go.set()
            assert statuses(requests) == [200] * 2 * LIMIT + [503] * (CROWD - 2 * LIMIT)
            assert eventually(lambda: gate.stats().in_use == 0)

        assert (kitchen.most, kitchen.served) == (LIMIT, 2 * LIMIT)

    def test_less_important_requests_go_first_and_probes_last(self, serve: Serve, kitchen: Kitchen) -> None:
        """Sheddable ones may fill three of four slots, critical ones all, and probes have one more."""
        gate = Bulkhead("kitchen", LIMIT, priority=current_priority)
        options = {"priority": requested_priority(), "trusted": "127.0.0.1", "exempt": ["/livez"]}
        low, critical = {"x-request-priority": "low"}, {"x-request-priority": "critical"}
        with serve(shed=gate, **options) as port, crowd(kitchen) as ask:
            held = [ask(port, **critical) for _ in range(LIMIT - 1)]
            assert eventually(lambda: kitchen.at_once == LIMIT - 1)
            assert fetch(port, **low)[0] == 503
            held.append(ask(port, **critical))
            assert eventually(lambda: kitchen.at_once == LIMIT)
            assert fetch(port, **critical)[0] == 503
            for path in ("/readyz", "/livez"):  # from the reserve, and exempt
                assert fetch(port, path)[0] == 200
            kitchen.let_go.set()
            assert statuses(held) == [200] * LIMIT

    def test_queue_ends_with_the_deadline_of_the_client(self, serve: Serve, kitchen: Kitchen) -> None:
        """It is told so when its time is up, and the app never sees the request."""
        gate = Bulkhead("kitchen", 1, max_wait=2 * LONG)
        with serve(shed=gate, trusted="127.0.0.1") as port, crowd(kitchen) as ask:
            held = ask(port)
            assert eventually(lambda: kitchen.at_once == 1)
            began = time.monotonic()
            assert fetch(port, **{"x-request-timeout-ms": "100"})[0] == 504
            assert 0.1 <= time.monotonic() - began < LONG
            assert gate.stats().waiting == 0
            kitchen.let_go.set()
            assert held.result(LONG)[0] == 200

        assert kitchen.served == 1


class TestUvicorn:
    def test_loop_is_not_blocked_by_those_who_wait(self, kitchen: Kitchen) -> None:
        """Nor by those who are refused: it turns on as if there were none."""
        gate = Bulkhead("kitchen", LIMIT, max_wait=2 * LONG, max_queue=LIMIT)
        with uvicorn_serving(AsgiMiddleware(kitchen.asgi, shed=gate)) as port, crowd(kitchen) as ask:
            requests = [ask(port) for _ in range(LIMIT * 2)]
            assert eventually(lambda: gate.stats().waiting == LIMIT)
            probe = ask(port, "/livez")
            requests += [ask(port) for _ in range(CROWD)]
            assert probe.result(LONG)[0] == 200

        assert kitchen.worst_lag < 1.0

    def test_client_that_leaves_the_queue_gives_up_its_turn(self, kitchen: Kitchen) -> None:
        """At once, and the app does not work for it."""
        gate = Bulkhead("kitchen", 1, max_wait=2 * LONG)
        with uvicorn_serving(AsgiMiddleware(kitchen.asgi, shed=gate)) as port, crowd(kitchen) as ask:
            held = ask(port)
            assert eventually(lambda: kitchen.at_once == 1)
            with connection(port) as client:
                client.request("GET", "/")
                assert eventually(lambda: gate.stats().waiting == 1)
            assert eventually(lambda: gate.stats().waiting == 0)
            kitchen.let_go.set()
            assert held.result(LONG)[0] == 200

        assert kitchen.served == 1

    def test_body_that_came_meanwhile_is_whole(self, kitchen: Kitchen) -> None:
        """However much of it was received ahead of the app."""
        gate = Bulkhead("kitchen", 1, max_wait=2 * LONG)
        with uvicorn_serving(AsgiMiddleware(kitchen.asgi, shed=gate)) as port, crowd(kitchen) as ask:
            held = ask(port)
            assert eventually(lambda: kitchen.at_once == 1)
            with connection(port) as client:
                client.putrequest("POST", "/")
                client.putheader("Content-Length", "300000")
                client.endheaders()
                client.send(bytes(100_000))
                assert eventually(lambda: gate.stats().waiting == 1)
                kitchen.let_go.set()
                client.send(bytes(200_000))
                assert client.getresponse().read() == b"300000"
            assert held.result(LONG)[0] == 200

    def test_gradient_learns_from_answers_only(self) -> None:
        """Of these, the good ones: not of refusals, not of faults, and not of clients that leave."""
        gate = Bulkhead("kitchen", Gradient(window=0.02, min_samples=5))
        breaker = CircuitBreaker("cellar")
        breaker.force_open()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/refused":
                with breaker.calling():
                    raise AssertionError
            if scope["path"] == "/gone":
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            await asyncio.sleep(0.01)
            await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": []})
            await send({"type": "http.response.body", "body": b""})

        def learnt() -> tuple[int, float | None, int]:
            stats = gate.stats().adaptive
            assert stats is not None
            return stats.windows, stats.rtt, stats.dropped

        with uvicorn_serving(ResilienceMiddleware(app, shed=gate)) as port:
            for path in ("/500", "/refused"):
                assert {fetch(port, path)[0] for _ in range(8)} <= {500, 503}
            with connection(port) as client:
                client.request("GET", "/gone")
                assert eventually(lambda: gate.stats().in_use == 1)
            assert eventually(lambda: gate.stats().in_use == 0)
            assert learnt() == (0, None, 0)
            assert fetch(port, "/504")[0] == 504
            assert learnt() == (0, None, 1)
            for _ in range(12):
                assert fetch(port, "/200")[0] == 200
            windows, rtt, dropped = learnt()

        assert windows >= 1
        assert rtt is not None
        assert 0.01 <= rtt < LONG
        assert dropped == 1
