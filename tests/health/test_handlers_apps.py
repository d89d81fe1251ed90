"""Health as an ASGI app, as a WSGI app, and in the middlewares of both: the same answers everywhere."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from tests.health.standin import StandIn, result
from tests.web.support import WORLDS, Asgi, Ask, Client, Reply, World, Wsgi, asend, hello

from resilient import RateLimiter
from resilient.asgi import ResilienceMiddleware
from resilient.errors import BulkheadFullError
from resilient.health import Asked, Endpoints, Status, from_networks
from resilient.health.serving.asgi import asgi_app
from resilient.health.serving.handler import PATHS as HEALTH_PATHS
from resilient.health.serving.wsgi import wsgi_app
from resilient.web.door import PROBES
from resilient.web.maintenance import Maintenance

PATHS = ("/livez", "/readyz", "/startupz", "/health", "/health/live")


def alone(world: World, health: StandIn, **words: Any) -> Any:
    """Return the app that answers for health and nothing else."""
    return (asgi_app if isinstance(world, Asgi) else wsgi_app)(health, **words)


def around(world: World, health: StandIn, **words: Any) -> Any:
    """Return the same around an app."""
    return (asgi_app if isinstance(world, Asgi) else wsgi_app)(health, world.app(hello), **words)


def guarded(world: World, health: StandIn, **words: Any) -> Any:
    """Return the middleware around an app."""
    return world.middleware(health=Endpoints(health, **words))


MAKERS = (alone, around, guarded)


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    """Either world."""
    found: World = request.param
    return found


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Each way in which health gets into an app."""
    maker: Callable[..., Any] = request.param
    return maker


def query(world: World, text: str) -> dict[str, Any]:
    """Return what a request with a query has beside its path."""
    return {"query_string": text.encode()} if isinstance(world, Asgi) else {"QUERY_STRING": text}


def test_every_path_is_answered(world: World, make: Callable[..., Any]) -> None:
    """Through a server's interface it is what the core says."""
    app = make(world, StandIn(Status.WARN))

    for path in PATHS:
        reply = world.get(app, path)
        assert (reply.status, json.loads(reply.body)) == (200, {"status": "warn"})
        assert reply["Content-Length"] == str(len(reply.body))
        assert (reply["Cache-Control"], reply["Content-Type"]) == ("no-store", "application/health+json")


def test_failure_and_head_and_other_methods(world: World, make: Callable[..., Any]) -> None:
    """503, no body, 405."""
    app = make(world, StandIn(Status.FAIL))

    head = world.get(app, "/readyz", method="HEAD")
    assert (head.status, head.body, head["Content-Length"], head["Retry-After"]) == (503, b"", "18", "5")
    post = world.get(app, "/readyz", method="POST")
    assert (post.status, post["Allow"]) == (405, "GET, HEAD")


def test_form_and_details_are_those_asked_for(world: World, make: Callable[..., Any]) -> None:
    """The header, the query and the client come through."""
    app = make(world, StandIn(results=[result()]), details=from_networks("192.0.2.0/24"))

    plain = world.get(app, "/health", headers={"Accept": "text/plain"})
    assert plain.body == b"pass"
    verbose = world.send(app, Ask("/readyz", extra=query(world, "verbose")))
    assert verbose.body == b"[+]postgres ok\nreadyz check passed\n"
    stranger = world.send(app, Ask("/readyz", peer="198.51.100.1", extra=query(world, "verbose")))
    assert stranger.body == b"readyz check passed\n"


def test_everything_else_is_the_apps(world: World, make: Callable[..., Any]) -> None:
    """Or nobody's."""
    reply = world.get(make(world, StandIn()), "/orders")

    assert (reply.status, reply.body) == ((404, b"not found\n") if make is alone else (200, b"hello"))


