"""Health in each framework: as routes, router, blueprint and urls, and by the middleware, first of all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import flask
import httpx
import pytest
import tests.integrations.django_site as site
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.health.standin import StandIn, result

from resilient import RateLimiter
from resilient.asgi import Maintenance
from resilient.health import Endpoints, Status, from_networks
from resilient.integrations import fastapi, starlette
from resilient.integrations import flask as flask_integration
from resilient.integrations.django import health_urls

Got = tuple[int, dict[str, str], bytes]
Ask = Callable[..., Got]
"""Ask for a path; more are the method, and header fields."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_all() -> None:
    """Have asgiref start the thread that it keeps for good."""
    asyncio.run(sync_to_async(lambda: None)())


PATHS = ("/livez", "/readyz", "/startupz", "/health", "/health/live")


def asking(app: Any) -> Ask:
    """Return what asks an ASGI app."""

    def ask(where: str, method: str = "GET", **fields: str) -> Got:
        async def send() -> Got:
            transport = httpx.ASGITransport(app, client=("192.0.2.1", 49152))
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                got = await client.request(method, where, headers=fields)
            return got.status_code, dict(got.headers), got.content

        return asyncio.run(send())

    return ask


@contextlib.contextmanager
def in_starlette(health: StandIn, prefix: str = "", **words: Any) -> Iterator[Ask]:
    routes: list[Any] = starlette.health_routes(health, **words)
    yield asking(Starlette(routes=[Mount(prefix, routes=routes)] if prefix else routes))


@contextlib.contextmanager
def in_fastapi(health: StandIn, prefix: str = "", **words: Any) -> Iterator[Ask]:
    app, outer = FastAPI(), APIRouter()
    outer.include_router(fastapi.health_routes(health, **words))
    app.include_router(outer, prefix=prefix)
    assert app.openapi()["paths"] == {}
    yield asking(app)


@contextlib.contextmanager
def in_flask(health: StandIn, prefix: str = "", **words: Any) -> Iterator[Ask]:
    app = flask.Flask("shop")
    app.register_blueprint(flask_integration.health_blueprint(health, **words), url_prefix=prefix or None)

    def ask(where: str, method: str = "GET", **fields: str) -> Got:
        environ = {"REMOTE_ADDR": "192.0.2.1"}
        got = app.test_client().open(where, method=method, headers=fields, environ_overrides=environ)
        return got.status_code, {name.lower(): value for name, value in got.headers}, got.data

    yield ask


@contextlib.contextmanager
def in_django(health: StandIn, prefix: str = "", **words: Any) -> Iterator[Ask]:
    urls = ModuleType("urls")
    own = health_urls(health, **words)
    urls.urlpatterns = [path(f"{prefix[1:]}/", include(own))] if prefix else own  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"]):
        yield ask_django


def ask_django(where: str, method: str = "GET", **fields: str) -> Got:
    client = Client(enforce_csrf_checks=True, REMOTE_ADDR="192.0.2.1")
    got: Any = client.generic(method, where, headers=fields)
    return got.status_code, {name.lower(): value for name, value in got.headers.items()}, got.content


def aask_django(where: str, method: str = "GET", **fields: str) -> Got:
    client = AsyncClient(enforce_csrf_checks=True)
    got: Any = asyncio.run(client.generic(method, where, headers=fields))
    return got.status_code, {name.lower(): value for name, value in got.headers.items()}, got.content


@contextlib.contextmanager
def in_async_django(health: StandIn, prefix: str = "", **words: Any) -> Iterator[Ask]:
    with in_django(health, prefix, asynchronous=True, **words):
        yield aask_django


FRAMEWORKS = (in_starlette, in_fastapi, in_flask, in_django, in_async_django)


@pytest.fixture(params=FRAMEWORKS, ids=lambda one: one.__name__)
def framework(request: pytest.FixtureRequest) -> Any:
    """Each framework."""
    return request.param


def test_every_path_is_answered(framework: Any) -> None:
    """As everywhere else."""
    with framework(StandIn(Status.WARN)) as ask:
        for where in PATHS:
            status, fields, body = ask(where)
            assert (status, json.loads(body)) == (200, {"status": "warn"})
            assert fields["content-type"] == "application/health+json"
            assert (fields["cache-control"], fields["content-length"]) == ("no-store", str(len(body)))
        assert ask("/health/nothing")[0] == 404


def test_slash_at_the_end_does_no_harm(framework: Any) -> None:
    """Whoever has mistyped a probe's path by one would have no service left."""
    with framework(StandIn(), prefix="/ops") as ask:
        assert [ask(f"/ops{where}/")[0] for where in PATHS] == [200] * 5


def test_failure_forms_and_head(framework: Any) -> None:
    """The header and the query come through."""
    with framework(StandIn(Status.FAIL)) as ask:
        assert ask("/readyz", Accept="text/plain")[::2] == (503, b"fail")
        assert ask("/readyz?verbose")[2] == b"readyz check failed\n"
        status, fields, body = ask("/readyz", "HEAD")
        assert (status, body, fields["content-length"], fields["retry-after"]) == (503, b"", "18", "5")


def test_other_methods_are_not_allowed(framework: Any) -> None:
    """By us; and nobody asks for a token against forgery."""
    health = StandIn()
    with framework(health) as ask:
        for method in ("POST", "OPTIONS", "DELETE"):
            for where in ("/livez", "/health/live"):
                status, fields, _ = ask(where, method)
                assert (status, fields["allow"]) == (405, "GET, HEAD")
                assert fields["cache-control"] == "no-store"
    assert health.asked == []


