"""What a run of the demo measured, and the figures drawn from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.shop.crowds import CUSTOMERS, EXPORTS, FLOOD, HEEDFUL, MIX, PROBES, WANTED

ONSET = "onset"
FAULT = "fault"

# Whose requests are not shopping.
ASIDE = {HEEDFUL, PROBES, EXPORTS}


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of a request.

    `latency` counts from when it was due; `lag` is how much later it was really sent; `outcome` is the HTTP
    status, `timeout` or `broken`; `retry_after` is what the answer's header said, in seconds.
    """

    at: float
    action: str
    latency: float
    lag: float
    outcome: str
    crowd: str = CUSTOMERS
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the customer got what they asked for."""
        return self.outcome == "200"

    @property
    def refused(self) -> bool:
        """Whether the shop said that this client asks too often."""
        return self.outcome == "429"

    @property
    def shed(self) -> bool:
        """Whether the shop, or a part of it, said that it cannot just now."""
        return self.outcome == "503"

    @property
    def let_in(self) -> bool:
        """Whether the shop went to work for it, with whatever end."""
        return not (self.refused or self.shed)


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a run, in seconds from the first request; the incident goes on in the faulty ones."""

    name: str
    start: float
    end: float
    faulty: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.start

    def __contains__(self, at: float) -> bool:
        return self.start <= at < self.end


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker of a service changed its state."""

    at: float
    breaker: str
    state: str


@dataclass(frozen=True, slots=True)
class Call:
    """A service waited for another: since when, for whom and how long."""

    at: float
    service: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an incident is about was seen: when, what, and what else there is to say of it."""

    at: float
    what: str
    told: dict[str, Any]


