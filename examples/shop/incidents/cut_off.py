"""Incident A6: a network policy cuts what goes between the services, health checks included."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from examples.shop import health, naive, static
from examples.shop.figures import FAULT, Note, Run, Sample, Span, Summary
from examples.shop.incident import (
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
from examples.shop.neighbours import DEPENDENCIES
from examples.shop.network import Network
from examples.shop.orchestrator import (
    ENDED,
    KILLED,
    LIVE,
    PROBE,
    READY,
    UP,
    Care,
    Probes,
    orchestrated_shop,
)
from examples.shop.processes import Hear, Shop
from examples.shop.report import drawings
from examples.shop.report.plots import Points, line_plot, linear_axis
from examples.shop.service import NAMES
from examples.shop.timing import SCALE, scaled
from examples.shop.words import seconds, share
from resilient.testing import describe

RECOVERY = "recovery"
OUR_OWN = tuple(name for name in NAMES if name != "rates")
# Who cannot do without those behind the network.
DEPENDENT = "checkout"

# A kubelet's: every 5 seconds, one for the answer, three in a row; started again after 10 seconds, and 20.
PERIOD, BACK_OFF = scaled(5), scaled(10)
# What is known may be so old; to find out takes so long; and the next probe but one is told.
NOTICED_WITHIN = health.TTL + health.TIMEOUT + 2 * PERIOD
PROBE_WITHIN = 1.0

PAGES = ("home", "browse", "set currency")
CARTS = ("view cart", "add to cart", "checkout")
# Until the last is told that it cannot be done now; and a busy machine's slack.
TOLD_WITHIN = static.CHECKOUT_WITHIN + 0.25
BACK_WITHIN = scaled(10)

PROTECTED = Probes("/startupz", "/livez", "/readyz", PERIOD)
BARE = Probes("/healthz", naive.PATH, naive.PATH, PERIOD)


def _served(actions: Sequence[str], row: Summary) -> str:
    return share(*_counts(actions, row), 0)


def _counts(actions: Sequence[str], row: Summary) -> tuple[int, int]:
    """Return how many requests for these were served, and sent."""
    counts = [row.served.get(action, (0, 0)) for action in actions]
    return sum(served for served, _ in counts), sum(sent for _, sent in counts)


class CutOff(Incident):
    """Packets between the services are dropped; nobody is told, and who probes draws the wrong conclusion."""

    key = "a6"
    title = "Everything is down"
    versions = (
        Version("bare", environment={"SHOP_HEALTH": "naive"}),
        Version("protected", ["calls", "static"]),
    )
    difference = Path(static.__file__)
    defaults = Settings(rate=30, warm_up=0.5, calm=1.5, fault=11, recovery=5)
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("pages", partial(_served, PAGES)),
        Column("carts", partial(_served, CARTS)),
        Column("503", lambda row: str(row.shed)),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p99", lambda row: seconds(row.p99)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )
    _network: Network

    @asynccontextmanager
    async def shop(
        self, version: Version, logs: Path, hear: Hear, environment: Mapping[str, str]
    ) -> AsyncIterator[Shop]:
        """Run the shop over a network that can be cut, with somebody who probes it."""
        self._network = Network()
        probes = BARE if version.name == "bare" else PROTECTED
        running = orchestrated_shop(
            logs,
            protections=version.protections,
            hear=hear,
            environment=environment,
            services=self.services,
            care=Care(probes=probes, back_off=BACK_OFF),
            network=self._network,
        )
        async with running as shop:
            yield shop

    async def begin(self, span: Span, hear: Hear) -> None:
        """Cut the network, and have it whole again."""
        if span.name == FAULT:
            self._network.cut()
        elif span.name == RECOVERY:
            self._network.heal()

    def story(self, settings: Settings) -> str:
        """Tell what is cut, and who looks."""
        return (
            f"For {seconds(settings.fault)} all packets between the services are dropped, those to the rates "
            "API and those of health checks, too. Customers still get to the frontend, and who probes the "
            "services gets to each: one that fails three probes in a row is started again, or sent no more "
            f"customers. Played at {settings.rate:g} requests/s, in time scaled by 1/{SCALE:g}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return how often who probes has started something again, and which services are not ready."""
        said = {
            note.told["of"]: note.told["answer"] for note in run.noted(PROBE) if note.told["kind"] == READY
        }
        unready = [name for name, answer in said.items() if answer != "200"]
        return {"restarts": str(len(_kills(run))), "not ready": ", ".join(unready) or "none"}

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _incident_happens(bare),
            _probes_make_it_worse(bare),
            _stays_alive(protected),
            _tells_the_truth(protected),
            _pages_are_served(protected),
            _the_rest_is_told_soon(protected),
            _soon_back(bare, protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what became of pages and processes."""
        return [
            Tile.of("pages served in fault", outcomes, lambda each: _served(PAGES, each.fault)),
            Tile.of("restarts", outcomes, lambda each: str(len(_kills(each.run)))),
            Tile.of("failed sign-of-life probes", outcomes, lambda each: share(*_failed(each.run, LIVE), 0)),
            Tile.of("until all is well again", outcomes, lambda each: _or_never(_until_back(each))),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what the customers got, and what who probes was told."""
        runs = [outcome.run for outcome in outcomes]
        legend = drawings.legend([run.version for run in runs], "packets between the services are dropped")
        return [
            Exhibit("What became of it", legend + drawings.goodput(settings, runs) + _up_plot(runs)),
            Exhibit("What who probes was told while it was cut", _probes_table(runs)),
            Exhibit("Who left whom alone", drawings.breakers(runs)),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        times = {
            "services are probed every": 5.0,
            "started again after": 10.0,
            "the frontend waits for a page's parts for": 2.5,
            "customers give up after": PATIENCE,
            "a good answer takes at most": GOOD_WITHIN,
        }
        return [
            *((what, seconds(value), seconds(scaled(value))) for what, value in times.items()),
            ("a probe's answer takes at most", "1 s", "1 s"),
            ("requests per second", "", f"{settings.rate:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say what stands for what."""
        return [
            """The network is a process's: what goes between two services goes through a link that stops
            passing anything on, and goes on where it stopped. Connections are made all the same, but nothing
            comes of them.""",
            """Before the frontend stands a balancer with one target. When three probes in a row have said
            that this is not ready, it answers 503 itself.""",
            """The bare services have one path for both probes, and ask there whom they depend on, one after
            the other; the protected ones have a path for each, and ask in the background. The
            timeout of a probe, a second, is not scaled.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe what is on the parts of a page, and on what is done to a cart."""
        calls = static.StaticCalls
        functions = calls.products, calls.convert, calls.view_cart, calls.place_order
        return [policy for function in functions for policy in describe(function)]


def _kills(run: Run) -> list[Note]:
    return run.noted(KILLED)


def _probed(run: Run, kind: str, of: str | None = None) -> list[Note]:
    """Return what probes of one kind were told, of one service or of all."""
    return [
        note
        for note in run.noted(PROBE)
        if note.told["kind"] == kind and (of is None or note.told["of"] == of)
    ]


def _failed(run: Run, kind: str) -> tuple[int, int]:
    """Return how many probes of one kind failed, and were sent."""
    probes = _probed(run, kind)
    return sum(note.told["answer"] != "200" for note in probes), len(probes)


def _until(run: Run, since: str, wanted: bool) -> float:
    """Return how long after a phase began the dependent service was found ready, or not."""
    span = run.span(since)
    found = (
        note.at - span.start
        for note in _probed(run, READY, DEPENDENT)
        if note.at in span and (note.told["answer"] == "200") is wanted
    )
    return next(found, math.inf)


def _until_back(outcome: Outcome) -> float:
    """Return how long after the cut the last request came that was not served; infinite for never back."""
    span = outcome.run.span(RECOVERY)
    late = [s.at - span.start for s in outcome.run.sent_in(span) if not s.ok and s.outcome != "409"]
    last = max(late, default=0.0)
    return math.inf if last > 0.9 * span.seconds else last


def _or_never(value: float) -> str:
    return "never" if math.isinf(value) else seconds(value)


def _incident_happens(bare: Outcome) -> Check:
    served, sent = _counts((*PAGES, *CARTS), bare.fault)
    return Check(
        "bare: in the fault nothing is served, but what was under way",
        f"{share(served, sent)} ({served} of {sent})",
        served < 0.05 * sent,
    )


def _probes_make_it_worse(bare: Outcome) -> Check:
    kills = Counter(note.told["of"] for note in _kills(bare.run))
    return Check(
        "bare: each service that depends on others is started again, for what it has not",
        ", ".join(f"{name} {times}" for name, times in sorted(kills.items())) or "none",
        all(kills[name] for name in OUR_OWN if DEPENDENCIES[name]),
    )


def _stays_alive(protected: Outcome) -> Check:
    failed, probes = _failed(protected.run, LIVE)
    return Check(
        "protected: each probe of /livez is answered with 200, and nothing is started again",
        f"{probes - failed} of {probes}, {len(_kills(protected.run))} restarts",
        failed == 0 < probes and not _kills(protected.run),
    )


def _tells_the_truth(protected: Outcome) -> Check:
    gone, back = _until(protected.run, FAULT, wanted=False), _until(protected.run, RECOVERY, wanted=True)
    longest = max(note.told["seconds"] for note in _probed(protected.run, READY))
    return Check(
        f"protected: /readyz of the {DEPENDENT} says within {seconds(NOTICED_WITHIN)} that it is not ready, "
        f"and that it is again; no probe of it waits for {seconds(PROBE_WITHIN)}",
        f"{_or_never(gone)}, {_or_never(back)}; {seconds(longest)} at most",
        max(gone, back) <= NOTICED_WITHIN and longest < PROBE_WITHIN,
    )


def _pages_are_served(protected: Outcome) -> Check:
    served, sent = _counts(PAGES, protected.fault)
    return Check(
        "protected: in the fault over 99 % of the pages with what the shop sells are served",
        f"{share(served, sent, 2)} ({sent - served} of {sent} not)",
        served > 0.99 * sent,
    )


def _the_rest_is_told_soon(protected: Outcome) -> Check:
    span = protected.run.span(FAULT)
    waits = [s.latency for s in protected.run.sent_in(span) if s.action in CARTS]
    return Check(
        f"protected: who wants a cart, or to pay, is told within {seconds(TOLD_WITHIN)} that it cannot be",
        f"{seconds(max(waits))} at most",
        max(waits) <= TOLD_WITHIN,
    )


def _soon_back(bare: Outcome, protected: Outcome) -> Check:
    ours, theirs = _until_back(protected), _until_back(bare)
    return Check(
        f"protected: {seconds(BACK_WITHIN)} after the cut everything is served again",
        f"{_or_never(ours)} (bare: {_or_never(theirs)})",
        ours <= BACK_WITHIN,
    )


def _up_plot(runs: Sequence[Run]) -> str:
    """Draw how many of the services are up."""
    title, axis = "Services that are up, of the shop's own", linear_axis("services", len(OUR_OWN))
    series = {run.version: _up_over_time(run) for run in runs}
    return drawings.titled(title, line_plot(title, axis, drawings.lines(series), runs[0].spans))


def _up_over_time(run: Run) -> Points:
    up, points = len(OUR_OWN), [(0.0, float(len(OUR_OWN)))]
    changes = [note for note in (*run.noted(UP), *run.noted(ENDED)) if note.at < run.spans[-1].end]
    for note in sorted(changes, key=lambda note: note.at):
        points.append((note.at, float(up)))
        up += 1 if note.what == UP else -1
        points.append((note.at, float(up)))
    return [*points, (run.spans[-1].end, float(up))]


def _probes_table(runs: Sequence[Run]) -> str:
    """Return what the probes of each service were told while the network was cut."""
    rows = []
    for run in runs:
        for name in OUR_OWN:
            cells = [run.version, name]
            for kind in (LIVE, READY):
                notes = [note for note in _probed(run, kind, name) if note.at in run.span(FAULT)]
                told = Counter(note.told["answer"] for note in notes)
                cells.append(", ".join(f"{answer} {times}" for answer, times in told.most_common()) or "-")
            cells.append(str(sum(note.told["of"] == name for note in _kills(run))))
            rows.append(drawings.row(cells))
    return drawings.table(["run", "service", "is it alive?", "is it ready?", "started again"], rows)
