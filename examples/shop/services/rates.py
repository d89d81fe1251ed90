"""The external rates API: somebody else's server, with knobs to make it slow, wrong or silent.

`GET /control` reads the knobs and the number of calls that got here, `PUT /control` turns them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop import ecb
from examples.shop.calls import Calls
from examples.shop.timing import scaled


@dataclass(frozen=True, slots=True)
class Knobs:
    """How the API behaves: seconds before it answers, share of 500s, and whether it answers at all."""

    latency: float = field(default_factory=lambda: scaled(0.1))
    error_ratio: float = 0.0
    hang: bool = False

    def turned(self, wish: Any) -> Knobs:
        """Return these knobs with some turned; `ValueError` for a wish that makes no sense."""
        if not isinstance(wish, dict) or not wish.keys() <= set(self.__slots__):
            raise ValueError(f"want an object with any of {self.__slots__}, got {wish!r}")
        knobs = replace(self, **wish)
        _require(_is_number(knobs.latency, up_to=3600), "latency: seconds from 0 to 3600", knobs.latency)
        _require(_is_number(knobs.error_ratio, up_to=1), "error_ratio: from 0 to 1", knobs.error_ratio)
        _require(isinstance(knobs.hang, bool), "hang: true or false", knobs.hang)
        return knobs


class RatesApi:
    """One running API: its knobs, its answer, and who asked."""

    def __init__(self) -> None:
        self.knobs = Knobs()
        self.calls = 0
        self._answering = asyncio.Event()
        self._answering.set()
        self._document = ecb.render(replace(ecb.shipped(), day=f"{datetime.now(UTC):%Y-%m-%d}"))
        # Seeded, so that two runs meet the same errors.
        self._dice = random.Random(4)

    async def daily_file(self, request: Request) -> Response:
        """Answer with today's rates, as late and as wrong as the knobs say."""
        self.calls += 1
        knobs = self.knobs
        await asyncio.sleep(knobs.latency)
        await self._answering.wait()
        if self._dice.random() < knobs.error_ratio:
            return Response("out of order", status_code=500)
        return Response(self._document, media_type="text/xml")

    async def read(self, request: Request) -> Response:
        """Tell the knobs and the number of calls so far."""
        return JSONResponse({"calls": self.calls, **asdict(self.knobs)})

    async def turn(self, request: Request) -> Response:
        """Turn the knobs; calls already waiting keep the latency they came in with."""
        try:
            self.knobs = self.knobs.turned(await request.json())
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, status_code=400)
        if self.knobs.hang:
            self._answering.clear()
        else:
            self._answering.set()
        return await self.read(request)


def routes(calls: Calls) -> list[BaseRoute]:
    """Return the API's routes; it calls nobody itself."""
    api = RatesApi()
    return [
        Route(ecb.PATH, api.daily_file),
        Route("/control", api.read, methods=["GET"]),
        Route("/control", api.turn, methods=["PUT"]),
    ]


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, not {value!r}")


def _is_number(value: object, *, up_to: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= up_to
