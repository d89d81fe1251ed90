"""Flask: the extension, with Flask's test client and over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from flask import Blueprint, Flask, Response, stream_with_context
from tests.web.servers import connection, eventually, wsgiref_serving
from tests.web.support import SpyGate

from resilient import (
    Bulkhead,
    CircuitBreaker,
    Priority,
    RateLimiter,
    Retry,
    current_priority,
    time_left,
)
from resilient.errors import CallTimeoutError, CircuitOpenError, RateLimitedError, RejectedError
from resilient.integrations.flask import Resilience, request_key
from resilient.wsgi import Maintenance, client_address, combined, requested_priority, route, user

PROBLEM = "application/problem+json"


def app_with(view: Callable[[], Any] = lambda: "hello", **words: Any) -> Flask:
    """Return an app with one view, guarded."""
    app = Flask("shop")
    app.add_url_rule("/", "view", view)
    Resilience(app, **words)
    return app


def raising(error: Exception) -> Callable[[], None]:
    """Return a view that raises *error*."""

    def view() -> None:
        raise error

    return view


class TestExtension:
    """Where it stands, and where its words come from."""

    def test_limits_and_tells(self) -> None:
        """The middleware's limit, through Flask's own client."""
        client = app_with(rate_limit="2/hour").test_client()
        replies = [client.get("/") for _ in range(3)]

        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert replies[0].headers["RateLimit"] == '"2/hour";r=1;t=1800'
        assert replies[2].content_type == PROBLEM
        assert replies[2].json is not None
        assert replies[2].json["violated-policies"] == ["2/hour"]

    def test_application_factory(self) -> None:
        """One extension guards many apps, each with its own configuration and its own counts."""
        extension = Resilience(rate_limit="2/hour")

        def create_app(**config: Any) -> Flask:
            app = Flask("shop")
            app.config.update(config)
            app.add_url_rule("/", "view", lambda: "hello")
            extension.init_app(app)
            return app

        apps = [
            create_app(),
            create_app(RESILIENT_RATE_LIMIT="1/hour"),
            create_app(RESILIENT_RATE_LIMIT=None),
        ]

        statuses = [[app.test_client().get("/").status_code for _ in range(3)] for app in apps]
        assert statuses == [[200, 200, 429], [200, 429, 429], [200, 200, 200]]
        assert all(app.extensions["resilient"] is extension for app in apps)

    def test_configuration_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Flask reads numbers and lists from it as JSON, and they are what the words take."""
        monkeypatch.setenv("SHOP_RESILIENT_DEADLINE", "7.5")
        monkeypatch.setenv("SHOP_RESILIENT_EXEMPT", '["/ping"]')
        monkeypatch.setenv("SHOP_RESILIENT_RATE_LIMIT", "1/hour")
        app = Flask("shop")
        app.config.from_prefixed_env("SHOP")
        app.add_url_rule("/", "view", lambda: str(time_left()))
        app.add_url_rule("/ping", "ping", lambda: "pong")
        Resilience(app)
        client = app.test_client()

        assert 0 < float(client.get("/").text) <= 7.5
        assert [client.get(path).status_code for path in ("/ping", "/ping", "/")] == [200, 200, 429]

    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            ({"RESILIENT_RATE_LIMT": "1/hour"}, ValueError, r"RESILIENT_\* must be one of .*got 'rate_limt'"),
            ({"RESILIENT_DEADLINE": "soon"}, TypeError, "deadline must be a number of seconds"),
            ({"RESILIENT_EXEMPT": ["ping"]}, ValueError, "exempt must name paths"),
        ],
    )
    def test_bad_configuration_is_named(self, config: Any, error: Any, message: str) -> None:
        """By `init_app`, not at the first request."""
        app = Flask("shop")
        app.config.update(config)

        with pytest.raises(error, match=message):
            Resilience(app)

    def test_bad_words_are_named(self) -> None:
        """By the constructor, though there is no app yet."""
        words: Any = {"limit": "1/hour"}
        with pytest.raises(ValueError, match=r"must be one of 'rate_limit'.*got 'limit'"):
            Resilience(**words)

    def test_bulkhead_sheds_what_matters_least(self) -> None:
        """As the client says that it does; views know of it, and the next request does not."""
        gate, seen = Bulkhead("shop", 10, priority=current_priority), []

        def view() -> str:
            seen.append(current_priority())
            return "hello"

        client = app_with(view, shed=gate, priority=requested_priority()).test_client()
        low = {"X-Request-Priority": "low"}
        assert client.get("/", headers=low).status_code == 200
        blocks = [gate.calling("critical") for _ in range(7)]
        for block in blocks:
            block.__enter__()
        assert client.get("/", headers=low).status_code == 503
        assert client.get("/").status_code == 200
        for block in blocks:
            block.__exit__(None, None, None)

        assert seen == [Priority.SHEDDABLE, Priority.DEFAULT]

    def test_app_is_guarded_once(self) -> None:
        """A second time would count each request twice."""
        app = app_with()

        with pytest.raises(RuntimeError, match="guarded already"):
            Resilience(app)

    def test_maintenance_can_be_switched(self) -> None:
        """The switch is an object the app keeps."""
        maintenance = Maintenance("<h1>Back soon</h1>")
        client = app_with(maintenance=maintenance).test_client()
        statuses = []
        for switch in (maintenance.on, maintenance.off):
            switch()
            statuses.append(client.get("/", headers={"Accept": "text/html"}).status_code)

        assert statuses == [503, 200]


