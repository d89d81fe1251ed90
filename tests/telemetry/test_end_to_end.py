"""From the app to where people look: a real Prometheus that scrapes it, and a collector that is sent to."""

from __future__ import annotations

import contextlib
import gzip
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.support.collected import provided
from tests.support.metrics_page import metrics as all_metrics
from tests.support.ports import free_port
from tests.support.prometheus import BINARY, PrometheusServer
from tests.support.prometheus_names import in_prometheus, known, label
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ConnectionPool,
    Fallback,
    RateLimiter,
    Retry,
    Timeout,
)
from resilient.asgi import Maintenance
from resilient.engine.measure import Instrument
from resilient.health import CPU, Health
from resilient.telemetry import instrument, uninstrument
from resilient.telemetry.alerts import alerts, rules

OPEN = {"OpenForASecond", "ResilientBreakerOpen"}
SHIPPED = rules(Decimal("99.9"), "https://docs.example")


class App:
    """A shop with a policy of each kind, each of which has had something to do."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker("card payments", fail_max=3)
        self.retry = Retry(on=OSError, name="rates", wait=0.0)
        self.pool = ConnectionPool(object, name="card orders", max_size=4)
        self.others = (
            Timeout(5.0, name="rates"),
            Fallback("queued", on=OSError, name="payments"),
            RateLimiter("100/second", name="door"),
            Bulkhead("payments", 10),
            AdaptiveThrottle("rates"),
            Cache("rates", ttl=60.0),
        )
        self.maintenance = Maintenance(name="shop")
        self.health = Health("shop")
        self.health.add(CPU(), name="cpu")
        self.health.watch(self.breaker, self.pool)

    def work(self) -> None:
        """Serve some requests, until payments fail and their circuit opens."""
        for _ in range(7):
            self.breaker.call(int)
        for _ in range(5):
            with contextlib.suppress(Exception):
                self.breaker.call(_fail)
        with contextlib.suppress(OSError):
            self.retry.call(_fail)
        for policy in self.others:
            policy.call(str)
        with self.pool.connection():
            pass
        self.health.report()

    def refuse(self) -> bool:
        """Ask for a payment once more, and return whether it was refused."""
        rejected = self.breaker.stats().rejected
        with contextlib.suppress(Exception):
            self.breaker.call(_fail)
        return self.breaker.stats().rejected > rejected

    def close(self) -> None:
        """End it."""
        self.pool.close()
        self.health.close()


def _fail() -> None:
    raise OSError("the payment service is away")


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    made = App()
    made.work()
    yield made
    made.close()


@contextlib.contextmanager
def scraped() -> Iterator[str]:
    """Serve what Prometheus' exporter has to tell, and return where."""
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus")
    from prometheus_client import start_http_server

    with provided(exporter.PrometheusMetricReader()) as provider:
        port = free_port()
        server, thread = start_http_server(port, "127.0.0.1")
        instrument(meter_provider=provider, logs=None, spans=False)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            uninstrument()
            server.shutdown()
            server.server_close()
            thread.join()


def soon(text: str) -> str:
    """Return the rule about open circuits alone, for those who cannot wait for five minutes."""
    rule = re.search(r" +- alert: ResilientBreakerOpen\n(?: {8}.*\n)+", text)
    assert rule is not None
    waited = rule[0].replace("ResilientBreakerOpen", "OpenForASecond").replace("for: 5m", "for: 1s")
    assert waited.count("1s") == 1
    return f"groups:\n  - name: soon\n    rules:\n{waited}"


