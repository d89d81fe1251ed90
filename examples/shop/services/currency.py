"""The currency service: turns dollars into what the customer pays in, by the rates of the external API."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls


def routes(calls: Calls) -> list[BaseRoute]:
    """Return the routes of a service that asks for rates through *calls*."""

    async def currencies(request: Request) -> Response:
        rates = await calls.fetch_rates()
        return JSONResponse(sorted(rates.per_euro))

    async def convert(request: Request) -> Response:
        wish = await request.json()
        rates = await calls.fetch_rates()
        try:
            amounts = [rates.convert(Decimal(amount), of="USD", to=wish["to"]) for amount in wish["amounts"]]
        except (KeyError, InvalidOperation) as error:
            raise HTTPException(400, f"cannot convert {wish!r}") from error
        return JSONResponse([str(amount) for amount in amounts])

    return [Route("/currencies", currencies), Route("/convert", convert, methods=["POST"])]
