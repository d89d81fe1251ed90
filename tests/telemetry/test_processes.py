"""Metrics and processes: an SDK that is set up late, forks in the middle of things, and the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")

ROOT = Path(__file__).parents[2]

_COMMON = """
import json, os, signal, sys, threading
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from resilient import Cache, CircuitBreaker, Retry
from resilient.telemetry import include, instrument
from tests.support.collected import values

signal.alarm(30)  # nobody waits for ever

def provider():
    reader = InMemoryMetricReader()
    return reader, MeterProvider([reader], shutdown_on_exit=False)

def say(**figures):
    print(json.dumps(figures), flush=True)

def in_child(do):
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        try:
            do()
        finally:
            sys.stdout.flush()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the child has not ended well"
"""


def run(script: str) -> list[dict[str, Any]]:
    """Run *script* in a process of its own, and return what it says."""
    whole = _COMMON + dedent(script)
    ended = subprocess.run(
        # What Python says of forks with threads is what is tried here.
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", whole],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_sdk_of_the_application_may_be_set_up_last() -> None:
    """After policies were made and used, and after instrument(): nothing is lost."""
    (said,) = run("""
        breaker = CircuitBreaker("early")
        breaker.call(int)
        instrument()
        breaker.call(int)
        reader, made = provider()
        set_meter_provider(made)
        breaker.call(int)
        later = CircuitBreaker("late")
        later.call(int)
        found = values(reader, "early")
        say(calls=found["calls success"], timed=found["call.duration success"],
            late=values(reader, "late")["calls success"])
    """)

    assert said == {"calls": 3, "timed": 3, "late": 1}


def test_workers_that_are_forked_count_for_themselves() -> None:
    """As where a server loads the app first: each sets up its own SDK, and counts from the fork."""
    said = run("""
        breaker, cache = CircuitBreaker("b"), Cache("c", ttl=60.0)
        for _ in range(10):
            breaker.call(int)
            cache.get("key", int)
        instrument()

        def work():
            reader, made = provider()
            breaker.call(int)
            set_meter_provider(made)
            instrument()
            breaker.call(int)
            found = values(reader, "b")
            say(calls=found["calls success"], timed=found["call.duration success"],
                hits=values(reader, "c")["cache.requests hit"], state=found["circuit_breaker.status closed"])
            made.shutdown()

        in_child(work)
        in_child(work)
        reader, made = provider()
        set_meter_provider(made)
        say(calls=values(reader, "b")["calls success"])
    """)

    assert said[:2] == [{"calls": 2, "timed": 2, "hits": 0, "state": 1}] * 2
    assert said[2] == {"calls": 10}


def test_provider_given_in_the_child() -> None:
    """In place of the parent's, which the child cannot use; grandchildren likewise."""
    said = run("""
        breaker = CircuitBreaker("b")
        breaker.call(int)
        reader, made = provider()
        instrument(meter_provider=made)
        values(reader)

        def work(depth):
            def do():
                reader, made = provider()
                instrument(meter_provider=made)
                before = values(reader, "b")["calls success"]
                for _ in range(depth):
                    breaker.call(int)
                say(calls=values(reader, "b")["calls success"] - before)
                if depth < 3:
                    in_child(work(depth + 1))
            return do

        in_child(work(1))
        say(calls=values(reader, "b")["calls success"])
    """)

    assert said == [{"calls": 1}, {"calls": 2}, {"calls": 3}, {"calls": 1}]


@pytest.mark.parametrize(
    "busy",
    [
        # collecting, in the middle of the measures of somebody's own source, whose lock it holds
        """
        class Source:
            kind, name, lock = "Source", "source", threading.Lock()
            def measures(self):
                with self.lock:
                    if threading.current_thread() is not threading.main_thread():
                        is_in.set()
                        threading.Event().wait()
                return []
        source = Source()
        include(source)
        threading.Thread(target=lambda: values(reader), daemon=True).start()
        """,
        # switching telemetry on, with a provider that takes its time
        """
        class Slow:
            def get_meter(self, *_, **__):
                is_in.set()
                threading.Event().wait()
        threading.Thread(target=lambda: instrument(meter_provider=Slow()), daemon=True).start()
        """,
        # with the locks of a policy
        """
        def hold():
            with breaker._core._lock, retry.lock, breaker._core.stopwatch.good._lock:
                is_in.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        """,
    ],
    ids=["collecting", "instrumenting", "deciding"],
)
def test_fork_while_another_thread_is_busy(busy: str) -> None:
    """Locks that it holds are held by nobody in the child, which goes on."""
    said = run(
        """
        breaker, retry, is_in = CircuitBreaker("b"), Retry(on=OSError), threading.Event()
        breaker.call(int)
        reader, made = provider()
        instrument(meter_provider=made)
        """
        + dedent(busy).replace("\n", "\n        ")
        + """
        is_in.wait()

        def work():
            if "source" in globals():
                source.lock = threading.Lock()  # its owner's business
            reader, made = provider()
            instrument(meter_provider=made)
            before = values(reader, "b")["calls success"]
            breaker.call(int)
            say(calls=values(reader, "b")["calls success"] - before)

        in_child(work)
        os._exit(0)
        """
    )

    assert said == [{"calls": 1}]


def test_fork_begins_nothing() -> None:
    """No thread is started in the child, and no check runs there, until somebody asks."""
    (said,) = run("""
        from resilient.health import Health
        health, ran = Health("shop"), []

        @health.check("c")
        def check():
            ran.append(os.getpid())

        health.report()
        reader, made = provider()
        instrument(meter_provider=made)
        values(reader)
        in_child(lambda: say(threads=threading.active_count(), here=os.getpid() in ran))
        health.close()
    """)

    assert said == {"threads": 1, "here": False}


def test_last_collection_is_at_the_end() -> None:
    """The SDK collects once more when the interpreter ends: all is told, and nothing fails."""
    (said,) = run("""
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

        def format(data):
            metrics = data.resource_metrics[0].scope_metrics[0].metrics
            calls = next(metric for metric in metrics if metric.name == "resilient.calls")
            points = calls.data.data_points
            calls = [one.value for one in points if one.attributes["resilient.outcome"] == "success"]
            return json.dumps({"calls": calls}) + "\\n"

        exporter = ConsoleMetricExporter(formatter=format)
        made = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)])
        instrument(meter_provider=made)
        breaker = CircuitBreaker("b")
        for _ in range(3):
            breaker.call(int)
    """)

    assert said == {"calls": [3]}
