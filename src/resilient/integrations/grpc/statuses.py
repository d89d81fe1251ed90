"""gRPC's status codes and our errors: which stands for which, and when another try makes sense."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from ...errors import (
    CallTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    RateLimitedError,
    RejectedError,
)
from ...web.problem import REFUSALS
from .. import needing

with needing("grpcio", extra="grpc"):
    from grpc import StatusCode

__all__ = ["FAULTS", "NEVER", "PUSHBACK", "REFUSALS", "Metadata", "Refusal", "refusal_of", "told_pushback"]

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
"""What goes with a call, or with its answer."""

PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The trailing metadata by which a server tells clients when to try again."""

NEVER: Final = -1.0
"""What `told_pushback` makes of a server that wants no other try."""

FAULTS: Final = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)
"""The codes that are evidence against the server. The others tell of the request, or of who has sent it.

Source: OpenTelemetry's semantic conventions for gRPC, server side; but `UNIMPLEMENTED`, which anybody can
bring about who invents a method, is no evidence here.
"""


class Refusal(NamedTuple):
    """How a refusal is told to a client: a status *code*, *details* for people, and *trailing* metadata."""

    code: StatusCode
    details: str
    trailing: Metadata


_TOO_LATE: Final = (StatusCode.DEADLINE_EXCEEDED, "The time for this call had run out.")

# The first that fits counts. What clients read is the same for all policies: names are nobody's business.
_KINDS: Final[tuple[tuple[type[Exception], StatusCode, str], ...]] = (
    (RateLimitedError, StatusCode.RESOURCE_EXHAUSTED, "There were too many calls."),
    (DeadlineExceededError, *_TOO_LATE),
    (CallTimeoutError, *_TOO_LATE),
    (RejectedError, StatusCode.UNAVAILABLE, "The service cannot take this call now."),
)


def refusal_of(error: Exception) -> Refusal:
    """Return how *error* is told to a client.

    A rate limit's time is told to the millisecond. Whoever is sent away by a service that cannot cope is told
    up to half as much more, and no more than a minute longer: clients that were refused at the same moment
    would come back at the same moment.

    Args:
        error: one of `REFUSALS`.

    Returns:
        `RESOURCE_EXHAUSTED` for a rate limit, `DEADLINE_EXCEEDED` for time that ran out, `UNAVAILABLE` for
        everything else; with `grpc-retry-pushback-ms` where it is known when another try makes sense, and
        with a negative one where none ever does: of a limit that would never let the call in, and of a
        breaker that was opened by hand.

    Source: gRFC A6, "Pushback".
    """
    code, details = next((code, details) for kind, code, details in _KINDS if isinstance(error, kind))
    told = error.retry_after if isinstance(error, RejectedError) else None
    if told is None and isinstance(error, RateLimitedError | CircuitOpenError):
        return Refusal(code, details, ((PUSHBACK, _NO_MORE),))
    milliseconds = _milliseconds(told, spread=code is StatusCode.UNAVAILABLE)
    return Refusal(code, details, () if milliseconds is None else ((PUSHBACK, str(milliseconds)),))


_NO_MORE: Final = "-1"
_MOST: Final = 2**31 - 1  # it is read as 32 bits
_WIDEST: Final = 60.0  # seconds over which clients are spread: enough for a crowd to come one by one


def _milliseconds(seconds: float | None, *, spread: bool) -> int | None:
    # Errors of the user's own may have anything for a time: what is no number is not known.
    if not isinstance(seconds, int | float) or math.isnan(seconds):
        return None
    wait = max(0.0, seconds)
    if spread:
        wait += random.uniform(0.0, min(wait / 2, _WIDEST))
    # Sums of seconds miss by the last digit of a float; a whole millisecond more would be no truth.
    return _MOST if wait * 1e3 >= _MOST else math.ceil(round(wait * 1e3, 3))


_TOLD: Final = re.compile(r"\d{1,10}", re.ASCII)


def told_pushback(trailing: Iterable[Any] | None) -> float | None:
    """Return when a server wants another try.

    Args:
        trailing: the trailing metadata of its answer, as gRPC tells it; None where there is none.

    Returns:
        Seconds; `NEVER` where it wants none, which is also what a text that cannot be read stands for; None
        where it has said nothing.

    Source: gRFC A6, "Pushback".
    """
    for key, value in trailing or ():
        if key == PUSHBACK:
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            milliseconds = int(text) if _TOLD.fullmatch(text) else _MOST + 1
            return milliseconds / 1e3 if milliseconds <= _MOST else NEVER
    return None
