"""The demo's carts: how they are kept, what is owed to the store, and what customers are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import redis
from examples.shop import failover
from examples.shop.calls import Calls
from examples.shop.carts import Cart, Carts, is_of, new_entry
from examples.shop.failover import Change, Changes, ProtectedCarts
from examples.shop.service import application
from examples.shop.services import cart as cart_service
from examples.shop.services import checkout
from examples.shop.store import Address
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until

from resilient.errors import RejectedError

NOBODY = Address(("127.0.0.1", 1), [("127.0.0.1", 1)])
MUG = "6E92ZMYYFZ"


class Books(Carts):
    """Carts in memory, for the service above them."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, str]] = {}

    async def read(self, user: str) -> Cart:
        return Cart(dict(self.entries.get(user, {})))

    read_to_buy = read

    async def put(self, user: str, entry: str, product: str) -> str:
        self.entries.setdefault(user, {})[entry] = product
        return "stored"

    async def take(self, user: str, entries: Collection[str]) -> str:
        for entry in entries:
            del self.entries[user][entry]
        return "stored"

    async def aclose(self) -> None:
        """Leave everything where it is."""


class Priced(Calls):
    """Calls to a catalogue where everything costs a dollar, and to carts behind an application."""

    def __init__(self, carts: Carts) -> None:
        app = application(cart_service.routes(self, carts))
        super().__init__(httpx.AsyncClient(transport=httpx.ASGITransport(app)), {"cart": "http://cart"})

    async def product(self, product_id: str) -> dict[str, str]:
        return {"id": product_id, "price_usd": "1.00"}

    async def convert(self, amounts: Any, to: str) -> list[str]:
        return list(amounts)


@pytest.fixture
async def books() -> AsyncIterator[tuple[Books, Priced]]:
    """Carts, and how they are called."""
    carts = Books()
    calls = Priced(carts)
    async with calls._http:
        yield carts, calls


def _notes(printed: str, what: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, printed.splitlines()) if line["note"] == what]


