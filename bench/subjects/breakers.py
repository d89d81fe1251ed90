"""Circuit breakers: closed and calm, closed with every call failing, open; and what it takes to read ours."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from bench.subjects.model import ARGUMENT, Outcome, Row, Subject, Work, family

Build = Callable[[Work, int], Work]

TRIP_AFTER = 5
"""Failures that open a breaker, in the calm and in the open rows."""

NEVER = 10**9
"""Failures that open a breaker, in the rows where every call fails and it must stay closed."""

OPEN_FOR = 3600.0
"""Seconds a breaker stays open: longer than any run, so that an open row never sees a probe."""


def resilient(work: Work, trip_after: int, **settings: Any) -> Work:
    """Guard with our default: a rolling time window of 30 s."""
    from resilient import CircuitBreaker

    return CircuitBreaker("bench", min_calls=trip_after, reset_timeout=OPEN_FOR, **settings)(work)


def resilient_slow_after(work: Work, trip_after: int) -> Work:
    """Guard with ours, each call timed."""
    return resilient(work, trip_after, slow_after=10.0, slow_ratio=0.5)


def resilient_last_100(work: Work, trip_after: int) -> Work:
    """Guard with ours over the last 100 calls."""
    from resilient import Calls

    return resilient(work, trip_after, window=Calls(100))


def resilient_fail_max(work: Work, trip_after: int) -> Work:
    """Guard with ours by pybreaker's rule alone: consecutive failures."""
    from resilient import CircuitBreaker

    return CircuitBreaker("bench", fail_max=trip_after, reset_timeout=OPEN_FOR)(work)


def pybreaker(work: Work, trip_after: int) -> Work:
    """Guard with pybreaker (consecutive failures)."""
    import pybreaker as lib

    guarded: Work = lib.CircuitBreaker(fail_max=trip_after, reset_timeout=OPEN_FOR)(work)
    return guarded


def circuitbreaker(work: Work, trip_after: int) -> Work:
    """Guard with circuitbreaker (consecutive failures)."""
    from circuitbreaker import CircuitBreaker

    guarded: Work = CircuitBreaker(failure_threshold=trip_after, recovery_timeout=int(OPEN_FOR))(work)
    return guarded


def aiobreaker(work: Work, trip_after: int) -> Work:
    """Guard with aiobreaker (consecutive failures)."""
    from aiobreaker import CircuitBreaker

    guarded: Work = CircuitBreaker(fail_max=trip_after, timeout_duration=timedelta(seconds=OPEN_FOR))(work)
    return guarded


def purgatory(work: Work, trip_after: int) -> Work:
    """Guard with purgatory (consecutive failures)."""
    from purgatory import SyncCircuitBreakerFactory

    factory = SyncCircuitBreakerFactory(default_threshold=trip_after, default_ttl=OPEN_FOR)
    guarded: Work = factory("bench")(work)
    return guarded


def purgatory_async(work: Work, trip_after: int) -> Work:
    """Guard with purgatory's asynchronous factory."""
    from purgatory import AsyncCircuitBreakerFactory

    factory = AsyncCircuitBreakerFactory(default_threshold=trip_after, default_ttl=OPEN_FOR)
    guarded: Work = factory("bench")(work)
    return guarded


def hyx(work: Work, trip_after: int) -> Work:
    """Guard with hyx (consecutive failures; asynchronous only)."""
    from hyx.circuitbreaker import consecutive_breaker

    guarded: Work = consecutive_breaker(failure_threshold=trip_after, recovery_time_secs=OPEN_FOR)(work)
    return guarded


def interlock_time(work: Work, trip_after: int) -> Work:
    """Guard with interlock-cb over a time window as long as our default."""
    from interlock import WindowType

    return _interlock(work, trip_after, window_type=WindowType.TIME_BASED, window_size=30)


def interlock_count(work: Work, trip_after: int) -> Work:
    """Guard with interlock-cb over its default window, the last 100 calls."""
    return _interlock(work, trip_after)


def _interlock(work: Work, trip_after: int, **settings: Any) -> Work:
    from interlock import CircuitBreaker, Config

    config = Config(minimum_number_of_calls=trip_after, wait_duration_in_open=OPEN_FOR, **settings)
    guarded: Work = CircuitBreaker(name="bench", config=config)(work)
    return guarded


