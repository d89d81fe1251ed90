"""What a call costs anyway: the yardsticks."""

from __future__ import annotations

import functools
from typing import Any

from bench.subjects.model import Work, family


def bare(work: Work) -> Work:
    """Guard nothing."""
    return work


def plain_wrapper(work: Work) -> Work:
    """Pass the call on: the least any decorator can do."""

    @functools.wraps(work)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    return wrapper


def plain_wrapper_async(work: Work) -> Work:
    """Await the call: the least any decorator of a coroutine function can do."""

    @functools.wraps(work)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await work(*args, **kwargs)

    return wrapper


# The plain wrapper is measured twice: how far their ratio is from 1 is how far any other may be wrong.
SUBJECTS = (
    *family(
        "baseline",
        ("bare call", None, bare),
        ("plain wrapper", None, plain_wrapper),
        ("plain wrapper, again", None, plain_wrapper),
    ),
    *family(
        "async baseline",
        ("bare call", None, bare),
        ("plain wrapper", None, plain_wrapper_async),
        ("plain wrapper, again", None, plain_wrapper_async),
        awaited=True,
    ),
)
