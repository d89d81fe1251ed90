"""What clients are told of their limits, in header fields.

Values are made of whole numbers, and of names in which nothing but printable ASCII is left: no name and no
key can end a line or begin another field.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from ..engine import params
from ..policies.rate_limiter.decision import Decision
from ..policies.rate_limiter.quota import Quota

__all__ = [
    "Dialect",
    "Fields",
    "RateFields",
    "dialect_of",
    "pause",
    "printable",
    "string_item",
    "whole_seconds",
]

Fields: TypeAlias = list[tuple[str, str]]
"""Header fields: names and values, both ASCII."""

Dialect: TypeAlias = Literal["ietf", "legacy", "both"] | None
"""Which fields tell of limits; None: none do."""

_LONGEST: Final = 999_999_999  # seconds, some 32 years: whatever is longer is never, or a mistake
_WIDEST: Final = 60  # seconds over which clients are spread: enough for a crowd to come one by one
_UNPRINTABLE: Final = re.compile(r"[^ -~]")


def dialect_of(headers: Dialect) -> Dialect:
    """Return *headers* if it is one of the dialects."""
    if headers is not None:
        params.one_of("headers", headers, ("ietf", "legacy", "both"))
    return headers


def whole_seconds(seconds: float | None) -> int | None:
    """Return *seconds* rounded up, so that nobody comes too early; None where there is no such time.

    Errors of the user's own may have anything for a time: what is no number is not known.
    """
    if not isinstance(seconds, int | float) or not seconds <= _LONGEST:  # NaN is not less, either
        return None
    # Sums of seconds miss by the last digit of a float; a whole second more would be no truth either.
    return max(1, math.ceil(round(seconds, 6))) if seconds > 0 else 0


def pause(seconds: float | None) -> int | None:
    """Return how long to stay away from a service that cannot cope: *seconds*, and up to half as much more.

    Clients refused at the same moment would otherwise come back at the same moment. Nobody is kept away for
    more than a minute longer, though. Where nobody knows how long it takes, a short pause is asked for.
    """
    whole = whole_seconds(seconds if isinstance(seconds, int | float) else 1.0)
    return None if whole is None else whole + random.randint(0, min(max(2, whole // 2), _WIDEST))


def printable(name: str) -> str:
    """Return *name* as it can stand in a header field, and stands wherever else clients compare it."""
    return _UNPRINTABLE.sub("?", name)


def string_item(name: str) -> str:
    """Return *name* as a String of RFC 9651."""
    return '"' + printable(name).replace("\\", "\\\\").replace('"', '\\"') + '"'


class RateFields:
    """The fields that tell of the quotas of one limiter, in one dialect.

    `q` and `w` tell the rate, `r` what is left of the bucket: with a burst above the rate, `r` may be greater
    than `q`. `X-RateLimit-Limit` tells the size of the bucket, so that "remaining" is never more.

    Args:
        quotas: the limiter's quotas.
        dialect: "ietf" for `RateLimit` and `RateLimit-Policy`, "legacy" for `X-RateLimit-Limit`,
            `-Remaining` and `-Reset` (in seconds since 1970), "both", or None for none.

    Concurrency: read only.

    Source: draft-ietf-httpapi-ratelimit-headers-11; GitHub's API for the legacy fields.
    """

    __slots__ = ("_dialect", "_items", "_policy")

    def __init__(self, quotas: Sequence[Quota], dialect: Dialect) -> None:
        self._dialect = dialect
        self._items = {quota.name: string_item(quota.name) for quota in quotas}
        policies = (f"{self._items[q.name]};q={q.amount};w={math.ceil(q.window)}" for q in quotas)
        self._policy = ("RateLimit-Policy", ",".join(policies))

    def of(self, decision: Decision) -> Fields:
        """Return the fields for *decision*.

        Args:
            decision: the limiter's; of several quotas, it tells of the tightest.
        """
        if self._dialect is None:
            return []
        allowed = decision.allowed
        # Denied, the quota is empty until the client may come back: both fields tell the same time.
        remaining = decision.remaining if allowed else 0
        seconds = whole_seconds(decision.reset_after if allowed else decision.retry_after)
        fields: Fields = []
        if self._dialect != "legacy":
            until = "" if seconds is None else f";t={seconds}"
            fields += (("RateLimit", f"{self._item(decision)};r={remaining}{until}"), self._policy)
        if self._dialect != "ietf":
            fields += _legacy(decision.limit, remaining, seconds)
        return fields

    def _item(self, decision: Decision) -> str:
        name = decision.quota
        return self._items.get(name) or string_item(name)


def _legacy(limit: int, remaining: int, seconds: int | None) -> Fields:
    fields = [("X-RateLimit-Limit", str(limit)), ("X-RateLimit-Remaining", str(remaining))]
    if seconds is not None:
        # The one place that needs the wall clock: the field is a date.
        fields.append(("X-RateLimit-Reset", str(math.ceil(time.time()) + seconds)))
    return fields
