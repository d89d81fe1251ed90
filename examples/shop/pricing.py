"""What goods cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal

from examples.shop.calls import Calls


async def price_of(items: Mapping[str, int], currency: str, calls: Calls) -> str:
    """Return what so many of each product cost together."""
    products = await asyncio.gather(*map(calls.product, items))
    dollars = sum(Decimal(product["price_usd"]) * items[product["id"]] for product in products)
    [price] = await calls.convert([str(dollars)], currency)
    return price
