"""The demo: incident A4 without and with `resilient`, `python -m examples.shop`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.shop import figures, report, verdict
from examples.shop.display import Display
from examples.shop.figures import Run
from examples.shop.incident import GOOD_WITHIN, Settings
from examples.shop.processes import ServiceDiedError
from examples.shop.scenario import play
from examples.shop.timing import scaled

VERSIONS = ("bare", "protected")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the incident twice, show what came of it; 0 if it was prevented."""
    options = _parse(arguments)
    settings = Settings(options.rate, options.warm_up, options.calm, options.fault, options.recovery)
    display = Display()
    display.open(settings)
    logs = _empty_directories(options.out / "logs")
    try:
        runs = asyncio.run(_play_all(settings, logs, display))
    except ServiceDiedError as error:
        display.failed(error)
        return 2
    except KeyboardInterrupt:
        display.interrupted()
        return 130
    summaries = {
        run.version: {span.name: figures.summarise(run, span, scaled(GOOD_WITHIN)) for span in run.spans}
        for run in runs
    }
    checks = verdict.checks(summaries["bare"], summaries["protected"])
    display.results(runs, summaries, checks)
    written = report.write(options.out, settings, runs, summaries, checks)
    display.written(written)
    return 0 if all(check.held for check in checks) else 1


async def _play_all(settings: Settings, logs: Path, display: Display) -> list[Run]:
    with display:
        return [await play(version, settings, logs / version, display.tell) for version in VERSIONS]


def _empty_directories(logs: Path) -> Path:
    shutil.rmtree(logs, ignore_errors=True)
    for version in VERSIONS:
        (logs / version).mkdir(parents=True)
    return logs


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.shop",
        description="Play incident A4 (the rates API turns slow) to a small shop, without and with policies.",
        epilog="SHOP_SCALE in the environment sets how many seconds of the incident one second stands for.",
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="directory of the report")
    parser.add_argument("--rate", type=_positive, default=40, help="requests per second")
    for phase, seconds in {"warm-up": 3, "calm": 10, "fault": 20, "recovery": 10}.items():
        parser.add_argument(f"--{phase}", type=_positive, default=seconds, help="seconds")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1000:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1000, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