class TestRefusals:
    """What policies raise in views."""

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (CircuitOpenError("down", policy="secret-db", retry_after=3), 503),
            (RateLimitedError("over", retry_after=3), 429),
            (CallTimeoutError("slow"), 504),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("testing", [False, True])
    def test_become_problem_documents(self, error: Exception, status: int, testing: bool) -> None:
        """In tests, too, where Flask lets errors through."""
        app = app_with(raising(error))
        app.testing = testing
        reply = app.test_client().get("/")

        assert (reply.status_code, reply.content_type) == (status, PROBLEM)
        assert ("Retry-After" in reply.headers) == (status != 504)
        assert "secret-db" not in reply.text

    def test_policies_as_decorators(self) -> None:
        """A breaker and a limiter around views, plain and async, need nothing else."""
        breaker = CircuitBreaker("db", min_calls=1, failure_ratio=0.5)
        app = Flask("shop")
        app.testing = True

        @app.get("/orders/<int:order>")
        @breaker
        def orders(order: int) -> str:
            raise ConnectionError(order)

        @app.get("/async")
        @RateLimiter("1/hour")
        async def asynchronous() -> str:
            await asyncio.sleep(0)
            return "hello"

        Resilience(app)
        client = app.test_client()

        with pytest.raises(ConnectionError):
            client.get("/orders/1")
        assert client.get("/orders/2").status_code == 503
        assert [client.get("/async").status_code for _ in range(2)] == [200, 429]

    def test_handlers_of_the_app_win(self) -> None:
        """A blueprint, or an app with a handler for a closer class, answers in its own words."""
        blueprint = Blueprint("api", "shop", url_prefix="/api")

        @blueprint.errorhandler(RejectedError)
        def own(error: RejectedError) -> tuple[str, int]:
            return "own", 503

        blueprint.add_url_rule("/", "view", raising(RejectedError("busy")))
        app = app_with(raising(RejectedError("busy")))
        app.register_blueprint(blueprint)
        client = app.test_client()

        assert client.get("/api/").text == "own"
        assert client.get("/").content_type == PROBLEM

    def test_teardown_runs_and_sees_no_error(self) -> None:
        """The refusal was handled."""
        seen: list[Any] = []
        app = app_with(raising(RejectedError("busy")))
        app.teardown_request(seen.append)

        assert app.test_client().get("/").status_code == 503
        assert seen == [None]

    def test_refusal_is_no_evidence_against_the_app(self) -> None:
        """A gate at the door is told of it, and of a bug as of a bug."""
        gate, refusal = SpyGate(), CircuitOpenError("down")
        app = app_with(raising(refusal), shed=gate)
        app.add_url_rule("/bug", "bug", raising(ValueError("bug")))
        client = app.test_client()
        for path in ("/", "/bug"):
            client.get(path, buffered=True)

        assert gate.left[0] is refusal
        assert type(gate.left[1]).__name__ == "FaultyAnswerError"

    def test_limit_in_a_view_is_told_of_beside_that_of_the_door(self) -> None:
        """One field, two items; Retry-After is that of the one that refused."""
        app = Flask("shop")
        app.add_url_rule("/", "view", RateLimiter("1/hour", name="view")(lambda: "hello"))
        Resilience(app, rate_limit="9/hour")
        client = app.test_client()
        client.get("/")
        reply = client.get("/")

        names = [item.strip().partition(";")[0] for item in reply.headers["RateLimit"].split(",")]
        assert (reply.status_code, names) == (429, ['"9/hour"', '"view"'])

    def test_deadline_is_seen_in_views(self) -> None:
        """A retry inside gives up when the client's time is up."""
        app = app_with(deadline=30, trusted="127.0.0.1")
        calls: list[float | None] = []

        @app.get("/late")
        @Retry(on=ConnectionError, attempts=50, sleep=lambda seconds: None)
        def late() -> str:
            calls.append(time_left())
            raise ConnectionError

        reply = app.test_client().get("/late", headers={"X-Request-Timeout-Ms": "0"})

        assert reply.status_code == 504
        assert calls == []


