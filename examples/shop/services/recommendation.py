"""The recommendations: what else somebody may like who looks at a product, by a model of 200 MB.

As first written it has two mistakes. It loads the model for every answer; and it keeps every answer with the
part of the model that it came from, for an evaluation that nobody has written yet. Nothing removes them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableSequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias
from zlib import crc32

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from resilient.health import Health

MB = 2**20
MODEL_SIZE = int(os.environ.get("SHOP_MODEL_MB", "200")) * MB
# What an answer leaves behind. It follows from how many there are, and how fast it grew.
KEPT_SIZE = int(float(os.environ.get("SHOP_KEPT_MB", "0")) * MB)
RECOMMENDED = 4


class Model:
    """How much who likes one product likes another; most of it is ballast here."""

    def __init__(self) -> None:
        self._weights = b"\x5a" * MODEL_SIZE

    def likeness(self, one: str, other: str) -> int:
        """Say how much two products are alike."""
        place = crc32(f"{one} {other}".encode())
        return place ^ self._weights[place % MODEL_SIZE]

    def evidence(self) -> bytes:
        """Return a copy of the part that an answer came from."""
        return self._weights[:KEPT_SIZE]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was recommended, and why."""

    product: str
    recommended: list[str]
    evidence: bytes


Loaded: TypeAlias = Callable[[], Awaitable[Model]]


class Recommender:
    """The requests of the frontend, answered by the model.

    Args:
        calls: The shop's calls.
        model: Gets the model.
        answers: Where answers are kept.
    """

    def __init__(self, calls: Calls, model: Loaded, answers: MutableSequence[Answer]) -> None:
        self._calls = calls
        self._model = model
        self._answers = answers

    async def recommend(self, request: Request) -> Response:
        """Name the products that are most like one."""
        product = request.path_params["product_id"]
        others = [other["id"] for other in await self._calls.products() if other["id"] != product]
        model = await self._model()
        recommended = sorted(others, key=lambda other: model.likeness(product, other))[-RECOMMENDED:]
        self._answers.append(Answer(product, recommended, model.evidence()))
        return JSONResponse(recommended)


async def load() -> Model:
    """Read the model."""
    return Model()


@asynccontextmanager
async def opened(
    calls: Calls, protections: Collection[str], health: Health
) -> AsyncIterator[list[BaseRoute]]:
    """Yield the routes of a service that looks products up through *calls*."""
    model: Loaded = load
    answers: MutableSequence[Answer] = []
    if "model" in protections:
        # Only here: the bare shop makes no policy at all.
        from examples.shop import recommending

        model = recommending.load
        await model()
        # From now on: the model is no growth.
        health.add(recommending.growth(), interval=recommending.LOOK_EVERY)
    if "bounded" in protections:
        from examples.shop import recommending

        answers = recommending.latest()
    yield routes(calls, model, answers)


def routes(
    calls: Calls, model: Loaded = load, answers: MutableSequence[Answer] | None = None
) -> list[BaseRoute]:
    """Return the routes of a service with this model."""
    recommender = Recommender(calls, model, [] if answers is None else answers)
    return [Route("/recommendations/{product_id}", recommender.recommend)]
