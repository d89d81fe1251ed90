"""What our metrics are called in Prometheus, and whether a query asks for what there is.

Names are made from the metrics by OpenTelemetry's rules (Prometheus and OpenMetrics Compatibility, with the
default strategy, UnderscoreEscapingWithSuffixes), and the values of labels are those that policies, pools and
checks tell.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ConnectionPool,
    Fallback,
    Gradient,
    RateLimiter,
    ReplicaSet,
    Retry,
    RetryBudget,
    Timeout,
)
from resilient.engine.latency import Recorder
from resilient.engine.measure import Instrument, Measure, Metric, defined
from resilient.health import Status
from resilient.health.measures import of_results
from resilient.health.report import Result
from resilient.policies.measures import of_bulkhead
from resilient.pool.measures import of_replicas
from resilient.telemetry.connections import DURATIONS, ConnectionCounts, of_connections
from resilient.web.maintenance import Maintenance

ANYWHERE: Final = frozenset(
    {"job", "instance", "otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
)
"""Labels that every series has. Whoever scrapes sets the first two, and more if they please."""

_KIND: Final = "resilient_policy_kind"
_NAME: Final = "resilient_policy_name"
_UNITS: Final = {"s": "_seconds", "By": "_bytes"}
_PARTS: Final = ("_bucket", "_sum", "_count")

Labels = Mapping[str, str | None]
"""Labels of a series, as Prometheus has them. None: any value."""


@dataclass(frozen=True)
class Series:
    """What a query may name: a metric, or a part of a histogram, with the labels that it comes with.

    Attributes:
        name: in Prometheus.
        labels: what it is told by.
        seen: the values of its labels that belong together.
    """

    name: str
    labels: frozenset[str]
    seen: tuple[Labels, ...] = field(repr=False, default=({},))


def in_prometheus(metric: Metric) -> str:
    """Return what *metric* is called in Prometheus; of a histogram, without "_bucket" and so on."""
    return _name(metric.name, metric.unit, metric.instrument is Instrument.COUNTER)


def label(attribute: str) -> str:
    """Return what *attribute* is called in Prometheus."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", attribute)


def metrics() -> list[Metric]:
    """Return all metrics there are."""
    return [one for one in defined() if one.name.startswith(("resilient.", "db."))]


@cache
def known() -> Mapping[str, Series]:
    """Return what queries may name."""
    seen: dict[str, list[Labels]] = {}
    for kind, (metric, _, values) in _measured():
        # Names of checks, their units and those of replicas are the user's.
        told = zip(map(label, metric.attributes), values, strict=True)
        labels = {name: None if name.endswith(("_name", "_unit")) else value for name, value in told}
        seen.setdefault(metric.name, []).append({**_subject(metric, kind), **labels})
    found: dict[str, Series] = {}
    for metric in metrics():
        names = frozenset((*_subject(metric), *map(label, metric.attributes)))
        labels_seen = seen.get(metric.name, [])
        if metric.instrument is not Instrument.HISTOGRAM:
            found[in_prometheus(metric)] = Series(in_prometheus(metric), names, tuple(labels_seen))
            continue
        for part in _PARTS:
            more: dict[str, None] = {"le": None} if part == "_bucket" else {}
            name = in_prometheus(metric) + part
            found[name] = Series(name, names | set(more), tuple({**one, **more} for one in labels_seen))
    return found


def faults(query: str, also: Mapping[str, Series] | None = None) -> list[str]:
    """Return what *query* asks for in vain: unknown series, or labels and values that they never have.

    Args:
        query: in PromQL. A value with a variable in it ("$policy") may be any.
        also: what it may name beside our metrics: what is recorded, for instance.
    """
    series = {**known(), **(also or {})}
    tokens = [match for match in _TOKEN.finditer(query) if match.lastgroup is not None]
    told: list[str] = []
    named: set[str] = set()
    grouped: list[str] = []
    in_grouping = False
    for token, following in pairwise((*tokens, None)):
        assert token is not None
        word, then = token.group(), "" if following is None else following.group()
        if in_grouping:
            in_grouping = word != ")"
            grouped += re.findall(_LABEL, word)
        elif token.lastgroup != "word" or word.lower() in _WORDS:
            pass
        elif word.lower() in _GROUPINGS:
            in_grouping = then == "("
        elif then == "(" or word.lower() in _AGGREGATIONS:
            pass
        elif word not in series:
            told.append(f"there is no {word}")
        else:
            named.update(series[word].labels)
            if then.startswith("{"):
                told += _faults_of(series[word], then)
    made = {token.group()[1:-1] for token in tokens if token.lastgroup == "text"}  # by label_replace
    labels = ANYWHERE | named | made
    return told + [f"nothing has the label {one}" for one in grouped if one not in labels]


