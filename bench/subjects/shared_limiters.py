"""Rate limiters with their state on a server: one decision, one key, a real Valkey on the loopback."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.subjects.deciders import (
    EVERYWHERE,
    KEY,
    Decider,
    Limit,
    Setting,
    allowed,
    decisions,
    redis_client,
    resilient,
)
from bench.subjects.model import Work

CALLED = Setting(shared=True)
AWAITED = Setting(shared=True, awaited=True)


def bare_evalsha(setting: Setting, limit: Limit) -> Work:
    """Send what ours sends, through redis-py alone: the least a decision on a server can cost a client."""
    command, client = _what_ours_sends(limit), redis_client(setting, **_as_ours(setting))
    return lambda _: client.evalsha(*command)


def bare_evalsha_as_it_comes(setting: Setting, limit: Limit) -> Work:
    """Send what ours sends with redis-py's default settings."""
    command, client = _what_ours_sends(limit), redis_client(setting)
    return lambda _: client.evalsha(*command)


def _as_ours(setting: Setting) -> dict[str, Any]:
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # One try, the older protocol; a time limit on the socket for threads, and none for tasks.
    retry: Any = AsyncRetry if setting.awaited else Retry
    timeout = None if setting.awaited else 0.05
    return {"retry": retry(NoBackoff(), 0), "protocol": 2, "socket_timeout": timeout}


def _what_ours_sends(limit: Limit) -> tuple[Any, ...]:
    """Return the arguments of EVALSHA for our token bucket, whose script the server then knows."""
    from resilient.fleet.rates import SharedRates
    from resilient.policies.rate_limiter.quota import quotas_of

    rates = SharedRates("bench", "token-bucket", quotas_of(str(limit), None, "bench"))
    redis_client(CALLED).script_load(rates.script.source)
    command: Any = next(rates.ask("hit", KEY, 1))
    return tuple(command[1:])


def _took_any(answer: list[int]) -> bool:
    return answer[0] > 0


SHARED = (
    *EVERYWHERE,
    Decider("bare EVALSHA", "redis", bare_evalsha, _took_any),
    Decider("bare EVALSHA (redis-py's defaults)", "redis", bare_evalsha_as_it_comes, _took_any),
    Decider("resilient (lease=100)", "resilient-py", partial(resilient, lease=100), allowed),
)

SUBJECTS = (
    *decisions("redis decision", SHARED, CALLED),
    *decisions("async redis decision", SHARED, AWAITED),
)
