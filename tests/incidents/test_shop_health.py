"""What the shop's services tell of their health: whom they cannot do without, and who is asked about that."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import httpx
import pytest
from examples.shop import naive, protected, static
from examples.shop.carts import Carts
from examples.shop.failover import ProtectedCarts
from examples.shop.health import health_of
from examples.shop.neighbours import Neighbours
from examples.shop.service import MORE, NAMES, application
from examples.shop.store import Address

from resilient.health import Health, Status

NOBODY = Address(("127.0.0.1", 1), [("127.0.0.1", 1)])
URLS = {name: f"http://{name}" for name in (*NAMES, *MORE)}


class Others:
    """All other services, of which some are away; `asked` is where they were asked, and for what."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.asked: list[str] = []
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.url.host}{request.url.path}")
        if request.url.host in self.away:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(200, json=[])


@pytest.fixture
async def others() -> AsyncIterator[Others]:
    """They all answer, and nothing is known of them yet."""
    importlib.reload(protected)
    importlib.reload(static)
    there = Others()
    yield there
    await there.http.aclose()


@pytest.fixture
def ask(others: Others) -> Callable[..., Neighbours]:
    """Return what makes the neighbours of a service, in a shop of these others."""

    def neighbours(name: str, *there: str) -> Neighbours:
        return Neighbours(name, others.http, {other: URLS[other] for other in there or URLS})

    return neighbours


@pytest.mark.parametrize(
    ("name", "protections", "away", "ready", "everything"),
    [
        ("checkout", [], "catalogue", Status.FAIL, Status.FAIL),
        ("checkout", ["calls"], "catalogue", Status.FAIL, Status.FAIL),
        ("currency", [], "rates", Status.FAIL, Status.FAIL),
        ("currency", ["calls"], "rates", Status.PASS, Status.WARN),
        ("frontend", ["calls"], "catalogue", Status.FAIL, Status.FAIL),
        ("frontend", ["calls", "static"], "catalogue", Status.PASS, Status.WARN),
        ("catalogue", [], "rates", Status.PASS, Status.PASS),
    ],
)
async def test_service_is_ready_without_whom_it_can_do_without(
    others: Others,
    ask: Callable[..., Neighbours],
    *,
    name: str,
    protections: list[str],
    away: str,
    ready: Status,
    everything: Status,
) -> None:
    """Which follows from what is on; it is alive in any case."""
    others.away = {away}
    with health_of(name, ask(name), protections) as health:
        told = [(await health.areport(group)).status for group in ("live", "ready", "all")]

    assert told == [Status.PASS, ready, everything]


async def test_neighbours_are_asked_for_a_sign_of_life(
    others: Others, ask: Callable[..., Neighbours]
) -> None:
    """Those that there are, and not whether they are ready, or one would take along all others."""
    with health_of("checkout", ask("checkout", "catalogue", "currency", "rates"), []) as health:
        await health.areport()

    assert sorted(others.asked) == ["catalogue/livez", "currency/livez"]


async def test_nobody_is_asked_whom_real_calls_judge(others: Others, ask: Callable[..., Neighbours]) -> None:
    """The catalogue was called a moment ago; the others were not."""
    calls = static.StaticCalls(others.http, URLS)
    neighbours = ask("frontend", "catalogue", "currency", "frontend")
    with health_of("frontend", neighbours, ["calls", "static"]) as health:
        await calls.products()
        report = await health.areport()

    assert others.asked == ["catalogue/products", "currency/livez"]
    assert {result.name: result.status for result in report.results} == dict.fromkeys(
        ["event-loop", "catalogue", "currency"], Status.PASS
    )


async def test_breaker_that_is_open_is_a_warning(others: Others, ask: Callable[..., Neighbours]) -> None:
    """It is asked for a sign of life: nobody else would find out that it is back."""
    others.away = {"catalogue"}
    calls = static.StaticCalls(others.http, URLS)
    for _ in range(3):
        assert len(await calls.products()) == 9
    others.asked.clear()
    with health_of("frontend", ask("frontend", "catalogue"), ["calls", "static"]) as health:
        report = await health.areport()

    assert others.asked == ["catalogue/livez"]
    assert (report.status, report.http_status) == (Status.WARN, 200)
    assert (await health.areport("ready")).ok


@pytest.mark.parametrize(("name", "told"), [("frontend", {"status"}), ("checkout", {"status", "checks"})])
async def test_what_is_behind_the_frontend_is_not_told_at_its_door(
    ask: Callable[..., Neighbours], name: str, told: set[str]
) -> None:
    """Inside, everything is."""
    with health_of(name, ask(name), []) as health:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(health.asgi())) as http:
            answer = (await http.get("http://shop/health")).json()

    assert {"status", "checks"} & answer.keys() == told


@pytest.mark.parametrize(
    ("carts", "ready", "everything"),
    [(Carts, Status.FAIL, Status.FAIL), (ProtectedCarts, Status.PASS, Status.WARN)],
)
async def test_store_that_is_away_is_told(carts: type[Carts], ready: Status, everything: Status) -> None:
    """Without it there are no carts, unless something takes its place."""
    async with aclosing(carts(NOBODY)) as opened:
        with Health("cart") as health:
            opened.observe(health)
            told = [(await health.areport(group)).status for group in ("ready", "all")]

    assert told == [ready, everything]


async def test_naive_health_asks_everybody_in_turn(others: Others, ask: Callable[..., Neighbours]) -> None:
    """By the same path; the first that is away ends it, and all else goes on to the service itself."""
    app = naive.told(application([]), ask("checkout"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as http:
        healthy = await http.get("/health")
        sign_of_life = await http.get("/healthz")
        asked = [*others.asked]
        others.asked.clear()
        others.away = {"currency"}
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")

    assert (healthy.json(), sign_of_life.status_code) == ({"status": "UP"}, 200)
    assert asked == ["catalogue/health", "currency/health", "cart/health", "orders/health"]
    assert others.asked == ["catalogue/health", "currency/health"]
