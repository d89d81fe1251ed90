"""Django: the middleware in both modes, with Django's test clients and over real sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils.asyncio import async_unsafe
from tests.integrations import django_site as site
from tests.support.waiting import wait_until
from tests.web.servers import connection, eventually, fetch, uvicorn_serving, wsgiref_serving
from tests.web.support import SpyGate

from resilient import Bulkhead, Priority, RateLimiter, current_priority, time_left
from resilient.asgi import Maintenance, client_address, requested_priority, user
from resilient.errors import CallTimeoutError, CircuitOpenError, RateLimitedError
from resilient.integrations.django import ResilienceMiddleware, request_key

PROBLEM = "application/problem+json"


class Reply:
    """What a client got, read to its end."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status: int = response.status_code
        self.headers: Any = response.headers
        self.body = body


class Sync:
    """The synchronous mode: WSGI."""

    @staticmethod
    def ask(paths: list[str], **options: Any) -> list[Reply]:
        client = Client()
        replies = []
        for path in paths:
            response: Any = client.get(path, **options)
            body = b"".join(response.streaming_content) if response.streaming else response.content
            replies.append(Reply(response, body))
        return replies


class Async:
    """The asynchronous mode: ASGI."""

    @staticmethod
    def ask(paths: list[str], **options: Any) -> list[Reply]:
        async def replies() -> list[Reply]:
            client = AsyncClient()
            return [await Async._reply(await client.get(path, **options)) for path in paths]

        return asyncio.run(replies())

    @staticmethod
    async def _reply(response: Any) -> Reply:
        if not response.streaming:
            return Reply(response, response.content)
        if not response.is_async:
            return Reply(response, await asyncio.to_thread(lambda: b"".join(response)))
        return Reply(response, b"".join([chunk async for chunk in response]))


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_all() -> None:
    """Have asgiref start the thread that it keeps for good."""
    asyncio.run(sync_to_async(lambda: None)())


@pytest.fixture(autouse=True)
def orders() -> Iterator[site.Orders]:
    site.orders.__init__()  # type: ignore[misc]
    site.orders.let_go.set()
    yield site.orders
    site.orders.error = None  # its traceback holds the frames, and threads, of the request


def guarded(*middleware: str, **words: Any) -> override_settings:
    """Set the site up with *words*; *middleware* stands outside of ours."""
    return override_settings(RESILIENT=words, MIDDLEWARE=[*middleware, site.OURS])


def statuses(replies: list[Reply]) -> list[int]:
    """Return the statuses of *replies*."""
    return [reply.status for reply in replies]


