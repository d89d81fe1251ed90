"""The demo's shop, in one process and hardly waiting: what it sells, what it breaks on, what protects it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from examples.shop import ecb, protected
from examples.shop.calls import Calls
from examples.shop.journal import Journal, Stopwatch
from examples.shop.service import NAMES, application
from examples.shop.services import catalogue, checkout

from resilient.events import CircuitClosed, CircuitOpened

URLS = {name: f"http://{name}" for name in NAMES}


class Shop(httpx.AsyncBaseTransport):
    """The five services, each an application in this process, behind one client."""

    def __init__(self, calls_class: type[Calls]) -> None:
        self.http = httpx.AsyncClient(transport=self)
        calls = calls_class(self.http, URLS)
        self._services = {name: _application(name, calls) for name in NAMES}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._services[request.url.host].handle_async_request(request)

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(URLS["frontend"] + path)

    async def post(self, path: str) -> httpx.Response:
        return await self.http.post(URLS["frontend"] + path)

    async def turn(self, **knobs: Any) -> httpx.Response:
        return await self.http.put(URLS["rates"] + "/control", json=knobs)

    async def api_calls(self) -> int:
        return int((await self.http.get(URLS["rates"] + "/control")).json()["calls"])


def _application(name: str, calls: Calls) -> httpx.ASGITransport:
    service = importlib.import_module(f"examples.shop.services.{name}")
    return httpx.ASGITransport(application(service.routes(calls)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases and payment providers that answer at once."""
    monkeypatch.setattr(catalogue, "QUERY_TIME", 0)
    monkeypatch.setattr(checkout, "CHARGE_TIME", 0)


@pytest.fixture
async def bare(quick: None) -> AsyncIterator[Shop]:
    """The shop as first written."""
    shop = Shop(Calls)
    await shop.turn(latency=0)
    yield shop
    await shop.http.aclose()


@pytest.fixture
async def guarded(quick: None) -> AsyncIterator[Shop]:
    """The shop with policies on: new ones, that remember nothing of another test."""
    shop = Shop(importlib.reload(protected).ProtectedCalls)
    await shop.turn(latency=0)
    yield shop
    await shop.http.aclose()


@pytest.fixture(params=["bare", "guarded"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """Either shop: what they sell is the same."""
    chosen: Shop = request.getfixturevalue(request.param)
    return chosen


async def test_home_lists_nine_products_in_the_customers_currency(shop: Shop) -> None:
    products = (await shop.get("/?currency=JPY")).json()["products"]

    mug = products[-1]
    dollars, rates = Decimal("8.99"), ecb.shipped().per_euro
    assert len(products) == 9
    assert (mug["name"], mug["currency"]) == ("Mug", "JPY")
    assert Decimal(mug["price"]) == round(dollars / rates["USD"] * rates["JPY"], 2)


async def test_what_is_put_into_the_cart_is_bought_once(shop: Shop) -> None:
    for _ in range(2):
        await shop.post("/cart?user=ada&product=6E92ZMYYFZ")
    cart = (await shop.get("/cart?user=ada&currency=USD")).json()
    order = (await shop.post("/checkout?user=ada&currency=USD")).json()
    again = await shop.post("/checkout?user=ada&currency=USD")

    assert cart == {"items": {"6E92ZMYYFZ": 2}, "goods": "17.98", "currency": "USD"}
    assert order.pop("order")
    assert order == {"goods": "17.98", "shipping": "8.99", "currency": "USD"}
    assert again.status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/product/NOSUCH", 404),
        ("GET", "/?currency=XXX", 400),
        ("POST", "/currency?currency=XXX", 400),
        ("POST", "/currency?currency=TRY", 200),
        ("POST", "/cart?user=ada&product=NOSUCH", 404),
    ],
)
async def test_a_wrong_question_is_the_customers_mistake(
    shop: Shop, method: str, path: str, status: int
) -> None:
    answer = await shop.http.request(method, URLS["frontend"] + path)

    assert answer.status_code == status


async def test_bare_shop_asks_the_api_for_every_page_and_fails_with_it(bare: Shop) -> None:
    for _ in range(3):
        assert (await bare.get("/")).status_code == 200
    await bare.turn(error_ratio=1)

    assert await bare.api_calls() == 3
    assert (await bare.get("/")).status_code == 502


