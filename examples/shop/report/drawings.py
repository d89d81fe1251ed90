"""What any incident's part of the report may show: plots of both runs, and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape

from examples.shop.crowds import MIX
from examples.shop.figures import Run, goodput_over_time, latency_over_time
from examples.shop.incident import Settings
from examples.shop.report.plots import Line, Points, line_plot, linear_axis, seconds_axis, state_strip
from examples.shop.words import seconds


def legend(names: Iterable[str], fault: str) -> str:
    """Return what the colours mean."""
    colours = "".join(f'<span class="{name}">{name}</span>' for name in names)
    return f'<p class="legend">{colours}<span class="fault">fault: {escape(fault)}</span></p>'


def titled(title: str, drawing: str) -> str:
    """Return a drawing under its title."""
    return f"<h4>{escape(title)}</h4>{drawing}"


def goodput(settings: Settings, runs: Sequence[Run]) -> str:
    """Draw what the customers got in good time."""
    series = {run.version: goodput_over_time(run, settings.good_within) for run in runs}
    axis = linear_axis("good answers per second", settings.rate)
    plot = line_plot("Goodput over time", axis, lines(series), runs[0].spans)
    return titled("Goodput: right answers in good time, by the second the request was due", plot)


def latency(
    settings: Settings, runs: Sequence[Run], share: float, actions: Collection[str] = MIX, of: str = ""
) -> str:
    """Draw a percentile of what they waited; *of* says which *actions* are meant."""
    nth = f"{share * 100:g}th percentile"
    series = {run.version: latency_over_time(run, share, actions) for run in runs}
    values = [value for points in series.values() for _, value in points]
    highest = max(*values, settings.patience)
    axis = seconds_axis(f"p{share * 100:g} latency (log scale)", min(values), highest)
    words = {
        settings.good_within: "a good answer takes at most",
        settings.patience: "customers give up after",
    }
    marks = [(value, f"{text} {seconds(value)}") for value, text in words.items()]
    plot = line_plot(f"{nth} of latency over time", axis, lines(series), runs[0].spans, marks)
    return titled(f"Latency{of}, {nth}, by the second the request was due", plot)


def api_calls(runs: Sequence[Run]) -> str:
    """Draw how many calls have reached the rates API."""
    axis = linear_axis("calls so far", max(calls for run in runs for _, calls in run.api_calls))
    series = {run.version: run.api_calls for run in runs}
    plot = line_plot("Calls that reached the rates API so far", axis, lines(series), runs[0].spans)
    return titled("Calls that reached it so far", plot)


def breakers(runs: Sequence[Run]) -> str:
    """Draw the states of every breaker that was not closed all the time."""
    parts = []
    for run in runs:
        for breaker in dict.fromkeys(change.breaker for change in run.transitions):
            changes = [change for change in run.transitions if change.breaker == breaker]
            strip = state_strip(f"States of the breaker {breaker}", changes, run.spans)
            parts.append(f"<h4>Breaker <code>{escape(breaker)}</code>, {run.version} run</h4>{strip}")
    return "".join(parts) or "<p>No breaker changed its state.</p>"


def lines(series: Mapping[str, Points]) -> list[Line]:
    """Return a line for each name, such as that of a version of the shop."""
    return [Line(name, points, name) for name, points in series.items()]


def table(headers: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """Return a table of rows made by `row`."""
    head = "".join(f"<th>{escape(header)}" for header in headers)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(cells: Sequence[str], kind: str = "") -> str:
    """Return a row of a table."""
    return f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
