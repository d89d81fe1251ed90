"""Rate limiters: how each is asked for one decision on one key, in memory or on a server, awaited or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from operator import attrgetter, itemgetter
from typing import Any

from bench import resources
from bench.subjects.model import Outcome, Subject, Work, as_it_is

KEY = "user-1"


@dataclass(frozen=True, slots=True)
class Limit:
    """So many calls in so many seconds."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.amount}/{self.seconds} second"


# A second, not a day: some keep an entry for each call of the window, and pay for its length.
PLENTY = Limit(10_000_000, 1)
"""More than can be asked for: every call is allowed."""

SPENT = Limit(1, 3600)
"""Used up by the first call: every later one is denied."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the limiters keep their state, and who asks them.

    Args:
        shared: On the run's server, through each library's own client with its own settings; else in memory.
        awaited: By a coroutine; else by a plain function.
    """

    shared: bool = False
    awaited: bool = False


Build = Callable[[Setting, Limit], Any]
"""Makes a limiter and returns a function of one argument, awaited or not, that asks it for KEY.

It is a line such as a user writes, in a frame of its own: the same for each library, ours included.
"""


@dataclass(frozen=True, slots=True)
class Decider:
    """One library that decides, and how to read its decisions.

    Args:
        name: The library, with its algorithm in brackets.
        package: Its distribution.
        build: Makes it ask for KEY.
        allows: Says whether what it returned allows.
    """

    name: str
    package: str
    build: Build
    allows: Callable[[Any], object] = as_it_is


def decisions(
    title: str, deciders: Iterable[Decider], setting: Setting, limit: Limit = PLENTY
) -> tuple[Subject, ...]:
    """Return the subjects of a family of decisions."""
    outcome = Outcome.DENIES if limit is SPENT else Outcome.ALLOWS
    return tuple(
        Subject(
            title,
            one.name,
            partial(_without_work, one.build, setting, limit),
            one.package,
            setting.awaited,
            outcome,
            one.allows,
        )
        for one in deciders
    )


def _without_work(build: Build, setting: Setting, limit: Limit, _work: Work) -> Any:
    return build(setting, limit)


# -- resilient -------------------------------------------------------------------------------------------


def resilient(setting: Setting, limit: Limit, **settings: Any) -> Work:
    """Ask ours."""
    limiter = make_resilient(setting, limit, **settings)
    if setting.awaited:
        return lambda _: limiter.ahit(KEY)
    return lambda _: limiter.hit(KEY)


def make_resilient(setting: Setting, limit: Limit, **settings: Any) -> Any:
    """Make a limiter of ours."""
    from resilient import RateLimiter

    if setting.shared:
        settings.update(storage=resources.valkey_url(), name="bench")
    limiter = RateLimiter(str(limit), **settings)
    resources.close_at_the_end(limiter, awaited=setting.awaited)
    return limiter


# -- limits ----------------------------------------------------------------------------------------------


def limits(strategy: str, setting: Setting, limit: Limit) -> Work:
    """Ask limits, which answers yes or no."""
    item, limiter = make_limits(strategy, setting, limit)
    return lambda _: limiter.hit(item, KEY)


def limits_stats(strategy: str, setting: Setting, limit: Limit) -> Work:
    """Ask limits, and ask again for what a response's headers tell."""
    item, limiter = make_limits(strategy, setting, limit)

    async def decide(_: int) -> Any:
        return await limiter.hit(item, KEY), await limiter.get_window_stats(item, KEY)

    if setting.awaited:
        return decide
    return lambda _: (limiter.hit(item, KEY), limiter.get_window_stats(item, KEY))


def make_limits(strategy: str, setting: Setting, limit: Limit) -> tuple[Any, Any]:
    """Make a limit and a limiter of limits."""
    from limits import RateLimitItemPerSecond

    half = "limits.aio" if setting.awaited else "limits"
    storages, strategies = import_module(f"{half}.storage"), import_module(f"{half}.strategies")
    if not setting.shared:
        storage = storages.MemoryStorage()
    elif setting.awaited:
        storage = storages.RedisStorage(f"async+{resources.valkey_url()}", implementation="redispy")
    else:
        storage = storages.RedisStorage(resources.valkey_url())
    return RateLimitItemPerSecond(limit.amount, limit.seconds), getattr(strategies, strategy)(storage)


# -- throttled-py ----------------------------------------------------------------------------------------


def throttled(algorithm: str, setting: Setting, limit: Limit) -> Work:
    """Ask throttled-py."""
    limiter = make_throttled(algorithm, setting, limit)
    return lambda _: limiter.limit(KEY)


def make_throttled(
    algorithm: str, setting: Setting, limit: Limit, *, keys: int = 1024, **settings: Any
) -> Any:
    """Make a limiter of throttled-py; in memory it keeps the newest *keys*, and forgives the others."""
    lib = import_module("throttled.asyncio" if setting.awaited else "throttled")
    # A store of its own: the default one is shared by all of the process.
    store = lib.MemoryStore(options={"MAX_SIZE": keys})
    if setting.shared:
        store = lib.RedisStore(resources.valkey_url())
    return lib.Throttled(using=algorithm, quota=throttled_quota(limit), store=store, **settings)


