"""The shop's order database, its service with both its mistakes, and what each pool makes of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from examples.children import ROOT
from examples.shop import lending, service
from examples.shop.calls import Calls
from examples.shop.database import TABLES_FILE, running_database
from examples.shop.incidents.leak import culprit
from examples.shop.processes import ServiceDiedError
from examples.shop.services import catalogue, checkout, frontend, orders
from examples.shop.services.orders import OrderBook, bare_pool, bare_use
from tests.support.postgres import PostgresServer
from tests.support.waiting import await_until, wait_until

from resilient.events import ConnectionCollected, ConnectionReclaimed, Event
from resilient.health import Health, Status

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ORDER = {
    "order": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
    "user": "ada",
    "goods": "17.98",
    "shipping": "8.99",
    "currency": "EUR",
    "items": {"6E92ZMYYFZ": 2, "OLJCESPC7Z": 1},
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server with the shop's tables."""
    with PostgresServer() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute(TABLES_FILE.read_bytes())
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that has nothing else to do, and bookkeepers that answer soon."""
    monkeypatch.setattr(orders, "TRANSACTION_TIME", 0.0)
    monkeypatch.setattr(orders, "BOOKING_TIME", 0.0)


@asynccontextmanager
async def serving(pool: orders.Pool) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the orders in this process."""
    transport = httpx.ASGITransport(service.application(orders.routes(OrderBook(pool))))
    async with httpx.AsyncClient(transport=transport, base_url="http://orders") as http:
        yield http


@pytest.fixture(params=["bare", "protected"])
async def shop(request: pytest.FixtureRequest, postgres: PostgresServer) -> AsyncIterator[httpx.AsyncClient]:
    """The service, over either pool."""
    lent = bare_pool if request.param == "bare" else lending.pool
    async with lent(postgres.url) as pool, serving(pool) as http:
        yield http


@pytest.fixture
async def told(postgres: PostgresServer) -> AsyncIterator[tuple[Any, httpx.AsyncClient, list[Event]]]:
    """The protected service: its pool, a client of it, and what the pool reports."""
    events: list[Event] = []
    async with lending.pool(postgres.url) as pool, serving(pool) as http:
        pool.add_listener(events.append)
        yield pool, http, events


async def test_order_is_kept_and_shown_to_who_placed_it(
    shop: httpx.AsyncClient, postgres: PostgresServer
) -> None:
    """With its lines, and to nobody else."""
    postgres.query("delete from order_lines; delete from orders where customer = 'ada'")
    stored = await shop.post("/orders", json=ORDER)
    shown = await shop.get("/orders/ada")

    assert stored.status_code == 201
    assert shown.json() == [{name: ORDER[name] for name in ("order", "goods", "shipping", "currency")}]
    assert len((await shop.get("/orders/user-7")).json()) == 1
    assert postgres.query("select sum(quantity) from order_lines") == "3"


@pytest.mark.parametrize(("protections", "ready"), [([], Status.FAIL), (["pool"], Status.PASS)])
async def test_pool_that_has_run_dry_makes_the_service_unready(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, *, protections: list[str], ready: Status
) -> None:
    """Its health needs a connection like everybody; the protected pool has taken back what was forgotten."""
    monkeypatch.setenv("SHOP_DATABASE", postgres.url)
    calls = Calls(httpx.AsyncClient(), {})
    with Health("orders", timeout=0.3) as health:
        async with orders.opened(calls, protections, health) as routes:
            transport = httpx.ASGITransport(service.application(routes))
            async with httpx.AsyncClient(transport=transport, base_url="http://orders") as http:
                for number in range(orders.MAX_SIZE):
                    assert (await http.get(f"/orders/new-{number}")).json() == []
                assert (await health.areport("ready")).status is ready


async def test_order_that_cannot_be_kept_whole_is_not_kept(
    told: tuple[Any, httpx.AsyncClient, list[Event]], postgres: PostgresServer
) -> None:
    """One transaction: its second line is wrong, and nothing of it is there."""
    _, http, _ = told
    order = {**ORDER, "order": "00000000-0000-4000-8000-000000000001", "user": "bob"}

    with pytest.raises(psycopg.DataError):
        await http.post("/orders", json={**order, "items": {"6E92ZMYYFZ": 2, "OLJCESPC7Z": "many"}})

    assert postgres.query("select count(*) from orders where customer = 'bob'") == "0"


async def test_bare_pool_loses_a_connection_to_every_customer_without_orders(
    postgres: PostgresServer,
) -> None:
    """Until none is left; those that it counts as used do not even exist any more."""
    async with bare_pool(postgres.url) as pool, serving(pool) as http:
        await _fill(pool)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # psycopg sees them collected, and says so
            for number in range(orders.MAX_SIZE):
                assert (await http.get(f"/orders/new-{number}")).json() == []
            gc.collect()

        assert bare_use(pool)["used"] == orders.MAX_SIZE
        await _await_sessions(postgres, 0)


async def test_protected_pool_has_them_back_and_says_where_they_were_lost(
    told: tuple[Any, httpx.AsyncClient, list[Event]],
) -> None:
    """Twice as many as it has; each with file and line, and nobody notices."""
    pool, http, events = told
    for number in range(2 * orders.MAX_SIZE):
        assert (await http.get(f"/orders/new-{number}")).json() == []
    await await_until(lambda: len(events) == 2 * orders.MAX_SIZE, "all reports")

    assert all(isinstance(event, ConnectionCollected) and event.reused for event in events)
    assert {event.where for event in events if isinstance(event, ConnectionCollected)} == {culprit()}
    assert pool.stats().used == 0


