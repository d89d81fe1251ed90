"""Every call the shop makes over the network, as first written: no cache, no limit, no second source.

`protected.py` holds the same calls with decorators on, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from examples.shop import ecb


class Calls:
    """The shop's calls to its own services and to the rates API.

    Carts are kept by a service of their own, if this shop has one, and by the checkout otherwise.

    Args:
        http: The client they share.
        urls: Where each service listens, by its name.
    """

    def __init__(self, http: httpx.AsyncClient, urls: Mapping[str, str]) -> None:
        self._http = http
        self._urls = urls
        self._carts = "cart" if "cart" in urls else "checkout"

    async def fetch_rates(self) -> ecb.Rates:
        """Ask the rates API, which belongs to somebody else, for today's file."""
        answer = await self._http.get(self._urls["rates"] + ecb.PATH)
        return ecb.parse(answer.raise_for_status().content)

    async def currencies(self) -> list[str]:
        """List the currencies the shop can show its prices in."""
        listed: list[str] = await self._get("currency", "/currencies")
        return listed

    async def convert(self, amounts: Sequence[str], to: str) -> list[str]:
        """Turn dollars into another currency."""
        converted: list[str] = await self._post("currency", "/convert", {"amounts": list(amounts), "to": to})
        return converted

    async def products(self) -> list[dict[str, str]]:
        """List everything the shop sells."""
        listed: list[dict[str, str]] = await self._get("catalogue", "/products")
        return listed

    async def product(self, product_id: str) -> dict[str, str]:
        """Look one product up."""
        found: dict[str, str] = await self._get("catalogue", f"/products/{product_id}")
        return found

    async def recommendations(self, product_id: str) -> list[str]:
        """List what else somebody may like who looks at a product; nothing if no service knows."""
        if "recommendation" not in self._urls:
            return []
        listed: list[str] = await self._get("recommendation", f"/recommendations/{product_id}")
        return listed

    async def view_cart(self, user: str, currency: str) -> dict[str, Any]:
        """Show what a user is about to buy, with prices."""
        cart: dict[str, Any] = await self._get(self._carts, f"/carts/{user}?currency={currency}")
        return cart

    async def add_to_cart(self, user: str, product_id: str) -> dict[str, Any]:
        """Put one more of a product into a user's cart."""
        cart: dict[str, Any] = await self._post(self._carts, f"/carts/{user}", {"product": product_id})
        return cart

    async def cart_entries(self, user: str) -> dict[str, str] | None:
        """Look up what is in a user's cart, entry by entry; None if no service keeps it."""
        if "cart" not in self._urls:
            return None
        entries: dict[str, str] = await self._get("cart", f"/carts/{user}/entries")
        return entries

    async def take_from_cart(self, user: str, entries: Sequence[str]) -> None:
        """Take out of a user's cart what has been paid for."""
        await self._post("cart", f"/carts/{user}/bought", list(entries))

    async def place_order(self, user: str, currency: str) -> dict[str, Any]:
        """Buy what is in a user's cart; not to be repeated blindly."""
        order: dict[str, Any] = await self._post("checkout", "/orders", {"user": user, "currency": currency})
        return order

    async def store_order(self, order: Mapping[str, Any]) -> None:
        """Keep an order in the database, if this shop has one."""
        if "orders" in self._urls:
            await self._post("orders", "/orders", order)

    async def orders(self, user: str) -> list[dict[str, Any]]:
        """Show what a user has bought."""
        placed: list[dict[str, Any]] = await self._get("orders", f"/orders/{user}")
        return placed

    async def export_orders(self) -> dict[str, Any]:
        """Hand orders to the bookkeepers."""
        exported: dict[str, Any] = await self._post("orders", "/export", {})
        return exported

    async def _get(self, service: str, path: str) -> Any:
        answer = await self._http.get(self._urls[service] + path)
        return answer.raise_for_status().json()

    async def _post(self, service: str, path: str, body: object) -> Any:
        answer = await self._http.post(self._urls[service] + path, json=body)
        return answer.raise_for_status().json()
