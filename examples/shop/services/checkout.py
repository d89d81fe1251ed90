"""Carts and orders: prices from the catalogue, in the customer's currency, then the card is charged."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from examples.shop.pricing import price_of
from examples.shop.timing import scaled
from resilient.health import Health

SHIPPING_USD = "8.99"
CHARGE_TIME = float(os.environ.get("SHOP_CHARGE_TIME") or scaled(1.0))
MAX_CARTS = 10_000

Charge: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Has a card charged: for which order, and how much."""


class Checkout:
    """The carts of the moment, and what is done with them."""

    def __init__(self, calls: Calls, charge: Charge) -> None:
        self._calls = calls
        self._charge = charge
        self._carts: OrderedDict[str, Counter[str]] = OrderedDict()

    async def add(self, request: Request) -> Response:
        """Put a product into a cart."""
        product = await self._calls.product((await request.json())["product"])
        cart = self._cart(request.path_params["user"])
        cart[product["id"]] += 1
        return JSONResponse({"items": cart.total()})

    async def view(self, request: Request) -> Response:
        """Show a cart with its price and shipping."""
        cart = self._cart(request.path_params["user"])
        currency = request.query_params.get("currency", "USD")
        return JSONResponse(
            {"items": dict(cart), "goods": await price_of(cart, currency, self._calls), "currency": currency}
        )

    async def order(self, request: Request) -> Response:
        """Charge the card for what is in the cart, empty it, and have the order kept."""
        wish = await request.json()
        user, currency = wish["user"], wish["currency"]
        entries = await self._calls.cart_entries(user)
        cart = self._carts.pop(user, None) if entries is None else Counter(entries.values())
        if not cart:
            raise HTTPException(409, "the cart is empty")
        goods = await price_of(cart, currency, self._calls)
        [shipping] = await self._calls.convert([SHIPPING_USD], currency)
        number = str(uuid4())
        await self._charge(number, f"{goods} + {shipping} {currency}")
        order = {"order": number, "goods": goods, "shipping": shipping, "currency": currency}
        await self._calls.store_order({**order, "user": user, "items": dict(cart)})
        if entries:
            await self._calls.take_from_cart(user, list(entries))
        return JSONResponse(order)

    def _cart(self, user: str) -> Counter[str]:
        cart = self._carts.setdefault(user, Counter())
        self._carts.move_to_end(user)
        if len(self._carts) > MAX_CARTS:
            self._carts.popitem(last=False)
        return cart


async def wait(order: str, amount: str) -> None:
    """Wait as long as a payment provider takes."""
    await asyncio.sleep(CHARGE_TIME)


@asynccontextmanager
async def opened(
    calls: Calls, protections: Collection[str], health: Health
) -> AsyncIterator[Sequence[BaseRoute]]:
    """Yield the routes of a service that charges cards at payment services, if this shop has any."""
    if "SHOP_PAYMENTS" not in os.environ:
        yield routes(calls)
        return
    # Imported only here: in the other incidents nobody speaks gRPC.
    from examples.shop.till import opened_till

    async with opened_till("payments" in protections, health) as charge:
        yield routes(calls, charge)


def routes(calls: Calls, charge: Charge = wait) -> list[BaseRoute]:
    """Return the routes of a service that looks up and converts through *calls*."""
    checkout = Checkout(calls, charge)
    return [
        Route("/carts/{user}", checkout.view, methods=["GET"]),
        Route("/carts/{user}", checkout.add, methods=["POST"]),
        Route("/orders", checkout.order, methods=["POST"]),
    ]
