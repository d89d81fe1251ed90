"""The page and the JSON beside it, written."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

from examples.shop.crowds import MIX
from examples.shop.figures import Run, percentile
from examples.shop.incident import Check, Exhibit, Incident, Outcome, Settings, Tile
from examples.shop.report.drawings import row, table
from examples.shop.timing import SCALE, SHELF_LIFE_SCALE
from examples.shop.words import seconds

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Played:
    """An incident, how it was played, and what came of it."""

    incident: Incident
    settings: Settings
    outcomes: Mapping[str, Outcome]
    checks: Sequence[Check]

    @property
    def prevented(self) -> bool:
        """Whether everything went as promised."""
        return all(check.held for check in self.checks)


def write(out: Path, played: Sequence[Played]) -> Path:
    """Write `report.html` and `figures.json` into *out*; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(_without_nan(_figures(played))), encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(played), encoding="utf-8")
    return page


def _figures(played: Sequence[Played]) -> object:
    return {
        "scale": SCALE,
        "shelf_life_scale": SHELF_LIFE_SCALE,
        "incidents": {each.incident.key: _incident_figures(each) for each in played},
    }


def _incident_figures(played: Played) -> object:
    outcomes = played.outcomes.items()
    return {
        "settings": asdict(played.settings),
        "checks": [asdict(check) for check in played.checks],
        "summaries": {name: [asdict(row) for row in each.phases.values()] for name, each in outcomes},
        "runs": [asdict(each.run) for _, each in outcomes],
    }


def _page(played: Sequence[Played]) -> str:
    return _fill(
        "page.html",
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        verdicts="".join(map(_link, played)),
        scale=f"{SCALE:g}",
        incidents="".join(map(_article, played)),
        made=_made(),
    )


def _article(played: Played) -> str:
    incident, settings, outcomes = played.incident, played.settings, played.outcomes.values()
    return _fill(
        "incident.html",
        key=incident.key,
        name=incident.key.upper(),
        title=escape(incident.title),
        verdict=_verdict(played),
        story=escape(incident.story(settings)),
        tiles="".join(map(_tile, incident.tiles(*outcomes))),
        exhibits="".join(map(_exhibit, incident.exhibits(settings, *outcomes))),
        checks="".join(map(_check, played.checks)),
        summary=_summary(incident, played.outcomes),
        settings=_settings(incident, settings),
        note="".join(f'<p class="note">{escape(note)}</p>' for note in incident.notes(settings)),
        policies=_policies(incident, settings),
        events=_events([outcome.run for outcome in outcomes]),
        file=incident.difference.name,
        difference=escape(incident.difference.read_text(encoding="utf-8")),
        lag="; ".join(f"{each.run.version} {_lag(each.run)}" for each in outcomes),
    )


def _fill(template: str, **values: str) -> str:
    return Template((HERE / template).read_text(encoding="utf-8")).substitute(values)


def _link(played: Played) -> str:
    name = f"{played.incident.key.upper()} {escape(played.incident.title)}"
    return f'<li><a href="#{played.incident.key}">{name}</a> {_verdict(played)}</li>'


def _verdict(played: Played) -> str:
    kind, words = ("held", "Incident prevented") if played.prevented else ("broken", "Not as promised")
    return f'<span class="verdict {kind}">{words}</span>'


def _tile(tile: Tile) -> str:
    figures = "".join(
        f'<span class="{version}"><b>{figure}</b> {version}</span>'
        for version, figure in tile.figures.items()
    )
    return f'<div class="tile"><h4>{tile.title}</h4><p>{figures}</p></div>'


def _exhibit(exhibit: Exhibit) -> str:
    return f"<section><h3>{escape(exhibit.heading)}</h3>{exhibit.body}</section>"


def _check(check: Check) -> str:
    mark, kind = ("✓", "held") if check.held else ("✗", "broken")
    return (
        f'<li class="{kind}"><span>{mark}</span>{escape(check.promise)}: <b>{escape(check.measured)}</b></li>'
    )


def _summary(incident: Incident, outcomes: Mapping[str, Outcome]) -> str:
    rows = (
        row(
            [name, summary.phase, *(column.text(summary) for column in incident.columns)],
            f"{name} {summary.phase}",
        )
        for name, outcome in outcomes.items()
        for summary in outcome.phases.values()
    )
    return table(["run", "phase", *(column.header for column in incident.columns)], rows, "figures")


def _settings(incident: Incident, settings: Settings) -> str:
    mix = ", ".join(f"{action} {weight}" for action, weight in MIX.items())
    spans = incident.spans(settings, incident.versions[0])
    phases = ", ".join(f"{span.name} {span.seconds:g} s" for span in spans)
    facts = [*incident.facts(settings), ("phases", "", phases), (f"of {sum(MIX.values())} requests", "", mix)]
    return table(["", "the incident", "here"], map(row, facts))


def _policies(incident: Incident, played: Settings) -> str:
    rows = []
    for policy in incident.policies(played):
        settings = {name: value for name, value in policy.items() if value is not None}
        kind, name = settings.pop("kind"), settings.pop("name")
        rows.append([str(kind), str(name), ", ".join(f"{word} {value}" for word, value in settings.items())])
    return table(["policy", "name", "settings"], map(row, rows), "policies")


def _events(runs: Sequence[Run]) -> str:
    rows = [
        row([run.version, *event.rsplit(" ", 1), str(times)])
        for run in runs
        for event, times in sorted(run.events.items())
    ]
    return table(
        ["run", "policy", "event", "times"], rows or [row(["-", "no policy reported anything", "", ""])]
    )


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
