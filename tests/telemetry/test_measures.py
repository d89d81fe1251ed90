"""What each policy tells of itself: which counters grow by which outcome, and that none ever falls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.contract.forms import COROUTINE, FORMS, PLAIN, STREAMS, Driver
from tests.contract.policies import BREAKERS, MODES, Mode, UnrelatedError, UpstreamError, each_mode
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ConnectionPool,
    Fallback,
    Gradient,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
    current_priority,
)
from resilient.asgi import Maintenance
from resilient.engine.latency import BATCH, Histogram
from resilient.engine.measure import Instrument, Metered
from resilient.errors import RejectedError
from resilient.testing import FakeClock

ENDINGS: tuple[BaseException | None, ...] = (
    None,
    UpstreamError(),
    UnrelatedError(),
    KeyError(),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
)
ONE_OF_EACH_KIND = [
    next(form for form in FORMS if form.kind == kind) for kind in (PLAIN, COROUTINE, *STREAMS)
]


def told(source: Metered) -> dict[str, float]:
    """Return what *source* tells, by name and labels; of a histogram, how many there are."""
    found: dict[str, float] = {}
    for metric, value, labels in source.measures():
        assert len(labels) == len(metric.attributes), metric
        assert isinstance(value, Histogram) is (metric.instrument is Instrument.HISTOGRAM), metric
        key = " ".join((metric.name.removeprefix("resilient."), *labels))
        assert key not in found, key
        found[key] = value.count if isinstance(value, Histogram) else value
    return found


def counted(source: Metered) -> dict[str, float]:
    """Return those of its counters and histograms that are not 0."""
    return {key: value for key, value in _growing(source).items() if value}


def _growing(source: Metered) -> dict[str, float]:
    kinds = {Instrument.COUNTER, Instrument.HISTOGRAM}
    found: dict[str, float] = {}
    for metric, value, labels in source.measures():
        if metric.instrument in kinds:
            number = value.count if isinstance(value, Histogram) else value
            found[" ".join((metric.name.removeprefix("resilient."), *labels))] = number
    return found


class Watched:
    """The clock of a policy; each look at it, in the middle of whatever goes on, is one at the counters."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sources: list[Metered] = []
        self.looks = 0
        self._stood_at: dict[tuple[int, str], float] = {}
        self._looking = False

    def __call__(self) -> float:
        self.look()
        return self.clock()

    @property
    def sleeps(self) -> list[float]:
        return self.clock.sleeps

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def sleep(self, seconds: float) -> None:
        self.look()
        self.clock.sleep(seconds)
        self.look()

    def look(self) -> None:
        """Fail if a counter has fallen."""
        if self._looking or not self.sources:
            return
        self._looking = True  # those that are asked look at their clock, too
        try:
            self.looks += 1
            for number, source in enumerate(self.sources):
                for key, value in _growing(source).items():
                    before = self._stood_at.get((number, key), 0)
                    assert value >= before, f"{source!r}: {key} fell from {before} to {value}"
                    self._stood_at[number, key] = value
        finally:
            self._looking = False


@pytest.fixture(scope="module")
def drive() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@each_mode()
def test_no_counter_ever_falls(mode: Mode, drive: Driver) -> None:
    """Looked at before, within and after calls of all kinds that end in all ways, some of them refused."""
    watched = Watched()
    ending: list[BaseException | None] = [None]

    def body(_value: object) -> str:
        watched.look()
        watched.advance(0.01)
        if ending[0] is not None:
            raise ending[0]
        return "done"

    guarded = []
    for form in ONE_OF_EACH_KIND:
        if mode.takes_streams or form.kind not in STREAMS:
            policy = mode.make(watched)  # type: ignore[arg-type]
            guarded.append((form, form.guard(policy, body)))
            watched.sources += [layer for layer in policy.layers if isinstance(layer, Metered)]
    for round_ in range(8):
        for form, call in guarded:
            for one in ENDINGS:
                if isinstance(one, KeyboardInterrupt) and form.kind == COROUTINE:
                    continue  # would end the loop of the test
                ending[0] = one
                with contextlib.suppress(Exception, KeyboardInterrupt, asyncio.CancelledError):
                    drive(form, call, round_ % 3)
                watched.look()
        watched.advance(13.0)  # open circuits go to half-open, windows end, what is cached is old

    assert watched.looks > 100 or not watched.sources


