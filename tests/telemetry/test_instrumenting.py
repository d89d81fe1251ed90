"""Metrics by way of OpenTelemetry's SDK: whenever it is set up, whoever reads, and however it is switched."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    ObservableUpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from tests.support.collected import instrumented, key, provided, series, values
from tests.support.naming import named
from tests.support.waiting import wait_until

from resilient import Bulkhead, Cache, CircuitBreaker, RateLimiter, Retry, Timeout, __version__
from resilient.engine.measure import Instrument, defined
from resilient.telemetry import include, instrument, uninstrument
from resilient.telemetry.collecting import SCHEMA, Collector
from resilient.testing import FakeClock

DELTA: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA
) | {ObservableUpDownCounter: AggregationTemporality.CUMULATIVE}
DATA = {
    Instrument.COUNTER: "Sum",
    Instrument.UP_DOWN_COUNTER: "Sum",
    Instrument.GAUGE: "Gauge",
    Instrument.HISTOGRAM: "Histogram",
}
QUIET: dict[str, Any] = {"logs": None, "spans": False}


@pytest.fixture(autouse=True)
def _switched_off() -> Iterator[None]:
    gc.collect()  # the policies of other tests
    yield
    uninstrument()


def work(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.call(int)


class TestCollection:
    def test_tells_each_metric_as_it_is_defined(self):
        """Name, unit, description, kind of instrument, scope and its version."""
        clock = FakeClock()
        kept = [
            CircuitBreaker("n", clock=clock), Retry(on=OSError, name="n"), Timeout(1.0, name="n"),
            Bulkhead("n", 1), Cache("n", ttl=1.0), RateLimiter("1/second", name="n"),
        ]  # fmt: skip
        assert isinstance(kept[0], CircuitBreaker)
        work(kept[0])
        reader = InMemoryMetricReader()
        with instrumented(reader):
            found = [one for one in series(reader) if one.attributes.get("resilient.policy.name") == "n"]

        by_name = {metric.name: metric for metric in defined()}
        assert len({one.metric for one in found}) > 25
        for one in found:
            metric = by_name[one.metric]
            assert (one.unit, one.description) == (metric.unit, metric.description)
            assert (one.kind, one.scope) == (DATA[metric.instrument], "resilient")
            assert tuple(one.attributes) == (
                "resilient.policy.kind",
                "resilient.policy.name",
                *metric.attributes,
            )

    def test_scope_says_which_version_it_is(self):
        """And which rules its names follow."""
        reader, breaker = InMemoryMetricReader(), CircuitBreaker("n")
        with instrumented(reader):
            data = reader.get_metrics_data()
        assert data is not None
        scope = data.resource_metrics[0].scope_metrics[0].scope

        assert (scope.name, scope.version, scope.schema_url) == ("resilient", __version__, SCHEMA)
        assert breaker.name == "n"

    def test_counters_only_grow_and_the_others_do_not_have_to(self):
        """As backends need to know."""
        reader, breaker = InMemoryMetricReader(), CircuitBreaker("n")
        work(breaker)
        with instrumented(reader):
            data = reader.get_metrics_data()
        assert data is not None
        kinds = {metric.name: metric.instrument for metric in defined()}
        sums = {
            metric.name: metric.data
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            if hasattr(metric.data, "is_monotonic")
        }
        assert sums
        for name, one in sums.items():
            assert one.is_monotonic is (kinds[name] is Instrument.COUNTER)

    def test_is_of_one_moment(self):
        """Each source is asked once for all its metrics, whatever their number, by each collection."""
        asked = []

        class Source:
            kind, name = "Source", "s"

            def measures(self) -> Any:
                asked.append(1)
                return []

        source, reader = Source(), InMemoryMetricReader()
        include(source)
        with instrumented(reader):
            for number in range(1, 4):
                before = len(asked)
                values(reader)
                assert len(asked) - before == 1, number

    def test_span_of_the_collection_is_no_example(self):
        """Whoever flushes within a span has made none of the calls that are told of."""
        breaker, reader = CircuitBreaker("flushed"), InMemoryMetricReader()
        work(breaker, 3)
        with instrumented(reader), TracerProvider().get_tracer("t").start_as_current_span("flush"):
            points = [one.point for one in series(reader)]

        assert points
        assert [one.exemplars for one in points if one.exemplars] == []

    def test_counters_are_told_whatever_becomes_of_durations(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An SDK that cannot be told durations is said to be one, once."""

        def refuse(*_: object) -> None:
            raise RuntimeError("no")

        breaker, reader = CircuitBreaker("untimed"), InMemoryMetricReader()
        monkeypatch.setattr("resilient.telemetry.collecting.record", refuse)
        with instrumented(reader), caplog.at_level(logging.ERROR, "resilient"):
            for number in range(1, 4):
                work(breaker)
                assert values(reader, "untimed")["calls success"] == number

        assert len([one for one in caplog.records if "durations" in one.getMessage()]) == 1

    def test_buckets_are_those_of_the_metric(self):
        """As advised, in seconds; what falls where is exact."""
        clock, reader = FakeClock(), InMemoryMetricReader()
        breaker = CircuitBreaker("buckets", clock=clock)
        for seconds in (0.004, 0.005, 0.006, 0.3, 11.0):
            breaker.call(clock.advance, seconds)
        with instrumented(reader):
            found = [
                one for one in series(reader) if one.attributes.get("resilient.policy.name") == "buckets"
            ]
        point = next(one.point for one in found if one.metric == "resilient.call.duration")

        bounds = next(one.boundaries for one in defined() if one.name == "resilient.call.duration")
        assert tuple(point.explicit_bounds) == bounds
        assert (point.count, sum(point.bucket_counts)) == (5, 5)
        assert point.bucket_counts[0] >= 1
        assert point.bucket_counts[-1] == 1
        assert (point.min, point.max) == pytest.approx((0.004, 11.0))
        assert point.sum == pytest.approx(11.315)


