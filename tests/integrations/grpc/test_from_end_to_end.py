"""What one side of gRPC says and the other understands: retries of its own, deadlines of several services."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from resilient import CircuitBreaker, time_left
from resilient.errors import CircuitOpenError, RateLimitedError, RejectedError
from resilient.integrations.grpc import AioResilienceClientInterceptors, ResilienceClientInterceptor
from resilient.integrations.grpc.statuses import PUSHBACK

from .rig import COLOURS, SERVICE, WITHIN, call, channel_to, hosting, is_of_tasks, nothing

colours = pytest.mark.parametrize("colour", COLOURS)

RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


@colours
@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (RateLimitedError(retry_after=0.001), 3),  # told to come back, and when
        (RejectedError(), 3),  # told nothing: the client's own backoff
        (RateLimitedError(), 1),  # told that it never will be let in
        (CircuitOpenError(), 1),
        (RateLimitedError(retry_after=3_600.0), 1),  # there is not so much time
    ],
)
def test_grpcs_own_retries_obey(colour: str, error: Exception, attempts: int) -> None:
    """They read the pushback of a refusal as it is meant."""
    seen: list[Any] = []

    def act(context: Any) -> None:
        seen.append(context)
        raise error

    options = [("grpc.service_config", json.dumps(RETRYING))]
    with hosting(colour, {}, act=act) as host, channel_to(host, options=options) as channel:
        long = error.retry_after == 3_600.0  # type: ignore[attr-defined]
        end = call(channel, timeout=0.2 if long else WITHIN)
        assert end.code in {
            StatusCode.RESOURCE_EXHAUSTED,
            StatusCode.UNAVAILABLE,
            StatusCode.DEADLINE_EXCEEDED,
        }
        assert len(seen) == attempts


@colours
def test_a_deadline_goes_from_service_to_service(colour: str) -> None:
    """The second has what the first has left, though nobody hands it on."""
    left: list[float | None] = []
    with (
        hosting(colour, {}, act=lambda _: left.append(time_left())) as back,
        hosting(colour, {}, act=calling(back.port, left)) as front,
        channel_to(front) as channel,
    ):
        assert call(channel, timeout=5.0).code is StatusCode.OK
    first, second = left
    assert first is not None
    assert second is not None
    assert 0.0 < second < 5.5
    assert first < 5.5


@colours
def test_an_open_circuit_behind_a_service_is_told_before_it(colour: str) -> None:
    """What the client's side of one service refuses is a refusal of that service's own."""
    breaker = CircuitBreaker("behind", reset_timeout=30.0)
    breaker.open()
    with (
        hosting(colour, {}, act=nothing) as back,
        hosting(colour, {}, act=calling(back.port, [], breaker)) as front,
        channel_to(front) as channel,
    ):
        end = call(channel)
        assert end.code is StatusCode.UNAVAILABLE
        assert PUSHBACK in end.trailing
        assert "behind" not in end.details


def calling(port: int, left: list[float | None], *policies: Any) -> Any:
    """Return what a handler does that calls another service in its turn."""
    method = f"/{SERVICE}/unary_unary"

    def act(context: Any) -> Any:
        left.append(time_left())
        if is_of_tasks(context):
            return acall()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            guarded = grpc.intercept_channel(channel, ResilienceClientInterceptor(*policies))
            guarded.unary_unary(method)(b"")
        return None

    async def acall() -> None:
        interceptors = AioResilienceClientInterceptors(*policies)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
            await channel.unary_unary(method)(b"")

    return act
