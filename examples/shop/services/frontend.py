"""The shop window: what the customer's browser talks to."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls


class Frontend:
    """The shop's pages, as JSON."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def home(self, request: Request) -> Response:
        """Show everything the shop sells."""
        products = await self._calls.products()
        return JSONResponse({"products": await self._priced(products, request)})

    async def product(self, request: Request) -> Response:
        """Show one product, and what else there is for somebody who likes it."""
        product = await self._calls.product(request.path_params["product_id"])
        [priced] = await self._priced([product], request)
        also = await self._calls.recommendations(product["id"])
        return JSONResponse({**priced, "also": also} if also else priced)

    async def set_currency(self, request: Request) -> Response:
        """Change what the customer pays in, if the shop knows it."""
        currency = _currency(request)
        if currency not in await self._calls.currencies():
            raise HTTPException(400, f"no currency {currency!r}")
        return JSONResponse({"currency": currency})

    async def view_cart(self, request: Request) -> Response:
        """Show what the customer is about to buy."""
        return JSONResponse(await self._calls.view_cart(_user(request), _currency(request)))

    async def add_to_cart(self, request: Request) -> Response:
        """Put a product into the cart."""
        product_id = request.query_params["product"]
        return JSONResponse(await self._calls.add_to_cart(_user(request), product_id))

    async def checkout(self, request: Request) -> Response:
        """Buy what is in the cart."""
        return JSONResponse(await self._calls.place_order(_user(request), _currency(request)))

    async def orders(self, request: Request) -> Response:
        """Show what the customer has bought."""
        return JSONResponse(await self._calls.orders(_user(request)))

    async def export(self, request: Request) -> Response:
        """Have the orders handed to the bookkeepers."""
        return JSONResponse(await self._calls.export_orders())

    async def _priced(self, products: list[dict[str, str]], request: Request) -> list[dict[str, str]]:
        currency = _currency(request)
        prices = await self._calls.convert([product["price_usd"] for product in products], currency)
        return [
            {"id": product["id"], "name": product["name"], "price": price, "currency": currency}
            for product, price in zip(products, prices, strict=True)
        ]


def routes(calls: Calls) -> list[BaseRoute]:
    """Return the routes of pages that get everything through *calls*."""
    pages = Frontend(calls)
    return [
        Route("/", pages.home),
        Route("/product/{product_id}", pages.product),
        Route("/currency", pages.set_currency, methods=["POST"]),
        Route("/cart", pages.view_cart, methods=["GET"]),
        Route("/cart", pages.add_to_cart, methods=["POST"]),
        Route("/checkout", pages.checkout, methods=["POST"]),
        Route("/orders", pages.orders),
        Route("/export", pages.export, methods=["POST"]),
    ]


def _user(request: Request) -> str:
    return request.query_params.get("user", "nobody")


def _currency(request: Request) -> str:
    return request.query_params.get("currency", "USD")