class TestMiddleware:
    """The same in both modes."""

    def test_limits_and_tells(self, mode: Any) -> None:
        """Fields on every answer, a problem document where it refuses."""
        with guarded(rate_limit="2/hour"):
            replies = mode.ask(["/", "/async", "/"])

        assert statuses(replies) == [200, 200, 429]
        assert replies[0].headers["RateLimit"] == '"2/hour";r=1;t=1800'
        assert replies[2].headers["Content-Type"] == PROBLEM
        assert replies[2].headers["RateLimit"] == f'"2/hour";r=0;t={replies[2].headers["Retry-After"]}'
        assert b'"violated-policies": ["2/hour"]' in replies[2].body

    def test_exempt_paths_are_left_alone(self, mode: Any) -> None:
        """Probes, unless something else is said."""
        with guarded(rate_limit="1/hour"):
            replies = mode.ask(["/livez", "/livez", "/"])

        assert statuses(replies) == [200, 200, 200]
        assert "RateLimit" not in replies[0].headers

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (lambda: CircuitOpenError("down", policy="secret-db", retry_after=3), 503),
            (lambda: RateLimitedError("over", retry_after=3), 429),
            (lambda: CallTimeoutError("slow"), 504),
        ],
        ids=["open", "limited", "late"],
    )
    @pytest.mark.parametrize("path", ["/", "/async", "/livez"])
    def test_refusals_in_views_become_problem_documents(
        self, mode: Any, orders: site.Orders, path: str, error: Callable[[], Exception], status: int
    ) -> None:
        """On exempt paths, too: somebody has to answer."""
        orders.error = error()
        with guarded():
            reply = mode.ask([path])[0]

        assert (reply.status, reply.headers["Content-Type"]) == (status, PROBLEM)
        assert ("Retry-After" in reply.headers) == (status != 504)
        assert b"secret-db" not in reply.body

    def test_other_errors_are_the_sites_own(self, mode: Any, orders: site.Orders) -> None:
        """Django's way, and a failure for the gate."""
        gate = SpyGate()
        orders.error = ValueError("bug")

        with guarded(shed=gate), pytest.raises(ValueError, match="bug"):
            mode.ask(["/"])
        assert type(gate.left[0]).__name__ == "FaultyAnswerError"

    def test_refusal_is_no_evidence_against_the_site(self, mode: Any, orders: site.Orders) -> None:
        """The gate is told of it, not of the status."""
        gate = SpyGate()
        orders.error = CircuitOpenError("down")
        with guarded(shed=gate):
            mode.ask(["/"])

        assert gate.left == [orders.error]

    def test_sheds(self, mode: Any) -> None:
        """A gate that is full refuses; the view does not run."""
        with guarded(shed=SpyGate(places=0)):
            reply = mode.ask(["/"])[0]

        assert reply.status == 503
        assert site.orders.seen == []

    def test_priority_holds_at_the_gate_in_views_and_in_bodies(self, mode: Any, orders: site.Orders) -> None:
        """And no longer than its request."""
        gate = SpyGate()
        with guarded(shed=gate, priority=lambda request: "critical"):
            assert statuses(mode.ask(["/importance"])) == [200]

        assert gate.priorities == [Priority.CRITICAL]
        assert orders.seen == [Priority.CRITICAL] * 2
        assert current_priority() is Priority.DEFAULT

    def test_bulkhead_sheds_what_matters_least(self, mode: Any) -> None:
        """As the client says that it does."""
        gate = Bulkhead("site", 10, priority=current_priority)
        with guarded(shed=gate, priority=requested_priority(), exempt=()):
            blocks = [gate.calling("critical") for _ in range(9)]
            for block in blocks[:7]:
                block.__enter__()
            assert mode.ask(["/"], headers={"X-Request-Priority": "low"})[0].status == 503
            assert statuses(mode.ask(["/"])) == [200]
            for block in blocks[7:]:
                block.__enter__()
            assert statuses(mode.ask(["/", "/livez"])) == [503, 200]
            for block in blocks:
                block.__exit__(None, None, None)

        assert gate.stats().in_use == 0

    def test_maintenance(self, mode: Any) -> None:
        """The page for browsers."""
        maintenance = Maintenance("<h1>Back soon</h1>")
        maintenance.on()
        with guarded(maintenance=maintenance):
            reply = mode.ask(["/"], headers={"Accept": "text/html"})[0]

        assert (reply.status, reply.body) == (503, b"<h1>Back soon</h1>")

    def test_deadline_is_seen_in_views(self, mode: Any, orders: site.Orders) -> None:
        """In threads and tasks; nothing of it is left afterwards."""
        with guarded(deadline=30):
            assert statuses(mode.ask(["/", "/async"])) == [200, 200]

        assert all(0 < left <= 30 for left in orders.seen)

    def test_deadline_cuts_an_asynchronous_view_off(self) -> None:
        """In a task; the client learns why."""
        with guarded(deadline=0.02):
            reply = Async.ask(["/hang"])[0]

        assert (reply.status, reply.headers["Content-Type"]) == (504, PROBLEM)

    def test_thread_of_a_synchronous_view_works_on(self, orders: site.Orders) -> None:
        """Under ASGI its client has an answer, and its place is free, while it does."""
        gate = SpyGate()
        orders.let_go.clear()
        with guarded(deadline=0.05, shed=gate):
            reply = Async.ask(["/wait"])[0]

        assert (reply.status, gate.held, orders.seen) == (504, 0, [])
        orders.let_go.set()
        assert eventually(lambda: orders.seen == ["worked on"])

    def test_limit_of_a_view_is_told_of_beside_that_of_the_door(self, mode: Any) -> None:
        """One field, two items; `legacy` fields tell of the inner limit."""
        with guarded("tests.integrations.django_site.knowing_users", rate_limit="9/hour", headers="both"):
            replies = mode.ask(["/items/1", "/items/2"], headers={"who": f"teller {mode.__name__}"})

        assert statuses(replies) == [200, 429]
        names = [item.strip().partition(";")[0] for item in replies[1].headers["RateLimit"].split(",")]
        assert names == ['"9/hour"', '"view"']
        assert replies[1].headers["X-RateLimit-Limit"] == "1"

    def test_refusals_are_not_logged_as_errors_of_the_site(
        self, mode: Any, orders: site.Orders, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Or a flood would fill the log, and each open circuit send mails to the administrators."""
        orders.error = CircuitOpenError("down")
        with guarded(rate_limit="1/hour"), caplog.at_level(logging.WARNING, "django.request"):
            replies = mode.ask(["/", "/"])

        assert statuses(replies) == [503, 429]
        assert caplog.records == []


class TestKeys:
    """Who is limited."""

    @pytest.mark.parametrize(("trusted", "expected"), [((), [200, 429]), ("127.0.0.0/8", [200, 200])])
    def test_forwarded_address_is_believed_of_declared_proxies_only(
        self, mode: Any, trusted: Any, expected: list[int]
    ) -> None:
        """Django's clients come from loopback."""
        with guarded(rate_limit=RateLimiter("1/hour"), trusted=trusted):
            replies = [mode.ask(["/"], headers={"X-Forwarded-For": f"198.51.100.{n}"})[0] for n in range(2)]

        assert statuses(replies) == expected

    def test_users_of_the_site(self, mode: Any, orders: site.Orders) -> None:
        """The user comes from the database, in a thread where Django asks for that; each has a limit."""
        limiter = RateLimiter("1/hour")
        with guarded(
            "tests.integrations.django_site.knowing_users",
            rate_limit=limiter,
            key=user(otherwise=None),
            deadline=30,
        ):
            got = {who: statuses(mode.ask(["/", "/async"], headers={"who": who})) for who in ("ann", "bob")}
            anonymous = statuses(mode.ask(["/", "/"]))

        assert got == {"ann": [200, 429], "bob": [200, 429]}
        assert anonymous == [200, 200]
        assert [name for name in orders.seen if isinstance(name, str)] == ["ann", "ann", "bob", "bob"]

    def test_priority_may_ask_for_the_user(self, mode: Any) -> None:
        """Who comes from the database as well; the request counts once all the same."""
        limiter, gate = RateLimiter("9/hour"), SpyGate()
        with guarded(
            "tests.integrations.django_site.knowing_users",
            rate_limit=limiter,
            shed=gate,
            priority=lambda request: "critical" if request.user.is_authenticated else "sheddable",
        ):
            mode.ask(["/"], headers={"who": "ann"})
            mode.ask(["/"])

        assert gate.priorities == [Priority.CRITICAL, Priority.SHEDDABLE]
        assert limiter.stats().allowed == 2

    def test_key_that_asks_a_database_itself_is_refused_by_django(self) -> None:
        """Its own error says what to do."""

        @async_unsafe
        def tenant(request: Any) -> str:
            return "never"

        with guarded(rate_limit="1/hour", key=tenant), pytest.raises(SynchronousOnlyOperation):
            Async.ask(["/"])

    def test_routes_and_users_of_a_limited_view(self, mode: Any) -> None:
        """The route's template, not the path; a method's request is found, too."""
        paths = ["/items/1", "/items/2", "/items", "/items"]
        with guarded("tests.integrations.django_site.knowing_users"):
            got = statuses(mode.ask(paths, headers={"who": f"router {mode.__name__}"}))

        assert got == [200, 429, 200, 429]

    def test_key_needs_a_request(self) -> None:
        """A limiter around something else says what is missing."""
        with pytest.raises(TypeError, match="must hold a request"):
            request_key(client_address())(1, who="ann")

    def test_key_works_without_the_middleware(self) -> None:
        """A bare request of a test will do; nobody is believed."""
        request = HttpRequest()
        request.META = {"REMOTE_ADDR": "192.0.2.1", "HTTP_X_FORWARDED_FOR": "198.51.100.1"}

        assert request_key(client_address())(request) == "192.0.2.1"

    def test_request_may_be_wrapped(self) -> None:
        """Django REST framework hands its views a request of its own."""

        class Wrapped:
            def __init__(self, request: Any) -> None:
                self._request = request

            def __getattr__(self, name: str) -> Any:
                return getattr(self._request, name)

        wrapped = Wrapped(RequestFactory().get("/", REMOTE_ADDR="192.0.2.1"))

        assert request_key(client_address())(object(), wrapped, pk=1) == "192.0.2.1"

    def test_bad_key_is_named(self) -> None:
        """At once."""
        keys: list[Any] = ["ip", client_address]
        for key in keys:
            with pytest.raises(
                TypeError, match=r"key must be (callable|a key function: write client_address)"
            ):
                request_key(key)


class TestSettings:
    """`RESILIENT` is checked when Django loads its middleware."""

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"rate_limt": "1/hour"}, "RESILIENT must be one of .*got 'rate_limt'"),
            ({"deadline": 0}, "deadline must be greater than 0"),
            ({"rate_limit": 5}, "rate_limit must be"),
            ("100/minute", "RESILIENT must be a dictionary"),
        ],
    )
    @pytest.mark.parametrize("handler", [WSGIHandler, ASGIHandler])
    def test_bad_settings_are_named(self, handler: Any, value: Any, message: str) -> None:
        """As Django's own error for that."""
        with override_settings(RESILIENT=value), pytest.raises(ImproperlyConfigured, match=message):
            handler()

    def test_nothing_has_to_be_set(self, mode: Any) -> None:
        """Refusals are answered all the same."""
        assert statuses(mode.ask(["/"])) == [200]

    def test_is_at_home_in_both_modes(self) -> None:
        """Django need not put a thread between."""
        assert ResilienceMiddleware.sync_capable
        assert ResilienceMiddleware.async_capable


