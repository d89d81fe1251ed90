"""The metrics of connection pools: read when somebody collects, under the names of the convention."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections import defaultdict
from textwrap import dedent
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from resilient.telemetry import connections
from resilient.telemetry.connections import ConnectionCounts, Connections

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


class Pool:
    """A source that stands where it is told to."""

    def __init__(self, name: str, **counts: int) -> None:
        self.name = name
        self.now = counts

    def counts(self) -> ConnectionCounts:
        return ConnectionCounts(**self.now)


class Metrics:
    """A set of instruments with an SDK, and what it collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.connections = Connections(self.provider)

    def collect(self) -> dict[str, dict[tuple[str, ...], Any]]:
        """Return the points of each metric by the values of their attributes."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[tuple[str, ...], Any]] = defaultdict(dict)
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "resilient"
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        values = tuple(str(value) for _, value in sorted((point.attributes or {}).items()))
                        found[metric.name][values] = (
                            point.value if isinstance(point, NumberDataPoint) else point
                        )
        return found

    def units(self) -> dict[str, str]:
        """Return the unit of each metric."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: metric.unit or ""
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def metrics() -> Metrics:
    """Instruments of the test's own."""
    return Metrics()


ALL = dict(idle=3, used=2, idle_max=5, idle_min=1, limit=10, pending=4, timeouts=6, leaked=1)


def test_everything_a_pool_knows_is_reported(metrics: Metrics) -> None:
    """Under the names, units and attributes of the semantic conventions."""
    pool = Pool("orders", **ALL)
    metrics.connections.observe(pool)

    assert metrics.collect() == {
        "db.client.connection.count": {("orders", "idle"): 3, ("orders", "used"): 2},
        "db.client.connection.idle.max": {("orders",): 5},
        "db.client.connection.idle.min": {("orders",): 1},
        "db.client.connection.max": {("orders",): 10},
        "db.client.connection.pending_requests": {("orders",): 4},
        "db.client.connection.timeouts": {("orders",): 6},
        "resilient.pool.leaked": {("orders",): 1},
    }
    assert metrics.units() == {
        "db.client.connection.count": "{connection}",
        "db.client.connection.idle.max": "{connection}",
        "db.client.connection.idle.min": "{connection}",
        "db.client.connection.max": "{connection}",
        "db.client.connection.pending_requests": "{request}",
        "db.client.connection.timeouts": "{timeout}",
        "resilient.pool.leaked": "{connection}",
    }


def test_counts_are_read_when_somebody_collects(metrics: Metrics) -> None:
    """A pool that moved on is reported where it stands then."""
    pool = Pool("orders", used=2)
    metrics.connections.observe(pool)
    assert metrics.collect()["db.client.connection.count"] == {("orders", "used"): 2}

    pool.now = {"used": 0, "idle": 2}
    assert metrics.collect()["db.client.connection.count"] == {("orders", "idle"): 2, ("orders", "used"): 0}


def test_what_is_none_is_not_reported(metrics: Metrics) -> None:
    """A pool that knows no limit has no series for it."""
    pool = Pool("orders", leaked=0)
    metrics.connections.observe(pool)

    assert metrics.collect() == {"resilient.pool.leaked": {("orders",): 0}}


def test_pools_of_one_name_are_added_up(metrics: Metrics) -> None:
    """Two points of the same attributes would hide each other."""
    one, other, third = Pool("orders", **ALL), Pool("orders", **ALL), Pool("stock", limit=1)
    for pool in (one, other, third):
        metrics.connections.observe(pool)

    assert metrics.collect()["db.client.connection.max"] == {("orders",): 20, ("stock",): 1}


def test_pool_is_reported_for_as_long_as_it_lives(metrics: Metrics) -> None:
    """Reporting keeps nobody alive; one that is forgotten is reported no more, either."""
    gone, forgotten, kept = Pool("gone", used=1), Pool("forgotten", used=1), Pool("kept", used=1)
    for pool in (gone, forgotten, kept):
        metrics.connections.observe(pool)
        metrics.connections.observe(pool)

    del gone, pool
    gc.collect()
    metrics.connections.forget(forgotten)
    metrics.connections.forget(forgotten)

    assert metrics.collect() == {"db.client.connection.count": {("kept", "used"): 1}}


