"""Incidents A2 and E4: the Valkey of the carts is killed and comes back; later, another takes its place."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from examples.shop import failover
from examples.shop.carts import Cart
from examples.shop.figures import Run, Sample, Span, Summary
from examples.shop.incident import (
    BARE,
    CALM_LATENCY,
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
from examples.shop.processes import Hear
from examples.shop.report import drawings
from examples.shop.service import NAMES
from examples.shop.store import RunningStore, running_store
from examples.shop.words import seconds, share
from resilient.testing import describe

KILLED, BACK, REPLACED = "killed", "back", "replaced"
# Of the time without a server, the part in which its machine does not answer either; then it refuses.
NO_MACHINE = 0.7
CARTS = ("view cart", "add to cart", "checkout")
# Operations on carts, and how long each may take; and how much later than that a busy loop may be.
DEADLINES = {
    "view": failover.LOOK_WITHIN,
    "add": failover.LOOK_WITHIN,
    "take": failover.LOOK_WITHIN,
    "buy": failover.BUY_WITHIN,
}
SLACK = 0.25
HANGING = 5.0
# A pool that cannot connect tries it every second, and those who have something to store ask it more often.
STORED_WITHIN = 1.2
DIALS_PER_SECOND = 5.0
# Seconds by which what was said last has to be in the store, when that is compared with it.
_SETTLING = 0.5


def _served(action: str, row: Summary) -> str:
    return share(*row.served.get(action, (0, 0)))


class LostCart(Incident):
    """A server for carts that dies under load, then one that is a replica from one moment to the next."""

    key = "a2"
    title = "The cart service loses its store (and E4)"
    versions = (BARE, Version("protected", ["failover"]))
    difference = Path(failover.__file__)
    defaults = Settings(
        rate=40,
        warm_up=1.5,
        calm=2.5,
        onset=5,
        recovery=3,
        fault=6.5,
        patience=PATIENCE,
        good_within=GOOD_WITHIN,
    )
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("failed", lambda row: share(row.errors, row.requests)),
        *(Column(action, partial(_served, action)) for action in CARTS),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p99", lambda row: seconds(row.p99)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )
    services = (*NAMES, "cart")
    _store: RunningStore

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return the phases: the onset is without a server, and in the fault there is another one."""
        spans, start = [], 0.0
        for name, length in {
            "warm-up": settings.warm_up,
            "calm": settings.calm,
            KILLED: settings.onset,
            BACK: settings.recovery,
            REPLACED: settings.fault,
        }.items():
            spans.append(Span(name, start, start + length, faulty=name in {KILLED, REPLACED}))
            start += length
        return spans

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return what keeps time as it is."""
        return {"SHOP_SCALE": "1"}

    def api_latency(self, span: Span) -> float:
        """Return how long the rates API takes to answer; its time is not scaled either."""
        return CALM_LATENCY

    @asynccontextmanager
    async def surroundings(self, settings: Settings, logs: Path, hear: Hear) -> AsyncIterator[dict[str, str]]:
        """Run the store for one shop."""
        async with running_store(logs / "store.log") as self._store:
            yield {"SHOP_STORE": str(self._store.address)}

    async def begin(self, span: Span, hear: Hear) -> None:
        """Do to the store what the phase is about; at the end, see what is in it."""
        tell = partial(hear, "store")
        if span.name == KILLED:
            await self._store.do("kill", tell)
            await asyncio.sleep(NO_MACHINE * span.seconds)
            await self._store.do("refuse", tell)
        elif span.name == BACK:
            await self._store.do("restart", tell)
        elif span.name == REPLACED:
            over = asyncio.get_running_loop().time() + span.seconds + _SETTLING
            await self._store.do("replace", tell)
            await asyncio.sleep(over - asyncio.get_running_loop().time())
            await self._store.do("tell", tell)

    def story(self, settings: Settings) -> str:
        """Tell what becomes of the store."""
        away, silent = settings.onset, NO_MACHINE * settings.onset
        return (
            f"The Valkey that holds the carts is killed. For {seconds(silent)} nothing answers in its place, "
            f"then connections are refused, and after {seconds(away)} it is back, with all that was in it. "
            f"{seconds(settings.recovery)} later, the sentinels make its replica the primary, and it answers "
            f"READONLY. {settings.rate:g} requests/s, of which a third needs a cart. Time is not scaled."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return the share of cart requests that fail, and of whom the last answers came."""
        carts = [s for s in lately if s.action in CARTS]
        sources = Counter(str(note.told["outcome"]) for note in run.noted("cart")[-20:])
        return {
            "carts failed": share(sum(not s.ok for s in carts), len(carts), 0),
            "lately": ", ".join(f"{name} {count}" for name, count in sources.most_common(3)),
        }

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _incident_happens(bare),
            _bare_hangs(bare),
            _few_errors(protected),
            _in_time(protected),
            _soon_back(bare, protected),
            _server_is_left_alone(bare, protected),
            _nothing_is_lost(bare, protected),
            _everybody_gets_their_own(bare, protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the incident did to requests and carts."""
        return [
            Tile.of("failed, server away", outcomes, lambda each: f"{each.phases[KILLED].error_ratio:.1%}"),
            Tile.of("failed, server a replica", outcomes, lambda each: f"{_failed_since_demoted(each):.1%}"),
            Tile.of(
                "longest look at a cart", outcomes, lambda each: seconds(_longest(each.run, "view", "add"))
            ),
            Tile.of("entries lost", outcomes, lambda each: str(len(_lost(each.run)))),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what the customers got, who answered for the carts, and what the dead server was asked."""
        runs = [outcome.run for outcome in outcomes]
        names = [run.version for run in runs]
        of = " of filling carts and looking at them"
        latency = drawings.latency(settings, runs, 0.95, CARTS[:2], of)
        customers = drawings.goodput(settings, runs) + latency
        fault = "the server is away, or not the primary any more"
        return [
            Exhibit("What the customers saw", drawings.legend(names, fault) + customers),
            Exhibit("Who answered for the carts", _answers_table(runs) + drawings.breakers(runs)),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        waits = {
            "the shop's clients wait to connect for": 5.0,
            "customers give up after": PATIENCE,
            "a good answer takes at most": GOOD_WITHIN,
        }
        return [
            *((what, seconds(value), seconds(value)) for what, value in waits.items()),
            ("connections to the store", "10", "10"),
            ("requests per second", "", f"{settings.rate:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say what is measured how, and what was made easy."""
        return [
            """The bare client is redis-py's with its defaults, a pool of ten, and the address of the primary.
            It waits for 5 s to connect, and tries ten times more; meanwhile its connections are taken.""",
            """An entry that was said to be in a cart counts as lost if, half a second after the last request,
            it is neither in the store nor bought. One that was bought and is in the store is back.""",
            """The failover is ordered, so that it always goes the same way: until the sentinels have demoted
            the old primary, it goes on taking what the new one will never see.""",
            """The store writes a log of all changes (appendonly), or it would come back empty and empty its
            replica, too; the sentinels' thirty seconds are longer than it is away.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe what is on looking at a cart, changing one, and reading one to buy it."""
        pipelines = failover.looking(_replica), failover.changing, failover.buying
        return [policy for pipeline in pipelines for policy in describe(pipeline)]


async def _replica(user: str) -> Cart:
    """Stand for what is asked when the primary is away, where nothing is."""
    raise NotImplementedError


def _failed_since_demoted(outcome: Outcome) -> float:
    """Return the share of requests that failed of those that were due when the old primary was a replica."""
    sent = [sample for sample in outcome.run.samples if sample.at >= _when(outcome.run, REPLACED)]
    return sum(not sample.ok for sample in sent) / len(sent)


def _errors(outcome: Outcome, *phases: str) -> tuple[int, int]:
    rows = [outcome.phases[name] for name in phases]
    return sum(row.errors for row in rows), sum(row.requests for row in rows)


def _longest(run: Run, *did: str) -> float:
    """Return how long an operation on a cart took at most, of those named or of all."""
    took = (note.told["seconds"] for note in run.noted("cart") if not did or note.told["did"] in did)
    return max(took, default=0.0)


def _when(run: Run, what: str) -> float:
    return run.noted(what)[0].at


def _until_stored(run: Run, since: str) -> float:
    """Return how long after something happened the primary took something in; infinite if it never did."""
    happened = _when(run, since)
    return min((note.at - happened for note in run.noted("stored") if note.at >= happened), default=math.inf)


def _dials(run: Run) -> float:
    """Return how often a second somebody tried to connect to the dead server."""
    killed, back = run.noted(KILLED)[0], run.noted(BACK)[0]
    port = killed.told["port"]
    dials = sum(killed.at < dial.at < back.at and dial.told["port"] == port for dial in run.noted("dial"))
    return float(dials / (back.at - killed.at))


def _lost(run: Run) -> set[str]:
    """Return the entries that were said to be in a cart, are not, and were not bought."""
    [store] = run.noted("in store")
    said = {note.told["entry"] for note in run.noted("added") if note.at < store.at - _SETTLING}
    return said - _bought(run, math.inf) - set(store.told["entries"])


def _returned(run: Run) -> set[str]:
    """Return the entries that were bought and are in the cart again."""
    [store] = run.noted("in store")
    return _bought(run, store.at - _SETTLING) & set(store.told["entries"])


def _bought(run: Run, by: float) -> set[str]:
    return {entry for note in run.noted("bought") if note.at < by for entry in note.told["entries"]}


def _incident_happens(bare: Outcome) -> Check:
    away, after = bare.phases[KILLED].error_ratio, _failed_since_demoted(bare)
    return Check(
        "bare: of all requests at least 20 % fail while the server is away, and 10 % once it is a replica",
        f"{away:.1%}, {after:.1%}",
        away >= 0.2 and after >= 0.1,
    )


def _bare_hangs(bare: Outcome) -> Check:
    longest = _longest(bare.run)
    return Check(
        f"bare: who needs a cart waits {seconds(HANGING)} and longer", seconds(longest), longest >= HANGING
    )


def _few_errors(protected: Outcome) -> Check:
    failed, sent = _errors(protected, KILLED, BACK, REPLACED)
    return Check(
        "protected: less than 1 % of requests fail, from the kill to the end",
        f"{share(failed, sent, 2)} ({failed} of {sent})",
        failed < 0.01 * sent,
    )


def _in_time(protected: Outcome) -> Check:
    took = {did: _longest(protected.run, did) for did in DEADLINES}
    return Check(
        "protected: nothing done to a cart takes longer than its deadline",
        ", ".join(f"{did} {seconds(took[did])} of {seconds(limit)}" for did, limit in DEADLINES.items()),
        all(took[did] <= limit + SLACK for did, limit in DEADLINES.items()),
    )


def _soon_back(bare: Outcome, protected: Outcome) -> Check:
    ours, theirs = (
        {what: _until_stored(each.run, what) for what in (BACK, REPLACED)} for each in (protected, bare)
    )
    return Check(
        f"protected: changes of carts are stored again within {seconds(STORED_WITHIN)} after the server is "
        "back, and after another has taken its place",
        f"{seconds(ours[BACK])}, {seconds(ours[REPLACED])} (bare: {seconds(theirs[BACK])}, "
        f"{_or_never(theirs[REPLACED])})",
        max(ours.values()) <= STORED_WITHIN,
    )


def _or_never(value: float) -> str:
    return "never" if math.isinf(value) else seconds(value)


def _server_is_left_alone(bare: Outcome, protected: Outcome) -> Check:
    ours, theirs = _dials(protected.run), _dials(bare.run)
    return Check(
        f"protected: the dead server meets at most {DIALS_PER_SECOND:g} attempts to connect a second",
        f"{ours:.1f} (bare: {theirs:.1f})",
        ours <= DIALS_PER_SECOND,
    )


def _nothing_is_lost(bare: Outcome, protected: Outcome) -> Check:
    ours, theirs = (f"{len(_lost(each.run))} and {len(_returned(each.run))}" for each in (protected, bare))
    added = len(protected.run.noted("added"))
    return Check(
        "protected: nothing that was said to be in a cart is lost, and nothing that was bought comes back",
        f"{ours} of {added} (bare: {theirs} of {len(bare.run.noted('added'))})",
        not _lost(protected.run) and not _returned(protected.run) and added > 0,
    )


def _everybody_gets_their_own(*outcomes: Outcome) -> Check:
    strangers = sum(len(each.run.noted("strangers")) for each in outcomes)
    looks = sum(note.told["did"] in {"view", "buy"} for each in outcomes for note in each.run.noted("cart"))
    return Check(
        "both: no customer is shown, or charged for, another's cart",
        f"{strangers} of {looks}",
        strangers == 0 < looks,
    )


def _answers_table(runs: Sequence[Run]) -> str:
    """Return how often which answer was given in each phase."""
    rows = []
    for run in runs:
        for span in run.spans[1:]:
            notes = [note.told for note in run.noted("cart") if note.at in span]
            for did in DEADLINES:
                given = Counter(str(told["outcome"]) for told in notes if told["did"] == did)
                answers = ", ".join(f"{name} {count}" for name, count in given.most_common())
                rows.append(drawings.row([run.version, span.name, did, answers or "-"]))
    return drawings.table(["run", "phase", "done to a cart", "answers"], rows)