@each_mode(BREAKERS)
def test_no_counter_of_a_breaker_falls_whatever_is_set_by_hand(mode: Mode) -> None:
    """Forced open and closed, only observing, reset, and resumed."""
    watched = Watched()
    breaker = mode.make(watched)  # type: ignore[arg-type]
    assert isinstance(breaker, CircuitBreaker)
    watched.sources = [breaker]
    by_hand: tuple[Callable[[], object], ...] = (
        breaker.force_open,
        breaker.force_closed,
        breaker.observe_only,
        breaker.resume,
        breaker.open,
        breaker.half_open,
        breaker.close,
        lambda: breaker.force_open(for_=5.0),
        lambda: breaker.observe_only(for_=5.0),
    )

    for number in range(60):
        by_hand[number * 7 % len(by_hand)]()
        for turn in range(6):
            with contextlib.suppress(UpstreamError, RejectedError), breaker.calling():
                watched.advance(1.0)
                if turn % 3 != number % 3:
                    raise UpstreamError
            watched.look()
        status_of(breaker)

    assert counted(breaker).keys() >= {
        "calls success", "calls failure", "rejections detected", "rejections enforced",
        "circuit_breaker.transitions open",
    }  # fmt: skip


def status_of(source: Metered) -> dict[str, str | None]:
    """Return the state that each status says it is in; fail unless it is exactly one."""
    states: dict[str, list[str]] = {}
    for metric, value, labels in source.measures():
        if metric.name.endswith((".status", ".override")):
            states.setdefault(metric.name, [])
            assert value in {0, 1}
            if value:
                states[metric.name].append(labels[-1])
    for name, current in states.items():
        assert len(current) == 1 or (not current and name.endswith(".override")), (name, current)
    return {name.removeprefix("resilient."): (current or [None])[0] for name, current in states.items()}


def fail(error: type[BaseException] = UpstreamError) -> None:
    raise error


def attempt(policy: Any, *errors: type[BaseException] | None) -> None:
    """Make a call that ends in each of *errors*, one after the other."""
    for error in errors:
        with contextlib.suppress(BaseException):
            policy.call(fail if error is not None else int, *([error] if error is not None else []))