def test_pool_that_fails_is_logged_once_and_hurts_no_other(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """The collection goes on without it."""

    class Broken(Pool):
        def counts(self) -> ConnectionCounts:
            raise LookupError(self.name)

    broken, pool = Broken("broken"), Pool("orders", used=1)
    metrics.connections.observe(broken)
    metrics.connections.observe(pool)

    with caplog.at_level(logging.ERROR, "resilient"):
        assert metrics.collect() == {"db.client.connection.count": {("orders", "used"): 1}}
        assert metrics.collect() == {"db.client.connection.count": {("orders", "used"): 1}}
    assert len(caplog.records) == 1
    assert "cannot be read" in caplog.text


def test_durations_are_part_of_the_next_collection(metrics: Metrics) -> None:
    """In seconds, with boundaries that are made for seconds."""
    times = metrics.connections.times("orders")
    times.create.append(0.02)
    times.wait.extend([0.0002, 0.3])
    times.use.append(45.0)

    found = metrics.collect()

    assert set(found) == {f"db.client.connection.{kind}_time" for kind in ("create", "wait", "use")}
    for kind, count, total in (("create", 1, 0.02), ("wait", 2, 0.3002), ("use", 1, 45.0)):
        point = found[f"db.client.connection.{kind}_time"]["orders",]
        assert (point.count, point.sum) == (count, pytest.approx(total))
        assert 0.001 in point.explicit_bounds
        assert set(point.bucket_counts) <= {0, 1}, "durations apart share no bucket"


def test_durations_are_recorded_once(metrics: Metrics) -> None:
    """By whoever comes first: the thread that makes rounds, or the collection."""
    times = metrics.connections.times("orders")
    times.wait.append(0.1)

    times.record()
    times.record()

    assert metrics.collect()["db.client.connection.wait_time"]["orders",].count == 1
    assert metrics.collect()["db.client.connection.wait_time"]["orders",].count == 1


def test_durations_that_somebody_else_records_are_dropped(metrics: Metrics) -> None:
    """Who that is, is asked each time: a library's own metrics may be switched on later."""
    others: set[str] = set()
    times = metrics.connections.times("orders", lambda: others)
    times.wait.append(0.1)
    times.record()

    others.add("wait")
    times.wait.append(0.1)
    times.use.append(0.1)
    found = metrics.collect()

    assert found["db.client.connection.wait_time"]["orders",].count == 1
    assert found["db.client.connection.use_time"]["orders",].count == 1
    assert not times.wait


def test_durations_are_bounded(metrics: Metrics) -> None:
    """Where nobody records them, the oldest give way."""
    times = metrics.connections.times("orders")
    times.wait.extend([0.1] * (connections._KEPT + 5))

    assert len(times.wait) == connections._KEPT


def test_instruments_are_made_once_and_only_when_a_pool_comes() -> None:
    """A process without a pool has no instruments of pools."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    mine = Connections(provider)
    assert mine.histograms == {}

    pools = [Pool(f"pool {number}", used=1) for number in range(3)]
    for pool in pools:
        mine.observe(pool)
    histograms = dict(mine.histograms)
    mine.times("one")

    assert mine.histograms == histograms
    data = reader.get_metrics_data()
    assert data is not None
    assert [len(scope.metrics) for scope in data.resource_metrics[0].scope_metrics] == [1]


def test_provider_may_be_set_after_the_pool_was_made() -> None:
    """In a process of its own: an application's provider can be set once."""
    script = """
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from resilient.telemetry import connections

        class Pool:
            name = "orders"
            def counts(self):
                return connections.ConnectionCounts(used=2)

        pool = Pool()
        connections.observe(pool)
        times = connections.times("orders")
        times.wait.append(0.1)
        times.record()
        times.wait.append(0.1)

        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        print(sorted((metric.name, len(metric.data.data_points)) for metric in found))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.stdout.strip(), done.stderr) == (
        "[('db.client.connection.count', 1), ('db.client.connection.wait_time', 1)]",
        "",
    )
