"""The carts: put in, looked at with prices, taken out when bought. They are kept in Valkey."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from examples.shop.carts import Cart, Carts, is_of, new_entry, note
from examples.shop.pricing import price_of
from examples.shop.store import Address
from resilient.health import Health

T = TypeVar("T")


class CartService:
    """The requests of customers and of the checkout, answered from the carts."""

    def __init__(self, calls: Calls, carts: Carts) -> None:
        self._calls = calls
        self._carts = carts

    async def view(self, request: Request) -> Response:
        """Show a cart with its price, and who says that this is in it."""
        user, currency = request.path_params["user"], request.query_params.get("currency", "USD")
        cart = await _noted("view", user, self._carts.read(user))
        items = Counter(cart.entries.values())
        goods = await price_of(items, currency, self._calls)
        return JSONResponse(
            {"items": dict(items), "goods": goods, "currency": currency, "source": cart.source}
        )

    async def add(self, request: Request) -> Response:
        """Put a product into a cart."""
        user = request.path_params["user"]
        product = await self._calls.product((await request.json())["product"])
        entry = new_entry(user)
        done = await _noted("add", user, self._carts.put(user, entry, product["id"]))
        note("added", entry=entry)
        return JSONResponse({"cart": done})

    async def entries(self, request: Request) -> Response:
        """Hand out the entries of a cart, to be charged for."""
        user = request.path_params["user"]
        cart = await _noted("buy", user, self._carts.read_to_buy(user))
        return JSONResponse(cart.entries)

    async def bought(self, request: Request) -> Response:
        """Take out what has been paid for."""
        user, entries = request.path_params["user"], await request.json()
        done = await _noted("take", user, self._carts.take(user, entries))
        note("bought", entries=entries)
        return JSONResponse({"cart": done})


async def _noted(did: str, user: str, doing: Coroutine[Any, Any, T]) -> T:
    """Do something to a cart; write down how that went, how long it took, and whose the answer was."""
    start, outcome = time.monotonic(), "failed"
    try:
        result = await doing
        outcome = result.source if isinstance(result, Cart) else str(result)
    finally:
        note("cart", did=did, outcome=outcome, seconds=time.monotonic() - start)
    if isinstance(result, Cart) and (strangers := [one for one in result.entries if not is_of(user, one)]):
        note("strangers", user=user, entries=strangers)
    return result


@asynccontextmanager
async def opened(
    calls: Calls, protections: Collection[str], health: Health
) -> AsyncIterator[list[BaseRoute]]:
    """Yield the routes of a service that looks up and converts through *calls*."""
    async with aclosing(_carts(Address.parse(os.environ["SHOP_STORE"]), protections)) as carts:
        carts.observe(health)
        yield routes(calls, carts)


def routes(calls: Calls, carts: Carts) -> list[BaseRoute]:
    """Return the routes of a service of these carts."""
    service = CartService(calls, carts)
    return [
        Route("/carts/{user}", service.view, methods=["GET"]),
        Route("/carts/{user}", service.add, methods=["POST"]),
        Route("/carts/{user}/entries", service.entries, methods=["GET"]),
        Route("/carts/{user}/bought", service.bought, methods=["POST"]),
    ]


def _carts(address: Address, protections: Collection[str]) -> Carts:
    if "failover" not in protections:
        return Carts(address)
    # Only here: the bare shop makes no policy and no pool at all.
    from examples.shop.failover import ProtectedCarts

    return ProtectedCarts(address)
