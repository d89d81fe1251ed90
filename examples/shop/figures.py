"""What a run of the demo measured, and the figures drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of a request.

    `latency` counts from when it was due; `lag` is how much later it was really sent; `outcome` is the HTTP
    status, `timeout` or `broken`.
    """

    at: float
    action: str
    latency: float
    lag: float
    outcome: str

    @property
    def ok(self) -> bool:
        """Whether the customer got what they asked for."""
        return self.outcome == "200"


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a run, in seconds from the first request."""

    name: str
    start: float
    end: float

    def __contains__(self, at: float) -> bool:
        return self.start <= at < self.end


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker of a service changed its state."""

    at: float
    breaker: str
    state: str


@dataclass(slots=True)
class Run:
    """Everything measured while the shop ran once.

    `api_calls` holds readings of the rates API's own counter: when, and how many
    calls had reached it by then.
    `events` counts what the policies reported, by "service: policy Event".
    """

    version: str
    spans: list[Span]
    samples: list[Sample] = field(default_factory=list)
    api_calls: list[tuple[float, int]] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)

    def span(self, name: str) -> Span:
        """Return the phase called *name*."""
        return next(span for span in self.spans if span.name == name)

    def sent_in(self, span: Span, action: str | None = None) -> list[Sample]:
        """Return the requests that were due in a phase, of one kind or of all."""
        return [s for s in self.samples if s.at in span and action in (None, s.action)]

    def api_calls_in(self, span: Span) -> int:
        """Return how many calls reached the rates API during a phase."""
        return self._api_calls_by(span.end) - self._api_calls_by(span.start)

    def _api_calls_by(self, at: float) -> int:
        return max((calls for when, calls in self.api_calls if when <= at + 1e-9), default=0)


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the table: a phase of a run. Times in seconds, goodput in requests per second."""

    phase: str
    requests: int
    errors: int
    p50: float
    p95: float
    p99: float
    checkout_p99: float
    goodput: float
    api_calls: int

    @property
    def error_ratio(self) -> float:
        """The share of requests that did not get what they asked for."""
        return self.errors / self.requests if self.requests else 0.0


def summarise(run: Run, span: Span, good_within: float) -> Summary:
    """Boil a phase down to one row."""
    samples = run.sent_in(span)
    latencies = [s.latency for s in samples]
    return Summary(
        phase=span.name,
        requests=len(samples),
        errors=sum(not s.ok for s in samples),
        p50=percentile(latencies, 0.50),
        p95=percentile(latencies, 0.95),
        p99=percentile(latencies, 0.99),
        checkout_p99=percentile([s.latency for s in run.sent_in(span, "checkout")], 0.99),
        goodput=_good(samples, good_within) / (span.end - span.start),
        api_calls=run.api_calls_in(span),
    )


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least *share* of all values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def goodput_over_time(run: Run, good_within: float, step: float = 1.0) -> list[tuple[float, float]]:
    """Return good answers per second, for each *step* seconds of requests that were due then."""
    return _over_time(run, step, lambda samples: _good(samples, good_within) / step)


def p99_over_time(run: Run, step: float = 1.0) -> list[tuple[float, float]]:
    """Return the 99th percentile of the latency of the requests due in each *step* seconds."""
    return _over_time(run, step, lambda samples: percentile([s.latency for s in samples], 0.99))


def _over_time(
    run: Run, step: float, figure: Callable[[Sequence[Sample]], float]
) -> list[tuple[float, float]]:
    bins: list[list[Sample]] = [[] for _ in range(round(run.spans[-1].end / step))]
    for sample in run.samples:
        index = int(sample.at / step)
        if index < len(bins):
            bins[index].append(sample)
    return [((index + 0.5) * step, figure(samples)) for index, samples in enumerate(bins) if samples]


def _good(samples: Sequence[Sample], good_within: float) -> int:
    return sum(s.ok and s.latency <= good_within for s in samples)
