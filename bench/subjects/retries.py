"""Retries whose first attempt succeeds."""

from __future__ import annotations

from bench.subjects.model import Work, family


def resilient(work: Work) -> Work:
    """Retry with ours."""
    from resilient import Retry

    return Retry(on=Exception)(work)


def tenacity(work: Work) -> Work:
    """Retry with tenacity, set up as its readme does it."""
    from tenacity import retry, stop_after_attempt, wait_random_exponential

    guarded: Work = retry(stop=stop_after_attempt(3), wait=wait_random_exponential(0.1, max=10))(work)
    return guarded


def stamina(work: Work) -> Work:
    """Retry with stamina."""
    import stamina as lib

    guarded: Work = lib.retry(on=Exception, attempts=3)(work)
    return guarded


def backoff(work: Work) -> Work:
    """Retry with backoff."""
    import backoff as lib

    guarded: Work = lib.on_exception(lib.expo, Exception, max_tries=3)(work)
    return guarded


def hyx(work: Work) -> Work:
    """Retry with hyx (asynchronous only)."""
    from hyx.retry import retry

    guarded: Work = retry(on=Exception, attempts=3)(work)
    return guarded


def pyresilience(work: Work) -> Work:
    """Retry with pyresilience."""
    from pyresilience import RetryConfig, resilient

    guarded: Work = resilient(retry=RetryConfig(max_attempts=3))(work)
    return guarded


def interlock(work: Work) -> Work:
    """Retry with interlock-cb's pipeline, which stands on tenacity."""
    from interlock import Pipeline

    guarded: Work = Pipeline.builder().retry(attempts=3).build()(work)
    return guarded


_BOTH = (
    ("resilient", "resilient-py", resilient),
    ("tenacity", "tenacity", tenacity),
    ("stamina", "stamina", stamina),
    ("backoff", "backoff", backoff),
    ("pyresilience", "pyresilience", pyresilience),
    ("interlock-cb", "interlock-cb", interlock),
)

SUBJECTS = (
    *family("retry", *_BOTH),
    *family("async retry", *_BOTH, ("hyx", "hyx", hyx), awaited=True),
)
