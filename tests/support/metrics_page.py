"""The reference of the metrics, made from the metrics themselves.

    RESILIENT_UPDATE_API=1 pytest tests/docs/test_metrics_page.py

writes the lists of `docs/reference/metrics.md` anew, and `tests/data/metrics.txt`: what must not change.
"""

from __future__ import annotations

from collections.abc import Iterator

from resilient.engine.measure import Instrument, Metric, defined
from tests.support.prometheus_names import Labels, in_prometheus, known, label

_OURS = ("resilient.", "db.client.")
_GROUPS = (
    ("Calls", ("resilient.calls", "resilient.rejections", "resilient.call.", "resilient.wait.")),
    ("Circuit breaker", ("resilient.circuit_breaker.",)),
    ("Retry", ("resilient.retry.", "resilient.retry_budget.")),
    ("Timeout", ("resilient.timeout.",)),
    ("Adaptive throttle", ("resilient.adaptive_throttle.",)),
    ("Rate limiter", ("resilient.rate_limiter.",)),
    ("Bulkhead", ("resilient.bulkhead.",)),
    ("Cache", ("resilient.cache.",)),
    ("Maintenance", ("resilient.maintenance.",)),
    ("Connection pools", ("db.client.connection.", "resilient.pool.")),
    ("Replica sets", ("resilient.replica.",)),
    ("Health", ("resilient.health.",)),
)
_INSTRUMENTS = {
    Instrument.COUNTER: "counter",
    Instrument.UP_DOWN_COUNTER: "up-down counter",
    Instrument.GAUGE: "gauge",
    Instrument.HISTOGRAM: "histogram",
}
MARK = "<!-- From here on made by code: RESILIENT_UPDATE_API=1 pytest tests/docs/test_metrics_page.py -->\n"
"""Where in the reference the part begins that is made here; what stands above is written by hand."""


def metrics() -> list[Metric]:
    """Return all metrics of the library's own."""
    return [metric for metric in defined() if metric.name.startswith(_OURS)]


def reference() -> str:
    """Return the part of the reference that is made from the metrics."""
    parts = [MARK]
    left = metrics()
    for title, prefixes in _GROUPS:
        own = [metric for metric in left if metric.name.startswith(prefixes)]
        left = [metric for metric in left if metric not in own]
        parts += [f"## {title}\n", *map(_section, own)]
    assert not left, f"without a group: {left}"
    return "\n".join(parts)


def frozen() -> Iterator[str]:
    """Yield a line for each metric: all of it that backends go by."""
    for metric in sorted(metrics(), key=lambda one: one.name):
        bounds = f" {list(metric.boundaries)}" if metric.boundaries else ""
        yield f"{metric.name} [{metric.unit}] {metric.instrument.value}{bounds}, {in_prometheus(metric)}"
        for attribute, values in _attributes(metric):
            yield f"    {attribute}{'' if values is None else ' = ' + ', '.join(values)}"


def _section(metric: Metric) -> str:
    rows = [
        f"### {metric.name}\n",
        f"{metric.description}\n",
        f"`{in_prometheus(metric)}`, {_INSTRUMENTS[metric.instrument]}, unit `{metric.unit or '-'}`\n",
        "| Attribute | Values |",
        "|---|---|",
    ]
    for attribute, values in _attributes(metric):
        rows.append(f"| `{attribute}` | {'any' if values is None else ', '.join(map(_code, values))} |")
    if metric.boundaries:
        rows.append(f"\nBuckets: {', '.join(f'{bound:g}' for bound in metric.boundaries)} seconds.")
    return "\n".join((*rows, ""))


def _code(value: str) -> str:
    return f"`{value}`"


def _attributes(metric: Metric) -> Iterator[tuple[str, list[str] | None]]:
    """Yield the attributes of *metric* with their values; None where they are the user's."""
    who = ("resilient.policy.kind", "resilient.policy.name") if metric.subject is None else (metric.subject,)
    for attribute in (*who, *metric.attributes):
        values = dict.fromkeys(seen.get(label(attribute)) for seen in _seen(metric))
        told = [value for value in values if value is not None]
        yield attribute, told or None


def _seen(metric: Metric) -> tuple[Labels, ...]:
    part = "_count" if metric.instrument is Instrument.HISTOGRAM else ""
    return known()[in_prometheus(metric) + part].seen