class TestBreaker:
    def test_each_outcome_is_counted_once(self):
        """Good, failed, ignored, abandoned and refused calls are told apart, and each is in one place."""
        clock = FakeClock()
        breaker = CircuitBreaker("b", fail_max=2, exclude=KeyError, clock=clock)
        attempt(
            breaker, None, None, KeyError, KeyboardInterrupt, UpstreamError, UpstreamError, None, None, None
        )

        assert counted(breaker) == {
            "calls success": 2,
            "calls failure": 2,
            "calls ignored": 1,
            "calls abandoned": 1,
            "calls rejected": 3,
            "rejections enforced": 3,
            "circuit_breaker.transitions open": 1,
            "call.duration success": 2,
            "call.duration failure": 2,
        }

    def test_refusals_that_are_only_observed_are_detected_and_not_enforced(self):
        """So that one can see what a breaker would do before it does."""
        breaker = CircuitBreaker("b", fail_max=1, clock=FakeClock())
        breaker.observe_only()
        attempt(breaker, UpstreamError, None, None, UpstreamError)

        found = told(breaker)
        assert (found["rejections detected"], found["rejections enforced"]) == (3, 0)
        assert found["calls rejected"] == 0
        assert status_of(breaker) == {
            "circuit_breaker.status": "open", "circuit_breaker.override": "observe_only"
        }  # fmt: skip

    def test_state_and_transitions(self):
        """One state at a time, and each change of it counted."""
        clock = FakeClock()
        breaker = CircuitBreaker("b", fail_max=1, reset_timeout=5.0, clock=clock)
        seen = [status_of(breaker)["circuit_breaker.status"]]
        attempt(breaker, UpstreamError)
        seen.append(status_of(breaker)["circuit_breaker.status"])
        clock.advance(5.0)
        with breaker.calling():
            seen.append(status_of(breaker)["circuit_breaker.status"])
        seen.append(status_of(breaker)["circuit_breaker.status"])

        assert seen == ["closed", "open", "half_open", "closed"]
        found = told(breaker)
        for state in ("open", "half_open", "closed"):
            assert found[f"circuit_breaker.transitions {state}"] == 1

    @pytest.mark.parametrize("mode", ["forced_open", "forced_closed", "observe_only"])
    def test_how_it_is_set_by_hand(self, mode: str) -> None:
        """None of the three while nobody has, and again afterwards."""
        breaker = CircuitBreaker("b")
        assert status_of(breaker)["circuit_breaker.override"] is None
        {"forced_open": breaker.force_open, "forced_closed": breaker.force_closed}.get(
            mode, breaker.observe_only
        )()
        assert status_of(breaker)["circuit_breaker.override"] == mode
        breaker.resume()
        assert status_of(breaker)["circuit_breaker.override"] is None

    def test_durations_are_exact_on_a_fake_clock(self):
        """Of calls that were counted: good ones and failed ones."""
        clock = FakeClock()
        breaker = CircuitBreaker("b", slow_after=1.0, clock=clock)
        for seconds in (0.1, 0.2, 0.3, 3.0):
            breaker.call(clock.advance, seconds)
        with contextlib.suppress(UpstreamError), breaker.calling():
            clock.advance(0.4)
            raise UpstreamError

        latency = breaker.stats().latency
        assert (latency.count, latency.mean) == (5, pytest.approx(0.8))
        assert (latency.histogram.shortest, latency.histogram.longest) == pytest.approx((0.1, 3.0))
        assert latency.p50 == pytest.approx(0.3, rel=0.09)
        assert counted(breaker)["circuit_breaker.slow_calls"] == 1

    def test_times_a_sample_of_very_many_calls(self):
        """And goes on timing when they are few again."""
        clock = FakeClock()
        breaker = CircuitBreaker("b", clock=clock)

        @breaker
        def work(seconds: float) -> None:
            clock.advance(seconds)

        for _ in range(20_000):
            work(0.00005)  # a second's worth
        first = breaker.stats().latency.count
        clock.advance(1.0)
        for _ in range(2 * BATCH):
            work(0.001)

        assert BATCH <= first <= 2_750
        assert breaker.stats().latency.count - first >= 2 * BATCH - 1
        assert counted(breaker)["calls success"] == 20_000 + 2 * BATCH

    async def test_coroutines_are_timed_too(self):
        """While others run."""
        clock = FakeClock()
        breaker = CircuitBreaker("b", clock=clock)

        async def work() -> None:
            await asyncio.sleep(0)
            clock.advance(0.25)

        await breaker.acall(work)

        assert breaker.stats().latency.histogram.total == pytest.approx(0.25)


class TestThrottle:
    def test_each_outcome_is_counted_once(self):
        """What it refuses it does refuse."""
        throttle = AdaptiveThrottle("t", k=1.0, min_calls=1, clock=FakeClock(), random=lambda: 0.0)
        attempt(throttle, None, UpstreamError, UpstreamError, None, None)

        found = told(throttle)
        assert found["calls success"] + found["calls failure"] + found["calls rejected"] == 5
        assert found["calls rejected"] == found["rejections enforced"] > 0
        assert 0.0 < found["adaptive_throttle.probability"] < 1.0


