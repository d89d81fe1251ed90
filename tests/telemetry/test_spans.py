"""What is noted on spans: facts of a call on its own, on that of a request how often it was sent before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from resilient import Cache, CircuitBreaker, Fallback, Retry, RetryBudget, Timeout, events
from resilient.events import Announcer, Event
from resilient.telemetry.spans import RESEND_COUNT, Annotator, anote_resend, note_resend
from resilient.testing import FakeClock


class Spans:
    """A tracer, and what it has traced."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")

    @property
    def ended(self) -> list[ReadableSpan]:
        """Return the spans that have ended, in that order."""
        return [*self.exporter.get_finished_spans()]

    def facts(self, name: str) -> dict[str, Any]:
        """Return the attributes of the span called *name*."""
        (found,) = (span for span in self.ended if span.name == name)
        return dict(found.attributes or {})


@pytest.fixture
def spans() -> Spans:
    """A tracer of the test's own."""
    return Spans()


@pytest.fixture(autouse=True)
def annotator() -> Generator[Annotator]:
    """One that hears every policy."""
    annotator = Annotator()
    annotator.start()
    yield annotator
    annotator.stop()


def fail(*_args: object) -> Any:
    raise LookupError


def test_policies_leave_their_facts_on_the_span_of_the_call(spans: Spans) -> None:
    """What happened to it, by kind of policy."""
    release = threading.Event()
    work = CircuitBreaker("payments", fail_max=3)(fail)
    call = Fallback("instead")(Retry(on=LookupError, attempts=3, wait=0.0, name="thrice")(work))

    with spans.tracer.start_as_current_span("call"):
        assert call() == "instead"
        with pytest.raises(TimeoutError):
            Timeout(0.01, threads=1, name="slow").call(release.wait, 10.0)
    release.set()
    with spans.tracer.start_as_current_span("good"):
        Retry(on=LookupError).call(int)

    assert spans.facts("call") == {
        "resilient.circuit_breaker.name": "payments",
        "resilient.circuit_breaker.state": "open",
        "resilient.retry.name": "thrice",
        "resilient.retry.attempts": 3,
        "resilient.retry.exhausted": True,
        "resilient.fallback.name": "fallback",
        "resilient.fallback.used": True,
        "resilient.timeout.name": "slow",
        "resilient.timeout.limit": 0.01,
    }
    assert spans.facts("good") == {}


def test_answer_that_is_not_fresh_is_on_the_span(spans: Spans) -> None:
    """With its age."""
    clock, good = FakeClock(), [True]
    cache = Cache("rates", ttl=1.0, stale_if_error=60.0, clock=clock)

    @cache
    def rate() -> float:
        return 1.0 if good else fail()

    rate()
    good.clear()
    clock.advance(3.0)
    with spans.tracer.start_as_current_span("call"):
        assert rate() == 1.0

    assert spans.facts("call") == {
        "resilient.cache.name": "rates",
        "resilient.cache.stale": True,
        "resilient.cache.age": 3.0,
    }


def test_retry_that_recovers_says_how_many_attempts_it_took(spans: Spans) -> None:
    """With the last one; and a budget that is spent says so."""
    failures = [LookupError(), LookupError()]

    @Retry(on=LookupError, attempts=3, wait=0.0, name="r")
    def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    with spans.tracer.start_as_current_span("call"):
        assert call() == "done"
    spent = Retry(on=LookupError, name="s", budget=RetryBudget(0.0, min_per_second=0.0))
    with spans.tracer.start_as_current_span("spent"), pytest.raises(LookupError):
        spent.call(fail)

    assert spans.facts("call") == {"resilient.retry.name": "r", "resilient.retry.attempts": 3}
    assert spans.facts("spent") == {
        "resilient.retry.name": "s",
        "resilient.retry.attempts": 1,
        "resilient.retry.exhausted": True,
        "resilient.retry_budget.exhausted": True,
    }


def test_facts_are_on_the_span_of_the_call_whoever_delivers(spans: Spans) -> None:
    """A thread that leaves its event to another one, which has a span of its own."""
    announcer, noted = Announcer(), threading.Event()

    def other_call() -> None:
        with spans.tracer.start_as_current_span("other"):
            announcer.announce(events.RungChanged("other", "local", "shared", ""))
            noted.wait(5.0)

    other = threading.Thread(target=other_call)

    def listener(event: Event) -> None:
        if event.policy == "first":
            other.start()
            while not announcer._pending:
                noted.wait(0.001)
        else:
            noted.set()

    events.add_listener(listener)  # told after the annotator
    with spans.tracer.start_as_current_span("first"):
        announcer.announce(events.RungChanged("first", "deny", "shared", ""))
    other.join()
    events.remove_listener(listener)

    for name, rung in (("first", "deny"), ("other", "local")):
        assert spans.facts(name) == {
            "resilient.rate_limiter.name": name,
            "resilient.rate_limiter.rung": rung,
        }


