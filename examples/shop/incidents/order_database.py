"""What the incidents of the order database have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from examples.shop import lending
from examples.shop.database import SESSIONS, running_database
from examples.shop.figures import Run, Span
from examples.shop.incident import BARE, Column, Incident, Settings, Version
from examples.shop.processes import Hear
from examples.shop.report import drawings
from examples.shop.report.plots import Points, line_plot, linear_axis
from examples.shop.service import NAMES
from examples.shop.services.orders import MAX_SIZE, MIN_SIZE, POOL
from examples.shop.words import seconds, share


class DatabaseIncident(Incident):
    """An incident of a shop that keeps its orders in PostgreSQL, and borrows connections from a pool."""

    versions: ClassVar[Sequence[Version]] = (BARE, Version("protected", ["pool"]))
    difference = Path(lending.__file__)
    services = (*NAMES, "orders")
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("failed", lambda row: share(row.errors, row.requests)),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p95", lambda row: seconds(row.p95)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
    )

    @asynccontextmanager
    async def surroundings(self, settings: Settings, logs: Path, hear: Hear) -> AsyncIterator[dict[str, str]]:
        """Run the order database, and watch its sessions."""
        async with running_database(logs, hear) as url:
            yield {"SHOP_DATABASE": url}

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe the pool."""
        return [
            {
                "kind": "AsyncConnectionPool",
                "name": "orders",
                "min_size": MIN_SIZE,
                "max_size": MAX_SIZE,
                "timeout": lending.TIMEOUT,
                "max_idle": lending.MAX_IDLE,
                "leak_after": lending.LEAK_AFTER,
                "max_hold": lending.MAX_HOLD,
            }
        ]


def seen(run: Run, what: str, figure: str, span: Span | None = None) -> list[float]:
    """Return a figure of the notes of one kind, of one phase or of all."""
    return [note.told[figure] for note in run.noted(what) if span is None or note.at in span]


def pool_plot(runs: Sequence[Run]) -> str:
    """Draw how many connections of the pool are in use, on average of each half of a second."""
    used = {version: _averaged(points) for version, points in _over_time(runs, POOL, "used").items()}
    return _plot("Connections in use, as the pool counts them", "connections", used, runs[0].spans)


def sessions_plot(runs: Sequence[Run]) -> str:
    """Draw how many sessions the database has."""
    sessions = _over_time(runs, SESSIONS, "open")
    return _plot("Sessions, as PostgreSQL counts them", "sessions", sessions, runs[0].spans)


def idle_plot(runs: Sequence[Run]) -> str:
    """Draw for how long the oldest of those in a transaction have done nothing."""
    longest = _over_time(runs, SESSIONS, "oldest")
    mark = lending.MAX_HOLD, f"may be held for {seconds(lending.MAX_HOLD)}"
    return _plot("Idle in transaction, the longest", "seconds", longest, runs[0].spans, [mark])


def _over_time(runs: Sequence[Run], what: str, figure: str) -> dict[str, Points]:
    return {
        run.version: [(note.at, note.told[figure]) for note in run.noted(what) if note.at < run.spans[-1].end]
        for run in runs
    }


def _averaged(points: Points, step: float = 0.5) -> Points:
    bins: dict[int, list[float]] = {}
    for at, value in points:
        bins.setdefault(int(at / step), []).append(value)
    return [((number + 0.5) * step, sum(values) / len(values)) for number, values in bins.items()]


def _plot(
    title: str,
    unit: str,
    series: Mapping[str, Points],
    spans: Sequence[Span],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    axis = linear_axis(unit, max(value for points in series.values() for _, value in points))
    return drawings.titled(title, line_plot(title, axis, drawings.lines(series), spans, marks))