_LABEL: Final = r"[a-zA-Z_]\w*"
_TOKEN: Final = re.compile(
    r"#[^\n]*|\s+"
    r"""|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<braces>\{(?:[^{}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*\})"""
    r"|\[[^\]]*\]|\$\w+|\$\{[^}]*\}|\d[\w.]*"
    r"|(?P<word>[a-zA-Z_:][\w:]*)|(?P<sign>[^\s])"
)
_MATCHER: Final = re.compile(r"""(\w+)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")
_WORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"})
_GROUPINGS: Final = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_AGGREGATIONS: Final = frozenset(
    {"sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile"}
)


def _faults_of(series: Series, braces: str) -> Iterator[str]:
    matchers = [(name, sign, one or other) for name, sign, one, other in _MATCHER.findall(braces)]
    for name, sign, value in matchers:
        if name not in series.labels | ANYWHERE:
            yield f"{series.name} has no label {name}"
        elif name not in ANYWHERE and "$" not in value:
            choices = value.split("|") if "~" in sign and re.fullmatch(r"[\w|]+", value) else [value]
            for choice in choices:
                if not any(
                    _matches(labels, name, "=~" if "~" in sign else "=", choice) for labels in series.seen
                ):
                    yield f"{series.name} never has {name} {choice!r}"
    if not any(all(_matches(labels, *one) for one in matchers) for labels in series.seen):
        yield f"no {series.name} has all of {braces}"


def _matches(labels: Labels, name: str, sign: str, value: str) -> bool:
    if name in ANYWHERE or "$" in value:
        return True
    has = labels.get(name, "")
    if has is None:
        return True
    same = re.fullmatch(value, has) is not None if "~" in sign else has == value
    return same is not sign.startswith("!")


def _name(name: str, unit: str, is_counter: bool) -> str:
    text = re.sub(r"[^a-zA-Z0-9:]+", "_", name)
    suffix = _UNITS.get(unit, "")
    if not text.endswith(suffix):
        text += suffix
    return text + "_total" if is_counter and not text.endswith("_total") else text


def _subject(metric: Metric, kind: str | None = None) -> Labels:
    """Return the labels that say what *metric* is measured on."""
    return {_NAME: None, _KIND: kind} if metric.subject is None else {label(metric.subject): None}


def _measured() -> Iterator[tuple[str, Measure]]:
    """Return all that each kind of source tells of itself, after the kind."""
    pool = ConnectionPool(lambda: sqlite3.connect(":memory:"), name="orders", min_size=0)
    with pool, ReplicaSet(pool, [], name="orders") as replicas:
        policies = (
            AdaptiveThrottle("orders"),
            Bulkhead("orders", 1),
            Cache("orders", ttl=1.0),
            CircuitBreaker("orders"),
            Fallback(None),
            Maintenance(),
            RateLimiter("1/second", name="orders", storage="redis://127.0.0.1:1"),  # nobody is asked
            Retry(on=OSError),
            RetryBudget(),
            Timeout(1.0),
        )
        for source in policies:
            yield from ((_snake(source.kind), one) for one in source.measures())
        for one in pool.measures():
            yield from ((kind, one) for kind in ("connection_pool", "async_connection_pool"))
        replica: Any = SimpleNamespace(name="r1", lag=0.1, breaker=CircuitBreaker("r1").stats())
        for one in of_replicas(replace(replicas.stats(), replicas=(replica,))):
            yield from ((kind, one) for kind in ("replica_set", "async_replica_set"))
    adaptive = Bulkhead("orders", Gradient()).stats()
    assert adaptive.adaptive is not None
    settled = replace(adaptive, adaptive=replace(adaptive.adaptive, rtt=0.1, baseline=0.1))
    nothing = Recorder().histogram()
    for one in of_bulkhead(settled, nothing):
        yield "bulkhead", one
    for one in of_connections(ConnectionCounts(1, 1, 1, 1, 1, 1, 1, 1), dict.fromkeys(DURATIONS, nothing)):
        yield "watched_pool", one
    found = Result("cpu", "check", Status.PASS, value=1.0, unit="percent", age=1.0, took=0.1)
    for one in of_results([found]):
        yield "health", one


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
