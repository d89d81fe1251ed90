"""Queries in PromQL, made of the metrics themselves: none can ask for a metric that there is not.

What tells the series of a query apart is its *by*. If that is None, it is the service, the name of the policy
or the pool, and each attribute of the metric that is not given a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ...engine.measure import Instrument, Metric

__all__ = [
    "KIND",
    "NAME",
    "SERVICE",
    "Query",
    "heat",
    "increase",
    "largest",
    "quantile",
    "quantiles",
    "rate",
    "smallest",
    "total",
    "worst",
]

KIND: Final = "resilient.policy.kind"
NAME: Final = "resilient.policy.name"
SERVICE: Final = "job"

_INTERVAL: Final = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """What a panel asks for.

    Attributes:
        expr: in PromQL.
        labels: what tells its series apart.
        unit: of the values, in Grafana's words.
        word: what its series are called beside that.
    """

    expr: str
    labels: tuple[str, ...]
    unit: str
    word: str = ""

    @property
    def legend(self) -> str:
        """What its series are called, for Grafana to fill in."""
        names = " ".join(f"{{{{{label}}}}}" for label in self.labels)
        return f"{names} {self.word}".strip() or "all"

    def __add__(self, other: Query) -> Query:
        """Return both together; the series of *other* are told apart by the same."""
        return replace(self, expr=f"({self.expr}\n+ {other.expr})")

    def __truediv__(self, whole: Query) -> Query:
        """Return what share this is of *whole*, told apart by the same; nothing where that is 0."""
        return replace(self, expr=f"{self.expr}\n/ ({whole.expr} > 0)", unit="percentunit")

    def called(self, word: str) -> Query:
        """Return the same, its series called by *word*, too."""
        return replace(self, word=word)

    def largest(self, *by: str) -> Query:
        """Return the largest of its values; *by*: of those that have the same of these attributes."""
        labels = tuple(map(_label, by))
        return replace(self, expr=_aggregate("max", labels, _deeper(self.expr)), labels=labels)

    def how_many_below(self, value: float) -> Query:
        """Return how many of its series are below *value*; 0, and not nothing, where none is."""
        return Query(f"sum({self.expr} < bool {value:g})", (), "short")


def rate(
    metric: Metric, *values: str | None, kind: str | None = None, by: Iterable[str] | None = None
) -> Query:
    """Return how often a second, of all instances together.

    Args:
        metric: one that only grows.
        values: of its attributes, in their order; several as "one|other", any but these as "!one|other".
            None: any.
        kind: of policy, in snake case; several as "one|other". None: any.
        by: attributes that tell the series apart. None: as the module says.
    """
    labels = _labels(metric, values, by)
    return Query(_sum(labels, f"rate({_series(metric, values, kind)}{_INTERVAL})"), labels, "ops")


def increase(
    metric: Metric, *values: str | None, kind: str | None = None, by: Iterable[str] | None = None
) -> Query:
    """Return how often around each point, of all instances together; the arguments are those of `rate`."""
    labels = _labels(metric, values, by)
    return Query(_sum(labels, f"increase({_series(metric, values, kind)}{_INTERVAL})"), labels, "short")


def total(
    metric: Metric, *values: str | None, kind: str | None = None, by: Iterable[str] | None = None
) -> Query:
    """Return how many there are now, of all instances together; the arguments are those of `rate`."""
    labels = _labels(metric, values, by)
    return Query(_sum(labels, _series(metric, values, kind)), labels, _unit(metric))


def largest(
    metric: Metric, *values: str | None, kind: str | None = None, by: Iterable[str] | None = None
) -> Query:
    """Return the largest that any instance has now; the arguments are those of `rate`."""
    labels = _labels(metric, values, by)
    return Query(_aggregate("max", labels, _series(metric, values, kind)), labels, _unit(metric))


def smallest(
    metric: Metric, *values: str | None, kind: str | None = None, by: Iterable[str] | None = None
) -> Query:
    """Return the smallest that any instance has now; the arguments are those of `rate`."""
    labels = _labels(metric, values, by)
    return Query(_aggregate("min", labels, _series(metric, values, kind)), labels, _unit(metric))


def quantile(
    share: float,
    metric: Metric,
    *values: str | None,
    kind: str | None = None,
    by: Iterable[str] | None = None,
) -> Query:
    """Return what *share* of the durations stays below, of all instances; the others are those of `rate`."""
    labels = _labels(metric, values, by)
    inner = _sum((*labels, "le"), f"rate({_series(metric, values, kind, part='_bucket')}{_INTERVAL})")
    return Query(f"histogram_quantile({share}, {inner})", labels, "s", f"p{share * 100:g}")


def quantiles(metric: Metric, *values: str | None, kind: str | None = None) -> tuple[Query, ...]:
    """Return p50, p95 and p99 of each policy or pool."""
    by = _source_of(metric)
    return tuple(quantile(share, metric, *values, kind=kind, by=by) for share in (0.5, 0.95, 0.99))


def heat(metric: Metric, *values: str | None, kind: str | None = None) -> Query:
    """Return how many durations fell into which bucket."""
    inner = f"increase({_series(metric, values, kind, part='_bucket')}{_INTERVAL})"
    return Query(_sum(("le",), inner), ("le",), "s")


def worst(metric: Metric, states: Sequence[str], *values: str | None, kind: str | None = None) -> Query:
    """Return the rank of the worst state that any instance is in.

    Args:
        metric: one with a series for each state, as its last attribute says: 1 for the current one, else 0.
        states: from rank 1 on, the worst at the end; whoever is in another state, the best, has rank 0.
        values: of the attributes before the last.
        kind: of policy.
    """
    others = (*values, *(None,) * (len(metric.attributes) - 1 - len(values)))
    labels = _labels(metric, (*others, "any"), None)
    ranked = (f"{rank} * {_series(metric, (*others, state), kind)}" for rank, state in enumerate(states, 1))
    return Query(_aggregate("max", labels, "\n  or ".join(ranked)), labels, "none")


def _series(metric: Metric, values: Sequence[str | None], kind: str | None, part: str = "") -> str:
    """Return the series of *metric* that the variables of the dashboard choose."""
    chosen = {"job": "$service", "instance": "$instance", _name_of(metric): "$policy", KIND: kind}
    chosen |= dict(zip(metric.attributes, values, strict=False))
    matchers = [_matcher(attribute, value) for attribute, value in chosen.items() if value is not None]
    name = _prometheus_name(metric) + part
    if metric.instrument is Instrument.GAUGE and metric.unit == "1":
        # Python's exporter leaves such a name as it is; Prometheus's OTLP receiver and the Collector do not.
        return "{" + ", ".join((f'__name__=~"{name}|{name}_ratio"', *matchers)) + "}"
    return name + "{" + ", ".join(matchers) + "}"


def _matcher(attribute: str, value: str) -> str:
    others = value.startswith("!")
    several = "$" in value or "|" in value
    sign = ("!~" if others else "=~") if several else ("!=" if others else "=")
    return f'{_label(attribute)}{sign}"{value.removeprefix("!")}"'


def _labels(metric: Metric, values: Sequence[str | None], by: Iterable[str] | None) -> tuple[str, ...]:
    if by is None:
        given = dict(zip(metric.attributes, values, strict=False))
        by = (*_source_of(metric), *(one for one in metric.attributes if given.get(one) is None))
    return tuple(map(_label, by))


def _aggregate(how: str, labels: Sequence[str], expr: str) -> str:
    told_apart = f" by ({', '.join(labels)}) " if labels else ""
    inner = f"\n  {expr}\n" if "\n" in expr else expr
    return f"{how}{told_apart}({inner})"


def _sum(labels: Sequence[str], expr: str) -> str:
    return _aggregate("sum", labels, expr)


def _name_of(metric: Metric) -> str:
    return metric.subject or NAME


def _source_of(metric: Metric) -> tuple[str, ...]:
    """Return what tells apart whatever *metric* is measured on. Of checks the name is that of the service."""
    return (NAME,) if metric.name.startswith("resilient.health.") else (SERVICE, _name_of(metric))


def _unit(metric: Metric) -> str:
    if metric.unit == "1":
        return "percentunit" if metric.instrument is Instrument.GAUGE else "none"
    return "s" if metric.unit == "s" else "short"


def _prometheus_name(metric: Metric) -> str:
    total = "_total" if metric.instrument is Instrument.COUNTER else ""
    return _label(metric.name) + ("_seconds" if metric.unit == "s" else "") + total


def _label(attribute: str) -> str:
    return attribute.replace(".", "_")


def _deeper(expr: str) -> str:
    return expr.replace("\n", "\n  ")
