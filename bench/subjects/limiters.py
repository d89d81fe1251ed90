"""Rate limiters with their state in memory: decisions that allow, that deny, and decorators."""

from __future__ import annotations

from typing import Any

from bench.subjects.deciders import (
    AIOLIMITER,
    EVERYWHERE,
    KEY,
    PLENTY,
    SPENT,
    Setting,
    decisions,
    make_pyrate_bucket,
    make_throttled,
)
from bench.subjects.model import Work, family

CALLED = Setting()
AWAITED = Setting(awaited=True)


def resilient(work: Work) -> Work:
    """Decorate with ours."""
    return _resilient(work)


def resilient_key(work: Work) -> Work:
    """Decorate with ours, the key made of the arguments."""
    return _resilient(work, key=_key_of)


def _key_of(argument: int) -> str:
    return str(argument)


def _resilient(work: Work, **settings: Any) -> Work:
    from resilient import RateLimiter

    guarded: Work = RateLimiter(str(PLENTY), **settings)(work)
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

    guarded: Work = Limiter(make_pyrate_bucket(CALLED, PLENTY)).as_decorator(name=KEY)(work)
    return guarded


def aiolimiter(work: Work) -> Work:
    """Wrap in a block of aiolimiter's, which has no decorator."""
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(PLENTY.amount, PLENTY.seconds)

    async def guarded(x: int) -> Any:
        async with limiter:
            return await work(x)

    return guarded


_BOTH = (
    ("resilient", "resilient-py", resilient),
    ("resilient (key of the arguments)", "resilient-py", resilient_key),
    ("pyrate-limiter", "pyrate-limiter", pyrate),
)

SUBJECTS = (
    *decisions("rate limiter", EVERYWHERE, CALLED),
    *decisions("rate limiter, denied", EVERYWHERE, CALLED, SPENT),
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
