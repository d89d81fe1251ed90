"""The catalogue: nine products in a database that takes its time, over so many connections."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from examples.shop.timing import scaled

PRODUCTS_FILE = Path(__file__).parent.parent / "data" / "products.json"
QUERY_TIME = scaled(0.05)
# Who finds all of them busy waits. So many that nobody does, unless an incident is about that.
CONNECTIONS = int(os.environ.get("SHOP_CONNECTIONS", "10000"))


def routes(calls: Calls) -> list[BaseRoute]:
    """Return the catalogue's routes; it calls nobody itself."""
    products = {product["id"]: product for product in json.loads(PRODUCTS_FILE.read_text())}
    connections = asyncio.Semaphore(CONNECTIONS)

    async def query() -> None:
        async with connections:
            await asyncio.sleep(QUERY_TIME)

    async def everything(request: Request) -> Response:
        await query()
        return JSONResponse(list(products.values()))

    async def one(request: Request) -> Response:
        await query()
        product_id = request.path_params["product_id"]
        if product_id not in products:
            raise HTTPException(404, f"no product {product_id!r}")
        return JSONResponse(products[product_id])

    return [Route("/products", everything), Route("/products/{product_id}", one)]
