"""Values that are recorded at once arrive as if each had been recorded by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.metrics import NoOpMeterProvider, get_meter
from opentelemetry.sdk.metrics import Histogram as SDKHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from tests.support.collected import Series, provided, series

from resilient.engine.latency import EDGES, Histogram, Recorder
from resilient.engine.measure import SECONDS
from resilient.telemetry import bulk as telling
from resilient.telemetry.bulk import is_heard, record
from resilient.testing import FakeClock

DELTA: dict[type, AggregationTemporality] = {SDKHistogram: AggregationTemporality.DELTA}
DURATIONS = st.lists(st.one_of(st.floats(0.0, 2000.0), st.sampled_from((0.0, *EDGES))), max_size=30)
KEPT = {"name": "payments", "outcome": "success"}
OTHERS = ({"name": "payments", "outcome": "failure"}, {"name": "rates", "outcome": "success"})


def histogram(*durations: float) -> Histogram:
    """Return the distribution of *durations*."""
    recorder = Recorder(FakeClock())
    for one in durations:
        recorder.record(one)
    return recorder.histogram()


class Twins:
    """Two histograms of one provider: one that is told in bulk, and one that is told value by value."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("twins")
        self.bulk, self.single = (
            meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=SECONDS)
            for name in ("bulk", "single")
        )

    def record(self, *batches: tuple[dict[str, str], list[float]]) -> None:
        """Tell both of them."""
        record(self.bulk, [(labels, histogram(*durations)) for labels, durations in batches if durations])
        for labels, durations in batches:
            for one in durations:
                self.single.record(one, labels)


def assert_same(reader: InMemoryMetricReader, *, exact: bool = True) -> list[Series]:
    """Fail unless both tell the same; shortest and longest may be as exact as the bins where not *exact*."""
    found = series(reader)
    twins: list[dict[Any, Any]] = [
        {
            tuple(sorted(one.attributes.items())): one.point
            for one in found
            if one.metric.endswith(name)
        }
        for name in ("bulk", "single")
    ]  # fmt: skip
    assert twins[0].keys() == twins[1].keys()
    for labels, bulk in twins[0].items():
        single = twins[1][labels]
        assert (bulk.count, bulk.bucket_counts, bulk.explicit_bounds) == (
            single.count, single.bucket_counts, single.explicit_bounds
        )  # fmt: skip
        assert bulk.sum == pytest.approx(single.sum, abs=1e-9)
        assert math.isclose(bulk.min, single.min, rel_tol=0 if exact else 0.17, abs_tol=0 if exact else 1e-5)
        assert math.isclose(bulk.max, single.max, rel_tol=0 if exact else 0.17, abs_tol=0 if exact else 1e-5)
    return found


@given(st.lists(st.tuples(DURATIONS, DURATIONS, DURATIONS), min_size=1, max_size=4))
def test_is_the_same_as_recording_each(rounds: list[tuple[list[float], ...]]) -> None:
    """Count, sum, buckets, shortest and longest of each series: over several collections."""
    reader = InMemoryMetricReader()
    with provided(reader) as provider:
        twins = Twins(provider)
        for round_ in rounds:
            twins.record(*zip((KEPT, *OTHERS), round_, strict=True))
            assert_same(reader)


@given(st.lists(DURATIONS, min_size=1, max_size=4))
def test_is_the_same_for_a_reader_of_what_is_new(rounds: list[list[float]]) -> None:
    """One that is told since its last collection, beside one that is told of everything."""
    readers = (InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA))
    with provided(*readers) as provider:
        twins = Twins(provider)
        for number, durations in enumerate(rounds):
            twins.record((KEPT, durations))
            assert_same(readers[1])
            if number % 2:
                assert_same(readers[0])


@pytest.mark.parametrize("edge", [0.005, 0.1, 1.0, EDGES[0], EDGES[-1], 2 * EDGES[-1]])
def test_durations_on_a_bound_stay_there(edge: float) -> None:
    """Though they are what is left of two sums: of one, and of several, in the buckets of theirs."""
    before = [1234.567891] * 1000
    for number in (1, 2, 3):
        reader = InMemoryMetricReader()
        with provided(reader) as provider:
            twins = Twins(provider)
            later = [edge] * number
            record(twins.bulk, [(KEPT, histogram(*before, *later) - histogram(*before))])
            for one in later:
                twins.single.record(one, KEPT)
            bulk, single = (one.point for one in series(reader))

            assert (bulk.count, bulk.bucket_counts) == (single.count, single.bucket_counts)
            assert bulk.sum == pytest.approx(single.sum, abs=1e-8)


def test_is_the_same_where_views_change_what_is_kept() -> None:
    """Renamed, with other bounds, with fewer attributes, kept twice, and dropped."""
    reader = InMemoryMetricReader()
    views = (
        View(instrument_name="*", name=None),
        View(instrument_name="bulk", name="renamed bulk", attribute_keys={"name"}),
        View(instrument_name="single", name="renamed single", attribute_keys={"name"}),
        View(
            instrument_name="bulk", name="few bulk", attribute_keys=set(),
            aggregation=ExplicitBucketHistogramAggregation((0.1, 1.0)),
        ),
        View(
            instrument_name="single", name="few single", attribute_keys=set(),
            aggregation=ExplicitBucketHistogramAggregation((0.1, 1.0)),
        ),
        View(instrument_name="bulk", name="dropped bulk", aggregation=DropAggregation()),
    )  # fmt: skip
    with provided(reader, views=views) as provider:
        twins = Twins(provider)
        for _ in range(3):
            twins.record((KEPT, [0.05, 0.1, 0.3, 20.0]), (OTHERS[0], [0.2]), (OTHERS[1], [7.0, 0.001]))
            found = series(reader)
            assert not [one for one in found if one.metric.startswith("dropped")]
            assert {one.metric.partition(" ")[0] for one in found} == {"bulk", "single", "renamed", "few"}
            for prefix, number in (("renamed", 2), ("few", 1)):
                bulk, single = (
                    sorted(
                        (str(one.attributes), one.point.count, one.point.bucket_counts, one.point.min)
                        for one in found
                        if one.metric == f"{prefix} {which}"
                    )
                    for which in ("bulk", "single")
                )
                assert bulk == single
                assert len(bulk) == number


