"""Incident D9, a game day: more and more visitors, until the shop breaks, or does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import httpx

from examples.shop import shedding
from examples.shop.crowds import CUSTOMERS, PREFETCH, PROBES, Crowd, plan
from examples.shop.figures import Run, Sample, Span, Summary, percentile
from examples.shop.incident import (
    BARE,
    CALM_LATENCY,
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
from examples.shop.processes import running_shop
from examples.shop.report import drawings
from examples.shop.report.plots import LOAD, SHARE, Points, line_plot, linear_axis, seconds_axis
from examples.shop.words import seconds, share
from resilient.testing import describe

# What arrives, in capacities of the bare shop: step by step, before and after, and while a limit is found.
LADDER = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
RUNGS = tuple(f"{load:g}x" for load in LADDER)
BEYOND = tuple(name for name, load in zip(RUNGS, LADDER, strict=True) if load > 1)
CALM = 0.5
DRILL = 2.0

# Of three requests, the customer makes one, and the browser two ahead.
AHEAD = 2

# The catalogue's database has no more connections, and that is what limits the shop. A page takes 0.2 s, so
# that some 14 requests at once are enough to keep it busy.
CONNECTIONS = 3
TOO_LOW, TOO_HIGH = 2, 140
GUESS = 200
# What the rates API takes from some moment on: a page takes 2.5 times as long then.
SLOWER_LATENCY = 0.4

TARGET_P95 = 0.5
# The card is a test card: a provider of payments is not for games.
CARD_TIME = 0.05
PROBES_PER_SECOND = 5.0

# How `shedding.importance` ranks what visitors ask for.
RANKS = {
    "critical": ("add to cart", "checkout", "view cart"),
    "default": ("browse", "home", "set currency"),
    "sheddable": ("prefetch",),
    "probe": ("probe",),
}

SETTLING, SETTLED, SLOWING, SLOWER = "settling", "settled", "slowing", "slower"
LAST_ANSWERS = "last answers"

FIXED = Version("fixed", ["shedding"], {"SHOP_LIMIT": str(GUESS)})
ADAPTIVE = Version("adaptive", ["shedding"], {"SHOP_INITIAL_LIMIT": str(TOO_LOW)})
FROM_HIGH = Version("from-high", ["shedding"], {"SHOP_INITIAL_LIMIT": str(TOO_HIGH)})


def _counts(rank: str, rows: Iterable[Summary]) -> tuple[int, int]:
    """Return how many requests of a rank were served, and sent."""
    counts = [row.served.get(action, (0, 0)) for row in rows for action in RANKS[rank]]
    return sum(served for served, _ in counts), sum(sent for _, sent in counts)


def _served(rank: str, *rows: Summary, digits: int = 1) -> str:
    return share(*_counts(rank, rows), digits)


class Stage(NamedTuple):
    """A phase of a run: how long it is, and what arrives in it, in capacities."""

    name: str
    length: float
    load: float


class Overload(Incident):
    """Ever more visitors, for three shops; and limits that begin far from where they should be."""

    key = "d9"
    title = "Load to failure"
    versions = (BARE, FIXED, ADAPTIVE, FROM_HIGH)
    difference = Path(shedding.__file__)
    defaults = Settings(
        rate=0, warm_up=2, calm=2, onset=18, fault=2.5, recovery=2, patience=2.0, good_within=2.0
    )
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("good/s", lambda row: f"{row.throughput:.0f}"),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p95", lambda row: seconds(row.p95)),
        Column("failed", lambda row: share(row.errors - row.shed, row.requests - row.shed)),
        *(Column(rank, partial(_served, rank)) for rank in RANKS),
    )

    async def prepare(self, settings: Settings, logs: Path) -> Settings:
        """Measure what the bare shop can answer, unless that is given."""
        if settings.rate:
            return settings
        shopping = running_shop(logs, environment=self.environment(settings))
        async with httpx.AsyncClient() as http, shopping as shop:
            await shop.wait_until_up(http)
            return replace(settings, rate=round(await _capacity(shop.urls["frontend"])))

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return the phases that one version of the shop goes through."""
        spans, start = [], 0.0
        for stage in _stages(settings, version):
            faulty = stage.name in {SLOWING, SLOWER, *BEYOND}
            spans.append(Span(stage.name, start, start + stage.length, faulty))
            start += stage.length
        return spans

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return the customers, as many requests of their browsers' own, and an orchestrator."""
        spans, stages = self.spans(settings, version), _stages(settings, version)
        return [
            *(
                Crowd(name, part * stage.load * settings.rate, span.start, span.end, at_random=True)
                for name, part in ((CUSTOMERS, 1 / (1 + AHEAD)), (PREFETCH, AHEAD / (1 + AHEAD)))
                for span, stage in zip(spans, stages, strict=True)
            ),
            Crowd(PROBES, PROBES_PER_SECOND, 0.0, spans[-1].end),
        ]

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return what limits the shop; its time is not scaled."""
        return {
            "SHOP_SCALE": "1",
            "SHOP_CONNECTIONS": str(CONNECTIONS),
            "SHOP_CHARGE_TIME": str(CARD_TIME),
        }

    def api_latency(self, span: Span) -> float:
        """Return how long the rates API takes to answer in a phase."""
        return SLOWER_LATENCY if span.name in {SLOWING, SLOWER} else CALM_LATENCY

    def story(self, settings: Settings) -> str:
        """Tell who comes."""
        return (
            f"A game day: from {LADDER[0]:g} to {LADDER[-1]:g} times what the shop can answer, which is "
            f"{settings.rate:g} requests/s; two of three are what browsers fetch ahead of users. Visitors "
            f"leave after {seconds(settings.patience)}. The shop is bare; has a fixed limit of {GUESS} "
            f"requests at once; has one that adapts, and begins ten times too low. Then that one begins ten "
            f"times too high, and the rates API turns slower. Time is not scaled."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return what is shed, what fails of the rest, and the limit."""
        let_in = [s for s in lately if s.let_in]
        return {
            "failed": share(sum(not s.ok for s in let_in), len(let_in)),
            "shed": share(len(lately) - len(let_in), len(lately), 0),
            "limit": str(run.limits[-1][1]) if run.limits else "none",
        }

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare the runs with what is promised."""
        *ladders, from_high = outcomes
        bare, fixed, adaptive = ladders
        peak = max(row.throughput for outcome in ladders for row in _rungs(outcome))
        return [
            _bare_breaks(bare),
            _goodput_stays(adaptive, fixed, peak),
            _let_in_stay_fast(adaptive),
            _let_in_are_served(adaptive),
            _least_important_first(adaptive),
            _probes_are_answered(adaptive, from_high),
            _limit_is_found(adaptive, TOO_LOW, settings.rate),
            _limit_is_found(from_high, TOO_HIGH, settings.rate),
            _slowness_is_followed(from_high, settings.rate),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what is left of each shop at the top of the ladder."""
        ladders = outcomes[:3]
        return [
            Tile.of("good answers/s at 4x", ladders, lambda each: f"{_top(each).throughput:.0f}"),
            Tile.of("p95 at 4x", ladders, lambda each: seconds(_top(each).p95)),
            Tile.of("critical served at 4x", ladders, lambda each: _served("critical", _top(each), digits=0)),
            Tile.of("probes answered at 4x", ladders, lambda each: _served("probe", _top(each), digits=0)),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what is served, to whom, and where the limits go."""
        *ladders, from_high = outcomes
        adaptive = ladders[-1]
        names = [outcome.run.version for outcome in ladders]
        served = drawings.legend(RANKS, "more arrives than can be served")
        return [
            Exhibit(
                "What is left of the shop",
                drawings.legend(names, "more arrives than can be served")
                + _goodput_plot(ladders)
                + _latency_plot(settings, ladders),
            ),
            Exhibit("Who is served", served + "".join(map(_served_plot, ladders))),
            Exhibit(
                "Where the limit goes",
                _limit_plot("From far too low, and then as more and more arrive", adaptive.run)
                + _limit_plot("From far too high, and then as pages take longer", from_high.run),
            ),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        ladder = ", ".join(f"{load:g}" for load in LADDER)
        return [
            ("visitors", "100, 200, 500 users", f"{ladder} x {settings.rate:g} requests/s"),
            ("p95 of what is let in", seconds(TARGET_P95), seconds(TARGET_P95)),
            ("failures of what is let in", "under 1 %", "under 1 %"),
            ("visitors leave after", "", seconds(settings.patience)),
            ("connections of the catalogue's database", "", str(CONNECTIONS)),
            ("a query, the rates API, the card", "", f"50 ms, 100 ms, {seconds(CARD_TIME)}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say what limits the shop, and what is counted."""
        return [
            """The shop is limited by the connections of one database, not by the processor: the load
            generator runs on the same machine, and would starve with the shop. What the shop can answer is
            measured first, by as many visitors at once as keep the database busy.""",
            """Visitors arrive at random, at a rate that nothing slows down. Good answers are those that come
            before the visitor has left, and are counted in the phase in which they come.""",
            f"""A fixed limit that is right does as well as one that adapts, until something changes; {GUESS}
            is how many threads many a server comes with. The card is a test card, which is charged in
            {seconds(CARD_TIME)}: nobody plays at failure with a provider of payments.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe the bulkhead."""
        return [{**policy, "limit": shedding.limit()} for policy in describe(shedding.frontend)]


def _stages(settings: Settings, version: Version) -> list[Stage]:
    settling, settled = Stage(SETTLING, settings.onset, DRILL), Stage(SETTLED, settings.fault, DRILL)
    # By its end, whoever was there before has an answer, or has left: none of them meets the slower API.
    last_answers = Stage(LAST_ANSWERS, settings.patience, DRILL)
    slowing, slower = settling._replace(name=SLOWING), settled._replace(name=SLOWER)
    ladder = [
        Stage("warm-up", settings.warm_up, CALM),
        *(
            Stage(name, settings.fault if load > 1 else settings.calm, load)
            for name, load in zip(RUNGS, LADDER, strict=True)
        ),
        Stage("recovery", settings.recovery, CALM),
    ]
    stages = {
        ADAPTIVE.name: [settling, settled, *ladder],
        FROM_HIGH.name: [settling, settled, last_answers, slowing, slower],
    }
    return stages.get(version.name, ladder)


async def _capacity(url: str) -> float:
    """Return how many requests a second the shop answers when it is never without one.

    The first second does not count, in which everybody begins at once.
    """
    customers, ahead = (Crowd(name, 1e4, 0.0, 4.0) for name in (CUSTOMERS, PREFETCH))
    plans = plan(customers), *(plan(ahead, seed=number) for number in range(AHEAD))
    requests = chain.from_iterable(zip(*plans, strict=True))
    answers = await without_a_pause(url, requests, at_once=10 * CONNECTIONS, for_seconds=4.0)
    return sum(1.0 <= at < 4.0 for at in answers) / 3.0


def _rungs(outcome: Outcome) -> list[Summary]:
    return [outcome.phases[name] for name in RUNGS]


def _beyond(outcome: Outcome) -> list[Summary]:
    """Return the phases in which more arrives than can be served."""
    return [outcome.phases[name] for name in BEYOND]


def _top(outcome: Outcome) -> Summary:
    return _rungs(outcome)[-1]


def _served_ratio(rank: str, row: Summary) -> float:
    served, sent = _counts(rank, [row])
    return served / sent if sent else math.nan


def _bare_breaks(bare: Outcome) -> Check:
    peak, left = max(row.throughput for row in _rungs(bare)), _top(bare).throughput
    return Check(
        "bare: at 4x its capacity, less than half of its best goodput is left",
        f"{left:.1f} of {peak:.1f}/s",
        left < peak / 2,
    )


def _goodput_stays(adaptive: Outcome, fixed: Outcome, peak: float) -> Check:
    left, guessed = _top(adaptive).throughput, _top(fixed).throughput
    return Check(
        "adaptive: at 4x, at least 80 % of the best goodput of all runs is left",
        f"{left:.1f} of {peak:.1f}/s, {share(left, peak, 0)} (fixed at {GUESS}: {guessed:.1f})",
        left >= 0.8 * peak,
    )


def _let_in_stay_fast(adaptive: Outcome) -> Check:
    slowest = max(row.p95 for row in _beyond(adaptive))
    return Check(
        f"adaptive: p95 of what is let in stays below {seconds(TARGET_P95)}",
        f"{seconds(slowest)} at most, in any step",
        slowest < TARGET_P95,
    )


def _let_in_are_served(adaptive: Outcome) -> Check:
    let_in = sum(row.requests - row.shed for row in _beyond(adaptive))
    failed = sum(row.errors - row.shed for row in _beyond(adaptive))
    return Check(
        "adaptive: of what is let in, less than 1 % fails",
        f"{share(failed, let_in, 2)} ({failed} of {let_in})",
        failed < 0.01 * let_in,
    )


def _least_important_first(adaptive: Outcome) -> Check:
    served, sent = _counts("critical", _beyond(adaptive))
    top = _top(adaptive)
    dropped, ahead = _counts("sheddable", [top])
    return Check(
        "adaptive: beyond capacity, at least 99.4 % of what is critical is served, and of what is sheddable "
        "less than 5 % at 4x",
        f"critical {share(served, sent, 2)} ({served} of {sent}); at 4x default {_served('default', top)}, "
        f"sheddable {share(dropped, ahead)}",
        served >= 0.994 * sent and dropped < 0.05 * ahead,
    )


def _probes_are_answered(*protected: Outcome) -> Check:
    served, sent = _counts("probe", [row for outcome in protected for row in outcome.phases.values()])
    slowest = max(s.latency for outcome in protected for s in outcome.run.of(PROBES))
    return Check(
        "adaptive, from whatever limit: every probe is answered, all the time",
        f"{served} of {sent}, in {seconds(slowest)} at most",
        0 < served == sent,
    )


def _limit_is_found(outcome: Outcome, wrong: int, capacity: float) -> Check:
    row, (since, found) = outcome.phases[SETTLED], _found(outcome.run, SETTLED)
    return Check(
        f"a limit that begins at {wrong} is found: at least 80 % of the capacity is served, p95 below "
        f"{seconds(TARGET_P95)}",
        f"{found:g}, within a factor of 3 after {seconds(since)}; {row.throughput:.1f}/s, "
        f"p95 {seconds(row.p95)}",
        row.throughput >= 0.8 * capacity and row.p95 < TARGET_P95,
    )


def _slowness_is_followed(outcome: Outcome, capacity: float) -> Check:
    row, before = outcome.phases[SLOWER], outcome.phases[SETTLED]
    _, found = _found(outcome.run, SETTLED)
    _, later = _found(outcome.run, SLOWER)
    return Check(
        "when pages take 2.5x as long, the limit follows: at least 80 % of the capacity is served",
        f"limit {found:g} → {later:g}; {row.throughput:.1f}/s, "
        f"p50 {seconds(before.p50)} → {seconds(row.p50)}",
        row.throughput >= 0.8 * capacity,
    )


def _found(run: Run, phase: str) -> tuple[float, float]:
    """Return since when the limit was never three times too high or low, and where it is in a phase."""
    span = run.span(phase)
    found = percentile((limit for at, limit in run.limits if at in span), 0.5)
    away = (at for at, limit in run.limits if at < span.end and not found / 3 <= limit <= found * 3)
    return max(away, default=0.0), found


def _by_load(outcome: Outcome, figure: Callable[[Summary], float]) -> Points:
    points = [(load, figure(row)) for load, row in zip(LADDER, _rungs(outcome), strict=True)]
    return [(load, value) for load, value in points if not math.isnan(value)]


_LOADS = [Span("", 0.0, 1.0), Span("more than can be served", 1.0, LADDER[-1], faulty=True)]


def _goodput_plot(ladders: Sequence[Outcome]) -> str:
    series = {each.run.version: _by_load(each, lambda row: row.throughput) for each in ladders}
    highest = max(value for points in series.values() for _, value in points)
    axis = linear_axis("good answers per second", highest)
    plot = line_plot("Goodput by load", axis, drawings.lines(series), _LOADS, along=LOAD)
    return drawings.titled("Goodput: right answers, in time for visitors who have not left", plot)


def _latency_plot(settings: Settings, ladders: Sequence[Outcome]) -> str:
    series = {each.run.version: _by_load(each, lambda row: row.p95) for each in ladders}
    values = [value for points in series.values() for _, value in points]
    axis = seconds_axis("p95 latency (log scale)", min(values), max(*values, settings.patience))
    marks = [(TARGET_P95, f"promised {seconds(TARGET_P95)}"), (settings.patience, "visitors leave")]
    plot = line_plot("95th percentile by load", axis, drawings.lines(series), _LOADS, marks, along=LOAD)
    return drawings.titled("Latency of what is let in, 95th percentile", plot)


def _served_plot(outcome: Outcome) -> str:
    lines = drawings.lines({rank: _by_load(outcome, partial(_served_ratio, rank)) for rank in RANKS})
    plot = line_plot(f"Served share by rank, {outcome.run.version}", SHARE, lines, _LOADS, along=LOAD)
    return drawings.titled(f"Served, of what was asked for: {outcome.run.version}", plot)


def _limit_plot(title: str, run: Run) -> str:
    axis = linear_axis("requests at once", max(limit for _, limit in run.limits))
    return drawings.titled(
        title, line_plot(title, axis, drawings.lines({run.version: run.limits}), run.spans)
    )
