"""Recording many values of a histogram at once.

OpenTelemetry has no histogram that is observed; `record` takes one value, and five microseconds. Where the
instrument is that of the SDK and its insides are those that are known, values are added to the series that
is there; where there is none yet, one value is recorded in the usual way and the others are added to what
that has become part of. Anywhere else, each is recorded.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

from opentelemetry.context import Context, set_value
from opentelemetry.metrics import Histogram as Instrument
from opentelemetry.metrics import NoOpHistogram

from ..engine.latency import EDGES, Histogram

__all__ = ["NOWHERE", "is_heard", "record"]

Batch: TypeAlias = tuple[Mapping[str, str], Histogram]
"""The attributes of a series, and values that are to be recorded."""

# Whoever collects may do so within a span, which is none of what was counted; and the SDK need not look for a
# context for each of thousands of observations. Not an empty one: that would be as good as none.
NOWHERE: Final = set_value("resilient.telemetry", "collecting", Context())

_OVERFLOW: Final = frozenset({("otel.metric.overflow", True)})


def is_heard(instrument: Instrument) -> bool:
    """Whether somebody gets what is recorded, or it is lost because no SDK is set up yet."""
    return not isinstance(_real(instrument), NoOpHistogram)


def record(instrument: Instrument, batches: Sequence[Batch]) -> None:
    """Record *batches*: each a series of its own."""
    matches = _matches(_real(instrument))
    if matches is None:
        for attributes, values in batches:
            for value, times in _values(values):
                for _ in range(times):
                    instrument.record(value, attributes, NOWHERE)
        return
    if len(matches) == 1:  # with more of them, a value that one of them lacks would be recorded in all
        batches = _add(matches[0], batches)
    rest = [(attributes, _without_one(instrument, attributes, values)) for attributes, values in batches]
    for match in matches:
        _add(match, [(attributes, values) for attributes, values in rest if values.count], surplus=True)


def _real(instrument: Any) -> Any:
    """Return what is behind a stand-in that was made before the SDK was set up."""
    if hasattr(instrument, "_real_instrument"):
        return instrument._real_instrument or NoOpHistogram("unheard")  # noqa: SLF001
    return instrument


def _without_one(instrument: Instrument, attributes: Mapping[str, str], values: Histogram) -> Histogram:
    """Record one of *values*, the longest, in the usual way; return the others."""
    instrument.record(values.longest, attributes, NOWHERE)
    bins = array("Q", values.bins)
    bins[bisect_left(EDGES, values.longest)] -= 1
    return Histogram(bins, values.count - 1, values.total - values.longest, values.shortest, values.longest)


# What follows knows the insides of the SDK, as of 1.30 to 1.45.


def _matches(instrument: Any) -> list[Any] | None:
    """Return what gathers the values of *instrument*: for each reader, one for each view.

    None, if anything is not what it was: each value is recorded then, before any is added in another way.
    """
    try:
        storages = instrument._measurement_consumer._reader_storages.values()  # noqa: SLF001
        matches = [
            match
            for storage in storages
            for match in storage._get_or_init_view_instrument_match(instrument)  # noqa: SLF001
        ]
    except (AttributeError, TypeError):
        return None
    return matches if all(map(_is_as_known, matches)) else None


def _is_as_known(match: Any) -> bool:
    if not all(
        hasattr(match, name) for name in ("_lock", "_attributes_aggregation", "_aggregation", "_view")
    ):
        return False
    parts = ("_attributes", "_lock", "_value", "_sum", "_min", "_max")
    aggregation = match._aggregation  # noqa: SLF001
    is_explicit = hasattr(aggregation, "_boundaries")
    return hasattr(match._view, "_attribute_keys") and (  # noqa: SLF001
        not is_explicit or all(hasattr(aggregation, name) for name in parts)
    )


def _add(match: Any, batches: Iterable[Batch], *, surplus: bool = False) -> list[Batch]:
    """Add *batches* to the series that are there, or with *surplus* to that of the surplus; return others."""
    kept = match._view._attribute_keys  # noqa: SLF001
    others: list[Batch] = []
    # Under its lock: a collection by another reader in between may begin with new aggregations.
    with match._lock:  # noqa: SLF001
        series = {
            frozenset((aggregation._attributes or {}).items()): aggregation  # noqa: SLF001
            for aggregation in match._attributes_aggregation.values()  # noqa: SLF001
        }
        for attributes, values in batches:
            key = frozenset(
                (name, value) for name, value in attributes.items() if kept is None or name in kept
            )
            aggregation = series.get(key) or (series.get(_OVERFLOW) if surplus else None)
            if aggregation is not None:
                _put(aggregation, values)
            else:
                others.append((attributes, values))
    return others


def _put(aggregation: Any, values: Histogram) -> None:
    if not hasattr(aggregation, "_boundaries"):
        _tell_one_by_one(aggregation, values)
        return
    with aggregation._lock:  # noqa: SLF001
        bins = aggregation._value  # noqa: SLF001
        if bins is None:
            bins = aggregation._value = [0] * (len(aggregation._boundaries) + 1)  # noqa: SLF001
        for value, times in _values(values):
            bins[bisect_left(aggregation._boundaries, value)] += times  # noqa: SLF001
        aggregation._sum += values.total  # noqa: SLF001
        aggregation._min = min(aggregation._min, values.shortest)  # noqa: SLF001
        aggregation._max = max(aggregation._max, values.longest)  # noqa: SLF001


def _tell_one_by_one(aggregation: Any, values: Histogram) -> None:
    """Tell an aggregation that is no histogram, or an exponential one."""
    told = 0.0
    for value, times in _values(values):
        measurement = SimpleNamespace(value=value)
        for _ in range(times):
            aggregation.aggregate(measurement, should_sample_exemplar=False)
        told += value * times
    with aggregation._lock:  # noqa: SLF001
        if hasattr(aggregation, "_sum"):
            aggregation._sum += values.total - told  # noqa: SLF001
        elif hasattr(aggregation, "_instrument_is_monotonic") and aggregation._value is not None:  # noqa: SLF001
            aggregation._value += values.total - told  # noqa: SLF001


def _values(histogram: Histogram) -> Iterator[tuple[float, int]]:
    """Return for each bin a value in it, and how many there are. The shortest is the first."""
    first, last = bisect_left(EDGES, histogram.shortest), bisect_left(EDGES, histogram.longest)
    for number, times in enumerate(histogram.bins[first : last + 1], first):
        if times and number == first:
            yield histogram.shortest, 1
            times -= 1  # noqa: PLW2901
        if times:
            edge = EDGES[number] if number < len(EDGES) else histogram.longest
            yield min(edge, histogram.longest), times
