"""What a refusal looks like from outside: one table of statuses, as problem details (RFC 9457).

The documents name what is wrong, never whose key it was, which dependency failed or what the error said.
"""

from __future__ import annotations

import functools
import json
from http import HTTPStatus
from typing import Final, NamedTuple

from ..errors import (
    CallTimeoutError,
    DeadlineExceededError,
    MaintenanceError,
    RateLimitedError,
    RejectedError,
)
from .headers import Fields, pause, printable, whole_seconds

__all__ = ["REFUSALS", "Answer", "answer", "problem"]

REFUSALS: Final = (RejectedError, CallTimeoutError)
"""The errors that are answered; every other one is the app's own."""

_TYPES: Final = "https://iana.org/assignments/http-problem-types#"


class Answer(NamedTuple):
    """A whole response: its *status*, header *fields* and *body*."""

    status: int
    fields: Fields
    body: bytes


def answer(error: Exception, content_type: str, body: bytes, fields: Fields) -> Answer:
    """Return *body* as the response to a refusal.

    Args:
        error: one of `REFUSALS`.
        content_type: of *body*.
        body: what a client gets to read.
        fields: what else the header says.
    """
    status = _kind(error).status
    own = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),  # RFC 6585 asks for it
    ]
    return Answer(status, [*own, *_retry_after(error, status), *fields], body)


class _Kind(NamedTuple):
    error: type[Exception]
    status: int
    type: str
    title: str
    detail: str


_REDUCED: Final = f"{_TYPES}temporary-reduced-capacity"
_REDUCED_TITLE: Final = "Request cannot be satisfied due to temporary server capacity constraints"
_TOO_LATE: Final = (504, "about:blank", "Gateway Timeout", "The time for this request had run out.")

# The first that fits counts.
_KINDS: Final = (
    _Kind(
        RateLimitedError,
        429,
        f"{_TYPES}quota-exceeded",
        "Request cannot be satisfied as assigned quota has been exceeded",
        "There were too many requests.",
    ),
    _Kind(DeadlineExceededError, *_TOO_LATE),
    _Kind(CallTimeoutError, *_TOO_LATE),
    _Kind(MaintenanceError, 503, _REDUCED, _REDUCED_TITLE, "The service is closed for maintenance."),
    _Kind(RejectedError, 503, _REDUCED, _REDUCED_TITLE, "The service cannot take this request now."),
)


def problem(error: Exception, fields: Fields) -> Answer:
    """Return the problem document for a refusal.

    Args:
        error: one of `REFUSALS`.
        fields: what else the header says.
    """
    decision = error.decision if isinstance(error, RateLimitedError) else None
    body = _document(_kind(error), None if decision is None else decision.quota)
    return answer(error, "application/problem+json", body, fields)


def _kind(error: Exception) -> _Kind:
    return next(kind for kind in _KINDS if isinstance(error, kind.error))


def _retry_after(error: Exception, status: int) -> Fields:
    told = error.retry_after if isinstance(error, RejectedError) else None
    # A quota lets in as many as it has room for, however many come; so its time is told to the second, as
    # `RateLimit` tells it. A service that cannot cope is spared the crowd.
    seconds = pause(told) if status == HTTPStatus.SERVICE_UNAVAILABLE else whole_seconds(told)
    return [] if seconds is None else [("Retry-After", str(seconds))]


@functools.lru_cache(maxsize=256)  # a flood is refused with the same few documents again and again
def _document(kind: _Kind, quota: str | None) -> bytes:
    members: dict[str, object] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail,
    }
    if quota is not None:
        members["violated-policies"] = [printable(quota)]  # spelt as in `RateLimit`
    return json.dumps(members).encode("ascii")
