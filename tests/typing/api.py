"""What users' code looks like to a type checker. Never run: mypy and basedpyright read it, in strict mode.

Every policy keeps the type of what it guards. A check that a wrong use is *refused* is a comment that
silences the error: both checkers complain of one that silences nothing.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from datetime import timedelta
from typing import Any, TypeVar, assert_type

import cachetools
import pybreaker
import tenacity

from resilient import (
    AIMD,
    AdaptiveThrottle,
    Bulkhead,
    BulkheadFullError,
    Cache,
    Calls,
    CircuitBreaker,
    CircuitOpenError,
    Decision,
    Fallback,
    Gradient,
    Pipeline,
    Pressure,
    Priority,
    Quota,
    RateLimitedError,
    RateLimiter,
    RejectedError,
    Retry,
    RetryBudget,
    SieveCache,
    ThrottledError,
    Timeout,
    Vegas,
    current_priority,
    deadline,
    errors,
    events,
    freshness,
    priority,
    service_criticality,
    time_left,
    wait_full_jitter,
)
from resilient.testing import FakeClock, capture_events, describe, no_waiting

T = TypeVar("T")

breaker = CircuitBreaker("rates", window=Calls(100), on=(OSError, lambda exc: "away" in str(exc)))
retry = Retry(on=OSError, wait=wait_full_jitter(), budget=RetryBudget())
timeout = Timeout(timedelta(seconds=5))
fallback = Fallback(0.0)
cache = Cache("rates", ttl=60, key=lambda *args: args)
limiter = RateLimiter("100/minute", burst=200, key=str.upper, max_wait=timedelta(seconds=1))
bulkhead = Bulkhead("rates", Gradient(pressure=Pressure()), max_wait=timedelta(seconds=1), key=str.upper)
throttle = AdaptiveThrottle("rates", on=OSError)
pipeline = Pipeline(fallback, cache, deadline(10), retry, breaker, throttle, limiter, bulkhead, timeout)


# Functions of every shape, under every policy.


@breaker
def plain(currency: str, *, precise: bool = False) -> float:
    return float(len(currency)) if precise else 1.0


@retry
async def coroutine(currency: str) -> float:
    return float(len(currency))


@timeout
def generator(number: int) -> Generator[int, str, bytes]:
    said = yield number
    return said.encode()


@fallback
async def async_generator(number: int) -> AsyncIterator[int]:
    yield number


@cache
def cached(currency: str) -> float:
    return float(len(currency))


@limiter
def limited(currency: str) -> float:
    return float(len(currency))


@limiter
async def limited_stream(number: int) -> AsyncIterator[int]:
    yield number


@bulkhead
def held(currency: str) -> float:
    return float(len(currency))


@bulkhead
async def held_stream(number: int) -> AsyncIterator[int]:
    yield number


@throttle
async def throttled(currency: str) -> float:
    return float(len(currency))


@pipeline
async def piped(currency: str, day: int = 0) -> dict[str, int]:
    return {currency: day}


@deadline(5)
@fallback
@cache
@retry
@breaker
@throttle
@limiter
@bulkhead
@timeout
def stacked(currency: str) -> float:
    return float(len(currency))


@breaker
def generic(value: T) -> list[T]:
    return [value]


async def results() -> None:
    assert_type(plain("USD"), float)
    assert_type(plain("USD", precise=True), float)
    assert_type(await coroutine("USD"), float)
    assert_type(generator(1), Generator[int, str, bytes])
    assert_type(cached("USD"), float)
    assert_type(limited("USD"), float)
    assert_type(limited_stream(1), AsyncIterator[int])
    assert_type(held("USD"), float)
    assert_type(held_stream(1), AsyncIterator[int])
    assert_type(await throttled("USD"), float)
    assert_type(await piped("USD", day=3), dict[str, int])
    assert_type(stacked("USD"), float)
    assert_type(generic(1), list[int])
    assert_type(generic("a"), list[str])
    async for number in async_generator(1):
        assert_type(number, int)


def refused() -> None:
    plain(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain("USD", True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain("USD", precise="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    stacked()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    text: str = stacked("USD")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    plain(text)


# Methods of every kind.


class Rates:
    @breaker
    def method(self, currency: str) -> float:
        return float(len(currency))

    @retry
    async def amethod(self, currency: str) -> float:
        return float(len(currency))

    @classmethod
    @timeout
    def of_class(cls, number: int) -> Rates:
        return cls()

    @staticmethod
    @fallback
    def of_nobody(number: int) -> str:
        return str(number)

    @property
    @cache
    def value(self) -> float:
        return 1.0

    def __call__(self, currency: str) -> float:
        return self.method(currency)


async def methods(rates: Rates) -> None:
    assert_type(rates.method("USD"), float)
    assert_type(await rates.amethod("USD"), float)
    assert_type(Rates.of_class(1), Rates)
    assert_type(Rates.of_nobody(1), str)
    assert_type(rates.value, float)
    assert_type(breaker(rates)("USD"), float)
    assert_type(breaker(rates.method)("USD"), float)
    assert_type(breaker(functools.partial(rates.method, "USD"))(), float)
    rates.method(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Direct calls and blocks.


async def direct() -> None:
    assert_type(breaker.call(plain, "USD", precise=True), float)
    assert_type(await breaker.acall(coroutine, "USD"), float)
    breaker.call(plain, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await breaker.acall(plain, "USD")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with breaker.calling(), deadline(1):
        assert_type(time_left(), float | None)
    async with breaker.calling(), deadline(1):
        pass
    for attempt in retry:
        with attempt:
            plain("USD")
    async for attempt in retry:
        with attempt:
            await coroutine("USD")


async def by_key() -> None:
    async def load() -> bytes:
        return b""

    assert_type(cache.get("USD", lambda: 1.0), float)
    assert_type(await cache.aget("USD", load), bytes)
    cache.put("USD", None)
    cache.enabled = False
    fresh = freshness()
    if fresh is not None:
        assert_type(fresh.age, float)


async def by_permit() -> None:
    decision = limiter.hit("ann", cost=2)
    assert_type(decision, Decision)
    assert_type(decision.allowed, bool)
    assert_type(decision.remaining, int)
    assert_type(decision.retry_after, float)
    assert_type(decision.quota, str)
    assert_type(await limiter.ahit("ann"), Decision)
    assert_type(limiter.peek(), Decision)
    assert_type(await limiter.aacquire(), Decision)
    with limiter.calling("ann") as admitted:
        assert_type(admitted, Decision)
    async with limiter.calling(cost=3) as admitted:
        limiter.settle(admitted, 1)
    await limiter.arefund(decision)
    assert_type(limiter.call(plain, "USD"), float)
    assert_type(await limiter.acall(coroutine, "USD"), float)
    assert_type(limiter.quotas, tuple[Quota, ...])
    assert_type(limiter.quotas[0].window, float)
    assert_type(limiter.stats().rung, str)
    decision.remaining = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    limiter.hit(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def by_slot() -> None:
    with bulkhead.calling("critical", key="ann") as nothing:
        assert_type(nothing, None)
    async with bulkhead.calling(Priority.PROBE, "ann"), throttle.calling():
        pass
    assert_type(bulkhead.call(plain, "USD", precise=True), float)
    assert_type(await bulkhead.acall(coroutine, "USD"), float)
    assert_type(bulkhead.limit, int)
    bulkhead.resize(5)
    bulkhead.resize(Vegas(initial=5))
    stats = bulkhead.stats("ann")
    assert_type(stats.in_use, int)
    if stats.adaptive is not None:
        assert_type(stats.adaptive.limit, float)
        assert_type(stats.adaptive.rtt, float | None)
    bulkhead.call(plain, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bulkhead.calling(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bulkhead.resize(2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bulkhead.limit = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def priority_of_order(order: str) -> Priority | str:
    return "critical" if order else Priority.DEFAULT


async def by_priority() -> None:
    with priority("critical"):
        assert_type(current_priority(), Priority)
    async with priority(Priority.SHEDDABLE):
        pass
    Bulkhead("rates", 5, priority=current_priority, shares={"default": 0.8}, reserve=2)
    Bulkhead("rates", 5, priority=service_criticality({}), order="newest-first")
    Bulkhead("rates", 5, priority=priority_of_order)
    priority(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def sources(first: Callable[[str], float], second: Callable[[str], float]) -> None:
    either = Fallback.chain(first, second)
    assert_type(either("USD"), float)


# What they tell.


def told() -> None:
    assert_type(breaker.stats().failure_ratio, float)
    assert_type(cache.stats().hit_ratio, float)
    assert_type(retry.stats().retries, int)
    with capture_events() as happened:
        plain("USD")
    assert_type(happened.of(events.CircuitOpened)[0].open_for, float)
    events.add_listener(listen)
    breaker.add_listener(listen)
    assert_type(describe(pipeline), list[dict[str, object]])
    clock = FakeClock()
    with no_waiting():
        Retry(on=OSError, clock=clock, sleep=clock.sleep)


def listen(event: events.Event) -> None:
    if isinstance(event, events.RetryScheduled):
        assert_type(event.wait, float)


def caught() -> None:
    try:
        plain("USD")
    except CircuitOpenError as exc:
        assert_type(exc.retry_after, float | None)
        assert_type(exc.last_failure, str | None)
    except RateLimitedError as exc:
        assert_type(exc.decision, Decision | None)
    except BulkheadFullError as exc:
        assert_type(exc.in_use, int | None)
    except ThrottledError as exc:
        assert_type(exc.probability, float | None)
    except RejectedError as exc:
        assert_type(exc.policy, str)
    except errors.CallTimeoutError as exc:
        assert_type(exc.seconds, float | None)
    except pybreaker.CircuitBreakerError:
        pass


# What others bring.


def brought(
    store: cachetools.LRUCache[Any, Any],
    handler: Callable[[Exception], Awaitable[str]],
    steps: Iterator[float],
) -> None:
    Cache("c", ttl=1.0, storage=store)
    Cache("c", ttl=1.0, storage=SieveCache(10, getsizeof=len))
    Retry(
        on=tenacity.retry_if_exception_type(OSError),
        wait=tenacity.wait_fixed(1),
        stop=tenacity.stop_after_delay(9),
    )
    Fallback(handler)
    CircuitBreaker("c", reset_timeout=lambda opened: 2.0**opened, clock=lambda: next(steps))


def bad_arguments() -> None:
    Cache("c")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Cache("c", ttl="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Retry(on="OSError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Timeout()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RateLimiter(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RateLimiter("5/minute", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RateLimiter("5/minute", strategy="leaky")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CircuitBreaker("c", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Bulkhead("c")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Bulkhead("c", "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bulkhead("c", AIMD)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bulkhead("c", 5, order="lifo")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bulkhead("c", 5, priority=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AIMD(10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    AdaptiveThrottle("c", on="OSError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
