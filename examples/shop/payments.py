"""How the checkout has cards charged: over gRPC, at one of two payment services, in the channel's own manner.

`paying.py` does the same with policies on.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from examples.shop.services.payment import CHARGE, HOST_NAME

ADDRESSES = "SHOP_PAYMENTS"
"""The variable that says where the payment services are."""

AUTHORITY = "SHOP_PAYMENTS_AUTHORITY"
"""That which says in which file the certificate is that speaks for theirs."""

# A server that is back is found again within half a second; gRPC would wait for minutes in the end.
OPTIONS = (
    ("grpc.ssl_target_name_override", HOST_NAME),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
)
TURNS = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))


def addresses() -> list[str]:
    """Return where the payment services are; nowhere, if this shop has none."""
    return [each for each in os.environ.get(ADDRESSES, "").split(",") if each]


def credentials() -> grpc.ChannelCredentials:
    """Return what the payment services are known by."""
    return grpc.ssl_channel_credentials(Path(os.environ[AUTHORITY]).read_bytes())


class Payments:
    """Charges at either service in turn: gRPC's `round_robin`, which leaves out who cannot be reached."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._stubs = [channel.unary_unary(CHARGE) for channel in channels]

    @classmethod
    @asynccontextmanager
    async def opened(cls, services: Sequence[str]) -> AsyncIterator[Self]:
        """Yield payments at these services, while the context is open."""
        target = f"ipv4:{','.join(services)}"
        async with grpc.aio.secure_channel(target, credentials(), options=[*OPTIONS, TURNS]) as channel:
            yield cls([channel])

    async def charge(self, order: str, amount: str) -> dict[str, Any]:
        """Charge a card for an order, which is the key by which the service knows it again."""
        return await self._ask(0, request_of(order, amount))

    async def _ask(self, number: int, request: bytes) -> dict[str, Any]:
        receipt: dict[str, Any] = json.loads(await self._stubs[number](request))
        return receipt

    @property
    def watched(self) -> Sequence[Any]:
        """What sees how the payment services are doing: nothing."""
        return ()

    def stats(self) -> dict[str, Any]:
        """Return what is known of the calls, by service: nothing."""
        return {}


def request_of(order: str, amount: str) -> bytes:
    """Return what a payment service is asked."""
    return json.dumps({"key": order, "order": order, "amount": amount}).encode()
