"""The demo: a shop's incidents without and with `resilient`, `python -m examples.shop`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.shop import figures
from examples.shop.display import Display
from examples.shop.figures import Run
from examples.shop.incident import Incident, Outcome, Settings
from examples.shop.incidents import INCIDENTS
from examples.shop.processes import ServiceDiedError
from examples.shop.report.page import Played, write
from examples.shop.scenario import play

_PHASES = ("warm_up", "calm", "onset", "fault", "recovery")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play each incident to each of its shops, show what came of it; 0 if all were prevented."""
    options = _parse(arguments)
    display = Display()
    try:
        played = [_played(INCIDENTS[key], options, display) for key in options.incident or INCIDENTS]
    except ServiceDiedError as error:
        display.failed(error)
        return 2
    except KeyboardInterrupt:
        display.interrupted()
        return 130
    display.written(write(options.out, played))
    return 0 if all(each.prevented for each in played) else 1


def _played(incident: Incident, options: argparse.Namespace, display: Display) -> Played:
    told = {name: value for name in ("rate", *_PHASES) if (value := getattr(options, name)) is not None}
    logs = _empty_directories(options.out / "logs" / incident.key, incident)
    settings, runs = asyncio.run(_play(incident, replace(incident.defaults, **told), logs, display))
    outcomes = {run.version: _outcome(run, settings) for run in runs}
    checks = incident.checks(settings, *outcomes.values())
    played = Played(incident, settings, outcomes, checks)
    display.results(played)
    return played


async def _play(
    incident: Incident, settings: Settings, logs: Path, display: Display
) -> tuple[Settings, list[Run]]:
    display.prepare(incident)
    settings = await incident.prepare(settings, logs)
    with display.playing(incident, settings) as tell:
        return settings, [
            await play(incident, version, settings, logs / version.name, tell)
            for version in incident.versions
        ]


def _outcome(run: Run, settings: Settings) -> Outcome:
    phases = {span.name: figures.summarise(run, span, settings.good_within) for span in run.spans}
    return Outcome(run, phases)


def _empty_directories(logs: Path, incident: Incident) -> Path:
    shutil.rmtree(logs, ignore_errors=True)
    for version in incident.versions:
        (logs / version.name).mkdir(parents=True)
    return logs


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.shop",
        description="Play incidents to a small shop, without and with policies.",
        epilog="SHOP_SCALE in the environment sets how many seconds of an incident one second stands for.",
    )
    titles = ", ".join(f"{key}: {incident.title}" for key, incident in INCIDENTS.items())
    parser.add_argument(
        "--incident", choices=INCIDENTS, action="append", help=f"which to play; all if not given ({titles})"
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="directory of the report")
    for name, unit in {"rate": "visitors' requests per second", **dict.fromkeys(_PHASES, "seconds")}.items():
        told = f"{unit} ({_defaults(name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=_positive, help=told, metavar="NUMBER")
    return parser.parse_args(arguments)


def _defaults(name: str) -> str:
    values = {key: getattr(incident.defaults, name) for key, incident in INCIDENTS.items()}
    nothing = "measured" if name == "rate" else "none"
    return ", ".join(f"{key}: {value:g}" if value else f"{key}: {nothing}" for key, value in values.items())


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1000:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1000, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
