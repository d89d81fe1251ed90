"""Incident B1: one path of the code forgets to return its connection, until the pool has none left."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from html import escape

from examples.children import ROOT
from examples.shop.crowds import CUSTOMERS, MIX, NEWCOMERS, ORDERS, REGULARS, Crowd
from examples.shop.figures import FAULT, Note, Run, Sample, Span
from examples.shop.incident import (
    GOOD_WITHIN,
    PATIENCE,
    Check,
    Exhibit,
    Outcome,
    Settings,
    Tile,
    Version,
)
from examples.shop.incidents.order_database import DatabaseIncident, pool_plot, seen, sessions_plot
from examples.shop.report import drawings
from examples.shop.services.orders import MAX_SIZE, POOL, OrderBook
from examples.shop.timing import SCALE, scaled
from examples.shop.words import seconds, share

RATE = 10_000 / 60
# Of the visitors, so many look at their orders; and to them come the newcomers.
OF_REGULARS = 2 / 3
OF_NEWCOMERS = 1 / 15
# What the incident was.
CALM_USE, FAULT_USE = 0.50, 0.95
CALM_RESPONSE = 0.5
FAULT_ERRORS = 0.45


class Leak(DatabaseIncident):
    """A campaign brings customers who have no orders yet, and look at them."""

    key = "b1"
    title = "A connection leak"
    defaults = Settings(rate=45, warm_up=1, calm=2.5, onset=2.5, fault=3.5, recovery=1.5)

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return who shops, who looks at orders, and from the incident on, who has none."""
        start, end = _incident(self.spans(settings, version))
        regulars = OF_REGULARS * settings.rate
        return [
            Crowd(CUSTOMERS, settings.rate - regulars, 0.0, end + settings.recovery),
            Crowd(REGULARS, regulars, 0.0, end + settings.recovery),
            Crowd(NEWCOMERS, OF_NEWCOMERS * settings.rate, start, end),
        ]

    def story(self, settings: Settings) -> str:
        """Tell who comes, and what that does."""
        return (
            f"The orders are in PostgreSQL, behind a pool of {MAX_SIZE} connections, half of them in use. A "
            "campaign brings newcomers, who look at their orders. There are none yet: that is the one path "
            f"of the code that forgets to return its connection. Played at {settings.rate:g} requests/s and "
            f"{settings.rate * OF_NEWCOMERS:g} newcomers/s, in time scaled by 1/{SCALE:g}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return how much of the pool is in use, and how many leaks were reported."""
        used = seen(run, POOL, "used")
        return {
            "pool": f"{used[-1]:g} of {MAX_SIZE}" if used else "-",
            "leaks reported": str(len(_reports(run))),
        }

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _pool_runs_dry(bare),
            _shop_dies(settings, bare),
            _few_errors(protected),
            _stays_as_it_was(protected),
            _leak_is_named(protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the leak did to the pool and to the customers."""
        return [
            Tile.of("of the pool in use in fault", outcomes, lambda each: f"{_use(each.run, FAULT):.0%}"),
            Tile.of(
                "failed requests in fault",
                outcomes,
                lambda each: share(each.fault.errors, each.fault.requests),
            ),
            Tile.of("p95 in fault", outcomes, lambda each: seconds(each.fault.p95)),
            Tile.of("leaks reported", outcomes, lambda each: str(len(_reports(each.run)))),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return the leak as the service told of it, what the customers saw, and the pool."""
        runs = [outcome.run for outcome in outcomes]
        legend = drawings.legend([run.version for run in runs], "newcomers look at their orders")
        latency = drawings.latency(settings, runs, 0.95, {*MIX, ORDERS})
        return [
            Exhibit("The leak, as the running service reported it", "".join(map(_leaks, runs))),
            Exhibit("What the customers saw", legend + drawings.goodput(settings, runs) + latency),
            Exhibit("What was left of the pool", pool_plot(runs) + sessions_plot(runs)),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        times = {
            "an answer takes, calm": CALM_RESPONSE,
            "customers give up after": PATIENCE,
            "a good answer takes at most": GOOD_WITHIN,
        }
        return [
            *((what, seconds(value), seconds(scaled(value))) for what, value in times.items()),
            ("requests per second", f"{RATE:.0f}", f"{settings.rate:g}"),
            ("of them, who have no orders yet", "", f"{OF_NEWCOMERS * settings.rate:g}"),
            ("of the pool in use, calm", f"{CALM_USE:.0%}", f"{CALM_USE * MAX_SIZE:g} of {MAX_SIZE}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say what both runs have in common, and where the figures come from."""
        return [
            """Both shops run the same orders.py, mistake included. The bare one borrows from psycopg's own
            pool with its defaults, the protected one from the pool in the file below.""",
            """What is in use of a pool is what it says itself, several times a second. The sessions are those
            that PostgreSQL counts. A connection that was forgotten is closed when Python collects it, of
            which the bare pool does not hear: in the end it is full of connections that do not exist.""",
            """The place of the leak is what the running service reported, compared with the line of its
            source that borrows what is not returned.""",
        ]


def _incident(spans: Sequence[Span]) -> tuple[float, float]:
    """Return when the newcomers begin to come, and when they end."""
    faulty = [span for span in spans if span.faulty]
    return faulty[0].start, faulty[-1].end


def _reports(run: Run) -> list[Note]:
    """Return what the pool reported of connections whose borrowers were gone without returning them."""
    return run.noted("ConnectionCollected")


def _use(run: Run, phase: str) -> float:
    """Return which share of the pool was in use in a phase, on average."""
    used = seen(run, POOL, "used", run.span(phase))
    return sum(used) / len(used) / MAX_SIZE


def culprit() -> str:
    """Return the place of the mistake as the source has it: where is borrowed what is not returned."""
    lines, first = inspect.getsourcelines(OrderBook.history)
    [offset] = [offset for offset, line in enumerate(lines) if "getconn" in line]
    return f"{inspect.getfile(OrderBook)}:{first + offset} in OrderBook.history"


def _short(place: str) -> str:
    """Return a place without the folders before the project's own, or before an installed package."""
    return place.rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")


def _pool_runs_dry(bare: Outcome) -> Check:
    calm, fault = _use(bare.run, "calm"), _use(bare.run, FAULT)
    return Check(
        f"bare: about half of the pool is in use when it is calm, and at least {FAULT_USE:.0%} in the fault",
        f"{calm:.0%} → {fault:.0%}",
        CALM_USE / 1.5 < calm < CALM_USE * 1.5 and fault >= FAULT_USE,
    )


def _shop_dies(settings: Settings, bare: Outcome) -> Check:
    calm, fault, after = bare.calm, bare.fault, bare.phases["recovery"]
    return Check(
        f"bare: at least {FAULT_ERRORS:.0%} of requests fail in the fault, and after it; p95 becomes what "
        f"customers wait at most, {seconds(settings.patience)}",
        f"{calm.error_ratio:.1%} → {fault.error_ratio:.1%} → {after.error_ratio:.1%}; "
        f"{seconds(calm.p95)} → {seconds(fault.p95)}",
        min(fault.error_ratio, after.error_ratio) >= FAULT_ERRORS and fault.p95 >= 0.99 * settings.patience,
    )


def _few_errors(protected: Outcome) -> Check:
    sent = protected.run.sent_in(Span("", *_incident(protected.run.spans)))
    failed = sum(not sample.ok for sample in sent)
    return Check(
        "protected: less than 1 % of requests fail, from the first newcomer on",
        f"{share(failed, len(sent), 2)} ({failed} of {len(sent)})",
        failed < 0.01 * len(sent),
    )


def _stays_as_it_was(protected: Outcome) -> Check:
    calm, fault, used = protected.calm.p95, protected.fault.p95, _use(protected.run, FAULT)
    return Check(
        f"protected: the pool does not come to {FAULT_USE:.0%} in use, and p95 in the fault is below 2x calm",
        f"{used:.0%}; {fault / calm:.2f}x ({seconds(calm)} → {seconds(fault)})",
        used < FAULT_USE and fault < 2 * calm,
    )


def _leak_is_named(protected: Outcome) -> Check:
    named = Counter(note.told["where"] for note in _reports(protected.run))
    newcomers = protected.run.of(NEWCOMERS)
    told = ", ".join(f"{_short(place)}, {times} times" for place, times in named.items())
    return Check(
        "protected: each leak is reported by the running service, with file and line",
        f"{told or 'nothing was reported'} ({len(newcomers)} newcomers)",
        {*named} == {culprit()} and sum(s.ok for s in newcomers) <= named.total() <= len(newcomers),
    )


def _leaks(run: Run) -> str:
    """Tell what was reported in a run, place by place."""
    places: dict[str, list[Note]] = {}
    for note in _reports(run):
        places.setdefault(note.told["where"], []).append(note)
    body = "".join(_told_of(place, notes) for place, notes in places.items())
    return drawings.titled(f"The {run.version} run", body or "<p>Nothing was reported.</p>")


def _told_of(place: str, notes: Sequence[Note]) -> str:
    saved = sum(note.told["reused"] for note in notes)
    way = "\n".join(_short(line) for line in notes[0].told["stack"])
    return (
        f"<p>Borrowed at <code>{escape(_short(place))}</code> and never returned: {len(notes)} times. "
        f"{saved} of the connections are in the pool again. The first of them came this way:</p>"
        f"<pre>{escape(way)}</pre>"
    )