def test_pages_of_the_app_below_health(world: World, make: Callable[..., Any]) -> None:
    """They are its own; alone, there are none. Whether there is such a check is not to be seen by it."""
    health = StandIn(results=[result()])
    missing = (404, b"not found\n") if make is alone else (200, b"hello")

    app = make(world, health)
    for path in ("/health/patients", "/health/postgres", "/health/storage", "/health/patients/7"):
        for method in ("GET", "POST"):
            reply = world.get(app, path, method=method)
            expected = (405, b"method not allowed\n") if make is alone and method == "POST" else missing
            assert (reply.status, reply.body) == expected
    app = make(world, health, details="always")
    reply = world.get(app, "/health/patients")
    assert (reply.status, reply.body) == missing
    assert json.loads(world.get(app, "/health/postgres").body)["checks"].keys() >= {"postgres:status"}
    assert world.get(app, "/health/storage").status == 200


def test_middleware_guards_pages_of_the_app_below_health(world: World) -> None:
    """Like all others: they are no probes."""
    app = world.middleware(health=StandIn(), shed=_Full())

    assert [world.get(app, path).status for path in ("/health/patients", "/health/ready")] == [503, 200]


def test_prefix_and_names_that_are_no_ascii(world: World, make: Callable[..., Any]) -> None:
    """Paths come decoded, in either world's way."""
    app = make(world, StandIn(results=[result("caf\u00e9")]), prefix="/v1", details="always")

    assert json.loads(world.get(app, "/v1/health/caf\u00e9").body)["status"] == "pass"
    assert world.get(app, "/v1/health/cafe").body in {b"not found\n", b"hello"}


def test_mounted_app_knows_its_paths() -> None:
    """Whether the server puts the root into the path or not."""
    app = asgi_app(StandIn())
    for path, root, status in [
        ("/ops/livez", "/ops", 200),
        ("/livez", "/ops", 200),
        ("/opsy/livez", "/ops", 404),
    ]:
        assert asyncio.run(asend(app, Ask(path, extra={"root_path": root}))).status == status


def test_fields_of_several_lines_and_a_socket_without_a_client() -> None:
    """As ASGI tells them."""
    app = asgi_app(StandIn(results=[result()], details=lambda asked: asked.client is None))
    headers = [(b"accept", b"image/png"), (b"accept", b"text/plain")]

    reply = asyncio.run(asend(app, Ask("/livez", peer=None, extra={"headers": headers})))

    assert reply.body == b"pass"


class _Full:
    def calling(self) -> Any:
        raise BulkheadFullError("full", policy="gate")


@pytest.mark.parametrize("how", ["maintenance", "overload", "rate", "deadline", "not exempt"])
def test_middleware_answers_for_health_before_anything_else(world: World, how: str) -> None:
    """Closed, overloaded, out of quota, late: an orchestrator that is refused would restart the service."""
    maintenance = Maintenance()
    maintenance.on()
    words: dict[str, Any] = {
        "maintenance": {"maintenance": maintenance},
        "overload": {"shed": _Full()},
        "rate": {"rate_limit": RateLimiter("1/hour")},
        "deadline": {"deadline": 1, "trusted": "192.0.2.1"},
        "not exempt": {"shed": _Full()},
    }[how]
    app = world.middleware(health=StandIn(), exempt=(), **words)
    late = {"X-Request-Timeout-Ms": "0"}

    assert [world.get(app, path, headers=late).status for path in PATHS * 2] == [200] * 10
    replies = [world.get(app, "/orders", headers=late).status for _ in range(2)]
    assert replies[1] in {429, 503, 504}


def test_middleware_vouches_for_the_client_that_its_proxies_tell(world: World) -> None:
    """Behind a proxy that is declared, networks are those of the clients; behind another, nobody's."""
    health = StandIn(results=[result()], details=from_networks("10.0.0.0/8"))
    app = world.middleware(health=health, trusted="10.9.9.9")

    def members(peer: str, told: str | None = None) -> set[str]:
        headers = {} if told is None else {"X-Forwarded-For": told}
        return set(json.loads(world.get(app, "/health", peer=peer, headers=headers).body))

    assert "checks" in members("10.9.9.9", "10.1.2.3")
    assert "checks" in members("10.1.2.3")
    assert members("10.9.9.9", "198.51.100.7") == {"status"}
    assert members("10.1.2.3", "10.1.2.4") == {"status"}
    assert members("198.51.100.7", "10.1.2.3") == {"status"}


