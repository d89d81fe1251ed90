"""Incident C2: sessions that nobody needs any more, and some that somebody holds without doing anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from examples.shop.crowds import CUSTOMERS, EXPORTS, REGULARS, Crowd
from examples.shop.database import SESSIONS
from examples.shop.figures import FAULT, Run, Sample, Span
from examples.shop.incident import BARE, Check, Exhibit, Outcome, Settings, Tile, Version
from examples.shop.incidents.order_database import (
    DatabaseIncident,
    idle_plot,
    pool_plot,
    seen,
    sessions_plot,
)
from examples.shop.journal import RAISED
from examples.shop.lending import MAX_HOLD, MAX_IDLE
from examples.shop.report import drawings
from examples.shop.services.orders import BOOKING_TIME, MAX_SIZE, MIN_SIZE, POOL
from examples.shop.timing import SCALE, SESSION_SCALE
from examples.shop.words import seconds, share

# Requests per second of those who look at their orders, in the rush and later.
MANY, FEW = 45.0, 4.0
EXPORTS_PER_SECOND = 1.5
# How often a pool looks after its connections, and how long after that the server is seen to be rid of one.
ROUND, SEEN_WITHIN = 1.0, 0.5
# So many callers that wait at once are no coincidence.
WAITING = 3

RUSH, QUIET, RECOVERY = "rush", "quiet", "recovery"


class HeldSessions(DatabaseIncident):
    """After a rush come exports to the bookkeepers, each of which waits for them in its transaction."""

    key = "c2"
    title = "Sessions idle and held"
    defaults = Settings(rate=8, warm_up=1, calm=1.5, onset=6, fault=5, recovery=5)

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return a rush, a quiet time after it, and the exports; the bare shop is not watched for so long."""
        lengths = {
            "warm-up": settings.warm_up,
            RUSH: settings.calm,
            QUIET: settings.onset,
            FAULT: settings.fault,
            RECOVERY: settings.recovery,
        }
        if version is BARE:
            lengths |= {QUIET: 0.0, RECOVERY: 1.0}
        ends = accumulate(lengths.values())
        return [
            Span(name, end - length, end, faulty=name == FAULT)
            for (name, length), end in zip(lengths.items(), ends, strict=True)
            if length
        ]

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return who shops, who looks at orders, many at first; and the exports."""
        spans = self.spans(settings, version)
        [rush], [fault] = ([span for span in spans if span.name == name] for name in (RUSH, FAULT))
        end = spans[-1].end
        return [
            Crowd(CUSTOMERS, settings.rate, 0.0, end),
            Crowd(REGULARS, MANY, 0.0, rush.end),
            Crowd(REGULARS, FEW, rush.end, end),
            Crowd(EXPORTS, EXPORTS_PER_SECOND, fault.start, fault.end),
        ]

    def story(self, settings: Settings) -> str:
        """Tell who holds what."""
        return (
            "A rush opens sessions that nobody needs in the quiet time after it. Then orders are exported, "
            f"{EXPORTS_PER_SECOND:g} times a second, and each export keeps its transaction open for the "
            f"{_minutes(BOOKING_TIME)} that the bookkeepers take. A session may be held for "
            f"{_minutes(MAX_HOLD)}, and idle for {_minutes(MAX_IDLE)}. Minutes are scaled by "
            f"1/{SESSION_SCALE:g}, all else by 1/{SCALE:g}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return the sessions, and for how long the oldest of them does nothing in its transaction."""
        sessions, idle = seen(run, SESSIONS, "open"), seen(run, SESSIONS, "oldest")
        return {
            "sessions": f"{sessions[-1]:g}" if sessions else "-",
            "idle in transaction": seconds(idle[-1]) if idle else "-",
        }

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _exports_take_the_pool(bare),
            _nobody_holds_for_long(protected),
            _borrowers_are_told(protected),
            _idle_sessions_are_given_back(protected),
            _customers_do_not_notice(protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the exports held, and what that did."""
        return [
            Tile.of("idle in transaction for", outcomes, lambda each: seconds(_longest_idle(each.run))),
            Tile.of("callers waiting in fault", outcomes, lambda each: f"{_most_waiting(each.run):g}"),
            Tile.of("p95 in fault", outcomes, lambda each: seconds(each.fault.p95)),
            Tile.of("sessions at the end", outcomes, lambda each: f"{_sessions(each.run, RECOVERY)[-1]:g}"),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return what the server saw of each shop, and what became of the pool."""
        return [
            Exhibit(
                f"What the server saw of the {run.version} shop",
                drawings.legend([run.version], "exports")
                + sessions_plot([run])
                + idle_plot([run])
                + pool_plot([run]),
            )
            for run in (outcome.run for outcome in outcomes)
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        times = {
            "a session may be held for": MAX_HOLD,
            "a session may be idle for": MAX_IDLE,
            "the bookkeepers take": BOOKING_TIME,
        }
        return [
            *((what, _minutes(value), seconds(value)) for what, value in times.items()),
            ("sessions of the pool", "", f"{MIN_SIZE} to {MAX_SIZE}"),
            ("requests for orders per second, in the rush and later", "", f"{MANY:g}, {FEW:g}"),
            ("exports per second", "", f"{EXPORTS_PER_SECOND:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say where the figures come from."""
        return [
            """Sessions, and since when the oldest of those in a transaction does nothing, are PostgreSQL's
            own figures, from pg_stat_activity, several times a second.""",
            f"""The exports are no requests of customers, and are not counted as such. Each goes on with its
            work when the bookkeepers are done, after {seconds(BOOKING_TIME)}, and finds out only then that
            its connection was taken away.""",
        ]


def _minutes(scaled: float) -> str:
    """Write how many minutes of the incident a time of the demo stands for."""
    return f"{scaled * SESSION_SCALE / 60:g} minutes"


def _longest_idle(run: Run) -> float:
    return max(seen(run, SESSIONS, "oldest"))


def _most_waiting(run: Run) -> float:
    return max(seen(run, POOL, "waiting", run.span(FAULT)))


def _sessions(run: Run, phase: str) -> list[float]:
    return seen(run, SESSIONS, "open", run.span(phase))


def _exports_take_the_pool(bare: Outcome) -> Check:
    idle, used = _longest_idle(bare.run), max(seen(bare.run, POOL, "used", bare.run.span(FAULT)))
    waiting, rush, fault = _most_waiting(bare.run), bare.phases[RUSH].p95, bare.fault.p95
    return Check(
        f"bare: transactions are idle for more than {_minutes(2 * MAX_HOLD)}, all of the pool is in use, and "
        "callers wait for it",
        f"{seconds(idle)} ({_minutes(2 * MAX_HOLD)}: {seconds(2 * MAX_HOLD)}), {used:g} of {MAX_SIZE}, "
        f"{waiting:g} wait at once; p95 {seconds(rush)} → {seconds(fault)}",
        idle > 2 * MAX_HOLD and used == MAX_SIZE and waiting >= WAITING,
    )


def _nobody_holds_for_long(protected: Outcome) -> Check:
    idle = _longest_idle(protected.run)
    return Check(
        f"protected: the server sees none idle for longer than {_minutes(MAX_HOLD)}, and the second until "
        "the pool looks again",
        f"{seconds(idle)} ({_minutes(MAX_HOLD)}: {seconds(MAX_HOLD)})",
        0 < idle < MAX_HOLD + ROUND + SEEN_WITHIN,
    )


def _borrowers_are_told(protected: Outcome) -> Check:
    exports, reclaimed = protected.run.of(EXPORTS), protected.run.noted("ConnectionReclaimed")
    told = [note.told["error"] for note in protected.run.noted(RAISED)]
    return Check(
        "protected: every export loses its session, and is told so when it goes on",
        f"{len(exports)} exports, {len(reclaimed)} reclaimed, "
        f"{told.count('ConnectionReclaimedError')} ConnectionReclaimedError",
        len(exports) == len(reclaimed) > 0 and told == ["ConnectionReclaimedError"] * len(exports),
    )


def _idle_sessions_are_given_back(protected: Outcome) -> Check:
    rush, left = max(_sessions(protected.run, RUSH)), _sessions(protected.run, QUIET)[-1]
    expired = max(seen(protected.run, POOL, "expired"))
    return Check(
        f"protected: what the rush has opened is given back to the server when it was idle for "
        f"{_minutes(MAX_IDLE)}",
        f"{rush:g} → {left:g} sessions (at least {MIN_SIZE}), {expired:g} of them for being idle",
        rush > left == MIN_SIZE and expired >= rush - left,
    )


def _customers_do_not_notice(protected: Outcome) -> Check:
    rows = [row for row in protected.phases.values() if row.phase != "warm-up"]
    failed, sent = sum(row.errors for row in rows), sum(row.requests for row in rows)
    rush, fault = protected.phases[RUSH].p95, protected.fault.p95
    return Check(
        "protected: less than 1 % of the customers' requests fail, and p95 is below 2x that in the rush",
        f"{share(failed, sent, 2)} ({failed} of {sent}); {fault / rush:.2f}x",
        failed < 0.01 * sent and fault < 2 * rush,
    )
