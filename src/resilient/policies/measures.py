"""The metrics of the policies: what each kind of statistics is told by.

Names follow OpenTelemetry's rules, and never change: dashboards and alerts go by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..engine.measure import Measure, counter, gauge, histogram, up_down

if TYPE_CHECKING:
    from ..engine.latency import Histogram, Stopwatch
    from ..engine.measure import Metric
    from .adaptive_throttle import ThrottleStats
    from .bulkhead.bulkhead import BulkheadStats
    from .bulkhead.sampler import LimitStats
    from .cache.cache import CacheStats
    from .circuit_breaker.states import BreakerStats
    from .fallback import FallbackStats
    from .rate_limiter.limiter import RateLimiterStats
    from .retry import RetryStats
    from .retry_budget import BudgetStats
    from .time_limit import TimeoutStats

__all__ = [
    "CALLS",
    "MAINTENANCE_ON",
    "REJECTIONS",
    "of_breaker",
    "of_budget",
    "of_bulkhead",
    "of_cache",
    "of_fallback",
    "of_rate_limiter",
    "of_retry",
    "of_throttle",
    "of_timeout",
]

_OUTCOME: Final = "resilient.outcome"
_STATE: Final = "resilient.circuit_breaker.state"

CALLS: Final = counter(
    "resilient.calls",
    "{call}",
    "Calls: answered (success, failure), let in by what does not look at answers (admitted), refused "
    "(rejected), given up (abandoned, gave_up), answered by a fallback (fallback), or counting as nothing "
    "(ignored).",
    _OUTCOME,
)
REJECTIONS: Final = counter(
    "resilient.rejections",
    "{call}",
    "Calls that a policy refused (enforced), and those that it would have refused, and let through because "
    "it only observes (detected).",
    "resilient.enforcement",
)
CALL_DURATION: Final = histogram(
    "resilient.call.duration",
    "How long calls took; of more than some 2500 a second, a sample.",
    _OUTCOME,
)
WAIT_DURATION: Final = histogram(
    "resilient.wait.duration",
    "How long calls waited to be let in, or to be made again, where they had to.",
    boundaries=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0),
)

BREAKER_STATUS: Final = up_down(
    "resilient.circuit_breaker.status", "1", "The state that breakers are in: 1, the others 0.", _STATE
)
BREAKER_OVERRIDE: Final = up_down(
    "resilient.circuit_breaker.override",
    "1",
    "How breakers are set by hand: 1, the other ways 0.",
    "resilient.circuit_breaker.mode",
)
BREAKER_TRANSITIONS: Final = counter(
    "resilient.circuit_breaker.transitions",
    "{transition}",
    "How often breakers changed to this state.",
    _STATE,
)
BREAKER_FAILURE_RATIO: Final = gauge(
    "resilient.circuit_breaker.failure_ratio",
    "1",
    "The share of the calls in a breaker's window that failed.",
)
BREAKER_SLOW_RATIO: Final = gauge(
    "resilient.circuit_breaker.slow_ratio",
    "1",
    "The share of the calls in a breaker's window that were slow.",
)
BREAKER_WINDOW: Final = up_down(
    "resilient.circuit_breaker.window.count",
    "{call}",
    "Calls in the window of a breaker, which its ratios are of.",
)
BREAKER_SLOW: Final = counter(
    "resilient.circuit_breaker.slow_calls",
    "{call}",
    "Calls through a breaker that took longer than slow_after.",
)

RETRY_ATTEMPTS: Final = counter(
    "resilient.retry.attempts",
    "{attempt}",
    "Attempts that were made, first ones (original) and further ones (retry).",
    "resilient.attempt.type",
)
RETRY_CALLS: Final = counter(
    "resilient.retry.calls",
    "{call}",
    "Calls that ended well after a retry (recovered), failed for good (exhausted), or of which a retry was "
    "not made because the budget was spent (over_budget).",
    _OUTCOME,
)
RETRY_AMPLIFICATION: Final = gauge(
    "resilient.retry.amplification", "1", "Attempts of a retry per call, since the start."
)
BUDGET_BALANCE: Final = up_down(
    "resilient.retry_budget.balance", "{retry}", "Retries that a budget would grant now."
)
BUDGET_DENIED: Final = counter("resilient.retry_budget.denied", "{retry}", "Retries that a budget refused.")

TIMEOUT_OVERRUNS: Final = counter(
    "resilient.timeout.overruns",
    "{call}",
    "Calls that were cut off, or that their caller stopped waiting for.",
)
TIMEOUT_ABANDONED: Final = up_down(
    "resilient.timeout.abandoned", "{call}", "Calls whose caller has gone and whose thread still works."
)

THROTTLE_PROBABILITY: Final = gauge(
    "resilient.adaptive_throttle.probability", "1", "The share of calls that a throttle refuses now."
)

LIMITER_STATUS: Final = up_down(
    "resilient.rate_limiter.status",
    "1",
    "The rung that limiters decide on: 1, the others 0.",
    "resilient.rate_limiter.rung",
)
LIMITER_FALLBACKS: Final = counter(
    "resilient.rate_limiter.fallbacks",
    "{decision}",
    "Decisions that were not made where all processes count together.",
)
LIMITER_ERRORS: Final = counter(
    "resilient.rate_limiter.errors", "{error}", "Requests to the shared store that failed or were too slow."
)
LIMITER_KEYS: Final = up_down(
    "resilient.rate_limiter.key.count", "{key}", "Keys of which a rate limiter keeps account in this process."
)
LIMITER_EVICTIONS: Final = counter(
    "resilient.rate_limiter.evictions", "{key}", "Keys of a rate limiter that had to make room."
)

BULKHEAD_LIMIT: Final = up_down(
    "resilient.bulkhead.limit", "{call}", "How many calls a bulkhead lets run at a time."
)
BULKHEAD_ACTIVE: Final = up_down("resilient.bulkhead.active", "{call}", "Calls that run in a bulkhead.")
BULKHEAD_QUEUED: Final = up_down(
    "resilient.bulkhead.queued", "{call}", "Calls that wait for a slot of a bulkhead."
)
BULKHEAD_ABANDONED: Final = up_down(
    "resilient.bulkhead.abandoned",
    "{call}",
    "Calls that run on in a thread, and keep their slot, though nobody waits for them any more.",
)
BULKHEAD_KEYS: Final = up_down(
    "resilient.bulkhead.key.count", "{key}", "Keys for which a bulkhead keeps slots."
)
BULKHEAD_RTT: Final = gauge(
    "resilient.bulkhead.rtt", "s", "What a good call took in the last window of an adaptive limit."
)
BULKHEAD_BASELINE: Final = gauge(
    "resilient.bulkhead.baseline", "s", "What a call takes without a queue, as an adaptive limit has it."
)
BULKHEAD_PRESSURE: Final = gauge(
    "resilient.bulkhead.pressure",
    "1",
    "What an adaptive limit is multiplied by for the lag of the event loop and the processor; 1 for none.",
)

CACHE_REQUESTS: Final = counter(
    "resilient.cache.requests",
    "{request}",
    "Calls answered with a fresh value (hit), with one past its time (stale), with a remembered failure "
    "(negative), or that had to load or to wait for a load (miss).",
    "resilient.cache.result",
)
CACHE_RESCUED: Final = counter(
    "resilient.cache.rescued", "{request}", "Misses of a cache that the last known good answered."
)
CACHE_LOADS: Final = counter(
    "resilient.cache.loads",
    "{load}",
    "Loads of a cache that were begun, refreshes in the background included.",
)
CACHE_LOAD_FAILURES: Final = counter(
    "resilient.cache.load_failures", "{load}", "Loads of a cache that failed."
)
CACHE_LOAD_DURATION: Final = histogram(
    "resilient.cache.load.duration", "How long loads of a cache took.", _OUTCOME
)
CACHE_HIT_RATIO: Final = gauge(
    "resilient.cache.hit_ratio",
    "1",
    "The share of the calls that were answered without waiting for a load, since the start.",
)
CACHE_STALE_AGE: Final = gauge(
    "resilient.cache.stale.age",
    "s",
    "The age of the oldest value past its time that was served in the last minute; 0 if none was.",
)
CACHE_ENTRIES: Final = up_down("resilient.cache.entry.count", "{entry}", "Entries that a cache keeps.")
CACHE_EVICTIONS: Final = counter(
    "resilient.cache.evictions", "{entry}", "Entries of a cache that had to make room."
)

MAINTENANCE_ON: Final = up_down(
    "resilient.maintenance.on", "1", "Whether a service is closed for maintenance: 1, or 0."
)

_STATES: Final = ("closed", "open", "half_open")
_MODES: Final = ("forced_open", "forced_closed", "observe_only")
_RUNGS: Final = ("shared", "local", "allow", "deny")


def of_breaker(stats: BreakerStats, watch: Stopwatch) -> Iterator[Measure]:
    """Return what can be told of a breaker."""
    yield CALLS, stats.calls - stats.failures, ("success",)
    yield CALLS, stats.failures, ("failure",)
    yield CALLS, stats.rejected, ("rejected",)
    yield CALLS, stats.abandoned, ("abandoned",)
    yield CALLS, stats.ignored, ("ignored",)
    yield REJECTIONS, stats.rejected, ("enforced",)
    yield REJECTIONS, stats.unenforced, ("detected",)
    yield CALL_DURATION, watch.good.histogram(), ("success",)
    yield CALL_DURATION, watch.bad.histogram(), ("failure",)
    yield from _status(BREAKER_STATUS, _STATES, _word(stats.state))
    yield from _status(BREAKER_OVERRIDE, _MODES, None if stats.override is None else _word(stats.override))
    yield BREAKER_TRANSITIONS, stats.times_closed, ("closed",)
    yield BREAKER_TRANSITIONS, stats.times_opened, ("open",)
    yield BREAKER_TRANSITIONS, stats.times_half_opened, ("half_open",)
    yield BREAKER_FAILURE_RATIO, stats.failure_ratio, ()
    yield BREAKER_SLOW_RATIO, stats.slow_ratio, ()
    yield BREAKER_WINDOW, stats.window_calls, ()
    yield BREAKER_SLOW, stats.slow, ()


def of_throttle(stats: ThrottleStats) -> Iterator[Measure]:
    """Return what can be told of a throttle."""
    yield CALLS, stats.calls - stats.failures, ("success",)
    yield CALLS, stats.failures, ("failure",)
    yield CALLS, stats.rejected, ("rejected",)
    yield CALLS, stats.abandoned, ("abandoned",)
    yield CALLS, stats.ignored, ("ignored",)
    yield REJECTIONS, stats.rejected, ("enforced",)
    yield THROTTLE_PROBABILITY, stats.probability, ()


def of_retry(stats: RetryStats, waits: Histogram) -> Iterator[Measure]:
    """Return what can be told of a retry."""
    yield RETRY_ATTEMPTS, stats.calls, ("original",)
    yield RETRY_ATTEMPTS, stats.retries, ("retry",)
    yield RETRY_CALLS, stats.recovered, ("recovered",)
    yield RETRY_CALLS, stats.exhausted, ("exhausted",)
    yield RETRY_CALLS, stats.over_budget, ("over_budget",)
    yield RETRY_AMPLIFICATION, stats.amplification, ()
    yield WAIT_DURATION, waits, ()


def of_budget(stats: BudgetStats) -> Iterator[Measure]:
    """Return what can be told of a retry budget."""
    yield BUDGET_BALANCE, stats.balance, ()
    yield BUDGET_DENIED, stats.denied, ()


def of_timeout(stats: TimeoutStats, watch: Stopwatch) -> Iterator[Measure]:
    """Return what can be told of a time limit."""
    yield CALLS, stats.calls, ("admitted",)
    yield CALLS, stats.rejected, ("rejected",)
    yield REJECTIONS, stats.rejected, ("enforced",)
    yield CALL_DURATION, watch.good.histogram(), ("success",)
    yield CALL_DURATION, watch.bad.histogram(), ("failure",)
    yield TIMEOUT_OVERRUNS, stats.timed_out, ()
    yield TIMEOUT_ABANDONED, stats.abandoned, ()


def of_fallback(stats: FallbackStats) -> Iterator[Measure]:
    """Return what can be told of a fallback."""
    yield CALLS, stats.used, ("fallback",)
    yield CALLS, stats.failed, ("failure",)


def of_rate_limiter(stats: RateLimiterStats, waits: Histogram, *, shared: bool) -> Iterator[Measure]:
    """Return what can be told of a rate limiter; where it is not *shared*, there is no ladder to be on."""
    yield CALLS, stats.allowed, ("admitted",)
    yield CALLS, stats.denied, ("rejected",)
    yield REJECTIONS, stats.denied, ("enforced",)
    yield WAIT_DURATION, waits, ()
    yield LIMITER_KEYS, stats.keys, ()
    yield LIMITER_EVICTIONS, stats.evicted, ()
    if shared:
        yield from _status(LIMITER_STATUS, _RUNGS, stats.rung)
        yield LIMITER_FALLBACKS, stats.fallbacks, ()
        yield LIMITER_ERRORS, stats.errors, ()


def of_bulkhead(stats: BulkheadStats, waits: Histogram) -> Iterator[Measure]:
    """Return what can be told of a bulkhead."""
    refused = stats.rejected + stats.put_out
    yield CALLS, stats.calls, ("admitted",)
    yield CALLS, refused, ("rejected",)
    yield CALLS, stats.gave_up, ("gave_up",)
    yield REJECTIONS, refused, ("enforced",)
    yield WAIT_DURATION, waits, ()
    yield BULKHEAD_LIMIT, stats.limit, ()
    yield BULKHEAD_ACTIVE, stats.in_use, ()
    yield BULKHEAD_QUEUED, stats.waiting, ()
    yield BULKHEAD_ABANDONED, stats.abandoned, ()
    yield BULKHEAD_KEYS, stats.keys, ()
    if stats.adaptive is not None:
        yield from _of_adaptive(stats.adaptive)


def _of_adaptive(stats: LimitStats) -> Iterator[Measure]:
    if stats.rtt is not None:
        yield BULKHEAD_RTT, stats.rtt, ()
    if stats.baseline is not None:
        yield BULKHEAD_BASELINE, stats.baseline, ()
    yield BULKHEAD_PRESSURE, stats.pressure, ()


def of_cache(stats: CacheStats, loads: Stopwatch) -> Iterator[Measure]:
    """Return what can be told of a cache."""
    yield CACHE_REQUESTS, stats.hits, ("hit",)
    yield CACHE_REQUESTS, stats.stale, ("stale",)
    yield CACHE_REQUESTS, stats.misses, ("miss",)
    yield CACHE_REQUESTS, stats.negative, ("negative",)
    yield CACHE_RESCUED, stats.rescued, ()
    yield CACHE_LOADS, stats.loads, ()
    yield CACHE_LOAD_FAILURES, stats.load_failures, ()
    yield CACHE_LOAD_DURATION, loads.good.histogram(), ("success",)
    yield CACHE_LOAD_DURATION, loads.bad.histogram(), ("failure",)
    yield CACHE_HIT_RATIO, stats.hit_ratio, ()
    yield CACHE_STALE_AGE, stats.stale_age, ()
    yield CACHE_ENTRIES, stats.size, ()
    yield CACHE_EVICTIONS, stats.evictions, ()


def _status(metric: Metric, words: tuple[str, ...], current: str | None) -> Iterator[Measure]:
    """Return a series for each of *words*: 1 for the *current* one, 0 for the others."""
    for word in words:
        yield metric, int(word == current), (word,)


def _word(text: str) -> str:
    return text.replace("-", "_").replace(" ", "_")