def test_paths_that_the_app_answers_itself_are_exempt_too() -> None:
    """Where health is a route of the app, the middleware lets it be."""
    assert set(HEALTH_PATHS.values()) <= set(PROBES)


def test_middleware_without_health_leaves_the_paths_to_the_app(world: World) -> None:
    """As it always did."""
    assert world.get(world.middleware(), "/livez").body == b"hello"


def test_middleware_refuses_what_is_no_health(world: World) -> None:
    """When it is made."""
    with pytest.raises(TypeError, match="health must be a Health, Endpoints or None"):
        world.middleware(health="health")


def test_wsgi_refuses_a_drain_delay() -> None:
    """It would never begin."""
    with pytest.raises(ValueError, match="drain_delay must be None but for ASGI"):
        wsgi_app(StandIn(), drain_delay=5.0)
    with pytest.raises(ValueError, match="drain_delay must be None but for ASGI"):
        Wsgi().middleware(health=Endpoints(StandIn(), drain_delay=5.0))


def lifespan(app: Any, *kinds: str) -> list[Any]:
    """Start and end an ASGI app; return what it sent."""
    client = Client(*({"type": f"lifespan.{kind}"} for kind in kinds))
    asyncio.run(app({"type": "lifespan"}, client.receive, client.send))
    return client.sent


def test_asgi_app_starts_and_ends() -> None:
    """By itself it says so; around another app, that one does."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    assert [one["type"] for one in lifespan(asgi_app(StandIn()), "startup", "shutdown")] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert lifespan(asgi_app(StandIn(), app), "startup") == []
    assert seen == ["lifespan"]


@pytest.mark.parametrize("is_middleware", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError("can't start new thread")])
def test_checks_are_begun_before_the_app_is_started(
    *, is_middleware: bool, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """On the server's loop, where its clients will be. If they cannot be, the app starts all the same."""
    health = StandIn(error=error)
    known: list[int] = []

    async def inside(_scope: Any, _receive: Any, _send: Any) -> None:
        known.append(len(health.started))

    app: Any = ResilienceMiddleware(inside, health=health) if is_middleware else asgi_app(health, inside)
    with caplog.at_level(logging.ERROR, "resilient"):
        lifespan(app, "startup")
        asyncio.run(asend(app, Ask("/livez")))

    assert known == [1]
    assert len(health.started) == 1
    logged = "The checks were not begun when the app was started"
    assert (logged in [record.message for record in caplog.records]) is (error is not None)


def test_websocket_is_closed_or_the_apps() -> None:
    """Health has none, whatever its path."""
    client = Client({"type": "websocket.connect"})
    asyncio.run(asgi_app(StandIn())({"type": "websocket", "path": "/livez"}, client.receive, client.send))

    assert client.sent == [{"type": "websocket.close", "code": 1000}]


def test_client_that_leaves_does_no_harm() -> None:
    """The error is the server's affair."""

    async def gone(_message: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(asgi_app(StandIn())({"type": "http", "path": "/livez"}, Client().receive, gone))


def test_wsgi_environ_of_few_words() -> None:
    """What a server leaves out is empty."""
    replies: list[Any] = []
    asked: list[Asked] = []

    def details(one: Asked) -> bool:
        asked.append(one)
        return False

    wsgi_app(StandIn(details=details))(
        {"PATH_INFO": "/livez"}, lambda status, _headers: replies.append(status)
    )  # type: ignore[arg-type, return-value]

    assert replies == ["200 OK"]
    assert (asked[0].method, asked[0].query, asked[0].client) == ("GET", "", None)


def test_reply_of_the_two_worlds_is_the_same() -> None:
    """Field by field."""
    replies: list[Reply] = [world.get(alone(world, StandIn(Status.FAIL)), "/health") for world in WORLDS]

    fields = [[(name.lower(), value) for name, value in reply.fields] for reply in replies]
    assert fields[0] == fields[1]
    assert replies[0].body == replies[1].body