class TestReaders:
    def test_reader_of_what_is_new_and_reader_of_everything(self):
        """Two at once, each at its own pace."""
        everything, new = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
        breaker, told = CircuitBreaker("pace"), []
        with instrumented(everything, new):
            for number in range(1, 6):
                work(breaker, number)
                found = values(new, "pace")
                told.append((found["calls success"], found["call.duration success"]))
                assert found["circuit_breaker.status closed"] == 1
                if number % 2:
                    found = values(everything, "pace")
                    total = number * (number + 1) // 2
                    assert (found["calls success"], found["call.duration success"]) == (total, total)

        assert told == [(number, number) for number in range(1, 6)]

    def test_two_that_collect_at_the_same_time(self):
        """In threads of their own, while calls are made: nothing is lost or counted twice."""
        readers = (InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA))
        breaker, over = CircuitBreaker("twice"), threading.Event()
        new: list[dict[str, float]] = []

        def collect_everything() -> None:
            while not over.is_set():
                values(readers[0])

        def collect_what_is_new() -> None:
            while not over.is_set():
                new.append(values(readers[1], "twice"))

        with instrumented(*readers):
            threads = [threading.Thread(target=one) for one in (collect_everything, collect_what_is_new)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                work(breaker, 50)
            over.set()
            for thread in threads:
                thread.join()
            new.append(values(readers[1], "twice"))
            found = values(readers[0], "twice")

        assert found["calls success"] == sum(one.get("calls success", 0) for one in new) == 2000
        durations = sum(one.get("call.duration success", 0) for one in new)
        assert found["call.duration success"] == durations == breaker._core.stopwatch.good.histogram().count

    def test_views_change_what_is_kept(self):
        """Renamed, dropped, and without the name of the policy: then they are added up by the SDK."""
        reader = InMemoryMetricReader()
        views = (
            View(instrument_name="resilient.rejections", name="refused"),
            View(instrument_name="resilient.circuit_breaker.*", aggregation=DropAggregation()),
            View(instrument_name="resilient.calls", attribute_keys={"resilient.outcome"}),
            View(instrument_name="resilient.call.duration", attribute_keys=set()),
        )
        breakers = [CircuitBreaker(f"n{number}") for number in range(3)]
        for breaker in breakers:
            work(breaker, 5)
        with instrumented(reader, views=views):
            found = {(one.metric, *one.attributes.values()): one.value for one in series(reader)}
            again = {(one.metric, *one.attributes.values()): one.value for one in series(reader)}

        names = {name for name, *_ in found}
        assert "refused" in names
        assert not names & {"resilient.rejections", "resilient.circuit_breaker.status"}
        assert found["resilient.calls", "success"] >= 15
        assert found["resilient.call.duration",] >= 15
        assert again == found


class TestSettingUp:
    def test_what_was_counted_before_is_told(self):
        """By policies that were made, used and instrumented before there was a reader."""
        breaker, reader = CircuitBreaker("early"), InMemoryMetricReader()
        work(breaker, 7)
        with instrumented(reader):
            work(breaker, 3)
            found = values(reader, "early")

        assert (found["calls success"], found["call.duration success"]) == (10, 10)

    def test_policies_made_later_are_told_too(self):
        """Whenever they come."""
        reader = InMemoryMetricReader()
        with instrumented(reader):
            assert values(reader, "late") == {}
            breaker = CircuitBreaker("late")
            work(breaker)
            assert values(reader, "late")["calls success"] == 1

    def test_off_and_on_again(self):
        """Nothing is told in between, and nothing is lost or told twice."""
        breaker, reader = CircuitBreaker("b"), InMemoryMetricReader()
        with provided(reader) as provider:
            instrument(meter_provider=provider, **QUIET)
            work(breaker, 2)
            values(reader)
            uninstrument()
            work(breaker, 3)
            off = values(reader, "b")
            for _ in range(3):
                instrument(meter_provider=provider, **QUIET)
            found = values(reader, "b")
            uninstrument()

        assert off.keys() <= {"call.duration success"}
        assert (found["calls success"], found["call.duration success"]) == (5, 5)

    def test_another_provider_takes_the_place_of_the_first(self):
        """It is told everything from the start; the first is told nothing any more."""
        breaker, first, second = CircuitBreaker("b"), InMemoryMetricReader(), InMemoryMetricReader()
        with provided(first) as one, provided(second) as other:
            instrument(meter_provider=one, **QUIET)
            work(breaker, 2)
            values(first)
            instrument(meter_provider=other, **QUIET)
            work(breaker, 3)

            assert values(second, "b")["calls success"] == 5
            assert values(second, "b")["call.duration success"] == 5
            assert "calls success" not in values(first, "b")
            instrument(meter_provider=one, **QUIET)
            assert values(first, "b")["call.duration success"] == 5

    def test_provider_is_not_kept_alive(self):
        """What is made for a test, or for a request, can be forgotten."""
        provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        instrument(meter_provider=provider, **QUIET)
        uninstrument()
        provider.shutdown()
        gone = weakref.ref(provider)
        del provider
        gc.collect()

        assert gone() is None

    @pytest.mark.parametrize(
        "nonsense", [3, "otlp", object(), InMemoryMetricReader, MeterProvider], ids=named
    )
    def test_wrong_provider_is_refused(self, nonsense: Any) -> None:
        """By name, and nothing is changed."""
        reader, breaker = InMemoryMetricReader(), CircuitBreaker("b")
        work(breaker)
        with instrumented(reader):
            with pytest.raises(TypeError, match=r"meter_provider must be .*provider.*or None, got "):
                instrument(meter_provider=nonsense)
            with pytest.raises(TypeError, match=r"logger_provider must be .*provider.*or None, got "):
                instrument(logger_provider=nonsense)
            with pytest.raises(ValueError, match=r"logs must be .*got "):
                instrument(logs="file")  # type: ignore[arg-type]

            assert values(reader, "b")["calls success"] == 1

    def test_providers_by_position_are_refused(self):
        """Which of the two it is must be said."""
        with pytest.raises(TypeError, match="positional"):
            instrument(MeterProvider(shutdown_on_exit=False))  # type: ignore[misc]


class TestLimits:
    def test_series_beyond_the_limit_of_the_sdk_are_told_as_one(self):
        """2000 of a metric: what is told of more names is in one point; those that were first stay."""
        reader, first = InMemoryMetricReader(), CircuitBreaker("first")
        work(first)
        with instrumented(reader):
            before = values(reader, "first")
            many = [CircuitBreaker(f"b{number}") for number in range(401)]
            for breaker in many:
                work(breaker)
            found = [one for one in series(reader) if one.metric == "resilient.calls"]

            assert values(reader, "first") == before
        overflow = [one for one in found if one.attributes == {"otel.metric.overflow": True}]
        assert len(found) == 2001
        assert len(overflow) == 1
        assert (
            sum(one.value for one in found if one.attributes.get("resilient.outcome", "success") == "success")
            >= 400
        )

    def test_source_that_hangs_hangs_its_collection_alone(self):
        """Calls go on, policies can be made; when it is done, so is the collection."""
        hangs, is_in, reader = threading.Event(), threading.Event(), InMemoryMetricReader()
        told: list[dict[str, float]] = []

        class Hanging:
            kind, name = "Hanging", "hanging"

            def measures(self) -> Any:
                if threading.current_thread() is not threading.main_thread():
                    is_in.set()
                    hangs.wait()
                return []

        source, breaker = Hanging(), CircuitBreaker("b")
        include(source)
        with instrumented(reader):
            thread = threading.Thread(target=lambda: told.append(values(reader, "b")))
            thread.start()
            is_in.wait()
            work(breaker, 5)
            other = CircuitBreaker("another")
            work(other)
            uninstrument()
            hangs.set()
            thread.join()

        assert breaker.stats().calls == 5
        assert len(told) == 1

    def test_instruments_are_made_while_others_collect(self):
        """By many threads that define metrics and make policies: nobody waits for ever."""
        from resilient.telemetry import counter

        readers = (InMemoryMetricReader(), InMemoryMetricReader())
        over, kept, lock = threading.Event(), list[Any](), threading.Lock()

        class Source:
            kind = "Source"

            def __init__(self, number: int) -> None:
                self.name = f"source {number}"
                self._metric = counter(f"test.made.{id(self)}", "1", "Made in a test.")

            def measures(self) -> Any:
                return [(self._metric, 1, ())]

        def collect(reader: InMemoryMetricReader) -> None:
            while not over.is_set():
                values(reader)

        def make(first: int) -> None:
            for number in range(first, first + 10):
                source = Source(number)
                include(source)
                with lock:
                    kept.append((source, CircuitBreaker("beside")))

        with instrumented(*readers):
            collectors = [threading.Thread(target=collect, args=(one,)) for one in readers]
            makers = [threading.Thread(target=make, args=(100 * number,)) for number in range(4)]
            for thread in (*collectors, *makers):
                thread.start()
            for thread in makers:
                thread.join(30)
            over.set()
            for thread in (*collectors, *makers):
                thread.join(30)
                assert not thread.is_alive()
            found = [key(one) for one in series(readers[0]) if one.metric.startswith("test.made.")]

        assert len(found) == 40


class Told:
    """An instrument of some other SDK."""

    def __init__(self, name: str, callbacks: Any = ()) -> None:
        self.name = name
        self.callbacks = callbacks
        self.recorded: list[float] = []

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.recorded.append(amount)


class OtherMeter:
    """A meter of some other SDK, which knows nothing of OpenTelemetry's own."""

    def __init__(self) -> None:
        self.made: dict[str, Told] = {}

    def _make(self, name: str, callbacks: Any, unit: str, description: str) -> Told:
        assert name not in self.made
        return self.made.setdefault(name, Told(name, callbacks))

    create_observable_counter = create_observable_up_down_counter = create_observable_gauge = _make

    def create_histogram(self, name: str, unit: str, description: str, **_: Any) -> Told:
        return self._make(name, (), unit, description)

    def collect(self) -> dict[str, list[float]]:
        return {
            name: [one.value for callback in told.callbacks for one in callback(None)]
            for name, told in self.made.items()
        }


class OtherProvider:
    def __init__(self) -> None:
        self.meter = OtherMeter()

    def get_meter(self, *_args: Any, **_kwargs: Any) -> OtherMeter:
        return self.meter


def test_other_sdks_are_told_too() -> None:
    """Each value of a distribution by itself, once."""
    provider, breaker = OtherProvider(), CircuitBreaker("other")
    work(breaker, 5)
    instrument(meter_provider=provider, **QUIET)  # type: ignore[arg-type]
    for _ in range(2):
        found = provider.meter.collect()
        assert 5 in found["resilient.calls"]
    work(breaker, 2)
    provider.meter.collect()

    assert len(provider.meter.made["resilient.call.duration"].recorded) == 7


def test_collector_that_is_gone_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK keeps its instruments for ever; they keep nothing of ours."""
    reader, breaker = InMemoryMetricReader(), CircuitBreaker("b")
    work(breaker)
    with provided(reader) as provider, caplog.at_level(logging.ERROR):
        collector = Collector(provider)
        collector.enabled = True
        collector.make_instruments()
        assert values(reader)
        gone = weakref.ref(collector)
        del collector
        gc.collect()
        wait_until(lambda: gone() is None, "the collector to be gone")

        assert not [one for one in values(reader) if one.startswith("calls")]
    assert not caplog.records
