"""What telemetry costs: calls of a stack with it on, off and counted by hand, and a collection of many."""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from time import monotonic, process_time
from typing import Any, Self

from bench.harness import WARM_UP_CALLS, WrongBehaviourError, own_loop
from bench.subjects.bulkheads import SLOTS
from bench.subjects.model import ARGUMENT, Subject, Work, make_work
from bench.subjects.timeouts import LIMIT

PACKAGE = "opentelemetry-sdk"

SECONDS = 1.0
"""Of processor time that a slice takes. In the middle of each the reader collects, so once in a second."""

CALLS = 200
"""Calls after which one looks how late it is."""

EACH = 250
"""How many there are of each kind of policy when many are collected."""

TRAFFIC = 10
"""Calls that each of them has between two collections."""

STACK = "telemetry, breaker + retry + bulkhead"
ASYNC_STACK = "async telemetry, all policies"
COLLECTING = f"collecting {4 * EACH:,} policies"

READY_MADE = "ready-made observations"
RECORDED = "ready-made observations, and a record for each histogram"


class Way(enum.StrEnum):
    """How what happens in a stack gets to OpenTelemetry."""

    ON = "resilient"
    OFF = "telemetry off"
    BY_HAND = "telemetry off, counter.add + histogram.record"


@dataclass(frozen=True, slots=True)
class Stack:
    """Policies around one call.

    Args:
        title: The family.
        build: Takes the function to guard and a name for the policies, returns it guarded.
        awaited: The function is a coroutine function.
    """

    title: str
    build: Callable[[Work, str], Work]
    awaited: bool

    @property
    def ids(self) -> frozenset[str]:
        """Return `family/name` of each of its figures, by which targets and `--only` speak of them."""
        return frozenset(f"{self.title}/{way}" for way in Way)


def stack(work: Work, name: str) -> Work:
    """Stack retry over breaker over bulkhead."""
    from resilient import Bulkhead, CircuitBreaker, Pipeline, Retry

    policies = (Retry(on=Exception, name=name), CircuitBreaker(name), Bulkhead(name, SLOTS))
    guarded: Work = Pipeline(*policies)(work)
    return guarded


def stack_async(work: Work, name: str) -> Work:
    """Stack all there is but a cache, which would answer by itself."""
    from resilient import (
        AdaptiveThrottle,
        Bulkhead,
        CircuitBreaker,
        Fallback,
        Pipeline,
        RateLimiter,
        Retry,
        Timeout,
        deadline,
    )

    policies = (
        Fallback(None, name=name),
        deadline(2 * LIMIT, name=name),
        Retry(on=Exception, name=name),
        CircuitBreaker(name),
        AdaptiveThrottle(name),
        RateLimiter("10000000/second", name=name),
        Bulkhead(name, SLOTS),
        Timeout(LIMIT, name=name),
    )
    guarded: Work = Pipeline(*policies)(work)
    return guarded


STACKS: tuple[Stack, ...] = (
    Stack(STACK, stack, awaited=False),
    Stack(ASYNC_STACK, stack_async, awaited=True),
)

COLLECTED = frozenset(f"{COLLECTING}/{name}" for name in (Way.ON, READY_MADE, RECORDED))


# -- a stack and its ways --------------------------------------------------------------------------------


def measure(
    chosen: Sequence[Stack], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[Stack, Exception]]:
    """Return nanoseconds per call, by `family/name` and round, and what went wrong with the other stacks.

    It is the same function that is called in each way, in turns; what differs is who listens.

    Args:
        chosen: The stacks.
        rounds: Slices of each way, >= 1.
        seconds: Of processor time that a slice takes, > 0.
    """
    samples: dict[str, list[float]] = {}
    failed: dict[Stack, Exception] = {}
    for one in chosen:
        try:
            with _alone(), _Played(one) as played:
                samples |= {
                    f"{one.title}/{way}": taken for way, taken in played.play(rounds, seconds).items()
                }
        except Exception as error:
            failed[one] = error
    return samples, failed


