"""What OpenTelemetry's SDK collects, in a form that tests can compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import View

from resilient.telemetry import instrument, uninstrument

Labels: TypeAlias = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Series:
    """A point that was collected, with its metric."""

    metric: str
    attributes: dict[str, Any]
    point: Any
    unit: str
    description: str
    kind: str
    scope: str

    @property
    def value(self) -> float:
        """Of a histogram: how many."""
        number = self.point.count if hasattr(self.point, "count") else self.point.value
        assert isinstance(number, int | float)
        return number


def series(reader: InMemoryMetricReader) -> list[Series]:
    """Collect, and return all points that came."""
    data = reader.get_metrics_data()
    if data is None:
        return []
    return [
        Series(
            metric.name,
            dict(point.attributes or {}),
            point,
            metric.unit or "",
            metric.description or "",
            type(metric.data).__name__,
            scope.scope.name,
        )
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def values(reader: InMemoryMetricReader, name: str | None = None) -> dict[str, float]:
    """Collect, and return what there is of the policies of that *name*, by metric and labels."""
    return {
        key(one): one.value
        for one in series(reader)
        if name is None or one.attributes.get("resilient.policy.name") == name
    }


def key(one: Series) -> str:
    """Return the metric and its labels as one text; not who told it."""
    labels = [
        str(value) for name, value in one.attributes.items() if not name.startswith("resilient.policy.")
    ]
    return " ".join((one.metric.removeprefix("resilient."), *labels))


@contextmanager
def provided(*readers: MetricReader, views: tuple[View, ...] = ()) -> Iterator[MeterProvider]:
    """Provide meters that these readers collect from, until the end of the block."""
    provider = MeterProvider(readers, views=views, shutdown_on_exit=False)
    try:
        yield provider
    finally:
        provider.shutdown()


@contextmanager
def instrumented(*readers: MetricReader, views: tuple[View, ...] = ()) -> Iterator[MeterProvider]:
    """Have all that lives told to *readers*, until the end of the block."""
    with provided(*readers, views=views) as provider:
        instrument(meter_provider=provider, logs=None, spans=False)
        try:
            yield provider
        finally:
            uninstrument()
