"""The door of the shop's frontend, in one process: B5 (closed for maintenance), E5 (a key that scrapes)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from examples.shop import door, service
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from resilient import RateLimiter
from resilient.asgi import ResilienceMiddleware, api_key

PAGES = [f"/product/{number}" for number in range(40)]


async def _page(request: Request) -> Response:
    return JSONResponse({"product": request.path_params["product_id"]})


@pytest.fixture
def frontend() -> ASGIApp:
    """A frontend that needs nobody behind it."""
    return service.application([Route("/product/{product_id}", _page)])


@pytest.fixture
def opened() -> Iterator[None]:
    """The shop's door, open at the end as well."""
    yield
    door.maintenance.off()


@pytest.fixture
async def shop(frontend: ASGIApp, opened: None) -> AsyncIterator[httpx.AsyncClient]:
    """A customer in front of the shop's door."""
    transport = httpx.ASGITransport(door.guarded(frontend))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        yield http


def _from(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def test_client_that_asks_too_often_is_refused_and_others_are_not(frontend: ASGIApp) -> None:
    """A hundredth of the incident: 2 at once, 1 a second, by the address that the load balancer tells."""
    transport = httpx.ASGITransport(door.guarded(frontend, scale=100))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        greedy = [await http.get("/product/1", headers=_from("198.19.0.1")) for _ in range(3)]
        other = await http.get("/product/1", headers=_from("198.18.0.1"))

    assert [answer.status_code for answer in greedy] == [200, 200, 429]
    assert greedy[-1].headers["retry-after"] == "1"
    assert other.status_code == 200


async def test_shop_is_closed_for_maintenance_while_it_runs_and_opened_again(
    shop: httpx.AsyncClient,
) -> None:
    """B5: a page for browsers, a problem document for programs, and no restart."""
    before = await shop.get("/product/1")
    door.maintenance.on(for_=600, reason="stocktaking")
    browser = await shop.get("/product/1", headers={"Accept": "text/html"})
    program = await shop.get("/product/1", headers={"Accept": "application/json"})
    probe = await shop.get("/healthz")
    door.maintenance.off()
    after = await shop.get("/product/1")

    assert [answer.status_code for answer in (before, browser, program, probe, after)] == [
        200,
        503,
        503,
        200,
        200,
    ]
    assert "counting our mugs" in browser.text
    assert program.headers["content-type"] == "application/problem+json"
    assert all(int(answer.headers["retry-after"]) >= 600 for answer in (browser, program))
    assert "stocktaking" not in browser.text + program.text


async def test_key_that_scrapes_is_held_to_its_limit_and_no_other_is(frontend: ASGIApp) -> None:
    """E5: what a stolen key can take is bounded, and customers without one do not notice."""
    limiter = RateLimiter("20/minute", name="per-api-key")
    guarded = ResilienceMiddleware(frontend, rate_limit=limiter, key=api_key(otherwise=None))
    transport = httpx.ASGITransport(guarded)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        stolen = [await http.get(page, headers={"X-API-Key": "stolen-4711"}) for page in PAGES]
        partner = [await http.get(page, headers={"X-API-Key": "partner-0815"}) for page in PAGES[:20]]
        nobody = [await http.get(page) for page in PAGES]

    assert [answer.status_code for answer in stolen] == [200] * 20 + [429] * 20
    assert {answer.status_code for answer in partner + nobody} == {200}
    assert limiter.stats().denied == 20
    refused = stolen[-1]
    assert "4711" not in refused.text + repr(refused.headers) + repr(limiter)