class _Played:
    """A stack that is called, one way after another."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._name = f"bench of {stack.title}"
        self._runner = asyncio.Runner()
        self._provider, self._reader = _sdk()
        self._own_provider, self._own_reader = _sdk()
        guarded = stack.build(make_work(awaited=stack.awaited, fails=False), self._name)
        by_hand = self._counting(guarded)
        self._calls = {
            Way.ON: _Called(guarded, stack, self._reader),
            Way.OFF: _Called(guarded, stack, None),
            Way.BY_HAND: _Called(by_hand, stack, self._own_reader),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._provider.shutdown()
        self._own_provider.shutdown()
        self._runner.close()

    def play(self, rounds: int, seconds: float) -> dict[Way, list[float]]:
        """Return nanoseconds per call and round.

        Raises:
            WrongBehaviourError: If a call does not return what it should, or was not counted.
        """
        taken: dict[Way, list[float]] = {way: [] for way in Way}
        for way in Way:
            self._slice(way, 0.0)
        self._verify()
        for number in range(rounds):
            for way in list(Way) if number % 2 == 0 else reversed(Way):
                taken[way].append(self._slice(way, seconds))
        self._verify()
        return taken

    def _slice(self, way: Way, seconds: float) -> float:
        with _heard(self._provider if way is Way.ON else None):
            gc.collect()
            return self._runner.run(self._calls[way].slice(seconds))

    def _counting(self, guarded: Work) -> Work:
        meter = self._own_provider.get_meter("bench")
        add = meter.create_counter("calls").add
        record = meter.create_histogram("duration", unit="s").record
        attributes = {"kind": "circuit_breaker", "name": self._name, "outcome": "success"}

        def counting(x: int) -> Any:
            started = monotonic()
            result = guarded(x)
            record(monotonic() - started, attributes)
            add(1, attributes)
            return result

        async def counting_async(x: int) -> Any:
            started = monotonic()
            result = await guarded(x)
            record(monotonic() - started, attributes)
            add(1, attributes)
            return result

        return counting_async if self._stack.awaited else counting

    def _verify(self) -> None:
        """Check that who listens has heard of each call, and of those of the other ways where it should."""
        by_hand = self._calls[Way.BY_HAND].called
        _expect(by_hand, _told(self._own_reader, "calls", {}))
        ours = {
            "resilient.policy.kind": "circuit_breaker",
            "resilient.policy.name": self._name,
            "resilient.outcome": "success",
        }
        _expect(0, _told(self._reader, "resilient.calls", ours))
        with _heard(self._provider):
            every = sum(one.called for one in self._calls.values())
            _expect(every, _told(self._reader, "resilient.calls", ours))


@dataclass(slots=True)
class _Called:
    """One way of calling a stack.

    Args:
        call: The guarded function.
        stack: What it is guarded by.
        reader: Collects in the middle of each slice; None: nobody does.
        called: How often it was called so far.
    """

    call: Work
    stack: Stack
    reader: Any
    called: int = 0
    _loop: Callable[[Work, int], Any] = field(init=False)

    def __post_init__(self) -> None:
        awaited = self.stack.awaited
        self._loop = own_loop(Subject(self.stack.title, "", lambda work: work, awaited=awaited))

    async def slice(self, seconds: float) -> float:
        """Call for so many *seconds* of processor time; return nanoseconds per call, of all threads."""
        await self._check()
        due, done = Event(), Event()
        thread = Thread(target=self._collect, args=(due, done))
        thread.start()
        calls, started = 0, process_time()
        while (spent := process_time() - started) < seconds or not done.is_set():
            if spent >= seconds / 2:
                due.set()
            ran = self._loop(self.call, CALLS)
            if self.stack.awaited:
                await ran
            calls += CALLS
        took = process_time() - started
        thread.join()
        self.called += calls
        return took / calls * 1e9

    def _collect(self, due: Event, done: Event) -> None:
        due.wait()
        try:
            if self.reader is not None:
                self.reader.collect()
        finally:
            done.set()

    async def _check(self) -> None:
        for _ in range(WARM_UP_CALLS):
            result = self.call(ARGUMENT)
            result = await result if self.stack.awaited else result
            if result != ARGUMENT:
                raise WrongBehaviourError(f"a call gave {result!r}")
        self.called += WARM_UP_CALLS


# -- collecting ------------------------------------------------------------------------------------------


def measure_collecting(rounds: int) -> dict[str, list[float]]:
    """Return nanoseconds of processor time per collection, by `family/name` and round.

    Raises:
        WrongBehaviourError: If what is compared with ours has not as many points.
    """
    with _alone():
        return _measure_collecting(rounds)


def _measure_collecting(rounds: int) -> dict[str, list[float]]:
    from resilient import Bulkhead, CircuitBreaker, Retry, RetryBudget, Timeout

    guarded: list[Callable[[], object]] = []
    for number in range(EACH):
        name = f"{COLLECTING} {number}"
        retry = Retry(on=Exception, name=name, budget=RetryBudget(name=name))
        policies = (CircuitBreaker(name), retry, Bulkhead(name, SLOTS), Timeout(LIMIT, name=name))
        guarded.extend(policy(_nothing) for policy in policies)
    provider, reader = _sdk()
    bare_provider, bare_reader = _sdk()
    try:
        with _heard(provider):
            _make_calls(guarded)
            records = _copied(reader.get_metrics_data(), bare_provider)
            samples: dict[str, list[float]] = {name: [] for name in sorted(COLLECTED)}
            for number in range(-1, rounds):
                _make_calls(guarded)
                took = _take_turns(reader, bare_reader, records, backwards=number % 2 == 1)
                for name in samples if number >= 0 else ():
                    samples[name].append(took[name] * 1e9)
            _expect(_count_points(reader), _count_points(bare_reader))
    finally:
        provider.shutdown()
        bare_provider.shutdown()
    return samples


def _nothing() -> None: ...


def _make_calls(guarded: Sequence[Callable[[], object]]) -> None:
    for call in guarded:
        for _ in range(TRAFFIC):
            call()


def _take_turns(
    reader: Any, bare_reader: Any, records: Sequence[Callable[[], None]], *, backwards: bool
) -> dict[str, float]:
    """Return the seconds that a collection of ours took, and those of the SDK for as many points."""
    took: dict[str, float] = {}

    def ours() -> None:
        took[f"{COLLECTING}/{Way.ON}"] = _time(reader.collect)

    def bare() -> None:
        recording = _time(lambda: [record() for record in records])
        took[f"{COLLECTING}/{READY_MADE}"] = collecting = _time(bare_reader.collect)
        took[f"{COLLECTING}/{RECORDED}"] = recording + collecting

    for turn in (bare, ours) if backwards else (ours, bare):
        turn()
    return took


def _time(step: Callable[[], object]) -> float:
    gc.collect()
    started = process_time()
    step()
    return process_time() - started


def _copied(data: Any, provider: Any) -> list[Callable[[], None]]:
    """Have *provider* tell what is in *data*, ready made; return what records a value in each histogram."""
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics.export import Histogram, Sum

    meter = provider.get_meter("bench")
    records: list[Callable[[], None]] = []
    for metric in _metrics(data):
        points = metric.data.data_points
        if isinstance(metric.data, Histogram):
            bounds = points[0].explicit_bounds
            histogram = meter.create_histogram(metric.name, explicit_bucket_boundaries_advisory=bounds)
            records += [_recording(histogram, dict(point.attributes)) for point in points]
            continue
        if not isinstance(metric.data, Sum):
            make = meter.create_observable_gauge
        elif metric.data.is_monotonic:
            make = meter.create_observable_counter
        else:
            make = meter.create_observable_up_down_counter
        ready = [Observation(point.value, dict(point.attributes)) for point in points]
        make(metric.name, [lambda _options, ready=ready: ready])
    return records


def _recording(histogram: Any, attributes: dict[str, Any]) -> Callable[[], None]:
    return lambda: histogram.record(LIMIT, attributes)


# -- the SDK ---------------------------------------------------------------------------------------------


def _sdk() -> tuple[Any, Any]:
    """Return a meter provider and its reader."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    return MeterProvider([reader]), reader


