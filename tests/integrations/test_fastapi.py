"""FastAPI: the dependency, and what `install` adds; with its test client, and over real sockets."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from tests.web.servers import connection, eventually, fetch, read, uvicorn_serving
from tests.web.support import SpyGate

from resilient import Bulkhead, Decision, Priority, RateLimiter, current_priority, events, time_left
from resilient.asgi import api_key, client_address, requested_priority, route
from resilient.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    RateLimitedError,
    RejectedError,
)
from resilient.integrations.fastapi import RESPONSES, install, rate_limit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another client than httpx
    from fastapi.testclient import TestClient

PROBLEM = "application/problem+json"


def client_of(app: FastAPI, **options: Any) -> TestClient:
    """Return FastAPI's test client, which raises what leaves the app."""
    return TestClient(app, **options)


def app_with(*routes: tuple[str, Callable[..., Any]], **words: Any) -> FastAPI:
    """Return an app where `install` was called with *words*."""
    app = FastAPI()
    for path, endpoint in routes:
        app.get(path)(endpoint)
    install(app, **words)
    return app


def raising(error: Exception) -> Callable[[], None]:
    """Return a route that raises *error*."""

    def endpoint() -> None:
        raise error

    return endpoint


class TestDependency:
    """`Depends(rate_limit(...))`, without anything else."""

    @pytest.fixture(params=["sync", "async"])
    def app(self, request: pytest.FixtureRequest) -> FastAPI:
        app = FastAPI()
        limit = rate_limit("2/hour")

        def sync_hello() -> str:
            return "hello"

        async def async_hello() -> str:
            return "hello"

        hello = sync_hello if request.param == "sync" else async_hello
        app.get("/", dependencies=[Depends(limit)])(hello)
        return app

    def test_lets_in_and_tells(self, app: FastAPI) -> None:
        """Fields of the draft tell of what is left."""
        reply = client_of(app).get("/")

        assert (reply.status_code, reply.json()) == (200, "hello")
        assert reply.headers["RateLimit"] == '"2/hour";r=1;t=1800'
        assert reply.headers["RateLimit-Policy"] == '"2/hour";q=2;w=3600'

    def test_refuses_in_the_words_of_fastapi(self, app: FastAPI) -> None:
        """The third of two gets 429, FastAPI's body, and when to come back."""
        client = client_of(app)
        statuses = [client.get("/").status_code for _ in range(2)]
        reply = client.get("/")

        assert statuses == [200, 200]
        assert reply.status_code == 429
        assert reply.json() == {"detail": "There were too many requests."}
        assert 1700 < int(reply.headers["Retry-After"]) <= 1800
        assert reply.headers["RateLimit"] == f'"2/hour";r=0;t={reply.headers["Retry-After"]}'
        assert reply.headers["RateLimit-Policy"] == '"2/hour";q=2;w=3600'
        assert reply.headers["Cache-Control"] == "no-store"

    def test_refusal_is_an_http_exception_with_its_cause(self) -> None:
        """An app's own handlers for 429 answer it, and find out what refused."""
        app = FastAPI()
        app.get("/", dependencies=[Depends(rate_limit("1/hour"))])(lambda: None)
        seen: list[Any] = []

        @app.exception_handler(429)
        async def own(request: Any, error: HTTPException) -> PlainTextResponse:
            seen.append(error.__cause__)
            return PlainTextResponse("own", 429)

        client = client_of(app)
        client.get("/")

        assert client.get("/").text == "own"
        assert isinstance(seen[0], RateLimitedError)
        assert seen[0].policy == "1/hour"
        assert not seen[0].decision.allowed  # type: ignore[union-attr]

    def test_shared_object_is_one_limit_and_counts_a_request_once(self) -> None:
        """A router and its route depend on the same object: one permit a request."""
        limit = rate_limit("3/hour")
        router = APIRouter(prefix="/api", dependencies=[Depends(limit)])

        given = Depends(limit)

        @router.get("/a")
        async def a(decision: Decision = given) -> int:
            return decision.remaining

        @router.get("/b")
        async def b() -> None:
            pass

        app = FastAPI()
        app.include_router(router)
        client = client_of(app)

        assert client.get("/api/a").json() == 2
        assert client.get("/api/b").headers["RateLimit"].startswith('"3/hour";r=1;')

    def test_two_limits_are_both_told_of(self) -> None:
        """Either refuses; the fields are lists."""
        app = FastAPI(dependencies=[Depends(rate_limit("100/hour"))])
        app.get("/", dependencies=[Depends(rate_limit(RateLimiter("1/minute", name="tight")))])(lambda: None)
        client = client_of(app)

        told = client.get("/").headers.get_list("RateLimit")
        reply = client.get("/")

        assert [field.partition(";")[0] for field in told] == ['"100/hour"', '"tight"']
        assert (reply.status_code, reply.headers["RateLimit"].partition(";")[0]) == (429, '"tight"')

    def test_overrides_replace_it(self) -> None:
        """`dependency_overrides` finds it by the object, as by any function."""
        limit = rate_limit("1/hour")
        app = FastAPI()
        app.get("/", dependencies=[Depends(limit)])(lambda: None)
        app.dependency_overrides[limit] = lambda: None
        client = client_of(app)

        replies = [client.get("/") for _ in range(3)]

        assert {reply.status_code for reply in replies} == {200}
        assert "RateLimit" not in replies[0].headers

    def test_decision_can_be_given_back(self) -> None:
        """A route that did nothing refunds what it cost."""
        limit = rate_limit("10/hour", cost=10)
        given = Depends(limit)
        app = FastAPI()

        @app.get("/")
        async def nothing(decision: Decision = given) -> None:
            await limit.limiter.arefund(decision)

        client = client_of(app)

        assert [client.get("/").status_code for _ in range(3)] == [200, 200, 200]
        assert limit.limiter.peek("testclient").remaining == 10

    def test_key_may_be_the_route_template(self) -> None:
        """All items share one permit; their identifiers do not count, prefixes do."""
        limit = rate_limit("1/hour", key=route())
        router = APIRouter(prefix="/shop")
        for path in ("/items/{item}", "/users/{user}"):
            router.get(path, dependencies=[Depends(limit)])(lambda: None)
        app = FastAPI()
        app.include_router(router, prefix="/v1")
        client = client_of(app)

        paths = ("/v1/shop/items/1", "/v1/shop/items/2", "/v1/shop/users/1")
        assert [client.get(path).status_code for path in paths] == [200, 429, 200]
        assert limit.limiter.peek("GET /v1/shop/items/{item}").remaining == 0

    def test_key_of_none_lifts_the_limit(self) -> None:
        """A request without a key has no decision and no fields."""
        app = FastAPI()
        given = Depends(rate_limit("1/hour", key=api_key(otherwise=None)))

        @app.get("/")
        async def show(decision: Decision | None = given) -> bool:
            return decision is None

        client = client_of(app)

        assert [client.get("/").json() for _ in range(2)] == [True, True]
        assert "RateLimit" not in client.get("/").headers
        keyed = [client.get("/", headers={"X-API-Key": "k"}).status_code for _ in range(2)]
        assert keyed == [200, 429]

    def test_spoofed_address_is_not_believed(self) -> None:
        """Nobody is a proxy who was not declared."""
        app = FastAPI()
        app.get("/", dependencies=[Depends(rate_limit("1/hour"))])(lambda: None)
        client = client_of(app, client=("192.0.2.1", 1))

        replies = [client.get("/", headers={"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(3)]

        assert [reply.status_code for reply in replies] == [200, 429, 429]

    @pytest.mark.parametrize("declared", ["installed", "key"])
    def test_declared_proxies_are_believed(self, declared: str) -> None:
        """Those of `install` count for dependencies too; a key function may have its own."""
        app = FastAPI()
        key = client_address(trusted="192.0.2.0/24") if declared == "key" else None
        app.get("/", dependencies=[Depends(rate_limit("1/hour", key=key))])(lambda: None)
        if declared == "installed":
            install(app, trusted="192.0.2.0/24")
        client = client_of(app, client=("192.0.2.1", 1))

        replies = [client.get("/", headers={"X-Forwarded-For": f"198.51.100.{n % 2}"}) for n in range(3)]

        assert [reply.status_code for reply in replies] == [200, 200, 429]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"rate": 5}, TypeError, "rate must be a RateLimiter or a rate"),
            ({"rate": "often"}, ValueError, "rate"),
            ({"rate": "1/hour", "cost": 0}, ValueError, "cost must be at least 1"),
            ({"rate": "1/hour", "key": "ip"}, TypeError, "key must be callable"),
            ({"rate": "1/hour", "key": route}, TypeError, "key must be a key function: write"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments: Any, error: Any, message: str) -> None:
        """Where the app is built, not at the first request."""
        with pytest.raises(error, match=message):
            rate_limit(**arguments)

    def test_shows_its_limit(self) -> None:
        """Its text names the limiter."""
        assert "'1/hour'" in repr(rate_limit("1/hour"))


class TestInstall:
    """`install`: the middleware, and handlers for every refusal."""

    @pytest.mark.parametrize(
        ("error", "status", "retry_after"),
        [
            (CircuitOpenError("down", policy="secret-db", retry_after=8.0), 503, range(8, 13)),
            (BulkheadFullError("full"), 503, range(1, 4)),
            (RateLimitedError("over", retry_after=2.5), 429, range(3, 4)),
            (DeadlineExceededError("late"), 504, None),
            (CallTimeoutError("slow", seconds=1.0), 504, None),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_refusals_in_routes_become_problem_documents(
        self, error: Exception, status: int, retry_after: range | None
    ) -> None:
        """Each kind has its status, and tells nothing of what is inside."""
        reply = client_of(app_with(("/", raising(error)))).get("/")

        assert (reply.status_code, reply.headers["Content-Type"]) == (status, PROBLEM)
        assert reply.json()["status"] == status
        assert "secret-db" not in reply.text
        told = reply.headers.get("Retry-After")
        assert told is None if retry_after is None else int(told or 0) in retry_after

    def test_dependency_refuses_with_a_problem_document(self) -> None:
        """The same document as that of the middleware's own limit."""
        app = FastAPI()
        app.get("/", dependencies=[Depends(rate_limit(RateLimiter("1/hour", name="mine")))])(lambda: None)
        install(app)
        client = client_of(app)
        client.get("/")
        reply = client.get("/")

        assert (reply.status_code, reply.headers["Content-Type"]) == (429, PROBLEM)
        assert reply.json()["violated-policies"] == ["mine"]
        assert reply.headers.get_list("RateLimit") == [f'"mine";r=0;t={reply.headers["Retry-After"]}']

    def test_route_that_makes_its_own_response_tells_of_its_limit(self) -> None:
        """FastAPI drops what a dependency says there, so it takes the middleware."""

        def own() -> PlainTextResponse:
            return PlainTextResponse("own")

        told = []
        for installed in (False, True):
            app = FastAPI()
            app.get("/", dependencies=[Depends(rate_limit("5/hour"))])(own)
            if installed:
                install(app)
            told.append("RateLimit" in client_of(app).get("/").headers)

        assert told == [False, True]

    @pytest.mark.parametrize("headers", ["ietf", "legacy", "both", None])
    def test_dialect_is_that_of_install(self, headers: Any) -> None:
        """It counts for the dependency too; of the older fields there is one each, about the inner limit."""
        app = FastAPI()
        app.get("/", dependencies=[Depends(rate_limit("5/hour"))])(lambda: None)
        install(app, rate_limit="7/hour", headers=headers)
        client = client_of(app)

        for _ in range(6):
            reply = client.get("/")
            assert ("RateLimit" in reply.headers) == (headers in {"ietf", "both"})
            assert reply.headers.get_list("X-RateLimit-Limit") == (
                ["5"] if headers in {"legacy", "both"} else []
            )
            if "RateLimit" in reply.headers:
                names = [item.strip().partition(";")[0] for item in reply.headers["RateLimit"].split(",")]
                assert names == ['"7/hour"', '"5/hour"']
        assert reply.status_code == 429

    def test_exempt_path_has_the_words_of_install_too(self) -> None:
        """A limit inside believes whom the door believes, and tells of itself."""
        app = FastAPI()
        for path in ("/", "/exempt"):
            app.get(path, dependencies=[Depends(rate_limit("1/hour"))])(lambda: None)
        install(app, trusted="192.0.2.0/24", exempt=["/exempt"], headers="legacy")
        client = client_of(app, client=("192.0.2.1", 1))

        for path in ("/", "/exempt"):
            replies = [client.get(path, headers={"X-Forwarded-For": f"198.51.100.{n % 2}"}) for n in range(3)]
            assert [reply.status_code for reply in replies] == [200, 200, 429]
            assert [reply.headers.get_list("X-RateLimit-Limit") for reply in replies] == [["1"]] * 3

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_bulkhead_sheds_what_matters_least(self, kind: str) -> None:
        """As the client says that it does; routes know of it, in threads and in tasks."""
        gate, seen = Bulkhead("shop", 10, priority=current_priority), []

        def in_thread() -> str:
            seen.append(current_priority())
            return "hello"

        async def in_task() -> str:
            return in_thread()

        app = app_with(
            ("/", in_thread if kind == "sync" else in_task), shed=gate, priority=requested_priority()
        )
        low = {"X-Request-Priority": "low"}
        with client_of(app) as client:
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
            install(app)

    def test_refusal_in_a_stream_is_no_evidence_against_the_app(self) -> None:
        """Starlette raises an error of its own then."""
        gate = SpyGate()

        async def stream() -> StreamingResponse:
            async def chunks() -> AsyncIterator[bytes]:
                yield b"first"
                raise CircuitOpenError("down")

            return StreamingResponse(chunks())

        app = app_with(("/", stream), shed=gate)
        client_of(app, raise_server_exceptions=False).get("/")

        assert [type(error) for error in gate.left] == [CircuitOpenError]

    @pytest.mark.parametrize("where", ["before", "teardown"])
    def test_refusals_in_yield_dependencies_are_answered(self, where: str) -> None:
        """Before the route runs, and after it if no response has begun."""
        cleaned: list[str] = []

        async def resource() -> AsyncIterator[None]:
            if where == "before":
                raise RejectedError("busy")
            try:
                yield
            finally:
                cleaned.append("up")
            raise RejectedError("gone")

        app = FastAPI()
        app.get("/", dependencies=[Depends(resource, scope="function")])(lambda: None)
        install(app)

        assert client_of(app).get("/").status_code == 503
        assert cleaned == ([] if where == "before" else ["up"])

    def test_yield_dependencies_see_the_refusal(self) -> None:
        """One that is open when a later limit refuses is closed, and told why."""
        seen: list[Any] = []

        async def resource() -> AsyncIterator[None]:
            try:
                yield
            except HTTPException as error:
                seen.append(error.status_code)
                raise

        app = FastAPI()
        app.get("/", dependencies=[Depends(resource), Depends(rate_limit("1/hour"))])(lambda: None)
        install(app)
        client = client_of(app)

        assert [client.get("/").status_code for _ in range(2)] == [200, 429]
        assert seen == [429]

    def test_other_errors_are_the_apps_own(self) -> None:
        """What is no refusal of ours goes FastAPI's way."""
        app = app_with(("/gone", raising(HTTPException(410))), ("/bug", raising(ValueError("bug"))))
        client = client_of(app)

        assert client.get("/gone").status_code == 410
        with pytest.raises(ValueError, match="bug"):
            client.get("/bug")

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_deadline_cuts_a_route_off(self, kind: str) -> None:
        """An asynchronous route at once; a thread when what waits in it has seen the deadline."""
        slept: list[Any] = []

        async def hang() -> None:
            await asyncio.sleep(30)

        def dawdle() -> None:
            slept.append(time_left())
            time.sleep(0.05)

        app = app_with(("/", hang if kind == "async" else dawdle), deadline=0.02)

        assert client_of(app).get("/").status_code == 504
        assert kind == "async" or 0 < slept[0] <= 0.02

    def test_limit_and_exempt_paths_of_the_middleware(self) -> None:
        """`install` takes the middleware's words; probes are not counted."""
        app = app_with(("/", lambda: None), ("/livez", lambda: None), rate_limit="1/hour")
        client = client_of(app)

        assert [client.get("/livez").status_code for _ in range(3)] == [200] * 3
        assert [client.get("/").status_code for _ in range(2)] == [200, 429]

    def test_dependency_on_an_exempt_path_still_limits(self) -> None:
        """No middleware is around it there, so it tells of itself."""
        app = FastAPI()
        app.get("/livez", dependencies=[Depends(rate_limit("1/hour"))])(lambda: None)
        install(app)
        client = client_of(app)

        replies = [client.get("/livez") for _ in range(2)]

        assert [reply.status_code for reply in replies] == [200, 429]
        assert all(reply.headers["RateLimit"].startswith('"1/hour";r=0;') for reply in replies)
        assert replies[1].headers["Content-Type"] == PROBLEM

    def test_what_is_added_later_sees_refusals(self) -> None:
        """With CORS added after `install`, a browser may read a refusal, wherever it comes from."""
        app = FastAPI()
        app.get("/", dependencies=[Depends(rate_limit("2/hour"))])(lambda: None)
        install(app, rate_limit="3/hour")
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
        client = client_of(app)

        replies = [client.get("/", headers={"Origin": "https://shop.example"}) for _ in range(5)]

        assert [reply.status_code for reply in replies] == [200, 200, 429, 429, 429]
        assert {reply.headers["Access-Control-Allow-Origin"] for reply in replies} == {"*"}

    def test_mounted_app_with_its_own_install(self) -> None:
        """Its refusals are answered; the limits of both apply, and both are told of."""
        inner = FastAPI()
        inner.get("/items/{item}", dependencies=[Depends(rate_limit("1/hour", key=route()))])(lambda: None)
        install(inner)
        app = app_with(rate_limit="9/hour")
        app.mount("/shop", inner)
        client = client_of(app)

        replies = [client.get("/shop/items/1"), client.get("/shop/items/2")]

        assert [reply.status_code for reply in replies] == [200, 429]
        assert replies[1].headers["Content-Type"] == PROBLEM
        told = ",".join(replies[1].headers.get_list("RateLimit"))
        assert '"9/hour"' in told
        assert '"1/hour"' in told

    @pytest.mark.parametrize("where", ["route", "door"])
    def test_refusal_of_a_mounted_app_is_no_evidence_either(self, where: str) -> None:
        """Whether its policies refuse or its own middleware does, the gate further outside is told so."""
        gate, refusal = SpyGate(), CircuitOpenError("down")
        full = SpyGate(places=0)
        inner = app_with(("/", raising(refusal)), shed=full if where == "door" else None)
        app = app_with(shed=gate)
        app.mount("/shop", inner)

        assert client_of(app).get("/shop/").status_code == 503
        assert isinstance(gate.left[0], BulkheadFullError if where == "door" else CircuitOpenError)

    def test_limit_inside_is_no_evidence_against_the_app(self) -> None:
        """A breaker at the door is told of the refusal itself, and ignores it."""
        gate = SpyGate()
        refusal = CircuitOpenError("down")
        app = app_with(("/", raising(refusal)), ("/bug", raising(HTTPException(500))), shed=gate)
        client = client_of(app)
        client.get("/")
        client.get("/bug")

        assert gate.left[0] is refusal
        assert type(gate.left[1]).__name__ == "FaultyAnswerError"

    @pytest.mark.parametrize(
        ("words", "error", "message"),
        [
            ({"rate_limt": "1/hour"}, TypeError, "rate_limt"),
            ({"deadline": 0}, ValueError, "deadline"),
            ({"headers": "old"}, ValueError, "headers"),
        ],
    )
    def test_bad_words_are_named_at_once(self, words: Any, error: Any, message: str) -> None:
        """Not when the app starts."""
        with pytest.raises(error, match=message):
            install(FastAPI(), **words)

    def test_comes_too_late_for_an_app_that_serves(self) -> None:
        """Starlette's own error says so."""
        app = FastAPI()
        client_of(app).get("/")

        with pytest.raises(RuntimeError, match="after an application has started"):
            install(app)

    def test_documents_its_responses(self) -> None:
        """`RESPONSES` fits FastAPI's `responses`, for the app and for a route."""
        app = FastAPI(responses={429: RESPONSES[429]})
        app.get("/", responses=RESPONSES)(lambda: None)
        app.get("/other")(lambda: None)

        paths = app.openapi()["paths"]

        assert {"429", "503", "504"} <= set(paths["/"]["get"]["responses"])
        documented = paths["/other"]["get"]["responses"]["429"]
        assert documented["description"] == "Too Many Requests"
        assert set(documented["content"]) == {PROBLEM}
        assert "Retry-After" in documented["headers"]


class TestWebSocket:
    """WebSocket routes: refused before they are accepted, closed afterwards."""

    @pytest.fixture(params=["bare", "installed"])
    def app(self, request: pytest.FixtureRequest) -> FastAPI:
        app = FastAPI()

        @app.websocket("/", dependencies=[Depends(rate_limit("1/hour"))])
        async def hello(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text("hello")
            await websocket.close()

        if request.param == "installed":
            install(app)
        return app

    def test_is_refused_by_a_response(self, app: FastAPI) -> None:
        """Where the server can give one, the handshake gets 429 and the fields."""
        client = client_of(app)
        with client.websocket_connect("/") as session:
            assert session.receive_text() == "hello"

        with pytest.raises(WebSocketDisconnect) as refusal, client.websocket_connect("/"):
            pass

        reply: Any = refusal.value  # a response, too
        assert reply.status_code == 429
        assert reply.headers["RateLimit"].startswith('"1/hour";r=0;')
        assert int(reply.headers["Retry-After"]) > 3000

    async def test_is_closed_where_there_can_be_no_response(self, app: FastAPI) -> None:
        """With the code for a policy, before it is accepted."""
        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "client": ("a", 1)}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        for _ in range(2):
            sent.clear()
            await app(dict(scope), receive, send)

        assert [(message["type"], message.get("code")) for message in sent] == [("websocket.close", 1008)]

    def test_refusal_after_it_is_accepted_closes_it(self) -> None:
        """An open circuit inside ends the conversation, with the code for "try again later"."""
        app = FastAPI()

        @app.websocket("/")
        async def talk(websocket: WebSocket) -> None:
            await websocket.accept()
            raise CircuitOpenError("down")

        install(app)

        with client_of(app).websocket_connect("/") as session, pytest.raises(WebSocketDisconnect) as end:
            session.receive_text()
        assert end.value.code == 1013


class TestSockets:
    """Over uvicorn: what a gate's place does in streams, background work, and when clients leave."""

    @pytest.fixture
    def gate(self) -> SpyGate:
        return SpyGate()

    @pytest.fixture
    def let_go(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def seen(self) -> list[Any]:
        return []

    @pytest.fixture
    def port(self, gate: SpyGate, let_go: threading.Event, seen: list[Any]) -> Iterator[int]:
        app = FastAPI()

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def chunks() -> AsyncIterator[bytes]:
                yield b"first"
                await asyncio.to_thread(let_go.wait, 5)
                yield b"last"

            return StreamingResponse(chunks())

        @app.get("/later")
        async def later(tasks: BackgroundTasks) -> str:
            async def work() -> None:
                await asyncio.to_thread(let_go.wait, 5)
                seen.append((gate.held, time_left()))

            tasks.add_task(work)
            return "done"

        @app.get("/limited", dependencies=[Depends(rate_limit("1/hour"))])
        def limited() -> str:
            return "hello"

        install(app, shed=gate, deadline=20)
        with uvicorn_serving(app) as port:
            yield port

    def test_stream_holds_its_place_until_its_end(
        self, port: int, gate: SpyGate, let_go: threading.Event
    ) -> None:
        """One place, from the first chunk to the last, given back once."""
        with connection(port) as client:
            client.request("GET", "/stream")
            response = client.getresponse()
            assert response.read1(5) == b"first"
            assert gate.held == 1
            let_go.set()
            assert response.read() == b"last"
        assert eventually(lambda: gate.left == [None])

    def test_client_that_leaves_gives_its_place_back(
        self, port: int, gate: SpyGate, let_go: threading.Event
    ) -> None:
        """As an abandonment."""
        with connection(port) as client:
            client.request("GET", "/stream")
            assert client.getresponse().read1(5) == b"first"

        assert eventually(lambda: len(gate.left) == 1)
        let_go.set()
        assert isinstance(gate.left[0], asyncio.CancelledError)

    def test_background_work_holds_no_place(
        self, port: int, gate: SpyGate, let_go: threading.Event, seen: list[Any]
    ) -> None:
        """Nor has it the request's deadline."""
        status, _, _ = fetch(port, "/later")
        assert eventually(lambda: gate.held == 0)
        let_go.set()

        assert status == 200
        assert eventually(lambda: seen == [(0, None)])
        assert gate.left == [None]

    def test_connection_survives_a_refusal(self, port: int, let_go: threading.Event) -> None:
        """A refusal is a whole response: the next request goes over the same connection."""
        let_go.set()
        with connection(port) as client:
            statuses = []
            for path in ("/limited", "/limited", "/later"):
                client.request("GET", path)
                statuses.append(read(client)[0])
        assert statuses == [200, 429, 200]


async def test_store_that_is_not_there_costs_no_answer() -> None:
    """The limiter goes on by itself, says so once, and no error reaches the app."""
    limiter = RateLimiter("2/hour", name="far", storage="redis://127.0.0.1:1/0")
    told: list[Any] = []
    limiter.add_listener(told.append)
    app = FastAPI()
    app.get("/", dependencies=[Depends(rate_limit(limiter))])(lambda: None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        statuses = [(await client.get("/")).status_code for _ in range(3)]
    await limiter.aclose()

    assert statuses == [200, 200, 429]
    assert [event.rung for event in told if isinstance(event, events.RungChanged)] == ["local"]