class TestStreams:
    """The place of a streaming response: until the body ends, exactly once."""

    @pytest.fixture
    def no_collector(self) -> Iterator[None]:
        """Free only what nothing refers to any more."""
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize(("mode", "path"), [(Sync, "/stream"), (Async, "/astream"), (Async, "/stream")])
    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    def test_comes_back_at_the_end(self, mode: Any, path: str) -> None:
        """As a success."""
        gate = SpyGate()
        with guarded(shed=gate, deadline=30):
            replies = mode.ask([path])

        assert replies[0].body == b"firstlast"
        assert gate.left == [None]

    @pytest.mark.parametrize(("mode", "path"), [(Sync, "/stream"), (Async, "/astream")])
    def test_comes_back_with_the_error_that_ends_it(self, mode: Any, path: str, orders: site.Orders) -> None:
        """A body that breaks is a failure of the site."""
        gate = SpyGate()
        orders.error = ValueError("bug")
        with guarded(shed=gate), pytest.raises(ValueError, match="bug"):
            mode.ask([path])

        assert gate.left == [orders.error]

    def test_comes_back_from_a_response_that_is_dropped(self, no_collector: None) -> None:
        """A middleware outside may answer something else; Django does not close the first response."""
        gate = SpyGate()
        with guarded("tests.integrations.django_site.replacing", shed=gate):
            assert Sync.ask(["/stream"])[0].body == b"replaced"

        assert len(gate.left) == 1
        assert isinstance(gate.left[0], asyncio.CancelledError)

    @pytest.mark.parametrize("path", ["/stream", "/astream"])
    @pytest.mark.parametrize("begun", [True, False])
    def test_response_is_no_circle(self, no_collector: None, path: str, begun: bool) -> None:
        """It is freed at once when it is closed halfway or dropped, and not by the garbage collector."""

        async def begin() -> weakref.ref[Any]:
            handler = ASGIHandler()
            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
            request, _ = handler.create_request({**scope, "client": ("192.0.2.1", 1)}, None)
            response = await handler.get_response_async(request)
            if begun:
                first = await anext(aiter(response)) if response.is_async else next(iter(response))
                assert first == b"first"
                response.close()
            return weakref.ref(response)

        with guarded(shed=SpyGate(), deadline=30):
            response = asyncio.run(begin())
            # The thread of a view that is no coroutine may be about to let go of what it has returned.
            wait_until(lambda: response() is None, "it is freed")

    @pytest.mark.parametrize(("mode", "path"), [(Sync, "/stream"), (Async, "/astream")])
    def test_deadline_is_that_of_the_body_and_not_of_the_thread(
        self, mode: Any, path: str, orders: site.Orders
    ) -> None:
        """A server may call the site again before it has sent the body."""

        async def between() -> Any:
            client = Client() if mode is Sync else AsyncClient()
            response: Any = client.get(path)
            response = await response if mode is Async else response
            after_the_view = time_left()
            body = [chunk async for chunk in response] if mode is Async else list(response)
            return body, after_the_view, time_left()

        with guarded(deadline=30):
            assert asyncio.run(between()) == ([b"first", b"last"], None, None)

        assert 0 < orders.seen[-1] <= 30

    async def test_comes_back_in_its_loop_when_closed_by_a_thread(self) -> None:
        """As Django's ASGI handler closes it."""
        gate = SpyGate()
        with guarded(shed=gate, deadline=30):
            handler = ASGIHandler()
            scope = {"type": "http", "method": "GET", "path": "/astream", "headers": [], "query_string": b""}
            request, _ = handler.create_request({**scope, "client": ("192.0.2.1", 1)}, None)
            response = await handler.get_response_async(request)
            assert gate.held == 1
            await asyncio.to_thread(response.close)
            await asyncio.sleep(0)

        assert len(gate.left) == 1
        assert isinstance(gate.left[0], asyncio.CancelledError)

    def test_comes_back_when_its_loop_is_gone(self) -> None:
        """What is closed too late still gives its place back."""
        gate = SpyGate()
        with guarded(shed=gate):
            response = asyncio.run(AsyncClient().get("/astream"))
            assert gate.held == 1
            response.close()

        assert len(gate.left) == 1


