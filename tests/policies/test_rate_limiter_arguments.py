"""What a rate limiter refuses to be made of."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from limits import RateLimitItemPerMinute, RateLimitItemPerSecond

from resilient import Quota, RateLimiter

SHARED: dict[str, Any] = {"storage": "redis://127.0.0.1:1", "name": "door"}


async def _asynchronous(*_: Any) -> str:
    return "key"


BAD_ARGUMENTS: list[tuple[str, object, type[Exception], str]] = [
    *[
        (parameter, value, error, rule)
        for parameter in ("burst", "instances", "max_keys")
        for value, error, rule in [
            (0, ValueError, "must be at least 1"),
            (-3, ValueError, "must be at least 1"),
            (2.0, TypeError, "must be a whole number"),
            (math.nan, TypeError, "must be a whole number"),
            (math.inf, TypeError, "must be a whole number"),
            (True, TypeError, "must be a whole number"),
            ("5", TypeError, "must be a whole number"),
        ]
    ],
    *[
        (parameter, value, error, rule)
        for parameter in ("max_wait", "decision_timeout")
        for value, error, rule in [
            (-1, ValueError, "must be (greater than|at least) 0"),
            (timedelta(seconds=-1), ValueError, "must be (greater than|at least) 0"),
            (math.nan, ValueError, "must be a number of seconds or a timedelta that is finite"),
            (math.inf, ValueError, "must be a number of seconds or a timedelta that is finite"),
            (True, TypeError, "must be a number of seconds or a timedelta"),
            ("30s", TypeError, "must be a number of seconds or a timedelta"),
        ]
    ],
    *[
        (parameter, None, TypeError, "must be")
        for parameter in (
            *("rate", "storage", "strategy", "max_wait", "on_outage"),
            *("instances", "decision_timeout", "max_keys", "clock"),
        )
    ],
    ("decision_timeout", 0, ValueError, "must be greater than 0"),
    ("decision_timeout", 60.5, ValueError, "must be at most 60 seconds"),
    ("decision_timeout", 1e18, ValueError, "must be at most 60 seconds"),
    ("max_wait", 86_401.0, ValueError, "must be at most 86400 seconds"),
    ("max_wait", 1e303, ValueError, "must be at most 86400 seconds"),
    ("rate", "", ValueError, "must read like '100/minute' or '5 per 10 seconds'"),
    ("rate", "often", ValueError, "must read like '100/minute' or '5 per 10 seconds'"),
    ("rate", "100/fortnight", ValueError, "must read like '100/minute'"),
    ("rate", "-5/minute", ValueError, "must read like '100/minute'"),
    ("rate", "1.5/minute", ValueError, "must read like '100/minute'"),
    ("rate", "100/minute please", ValueError, "must read like '100/minute'"),
    ("rate", "0/minute", ValueError, "must allow at least 1 in at least 1 unit of time"),
    ("rate", "1/second;0/minute", ValueError, "must allow at least 1 in at least 1 unit of time"),
    ("rate", "5 per 0 minutes", ValueError, "must allow at least 1 in at least 1 unit of time"),
    ("rate", "1/second; 5/00 Hour", ValueError, "must allow at least 1 in at least 1 unit of time"),
    ("rate", RateLimitItemPerSecond(0), ValueError, "must allow at least 1"),
    ("rate", RateLimitItemPerSecond(10**400), ValueError, "must be at most 1000000000000 in at most"),
    ("rate", RateLimitItemPerSecond(1, 10**400), ValueError, "must be at most 1000000000000 in at most"),
    ("rate", "1" * 201 + "/minute", ValueError, "must be at most 200 characters long, got 208"),
    ("rate", 100, TypeError, "must be a rate such as '100/minute', or a sequence of rates"),
    ("rate", b"100/minute", TypeError, "must be "),
    ("rate", {"100/minute"}, TypeError, "must be a rate such as '100/minute', or a sequence of rates"),
    ("rate", [], TypeError, "must be a rate such as '100/minute', or a sequence of rates"),
    ("rate", ["100/minute", 5], TypeError, "must be text such as '100/minute' or a RateLimitItem"),
    ("rate", ["1/minute", "1/minute"], ValueError, "must not name the same rate twice"),
    ("rate", ["1/minute", RateLimitItemPerMinute(1)], ValueError, "must not name the same rate twice"),
    ("name", "", ValueError, "must not be empty"),
    ("name", "  ", ValueError, "must not be empty"),
    ("name", 5, TypeError, "must be text"),
    ("key", "user", TypeError, "must be callable"),
    ("key", str, TypeError, "must be an instance or a function, not a class"),
    ("key", _asynchronous, TypeError, "must be an ordinary function, not a coroutine function"),
    ("strategy", "leaky-bucket", ValueError, "must be one of 'token-bucket', 'fixed-window', "),
    ("strategy", "token_bucket", ValueError, "must be one of 'token-bucket', 'fixed-window', "),
    ("strategy", 5, TypeError, "must be text"),
    ("on_outage", "raise", ValueError, "must be one of 'local', 'allow', 'deny'"),
    ("on_outage", True, TypeError, "must be text"),
    ("storage", 5, TypeError, "must be a URI such as 'memory://' or 'redis://host:6379'"),
    ("storage", "memory", ValueError, "must be memory:// or begin with one of"),
    ("storage", "", ValueError, "must be memory:// or begin with one of"),
    ("storage", "memcached://127.0.0.1", ValueError, "must be memory:// or begin with one of"),
    ("storage", "async+redis://127.0.0.1", ValueError, "must be memory:// or begin with one of"),
    ("clock", 5, TypeError, "must be callable"),
    ("sleep", 5, TypeError, "must be callable"),
    ("lease", 100, ValueError, "goes with a shared storage only"),
    *[
        ("lease", value, error, rule)
        for value, error, rule in [
            (1, ValueError, "must be at least 2"),
            (0, ValueError, "must be at least 2"),
            (2.0, TypeError, "must be a whole number"),
            (True, TypeError, "must be a whole number"),
        ]
    ],
]


@pytest.mark.parametrize(("parameter", "value", "error", "rule"), BAD_ARGUMENTS)
def test_bad_argument_is_refused(parameter: str, value: object, error: type[Exception], rule: str):
    """By name, rule and value."""
    arguments: dict[str, Any] = {"rate": "100/minute", parameter: value}
    with pytest.raises(error, match=f"^{parameter} {rule}") as caught:
        RateLimiter(**arguments)

    if parameter != "storage" and "characters long" not in rule:
        assert str(caught.value).endswith(f", got {value!r}") or not isinstance(value, int | float | str)


# Arguments that do not go together: each by the name of the one to leave out or add.
BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "fixed-window", "burst": 5}, "burst goes with strategy='token-bucket' only, got 5"),
    (
        {"strategy": "moving-window", "max_wait": 1},
        r"max_wait goes with strategy='token-bucket' only, got 1\.0",
    ),
    ({"rate": ["1/second", "5/minute"], "burst": 5}, "burst goes with one rate only, got 5"),
    ({"storage": "redis://127.0.0.1:1"}, "name must be given where the storage is shared, got None"),
    (SHARED | {"lease": 101}, "lease must be at most 100, all that can be had at once, got 101"),
    (SHARED | {"lease": 6, "burst": 5}, "lease must be at most 5, all that can be had at once, got 6"),
    (
        SHARED | {"rate": ["100/minute", "3/second"], "lease": 4},
        "lease must be at most 3, all that can be had at once, got 4",
    ),
    (SHARED | {"lease": 5, "max_wait": 1}, "lease does not go with max_wait, got 5"),
    (SHARED | {"storage": "redis+sentinel://127.0.0.1:1"}, "storage must end in the name of the service"),
    (SHARED | {"storage": "redis+cluster://127.0.0.1"}, "storage must name host and port of each"),
    (SHARED | {"storage": "redis://127.0.0.1:port"}, "storage must have a host and a numeric port"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_PAIRS)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, Any], message: str):
    """In the constructor, not at the first call."""
    with pytest.raises(ValueError, match=f"^{message}"):
        RateLimiter(**({"rate": "100/minute"} | arguments))


@pytest.mark.parametrize("rate", ["5/minute", "5 per minute", "5 per 1 minute", "5/1minute", " 5 / minute "])
def test_rate_may_be_written_in_many_ways(rate: str):
    """They all mean the same."""
    assert RateLimiter(rate).quotas == (Quota("5/minute", 5, 60.0, 5),)


@pytest.mark.parametrize(
    ("rate", "window"),
    [
        ("5/second", 1.0),
        ("5 per 10 seconds", 10.0),
        ("5/hour", 3_600.0),
        ("5/day", 86_400.0),
        ("5/month", 30 * 86_400.0),
        ("5/year", 360 * 86_400.0),
    ],
)
def test_window_is_in_seconds(rate: str, window: float):
    """Of every unit that limits knows."""
    assert RateLimiter(rate).quotas[0].window == window


def test_durations_may_be_timedeltas():
    """As everywhere."""
    limiter = RateLimiter(
        "5/minute", max_wait=timedelta(seconds=2), decision_timeout=timedelta(milliseconds=20)
    )
    assert limiter.max_wait == 2.0


@pytest.mark.parametrize("secret", ["hunter2", "p%40ss", "a:b"])
@pytest.mark.parametrize(
    "uri",
    [
        "redys://:{}@127.0.0.1",
        "redis://:{}@127.0.0.1:port",
        "redis+sentinel://:{}@127.0.0.1:1",
        "redis+cluster://user:{}@127.0.0.1",
        "user:{}@127.0.0.1",
        "memcached://user:{}@127.0.0.1",
    ],
)
def test_refusal_of_a_storage_does_not_repeat_a_password(uri: str, secret: str):
    """Neither its own text nor what is printed with it."""
    with pytest.raises(ValueError, match=r"^storage ") as refused:
        RateLimiter("5/minute", name="door", storage=uri.format(secret))

    error: BaseException | None = refused.value
    while error is not None:
        assert secret not in str(error) + repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_limiter_on_a_store_does_not_show_its_address():
    """Which may hold a password."""
    limiter = RateLimiter("5/minute", name="door", storage="redis://:hunter2@127.0.0.1:1")
    shown = [repr(limiter), repr(limiter.stats()), repr(limiter.quotas), str(limiter)]
    assert "hunter2" not in "".join(shown)
    assert "shared" in repr(limiter)


def test_making_a_limiter_on_a_store_asks_nobody():
    """The store may be away when the program starts: that is what the ladder is for."""
    limiter = RateLimiter("5/minute", name="door", storage="redis://127.0.0.1:1", decision_timeout=5.0)
    assert limiter.stats().errors == 0
    assert asyncio.run(limiter.ahit()).rung == "local"
