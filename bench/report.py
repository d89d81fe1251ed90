"""Results as a text to read, a page to commit and a JSON file to compute with."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from bench import arithmetic
from bench.arithmetic import Spread
from bench.targets import Judged, Unit, Verdict

OURS = "resilient"
"""Name of the subject of a family that the others are compared with."""

FORMAT = 2
"""Version of the JSON file."""

Cells = Sequence[str]


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured of one subject: samples in nanoseconds per call, one for each round."""

    family: str
    name: str
    samples: Sequence[float]
    frames: int | None = None
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one subject.

    Args:
        ours_to_it: Our time over its time; None for ours itself, and where there is nothing of ours.
    """

    family: str
    name: str
    ns: Spread
    ns_min: float
    frames: int | None
    calls: int
    ours_to_it: Spread | None


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted of one subject, which takes no time and so has no nanoseconds.

    Args:
        figure: How many, over the rounds.
        most: The most in any round.
    """

    family: str
    name: str
    figure: Spread
    most: float


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how the figures were taken."""

    date: str
    python: str
    system: str
    cpus: int
    rounds: int
    sample_ms: float
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a run found out.

    Args:
        run: Where and how.
        rows: The figures, families in the order they were listed, the fastest subject first.
        absent: Reason by subject id.
        targets: The promises with their verdicts.
        counts: What was counted, families together.
    """

    run: Run
    rows: Sequence[Row]
    absent: Mapping[str, str]
    targets: Sequence[Judged]
    counts: Sequence[Count] = ()