Serve = Callable[..., AbstractContextManager[int]]


class TestSockets:
    """Over uvicorn and wsgiref."""

    @pytest.fixture
    def gate(self) -> SpyGate:
        return SpyGate()

    @pytest.fixture(params=["wsgiref", "uvicorn"])
    def server(self, request: pytest.FixtureRequest) -> tuple[Serve, Any, str]:
        if request.param == "wsgiref":
            return wsgiref_serving, WSGIHandler, "/stream?more=100"
        return uvicorn_serving, ASGIHandler, "/astream"

    @pytest.fixture
    def port(self, server: tuple[Serve, Any, str], gate: SpyGate) -> Iterator[int]:
        serve, handler, _ = server
        with guarded(shed=gate, deadline=20, rate_limit={"/": "1/hour"}), serve(handler()) as port:
            yield port

    def test_stream_holds_its_place_until_its_end(
        self, port: int, server: tuple[Serve, Any, str], gate: SpyGate, orders: site.Orders
    ) -> None:
        """One place, given back once."""
        orders.let_go.clear()
        with connection(port) as client:
            client.request("GET", server[2])
            response = client.getresponse()
            assert response.read(5) == b"first"
            assert gate.held == 1
            orders.let_go.set()
            assert response.read(4) == b"last"
            response.read()
        assert eventually(lambda: gate.left == [None])

    def test_client_that_leaves_gives_its_place_back(
        self, port: int, server: tuple[Serve, Any, str], gate: SpyGate, orders: site.Orders
    ) -> None:
        """As an abandonment."""
        orders.let_go.clear()
        with connection(port) as client:
            client.request("GET", server[2])
            assert client.getresponse().read(5) == b"first"
        if server[1] is WSGIHandler:  # a thread learns of it when it writes
            orders.let_go.set()

        assert eventually(lambda: len(gate.left) == 1)
        orders.let_go.set()
        assert isinstance(gate.left[0], asyncio.CancelledError | GeneratorExit)

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    def test_file_is_sent_and_gives_its_place_back(self, port: int, gate: SpyGate) -> None:
        """By the server's own means where it has some."""
        status, fields, body = fetch(port, "/file")

        assert (status, fields["content-length"]) == (200, str(len(body)))
        assert body.startswith(b'"""A site of Django')
        assert eventually(lambda: gate.left == [None])

    def test_refusal_is_a_whole_response(self, port: int) -> None:
        """429 with its fields, and an empty body for HEAD."""
        fetch(port, "/")
        status, fields, body = fetch(port, "/")
        head = fetch(port, "/", "HEAD")

        assert (status, fields["content-type"]) == (429, PROBLEM)
        assert fields["content-length"] == str(len(body))
        assert (head[0], head[2]) == (429, b"")

    def test_client_that_leaves_the_queue_gives_up_its_turn(self, orders: site.Orders) -> None:
        """Under ASGI; Django itself cancels the request."""
        gate = Bulkhead("site", 1, max_wait=20)
        with guarded(shed=gate), uvicorn_serving(ASGIHandler()) as port, gate.calling():
            with connection(port) as client:
                client.request("GET", "/async")
                assert eventually(lambda: gate.stats().waiting == 1)
            assert eventually(lambda: gate.stats().waiting == 0)

        assert orders.seen == []