class TestKeys:
    """Keys of Flask's request, for the limiter around a view."""

    def test_route_and_address(self) -> None:
        """The rule, not the path; addresses apart."""
        limiter = RateLimiter("1/hour", key=request_key(combined(route(), client_address())))
        app = Flask("shop")
        app.add_url_rule("/items/<item>", "items", limiter(lambda item: item))
        app.add_url_rule("/users/<user>", "users", limiter(lambda user: user))
        Resilience(app)
        client = app.test_client()

        asked = [("/items/1", "a"), ("/items/2", "a"), ("/users/1", "a"), ("/items/3", "b")]
        peers = {"a": "192.0.2.1", "b": "192.0.2.2"}
        statuses = [
            client.get(path, environ_base={"REMOTE_ADDR": peers[who]}).status_code for path, who in asked
        ]
        assert statuses == [200, 429, 200, 200]

    def test_user_of_the_session(self) -> None:
        """A key function may ask Flask, and None from it lifts the limit."""
        app = Flask("shop")
        app.secret_key = "for the test"
        key = request_key(user(lambda request: flask.session.get("user"), otherwise=None))
        app.add_url_rule("/", "view", RateLimiter("1/hour", key=key)(lambda: "hello"))

        @app.get("/login/<name>")
        def login(name: str) -> str:
            flask.session["user"] = name
            return name

        Resilience(app)
        client = app.test_client()

        assert [client.get("/").status_code for _ in range(2)] == [200, 200]
        for name in ("ann", "bob"):
            client.get(f"/login/{name}")
            assert [client.get("/").status_code for _ in range(2)] == [200, 429]

    @pytest.mark.parametrize(("trusted", "statuses"), [((), [200, 429]), ("192.0.2.0/24", [200, 200])])
    def test_forwarded_address_is_believed_of_declared_proxies_only(
        self, trusted: Any, statuses: Any
    ) -> None:
        """Those of the extension."""
        limiter = RateLimiter("1/hour", key=request_key(client_address()))
        client = app_with(limiter(lambda: "hello"), trusted=trusted).test_client()

        got = [
            client.get(
                "/",
                environ_base={"REMOTE_ADDR": "192.0.2.1"},
                headers={"X-Forwarded-For": f"198.51.100.{n}"},
            ).status_code
            for n in range(2)
        ]
        assert got == statuses

    def test_nobody_is_believed_without_the_extension(self) -> None:
        """The key works all the same."""
        key = request_key(client_address())
        app = Flask("shop")
        with app.test_request_context(
            environ_base={"REMOTE_ADDR": "192.0.2.1"}, headers={"X-Forwarded-For": "198.51.100.1"}
        ):
            assert key() == "192.0.2.1"

    def test_needs_a_request(self) -> None:
        """Outside of one, Flask's own error says what is missing."""
        with pytest.raises(RuntimeError, match="outside of request context"):
            request_key(client_address())()

    @pytest.mark.parametrize("key", ["ip", None, user])
    def test_bad_key_is_named(self, key: Any) -> None:
        """At once."""
        with pytest.raises(TypeError, match="key must be"):
            request_key(key)


class TestSockets:
    """Over wsgiref: streams, and clients that leave."""

    @pytest.fixture
    def gate(self) -> SpyGate:
        return SpyGate()

    @pytest.fixture
    def let_go(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def port(self, gate: SpyGate, let_go: threading.Event) -> Iterator[int]:
        def stream() -> Response:
            def chunks() -> Iterator[bytes]:
                yield b"first"
                let_go.wait(5)
                yield flask.request.method.encode()
                for _ in range(100):
                    yield b"." * 100_000

            return Response(stream_with_context(chunks()))

        with wsgiref_serving(app_with(stream, shed=gate)) as port:
            yield port

    def test_stream_holds_its_place_until_its_end(
        self, port: int, gate: SpyGate, let_go: threading.Event
    ) -> None:
        """One place, given back once, with Flask's request there until then."""
        with connection(port) as client:
            client.request("GET", "/")
            response = client.getresponse()
            assert response.read(5) == b"first"
            assert gate.held == 1
            let_go.set()
            assert response.read(3) == b"GET"
            response.read()
        assert eventually(lambda: gate.left == [None])

    def test_client_that_leaves_gives_its_place_back(
        self, port: int, gate: SpyGate, let_go: threading.Event
    ) -> None:
        """As an abandonment."""
        with connection(port) as client:
            client.request("GET", "/")
            assert client.getresponse().read(5) == b"first"
        let_go.set()

        assert eventually(lambda: len(gate.left) == 1)
        assert isinstance(gate.left[0], asyncio.CancelledError)
