"""gRPC's codes and our errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
from grpc import StatusCode

from resilient.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    MaintenanceError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RateLimitedError,
    RejectedError,
    ThrottledError,
)
from resilient.integrations.grpc import NEVER, refusal_of, told_pushback
from resilient.integrations.grpc.statuses import PUSHBACK

CODES = {
    RateLimitedError: StatusCode.RESOURCE_EXHAUSTED,
    BulkheadFullError: StatusCode.UNAVAILABLE,
    CircuitOpenError: StatusCode.UNAVAILABLE,
    MaintenanceError: StatusCode.UNAVAILABLE,
    PoolFullError: StatusCode.UNAVAILABLE,
    PoolTimeoutError: StatusCode.UNAVAILABLE,
    PoolUnavailableError: StatusCode.UNAVAILABLE,
    RejectedError: StatusCode.UNAVAILABLE,
    ThrottledError: StatusCode.UNAVAILABLE,
    DeadlineExceededError: StatusCode.DEADLINE_EXCEEDED,
    CallTimeoutError: StatusCode.DEADLINE_EXCEEDED,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_each_refusal_has_a_code(kind: type[Exception], code: StatusCode) -> None:
    """What refuses decides about the code."""
    assert refusal_of(kind("secret")).code is code


@pytest.mark.parametrize("kind", CODES)
def test_details_tell_nothing_of_policies(kind: Any) -> None:
    """Neither the message nor the name of a policy reaches a client."""
    told = refusal_of(kind("secret message", policy="secret name"))
    assert told.details
    assert "secret" not in told.details


def test_a_rate_limit_tells_its_time_to_the_millisecond() -> None:
    """Who waits as long as told is let in: it is neither rounded down nor spread."""
    assert pushback(RateLimitedError(retry_after=1.2341)) == "1235"
    assert pushback(RateLimitedError(retry_after=0.25)) == "250"
    assert pushback(RateLimitedError(retry_after=0.1 + 0.2)) == "300"


def test_who_cannot_cope_is_not_met_by_a_crowd() -> None:
    """Clients refused at the same moment are spread over half as much more."""
    told = {int(pushback(CircuitOpenError(retry_after=10.0)) or "") for _ in range(50)}
    assert min(told) >= 10_000
    assert max(told) <= 15_000
    assert len(told) > 10


def test_nobody_is_kept_away_for_more_than_a_minute_longer() -> None:
    """A day stays a day."""
    told = [int(pushback(MaintenanceError(retry_after=86_400.0)) or "") for _ in range(50)]
    assert max(told) <= 86_460_000


@pytest.mark.parametrize("error", [RateLimitedError(), CircuitOpenError()])
def test_never_is_told(error: Exception) -> None:
    """A limit that would never let the call in, and a breaker opened by hand, want no other try."""
    assert refusal_of(error).trailing == ((PUSHBACK, "-1"),)


@pytest.mark.parametrize(
    "error", [BulkheadFullError(), ThrottledError(), CallTimeoutError(), PoolFullError()]
)
def test_what_nobody_knows_is_not_told(error: Exception) -> None:
    """Where nobody knows when another try makes sense, the client's own backoff decides."""
    assert refusal_of(error).trailing == ()


@pytest.mark.parametrize("strange", ["soon", math.nan, object()])
def test_a_strange_time_is_none(strange: Any) -> None:
    """Errors of the user's own may have anything for a time."""
    assert refusal_of(RejectedError(retry_after=strange)).trailing == ()


@pytest.mark.parametrize(("seconds", "told"), [(1e30, "2147483647"), (math.inf, "2147483647"), (-1.0, "0")])
def test_a_time_out_of_range_is_the_nearest_one(seconds: float, told: str) -> None:
    """Clients read 32 bits; what is greater they would take for nonsense, and for never."""
    assert pushback(RateLimitedError(retry_after=seconds)) == told


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("250", 0.25),
        (b"250", 0.25),
        ("2147483647", 2_147_483.647),
        ("2147483648", NEVER),
        ("-1", NEVER),
        ("", NEVER),
        ("soon", NEVER),
        ("1.5", NEVER),
        ("\u0664", NEVER),
        ("9" * 5_000, NEVER),
    ],
)
def test_pushback_is_read(text: str | bytes, seconds: float) -> None:
    """gRFC A6: what is negative or cannot be read means that no other try is wanted."""
    assert told_pushback((("other", "1"), (PUSHBACK, text))) == seconds


@pytest.mark.parametrize("trailing", [None, (), (("other", "1"),)])
def test_no_pushback_is_none(trailing: Any) -> None:
    """A server that says nothing leaves it to the client."""
    assert told_pushback(trailing) is None


def test_what_is_told_is_read() -> None:
    """The two sides understand each other."""
    assert told_pushback(refusal_of(RateLimitedError(retry_after=1.5)).trailing) == 1.5
    assert told_pushback(refusal_of(RateLimitedError()).trailing) == NEVER


def pushback(error: Exception) -> str | None:
    value = dict(refusal_of(error).trailing).get(PUSHBACK)
    assert value is None or isinstance(value, str)
    return value