def describe_run(rounds: int, sample: float, packages: Iterable[str]) -> Run:
    """Return the circumstances of a run; *sample* is in seconds."""
    return Run(
        date=datetime.now(UTC).date().isoformat(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count() or 1,
        rounds=rounds,
        sample_ms=round(sample * 1000, 3),
        packages=dict(_versions(packages)),
    )


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in sorted(set(packages)):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def tabulate(series: Iterable[Series]) -> list[Row]:
    """Return a row per series, compared with ours of the same family."""
    families: dict[str, list[Series]] = {}
    for one in series:
        families.setdefault(one.family, []).append(one)
    rows: list[Row] = []
    for members in families.values():
        ours = next((one for one in members if one.name == OURS), None)
        rows += sorted((_row(one, ours) for one in members), key=lambda row: row.ns.median)
    return rows


def _row(one: Series, ours: Series | None) -> Row:
    compared = ours is not None and one is not ours
    ratio = arithmetic.spread(arithmetic.ratios(ours.samples, one.samples)) if ours and compared else None
    ns = arithmetic.spread(one.samples)
    return Row(one.family, one.name, ns, min(one.samples), one.frames, one.calls, ratio)


# -- words -----------------------------------------------------------------------------------------------


def _ns(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(figure: Spread | None) -> str:
    if figure is None:
        return ""
    digits = 3 if figure.median < 0.1 else 2
    return f"{figure.median:.{digits}f} ({figure.low:.{digits}f}-{figure.high:.{digits}f})"


_ROW_TITLES = ("subject", "median ns", "least ns", "frames", "ours / it (quartiles)")
_COUNT_TITLES = ("subject", "median", "most")
_TARGET_TITLES = ("ours", "against", "at most", "measured (quartiles)", "verdict")


def _row_cells(row: Row) -> Cells:
    frames = "" if row.frames is None else str(row.frames)
    return (row.name, _ns(row.ns.median), _ns(row.ns_min), frames, _ratio(row.ours_to_it))


def _count_cells(count: Count) -> Cells:
    return (count.name, f"{count.figure.median:g}", f"{count.most:g}")


def _target_cells(target: Judged) -> Cells:
    at_most, measured = _FIGURES[target.unit](target)
    return (target.what, target.against or target.unit, at_most, measured, target.verdict)


def _ratio_figures(target: Judged) -> Cells:
    return (f"{target.at_most:.2f}", _ratio(target.figure))


def _surplus_figures(target: Judged) -> Cells:
    figure = target.figure
    measured = "" if figure is None else f"{figure.median:+.1f} µs ({figure.low:.1f}-{figure.high:.1f})"
    return (f"+{target.at_most:g} µs", measured)


def _frame_figures(target: Judged) -> Cells:
    return (f"{target.at_most:g}", "" if target.figure is None else f"{target.figure.median:g}")


_FIGURES = {
    Unit.RATIO: _ratio_figures,
    Unit.MICROSECONDS: _surplus_figures,
    Unit.FRAMES: _frame_figures,
}


def summary(targets: Sequence[Judged]) -> str:
    """Return how many promises are kept, in one sentence."""
    count = {verdict: sum(one.verdict is verdict for one in targets) for verdict in Verdict}
    rest = ", ".join(f"{count[one]} {one}" for one in (Verdict.MISSED, Verdict.ABSENT) if count[one])
    return f"{count[Verdict.MET]} of {len(targets)} targets met{f', {rest}' if rest else ''}."


# -- text ------------------------------------------------------------------------------------------------


def text(results: Results) -> str:
    """Return the results for a terminal."""
    parts = [_circumstances(results.run)]
    for family, rows in groupby(results.rows, key=lambda row: row.family):
        parts.append(f"{family}\n{_columns([_ROW_TITLES, *map(_row_cells, rows)])}")
    for family, counts in groupby(results.counts, key=lambda count: count.family):
        parts.append(f"{family}\n{_columns([_COUNT_TITLES, *map(_count_cells, counts)])}")
    if results.absent:
        parts.append(f"absent\n{_columns(list(results.absent.items()))}")
    if results.targets:
        cells = [_TARGET_TITLES, *map(_target_cells, results.targets)]
        parts.append(f"targets\n{_columns(cells)}\n{summary(results.targets)}")
    return "\n\n".join(parts)


def _circumstances(run: Run) -> str:
    return (
        f"{run.date}, {run.python}, {run.system}, {run.cpus} CPUs; "
        f"{run.rounds} interleaved rounds, samples of {run.sample_ms:g} ms"
    )


def _columns(table: Sequence[Cells]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_line(cells, widths) for cells in table)


def _line(cells: Cells, widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"  {'  '.join(padded).rstrip()}"


# -- page ------------------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """Return the results as a page."""
    parts = ["# Overhead", _circumstances(results.run) + ". Read the ratios, not the nanoseconds."]
    if results.targets:
        parts += ["## Targets", _grid(_TARGET_TITLES, map(_target_cells, results.targets))]
        parts.append(summary(results.targets))
    for family, rows in groupby(results.rows, key=lambda row: row.family):
        parts += [_heading(family), _grid(_ROW_TITLES, map(_row_cells, rows))]
    for family, counts in groupby(results.counts, key=lambda count: count.family):
        parts += [_heading(family), _grid(_COUNT_TITLES, map(_count_cells, counts))]
    if results.absent:
        parts += ["## Absent", _grid(("subject", "reason"), results.absent.items())]
    parts += ["## Versions", ", ".join(f"{name} {version}" for name, version in results.run.packages.items())]
    return "\n\n".join(parts) + "\n"


def _heading(family: str) -> str:
    return f"## {family[0].upper()}{family[1:]}"


def _grid(titles: Cells, rows: Iterable[Cells]) -> str:
    lines = (titles, ["---"] * len(titles), *rows)
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


# -- files -----------------------------------------------------------------------------------------------


def as_data(results: Results) -> dict[str, Any]:
    """Return the results as plain data for JSON."""
    data: dict[str, Any] = _rounded(dataclasses.asdict(results))
    for judged, source in zip(data["targets"], results.targets, strict=True):
        judged["verdict"] = source.verdict
    return {"format": FORMAT, **data}


def _rounded(value: Any) -> Any:
    """Cut floats to four significant digits: the rest is noise, and noise makes unreadable diffs."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def write(results: Results, folder: Path) -> None:
    """Write `overhead.json` and `overhead.md` into *folder*, making it if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overhead.json").write_text(json.dumps(as_data(results), indent=1) + "\n")
    (folder / "overhead.md").write_text(markdown(results))
