"""What the demo shows in a terminal: a live line per run (plain lines where nobody watches), then tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.shop.figures import FAULT, Run, Sample, Span, Summary, percentile
from examples.shop.incident import CALM_LATENCY, FAULT_LATENCY, GOOD_WITHIN, Settings
from examples.shop.timing import SCALE, scaled
from examples.shop.verdict import Check

SUMMARY_HEADERS = ("phase", "sent", "failed", "p50", "p95", "p99", "checkout p99", "good/s", "API calls")

_LATELY = 3.0
_PLAIN_EVERY = 5.0
_STATE_STYLES = {"closed": "green", "half-open": "yellow", "open": "bold red"}


class Display:
    """The demo's voice. A context in which runs are shown live, if the console is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._live = Live(console=self._console, refresh_per_second=4)
        self._rows: dict[str, list[object]] = {}
        self._said: tuple[str, str, int] | None = None

    def open(self, settings: Settings) -> None:
        """Say what is about to be played."""
        length, latency = settings.spans()[-1].end, (CALM_LATENCY, FAULT_LATENCY)
        calm, fault = map(seconds, latency)
        played_calm, played_fault = map(seconds, map(scaled, latency))
        self._console.print(
            f"[bold]Incident A4[/]: the rates API turns from {calm} to {fault} an answer, and still "
            f"answers 200.\nPlayed twice, {length:g} s each, at {settings.rate:g} requests/s. Time is scaled "
            f"by 1/{SCALE:g}: {played_calm} to {played_fault}.\n"
        )

    def tell(self, run: Run, span: Span, now: float) -> None:
        """Show how a run goes; called a few times a second."""
        figures = _lately(run, now)
        if self._console.is_terminal:
            self._rows[run.version] = [_bar(run, now), _phase(span), *figures, _breakers(run)]
            self._live.update(_live_table(self._rows))
            return
        said = (run.version, span.name, int(now / _PLAIN_EVERY))
        if said != self._said:
            self._said = said
            good, p99, failed, calls = figures
            self._console.print(
                f"{run.version:<9}  {now:5.1f} s  {span.name:<8}  good {good:>3}/s  p99 {p99:>7}  "
                f"failed {failed:>6}  API calls {calls:>5}  breakers {_breakers(run)}"
            )

    def results(
        self, runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Summary]], checks: Sequence[Check]
    ) -> None:
        """Show the tables and the verdict."""
        self._console.print()
        self._console.print(_summary_table(summaries))
        for run in runs:
            self._console.print(_transitions(run))
        self._console.print()
        for check in checks:
            mark = "[bold green]✓[/]" if check.held else "[bold red]✗[/]"
            self._console.print(f" {mark} {check.promise}: [bold]{check.measured}[/]")
        prevented = all(check.held for check in checks)
        self._console.print(
            "\n[bold green]Incident prevented.[/]" if prevented else "\n[bold red]Not as promised.[/]"
        )

    def written(self, page: Path) -> None:
        """Say where the report is."""
        self._console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/]", soft_wrap=True)

    def failed(self, error: Exception) -> None:
        """Say which process of the shop let the demo down, and its last words."""
        self._console.print(Text("The demo failed: ", "bold red").append(str(error), ""))

    def interrupted(self) -> None:
        """Say that the demo was stopped by hand."""
        self._console.print("Stopped; every process of the shop has ended.")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file has no width of its own, and rich's guess of 80 would break the lines.
        console.width = 120
    return console


def seconds(value: float) -> str:
    """Write a duration for people."""
    if math.isnan(value):
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.3g} s"


def _lately(run: Run, now: float) -> list[str]:
    answered = [s for s in run.samples if now - _LATELY < s.at + s.latency]
    good = sum(s.ok and s.latency <= scaled(GOOD_WITHIN) for s in answered) / min(_LATELY, max(now, 0.5))
    calls = run.api_calls[-1][1] if run.api_calls else 0
    return [
        f"{good:.0f}",
        seconds(percentile((s.latency for s in answered), 0.99)),
        _failed(answered),
        str(calls),
    ]


def _failed(samples: Sequence[Sample]) -> str:
    return f"{sum(not s.ok for s in samples) / len(samples):.1%}" if samples else "-"


def _breakers(run: Run) -> Text:
    if run.version == "bare":
        return Text("none", style="dim")
    now = {transition.breaker: transition.state for transition in run.transitions}
    unwell = [
        Text(f"{name} {state}", _STATE_STYLES[state]) for name, state in now.items() if state != "closed"
    ]
    return Text(", ").join(unwell) if unwell else Text("all closed", "green")


def _phase(span: Span) -> Text:
    return Text(span.name, "bold red" if span.name == FAULT else "")


def _bar(run: Run, now: float) -> ProgressBar:
    return ProgressBar(total=run.spans[-1].end, completed=now, width=18)


def _live_table(rows: Mapping[str, Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("run", "", "phase", "good/s", "p99", "failed", "API calls", "breakers"):
        table.add_column(
            header, justify="right" if header in ("good/s", "p99", "failed", "API calls") else "left"
        )
    for version, row in rows.items():
        table.add_row(f"[bold]{version}[/]", *row)  # type: ignore[arg-type]
    return table


def _summary_table(summaries: Mapping[str, Mapping[str, Summary]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for index, header in enumerate(("run", *SUMMARY_HEADERS)):
        table.add_column(header, justify="left" if index < 2 else "right", no_wrap=True)
    for version, phases in summaries.items():
        for number, row in enumerate(phases.values()):
            style = "bold" if row.phase == FAULT else ""
            table.add_row("" if number else f"[bold]{version}[/]", *summary_cells(row), style=style)
        table.add_section()
    return table


def summary_cells(row: Summary) -> list[str]:
    """Return a row of the table as texts."""
    times = [seconds(value) for value in (row.p50, row.p95, row.p99, row.checkout_p99)]
    failed = f"{row.error_ratio:.1%}"
    return [row.phase, str(row.requests), failed, *times, f"{row.goodput:.1f}", str(row.api_calls)]


def _transitions(run: Run) -> Text:
    text = Text(f"Breakers of the {run.version} run: ")
    if not run.transitions:
        return text.append("none" if run.version == "bare" else "closed all the time")
    for breaker in dict.fromkeys(change.breaker for change in run.transitions):
        text.append(f"\n  {breaker}  closed", _STATE_STYLES["closed"])
        for change in run.transitions:
            if change.breaker == breaker:
                text.append(f", {change.at:.1f} s ").append(change.state, _STATE_STYLES[change.state])
    return text
