"""The metrics of connection pools: read when somebody collects, under the names of the convention."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from textwrap import dedent
from typing import Any, ClassVar

import pytest
import redis
from tests.pool.collecting import POOL, Metrics
from tests.support.valkey import ValkeyServer

from resilient import ConnectionPool, telemetry
from resilient.engine.latency import EDGES, Histogram
from resilient.engine.measure import Instrument, Measure
from resilient.pool import watch
from resilient.telemetry.connections import DURATIONS, MAX, ConnectionCounts, of_connections
from resilient.telemetry.reading import Reader
from resilient.testing import FakeClock


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    """A reader of the test's own, to which everything is reported."""
    with Metrics() as metrics:
        yield metrics


class Pool:
    """A source that stands where it is told to."""

    kind: ClassVar[str] = "Pool"

    def __init__(self, name: str, **counts: int) -> None:
        self.name = name
        self.now = counts
        telemetry.include(self)

    def measures(self) -> Iterator[Measure]:
        return of_connections(ConnectionCounts(**self.now), {})


class OtherPool(Pool):
    """One of another kind."""

    kind: ClassVar[str] = "OtherPool"


class Link:
    """A connection to nothing."""

    def close(self) -> None:
        """End."""


ALL = dict(idle=3, used=2, idle_max=5, idle_min=1, limit=10, pending=4, timeouts=6, leaked=1)


def test_everything_a_pool_knows_is_reported(metrics: Metrics) -> None:
    """Where it stands, under its name alone; what is None is not reported."""
    pool, other = Pool("full", **ALL), Pool("bare", leaked=0)

    assert metrics.of(pool.name) == {
        "count": {("idle",): 3, ("used",): 2},
        "idle.max": {(): 5},
        "idle.min": {(): 1},
        "max": {(): 10},
        "pending_requests": {(): 4},
        "timeouts": {(): 6},
        "resilient.pool.leaked": {("pool",): 1},
    }
    assert metrics.of(other.name) == {"resilient.pool.leaked": {("pool",): 0}}


def test_names_are_those_of_the_convention() -> None:
    """So are units, kinds and buckets; each bucket ends where a bin of ours does, so that none is split."""
    everything = [
        *of_connections(ConnectionCounts(**ALL), dict.fromkeys(DURATIONS, Histogram((), 0, 0, 0, 0)))
    ]
    assert {(metric.name, metric.instrument, metric.unit) for metric, _, _ in everything} == {
        ("db.client.connection.count", Instrument.UP_DOWN_COUNTER, "{connection}"),
        ("db.client.connection.idle.max", Instrument.UP_DOWN_COUNTER, "{connection}"),
        ("db.client.connection.idle.min", Instrument.UP_DOWN_COUNTER, "{connection}"),
        ("db.client.connection.max", Instrument.UP_DOWN_COUNTER, "{connection}"),
        ("db.client.connection.pending_requests", Instrument.UP_DOWN_COUNTER, "{request}"),
        ("db.client.connection.timeouts", Instrument.COUNTER, "{timeout}"),
        ("db.client.connection.create_time", Instrument.HISTOGRAM, "s"),
        ("db.client.connection.wait_time", Instrument.HISTOGRAM, "s"),
        ("db.client.connection.use_time", Instrument.HISTOGRAM, "s"),
        ("resilient.pool.leaked", Instrument.UP_DOWN_COUNTER, "{connection}"),
    }
    for metric, _, _ in everything:
        theirs = metric.name.startswith("db.")  # ours are told by kind and name, like all of ours
        assert metric.subject == ("db.client.connection.pool.name" if theirs else None)
    assert [(len(one.boundaries), one.boundaries[0], one.boundaries[-1]) for one in DURATIONS.values()] == [
        (13, 0.001, 10.0),
        (12, 0.0001, 30.0),
        (12, 0.001, 300.0),
    ]
    for metric in DURATIONS.values():
        assert set(metric.boundaries) <= set(EDGES)


def test_pools_of_one_name_are_added_up(metrics: Metrics) -> None:
    """Of whatever kind: two points of the same attributes would hide each other. One that is gone is not."""
    kept = [Pool("same", **ALL), Pool("same", **ALL), OtherPool("same", **ALL)]
    assert metrics.of("same")["max"] == {(): 30}
    assert metrics.of("same")["count"] == {("idle",): 9, ("used",): 6}
    values, attributes = Reader().read(frozenset()).columns[MAX]
    # As one point, whatever an SDK makes of two.
    assert [value for value, one in zip(values, attributes, strict=True) if one == {POOL: "same"}] == [30]

    kept.pop()
    gc.collect()
    assert metrics.of("same")["max"] == {(): 20}
    assert metrics.of("same")["timeouts"] == {(): 18}, "a counter never falls"


