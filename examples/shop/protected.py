"""The shop's calls with policies on: this file is the whole difference between the demo's two runs.

The figures are those of the incident; `scaled` and `shelf_life` shorten them for the demo (see `timing.py`).
"""

from __future__ import annotations

import math

import httpx

from examples.shop import ecb
from examples.shop.calls import Calls
from examples.shop.timing import DAY, HOUR, scaled, shelf_life
from resilient import Cache, CircuitBreaker, Fallback, Pipeline, Retry, Timeout, deadline


def is_passing(error: BaseException) -> bool:
    """Say whether asking again may help: the line broke or the server stumbled; slowness is not that."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def is_our_mistake(error: BaseException) -> bool:
    """Say whether the question was wrong (4xx), which tells nothing about the health of who was asked."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500


def no_rates(error: Exception, calls: Calls) -> ecb.Rates:
    """Answer with the rates shipped with the shop: for a shop that starts while the API is away."""
    return ecb.shipped()


rates_cache = Cache(
    "rates", ttl=shelf_life(HOUR), stale_while_revalidate=shelf_life(DAY), stale_if_error=math.inf
)
# Two calls are enough to judge by: the cache lets few through.
rates_breaker = CircuitBreaker(
    "rates-api", failure_ratio=0.5, min_calls=2, window=scaled(60), reset_timeout=scaled(30)
)
rates_api = Pipeline(
    Fallback(no_rates, name="shipped-rates"),
    rates_cache,
    Retry(on=is_passing, attempts=2),
    rates_breaker,
    Timeout(scaled(5)),
)


def own_service(name: str) -> Pipeline:
    """Return what guards the calls to one of the shop's own services."""
    return Pipeline(
        deadline(scaled(15)),
        # Where no connection was made, nothing was sent: even an order may be repeated.
        Retry(on=httpx.ConnectError, attempts=3),
        CircuitBreaker(name, exclude=(is_our_mistake,), reset_timeout=scaled(5)),
        Timeout(scaled(10)),
    )


currency, catalogue = own_service("currency"), own_service("catalogue")
checkout, order_book, cart = own_service("checkout"), own_service("orders"), own_service("cart")
recommendation = own_service("recommendation")


class ProtectedCalls(Calls):
    """The same calls, decorated."""

    fetch_rates = rates_api(Calls.fetch_rates)
    currencies = currency(Calls.currencies)
    convert = currency(Calls.convert)
    products = catalogue(Calls.products)
    product = catalogue(Calls.product)
    recommendations = recommendation(Calls.recommendations)
    view_cart = checkout(Calls.view_cart)
    add_to_cart = checkout(Calls.add_to_cart)
    cart_entries = cart(Calls.cart_entries)
    take_from_cart = cart(Calls.take_from_cart)
    place_order = checkout(Calls.place_order)
    store_order = order_book(Calls.store_order)
    orders = order_book(Calls.orders)
    export_orders = order_book(Calls.export_orders)