def throttled_quota(limit: Limit) -> Any:
    """Return a limit in throttled-py's terms."""
    from throttled import per_duration

    return per_duration(timedelta(seconds=limit.seconds), limit.amount)


def not_limited(result: Any) -> bool:
    """Read an answer of throttled-py."""
    return not result.limited


# -- pyrate-limiter --------------------------------------------------------------------------------------


def pyrate_window(setting: Setting, limit: Limit) -> Any:
    """Ask pyrate-limiter's default, a window that moves; on a server it must be started on the loop."""
    from pyrate_limiter import InMemoryBucket, RedisBucket

    rates = _pyrate_rates(limit)
    if not setting.shared:
        return _ask_pyrate(setting, InMemoryBucket(rates))
    bucket = RedisBucket.init(rates, redis_client(setting), "pyrate-window")
    return _ask_pyrate_when_ready(setting, bucket) if setting.awaited else _ask_pyrate(setting, bucket)


def pyrate_bucket(setting: Setting, limit: Limit) -> Work:
    """Ask pyrate-limiter's token bucket."""
    return _ask_pyrate(setting, make_pyrate_bucket(setting, limit))


def make_pyrate_bucket(setting: Setting, limit: Limit) -> Any:
    """Make a token bucket of pyrate-limiter; one for all keys, as it comes."""
    from pyrate_limiter import StateBucket, TokenBucket

    store = _pyrate_store(setting) if setting.shared else None
    return StateBucket(_pyrate_rates(limit), algorithm=TokenBucket(), store=store)


def _pyrate_store(setting: Setting) -> Any:
    from pyrate_limiter.buckets.redis_state import RedisStateStore

    return RedisStateStore(redis_client(setting), "pyrate-bucket")


def _pyrate_rates(limit: Limit) -> list[Any]:
    from pyrate_limiter import Rate

    return [Rate(limit.amount, limit.seconds * 1000)]


async def _ask_pyrate_when_ready(setting: Setting, bucket: Any) -> Work:
    return _ask_pyrate(setting, await bucket)


def _ask_pyrate(setting: Setting, bucket: Any) -> Work:
    from pyrate_limiter import Limiter

    limiter = Limiter(bucket)
    if setting.awaited:
        return lambda _: limiter.try_acquire_async(KEY, blocking=False)
    return lambda _: limiter.try_acquire(KEY, blocking=False)


def redis_client(setting: Setting, **settings: Any) -> Any:
    """Return redis-py's client of an empty database on the run's server."""
    import redis

    kind: Any = redis.asyncio.Redis if setting.awaited else redis.Redis
    client = kind.from_url(resources.valkey_url(), **settings)
    resources.close_at_the_end(client, awaited=setting.awaited)
    return client


# -- aiolimiter ------------------------------------------------------------------------------------------


def aiolimiter(_setting: Setting, limit: Limit) -> Work:
    """Ask aiolimiter: one bucket without keys, in memory, that returns as soon as it allows."""
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(limit.amount, limit.seconds)
    return lambda _: limiter.acquire()


def _is_nothing(result: Any) -> bool:
    return result is None


# -- all of them -----------------------------------------------------------------------------------------

allowed: Callable[[Any], object] = attrgetter("allowed")
"""Reads a decision of ours."""

OURS = Decider("resilient", "resilient-py", resilient, allowed)

EVERYWHERE: tuple[Decider, ...] = (
    OURS,
    *(
        Decider(f"resilient ({name})", "resilient-py", partial(resilient, strategy=name), allowed)
        for name in ("fixed-window", "sliding-window-counter", "moving-window")
    ),
    *(
        Decider(f"limits ({name})", "limits", partial(limits, strategy))
        for name, strategy in (
            ("fixed window", "FixedWindowRateLimiter"),
            ("sliding window counter", "SlidingWindowCounterRateLimiter"),
            ("moving window", "MovingWindowRateLimiter"),
        )
    ),
    Decider(
        "limits (fixed window, and its stats)",
        "limits",
        partial(limits_stats, "FixedWindowRateLimiter"),
        itemgetter(0),
    ),
    *(
        Decider(f"throttled-py ({name})", "throttled-py", partial(throttled, algorithm), not_limited)
        for name, algorithm in (
            ("token bucket", "token_bucket"),
            ("GCRA", "gcra"),
            ("fixed window", "fixed_window"),
        )
    ),
    Decider("pyrate-limiter (moving window)", "pyrate-limiter", pyrate_window),
    Decider("pyrate-limiter (token bucket)", "pyrate-limiter", pyrate_bucket),
)
"""Those that keep their state in memory or on a server, and are asked by plain functions and coroutines."""

AIOLIMITER = Decider("aiolimiter", "aiolimiter", aiolimiter, _is_nothing)
