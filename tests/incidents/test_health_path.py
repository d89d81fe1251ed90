"""Incidents C1 and E3: the path of health moves with a deploy, and the balancer takes all targets out.

The paths are written down here once more, by hand. Whoever moves one has to move it in this table too, and in
the configuration of every balancer and orchestrator of every user.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import flask
import httpx
import pytest
import tests.integrations.django_site  # noqa: F401 - Django's settings
from django.test import RequestFactory
from examples.shop.health import health_of
from examples.shop.incidents import cut_off
from examples.shop.neighbours import DEPENDENCIES, Neighbours
from examples.shop.service import MORE, NAMES, application, behind_door, with_health
from fastapi import FastAPI
from starlette.applications import Starlette
from tests.docs.pages import ROOT, tokens

from resilient import asgi, wsgi
from resilient.health import Endpoints, Health
from resilient.integrations import fastapi, starlette
from resilient.integrations.django import health_urls
from resilient.integrations.flask import Resilience, health_blueprint

# What each tells: (who asks it, and what a failure of something outside makes of it).
PATHS = {
    "/livez": ("live", 200),
    "/readyz": ("ready", 503),
    "/startupz": ("startup", 503),
    "/health": ("all", 503),
}
PAGES = ("README.md", "docs/policies/health.md", "docs/how-to/health-endpoints.md")
INCIDENTS = ("docs/incidents/c1-health-check.md", "docs/incidents/e3-moved-health-path.md")
SERVICES = (*NAMES, *MORE)

Ask: TypeAlias = Callable[[str], httpx.Response]


def _over_asgi(app: Any) -> Ask:
    def ask(path: str) -> httpx.Response:
        async def get() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
                return await http.get(path)

        return asyncio.run(get())

    return ask


def _over_wsgi(app: Any) -> Ask:
    def ask(path: str) -> httpx.Response:
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://service") as http:
            return http.get(path)

    return ask


async def _other_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _other_wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("418 I'm a teapot", [])
    return []


def _in_fastapi(health: Any) -> Ask:
    app = FastAPI()
    app.include_router(fastapi.health_routes(health))
    return _over_asgi(app)


def _by_fastapi(health: Any) -> Ask:
    app = FastAPI()
    fastapi.install(app, health=health)
    return _over_asgi(app)


def _in_flask(health: Any) -> Ask:
    app = flask.Flask("shop")
    app.register_blueprint(health_blueprint(health))
    return _over_wsgi(app)


def _by_flask(health: Any) -> Ask:
    app = flask.Flask("shop")
    Resilience(app, health=health)
    return _over_wsgi(app)


def _in_django(health: Any) -> Ask:
    patterns = health_urls(health)

    def ask(path: str) -> httpx.Response:
        [found] = [match for pattern in patterns if (match := pattern.resolve(path[1:]))]
        answer = found.func(RequestFactory().get(path), *found.args, **found.kwargs)
        return httpx.Response(answer.status_code, headers=dict(answer.items()), content=answer.content)

    return ask


HANDLERS: dict[str, Callable[[Any], Ask]] = {
    "asgi": lambda health: _over_asgi(health.asgi()),
    "asgi around an app": lambda health: _over_asgi(health.asgi(_other_app)),
    "asgi middleware": lambda health: _over_asgi(asgi.ResilienceMiddleware(_other_app, health=health)),
    "wsgi": lambda health: _over_wsgi(health.wsgi()),
    "wsgi around an app": lambda health: _over_wsgi(health.wsgi(_other_wsgi_app)),
    "wsgi middleware": lambda health: _over_wsgi(wsgi.ResilienceMiddleware(_other_wsgi_app, health=health)),
    "starlette": lambda health: _over_asgi(Starlette(routes=starlette.health_routes(health))),
    "fastapi": _in_fastapi,
    "fastapi, by the middleware": _by_fastapi,
    "flask": _in_flask,
    "flask, by the extension": _by_flask,
    "django": _in_django,
}


def moved(ask: Ask, paths: dict[str, tuple[str, int]] = PATHS) -> list[str]:
    """Return which of the documented paths do not tell that the database is away."""
    return [path for path, (_, status) in paths.items() if not _tells(ask(path), status)]


def _tells(answer: httpx.Response, status: int) -> bool:
    return (
        answer.status_code == status
        and answer.headers["content-type"].startswith("application/health+json")
        and answer.json()["status"] == ("pass" if status == 200 else "fail")
    )


@pytest.fixture
def health() -> Any:
    """The health of a service whose database is away."""

    def database() -> None:
        raise ConnectionError("away")

    with Health("shop") as made:
        made.add(database, "database", critical=True)
        yield made


@pytest.mark.parametrize("handler", HANDLERS)
def test_every_handler_answers_at_the_documented_paths(health: Health, handler: str) -> None:
    """Each tells what it is for: who is alive need not be ready."""
    assert moved(HANDLERS[handler](health)) == []


def test_server_for_workers_answers_there_too(health: Health) -> None:
    """Which is asked over a real connection."""
    with health.serve(port=0) as server, httpx.Client(base_url=server.url, verify=False) as http:
        assert moved(http.get) == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("handler", ["asgi", "wsgi", "starlette"])
def test_moved_path_is_noticed(health: Health, handler: str, path: str) -> None:
    """As after the deploy of the incident: the others are where they were, this one is somewhere else."""
    group, _ = PATHS[path]
    words: Any = {"paths": {group: f"{path}-v2"}}
    apps: dict[str, Callable[[], Ask]] = {
        "asgi": lambda: _over_asgi(health.asgi(**words)),
        "wsgi": lambda: _over_wsgi(health.wsgi(**words)),
        "starlette": lambda: _over_asgi(Starlette(routes=starlette.health_routes(health, **words))),
    }

    assert moved(apps[handler]()) == [path]


def test_moved_path_may_be_kept_as_an_alias(health: Health) -> None:
    """Which is how to move one: both are there until nobody asks for the old one any more."""
    endpoints = Endpoints(health, paths={"ready": "/ready"}, aliases={"/readyz": "ready"})
    ask = _over_asgi(asgi.ResilienceMiddleware(_other_app, health=endpoints))

    assert moved(ask) == []
    assert _tells(ask("/ready"), 503)


@pytest.mark.parametrize("name", SERVICES)
async def test_every_service_of_the_shop_answers_at_the_documented_paths(name: str) -> None:
    """Whomever it depends on, and whether they answer; and behind the door there is the service itself."""
    neighbours_answer = True

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/livez"
        return httpx.Response(200 if neighbours_answer else 503)

    urls = {other: f"http://{other}" for other in SERVICES}
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as asking:
        neighbours = Neighbours(name, asking, urls)
        for neighbours_answer in (True, False):
            with health_of(name, neighbours, []) as health:
                app = with_health(
                    behind_door(application([]), name, ["door", "shedding"]), health, neighbours
                )
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as http:
                    told = {path: await http.get(path) for path in (*PATHS, "/healthz")}
            depends = bool(DEPENDENCIES[name]) and not neighbours_answer
            expected = {path: status if depends else 200 for path, (_, status) in PATHS.items()}
            assert {path: answer.status_code for path, answer in told.items()} == {
                **expected,
                "/healthz": 200,
            }


def test_everybody_depends_only_on_services_that_there_are() -> None:
    """A dependency that is forgotten is not asked; one that is misspelt is not noticed."""
    assert set(DEPENDENCIES) == set(SERVICES)
    assert {other for others in DEPENDENCIES.values() for other in others} <= set(SERVICES)


def test_shop_is_probed_at_the_documented_paths() -> None:
    """The demo's orchestrator asks for these by hand, as any other would."""
    probes = cut_off.PROTECTED

    assert (probes.live, probes.ready, probes.start) == ("/livez", "/readyz", "/startupz")


def test_probes_pass_the_door_wherever_they_are_asked() -> None:
    """What is exempt unless told otherwise is what is documented, and the old `/healthz`."""
    for middleware in (asgi.ResilienceMiddleware, wsgi.ResilienceMiddleware):
        exempt = inspect.signature(middleware).parameters["exempt"].default
        assert {*PATHS, "/healthz"} == set(exempt)


@pytest.mark.parametrize("page", [*PAGES, *INCIDENTS])
def test_pages_name_the_paths_that_there_are(page: str) -> None:
    """All of them, and no other that looks like one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.}])/(?:\w+z|health)\b(?![\w.-])", text))

    assert set(PATHS) <= named
    assert named <= {*PATHS, "/healthz"}


@pytest.mark.parametrize("page", PAGES[1:])
def test_tables_give_each_path_its_group(page: str) -> None:
    """As the code has them."""
    cells = [
        token.content for token in tokens((ROOT / page).read_text(encoding="utf-8")) if token.type == "inline"
    ]

    for path, (group, _) in PATHS.items():
        row = cells.index(f"`{path}`")
        assert re.fullmatch(rf"[`\"]{group}[`\"]", cells[row + 1])
