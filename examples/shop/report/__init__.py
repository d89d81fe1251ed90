"""The demo's report: one HTML page that needs nothing but itself, and the figures as JSON beside it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

from examples.shop import incident, protected
from examples.shop.display import SUMMARY_HEADERS, seconds, summary_cells
from examples.shop.figures import (
    FAULT,
    Run,
    Summary,
    goodput_over_time,
    p99_over_time,
    percentile,
)
from examples.shop.incident import Settings
from examples.shop.load import MIX
from examples.shop.report.plots import Line, line_plot, linear_axis, seconds_axis, state_strip
from examples.shop.timing import HOUR, SCALE, SHELF_LIFE_SCALE, scaled, shelf_life
from examples.shop.verdict import Check
from resilient.testing import describe

HERE = Path(__file__).parent
THE_DIFFERENCE = HERE.parent / "protected.py"

Summaries = Mapping[str, Mapping[str, Summary]]


def write(
    out: Path, settings: Settings, runs: Sequence[Run], summaries: Summaries, checks: Sequence[Check]
) -> Path:
    """Write `report.html` and `figures.json` into *out*; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    figures = _figures(settings, runs, summaries, checks)
    (out / "figures.json").write_text(json.dumps(_without_nan(figures), indent=1), encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(settings, runs, summaries, checks), encoding="utf-8")
    return page


def _figures(
    settings: Settings, runs: Sequence[Run], summaries: Summaries, checks: Sequence[Check]
) -> object:
    return {
        "scale": SCALE,
        "shelf_life_scale": SHELF_LIFE_SCALE,
        "settings": asdict(settings),
        "checks": [asdict(check) for check in checks],
        "summaries": {name: [asdict(row) for row in rows.values()] for name, rows in summaries.items()},
        "runs": [asdict(run) for run in runs],
    }


def _page(settings: Settings, runs: Sequence[Run], summaries: Summaries, checks: Sequence[Check]) -> str:
    prevented = all(check.held for check in checks)
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        verdict="Incident prevented" if prevented else "Not as promised",
        verdict_class="held" if prevented else "broken",
        calm=seconds(incident.CALM_LATENCY),
        fault=f"{incident.FAULT_LATENCY:g} s",
        scale=f"{SCALE:g}",
        shelf_life_scale=f"{SHELF_LIFE_SCALE:g}",
        refreshes=f"{SHELF_LIFE_SCALE / SCALE:g}",
        tiles=_tiles(summaries),
        goodput=_goodput_plot(settings, runs),
        p99=_p99_plot(runs),
        api_calls=_api_plot(runs),
        breakers=_strips(runs),
        checks="".join(map(_check, checks)),
        headers="".join(f"<th>{header}" for header in ("run", *SUMMARY_HEADERS)),
        summary=_summary_rows(summaries),
        settings=_settings_rows(settings),
        policies=_policy_rows(),
        events=_event_rows(runs),
        difference=escape(THE_DIFFERENCE.read_text(encoding="utf-8")),
        lag="; ".join(f"{run.version} {_lag(run)}" for run in runs),
        made=_made(),
    )


def _tiles(summaries: Summaries) -> str:
    runs = summaries["bare"], summaries["protected"]
    faults = [run[FAULT] for run in runs]
    calls = [sum(row.api_calls for row in run.values()) for run in runs]
    return "".join(
        (
            _tile("checkout p99 in fault", *(seconds(row.checkout_p99) for row in faults)),
            _tile("failed requests in fault", *(f"{row.error_ratio:.1%}" for row in faults)),
            _tile("good answers/s in fault", *(f"{row.goodput:.1f}" for row in faults)),
            _tile("calls to the rates API", *map(str, calls)),
        )
    )


def _tile(title: str, bare: str, protected: str) -> str:
    return (
        f'<div class="tile"><h3>{title}</h3><p><span class="bare"><b>{bare}</b> bare</span>'
        f'<span class="protected"><b>{protected}</b> protected</span></p></div>'
    )


def _goodput_plot(settings: Settings, runs: Sequence[Run]) -> str:
    series = {run.version: goodput_over_time(run, scaled(incident.GOOD_WITHIN)) for run in runs}
    axis = linear_axis("good answers per second", settings.rate)
    return line_plot("Goodput over time", axis, _lines(series), runs[0].spans)


