"""What is allowed: so much in so long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from limits import RateLimitItem, parse_many

from ...engine import params

__all__ = ["Quota", "Rate", "permits", "quotas_of"]

Rate: TypeAlias = str | RateLimitItem
"""A rate: `"100/minute"`, `"5 per 10 seconds"`, `"10/second; 100/minute"`, or a `limits.RateLimitItem`."""

_MOST: Final = 10**12  # of permits and seconds; far beyond, neither floats nor a store could count them
_MOST_AT_ONCE: Final = 10**9  # permits of one call: a mistake in a cost must not block a key for ever
_NO_UNITS: Final = re.compile(r"(?:/|per)\s*0+\s*[a-z]", re.IGNORECASE)  # limits reads it as 1
_LONGEST_TEXT: Final = 200  # more than any rate needs; what reads it is not written for hostile text


class Quota(NamedTuple):
    """One rate as it is enforced.

    Attributes:
        name: what it is called in header fields; unique within its limiter.
        amount: permits in each window.
        window: the window, in seconds.
        burst: the most permits that can be had at once; *amount*, except for a token bucket of another size.

    Concurrency: immutable.
    """

    name: str
    amount: int
    window: float
    burst: int

    def share(self, parts: int) -> Quota:
        """Return what each of *parts* equal processes may have of it: at least one permit."""
        amount, burst = max(1, self.amount // parts), max(1, self.burst // parts)
        return Quota(self.name, amount, self.window * parts * amount / self.amount, burst)


def quotas_of(rate: Rate | Sequence[Rate], burst: int | None, name: str | None) -> tuple[Quota, ...]:
    """Return the quotas that *rate* stands for, named after the limiter *name*, or after themselves."""
    rates: object = [rate] if isinstance(rate, str | RateLimitItem) else rate
    if not isinstance(rates, Sequence) or not rates:
        params.refuse(TypeError, "rate", "must be a rate such as '100/minute', or a sequence of rates", rate)
    items = [item for one in rates for item in _items(one)]
    names = [_text(item) for item in items]
    if len(set(names)) < len(names):
        params.refuse(ValueError, "rate", "must not name the same rate twice", rate)
    if burst is not None and len(items) > 1:
        params.refuse(ValueError, "burst", "goes with one rate only", burst)
    if name is not None:
        names = [name] if len(items) == 1 else [f"{name} {text}" for text in names]
    size = None if burst is None else params.count("burst", burst)
    return tuple(
        Quota(label, item.amount, float(item.get_expiry()), size or item.amount)
        for label, item in zip(names, items, strict=True)
    )


def permits(parameter: str, value: object, *, least: int = 1) -> int:
    """Return a number of permits that one call may be about."""
    number = params.count(parameter, value, least=least)
    if number > _MOST_AT_ONCE:
        params.refuse(ValueError, parameter, f"must be at most {_MOST_AT_ONCE}", value)
    return number


def _items(rate: Any) -> list[RateLimitItem]:
    if isinstance(rate, RateLimitItem):
        items = [rate]
    elif not isinstance(rate, str):
        params.refuse(TypeError, "rate", "must be text such as '100/minute' or a RateLimitItem", rate)
    elif len(rate) > _LONGEST_TEXT:
        params.refuse(ValueError, "rate", f"must be at most {_LONGEST_TEXT} characters long", len(rate))
    else:
        try:
            items = parse_many(rate)
        except ValueError:
            params.refuse(ValueError, "rate", "must read like '100/minute' or '5 per 10 seconds'", rate)
    no_units = isinstance(rate, str) and _NO_UNITS.search(rate)
    if no_units or any(item.amount < 1 or item.multiples < 1 for item in items):
        params.refuse(ValueError, "rate", "must allow at least 1 in at least 1 unit of time", rate)
    if any(max(item.amount, item.get_expiry()) > _MOST for item in items):
        params.refuse(ValueError, "rate", f"must be at most {_MOST} in at most {_MOST} seconds", rate)
    return items


def _text(item: RateLimitItem) -> str:
    unit = item.GRANULARITY.name
    return f"{item.amount}/{unit}" if item.multiples == 1 else f"{item.amount}/{item.multiples} {unit}"