def pyresilience(work: Work, trip_after: int) -> Work:
    """Guard with pyresilience (its default: consecutive failures)."""
    return _pyresilience(work, trip_after)


def pyresilience_window(work: Work, trip_after: int) -> Work:
    """Guard with pyresilience over the last 100 calls."""
    return _pyresilience(work, trip_after, sliding_window_size=100, minimum_calls=trip_after)


def _pyresilience(work: Work, trip_after: int, **settings: Any) -> Work:
    from pyresilience import CircuitBreakerConfig, resilient

    config = CircuitBreakerConfig(failure_threshold=trip_after, recovery_timeout=OPEN_FOR, **settings)
    guarded: Work = resilient(circuit_breaker=config)(work)
    return guarded


def resilient_stats(work: Work) -> Work:
    """Ask ours what it has counted."""
    from resilient import CircuitBreaker

    breaker = CircuitBreaker("bench")
    breaker.call(work, ARGUMENT)
    return lambda _: breaker.stats()


def resilient_measures(work: Work) -> Work:
    """Ask ours for all that metrics tell of it."""
    from resilient import CircuitBreaker

    breaker = CircuitBreaker("bench")
    breaker.call(work, ARGUMENT)
    return lambda _: [*breaker.measures()]


def _counted_by_stats(stats: Any) -> object:
    return stats.calls


def _counted_by_measures(measures: Any) -> object:
    return sum(value for metric, value, _ in measures if metric.name == "resilient.calls")


Library = tuple[str, str, Build]

_BOTH: tuple[Library, ...] = (
    ("resilient", "resilient-py", resilient),
    ("circuitbreaker", "circuitbreaker", circuitbreaker),
    ("aiobreaker", "aiobreaker", aiobreaker),
    ("interlock-cb (time window)", "interlock-cb", interlock_time),
    ("interlock-cb (last 100)", "interlock-cb", interlock_count),
    ("pyresilience", "pyresilience", pyresilience),
    ("pyresilience (last 100)", "pyresilience", pyresilience_window),
)
_SYNC: tuple[Library, ...] = (
    *_BOTH,
    ("pybreaker", "pybreaker", pybreaker),
    ("purgatory", "purgatory", purgatory),
)
_ASYNC: tuple[Library, ...] = (*_BOTH, ("hyx", "hyx", hyx), ("purgatory", "purgatory", purgatory_async))

# What settings of ours cost a call that succeeds; other outcomes would only say it again.
_VARIANTS: tuple[Library, ...] = (
    ("resilient (fail_max only)", "resilient-py", resilient_fail_max),
    ("resilient (slow_after)", "resilient-py", resilient_slow_after),
    ("resilient (last 100)", "resilient-py", resilient_last_100),
)


def _rows(libraries: tuple[Library, ...], trip_after: int) -> list[Row]:
    return [(name, package, partial(_guard, build, trip_after)) for name, package, build in libraries]


def _guard(build: Build, trip_after: int, work: Work) -> Work:
    return build(work, trip_after)


def _three_states(prefix: str, libraries: tuple[Library, ...], *, awaited: bool) -> tuple[Subject, ...]:
    calm, failing = _rows(libraries, TRIP_AFTER), _rows(libraries, NEVER)
    return (
        *family(f"{prefix}breaker", *calm, awaited=awaited),
        *family(f"{prefix}breaker, failing calls", *failing, awaited=awaited, outcome=Outcome.FAILS),
        *family(f"{prefix}breaker, open", *calm, awaited=awaited, outcome=Outcome.REJECTS),
    )


SUBJECTS = (
    *_three_states("", _SYNC, awaited=False),
    *family("breaker", *_rows(_VARIANTS, TRIP_AFTER)),
    *_three_states("async ", _ASYNC, awaited=True),
    *(
        Subject("breaker, read", name, build, "resilient-py", outcome=Outcome.REMEMBERS, read=counted)
        for name, build, counted in (
            ("stats()", resilient_stats, _counted_by_stats),
            ("measures()", resilient_measures, _counted_by_measures),
        )
    ),
)
