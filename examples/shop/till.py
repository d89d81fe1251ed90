"""Where the checkout has cards charged, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
from starlette.exceptions import HTTPException

from examples.shop.journal import say
from examples.shop.payments import Payments, addresses
from resilient.errors import RejectedError
from resilient.health import Health

TOLD, STATS = "payment", "payments"
_TELL_EVERY = 0.5


@asynccontextmanager
async def opened_till(
    protected: bool, health: Health
) -> AsyncIterator[Callable[[str, str], Awaitable[None]]]:
    """Yield what has a card charged, while the context is open."""
    kind: type[Payments] = Payments
    if protected:
        # Imported only here: the bare shop builds no policy at all.
        from examples.shop.paying import ProtectedPayments

        kind = ProtectedPayments
    async with kind.opened(addresses()) as payments:
        health.watch(*payments.watched)
        telling = asyncio.create_task(_tell_stats(payments))
        try:
            yield Till(payments).charge
        finally:
            telling.cancel()


class Till:
    """Has cards charged, and tells what came of it."""

    def __init__(self, payments: Payments) -> None:
        self._payments = payments

    async def charge(self, order: str, amount: str) -> None:
        """Have a card charged for an order; a failure is told the customer as one of somebody else's."""
        began, outcome, by = time.monotonic(), "left", ""
        try:
            receipt = await self._payments.charge(order, amount)
            outcome, by = "paid", receipt["by"]
        except grpc.RpcError as error:
            outcome = error.code().name
            raise HTTPException(503 if isinstance(error, RejectedError) else 502, str(error)) from error
        finally:
            took = time.monotonic() - began
            say(json.dumps({"note": TOLD, "order": order, "outcome": outcome, "by": by, "seconds": took}))


async def _tell_stats(payments: Payments) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY)
        say(json.dumps({"note": STATS, "services": payments.stats()}))
