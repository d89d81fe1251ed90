"""Incident A5: a service loads a model of 200 MB for each answer, keeps what it need not, and is killed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from examples.shop import recommending
from examples.shop.crowds import MIX
from examples.shop.figures import FAULT, Note, Run, Sample, Span
from examples.shop.incident import (
    Check,
    Column,
    Exhibit,
    Incident,
    Outcome,
    Settings,
    Tile,
    Version,
)
from examples.shop.orchestrator import ENDED, KILLED, MEMORY, STARTED, Care, orchestrated_shop
from examples.shop.processes import Hear, Shop
from examples.shop.report import drawings
from examples.shop.report.plots import Points, line_plot, linear_axis
from examples.shop.service import NAMES
from examples.shop.services.recommendation import MB, MODEL_SIZE
from examples.shop.timing import LIFE_SCALE, SCALE, lifetime
from examples.shop.words import seconds, share
from resilient.testing import describe

SERVICE = "recommendation"
HEALTH = "health"
CHECK = "memory-growth"

# What the incident was: megabytes, and minutes.
LIMIT = 512
GROWS_PER_MINUTE = 10
KILLS, IN_HOURS = 12, 6
MINUTE = 60.0
# The share of the requests that ask for a recommendation.
ASKING = MIX["browse"] / sum(MIX.values())
# How long before the kill somebody has to be told, in minutes; and how wrong the rate may be.
LEAD = 10
RATE_WITHIN = 0.3
FLAT = 30
# Who is not killed again and again is played for so much of the time of who is.
_SHORTER = 0.4
_LOOK_EVERY = 0.1


class GrowingService(Incident):
    """The recommendations take more and more memory, until they are killed, again and again."""

    key = "a5"
    title = "The recommendations leak"
    versions = (
        Version("bare", environment={"SHOP_HEALTH": "naive"}),
        Version("watched", ["model"]),
        Version("protected", ["model", "bounded"]),
    )
    difference = Path(recommending.__file__)
    defaults = Settings(rate=10, warm_up=1, calm=0, fault=14, recovery=0)
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("failed", lambda row: share(row.errors, row.requests)),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p95", lambda row: seconds(row.p95)),
        Column("p99", lambda row: seconds(row.p99)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )
    services = (*NAMES, SERVICE)

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return the phases; who is not killed again and again need not be watched for so long."""
        fault = settings.fault * (1 if version.name == "bare" else _SHORTER)
        return [
            Span("warm-up", 0.0, settings.warm_up),
            Span(FAULT, settings.warm_up, settings.warm_up + fault, faulty=True),
        ]

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return what an answer leaves behind, so that it grows as fast as it did."""
        per_second = GROWS_PER_MINUTE / lifetime(MINUTE)
        return {"SHOP_KEPT_MB": str(per_second / (settings.rate * ASKING)), "SHOP_MEMORY_MB": str(LIMIT)}

    @asynccontextmanager
    async def shop(
        self, version: Version, logs: Path, hear: Hear, environment: Mapping[str, str]
    ) -> AsyncIterator[Shop]:
        """Run the shop with somebody who starts again what ends, and somebody who looks at its health."""
        running = orchestrated_shop(
            logs,
            protections=version.protections,
            hear=hear,
            environment=environment,
            services=self.services,
            care=Care(memory={SERVICE: LIMIT * MB}),
        )
        async with running as shop, httpx.AsyncClient(timeout=1) as http:
            looking = asyncio.create_task(look_at_health(shop.urls[SERVICE], http, partial(hear, SERVICE)))
            try:
                yield shop
            finally:
                looking.cancel()

    def story(self, settings: Settings) -> str:
        """Tell what grows, and how it is scaled."""
        return (
            f"The recommendations load their model, {MODEL_SIZE / MB:g} MB, for each answer, and keep a part "
            f"of it. They grow by {GROWS_PER_MINUTE} MB a minute and are killed at {LIMIT} MB: {KILLS} times "
            f"in {IN_HOURS} hours. Played at {settings.rate:g} requests/s. A process's life is scaled by "
            f"1/{LIFE_SCALE:g}: a minute is {seconds(lifetime(MINUTE))}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return how much memory it takes, how often it was killed, and what its health says."""
        taken = run.noted(MEMORY)
        said = [note.told["status"] for note in run.noted(HEALTH)]
        return {
            "memory": f"{taken[-1].told['mb']:.0f} MB" if taken else "-",
            "killed": str(len(run.noted(KILLED))),
            "health": said[-1] if said else "-",
        }

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare three runs with what is promised."""
        bare, watched, protected = outcomes
        return [
            _incident_happens(bare),
            _told_before(watched),
            _told_right(watched),
            _lives(protected),
            _stays_flat(protected),
            _serves(protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what became of the service, and of the customers."""
        return [
            Tile.of("killed", outcomes, lambda each: str(len(each.run.noted(KILLED)))),
            Tile.of("most memory, MB", outcomes, lambda each: f"{max(_taken(each.run)):.0f}"),
            Tile.of("told before the kill", outcomes[1:], lambda each: _minutes(_lead(each.run))),
            Tile.of("failed requests", outcomes, lambda each: share(each.fault.errors, each.fault.requests)),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return the memory, what health said of it, and what the customers saw."""
        runs = [outcome.run for outcome in outcomes]
        legend = drawings.legend([run.version for run in runs], "each answer leaves something behind")
        latency = drawings.latency(settings, runs, 0.95)
        return [
            Exhibit("The memory it takes", legend + _memory_plot(runs) + _lives_table(runs)),
            Exhibit("What its /health said", "".join(map(_sayings, runs[1:]))),
            Exhibit("What the customers saw", drawings.goodput(settings, runs) + latency),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        per_second = GROWS_PER_MINUTE / lifetime(MINUTE)
        asked = settings.rate * ASKING
        return [
            ("memory it may take", f"{LIMIT} MB", f"{LIMIT} MB"),
            ("the model", "200 MB", f"{MODEL_SIZE / MB:g} MB"),
            ("it grows by", f"{GROWS_PER_MINUTE} MB a minute", f"{per_second:g} MB a second"),
            ("an answer leaves behind", "", f"{per_second / asked:.1f} MB, {asked:.1f} times a second"),
            ("told of", "50 MB in 10 minutes", f"50 MB in {seconds(recommending.WINDOW)}"),
            ("requests per second", "", f"{settings.rate:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say who kills, and what was scaled."""
        return [
            f"""Megabytes are real ones, and real memory. A minute of the process's life is
            {seconds(lifetime(MINUTE))}; all other times are divided by {SCALE:g}. To start takes the process
            as long as it takes, which is some minutes of that life.""",
            """There is no container here: the demo looks at the process fifty times a second, kills it with
            SIGKILL when it takes more than it may, as the kernel would, and starts it again at once.""",
            """The watched run loads the model once and still leaks, as before, for its health to tell of it;
            to look at its health, somebody asks for it ten times a second. In the protected one only the
            latest answer is kept.""",
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe what the model is behind, and what watches the memory."""
        watch: dict[str, object] = {
            "kind": "MemoryGrowth",
            "name": CHECK,
            "limit": recommending.GROWTH,
            "window": recommending.WINDOW,
            "settle": recommending.SETTLE,
        }
        return [*describe(recommending.load), watch]


async def look_at_health(url: str, http: httpx.AsyncClient, tell: Any) -> None:
    """Write down what the service says of its health, again and again, until cancelled."""
    while True:
        try:
            answer = await http.get(f"{url}/health")
            tell({"note": HEALTH, **read_health(answer)})
        except httpx.TransportError:
            pass  # it was killed, and is not back yet
        await asyncio.sleep(_LOOK_EVERY)


def read_health(answer: httpx.Response) -> dict[str, Any]:
    """Return what matters of an answer: what is said of the growth, or else of the whole service."""
    told = answer.json()
    found = [
        one for name, checks in told.get("checks", {}).items() if name.startswith(CHECK) for one in checks
    ]
    said = {key: value for one in reversed(found) for key, value in one.items()}
    facts = said.get("facts", {})
    return {
        "http": answer.status_code,
        "status": said.get("status", told["status"]).lower(),
        "says": said.get("output", ""),
        "mb_per_minute": facts.get("bytes_per_minute", 0) / MB / LIFE_SCALE,
    }


def _taken(run: Run) -> list[float]:
    """Return how much memory the service took when it was looked at, in megabytes."""
    return [note.told["mb"] for what in (MEMORY, KILLED) for note in run.noted(what)]


def _warnings(run: Run) -> list[Note]:
    """Return when and how health warned of the memory."""
    return [note for note in run.noted(HEALTH) if note.told["status"] == "warn" and note.told["says"]]


def _lead(run: Run) -> float:
    """Return how many minutes before the first kill health warned of it; NaN if one of the two is missing."""
    told, killed = _warnings(run), run.noted(KILLED)
    return (killed[0].at - told[0].at) / lifetime(MINUTE) if told and killed else math.nan


def _minutes(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f} min"


def _incident_happens(bare: Outcome) -> Check:
    killed, fault = bare.run.noted(KILLED), bare.fault
    hours = bare.run.spans[-1].end / lifetime(60 * MINUTE)
    return Check(
        "bare: the service is killed for its memory at least twice, and over 2 % of all requests fail",
        f"{len(killed)} times in {hours:.1f} hours, {fault.error_ratio:.1%}",
        len(killed) >= 2 and fault.error_ratio > 0.02,
    )


def _told_before(watched: Outcome) -> Check:
    lead = _lead(watched.run)
    return Check(
        f"watched: /health warns at least {LEAD} minutes before the kill",
        _minutes(lead),
        lead >= LEAD,
    )


def _told_right(watched: Outcome) -> Check:
    told = [note.told["mb_per_minute"] for note in _warnings(watched.run)]
    rate = median(told) if told else math.nan
    return Check(
        f"watched: it is told how fast, {GROWS_PER_MINUTE} MB a minute give or take {RATE_WITHIN:.0%}",
        f"{rate:.1f} MB a minute",
        abs(rate - GROWS_PER_MINUTE) <= RATE_WITHIN * GROWS_PER_MINUTE,
    )


def _lives(protected: Outcome) -> Check:
    killed, warned = len(protected.run.noted(KILLED)), _warnings(protected.run)
    return Check(
        "protected: the service is never killed, and nobody is warned of anything",
        f"{killed} kills, {len(warned)} warnings",
        killed == 0 == len(warned),
    )


def _stays_flat(protected: Outcome) -> Check:
    fault = protected.run.span(FAULT)
    # By then the latest answer is there.
    since = fault.start + 0.3 * fault.seconds
    taken = [note.told["mb"] for note in protected.run.noted(MEMORY) if note.at >= since]
    return Check(
        f"protected: what it takes differs by less than {FLAT} MB, once it has come up",
        f"{min(taken):.0f} to {max(taken):.0f} MB",
        max(taken) - min(taken) < FLAT,
    )


def _serves(protected: Outcome) -> Check:
    fault = protected.fault
    return Check(
        "protected: less than 1 % of requests fail",
        f"{fault.error_ratio:.2%} ({fault.errors} of {fault.requests})",
        fault.error_ratio < 0.01,
    )


def _memory_plot(runs: Sequence[Run]) -> str:
    """Draw how much memory the service takes; it falls to nothing where it is killed."""
    series = {run.version: _memory_over_time(run) for run in runs}
    axis = linear_axis("megabytes", max(LIMIT, *(mb for points in series.values() for _, mb in points)))
    title = "Resident memory of the recommendations"
    marks = [(float(LIMIT), f"killed at {LIMIT} MB")]
    return drawings.titled(title, line_plot(title, axis, drawings.lines(series), runs[0].spans, marks))


def _memory_over_time(run: Run) -> Points:
    points = [(note.at, note.told["mb"]) for what in (MEMORY, KILLED) for note in run.noted(what)]
    points += [(note.at, 0.0) for note in run.noted(ENDED)]
    return sorted(point for point in points if point[0] < run.spans[-1].end)


def _lives_table(runs: Sequence[Run]) -> str:
    """Tell each life of the service: how long it was, and what ended it."""
    rows = []
    for run in runs:
        begun = 0.0
        for killed in run.noted(KILLED):
            life = (killed.at - begun) / lifetime(MINUTE)
            rows.append(drawings.row([run.version, f"{life:.0f} min", f"{killed.told['mb']:.0f} MB"]))
            begun = next((note.at for note in run.noted(STARTED) if note.at > killed.at), killed.at)
    return drawings.table(["run", "lived for, in the incident's minutes", "when it was killed"], rows)


def _sayings(run: Run) -> str:
    """Tell what health said of the memory when that became something else, and how long before the kill."""
    rows, last = [], None
    killed = run.noted(KILLED)
    for note in run.noted(HEALTH):
        if note.told["says"] and note.told["status"] != last:
            last = note.told["status"]
            left = (killed[0].at - note.at) / lifetime(MINUTE) if killed else math.nan
            rows.append(drawings.row([f"{note.at:.1f} s", last, _minutes(left), note.told["says"]]))
    table = drawings.table(["at", "status", "before the kill", "said, in seconds of the demo"], rows)
    return drawings.titled(
        f"The {run.version} run", table if rows else "<p>Nothing but that all is well.</p>"
    )