@pytest.mark.faults
@pytest.mark.skipif(BINARY is None, reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_scrapes_what_policies_count(app: App) -> None:
    """Each series is called as documented, the alert rules load, and one fires for an open circuit."""
    with scraped() as target, PrometheusServer(target, {"shipped": SHIPPED, "soon": soon(SHIPPED)}) as server:
        who = 'resilient_policy_kind="circuit_breaker",resilient_policy_name="card payments"'
        outcome = f"resilient_calls_total{{{who}}}"
        wait_until(lambda: len(server.query(outcome)) == 5, "Prometheus to scrape the app")

        calls = server.query(f"sum by (resilient_outcome) ({outcome})")
        assert calls == {
            'resilient_outcome="success"': 7,
            'resilient_outcome="failure"': 3,
            'resilient_outcome="rejected"': 2,
            'resilient_outcome="abandoned"': 0,
            'resilient_outcome="ignored"': 0,
        }
        state = f"max by (resilient_circuit_breaker_state) (resilient_circuit_breaker_status{{{who}}})"
        assert server.query(state)['resilient_circuit_breaker_state="open"'] == 1
        buckets = f'resilient_call_duration_seconds_bucket{{{who},le="+Inf"}}'
        assert sum(server.query(buckets).values()) == 10
        size = 'db_client_connection_max{db_client_connection_pool_name="card orders"}'
        assert [*server.query(size).values()] == [4]
        assert_known(server)
        assert {rule["name"] for rule in _rules(server)} >= {alert.name for alert in alerts()}
        assert {rule["health"] for rule in _rules(server)} <= {"ok", "unknown"}  # unknown: not its turn yet
        refused = app.refuse  # a circuit that nobody asks is nothing to tell of
        wait_until(lambda: refused() and ("OpenForASecond", "firing") in _states(server), "the alert")
        wait_until(
            lambda: refused() and ("ResilientBreakerOpen", "pending") in _states(server), "the one that waits"
        )

        app.breaker.close()
        wait_until(lambda: not {name for name, _ in _states(server)} & OPEN, "all to be well")


def assert_known(server: PrometheusServer) -> None:
    """Fail where a series is not called as the reference has it, has other labels, or is missing."""
    found = {
        one["__name__"]: set(one) - {"__name__", "job", "instance"}
        for one in server.ask("series", **{"match[]": '{__name__=~"resilient_.*|db_client_.*",job="shop"}'})
        if "otel_metric_overflow" not in one
    }
    everywhere = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
    for name, labels in found.items():
        assert name in known(), name
        assert labels - everywhere == known()[name].labels, name
    # What this app cannot have: replicas, an adaptive limit, a limiter that many processes share.
    absent = ("replica", "bulkhead_rtt", "bulkhead_baseline", "bulkhead_pressure", "rate_limiter_")
    expected = {
        in_prometheus(metric) + ("_count" if metric.instrument is Instrument.HISTOGRAM else "")
        for metric in all_metrics()
        if not any(word in label(metric.name) for word in absent)
    }
    assert expected - found.keys() <= {"resilient_pool_leaked"}


def _rules(server: PrometheusServer) -> list[dict[str, Any]]:
    return [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]


def _states(server: PrometheusServer) -> set[tuple[str, str]]:
    """Return the alerts about this app's breaker, and how they stand."""
    return {
        (one["labels"]["alertname"], one["state"])
        for one in server.ask("alerts")["alerts"]
        if one["labels"].get("resilient_policy_name") == "card payments"
    }


class Collector(ThreadingHTTPServer):
    """What an OpenTelemetry collector is to those who send to it by HTTP; it keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, path: str) -> list[bytes]:
        """Return what was sent to *path*."""
        return [body for to, body in self.received if to == path]


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, Collector)
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Listens on loopback."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_metrics_and_events_are_sent_to_a_collector(collector: Collector) -> None:
    """By OTLP, in protobuf, as a collector reads it: what was counted, and that a circuit has opened."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{collector.url}/v1/logs")))
    exporter = OTLPMetricExporter(f"{collector.url}/v1/metrics")
    with provided(PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)) as provider:
        instrument(meter_provider=provider, logger_provider=logs, logs="otel", spans=False)
        try:
            breaker = CircuitBreaker("sent", fail_max=1)
            breaker.call(int)
            with contextlib.suppress(OSError):
                breaker.call(_fail)
            provider.force_flush()
        finally:
            uninstrument()
            logs.shutdown()

    (body,) = collector.bodies("/v1/metrics")[:1]
    told = {
        metric.name: metric
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == "resilient"
        for metric in scope.metrics
    }
    calls = {
        _attributes(point)["resilient.outcome"]: point.as_int
        for point in told["resilient.calls"].sum.data_points
        if _attributes(point)["resilient.policy.name"] == "sent"
    }
    assert told["resilient.calls"].sum.is_monotonic
    assert calls == {"success": 1, "failure": 1, "rejected": 0, "abandoned": 0, "ignored": 0}
    assert told["resilient.call.duration"].unit == "s"
    records = [
        record
        for body in collector.bodies("/v1/logs")
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    assert [record.event_name for record in records] == ["resilient.circuit_breaker.opened"]
    assert _attributes(records[0])["resilient.policy.name"] == "sent"


def _attributes(one: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value for each in one.attributes}