def test_details_are_for_those_who_may_see_them(framework: Any) -> None:
    """By address and by name of a check, however deep its name is."""
    health = StandIn(results=[result("db/main")])
    with framework(health, details=from_networks("192.0.2.0/24", "127.0.0.1")) as ask:
        assert json.loads(ask("/health/db/main")[2])["checks"].keys() == {
            "db/main:status",
            "db/main:responseTime",
        }
        assert ask("/health/db")[0] == 404
        assert json.loads(ask("/health", **{"X-Forwarded-For": "192.0.2.1"})[2]) == {"status": "pass"}
    with framework(health, details="never") as ask:
        assert ask("/health/db/main")[0] == 404


def test_prefixes_of_ours_and_of_the_framework(framework: Any) -> None:
    """Both, and aliases."""
    with framework(StandIn(), prefix="/ops") as ask:
        assert [ask(f"/ops{where}")[0] for where in PATHS] == [200] * 5
        assert ask("/livez")[0] == 404
    with framework(StandIn(), paths={"ready": ["/ready", "/up"]}, aliases={"/healthz": "live"}) as ask:
        paths = ("/livez", "/ready", "/up", "/healthz", "/readyz")
        assert [ask(where)[0] for where in paths] == [200, 200, 200, 200, 404]


def test_drain_delay_is_refused(framework: Any) -> None:
    """No route sees the server start."""
    with (
        pytest.raises(ValueError, match="drain_delay must be None but for ASGI"),
        framework(StandIn(), drain_delay=1),
    ):
        pass


# By the middleware, before everything else.


@contextlib.contextmanager
def fastapi_guarded(health: Any, **words: Any) -> Iterator[Ask]:
    app = FastAPI()
    fastapi.install(app, health=health, **words)
    yield asking(app)


@contextlib.contextmanager
def flask_guarded(health: Any, **words: Any) -> Iterator[Ask]:
    app = flask.Flask("shop")
    app.config["RESILIENT_HEALTH"] = health
    flask_integration.Resilience(app, **words)

    def ask(where: str) -> Got:
        got = app.test_client().get(where)
        return got.status_code, dict(got.headers), got.data

    yield ask


@contextlib.contextmanager
def django_guarded(health: Any, **words: Any) -> Iterator[Ask]:
    with override_settings(RESILIENT={"health": health, **words}, MIDDLEWARE=[site.OURS]):
        yield ask_django


@contextlib.contextmanager
def async_django_guarded(health: Any, **words: Any) -> Iterator[Ask]:
    with override_settings(RESILIENT={"health": health, **words}, MIDDLEWARE=[site.OURS]):
        yield aask_django


@pytest.mark.parametrize(
    "guarded",
    [fastapi_guarded, flask_guarded, django_guarded, async_django_guarded],
    ids=lambda one: one.__name__,
)
def test_middleware_answers_first(guarded: Any) -> None:
    """While the service is closed and its limits are used up."""
    maintenance = Maintenance()
    maintenance.on()
    endpoints = Endpoints(StandIn(Status.WARN), prefix="/v1")

    with guarded(endpoints, maintenance=maintenance, rate_limit=RateLimiter("1/hour")) as ask:
        assert [ask(f"/v1{where}")[0] for where in PATHS * 2] == [200] * 10
        assert ask("/v1/readyz")[2] == b'{"status": "warn"}'
        assert ask("/orders")[0] == 503


@pytest.mark.parametrize(
    "guarded",
    [fastapi_guarded, flask_guarded, django_guarded, async_django_guarded],
    ids=lambda one: one.__name__,
)
def test_pages_of_the_app_below_health_are_its_own(guarded: Any) -> None:
    """Here it has none, which it says in its own words."""
    with guarded(StandIn(results=[result()])) as ask:
        status, _, body = ask("/health/patients")
        assert (status, body == b"not found\n") == (404, False)
        assert ask("/health/postgres")[::2] == (404, body.replace(b"patients", b"postgres"))
        assert ask("/health/ready")[::2] == (200, b'{"status": "pass"}')


@pytest.mark.parametrize("settings", [{"health": "health"}, {"health": Endpoints(StandIn(), drain_delay=1)}])
def test_django_is_told_what_is_wrong_with_its_settings(settings: Any) -> None:
    """When the middleware is made."""
    with (
        override_settings(RESILIENT=settings, MIDDLEWARE=[site.OURS]),
        pytest.raises(ImproperlyConfigured, match=r"RESILIENT: (health must be|drain_delay must be None)"),
    ):
        Client().get("/livez")


def test_django_does_not_log_failures_as_errors_of_the_site(caplog: pytest.LogCaptureFixture) -> None:
    """Or each probe would be a mail to its administrators."""
    with in_django(StandIn(Status.FAIL)) as ask:
        assert ask("/readyz")[0] == 503

    assert [record for record in caplog.records if record.name.startswith("django")] == []


def test_django_with_a_host_that_is_not_allowed() -> None:
    """Kubernetes' probes send the address of the pod: our middleware, in the first place, answers them."""
    settings = {"RESILIENT": {"health": StandIn()}, "ALLOWED_HOSTS": ["shop.example"]}
    common = "django.middleware.common.CommonMiddleware"
    with override_settings(MIDDLEWARE=[site.OURS, common], **settings):
        assert Client().get("/readyz", headers={"Host": "10.1.2.3"}).status_code == 200
    with override_settings(MIDDLEWARE=[common, site.OURS], **settings):
        response: HttpResponse = Client(raise_request_exception=False).get(
            "/readyz", headers={"Host": "10.1.2.3"}
        )
        assert response.status_code == 400
