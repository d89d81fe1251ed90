"""Several policies around one call, each library's own way of stacking them."""

from __future__ import annotations

from typing import Any

from bench.subjects import breakers, bulkheads, retries, timeouts
from bench.subjects.model import Work, family


def resilient(work: Work) -> Work:
    """Stack ours: retry over breaker."""
    from resilient import CircuitBreaker, Pipeline, Retry

    guarded: Work = Pipeline(Retry(on=Exception), CircuitBreaker("bench"))(work)
    return guarded


def resilient_three(work: Work) -> Work:
    """Stack ours: retry over breaker over timeout."""
    from resilient import CircuitBreaker, Pipeline, Retry, Timeout

    guarded: Work = Pipeline(Retry(on=Exception), CircuitBreaker("bench"), Timeout(timeouts.LIMIT))(work)
    return guarded


def resilient_four(work: Work) -> Work:
    """Stack ours: fallback over retry over breaker over timeout."""
    from resilient import CircuitBreaker, Fallback, Pipeline, Retry, Timeout

    policies = (Fallback(None), Retry(on=Exception), CircuitBreaker("bench"), Timeout(timeouts.LIMIT))
    guarded: Work = Pipeline(*policies)(work)
    return guarded


def pyresilience(work: Work) -> Work:
    """Stack pyresilience's breaker and retry."""
    from pyresilience import CircuitBreakerConfig, RetryConfig
    from pyresilience import resilient as guard

    guarded: Work = guard(retry=RetryConfig(), circuit_breaker=CircuitBreakerConfig())(work)
    return guarded


def pyresilience_three(work: Work) -> Work:
    """Stack pyresilience's breaker, retry and timeout."""
    from pyresilience import CircuitBreakerConfig, RetryConfig, TimeoutConfig
    from pyresilience import resilient as guard

    limit = TimeoutConfig(seconds=timeouts.LIMIT)
    guarded: Work = guard(retry=RetryConfig(), circuit_breaker=CircuitBreakerConfig(), timeout=limit)(work)
    return guarded


def pybreaker_stamina(work: Work) -> Work:
    """Stack stamina over pybreaker."""
    return retries.stamina(breakers.pybreaker(work, breakers.TRIP_AFTER))


def hyx_three(work: Work) -> Work:
    """Stack hyx's retry over its breaker over its timeout."""
    return retries.hyx(breakers.hyx(timeouts.hyx(work), breakers.TRIP_AFTER))


def interlock(work: Work) -> Work:
    """Stack interlock-cb's retry over its breaker."""
    from interlock import CircuitBreaker, Pipeline

    stack = Pipeline.builder().retry(attempts=3).circuit_breaker(CircuitBreaker(name="bench"))
    guarded: Work = stack.build()(work)
    return guarded


def interlock_three(work: Work) -> Work:
    """Stack interlock-cb's retry over its breaker over its timeout."""
    from interlock import CircuitBreaker, Pipeline

    stack = Pipeline.builder().retry(attempts=3).circuit_breaker(CircuitBreaker(name="bench"))
    guarded: Work = stack.timeout(timeouts.LIMIT).build()(work)
    return guarded


# -- with a bulkhead -------------------------------------------------------------------------------------


def resilient_bulkhead(work: Work) -> Work:
    """Stack ours: retry over breaker over bulkhead."""
    from resilient import Bulkhead, CircuitBreaker, Pipeline, Retry

    slots = Bulkhead("bench", bulkheads.SLOTS)
    guarded: Work = Pipeline(Retry(on=Exception), CircuitBreaker("bench"), slots)(work)
    return guarded


def resilient_bulkhead_timeout(work: Work) -> Work:
    """Stack ours: retry over breaker over bulkhead over timeout."""
    from resilient import Bulkhead, CircuitBreaker, Pipeline, Retry, Timeout

    slots, limit = Bulkhead("bench", bulkheads.SLOTS), Timeout(timeouts.LIMIT)
    guarded: Work = Pipeline(Retry(on=Exception), CircuitBreaker("bench"), slots, limit)(work)
    return guarded


def pyresilience_bulkhead(work: Work) -> Work:
    """Stack pyresilience's breaker, retry and bulkhead."""
    return _pyresilience_bulkhead(work)


def pyresilience_bulkhead_timeout(work: Work) -> Work:
    """Stack pyresilience's breaker, retry, bulkhead and timeout."""
    from pyresilience import TimeoutConfig

    return _pyresilience_bulkhead(work, timeout=TimeoutConfig(seconds=timeouts.LIMIT))


def _pyresilience_bulkhead(work: Work, **settings: Any) -> Work:
    from pyresilience import BulkheadConfig, CircuitBreakerConfig, RetryConfig
    from pyresilience import resilient as guard

    slots = BulkheadConfig(max_concurrent=bulkheads.SLOTS)
    policies = guard(retry=RetryConfig(), circuit_breaker=CircuitBreakerConfig(), bulkhead=slots, **settings)
    guarded: Work = policies(work)
    return guarded


def pybreaker_stamina_semaphore(work: Work) -> Work:
    """Stack stamina over pybreaker over a semaphore."""
    return pybreaker_stamina(bulkheads.bounded_semaphore(work))


def hyx_bulkhead_timeout(work: Work) -> Work:
    """Stack hyx's retry over its breaker over its bulkhead over its timeout."""
    return retries.hyx(breakers.hyx(bulkheads.hyx(timeouts.hyx(work)), breakers.TRIP_AFTER))


def interlock_bulkhead(work: Work) -> Work:
    """Stack interlock-cb's retry over its breaker over its bulkhead."""
    guarded: Work = _interlock_bulkhead().build()(work)
    return guarded


def interlock_bulkhead_timeout(work: Work) -> Work:
    """Stack interlock-cb's retry over its breaker over its bulkhead over its timeout."""
    guarded: Work = _interlock_bulkhead().timeout(timeouts.LIMIT).build()(work)
    return guarded


def _interlock_bulkhead() -> Any:
    from interlock import CircuitBreaker, Pipeline

    stack = Pipeline.builder().retry(attempts=3).circuit_breaker(CircuitBreaker(name="bench"))
    return stack.bulkhead(bulkheads.SLOTS)


SUBJECTS = (
    *family(
        "breaker + retry",
        ("resilient", "resilient-py", resilient),
        ("pyresilience", "pyresilience", pyresilience),
        ("pybreaker + stamina", "stamina", pybreaker_stamina),
        ("interlock-cb", "interlock-cb", interlock),
    ),
    *family(
        "async breaker + retry + timeout",
        ("resilient", "resilient-py", resilient_three),
        ("resilient (and a fallback)", "resilient-py", resilient_four),
        ("pyresilience", "pyresilience", pyresilience_three),
        ("hyx", "hyx", hyx_three),
        ("interlock-cb", "interlock-cb", interlock_three),
        awaited=True,
    ),
    *family(
        "breaker + retry + bulkhead",
        ("resilient", "resilient-py", resilient_bulkhead),
        ("pyresilience", "pyresilience", pyresilience_bulkhead),
        ("pybreaker + stamina + semaphore", "stamina", pybreaker_stamina_semaphore),
        ("interlock-cb", "interlock-cb", interlock_bulkhead),
    ),
    *family(
        "async breaker + retry + bulkhead + timeout",
        ("resilient", "resilient-py", resilient_bulkhead_timeout),
        ("pyresilience", "pyresilience", pyresilience_bulkhead_timeout),
        ("hyx", "hyx", hyx_bulkhead_timeout),
        ("interlock-cb", "interlock-cb", interlock_bulkhead_timeout),
        awaited=True,
    ),
)
