"""Every policy in each of its modes, made new for each test, and a look at what a call has left in it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pybreaker
import pytest
from tests.contract.forms import FORMS, STREAMS, Form

from resilient import (
    AIMD,
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    Calls,
    CircuitBreaker,
    Fallback,
    Pipeline,
    RateLimiter,
    Retry,
    Timeout,
    current_priority,
    deadline,
    time_left,
)
from resilient.engine.policy import Policy
from resilient.testing import FakeClock

Test = TypeVar("Test", bound=Callable[..., None])


class UpstreamError(Exception):
    """What the guarded calls in these tests fail with; counted by breakers, retried by retries."""


class UnrelatedError(Exception):
    """An exception that no policy here has anything to do with."""


class HeardByPybreaker(pybreaker.CircuitBreakerListener):
    """A listener that makes a breaker take the path on which every call is announced."""


class Ticking:
    """A clock that moves on a little with each look."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def __call__(self) -> float:
        self._clock.advance(0.02)
        return self._clock()


class Crowding:
    """The clock of a bulkhead that is full whenever a call comes, and has one slot more once it waits."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._bulkhead: Bulkhead | None = None

    def crowd(self, bulkhead: Bulkhead) -> Bulkhead:
        """Keep *bulkhead*, which goes by this clock, full from now on."""
        self._bulkhead = bulkhead
        return bulkhead

    def __call__(self) -> float:
        bulkhead, self._bulkhead = self._bulkhead, None  # resizing asks for the time, too
        if bulkhead is not None:
            stats = bulkhead.stats()
            bulkhead._desk.resize(stats.in_use + stats.waiting)
        self._bulkhead = bulkhead
        return self._clock()


@dataclass(frozen=True)
class Mode:
    """A policy in one of its modes."""

    name: str
    make: Callable[[FakeClock], Policy]
    attempts: int = 1
    """How often it calls for one call that fails with `UpstreamError`."""

    takes_streams: bool = True

    @property
    def loads_in_tasks(self) -> bool:
        """Whether coroutines run in a task of their own, for all who wait: a cache's loads do."""
        return not self.takes_streams


PLENTY = "1000000/second"  # a rate that nothing here uses up


def _waiting_limiter(clock: FakeClock) -> RateLimiter:
    """Return a limiter that has every call wait; time passes meanwhile, and nothing is written down."""
    limiter = RateLimiter("1/second", max_wait=10.0, clock=clock, sleep=clock.advance)
    limiter.hit()
    return limiter


def _waiting_bulkhead(clock: FakeClock) -> Bulkhead:
    """Return a bulkhead that has every call wait for its slot."""
    crowding = Crowding(clock)
    return crowding.crowd(Bulkhead("b", 1, max_wait=10.0, priority="critical", reserve=0, clock=crowding))


def _pipeline(clock: FakeClock) -> Pipeline:
    return Pipeline(
        Fallback("instead", on=KeyError),
        Cache("cache", ttl=60.0, on=KeyError, clock=clock),
        deadline(60.0),
        Retry(on=UpstreamError, attempts=3, sleep=clock.sleep, clock=clock),
        CircuitBreaker("dependency", clock=clock),
        AdaptiveThrottle("dependency", clock=clock),
        RateLimiter(PLENTY, clock=clock),
        Bulkhead("shared", 10, clock=clock),
        Timeout(30.0),
    )


def _stream_pipeline(clock: FakeClock) -> Pipeline:
    pipeline = _pipeline(clock)
    return Pipeline(*(policy for policy in pipeline.policies if policy.kind != "Cache"))


BREAKERS = (
    Mode("breaker", lambda clock: CircuitBreaker("b", clock=clock)),
    Mode("breaker-slow-after", lambda clock: CircuitBreaker("b", slow_after=5.0, clock=clock)),
    Mode("breaker-last-calls", lambda clock: CircuitBreaker("b", window=Calls(20), clock=clock)),
    Mode("breaker-fail-max", lambda clock: CircuitBreaker("b", fail_max=10, clock=clock)),
    Mode("breaker-on-result", lambda clock: CircuitBreaker("b", on_result=lambda _: False, clock=clock)),
    Mode(
        "breaker-listened-to", lambda clock: CircuitBreaker("b", listeners=[HeardByPybreaker()], clock=clock)
    ),
)

LIMITERS = (
    *(
        Mode(
            f"rate-limiter-{strategy}",
            lambda clock, strategy=strategy: RateLimiter(PLENTY, strategy=strategy, clock=clock),
        )
        for strategy in ("token-bucket", "fixed-window", "sliding-window-counter")
    ),
    # It remembers each call of its window, so that is to be over soon.
    Mode(
        "rate-limiter-moving-window",
        lambda clock: RateLimiter("100/second", strategy="moving-window", clock=Ticking(clock)),
    ),
    Mode("rate-limiter-waiting", _waiting_limiter),
)

FULL_BULKHEADS = (
    Mode("bulkhead", lambda clock: Bulkhead("b", 10, clock=clock)),
    Mode("bulkhead-adaptive", lambda clock: Bulkhead("b", AIMD(initial=10), clock=clock)),
    Mode("bulkhead-prioritised", lambda clock: Bulkhead("b", 10, priority=current_priority, clock=clock)),
    Mode("bulkhead-keyed", lambda clock: Bulkhead("b", 10, key=lambda *_, **__: "tenant", clock=clock)),
    Mode("bulkhead-threads", lambda clock: Bulkhead("b", 10, threads=True, clock=clock)),
)
"""Those that refuse a call when they are full."""

