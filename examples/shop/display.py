"""What the demo shows in a terminal: a live line per run (plain lines where nobody watches), then tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.shop.figures import ASIDE, FAULT, Run, Span, good_answers, percentile
from examples.shop.incident import Incident, Outcome, Settings
from examples.shop.processes import cores
from examples.shop.report.page import Played
from examples.shop.scenario import Tell
from examples.shop.words import seconds, share

_LATELY = 3.0
_PLAIN_EVERY = 5.0
_STATE_STYLES = {"closed": "green", "half-open": "yellow", "open": "bold red"}


class Display:
    """The demo's voice."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()

    def prepare(self, incident: Incident) -> None:
        """Say what is next."""
        self._console.print(f"\n[bold]Incident {incident.key.upper()}: {incident.title}[/]")
        load, processors = os.getloadavg()[0], cores()
        if load > processors:
            busy = f"This machine has other things to do (load {load:.1f}, {processors:g} processors)"
            self._console.print(f"[yellow]{busy}: what is slow may be slow for that.[/]")

    @contextmanager
    def playing(self, incident: Incident, settings: Settings) -> Iterator[Tell]:
        """Say what is about to be played, and yield what shows how it goes."""
        lengths = [incident.spans(settings, version)[-1].end for version in incident.versions]
        runs = f"{len(lengths)} runs, {sum(lengths):.0f} s."
        self._console.print(f"{incident.story(settings)} {runs}\n", soft_wrap=True)
        if not self._console.is_terminal:
            yield _Plain(self._console, incident, settings).tell
            return
        with Live(console=self._console, refresh_per_second=4) as live:
            yield _Watched(live, incident, settings).tell

    def results(self, played: Played) -> None:
        """Show the tables and the verdict."""
        self._console.print()
        self._console.print(_summary_table(played.incident, played.outcomes))
        for outcome in played.outcomes.values():
            if outcome.run.transitions:
                self._console.print(_transitions(outcome.run))
        for check in played.checks:
            mark = "[bold green]✓[/]" if check.held else "[bold red]✗[/]"
            self._console.print(f" {mark} {check.promise}: [bold]{check.measured}[/]", soft_wrap=True)
        prevented = (
            "[bold green]Incident prevented.[/]" if played.prevented else "[bold red]Not as promised.[/]"
        )
        self._console.print(f"\n{prevented}")

    def written(self, page: Path) -> None:
        """Say where the report is."""
        self._console.print(f"\nReport: [link={page.resolve().as_uri()}]{page}[/]", soft_wrap=True)

    def failed(self, error: Exception) -> None:
        """Say which process of the shop let the demo down, and its last words."""
        self._console.print(Text("The demo failed: ", "bold red").append(str(error), ""))

    def interrupted(self) -> None:
        """Say that the demo was stopped by hand."""
        self._console.print("Stopped; every process of the shop has ended.")


class _Watched:
    """A line per run, always the latest."""

    def __init__(self, live: Live, incident: Incident, settings: Settings) -> None:
        self._live = live
        self._incident = incident
        self._settings = settings
        self._rows: dict[str, dict[str, RenderableType]] = {}

    def tell(self, run: Run, span: Span, now: float) -> None:
        bar = ProgressBar(total=run.spans[-1].end, completed=now, width=18)
        phase = Text(span.name, "bold red" if span.faulty else "")
        texts = _gauges(self._incident, self._settings, run, now)
        gauges = {name: _coloured(text) for name, text in texts.items()}
        self._rows[run.version] = {"run": Text(run.version, "bold"), "": bar, "phase": phase, **gauges}
        self._live.update(_live_table(self._rows))


class _Plain:
    """A line every few seconds, for a file."""

    def __init__(self, console: Console, incident: Incident, settings: Settings) -> None:
        self._console = console
        self._incident = incident
        self._settings = settings
        self._said: tuple[str, str, int] | None = None

    def tell(self, run: Run, span: Span, now: float) -> None:
        saying = (run.version, span.name, int(now / _PLAIN_EVERY))
        if saying != self._said:
            self._said = saying
            texts = _gauges(self._incident, self._settings, run, now)
            gauges = "  ".join(f"{name} {text:<7}" for name, text in texts.items())
            self._console.print(
                f"{run.version:<9}  {now:5.1f} s  {span.name:<8}  {gauges}".rstrip(), soft_wrap=True
            )


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file has no width of its own, and rich's guess of 80 would break the lines.
        console.width = 120
    return console


def _gauges(incident: Incident, settings: Settings, run: Run, now: float) -> dict[str, str]:
    # From the end, for they are noted as they are answered.
    lately = list(takewhile(lambda s: now - _LATELY < s.at + s.latency, reversed(run.samples)))
    shopping = [s for s in lately if s.crowd not in ASIDE]
    let_in, wanted = [s for s in shopping if s.let_in], [s for s in shopping if not s.refused]
    over = min(_LATELY, max(now, 0.5))
    return {
        "good/s": f"{good_answers(lately, settings.good_within) / over:.0f}",
        "p99": seconds(percentile((s.latency for s in let_in), 0.99)),
        "failed": share(sum(not s.ok for s in wanted), len(wanted)),
        **incident.gauges(run, lately),
    }


def _coloured(gauge: str) -> Text:
    text = Text(gauge)
    for state, style in _STATE_STYLES.items():
        text.highlight_words([f" {state}"], style)
    return text


def _live_table(rows: Mapping[str, Mapping[str, RenderableType]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in next(iter(rows.values())):
        table.add_column(header)
    for cells in rows.values():
        table.add_row(*cells.values())
    return table


def _summary_table(incident: Incident, outcomes: Mapping[str, Outcome]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for index, header in enumerate(("run", "phase", *(column.header for column in incident.columns))):
        table.add_column(header, justify="left" if index < 2 else "right", no_wrap=True)
    for version, outcome in outcomes.items():
        for number, (phase, summary) in enumerate(outcome.phases.items()):
            cells = [column.text(summary) for column in incident.columns]
            style = "bold" if phase == FAULT else ""
            table.add_row("" if number else f"[bold]{version}[/]", phase, *cells, style=style)
        table.add_section()
    return table


def _transitions(run: Run) -> Text:
    text = Text(f"Breakers of the {run.version} run: ")
    for breaker in dict.fromkeys(change.breaker for change in run.transitions):
        text.append(f"\n  {breaker}  closed", _STATE_STYLES["closed"])
        for change in run.transitions:
            if change.breaker == breaker:
                text.append(f", {change.at:.1f} s ").append(change.state, _STATE_STYLES[change.state])
    return text.append("\n")
