"""Rate limiters with their state in memory: decisions that allow, that deny, on many keys, and decorators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

from bench.subjects.deciders import (
    AIOLIMITER,
    EVERYWHERE,
    KEY,
    PLENTY,
    SPENT,
    Decider,
    Limit,
    Setting,
    allowed,
    decisions,
    make_limits,
    make_pyrate_bucket,
    make_resilient,
    make_throttled,
    not_limited,
)
from bench.subjects.model import Work, family

CALLED = Setting()
AWAITED = Setting(awaited=True)

# -- decorators ------------------------------------------------------------------------------------------


def resilient(work: Work) -> Work:
    """Decorate with ours."""
    return _resilient(work)


def resilient_key(work: Work) -> Work:
    """Decorate with ours, the key made of the arguments."""
    return _resilient(work, key=_key_of)


def _key_of(argument: int) -> str:
    return str(argument)


def _resilient(work: Work, **settings: Any) -> Work:
    guarded: Work = make_resilient(CALLED, PLENTY, **settings)(work)
    return guarded


def throttled(work: Work) -> Work:
    """Decorate with throttled-py."""
    guarded: Work = make_throttled("token_bucket", CALLED, PLENTY, key=KEY)(work)
    return guarded


def throttled_async(work: Work) -> Work:
    """Decorate with throttled-py's asynchronous half."""
    guarded: Work = make_throttled("token_bucket", AWAITED, PLENTY, key=KEY)(work)
    return guarded


def pyrate(work: Work) -> Work:
    """Decorate with pyrate-limiter."""
    from pyrate_limiter import Limiter

    limiter: Any = Limiter(make_pyrate_bucket(CALLED, PLENTY))
    guarded: Work = limiter.as_decorator(name=KEY)(work)
    return guarded


def aiolimiter(work: Work) -> Work:
    """Wrap in a block of aiolimiter's, which has no decorator."""
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(PLENTY.amount, PLENTY.seconds)

    async def guarded(x: int) -> Any:
        async with limiter:
            return await work(x)

    return guarded


# -- many keys -------------------------------------------------------------------------------------------

MANY = 5_000
"""Keys asked for in turn: half of what ours keeps by default."""


def _next_key() -> Callable[[], str]:
    return cycle([f"user-{number}" for number in range(MANY)]).__next__


def resilient_many(setting: Setting, limit: Limit) -> Work:
    """Ask ours for one key after the other."""
    limiter, key = make_resilient(setting, limit), _next_key()
    return lambda _: limiter.hit(key())


def limits_many(setting: Setting, limit: Limit) -> Work:
    """Ask limits for one key after the other."""
    (item, limiter), key = make_limits("FixedWindowRateLimiter", setting, limit), _next_key()
    return lambda _: limiter.hit(item, key())


def throttled_many(setting: Setting, limit: Limit) -> Work:
    """Ask throttled-py for one key after the other, with as much room for keys as ours has."""
    limiter, key = make_throttled("token_bucket", setting, limit, keys=10_000), _next_key()
    return lambda _: limiter.limit(key())


# -- tables ----------------------------------------------------------------------------------------------

_MANY = (
    Decider("resilient", "resilient-py", resilient_many, allowed),
    Decider("limits (fixed window)", "limits", limits_many),
    Decider("throttled-py (token bucket)", "throttled-py", throttled_many, not_limited),
)

_BOTH = (
    ("resilient", "resilient-py", resilient),
    ("resilient (key of the arguments)", "resilient-py", resilient_key),
    ("pyrate-limiter", "pyrate-limiter", pyrate),
)

SUBJECTS = (
    *decisions("rate limiter", EVERYWHERE, CALLED),
    *decisions("rate limiter, denied", EVERYWHERE, CALLED, SPENT),
    *decisions("rate limiter, many keys", _MANY, CALLED),
    *family("rate limiter, decorator", *_BOTH, ("throttled-py", "throttled-py", throttled)),
    *decisions("async rate limiter", (*EVERYWHERE, AIOLIMITER), AWAITED),
    *decisions("async rate limiter, denied", EVERYWHERE, AWAITED, SPENT),
    *family(
        "async rate limiter, decorator",
        *_BOTH,
        ("throttled-py", "throttled-py", throttled_async),
        ("aiolimiter", "aiolimiter", aiolimiter),
        awaited=True,
    ),
)