BULKHEADS = (*FULL_BULKHEADS, Mode("bulkhead-waiting", _waiting_bulkhead))

THROTTLES = (
    Mode("throttle", lambda clock: AdaptiveThrottle("t", clock=clock)),
    # With k = 1 each call may be one too many; these dice always let it through.
    Mode(
        "throttle-weighing",
        lambda clock: AdaptiveThrottle("t", k=1.0, min_calls=1, clock=clock, random=lambda: 0.99),
    ),
)

MODES = (
    *BREAKERS,
    *THROTTLES,
    *LIMITERS,
    *BULKHEADS,
    Mode(
        "breaker-with-fallback",
        lambda clock: CircuitBreaker("b", on=KeyError, fallback="instead", clock=clock),
    ),
    Mode("retry", lambda clock: Retry(on=UpstreamError, sleep=clock.sleep, clock=clock), attempts=3),
    Mode(
        "retry-in-a-time",
        lambda clock: Retry(on=UpstreamError, sleep=clock.sleep, timeout=60.0, clock=clock),
        attempts=3,
    ),
    Mode("timeout", lambda _: Timeout(30.0)),
    Mode("timeout-in-threads", lambda _: Timeout(30.0, threads=2)),
    Mode("deadline", lambda _: deadline(30.0)),
    Mode("fallback", lambda _: Fallback("instead", on=KeyError)),
    Mode("cache", lambda clock: Cache("c", ttl=60.0, on=KeyError, clock=clock), takes_streams=False),
    Mode("pipeline", _pipeline, attempts=3, takes_streams=False),
    Mode("pipeline-for-streams", _stream_pipeline, attempts=3),
)


def each_mode(modes: tuple[Mode, ...] = MODES) -> pytest.MarkDecorator:
    """Parametrise a test with `mode`."""
    return pytest.mark.parametrize("mode", modes, ids=lambda mode: mode.name)


def takers_of_streams() -> tuple[Mode, ...]:
    """Return the modes that take generators."""
    return tuple(mode for mode in MODES if mode.takes_streams)


def each_case(*kinds: str, modes: tuple[Mode, ...] = MODES) -> Callable[[Test], Test]:
    """Run a test for every pair of a policy (`mode`) and a callable that it takes (`form`).

    A test item for each mode, which goes through the forms: an item for each pair would spend most of a
    minute on setting up. A stream is no value that could be cached; that such pairs are refused has a test
    of its own.
    """
    forms = [form for form in FORMS if not kinds or form.kind in kinds]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def for_each_form(mode: Mode, **fixtures: Any) -> None:
            for form in forms:
                if form.kind not in STREAMS or mode.takes_streams:
                    with _about(form):
                        test(mode=mode, form=form, **fixtures)

        asked = inspect.signature(test)
        parameters = [parameter for name, parameter in asked.parameters.items() if name != "form"]
        for_each_form.__signature__ = asked.replace(parameters=parameters)  # type: ignore[attr-defined]
        return each_mode(modes)(for_each_form)  # type: ignore[return-value]

    return decorate


@contextmanager
def _about(form: Form) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"with a {form.name}")
        raise


def breakers_in(policy: Policy) -> Iterator[CircuitBreaker]:
    """Yield the breakers among the layers of *policy*."""
    return (layer for layer in policy.layers if isinstance(layer, CircuitBreaker))


def open_circuits(policy: Policy) -> None:
    """Open every breaker in *policy* by hand."""
    for breaker in breakers_in(policy):
        breaker.force_open()


def left_behind(policy: Policy) -> dict[str, Any]:
    """Return what calls that have ended still hold: empty where all is well."""
    held = {"deadline": time_left()}
    for layer in policy.layers:
        held.update({f"{layer.kind} {name}": value for name, value in _held_by(layer).items()})
    return {what: value for what, value in held.items() if value}


def _held_by(layer: Policy) -> dict[str, Any]:
    if isinstance(layer, CircuitBreaker):
        return {"probes": dict(layer._core._period.probes)}
    if isinstance(layer, AdaptiveThrottle):
        layer.stats()  # looks
        return {"under way": sum(part.under_way for part in layer._core._parts)}
    if isinstance(layer, Cache):
        return {"flights": dict(layer._core._flights), "refreshes": set(layer._core.at_work)}
    if isinstance(layer, Timeout):
        queue = layer._cutoff_gate._queues.queue
        return {"cut-offs": 0 if queue is None else len(queue.entries), "overdue": layer.stats().abandoned}
    if isinstance(layer, Bulkhead):
        stats = layer.stats()
        return {"slots": stats.in_use, "waiting": stats.waiting, "abandoned": stats.abandoned}
    return {}


def evidence(policy: Policy) -> dict[str, int]:
    """Return what the breakers and retries in *policy* have made of the calls so far."""
    judges = {"AdaptiveThrottle", "CircuitBreaker", "Retry", "Fallback", "Timeout"}
    counted: dict[str, int] = {}
    for layer in policy.layers:
        stats = layer.stats()
        for field in (
            "calls",
            "failures",
            "slow",
            "ignored",
            "retries",
            "exhausted",
            "used",
            "failed",
            "timed_out",
        ):
            if layer.kind in judges and hasattr(stats, field):
                counted[f"{layer.kind} {field}"] = getattr(stats, field)
    return counted
