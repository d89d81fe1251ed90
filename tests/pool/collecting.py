"""What metrics tell of a pool, read by a reader of OpenTelemetry's SDK."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, Self

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from resilient import telemetry

POOL: Final = "db.client.connection.pool.name"
_PREFIX: Final = "db.client.connection."
_LEAKED: Final = "resilient.pool.leaked"


class Metrics:
    """Reports to a reader of its own, as a block."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def __enter__(self) -> Self:
        telemetry.instrument(meter_provider=self.provider, logs=None, spans=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        telemetry.uninstrument()
        self.provider.shutdown()

    def of(self, pool: str) -> dict[str, dict[tuple[Any, ...], Any]]:
        """Return what is told of the connections of *pool*, by metric and by what else it is told by."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[tuple[Any, ...], Any]] = defaultdict(dict)
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        attributes = dict(point.attributes or {})
                        subject = "resilient.policy.name" if metric.name == _LEAKED else POOL
                        if attributes.pop(subject, None) != pool:
                            continue
                        series = found[metric.name.removeprefix(_PREFIX)]
                        labels = tuple(value for _, value in sorted(attributes.items()))
                        assert labels not in series, "two points hide each other"
                        series[labels] = point.value if isinstance(point, NumberDataPoint) else point
        return found

    def durations(self, pool: str) -> dict[str, tuple[int, float, float, float]]:
        """Return the number of each kind of durations of *pool*, their sum, the shortest and the longest."""
        return {
            name.removesuffix("_time"): (point.count, point.sum, point.min, point.max)
            for name, series in self.of(pool).items()
            if name.endswith("_time")
            for point in series.values()
        }