def _p99_plot(runs: Sequence[Run]) -> str:
    series = {run.version: p99_over_time(run) for run in runs}
    values = [value for points in series.values() for _, value in points]
    highest = max(*values, scaled(incident.PATIENCE))
    axis = seconds_axis("p99 latency (log scale)", min(values), highest)
    words = {
        incident.GOOD_WITHIN: "a good answer takes at most",
        incident.PATIENCE: "customers give up after",
    }
    marks = [(scaled(value), f"{text} {seconds(scaled(value))}") for value, text in words.items()]
    return line_plot("99th percentile of latency over time", axis, _lines(series), runs[0].spans, marks)


def _api_plot(runs: Sequence[Run]) -> str:
    axis = linear_axis("calls so far", max(calls for run in runs for _, calls in run.api_calls))
    series = {run.version: run.api_calls for run in runs}
    return line_plot("Calls that reached the rates API so far", axis, _lines(series), runs[0].spans)


def _lines(series: Mapping[str, Sequence[tuple[float, float]]]) -> list[Line]:
    return [Line(name, points, name) for name, points in series.items()]


def _strips(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        for breaker in dict.fromkeys(change.breaker for change in run.transitions):
            changes = [change for change in run.transitions if change.breaker == breaker]
            strip = state_strip(f"States of the breaker {breaker}", changes, run.spans)
            parts.append(f"<h3>Breaker <code>{escape(breaker)}</code>, {run.version} run</h3>{strip}")
    return "".join(parts) or "<p>No breaker changed its state.</p>"


def _check(check: Check) -> str:
    mark, kind = ("✓", "held") if check.held else ("✗", "broken")
    return (
        f'<li class="{kind}"><span>{mark}</span>{escape(check.promise)}: <b>{escape(check.measured)}</b></li>'
    )


def _summary_rows(summaries: Summaries) -> str:
    return "".join(
        _row([name, *summary_cells(row)], f"{name} {row.phase}")
        for name, phases in summaries.items()
        for row in phases.values()
    )


def _settings_rows(settings: Settings) -> str:
    def both(what: str, value: float) -> list[str]:
        return [what, f"{value:g} s", seconds(scaled(value))]

    mix = ", ".join(f"{action} {weight}" for action, weight in MIX.items())
    rows = [
        both("the rates API answers in, calm", incident.CALM_LATENCY),
        both("the rates API answers in, fault", incident.FAULT_LATENCY),
        both("customers give up after", incident.PATIENCE),
        both("a good answer takes at most", incident.GOOD_WITHIN),
        ["the cache's hour", f"{HOUR:g} s", seconds(shelf_life(HOUR))],
        ["requests per second", f"{incident.RATE:g}", f"{settings.rate:g}"],
        ["phases", "", ", ".join(f"{s.name} {s.end - s.start:g} s" for s in settings.spans())],
        [f"of {sum(MIX.values())} requests", "", mix],
    ]
    return "".join(map(_row, rows))


def _policy_rows() -> str:
    rows = []
    for layer in describe(protected.rates_api):
        settings = {name: value for name, value in layer.items() if value is not None}
        kind, name = settings.pop("kind"), settings.pop("name")
        rows.append([str(kind), str(name), ", ".join(f"{word} {value}" for word, value in settings.items())])
    return "".join(map(_row, rows))


def _event_rows(runs: Sequence[Run]) -> str:
    rows = [
        [run.version, *event.rsplit(" ", 1), str(times)]
        for run in runs
        for event, times in sorted(run.events.items())
    ]
    return "".join(map(_row, rows)) or _row(["-", "no policy reported anything", "", ""])


def _row(cells: Sequence[str], kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'


def _lag(run: Run) -> str:
    lags = [sample.lag for sample in run.samples]
    return f"{seconds(percentile(lags, 0.99))} (p99), {seconds(max(lags))} (worst)"


def _made() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.system()} {platform.machine()}"
    now = datetime.now().astimezone()
    return f"{now:%Y-%m-%d %H:%M %Z}, resilient-py {version('resilient-py')}, {python} on {machine}"


def _without_nan(value: object) -> object:
    """Return *value* with null for not-a-number, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