@contextmanager
def _alone() -> Iterator[None]:
    """Have nothing told of what others left behind: some of it would die half-way, and its points too."""
    from resilient import telemetry
    from resilient.engine.living import all_living

    gc.collect()
    others = [source for place in all_living() if (source := place()) is not None]
    telemetry.exclude(*others)
    try:
        yield
    finally:
        telemetry.include(*others)


@contextmanager
def _heard(provider: Any) -> Iterator[None]:
    """Have *provider* told of all policies in the meantime; None: nobody."""
    from resilient import telemetry

    if provider is not None:
        telemetry.instrument(meter_provider=provider)
    try:
        yield
    finally:
        telemetry.uninstrument()


def _metrics(data: Any) -> list[Any]:
    if data is None:
        return []
    return [
        metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def _count_points(reader: Any) -> int:
    return sum(len(metric.data.data_points) for metric in _metrics(reader.get_metrics_data()))


def _told(reader: Any, name: str, attributes: dict[str, str]) -> int:
    """Return what a collection says of the series of metric *name* that have these *attributes*, together."""
    return sum(
        point.value
        for metric in _metrics(reader.get_metrics_data())
        if metric.name == name
        for point in metric.data.data_points
        if attributes.items() <= dict(point.attributes).items()
    )


def _expect(expected: int, found: int) -> None:
    if expected != found:
        raise WrongBehaviourError(f"{found} were told of, not {expected}")