class TestRetry:
    def test_attempts_and_ends(self):
        """First attempts and further ones, and what came of the calls."""
        clock = FakeClock()
        failed = UpstreamError
        results = iter([failed, None, failed, failed, failed, failed, failed, None, None])
        retry = Retry(on=UpstreamError, attempts=3, wait=0.5, budget=None, clock=clock, sleep=clock.sleep)

        def work() -> None:
            error = next(results)
            if error:
                raise error

        for _ in range(4):
            with contextlib.suppress(UpstreamError):
                retry.call(work)

        assert counted(retry) == {
            "retry.attempts original": 4,
            "retry.attempts retry": 5,
            "retry.calls recovered": 2,
            "retry.calls exhausted": 1,
            "wait.duration": 5,
        }
        assert told(retry)["retry.amplification"] == 2.25
        assert retry.stats().waited.histogram.total == pytest.approx(2.5)
        assert retry.stats().waited.p99 == pytest.approx(0.5, rel=0.1)

    def test_budget(self):
        """What it refuses is counted by the budget and by the policy."""
        clock = FakeClock()
        budget = RetryBudget(ratio=0.0, min_per_second=0.2, window=10.0, clock=clock)
        retry = Retry(on=UpstreamError, attempts=5, budget=budget, clock=clock, sleep=lambda _: None)
        assert told(budget) == {"retry_budget.balance": 2.0, "retry_budget.denied": 0}
        attempt(retry, UpstreamError, UpstreamError)

        assert counted(retry)["retry.calls over_budget"] == 2
        assert told(budget) == {"retry_budget.balance": 0.0, "retry_budget.denied": 2}

    def test_wait_that_is_interrupted_is_no_attempt(self):
        """And no time that was waited."""

        def interrupt(_seconds: float) -> None:
            raise KeyboardInterrupt

        retry = Retry(on=UpstreamError, sleep=interrupt)
        with pytest.raises(KeyboardInterrupt):
            retry.call(fail)

        assert counted(retry) == {"retry.attempts original": 1}


class TestTimeout:
    def test_function(self):
        """Calls in time are timed, those that come too late are refused."""
        clock = FakeClock()
        timeout = Timeout(5.0, clock=clock)
        timeout.call(clock.advance, 2.0)
        timeout.call(clock.advance, 3.0)

        def come_too_late() -> None:
            clock.advance(2.0)
            timeout.call(int)

        with pytest.raises(RejectedError):
            Timeout(1.0, clock=clock).call(come_too_late)

        assert counted(timeout) == {
            "calls admitted": 2,
            "calls rejected": 1,
            "rejections enforced": 1,
            "call.duration success": 2,
        }
        latency = timeout.stats().latency
        assert (latency.count, latency.mean) == (2, pytest.approx(2.5))

    async def test_coroutine_that_is_cut_off(self):
        """It took as long as it was given."""
        timeout = Timeout(0.02)
        await timeout.acall(asyncio.sleep, 0)
        with pytest.raises(TimeoutError):
            await timeout.acall(asyncio.sleep, 30)

        assert counted(timeout) == {
            "calls admitted": 2,
            "call.duration success": 1,
            "call.duration failure": 1,
            "timeout.overruns": 1,
        }
        assert timeout.stats().latency.histogram.longest == 0.02

    def test_thread_that_goes_on(self):
        """Abandoned while it works, and an overrun for ever."""
        timeout, go_on = Timeout(0.02, threads=1), threading.Event()
        try:
            with pytest.raises(TimeoutError):
                timeout.call(go_on.wait)
            assert told(timeout)["timeout.abandoned"] == 1
        finally:
            go_on.set()
        wait_until(lambda: told(timeout)["timeout.abandoned"] == 0, "the thread to end")
        timeout.call(int)

        assert counted(timeout) == {
            "calls admitted": 2,
            "call.duration success": 1,
            "call.duration failure": 1,
            "timeout.overruns": 1,
        }


class TestFallback:
    def test_uses_and_failures(self):
        """What it answered, and what it could not."""
        fallback = Fallback(lambda exc, *_: 1 / 0 if "now" in str(exc) else "instead", on=UpstreamError)

        def work(error: Exception | None) -> None:
            if error:
                raise error

        for error in (None, UpstreamError("then"), UpstreamError("now"), KeyError()):
            with contextlib.suppress(Exception):
                fallback.call(work, error)

        assert counted(fallback) == {"calls fallback": 1, "calls failure": 1}