def test_culprit_is_the_line_that_borrows_in_the_history() -> None:
    """As the source says today."""
    file, line = culprit().removesuffix(" in OrderBook.history").rsplit(":", 1)
    source = Path(file).read_text(encoding="utf-8").splitlines()

    assert Path(file) == Path(orders.__file__)
    assert source[int(line) - 1].strip() == "connection = await self._pool.getconn()"
    assert sum("getconn()" in text for text in source) == 1


async def test_export_that_waits_too_long_loses_its_session_and_is_told(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is rid of it before the export goes on."""
    monkeypatch.setattr(lending, "LEAK_AFTER", 0.05)
    monkeypatch.setattr(lending, "MAX_HOLD", 0.1)
    go_on = asyncio.Event()
    monkeypatch.setattr(orders, "book", lambda ids: go_on.wait())
    events: list[Event] = []
    async with lending.pool(postgres.url) as pool, serving(pool) as http:
        pool.add_listener(events.append)
        export = asyncio.create_task(http.post("/export"))
        await await_until(lambda: any(isinstance(e, ConnectionReclaimed) for e in events), "its session")
        idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'"
        await await_until(lambda: postgres.query(idle) == "0", "the server rid of it")
        go_on.set()
        answer = await export

    assert answer.status_code == 500
    assert "ConnectionReclaimedError" in answer.json()["detail"]
    assert json.loads(capsys.readouterr().out)["error"] == "ConnectionReclaimedError"
    assert postgres.query("select count(*) from orders where booked") == "0"


async def test_checkout_has_its_order_stored_and_the_frontend_shows_it(
    shop: httpx.AsyncClient, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what was in the cart, and with what it cost."""
    monkeypatch.setattr(checkout, "CHARGE_TIME", 0.0)
    postgres.query("delete from order_lines; delete from orders where customer = 'ada'")
    services: dict[str, httpx.AsyncBaseTransport] = {"orders": shop._transport}
    calls = Calls(httpx.AsyncClient(transport=_Switchboard(services)), _URLS)
    for name, module in {"checkout": checkout, "frontend": frontend, "catalogue": catalogue}.items():
        services[name] = httpx.ASGITransport(service.application(module.routes(calls)))
    services["currency"] = httpx.MockTransport(lambda request: httpx.Response(200, json=["17.98"]))
    async with httpx.AsyncClient(transport=services["frontend"], base_url="http://frontend") as http:
        await http.post("/cart?user=ada&product=6E92ZMYYFZ")
        order = (await http.post("/checkout?user=ada&currency=USD")).json()
        shown = (await http.get("/orders?user=ada")).json()

    assert shown == [order]
    assert postgres.query("select product, quantity from order_lines") == "6E92ZMYYFZ|1"


async def test_export_notes_what_was_booked(told: tuple[Any, httpx.AsyncClient, list[Event]]) -> None:
    """If the bookkeepers answer in time."""
    _, http, _ = told

    assert (await http.post("/export")).json() == {"booked": 100}


async def test_database_is_there_while_open_and_gone_afterwards(tmp_path: Path) -> None:
    """With its tables, its customers, and word of its sessions."""
    heard: list[dict[str, Any]] = []
    async with running_database(tmp_path, lambda name, line: heard.append(line)) as url:
        async with await psycopg.AsyncConnection.connect(url, application_name="orders") as connection:
            cursor = await connection.execute("select count(*) from orders")
            customers = await cursor.fetchall()
            await await_until(lambda: any(line["open"] == 1 for line in heard), "the session")
            await await_until(lambda: heard[-1]["oldest"] > 0, "its idle transaction")
        folder = _folder(url)
        assert _exists(folder)

    assert customers == [(1000,)]
    assert not _exists(folder)


async def test_database_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own words, and its folder gone: no socket has so long a name."""
    folder = _made(tmp_path / ("x" * 100))
    monkeypatch.setenv("TMPDIR", str(folder))

    with pytest.raises(ServiceDiedError, match=r"the database did not start:\n.+"):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running_database(tmp_path, lambda name, line: None))
    assert _names(folder) == []


_URLS = {name: f"http://{name}" for name in ("orders", "checkout", "frontend", "catalogue", "currency")}


class _Switchboard(httpx.AsyncBaseTransport):
    """Connects services in this process."""

    def __init__(self, services: dict[str, httpx.AsyncBaseTransport]) -> None:
        self._services = services

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._services[request.url.host].handle_async_request(request)


_PARENT = """
import asyncio, pathlib, sys
from examples.shop.database import running_database

async def main():
    async with running_database(pathlib.Path(sys.argv[1]), lambda name, line: None) as url:
        print(url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_database_ends_with_its_parent(tmp_path: Path, by: signal.Signals) -> None:
    """However that ends; and leaves no folder behind."""
    command, environment = [sys.executable, "-c", _PARENT, str(tmp_path)], {**os.environ}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        parent.send_signal(by)
        parent.wait()

    folder = _folder(url)
    wait_until(lambda: not folder.exists(), "its folder gone")
    with pytest.raises(psycopg.OperationalError, match="No such file"):
        psycopg.connect(url)


def _folder(url: str) -> Path:
    return Path(str(psycopg.conninfo.conninfo_to_dict(url)["host"]))


def _exists(path: Path) -> bool:
    return path.exists()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def _fill(pool: Any) -> None:
    """Have a pool open all its connections."""
    lent = [await pool.getconn() for _ in range(orders.MAX_SIZE)]
    for connection in lent:
        await pool.putconn(connection)


async def _await_sessions(postgres: PostgresServer, number: int) -> None:
    query = "select count(*) from pg_stat_activity where application_name = 'orders'"
    await await_until(lambda: postgres.query(query) == str(number), f"{number} sessions")
