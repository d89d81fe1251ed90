"""The tables of the page about adaptive limits, and the page with them in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.simulation import picture, studies
from bench.simulation.picture import Line, Strip
from bench.simulation.servers import SharedProcessors
from bench.simulation.trace import Chapter, Row

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "adaptive-limits.md"
PICTURES = ROOT / "docs" / "assets" / "adaptive-limits"

_TABLE = re.compile(r"(<!-- simulated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(page: str) -> dict[str, str]:
    """Return the tables that are in *page*, by name."""
    return {name: text.strip() for _, name, text, _ in _TABLE.findall(page)}


def with_tables(page: str) -> str:
    """Return *page* with each table between its comments as it is simulated now."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[4]}"

    return _TABLE.sub(table, page)


def ten_minutes() -> str:
    """Return goodput and latency in each phase of the ten minutes."""
    runs = studies.ten_minute_runs()
    titles = ("", *(f"constant {name}" if name.isdigit() else name for name in runs))
    phases = zip(*(trace.chapters for trace in runs.values()), strict=True)
    return _grid(titles, ((told[0].phase.name, *map(_chapter, told)) for told in phases))


def _chapter(seen: Chapter) -> str:
    median, late = seen.tally.quantile(0.5), seen.tally.quantile(0.95)
    if seen.share is None or median is None or late is None:
        return f"{seen.tally.timed_out} timed out" if seen.tally.timed_out else ""
    return f"{seen.share:.0%}, {median:.2f} s, {late:.2f} s"


def creep() -> str:
    """Return where the limit goes in ten minutes of overload."""
    runs = studies.creep_runs()
    times = (30, 60, 120, 300, 600)
    rows: list[Sequence[str]] = []
    for name, trace in runs.items():
        for what, figure in (("limit", picture.LIMIT), ("seconds", picture.RTT)):
            means = [_mean(figure, trace.between(at - 10, at)) for at in times]
            rows.append((f"{name}, {what}", *(f"{mean:.3g}" for mean in means)))
    return _grid(("", *(f"at {at} s" for at in times)), rows)


def starts() -> str:
    """Return how long it takes from a wrong limit to a good one."""
    rows = (
        (
            start.name,
            str(start.initial),
            "never" if start.converged is None else f"{start.converged:.0f} s",
            f"{_mean(picture.LIMIT, start.trace.between(25, 30)):.0f}",
            f"{_mean(picture.RTT, start.trace.between(25, 30)):.2f} s",
        )
        for start in studies.starts()
    )
    return _grid(("", "first limit", "converged after", "limit after 30 s", "a call takes then"), rows)


def sizes() -> str:
    """Return goodput and slowdown with servers of all sizes."""
    runs = {name: studies.sizes(name) for name in ("Vegas", "Gradient")}
    rows: list[Sequence[str]] = []
    for number, (backend, load, _) in enumerate(studies.SIZES):
        kind = "shared processors" if backend.kind is SharedProcessors else "workers"
        what = (f"{backend.workers} {kind}", f"{backend.service:g} s", f"{load:g}")
        cells = (f"{run[number].share:.0%}, {run[number].slowdown:.1f}" for run in runs.values())
        rows.append((*what, *cells))
    return _grid(("server", "a call's work", "times its capacity", *runs), rows)


def _mean(line: Line, rows: Sequence[Row]) -> float:
    figures = [figure for figure in map(line.figure, rows) if figure is not None]
    return sum(figures) / len(figures)


def _grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


TABLES: Mapping[str, Callable[[], str]] = {
    "ten-minutes": ten_minutes,
    "creep": creep,
    "starts": starts,
    "sizes": sizes,
}


def pictures() -> dict[str, str]:
    """Return the pictures by the name of their file."""
    drawn = {
        f"{name.lower()}.svg": picture.draw(f"Ten minutes with {name}", trace, picture.strips(trace))
        for name, trace in studies.ten_minute_runs().items()
        if name in studies.ADAPTIVE
    }
    published, ours = studies.creep_runs().values()
    limits = Strip(
        "limit",
        [
            (Line("as published", picture.LIMIT.figure, "b"), published),
            (Line("ours", picture.LIMIT.figure, "a"), ours),
        ],
    )
    return {**drawn, "creep.svg": picture.draw("Ten minutes of overload", ours, [limits])}