class TestRateLimiter:
    def test_decisions_and_waits(self):
        """Allowed, refused, and how long those waited that did."""
        clock = FakeClock()
        limiter = RateLimiter("1/second", max_wait=2.0, clock=clock, sleep=clock.sleep)
        for _ in range(3):
            limiter.acquire("key")
        assert counted(limiter) == {"calls admitted": 3, "wait.duration": 2}
        waited = limiter.stats().waited
        assert (waited.count, waited.histogram.total) == (2, pytest.approx(sum(clock.sleeps)))
        impatient = RateLimiter("1/second", clock=clock)
        assert [bool(impatient.hit(key)) for key in "aabb"] == [True, False, True, False]

        assert counted(impatient) == {
            "calls admitted": 2, "calls rejected": 2, "rejections enforced": 2
        }  # fmt: skip
        assert told(impatient)["rate_limiter.key.count"] == 2
        assert "rejections detected" not in told(impatient)  # it enforces all that it detects
        assert status_of(impatient) == {}  # there is no ladder in one process

    def test_refund_lowers_no_counter(self):
        """The call was allowed, whatever became of it."""
        limiter = RateLimiter("1/second", clock=FakeClock())
        limiter.refund(limiter.hit())
        limiter.settle(limiter.hit(), 5)

        assert counted(limiter) == {"calls admitted": 2}

    def test_evicted_keys_take_no_counts_with_them(self):
        """Nor does a look that takes nothing count as a call."""
        limiter = RateLimiter("1/second", max_keys=2, clock=(clock := FakeClock()))
        for number in range(5):
            limiter.hit(str(number))
            limiter.peek(str(number))
            clock.advance(2.0)

        assert counted(limiter) == {"calls admitted": 5, "rate_limiter.evictions": 3}
        assert told(limiter)["rate_limiter.key.count"] == 2


class TestBulkhead:
    def test_slots_queue_and_refusals(self):
        """How full it is, and whom it had to refuse."""
        bulkhead = Bulkhead("b", 1, priority="critical", reserve=0)
        with bulkhead.calling():
            assert {"bulkhead.active", "bulkhead.limit"} <= {
                key for key, value in told(bulkhead).items() if value == 1
            }
            attempt(bulkhead, None, None)
        attempt(bulkhead, None)

        found = told(bulkhead)
        assert counted(bulkhead) == {
            "calls admitted": 2, "calls rejected": 2, "rejections enforced": 2
        }  # fmt: skip
        assert (found["bulkhead.active"], found["bulkhead.queued"]) == (0, 0)

    async def test_waits_are_exact(self):
        """Of those that had to wait, in vain or not."""
        clock = FakeClock()
        bulkhead = Bulkhead("b", 1, max_wait=60.0, priority="critical", reserve=0, clock=clock)

        async def wait() -> None:
            async with bulkhead.calling():
                pass

        async with bulkhead.calling():
            tasks = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0)
            assert told(bulkhead)["bulkhead.queued"] == 3
            clock.advance(2.0)
            tasks[0].cancel()
            await asyncio.wait(tasks[:1])
            clock.advance(1.0)
        await asyncio.wait(tasks)

        assert counted(bulkhead) == {"calls admitted": 3, "calls gave_up": 1, "wait.duration": 3}
        waited = bulkhead.stats().waited
        assert (waited.histogram.total, waited.histogram.longest) == (8.0, 3.0)

    async def test_one_that_has_to_make_room_is_refused_too(self):
        """It waited, and its place in the queue went to a more important call."""
        bulkhead = Bulkhead("b", 1, max_wait=60.0, max_queue=1, priority=current_priority, reserve=0)

        async def wait(level: str) -> None:
            async with bulkhead.calling(priority=level):
                pass

        async with bulkhead.calling(priority="critical"):
            tasks = [asyncio.create_task(wait("sheddable"))]
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(wait("critical")))
            await asyncio.wait(tasks[:1])
        await asyncio.wait(tasks)

        found = counted(bulkhead)
        assert bulkhead.stats().put_out == 1
        assert (found["calls rejected"], found["rejections enforced"]) == (1, 1)
        assert isinstance(tasks[0].exception(), RejectedError)

    def test_adaptive_limit_tells_where_it_stands(self):
        """Once it has seen anything."""
        bulkhead = Bulkhead("b", Gradient(initial=10))

        assert told(bulkhead)["bulkhead.limit"] == 10
        assert told(bulkhead)["bulkhead.pressure"] == 1.0
        assert "bulkhead.rtt" not in told(bulkhead)