async def test_protected_shop_asks_the_api_once(guarded: Shop) -> None:
    await asyncio.gather(*(guarded.get("/") for _ in range(10)))

    assert await guarded.api_calls() == 1


async def test_protected_shop_that_starts_without_the_api_sells_at_the_shipped_rates(guarded: Shop) -> None:
    await guarded.turn(error_ratio=1)
    answers = [await guarded.get("/?currency=GBP") for _ in range(5)]

    assert {answer.status_code for answer in answers} == {200}
    # Two attempts for the first page, and the breaker has seen enough.
    assert await guarded.api_calls() == 2
    assert "open" in repr(protected.rates_breaker)


async def test_wrong_questions_do_not_open_a_breaker(guarded: Shop) -> None:
    for _ in range(30):
        await guarded.get("/product/NOSUCH")

    assert (await guarded.get("/product/6E92ZMYYFZ")).status_code == 200


def test_protected_calls_are_the_bare_ones_under_decorators_and_nothing_else() -> None:
    decorated = {name: value for name, value in vars(protected.ProtectedCalls).items() if callable(value)}
    every_call = {name for name in vars(Calls) if not name.startswith("_")}

    assert decorated.keys() == every_call
    for name, value in decorated.items():
        assert value is not vars(Calls)[name]
        assert inspect.unwrap(value) is vars(Calls)[name]


async def test_api_that_hangs_answers_when_it_is_let_go(bare: Shop) -> None:
    await bare.turn(hang=True)
    page = asyncio.create_task(bare.get("/"))
    for _ in range(100):  # lets the call get there
        await asyncio.sleep(0)
    asked, answered = await bare.api_calls(), page.done()
    await bare.turn(hang=False)

    assert (asked, answered) == (1, False)
    assert (await page).status_code == 200


@pytest.mark.parametrize(
    "knobs",
    [
        {"latency": -1},
        {"latency": "slow"},
        {"latency": True},
        {"error_ratio": 1.5},
        {"hang": 1},
        {"colour": "red"},
    ],
)
async def test_knob_that_makes_no_sense_is_refused_and_changes_nothing(
    bare: Shop, knobs: dict[str, Any]
) -> None:
    before = (await bare.turn()).json()
    answer = await bare.turn(**knobs)

    assert answer.status_code == 400
    assert next(iter(knobs)) in answer.json()["detail"]
    assert (await bare.turn()).json() == before


def test_daily_file_is_read_as_written() -> None:
    rates = ecb.shipped()

    assert len(rates.per_euro) == 33
    assert ecb.parse(ecb.render(rates)) == rates


def test_conversion_goes_through_the_euro_and_rounds_half_up() -> None:
    rates = ecb.Rates("2026-01-01", {"EUR": Decimal(1), "USD": Decimal(2), "GBP": Decimal("0.5")})

    assert rates.convert(Decimal("0.02"), of="USD", to="GBP") == Decimal("0.01")
    assert rates.convert(Decimal("8.00"), of="USD", to="EUR") == Decimal("4.00")
    with pytest.raises(KeyError):
        rates.convert(Decimal(1), of="USD", to="XXX")


def test_journal_writes_each_event_as_a_line() -> None:
    """With everything the event holds."""
    lines: list[str] = []
    journal = Journal(lines.append)
    journal.note(CircuitOpened("rates-api", "2 of 2 calls failed", 6.0, 1))
    journal.note(CircuitClosed("rates-api"))

    opened, closed = map(json.loads, lines)
    assert (opened["event"], opened["policy"], opened["reason"]) == (
        "CircuitOpened",
        "rates-api",
        "2 of 2 calls failed",
    )
    assert closed == {"event": "CircuitClosed", "policy": "rates-api"}


async def test_stopwatch_writes_when_a_call_begins_and_when_it_ends_however_it_does() -> None:
    """A call that is answered, and one that breaks."""
    lines: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/broken":
            raise httpx.ConnectError("gone")
        return httpx.Response(200)

    transport = Stopwatch(httpx.MockTransport(answer), {"currency": "http://127.0.0.1:8001"}, lines.append)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
        await http.get("/")
        with pytest.raises(httpx.ConnectError):
            await http.get("/broken")

    assert [json.loads(line) for line in lines] == [
        {"call": 1, "of": "currency"},
        {"ended": 1},
        {"call": 2, "of": "currency"},
        {"ended": 2},
    ]
