"""Payments with policies on: this file is the whole difference between the runs of A8.

A channel for each payment service, which asks it for its health, and a breaker and a time limit on it. What
one cannot do is asked of the other, with the same key, so that nobody pays twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from itertools import count, cycle, islice
from typing import Any, Self

import grpc.aio
from grpc import StatusCode

from examples.shop.payments import OPTIONS, Payments, credentials, request_of
from examples.shop.services.payment import SERVICE
from examples.shop.timing import scaled
from resilient import CircuitBreaker, CircuitOpenError, Retry, Timeout, wait_full_jitter
from resilient.integrations.grpc import AioResilienceClientInterceptors, health_channel_options, status_in

# The key makes it safe to ask again also where nobody knows what became of the first attempt.
undone = status_in(
    StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.INTERNAL, StatusCode.UNKNOWN
)
WITHIN = scaled(10)
# What a breaker says of when to come back is about the one service, and the next attempt is at the other.
elsewhere = Retry(
    on=(undone, CircuitOpenError),
    attempts=4,
    wait=wait_full_jitter(scaled(0.1), max=scaled(0.5)),
    timeout=WITHIN,
    retry_after=False,
    name="payment",
)


def guard(name: str) -> AioResilienceClientInterceptors:
    """Return what guards the calls to one payment service."""
    breaker = CircuitBreaker(name, min_calls=3, window=scaled(10), reset_timeout=scaled(5))
    return AioResilienceClientInterceptors(breaker, Timeout(scaled(2)), name=name)


class ProtectedPayments(Payments):
    """Charges at one service, and if it cannot, at the other."""

    def __init__(
        self, channels: Sequence[grpc.aio.Channel], guards: Sequence[AioResilienceClientInterceptors]
    ) -> None:
        super().__init__(channels)
        self._guards = guards
        self._turn = count()

    @classmethod
    @asynccontextmanager
    async def opened(cls, services: Sequence[str]) -> AsyncIterator[Self]:
        """Yield payments at these services, while the context is open."""
        guards = [guard(f"payment-{number}") for number in range(1, len(services) + 1)]
        options = [*OPTIONS, *health_channel_options(SERVICE)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(
                    grpc.aio.secure_channel(
                        f"ipv4:{service}", credentials(), options=options, interceptors=interceptors
                    )
                )
                for service, interceptors in zip(services, guards, strict=True)
            ]
            yield cls(channels, guards)

    async def charge(self, order: str, amount: str) -> dict[str, Any]:
        """Charge a card for an order, at one service after the other until one has done it."""
        services = len(self._stubs)
        turns = islice(cycle(range(services)), next(self._turn) % services, None)
        return await self._anywhere(turns, request_of(order, amount))

    @elsewhere
    async def _anywhere(self, turns: Iterator[int], request: bytes) -> dict[str, Any]:
        return await self._ask(next(turns), request)

    @property
    def watched(self) -> Sequence[Any]:
        """What sees how the payment services are doing: the policies on the calls to each."""
        return [policy for each in self._guards for policy in each.policies]

    def stats(self) -> dict[str, Any]:
        """Return what has become of the calls, by service."""
        return {
            each.name: {**asdict(stats := each.stats()), "ratio": stats.success_ratio}
            for each in self._guards
        }
