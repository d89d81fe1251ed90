"""Timeouts of coroutine functions that are in time."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from bench.subjects.model import Work, family

LIMIT = 10.0
"""Seconds a call may take: never reached."""


def resilient(work: Work) -> Work:
    """Limit with ours."""
    from resilient import Timeout

    return Timeout(LIMIT)(work)


def asyncio_timeout(work: Work) -> Work:
    """Limit with `asyncio.timeout` in a plain wrapper."""

    @functools.wraps(work)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        async with asyncio.timeout(LIMIT):
            return await work(*args, **kwargs)

    return guarded


def asyncio_wait_for(work: Work) -> Work:
    """Limit with `asyncio.wait_for` in a plain wrapper."""

    @functools.wraps(work)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await asyncio.wait_for(work(*args, **kwargs), LIMIT)

    return guarded


def hyx(work: Work) -> Work:
    """Limit with hyx."""
    from hyx.timeout import timeout

    guarded: Work = timeout(LIMIT)(work)
    return guarded


def pyresilience(work: Work) -> Work:
    """Limit with pyresilience."""
    from pyresilience import TimeoutConfig
    from pyresilience import resilient as guard

    guarded: Work = guard(timeout=TimeoutConfig(seconds=LIMIT))(work)
    return guarded


def interlock(work: Work) -> Work:
    """Limit with interlock-cb."""
    from interlock import Pipeline

    guarded: Work = Pipeline.builder().timeout(LIMIT).build()(work)
    return guarded


SUBJECTS = family(
    "async timeout",
    ("resilient", "resilient-py", resilient),
    ("asyncio.timeout", None, asyncio_timeout),
    ("asyncio.wait_for", None, asyncio_wait_for),
    ("hyx", "hyx", hyx),
    ("pyresilience", "pyresilience", pyresilience),
    ("interlock-cb", "interlock-cb", interlock),
    awaited=True,
)
