"""Rate limiters with their state on a server: one decision, one key, a real Valkey on the loopback."""

from __future__ import annotations

from typing import Any

from bench.subjects.deciders import (
    EVERYWHERE,
    KEY,
    Decider,
    Limit,
    Setting,
    decisions,
    redis_client,
)
from bench.subjects.model import Work

CALLED = Setting(shared=True)
AWAITED = Setting(shared=True, awaited=True)


def bare_evalsha(setting: Setting, limit: Limit) -> Work:
    """Send what ours sends, through redis-py alone: the least a decision on a server can cost a client."""
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    command = _what_ours_sends(limit)
    # As ours sets it up: one try, the older protocol, a time limit on the socket of threads and none on tasks'.
    retry: Any = AsyncRetry if setting.awaited else Retry
    timeout = None if setting.awaited else 0.05
    settings = {"retry": retry(NoBackoff(), 0), "protocol": 2, "socket_timeout": timeout}
    client = redis_client(setting, **settings)
    return lambda _: client.evalsha(*command)


def _what_ours_sends(limit: Limit) -> tuple[Any, ...]:
    """Return the arguments of EVALSHA for our token bucket, whose script the server then knows."""
    from resilient.fleet.rates import SharedRates
    from resilient.fleet.script import load
    from resilient.policies.rate_limiter.quota import quotas_of

    with redis_client(CALLED) as client:
        client.script_load(load("token_bucket", "decide").source)
    rates = SharedRates("bench", "token-bucket", quotas_of(str(limit), None, "bench"))
    _evalsha, *command = next(rates.ask("hit", KEY, 1))
    return tuple(command)


def _took_any(answer: list[int]) -> bool:
    return answer[0] > 0


SHARED = (
    *EVERYWHERE,
    Decider("bare EVALSHA", "redis", bare_evalsha, _took_any),
)

SUBJECTS = (
    *decisions("redis decision", SHARED, CALLED),
    *decisions("async redis decision", SHARED, AWAITED),
)
