"""What the frontend shows while nobody answers it: on top of `protected.py`, all that differs in A6.

What the shop sells and what that costs is what was last seen of it, or else what was shipped with the shop.
For a cart, or an order, there is no such thing: who asks for them is told soon that it cannot be done now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache

import httpx

from examples.shop import ecb
from examples.shop.calls import Calls
from examples.shop.protected import ProtectedCalls, is_our_mistake
from examples.shop.services.catalogue import PRODUCTS_FILE
from examples.shop.timing import DAY, HOUR, scaled, shelf_life
from resilient import Cache, CircuitBreaker, Fallback, Pipeline, Timeout
from resilient.errors import RejectedError

# Calm, a page takes a fifth of a second, and a checkout two.
PAGE_WITHIN = scaled(2.5)
CHECKOUT_WITHIN = scaled(5)


def unheard(error: BaseException) -> bool:
    """Say whether there was no answer, or none by whoever was asked."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError | TimeoutError | RejectedError)


@cache
def shipped_products() -> dict[str, dict[str, str]]:
    """Return what the shop sold when it was shipped."""
    return {product["id"]: product for product in json.loads(PRODUCTS_FILE.read_text(encoding="utf-8"))}


def shipped_catalogue(error: Exception, calls: Calls) -> list[dict[str, str]]:
    """List what the shop sold when it was shipped."""
    return list(shipped_products().values())


def shipped_product(error: Exception, calls: Calls, product_id: str) -> dict[str, str]:
    """Look up what was shipped."""
    try:
        return shipped_products()[product_id]
    except KeyError:
        raise error from None


def shipped_prices(error: Exception, calls: Calls, amounts: Sequence[str], to: str) -> list[str]:
    """Turn dollars into another currency at the rates that were shipped."""
    try:
        return [str(ecb.shipped().convert(Decimal(amount), of="USD", to=to)) for amount in amounts]
    except (KeyError, InvalidOperation):
        raise error from None


def shipped_currencies(error: Exception, calls: Calls) -> list[str]:
    """List the currencies of the rates that were shipped."""
    return sorted(ecb.shipped().per_euro)


def breaker(name: str) -> CircuitBreaker:
    """Return what leaves alone for a while whoever does not answer."""
    return CircuitBreaker(name, exclude=(is_our_mistake,), min_calls=3, reset_timeout=scaled(5))


catalogue, currency, checkout = breaker("catalogue"), breaker("currency"), breaker("checkout")


def page(
    name: str, shipped: object, service: CircuitBreaker, key: Callable[..., Hashable] | None = None
) -> Pipeline:
    """Return what shows something all the same: what was last seen of it, or what was shipped."""
    seen = Cache(
        name,
        ttl=shelf_life(HOUR),
        stale_while_revalidate=shelf_life(DAY),
        stale_if_error=math.inf,
        key=key,
        on=unheard,
    )
    return Pipeline(
        Fallback(shipped, on=unheard, name=f"shipped-{name}"), seen, service, Timeout(PAGE_WITHIN)
    )


def wish(calls: Calls, amounts: Sequence[str], to: str) -> Hashable:
    """Return by what prices are known again."""
    return (*amounts, to)


cart, order = Pipeline(checkout, Timeout(PAGE_WITHIN)), Pipeline(checkout, Timeout(CHECKOUT_WITHIN))


class StaticCalls(ProtectedCalls):
    """The same calls again: each of them ends soon, and those for pages end well."""

    products = page("products", shipped_catalogue, catalogue)(Calls.products)
    product = page("product", shipped_product, catalogue)(Calls.product)
    convert = page("prices", shipped_prices, currency, wish)(Calls.convert)
    currencies = page("currencies", shipped_currencies, currency)(Calls.currencies)
    view_cart = cart(Calls.view_cart)
    add_to_cart = cart(Calls.add_to_cart)
    place_order = order(Calls.place_order)