@dataclass(slots=True)
class Run:
    """Everything measured while the shop ran once.

    `api_calls` holds readings of the rates API's own counter: when, and how many calls had reached it by
    then. `calls` are those between the services, as the callers saw them. `limits` holds what an adaptive
    limit was, and when. `events` counts what the policies reported, by "service: policy Event". `notes` are
    what was seen of that which only this incident is about.
    """

    version: str
    spans: list[Span]
    samples: list[Sample] = field(default_factory=list)
    api_calls: list[tuple[float, int]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    limits: list[tuple[float, float]] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def span(self, name: str) -> Span:
        """Return the phase called *name*."""
        return next(span for span in self.spans if span.name == name)

    def of(self, crowd: str) -> list[Sample]:
        """Return the requests of one crowd."""
        return [s for s in self.samples if s.crowd == crowd]

    def noted(self, what: str) -> list[Note]:
        """Return the notes of one kind, in the order of their times."""
        return [note for note in self.notes if note.what == what]

    def sent_in(self, span: Span) -> list[Sample]:
        """Return the shopping that was due in a phase."""
        return [s for s in self.samples if s.at in span and s.crowd not in ASIDE]

    def api_calls_in(self, span: Span) -> int:
        """Return how many calls reached the rates API during a phase."""
        return self._api_calls_by(span.end) - self._api_calls_by(span.start)

    def _api_calls_by(self, at: float) -> int:
        return max((calls for when, calls in self.api_calls if when <= at + 1e-9), default=0)


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the table: a phase of a run. Times in seconds, goodput in requests per second.

    Latencies are those of requests that were let in: those of whom the shop is there for, and apart from
    theirs the flood's. Goodput is the former's too. A checkout has to wait for the card and is one request of
    a customer's 19, so it stands right at the 95th percentile of all: that is told of the other pages and of
    checkouts, each for itself.
    """

    phase: str
    requests: int
    refused: int
    shed: int
    errors: int
    p50: float
    p95: float
    p99: float
    page_p95: float
    checkout_p95: float
    checkout_p99: float
    flood_p95: float
    goodput: float
    throughput: float
    """Good answers that came in it, per second, whenever their requests were due."""
    api_calls: int
    services: dict[str, float]
    """The 95th percentile of the waiting for each service."""
    served: dict[str, tuple[int, int]]
    """Of each kind of request, probes too: how many were served, and how many were sent."""

    @property
    def error_ratio(self) -> float:
        """The share of requests that were neither served nor refused."""
        return self.errors / self.requests if self.requests else 0.0


def summarise(run: Run, span: Span, good_within: float) -> Summary:
    """Boil a phase down to one row."""
    samples = run.sent_in(span)
    answered_in = [s for s in run.samples if s.at + s.latency in span]
    let_in = [s for s in samples if s.let_in]
    waits = [s.latency for s in let_in if s.crowd in WANTED]
    checkouts = [s.latency for s in let_in if s.action == "checkout"]
    pages = [s.latency for s in let_in if s.crowd in WANTED and s.action != "checkout"]
    return Summary(
        phase=span.name,
        requests=len(samples),
        refused=sum(s.refused for s in samples),
        shed=sum(s.shed for s in samples),
        errors=sum(not (s.ok or s.refused) for s in samples),
        p50=percentile(waits, 0.50),
        p95=percentile(waits, 0.95),
        p99=percentile(waits, 0.99),
        page_p95=percentile(pages, 0.95),
        checkout_p95=percentile(checkouts, 0.95),
        checkout_p99=percentile(checkouts, 0.99),
        flood_p95=percentile((s.latency for s in let_in if s.crowd == FLOOD), 0.95),
        goodput=good_answers(samples, good_within) / span.seconds,
        throughput=good_answers(answered_in, good_within) / span.seconds,
        api_calls=run.api_calls_in(span),
        services=_service_p95(run, span),
        served=_served(s for s in run.samples if s.at in span),
    )


def _served(samples: Iterable[Sample]) -> dict[str, tuple[int, int]]:
    sent, served = Counter[str](), Counter[str]()
    for sample in samples:
        sent[sample.action] += 1
        served[sample.action] += sample.ok
    return {action: (served[action], number) for action, number in sorted(sent.items())}


def _service_p95(run: Run, span: Span) -> dict[str, float]:
    waits: dict[str, list[float]] = {}
    for call in run.calls:
        if call.at in span:
            waits.setdefault(call.service, []).append(call.seconds)
    return {service: percentile(seconds, 0.95) for service, seconds in sorted(waits.items())}


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least *share* of all values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def good_answers(samples: Sequence[Sample], good_within: float) -> int:
    """Count the requests that were answered right and in good time, of those whom the shop is there for."""
    return sum(s.crowd in WANTED and s.ok and s.latency <= good_within for s in samples)


def goodput_over_time(run: Run, good_within: float, step: float = 1.0) -> list[tuple[float, float]]:
    """Return good answers per second, for each *step* seconds of requests that were due then."""
    return over_time(run, lambda samples: good_answers(samples, good_within) / step, step)


def latency_over_time(
    run: Run, share: float, actions: Collection[str] = MIX, step: float = 1.0
) -> list[tuple[float, float]]:
    """Return a percentile of what customers who were let in waited, by when their requests were due."""

    def waits(samples: Sequence[Sample]) -> list[float]:
        return [s.latency for s in samples if s.crowd in WANTED and s.action in actions and s.let_in]

    return over_time(run, lambda samples: percentile(waits(samples), share), step)


def over_time(
    run: Run, figure: Callable[[Sequence[Sample]], float], step: float = 1.0
) -> list[tuple[float, float]]:
    """Return a figure of the shopping that was due in each *step* seconds, where there is one."""
    bins: list[list[Sample]] = [[] for _ in range(round(run.spans[-1].end / step))]
    for sample in run.sent_in(Span("", 0, len(bins) * step)):
        bins[int(sample.at / step)].append(sample)
    points = [((index + 0.5) * step, figure(samples)) for index, samples in enumerate(bins) if samples]
    return [(at, value) for at, value in points if not math.isnan(value)]
