"""Incident A7: a load generator runs wild, and 200 requests a second become 2,000."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from examples.shop import door
from examples.shop.crowds import CUSTOMERS, FLOOD, HEEDFUL, PAGES, Crowd, plan
from examples.shop.door import BURST, LIMIT
from examples.shop.figures import Run, Sample, Span, Summary, over_time
from examples.shop.incident import (
    BARE,
    GOOD_WITHIN,
    PATIENCE,
    Check,
    Column,
    Exhibit,
    Incident,
    Outcome,
    Settings,
    Tile,
    Version,
)
from examples.shop.load import without_a_pause
from examples.shop.processes import Shop, cores, running_shop
from examples.shop.report import drawings
from examples.shop.report.plots import line_plot, linear_axis
from examples.shop.timing import SCALE, scaled, scaled_traffic
from examples.shop.words import seconds, share, times

CALM_RATE = 200.0
FLOOD_RATE = 2000.0
# The flood is this many times what can be answered on this machine.
OVERLOAD = 1.2

OWN_SERVICES = ("frontend", "catalogue", "currency", "checkout")


class Flood(Incident):
    """Customers' 200 requests a second, and 1,800 more from one address: too many for every service."""

    key = "a7"
    title = "A load generator floods the shop"
    versions = (BARE, Version("protected", ["door"]))
    difference = Path(door.__file__)
    defaults = Settings(rate=0, warm_up=2, calm=7, onset=2, fault=10, recovery=4)
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("429", lambda row: share(row.refused, row.requests)),
        Column("failed", lambda row: share(row.errors, row.requests)),
        Column("p50", lambda row: seconds(row.p50)),
        Column("page p95", lambda row: seconds(row.page_p95)),
        Column("checkout p95", lambda row: seconds(row.checkout_p95)),
        Column("flood p95", lambda row: seconds(row.flood_p95)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )

    async def prepare(self, settings: Settings, logs: Path) -> Settings:
        """Measure what the bare shop can answer, unless the customers' rate is given."""
        if settings.rate:
            return settings
        async with httpx.AsyncClient() as http, running_shop(logs) as shop:
            await shop.wait_until_up(http)
            most = await _capacity(shop, http)
        # An even number, for the limit is half of it.
        return replace(settings, rate=2.0 * round(most * OVERLOAD * CALM_RATE / FLOOD_RATE / 2))

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return the customers; and in the flood, where it comes from, and a client that listens."""
        start, end = _duration(settings.spans())
        flood = (FLOOD_RATE - CALM_RATE) / _scale(settings)
        return [
            *super().crowds(settings, version),
            Crowd(FLOOD, flood, start, end),
            Crowd(HEEDFUL, 3 * _limit(settings), start, end),
        ]

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return what fits the door to the machine."""
        return {"SHOP_TRAFFIC_SCALE": str(_scale(settings))}

    def story(self, settings: Settings) -> str:
        """Tell who comes."""
        played = f"{settings.rate:g} requests/s become {settings.rate * FLOOD_RATE / CALM_RATE:g}"
        return (
            f"To the customers' {CALM_RATE:g} requests a second, a load generator run wild adds "
            f"{FLOOD_RATE - CALM_RATE:,g} from one address. The door lets each client in {LIMIT:g} times a "
            f"second, and {BURST:g} times at once. Traffic is scaled by 1/{_scale(settings):.3g}, the door "
            f"included: {played}, limit {_limit(settings)}/s, burst {_burst(settings)}. "
            f"Time is scaled by 1/{SCALE:g}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return the share of the flood that is turned away."""
        flood = [s for s in lately if s.crowd == FLOOD]
        return {"flood refused": share(sum(s.refused for s in flood), len(flood), 0)}

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _every_service_slows(bare),
            _admitted_stay_fast(protected),
            _customers_are_served(protected),
            _flood_gets_its_limit(settings, protected),
            _who_waits_is_let_in(protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the flood did to pages, services, and to itself."""
        return [
            Tile.of("pages p95 in flood", outcomes, lambda each: seconds(each.fault.page_p95)),
            Tile.of("slowest service, to calm", outcomes, lambda each: times(max(_slowdowns(each).values()))),
            Tile.of("good answers/s in flood", outcomes, lambda each: f"{each.fault.goodput:.1f}"),
            Tile.of("of the flood refused", outcomes, lambda each: _flood_refused(each.run)),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what the customers got, what the flood got, and what it did to each service."""
        runs = [outcome.run for outcome in outcomes]
        names = [run.version for run in runs]
        latency = drawings.latency(settings, runs, 0.95, PAGES, of=" of all but checkouts")
        customers = drawings.goodput(settings, runs) + latency
        return [
            Exhibit("What the customers saw", drawings.legend(names, "the flood") + customers),
            Exhibit("What the flood got", _flood_plot(settings, runs)),
            Exhibit("What it did to each service", _services_table(*outcomes)),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        rates = {
            "customers' requests per second": CALM_RATE,
            "requests per second in the flood": FLOOD_RATE,
            "let in per client and second": LIMIT,
            "let in per client at once": BURST,
        }
        waits = {"customers give up after": PATIENCE, "a good answer takes at most": GOOD_WITHIN}
        return [
            *((what, f"{value:,g}", f"{value / _scale(settings):g}") for what, value in rates.items()),
            *((what, seconds(value), seconds(scaled(value))) for what, value in waits.items()),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say where the factor comes from, and what the incident leaves open."""
        return [
            f"""All traffic is divided by the same number, the door's limit and burst included. Unless the
            rate is given, the demo first measures how much processor time the bare shop takes for an answer,
            and makes the flood {OVERLOAD:g} times what the machine can give for that.""",
            f"""The flood spends its burst in its first moments: that is the onset, told apart. It is
            {_burst(settings)} pages at once, and whoever comes with them waits for them.""",
            """The limit is each client's own, by the address that a load balancer before the shop tells in
            X-Forwarded-For: one limit for all would turn away half of the customers on a calm day.""",
            """How slow a service is, is what its callers wait for it: the customers for the frontend, the
            services for each other; a call without an answer counts until the end. What fails first is the
            frontend's own HTTP client: with a hundred connections and a long queue for them, it is busy with
            its queue alone.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe the door's limiter."""
        limiter = door.per_client(_scale(settings))
        [quota] = limiter.quotas
        return [{"kind": limiter.kind, **quota._asdict()}]


async def _capacity(shop: Shop, http: httpx.AsyncClient) -> float:
    """Return how many requests a second the machine could ask and answer if it did nothing else.

    By the processor time that an answer takes of each process, and each is on one core at a time. How many
    were answered by the clock would tell as much of what else the machine was doing.
    """
    before = await _processor_times(shop, http)
    customers = plan(Crowd(CUSTOMERS, 1e4, 0, 2))
    answers = await without_a_pause(shop.urls["frontend"], customers, at_once=16, for_seconds=2)
    after = await _processor_times(shop, http)
    used = [end - start for start, end in zip(before, after, strict=True)]
    return len(answers) / max(*used, sum(used) / cores())


async def _processor_times(shop: Shop, http: httpx.AsyncClient) -> list[float]:
    """Return the seconds that each service has used up, and this process, which plays the customers."""
    health = [(await http.get(url + "/healthz")).json() for url in shop.urls.values()]
    return [*(answer["cpu"] for answer in health), time.process_time()]


def _duration(spans: Sequence[Span]) -> tuple[float, float]:
    """Return when the flood begins and ends."""
    faulty = [span for span in spans if span.faulty]
    return faulty[0].start, faulty[-1].end


def _scale(settings: Settings) -> float:
    return CALM_RATE / settings.rate


def _limit(settings: Settings) -> int:
    return scaled_traffic(LIMIT, _scale(settings))


def _burst(settings: Settings) -> int:
    return scaled_traffic(BURST, _scale(settings))


def _every_service_slows(bare: Outcome) -> Check:
    slowdowns = _slowdowns(bare)
    return Check(
        "bare: every service is at least 5x slower in the flood (p95 of what its callers wait)",
        ", ".join(f"{service} {times(ratio)}" for service, ratio in slowdowns.items()),
        min(slowdowns.values()) >= 5,
    )


def _admitted_stay_fast(protected: Outcome) -> Check:
    calm, fault = protected.calm, protected.fault
    ratios = {
        "pages": fault.page_p95 / calm.page_p95,
        "checkouts": fault.checkout_p95 / calm.checkout_p95,
        "the flood's pages": fault.flood_p95 / calm.page_p95,
    }
    return Check(
        "protected: p95 of what is let in stays below 2x calm, once the flood has spent its burst",
        ", ".join(f"{what} {ratio:.2f}x" for what, ratio in ratios.items()),
        max(ratios.values()) < 2,
    )


def _customers_are_served(protected: Outcome) -> Check:
    start, end = _duration(protected.run.spans)
    sent = [s for s in protected.run.of(CUSTOMERS) if start <= s.at < end]
    served = sum(s.ok for s in sent)
    return Check(
        "protected: more than 99 % of the customers' requests in the flood are served",
        f"{share(served, len(sent), 2)} ({served} of {len(sent)})",
        served > 0.99 * len(sent),
    )


def _flood_gets_its_limit(settings: Settings, protected: Outcome) -> Check:
    flood = protected.run.of(FLOOD)
    served, refused = sum(s.ok for s in flood), sum(s.refused for s in flood)
    lasted = max(s.at + s.latency for s in flood) - min(s.at + s.lag for s in flood)
    most = _burst(settings) + _limit(settings) * lasted + 1
    return Check(
        "protected: the flood gets its burst and its rate and no more; the rest of it gets 429",
        f"{served} served (limit: {most:.0f}), {refused} refused, {len(flood) - served - refused} otherwise",
        0.95 * most <= served <= most and served + refused == len(flood),
    )


def _who_waits_is_let_in(protected: Outcome) -> Check:
    refused = [s for s in protected.run.samples if s.refused]
    told = {s.retry_after for s in refused}
    returned = [s for s in protected.run.of(HEEDFUL) if s.action == "come back"]
    let_in = sum(s.ok for s in returned)
    return Check(
        "protected: every 429 says when to come back, and who waits just that long is let in",
        f"{len(refused)} said {_in_words(told)}; {let_in} of {len(returned)} let in",
        bool(refused) and None not in told and 0 < let_in == len(returned),
    )


def _in_words(told: Collection[float | None]) -> str:
    return " or ".join("nothing" if wait is None else seconds(wait) for wait in told)


def _slowdowns(outcome: Outcome) -> dict[str, float]:
    calm, fault = _waits(outcome.calm), _waits(outcome.fault)
    return {service: fault[service] / calm[service] for service in OWN_SERVICES}


def _waits(row: Summary) -> dict[str, float]:
    """Return p95 of what each service's callers wait; those of the frontend are the customers."""
    return {"frontend": row.page_p95, **row.services}


def _flood_refused(run: Run) -> str:
    flood = run.of(FLOOD)
    return share(sum(s.refused for s in flood), len(flood))


def _flood_plot(settings: Settings, runs: Sequence[Run]) -> str:
    def served(samples: Sequence[Sample]) -> float:
        return sum(s.crowd == FLOOD and s.ok for s in samples)

    series = {run.version: over_time(run, served) for run in runs}
    axis = linear_axis("served per second", max(value for points in series.values() for _, value in points))
    marks = [(_limit(settings), f"limit {_limit(settings)}/s")]
    plot = line_plot("Requests of the flood served", axis, drawings.lines(series), runs[0].spans, marks)
    return drawings.titled("Requests of the flood that were served, by the second they were due", plot)


def _services_table(*outcomes: Outcome) -> str:
    rows = []
    for service in OWN_SERVICES:
        cells = [service]
        for outcome in outcomes:
            cells += [seconds(_waits(phase)[service]) for phase in (outcome.calm, outcome.fault)]
            cells += [times(_slowdowns(outcome)[service])]
        rows.append(drawings.row(cells))
    headers = [
        "waiting for, p95",
        *(f"{each.run.version} {what}" for each in outcomes for what in ("calm", "flood", "ratio")),
    ]
    return drawings.table(headers, rows, "figures")