async def test_what_is_put_into_the_cart_is_seen_and_bought_once(
    books: tuple[Books, Priced], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout reads the entries, charges, and takes out just those."""
    monkeypatch.setattr(checkout, "CHARGE_TIME", 0)
    carts, calls = books
    shop = httpx.AsyncClient(transport=httpx.ASGITransport(application(checkout.routes(calls))))
    async with shop:
        for _ in range(2):
            await calls.add_to_cart("ada", MUG)
        seen = await calls.view_cart("ada", "USD")
        wish = {"user": "ada", "currency": "USD"}
        orders = [await shop.post("http://checkout/orders", json=wish) for _ in range(2)]

    assert (seen["items"], seen["goods"]) == ({MUG: 2}, "2.00")
    assert [order.status_code for order in orders] == [200, 409]
    assert carts.entries == {"ada": {}}


async def test_entry_added_while_a_cart_is_paid_for_stays(books: tuple[Books, Priced]) -> None:
    """It was not in what was charged."""
    carts, calls = books
    await calls.add_to_cart("ada", MUG)
    charged = await calls.cart_entries("ada")
    await calls.add_to_cart("ada", MUG)
    await calls.take_from_cart("ada", list(charged or ()))

    assert len(carts.entries["ada"]) == 1


async def test_service_tells_of_a_stranger_in_a_cart(
    books: tuple[Books, Priced], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever way they came there, customers must not see each other's carts."""
    carts, calls = books
    await calls.add_to_cart("ada", MUG)
    [[entry]] = carts.entries.values()
    await calls.view_cart("ada", "USD")
    assert not _notes(capsys.readouterr().out, "strangers")

    carts.entries["bob"] = carts.entries["ada"]
    await calls.view_cart("bob", "USD")
    await calls.cart_entries("bob")

    told = _notes(capsys.readouterr().out, "strangers")
    assert [(line["user"], line["entries"]) for line in told] == [("bob", [entry])] * 2


async def test_service_tells_how_each_operation_went(
    books: tuple[Books, Priced], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails, too."""
    carts, calls = books
    await calls.add_to_cart("ada", MUG)
    monkeypatch.setattr(carts, "read", lambda user: _raise(redis.ConnectionError("gone")))
    with pytest.raises(redis.ConnectionError):
        await calls.view_cart("ada", "USD")

    told = _notes(capsys.readouterr().out, "cart")
    assert [(line["did"], line["outcome"]) for line in told] == [("add", "stored"), ("view", "failed")]


async def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(("user", "belongs"), [("ada", True), ("ad", False), ("ada/", False), ("bob", False)])
def test_entry_belongs_to_one_customer(user: str, belongs: bool) -> None:
    """Not to somebody whose name begins alike."""
    assert is_of(user, new_entry("ada")) is belongs


async def test_carts_in_valkey_hold_an_entry_once(valkey: ValkeyServer) -> None:
    """However often it is put there, or taken out; and not for ever."""
    async with aclosing(Carts(Address((valkey.host, valkey.port), []))) as carts:
        tea, mug = new_entry("ada"), new_entry("ada")
        for entry, product in ((tea, "tea"), (mug, "mug"), (tea, "tea")):
            await carts.put("ada", entry, product)
        both = await carts.read("ada")
        for _ in range(2):
            await carts.take("ada", [tea])
        left = await carts.read_to_buy("ada")
        with valkey.client() as client:
            expires = client.ttl("cart:ada")

    assert both.entries == {tea: "tea", mug: "mug"}
    assert left.entries == {mug: "mug"}
    assert 0 < expires <= 7 * 86_400


def test_changes_are_owed_until_they_are_stored() -> None:
    """And seen in the cart for as long."""
    changes, change = Changes(), Change("ada", ["ada/1"], "tea")
    changes.add(change)
    assert changes.owed() == [change]
    assert changes.over("ada", Cart({"ada/0": "mug"}, "replica")) == Cart(
        {"ada/0": "mug", "ada/1": "tea"}, "replica"
    )
    assert changes.over("bob", Cart({})) == Cart({})

    change.stored = True
    assert changes.owed() == []
    assert changes.over("ada", Cart({})) == Cart({})


def test_later_change_takes_the_place_of_an_earlier_one() -> None:
    """What was bought must not come back."""
    changes, put, take = Changes(), Change("ada", ["ada/1"], "tea"), Change("ada", ["ada/1"])
    changes.add(put)
    changes.add(take)

    assert changes.owed() == [take]
    assert (changes.has(put), changes.has(take)) == (False, True)
    assert changes.over("ada", Cart({"ada/1": "tea"})) == Cart({})


def test_what_was_stored_lately_is_owed_to_a_new_server() -> None:
    """But not what was stored long ago."""
    changes = Changes()
    old, late, other = (
        Change("ada", ["ada/1"], "tea"),
        Change("ada", ["ada/2"], "mug"),
        Change("bob", ["bob/1"]),
    )
    for change in (old, late):
        changes.add(change)
        change.stored = True
    old.at -= failover.REPEATED_FOR
    changes.add(other)
    changes.repeat()

    assert changes.owed() == [late, other]


def test_changes_find_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better no than a promise nobody can keep; but what is stored makes room."""
    monkeypatch.setattr(failover, "MOST_CHANGES", 2)
    changes = Changes()
    one, two, three = (Change("ada", [f"ada/{number}"], "tea") for number in range(3))
    changes.add(one)
    changes.add(two)
    with pytest.raises(RejectedError, match="too many changes"):
        changes.add(three)

    one.stored = True
    changes.add(three)
    assert [changes.has(change) for change in (one, two, three)] == [False, True, True]


class Server:
    """A store that does what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.entries: dict[str, str] = {}
        self.made: list[Change] = []
        self.role, self.run_id = "master", "first"
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def change(self, change: Change) -> None:
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        self.made.append(change)
        for entry in change.entries:
            if change.product is None:
                self.entries.pop(entry, None)
            else:
                self.entries[entry] = change.product

    async def info(self) -> dict[str, str]:
        return {"role": self.role, "run_id": self.run_id}


@pytest.fixture
async def protected(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ProtectedCarts, Server]]:
    """Protected carts whose changes go to a server in this process."""
    server = Server()
    async with aclosing(ProtectedCarts(NOBODY)) as carts:
        monkeypatch.setattr(carts, "_change", server.change)
        yield carts, server


async def test_change_is_noted_while_the_store_is_away_and_stored_later(
    protected: tuple[ProtectedCarts, Server],
) -> None:
    """Without the customer's doing."""
    carts, server = protected
    server.error = redis.ReadOnlyError("a replica")
    assert await carts.put("ada", "ada/1", "tea") == "noted"
    assert not server.entries

    server.error = None
    await await_until(lambda: server.entries == {"ada/1": "tea"}, "the change is stored")
    assert await carts.put("ada", "ada/2", "mug") == "stored"


async def test_what_is_taken_out_is_not_put_there_afterwards(
    protected: tuple[ProtectedCarts, Server],
) -> None:
    """By a change that was under way, or by one that waited to be."""
    carts, server = protected
    server.may_answer.clear()
    putting = [asyncio.create_task(carts.put("ada", f"ada/{number}", "tea")) for number in range(2)]
    await asyncio.sleep(0)
    taking = asyncio.create_task(carts.take("ada", ["ada/0", "ada/1"]))
    await asyncio.sleep(0)
    server.may_answer.set()

    assert await asyncio.gather(*putting, taking) == ["stored"] * 3
    assert server.entries == {}


async def test_change_that_the_store_refuses_for_good_is_an_error(
    protected: tuple[ProtectedCarts, Server],
) -> None:
    """And not sent again and again."""
    carts, server = protected
    server.error = redis.ResponseError("WRONGTYPE")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        await carts.put("ada", "ada/1", "tea")
    assert carts._changes.owed() == []


async def test_courier_goes_on_after_a_change_that_the_store_refuses(
    protected: tuple[ProtectedCarts, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """And tells which one it was."""
    carts, server = protected
    server.error = redis.ConnectionError("gone")
    assert await carts.put("ada", "ada/1", "tea") == "noted"
    server.error = redis.ResponseError("WRONGTYPE")
    await await_until(lambda: not carts._changes.owed(), "the change is given up")
    server.error = redis.ConnectionError("gone")
    assert await carts.put("bob", "bob/1", "mug") == "noted"
    server.error = None
    await await_until(lambda: server.entries == {"bob/1": "mug"}, "the other change is stored")

    told = _notes(capsys.readouterr().out, "given up")
    assert [(line["entries"], line["error"]) for line in told] == [(["ada/1"], "WRONGTYPE")]


async def test_another_primary_is_given_what_it_may_lack(protected: tuple[ProtectedCarts, Server]) -> None:
    """As a replica that was promoted before it had heard of everything."""
    carts, server = protected
    await carts._meet(server)
    await carts.put("ada", "ada/1", "tea")
    server.entries.clear()
    await carts._meet(server)
    assert carts._changes.owed() == []

    server.run_id = "second"
    await carts._meet(server)
    await await_until(lambda: server.entries == {"ada/1": "tea"}, "the change is stored once more")


async def test_change_is_not_taken_for_stored_if_another_primary_is_met_meanwhile(
    protected: tuple[ProtectedCarts, Server],
) -> None:
    """It went to the one before, which goes on answering for a while."""
    carts, server = protected
    await carts._meet(server)
    server.may_answer.clear()
    putting = asyncio.create_task(carts.put("ada", "ada/1", "tea"))
    await asyncio.sleep(0)
    server.run_id = "second"
    await carts._meet(server)
    server.may_answer.set()

    assert await putting == "noted"
    await await_until(lambda: len(server.made) == 2, "the change is stored once more")


async def test_old_primary_is_not_recognised_when_another_was_met(
    protected: tuple[ProtectedCarts, Server],
) -> None:
    """Even while it says that it is the primary."""
    carts, server = protected
    await carts._meet(server)
    await carts._recognise(server)
    server.run_id = "second"

    with pytest.raises(redis.ConnectionError, match="another server"):
        await carts._recognise(server)
    await carts._meet(server)
    await carts._recognise(server)


async def test_replica_is_not_taken_for_the_primary(protected: tuple[ProtectedCarts, Server]) -> None:
    """A sentinel may not have heard of the failover yet."""
    carts, server = protected
    server.role = "slave"

    with pytest.raises(redis.ConnectionError, match="not the primary"):
        await carts._meet(server)