def test_span_that_has_ended_or_is_not_recording_is_left_alone(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """Late events say nothing, and the SDK has nothing to complain about."""
    announcer, posted = Announcer(), CircuitBreaker("payments")
    announcer.listeners.add(print)
    with spans.tracer.start_as_current_span("call"):
        announcer.post(events.CircuitClosed("late"))
    announcer.deliver()
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("tests")
    with off.start_as_current_span("unsampled"):
        posted.open()
    posted.close()

    assert spans.facts("call") == {}
    assert caplog.records == []


def test_nothing_is_noted_of_excluded_policies_and_after_the_end(spans: Spans, annotator: Annotator) -> None:
    """Who is excluded may change meanwhile; beginning and ending twice changes nothing."""
    annotator.stop()
    annotator.stop()
    excluded, breaker = {"shop"}, CircuitBreaker("shop")
    own = Annotator(exclude=excluded)
    own.start()
    own.start()

    with spans.tracer.start_as_current_span("excluded"):
        breaker.open()
    excluded.clear()
    with spans.tracer.start_as_current_span("told"):
        breaker.close()
    own.stop()
    with spans.tracer.start_as_current_span("after the end"):
        breaker.open()

    assert spans.facts("excluded") == spans.facts("after the end") == {}
    assert spans.facts("told") == {
        "resilient.circuit_breaker.name": "shop",
        "resilient.circuit_breaker.state": "closed",
    }


def send(spans: Spans, failures: list[Exception]) -> str:
    """Send a request as an instrumented client does: a span for each, and the hook."""
    with spans.tracer.start_as_current_span("GET", kind=SpanKind.CLIENT) as span:
        note_resend(span, object())
        if failures:
            raise failures.pop()
    return "done"


def resend_counts(spans: Spans) -> list[Any]:
    """Return the number on each request's span."""
    return [(span.attributes or {}).get(RESEND_COUNT) for span in spans.ended if span.name == "GET"]


def test_each_request_that_is_sent_again_has_its_number(spans: Spans) -> None:
    """From 1; the first one has none, and neither has the next call's."""
    failures: list[Exception] = [LookupError(), LookupError()]
    call = Retry(on=LookupError, attempts=3, wait=0.0)(send)

    with spans.tracer.start_as_current_span("call"):
        assert [call(spans, failures), call(spans, failures)] == ["done", "done"]

    assert resend_counts(spans) == [None, 1, 2, None]
    assert RESEND_COUNT not in spans.facts("call")  # it is no request


async def test_requests_of_tasks_have_their_own_numbers(spans: Spans) -> None:
    """With the hook for asynchronous clients."""
    retry = Retry(on=LookupError, attempts=3, wait=0.0)

    @retry
    async def call(failures: list[Exception]) -> None:
        with spans.tracer.start_as_current_span("GET", kind=SpanKind.CLIENT) as span:
            await anote_resend(span, object(), object())
            await asyncio.sleep(0)
            if failures:
                raise failures.pop()

    await asyncio.gather(*(call([LookupError()] * times) for times in range(3)))

    assert sorted(resend_counts(spans), key=str) == [1, 1, 2, None, None, None]


@pytest.mark.parametrize(
    ("kind", "attribute", "noted"),
    [
        (SpanKind.CLIENT, "http.request.method", 2),
        (SpanKind.CLIENT, "http.method", 2),
        (SpanKind.CLIENT, "db.system.name", None),
        (SpanKind.SERVER, "http.request.method", None),
    ],
)
def test_span_that_all_attempts_share_has_the_last_number(
    kind: SpanKind, attribute: str, noted: int | None, spans: Spans
) -> None:
    """Where the retry is inside of an instrumented HTTP client; a span of anything else is none of it."""
    retry = Retry(on=LookupError, attempts=3, wait=0.0)

    with (
        spans.tracer.start_as_current_span("call", kind=kind, attributes={attribute: "x"}),
        pytest.raises(LookupError),
    ):
        retry.call(fail)

    assert spans.facts("call").get(RESEND_COUNT) == noted


def test_hook_leaves_spans_alone_that_do_not_record() -> None:
    """Of requests that are not sampled."""
    tracer = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("tests")
    spans = Spans()
    spans.tracer = tracer

    assert Retry(on=LookupError, wait=0.0)(send)(spans, [LookupError()]) == "done"
    assert spans.ended == []
