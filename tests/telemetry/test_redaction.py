"""Nothing that came from outside is in any metric: no key, no user, no password, no message."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.support.collected import Series, instrumented, series
from tests.support.metrics_page import metrics
from tests.support.prometheus_names import in_prometheus, known

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ConnectionPool,
    Fallback,
    RateLimiter,
    ReplicaSet,
    Retry,
    Timeout,
)
from resilient.asgi import Maintenance
from resilient.engine.measure import Instrument
from resilient.health import Finding, Health, Status
from resilient.telemetry import exclude

SECRET = "hunter2"
HOSTILE = (
    f"postgresql://app:{SECRET}@db.internal/shop",
    f"Bearer {SECRET}",
    f'{SECRET}\n# HELP x\nx{{a="b"}} 1',
    f"user {SECRET} <{SECRET}@example.org>",
    f"{SECRET}" * 500,
    f"'; DROP TABLE {SECRET}; --\0",
)  # fmt: skip


class HostileError(Exception):
    """One whose class and message say what nobody should read."""


class hunter2(Exception):  # noqa: N801, N818 - the name is the secret
    """One whose very name is a secret."""


def fail(text: str) -> None:
    """Fail with *text*, in a message, a cause and notes."""
    error = HostileError(text)
    error.add_note(text)
    raise error from hunter2(text)


@pytest.fixture
def told() -> list[Series]:
    """What is told of policies of each kind that had to do with hostile text."""
    retry = Retry(on=HostileError, attempts=2, wait=0.0, name="retry")
    cache: Cache = Cache("cache", ttl=60.0, negative_ttl=1.0, on=HostileError)
    limiter = RateLimiter("1/day", name="limiter", key=lambda text: text)
    bulkhead = Bulkhead("bulkhead", 5, key=lambda text: text)
    pool = ConnectionPool(_refuse, name="pool", timeout=0.01, max_waiting=0)
    replicas = ReplicaSet(pool, [ConnectionPool(_refuse, name="replica", timeout=0.01)], name="replicas")
    breaker = CircuitBreaker("breaker", fail_max=3, on_result=lambda result: result in HOSTILE)
    maintenance, health = Maintenance(name="maintenance"), Health("service")
    policies: tuple[Any, ...] = (
        breaker, retry, cache, limiter, bulkhead,
        AdaptiveThrottle("throttle"), Timeout(9.0, name="timeout"), Timeout(9.0, threads=1, name="threads"),
        Fallback(lambda error, *_: str(error), on=HostileError, name="fallback"),
    )  # fmt: skip
    health.watch(breaker, pool)

    @health.check("check")
    def check() -> Finding:
        return Finding(Status.WARN, HOSTILE[0], value=1.0, unit="items", facts={"secret": HOSTILE[0]})

    @health.check("failing")
    def failing() -> None:
        fail(HOSTILE[1])

    for text in HOSTILE:
        for policy in policies:
            with contextlib.suppress(Exception):
                policy(fail)(text)
            with contextlib.suppress(Exception):
                policy(str)(text)
        with contextlib.suppress(Exception), pool.connection():
            pass
        with contextlib.suppress(Exception), replicas.reading():
            pass
        breaker.force_open(reason=text.strip("\0").partition("\n")[0])
        with contextlib.suppress(Exception):
            maintenance.on(reason=text)
    health.report()
    reader = InMemoryMetricReader()
    with instrumented(reader):
        found = series(reader)
    exclude(health, replicas, pool)
    pool.close()
    replicas.close()
    health.close()
    return found


def _refuse() -> object:
    fail(HOSTILE[0])
    raise AssertionError


def test_nothing_from_outside_is_told(told: list[Series]) -> None:
    """In no name, no attribute, no unit and no description of any metric."""
    kinds = {one.attributes.get("resilient.policy.kind") for one in told}
    assert len(kinds) >= 12
    for one in told:
        assert SECRET not in repr((one.metric, one.attributes, one.unit, one.description))
        assert "HostileError" not in repr(one.attributes)


def test_all_that_is_told_are_the_words_of_the_reference(told: list[Series]) -> None:
    """Each attribute has a value that is listed, or is a name that was given to a policy or a check."""
    given = {
        "breaker", "retry", "retry-budget", "cache", "limiter", "bulkhead", "throttle", "timeout", "threads",
        "fallback", "pool", "replica", "replicas", "maintenance", "service", "check", "failing", "items",
        "percent",
    }  # fmt: skip
    own = {metric.name: metric for metric in metrics()}
    for one in told:
        metric = own.get(one.metric)
        if metric is None or one.attributes.get("resilient.policy.name") not in given:
            continue  # of other tests
        part = "_count" if metric.instrument is Instrument.HISTOGRAM else ""
        words = {word for seen in known()[in_prometheus(metric) + part].seen for word in seen.values()}
        for name, value in one.attributes.items():
            assert isinstance(value, str)
            assert value in words or value in given or value.startswith(("retry", "replica", "pool")), (
                name,
                value,
            )


def test_how_many_there_are_does_not_go_by_what_comes_from_outside(told: list[Series]) -> None:
    """As many series for one key as for a hundred: no metric has more than a policy has words."""
    per_policy: dict[tuple[str, str], int] = {}
    for one in told:
        who = (one.metric, str(one.attributes.get("resilient.policy.name")))
        per_policy[who] = per_policy.get(who, 0) + 1

    assert max(per_policy.values()) <= 5 * 4  # health: five checks, of four states each