@pytest.mark.parametrize("bounds", [(0.0105, 0.3), (1e-7, 5000.0), ()], ids=str)
def test_other_bounds_lose_no_value(bounds: tuple[float, ...]) -> None:
    """Between bounds that are none of ours, values may fall to the next one; sum and number are exact."""
    reader = InMemoryMetricReader()
    view = View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation(bounds))
    with provided(reader, views=(view,)) as provider:
        Twins(provider).record((KEPT, [0.0101, 0.0102, 0.02, 0.3, 4.0, 9999.0]))
        bulk, single = (one.point for one in series(reader))

        assert (bulk.count, sum(bulk.bucket_counts)) == (6, 6)
        assert bulk.sum == pytest.approx(single.sum)
        assert (bulk.min, bulk.max) == (single.min, single.max)


def test_exponential_histograms_are_as_exact_as_the_bins() -> None:
    """Number, sum, shortest and longest are exact."""
    reader = InMemoryMetricReader()
    view = View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())
    with provided(reader, views=(view,)) as provider:
        twins = Twins(provider)
        for _ in range(2):
            twins.record((KEPT, [0.0101, 0.0102, 0.02, 0.033, 0.2, 1.01]))
            bulk, single = (one.point for one in series(reader))

            assert (bulk.count, bulk.zero_count) == (single.count, single.zero_count)
            assert bulk.sum == pytest.approx(single.sum)
            assert (bulk.min, bulk.max) == (single.min, single.max)


def test_sums_are_exact() -> None:
    """For those who keep nothing but how long all calls together took."""
    reader = InMemoryMetricReader()
    with provided(reader, views=(View(instrument_name="*", aggregation=SumAggregation()),)) as provider:
        twins = Twins(provider)
        for _ in range(2):
            twins.record((KEPT, [0.0101, 0.0102, 0.02, 0.033, 0.2, 1.01]))
            bulk, single = (one.point for one in series(reader))

            assert bulk.value == pytest.approx(single.value)


def test_last_value_is_one_of_them() -> None:
    """Which of a batch was the last is not known."""
    reader = InMemoryMetricReader()
    with provided(reader, views=(View(instrument_name="*", aggregation=LastValueAggregation()),)) as provider:
        Twins(provider).record((KEPT, [0.1, 0.3, 0.2]))

        assert 0.1 <= series(reader)[0].value <= 0.3


def test_too_many_series_overflow_as_ever() -> None:
    """Beyond the SDK's limit all others are told as one, and no value is lost."""
    reader = InMemoryMetricReader()
    view = View(instrument_name="*", aggregation_cardinality_limit=3)
    with provided(reader, views=(view,)) as provider:
        twins = Twins(provider)
        for _ in range(2):
            twins.record(*(({"name": f"p{number}"}, [0.1, 0.2, 3.0]) for number in range(10)))
            found = assert_same(reader)

        overflow = [one for one in found if one.attributes == {"otel.metric.overflow": True}]
        assert [one.value for one in overflow] == [42, 42]


def test_sdk_whose_insides_are_others_is_told_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told twice, and nothing is lost."""
    monkeypatch.setattr(telling, "_is_as_known", lambda _match: False)
    reader = InMemoryMetricReader()
    with provided(reader) as provider:
        twins = Twins(provider)
        for _ in range(2):
            record(twins.bulk, [(KEPT, histogram(0.011, 0.012, 0.3, 0.3, 20.0))])
        (one,) = series(reader)

    assert (one.point.count, sum(one.point.bucket_counts)) == (10, 10)
    assert [times for times in one.point.bucket_counts if times] == [4, 4, 2]


def test_insides_of_this_sdk_are_as_known() -> None:
    """Else each value would be recorded by itself, which takes long: whoever sees this fail mends `bulk`."""
    with provided(InMemoryMetricReader()) as provider:
        twins = Twins(provider)
        twins.record((KEPT, [0.1]))

        assert telling._matches(twins.bulk)


class OtherInstrument:
    """A histogram of some other SDK."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def record(self, amount: float, attributes: dict[str, str], context: object = None) -> None:
        """Take one value."""
        self.told.append((amount, attributes))


def test_other_sdks_are_told_each_value() -> None:
    """As many as there were, each in its bin."""
    instrument: Any = OtherInstrument()
    durations = [0.011, 0.012, 0.3, 0.3, 2000.0]

    record(instrument, [(KEPT, histogram(*durations)), (OTHERS[0], histogram(0.5))])

    told = [amount for amount, attributes in instrument.told if attributes == KEPT]
    assert is_heard(instrument)
    assert histogram(*told).bins == histogram(*durations).bins or len(told) == len(durations)
    assert [*histogram(*told).bins] == [*histogram(*durations).bins]
    assert max(told) == 2000.0
    assert instrument.told[-1] == (0.5, OTHERS[0])


def test_nobody_hears_before_an_sdk_is_set_up() -> None:
    """So nothing is recorded that would be lost."""
    for meter in (get_meter("nobody"), NoOpMeterProvider().get_meter("nobody")):
        assert not is_heard(meter.create_histogram("unheard"))
    with provided(InMemoryMetricReader()) as provider:
        assert is_heard(provider.get_meter("somebody").create_histogram("heard"))
