"""Incident A8: gRPC calls fail, each time in another way, at one of two payment services."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from examples.shop import paying
from examples.shop.backends import NAMES as SERVICES
from examples.shop.backends import Backends, running_backends
from examples.shop.crowds import BUYERS, Crowd
from examples.shop.figures import Note, Run, Sample, Span, Summary
from examples.shop.incident import (
    BARE,
    Check,
    Column,
    Exhibit,
    Incident,
    Outcome,
    Settings,
    Tile,
    Version,
)
from examples.shop.payments import ADDRESSES, AUTHORITY
from examples.shop.processes import Hear
from examples.shop.report import drawings
from examples.shop.services.payment import CHARGE_TIME
from examples.shop.till import STATS, TOLD
from examples.shop.timing import SCALE, scaled
from examples.shop.words import seconds, share
from resilient.testing import describe

FROZEN, SICK, REFUSED, HANDSHAKE, WELL = "frozen", "sick", "refused", "handshake", "recovery"
FAULTS = (FROZEN, SICK, REFUSED, HANDSHAKE)
VICTIM = SERVICES[0]
# Every other call goes to the victim: three in ten calls fail when six in ten do there.
ERROR_RATIO = 0.6
IN_BOOK = "in book"
CHECKOUT = "checkout"
# Seconds by which what was told last has to be in the book, when that is compared with it.
_SETTLING = 0.5
# How much later than promised a busy process may be.
_SLACK = 0.25


class FailingGrpc(Incident):
    """One of two payment services freezes, fails, is killed, and shows a wrong certificate."""

    key = "a8"
    title = "gRPC calls fail"
    versions = (BARE, Version("protected", ["payments"]))
    difference = Path(paying.__file__)
    defaults = Settings(rate=30, warm_up=1, calm=2, fault=6.6, onset=3.6, recovery=1.8)
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("checkouts", lambda row: share(*row.served.get(CHECKOUT, (0, 0)))),
        Column("p50", lambda row: seconds(row.p50)),
        Column("checkout p95", lambda row: seconds(row.checkout_p95)),
        Column("checkout p99", lambda row: seconds(row.checkout_p99)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )
    _backends: Backends

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return the phases: a fault after the other, each at the same service."""
        spans, start = [], 0.0
        for name, length in {
            "warm-up": settings.warm_up,
            "calm": settings.calm,
            FROZEN: settings.fault / 2,
            SICK: settings.fault / 2,
            REFUSED: settings.onset / 2,
            HANDSHAKE: settings.onset / 2,
            WELL: settings.recovery,
        }.items():
            spans.append(Span(name, start, start + length, faulty=name in FAULTS))
            start += length
        return spans

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return who buys, and nobody else."""
        return [Crowd(BUYERS, settings.rate, 0.0, self.spans(settings, version)[-1].end)]

    @asynccontextmanager
    async def surroundings(self, settings: Settings, logs: Path, hear: Hear) -> AsyncIterator[dict[str, str]]:
        """Run the payment services for one shop."""
        async with running_backends(logs, hear, self.environment(settings)) as self._backends:
            backends = self._backends
            yield {ADDRESSES: ",".join(backends.addresses), AUTHORITY: str(backends.authority)}

    async def begin(self, span: Span, hear: Hear) -> None:
        """Do to the victim what the phase is about; at the end, see what is in the book."""
        backends = self._backends
        if span.name == FROZEN:
            backends.turn(VICTIM, freeze=span.seconds)
        elif span.name == SICK:
            backends.turn(VICTIM, error_ratio=ERROR_RATIO)
        elif span.name == REFUSED:
            await backends.kill(VICTIM)
        elif span.name == HANDSHAKE:
            await backends.start(VICTIM, stranger=True)
        elif span.name == WELL:
            over = asyncio.get_running_loop().time() + span.seconds + _SETTLING
            await backends.kill(VICTIM)
            await backends.start(VICTIM)
            await asyncio.sleep(over - asyncio.get_running_loop().time())
            hear("book", {"note": IN_BOOK, "orders": backends.charged()})

    def story(self, settings: Settings) -> str:
        """Tell what becomes of the payment service."""
        return (
            f"The checkout has cards charged over gRPC, at two payment services in turn. One of them freezes "
            f"for {seconds(settings.fault / 2)}; then it fails {ERROR_RATIO:.0%} of its calls, half of those "
            f"after the money was moved; is killed, so that connections are refused; and comes back with a "
            f"wrong certificate. {settings.rate / 2:g} checkouts/s; time is scaled by 1/{SCALE:g}, and a "
            f"charge takes {seconds(CHARGE_TIME)}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return the share of payments that failed of late, and how they did."""
        told = [note.told["outcome"] for note in run.noted(TOLD)[-20:]]
        failed = Counter(outcome for outcome in told if outcome != "paid")
        how = ", ".join(f"{name} {count}" for name, count in failed.most_common(2))
        return {"payments failed": share(failed.total(), len(told), 0), "lately": how or "all paid"}

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _incident_happens(bare),
            _bare_hangs(settings, bare),
            _few_errors(protected),
            _in_time(protected),
            _sick_one_is_spared(bare, protected),
            _charged_once(bare, protected),
            _told_by_figures(protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the incident did to payments."""
        return [
            Tile.of("failed, one fails", outcomes, lambda each: share(*_failed(each, SICK))),
            Tile.of("failed, one is frozen", outcomes, lambda each: share(*_failed(each, FROZEN))),
            Tile.of("charged in vain", outcomes, lambda each: str(len(_charged_in_vain(each.run)))),
            Tile.of("charged twice", outcomes, lambda each: str(len(_twice(each.run)))),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what the buyers got, and what the payment services were asked."""
        runs = [outcome.run for outcome in outcomes]
        names = [run.version for run in runs]
        latency = drawings.latency(settings, runs, 0.95, (CHECKOUT,), " of checkouts")
        buyers = drawings.goodput(settings, runs) + latency
        fault = "one of two payment services is away, a stranger, frozen or sick"
        services = _services_table(runs) + drawings.breakers(runs) + _stats_table(runs[1])
        return [
            Exhibit("What the buyers saw", drawings.legend(names, fault) + buyers),
            Exhibit("What the payment services were asked", services),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        times = {
            "a charge takes": 1.0,
            "an attempt takes at most": 2.0,
            "a payment takes at most": 10.0,
            "customers give up after": settings.patience * SCALE,
        }
        return [
            *((what, seconds(value), seconds(scaled(value))) for what, value in times.items()),
            ("payment services", "", "2"),
            ("errors of one of them", "30 %, of all calls", f"{ERROR_RATIO:.0%}, of every other call"),
            ("checkouts per second", "", f"{settings.rate / 2:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say what is measured how, and what was made easy."""
        return [
            """The bare channel is gRPC's with `round_robin`, which leaves out who cannot be connected to. So
            a service that is killed costs it little more than the calls under way, and one with a wrong
            certificate nothing. It has no time limit, as gRPC has none unless it is told.""",
            """Both shops send a key with each charge, the number of the order. What is charged stands in one
            book, where an order is looked up half a second after the last request.""",
            """A service that is frozen does nothing at all in Python, and its connections stay open. gRPC
            looks after longer and longer waits whether one is back; here, after half a second at most.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe what is on a payment, and on the calls to one of the services."""
        guards = [policy for each in paying.guard(VICTIM).policies for policy in describe(each)]
        return [*describe(paying.elsewhere), *guards]


def _failed(outcome: Outcome, *phases: str) -> tuple[int, int]:
    """Return how many checkouts came to nothing, and how many there were."""
    rows: list[Summary] = [outcome.phases[name] for name in phases]
    served = [row.served.get(CHECKOUT, (0, 0)) for row in rows]
    return sum(sent - good for good, sent in served), sum(sent for _, sent in served)


def _outcomes(run: Run) -> dict[str, str]:
    """Return what was told of each order's payment."""
    return {note.told["order"]: note.told["outcome"] for note in run.noted(TOLD)}


def _in_book(run: Run) -> Counter[str]:
    [book] = run.noted(IN_BOOK)
    return Counter(book.told["orders"])


def _twice(run: Run) -> set[str]:
    """Return the orders for which a card was charged more than once."""
    return {order for order, times in _in_book(run).items() if times > 1}


def _unpaid(run: Run) -> set[str]:
    """Return the orders that were said to be paid, and for which no card was charged."""
    [book] = run.noted(IN_BOOK)
    told = [note for note in run.noted(TOLD) if note.at < book.at - _SETTLING]
    return {note.told["order"] for note in told if note.told["outcome"] == "paid"} - _in_book(run).keys()


def _charged_in_vain(run: Run) -> set[str]:
    """Return the orders whose customers were told that it failed, or nothing, and have paid."""
    return {order for order, said in _outcomes(run).items() if said != "paid"} & _in_book(run).keys()


def _asked(run: Run, phase: str) -> Counter[str]:
    """Return how often each service was asked in a phase."""
    span = run.span(phase)
    return Counter(note.told["by"] for note in run.noted("asked") if note.at in span)


def _last_stats(run: Run) -> dict[str, dict[str, Any]]:
    noted: list[Note] = run.noted(STATS)
    return noted[-1].told["services"] if noted else {}


def _incident_happens(bare: Outcome) -> Check:
    failed, sent = _failed(bare, SICK)
    return Check(
        "bare: while one service fails, about 30 % of all checkouts do (20 % to 40 %)",
        f"{share(failed, sent)} ({failed} of {sent})",
        0.2 * sent <= failed <= 0.4 * sent,
    )


def _bare_hangs(settings: Settings, bare: Outcome) -> Check:
    sent = [each for each in bare.run.sent_in(bare.run.span(FROZEN)) if each.action == CHECKOUT]
    bad = sum(not each.ok or each.latency > settings.good_within for each in sent)
    return Check(
        f"bare: while one service is frozen, at least 30 % of checkouts fail or take over "
        f"{seconds(settings.good_within)}",
        f"{share(bad, len(sent))} ({bad} of {len(sent)})",
        bad >= 0.3 * len(sent),
    )


def _few_errors(protected: Outcome) -> Check:
    failed, sent = _failed(protected, *FAULTS, WELL)
    return Check(
        "protected: less than 1 % of checkouts fail, from the kill to the end",
        f"{share(failed, sent, 2)} ({failed} of {sent})",
        failed < 0.01 * sent,
    )


def _in_time(protected: Outcome) -> Check:
    longest = max((note.told["seconds"] for note in protected.run.noted(TOLD)), default=math.inf)
    return Check(
        f"protected: no payment takes longer than its {seconds(paying.WITHIN)}",
        seconds(longest),
        longest <= paying.WITHIN + _SLACK,
    )


def _sick_one_is_spared(bare: Outcome, protected: Outcome) -> Check:
    ours, theirs = (_asked(each.run, SICK) for each in (protected, bare))
    return Check(
        "protected: the service that fails gets less than a third of the calls it gets bare",
        f"{ours[VICTIM]} of {ours.total()} (bare: {theirs[VICTIM]} of {theirs.total()})",
        3 * ours[VICTIM] < theirs[VICTIM],
    )


def _charged_once(bare: Outcome, protected: Outcome) -> Check:
    run = protected.run
    paid = sum(outcome == "paid" for outcome in _outcomes(run).values())
    wrong = len(_twice(run)), len(_unpaid(run)), len(_charged_in_vain(run))
    known = len(run.noted("known"))
    return Check(
        "protected: each order that was paid is charged exactly once, and none that was not",
        f"{wrong[0]} twice, {wrong[1]} not at all, {wrong[2]} in vain, of {paid}; {known} were known when "
        f"asked again (bare: {len(_charged_in_vain(bare.run))} in vain)",
        not any(wrong) and paid > 0 and not _twice(bare.run),
    )


def _told_by_figures(protected: Outcome) -> Check:
    stats = _last_stats(protected.run)
    unconnected = stats.get(VICTIM, {}).get("connection_failures", 0)
    told = ", ".join(
        f"{name} {each['ratio']:.1%} of {each['attempts']}, {each['connection_failures']} not connected"
        for name, each in stats.items()
    )
    return Check(
        "protected: the success rate of each service is told, and how many calls were not connected",
        told,
        unconnected > 0 and stats[VICTIM]["ratio"] < stats[SERVICES[1]]["ratio"],
    )


def _services_table(runs: Sequence[Run]) -> str:
    """Return what each service was asked in each phase, and what came of the payments."""
    rows = []
    for run in runs:
        for span in run.spans[1:]:
            asked = _asked(run, span.name)
            told = Counter(note.told["outcome"] for note in run.noted(TOLD) if note.at in span)
            outcomes = ", ".join(f"{name} {count}" for name, count in told.most_common())
            cells = [run.version, span.name, *(str(asked[name]) for name in SERVICES), outcomes or "-"]
            rows.append(drawings.row(cells))
    return drawings.table(["run", "phase", *(f"{name} asked" for name in SERVICES), "payments"], rows)


def _stats_table(run: Run) -> str:
    """Return what the interceptors have counted."""
    rows = []
    for name, each in _last_stats(run).items():
        statuses = ", ".join(f"{status} {count}" for status, count in each["statuses"].items())
        figures = [f"{each['ratio']:.1%}", str(each["attempts"]), str(each["connection_failures"])]
        rows.append(drawings.row([name, *figures, statuses or "-"]))
    return drawings.table(["service", "success rate", "attempts", "not connected", "statuses"], rows)