def test_pools_are_reported_from_instrument_to_uninstrument() -> None:
    """What was counted before, too; to one provider at a time; and not one that is left out."""
    clock = FakeClock(100.0)
    pool, other = (ConnectionPool(Link, name=name, clock=clock) for name in ("in", "out"))
    with pool, other, pool.connection():
        clock.advance(3.0)
        first, second = Metrics(), Metrics()
        assert first.of("in") == {}
        with first:
            assert first.of("in")["count"] == {("idle",): 0, ("used",): 1}
            telemetry.exclude(other)
            assert first.of("out") == {}
            assert first.of("in")["max"] == {(): 10}
            with second:
                assert second.of("in")["count"] == {("idle",): 0, ("used",): 1}
                assert first.of("in").keys() == {"create_time", "wait_time"}, "the SDK keeps histograms"
            assert second.of("in").keys() == {"create_time", "wait_time"}
    telemetry.include(other)


def test_closed_pool_stands_nowhere(metrics: Metrics) -> None:
    """What it has counted and timed stays."""
    pool = ConnectionPool(Link, name="closed")
    with pool, pool.connection():
        pass

    assert metrics.of("closed").keys() == {"timeouts", "create_time", "wait_time", "use_time"}


def test_counts_agree_exactly_whatever_threads_do(metrics: Metrics) -> None:
    """Each loan was waited for once, and ended once, while others read."""
    threads, turns, done = 32, 100, threading.Event()
    with ConnectionPool(Link, name="busy", max_size=8, timeout=60.0) as pool:

        def work() -> None:
            for _ in range(turns):
                with pool.connection():
                    pass

        def read() -> None:
            while not done.is_set():
                seen = metrics.durations("busy")
                assert all(count <= threads * turns for count, *_ in seen.values())
                pool.stats()

        workers = [threading.Thread(target=work) for _ in range(threads)]
        reader = threading.Thread(target=read)
        for thread in (reader, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        reader.join()

        stats, seen = pool.stats(), metrics.durations("busy")
        assert stats.checkouts == threads * turns
        assert {what: count for what, (count, *_) in seen.items()} == {
            "create": stats.connects,
            "wait": stats.checkouts,
            "use": stats.checkouts,
        }
        seconds = {
            metric: value.total for metric, value, _ in pool.measures() if isinstance(value, Histogram)
        }
        assert seconds[DURATIONS["create"]] == pytest.approx(stats.connect_seconds)
        assert seconds[DURATIONS["use"]] == stats.use_seconds
        assert seconds[DURATIONS["wait"]] >= stats.wait_seconds - 1e-6, "until the connection is lent"


def test_pool_of_a_real_server_tells_all_of_it(metrics: Metrics, shared_valkey: ValkeyServer) -> None:
    """Ours, and one of redis-py that is watched; both under the same metrics."""

    def connect() -> Any:
        return redis.Redis.from_url(shared_valkey.url, single_connection_client=True)

    with ConnectionPool(connect, name="ours") as pool:
        for _ in range(3):
            with pool.connection() as client:
                assert client.ping()
        client = redis.Redis.from_url(shared_valkey.url)
        with watch(client, name="theirs"):
            for _ in range(3):
                assert client.ping()
            for name in ("ours", "theirs"):
                seen = metrics.of(name)
                assert seen["count"] == {("idle",): 1, ("used",): 0}
                counts = {what: seen[f"{what}_time"][()].count for what in DURATIONS}
                assert counts == {"create": 1, "wait": 3, "use": 3}
                assert 0.0 < seen["create_time"][()].sum < 60.0
        client.close()


def run_alone(script: str) -> str:
    """Return what *script* says in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_provider_may_be_set_after_the_pool_was_made() -> None:
    """Of the application, which can be set once."""
    said = run_alone("""
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from resilient import ConnectionPool, telemetry

        telemetry.instrument()
        pool = ConnectionPool(dict, name="orders", close=dict.clear)
        with pool.connection():
            pass
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        points = {metric.name: len(metric.data.data_points) for metric in found}
        print(sorted((name[21:], number) for name, number in points.items() if name.startswith("db.")))
        pool.close()
    """)
    assert said == str(
        [
            ("count", 2), ("create_time", 1), ("idle.max", 1), ("idle.min", 1), ("max", 1),
            ("pending_requests", 1), ("timeouts", 1), ("use_time", 1), ("wait_time", 1),
        ]
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_reports_what_it_does_itself() -> None:
    """The parent reports what came before the fork."""
    said = run_alone("""
        import os, sys
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from resilient import ConnectionPool, telemetry
        from resilient.errors import PoolTimeoutError

        pool = ConnectionPool(dict, name="orders", close=dict.clear, max_size=1)

        def use(times):
            for _ in range(times):
                with pool.connection():
                    try:
                        pool.getconn(timeout=0)
                    except PoolTimeoutError:
                        pass

        telemetry.instrument()
        use(5)
        child = os.fork()
        use(2 if child else 3)
        if child:
            os.waitpid(child, 0)
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        found = {
            metric.name[21:]: metric.data.data_points[0]
            for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        }
        print(found["timeouts"].value, *(found[f"{what}_time"].count for what in ("create", "wait", "use")))
        pool.close()
        if not child:
            sys.stdout.flush()
            os._exit(0)
    """)
    assert said.splitlines() == ["3 1 3 3", "7 1 7 7"]