class TestCache:
    def test_answers_loads_and_ages(self):
        """Fresh, past its time, missed, remembered failures; and how long loads took."""
        clock = FakeClock()
        cache = Cache(
            "c", ttl=10.0, stale_if_error=100.0, negative_ttl=5.0, on=UpstreamError, clock=clock, jitter=0.0
        )
        fails = False

        @cache
        def load(key: str) -> str:
            clock.advance(0.5)
            if fails:
                raise UpstreamError
            return key

        for _ in range(4):
            load("a")
        clock.advance(20.0)
        fails = True
        load("a")
        with pytest.raises(UpstreamError):
            load("b")
        with pytest.raises(UpstreamError):
            load("b")

        found = counted(cache)
        assert found["cache.requests hit"] == 3
        assert found["cache.requests miss"] == 3
        assert found["cache.requests negative"] == 1
        assert found["cache.rescued"] == 1
        assert (found["cache.loads"], found["cache.load_failures"]) == (3, 2)
        assert (found["cache.load.duration success"], found["cache.load.duration failure"]) == (1, 2)
        assert cache.stats().latency.histogram.total == pytest.approx(1.5)
        assert told(cache)["cache.stale.age"] == pytest.approx(20.5)
        assert told(cache)["cache.hit_ratio"] == pytest.approx(cache.stats().hit_ratio)
        clock.advance(61.0)
        assert told(cache)["cache.stale.age"] == 0.0


class TestMaintenance:
    def test_switch_and_refusals(self):
        """Whether it is on, and how many came in vain."""
        maintenance = Maintenance(name="shop")
        request: Any = SimpleNamespace(path="/", client=None)
        maintenance.check(request)
        assert told(maintenance)["maintenance.on"] == 0
        maintenance.on()
        with pytest.raises(RejectedError):
            maintenance.check(request)

        assert told(maintenance)["maintenance.on"] == 1
        assert counted(maintenance) == {
            "calls rejected": 1, "rejections enforced": 1
        }  # fmt: skip


class TestPool:
    def test_checkouts_refusals_and_the_server(self):
        """What was lent, what could not be, and whether the server is there."""
        there = True

        def connect() -> object:
            if not there:
                raise OSError("no")
            return object()

        with ConnectionPool(connect, name="p", max_size=1, timeout=0.02, max_waiting=0) as pool:
            with pool.connection():
                assert told(pool)["pool.available"] == 1
                with contextlib.suppress(RejectedError), pool.connection():
                    pass
            found = counted(pool)
            assert (found["pool.checkouts"], found["pool.refused"]) == (1, 1)
        there = False
        with ConnectionPool(connect, name="p", timeout=0.02) as pool:
            with contextlib.suppress(RejectedError), pool.connection():
                pass
            wait_until(lambda: "pool.connect_failures" in counted(pool), "the pool to notice")


def test_every_mode_that_counts_is_metered() -> None:
    """A policy without metrics would be one nobody sees."""
    layers = [layer for mode in MODES for layer in mode.make(FakeClock()).layers]

    assert {layer.kind for layer in layers if not isinstance(layer, Metered)} == {"deadline"}
    assert all(isinstance(layer, Metered) for layer in (RetryBudget(),))
