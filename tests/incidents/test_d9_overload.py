"""Incident D9, for real and in a hurry: up to four times what the shop can answer, with a limit that adapts.

`make soak` plays all of it: without a limit, with a guessed one, and from limits that are far from right.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from examples.shop.figures import Run, Summary, summarise
from examples.shop.incident import Settings
from examples.shop.incidents.overload import ADAPTIVE, BEYOND, RANKS, SETTLED, Overload
from examples.shop.scenario import play

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(90)]

HURRY = {"warm_up": 0.5, "calm": 0.5, "onset": 7.0, "fault": 1.5, "recovery": 0.5}


async def _play(logs: Path) -> tuple[Settings, Run]:
    overload = Overload()
    settings = await overload.prepare(replace(overload.defaults, **HURRY), logs)
    version = replace(ADAPTIVE, environment={})  # from the limit that everybody begins with
    return settings, await play(overload, version, settings, logs, lambda *_: None)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Run]:
    """The shop, under ever more load.

    The customers come from a process of their own. In that of the tests, with all it has loaded, they are
    so slow that the shop seems to answer less than it can, and four times of that is no four times.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_played, tmp_path_factory.mktemp("logs")).result()


def _played(logs: Path) -> tuple[Settings, Run]:
    return asyncio.run(_play(logs))


@pytest.fixture(scope="module")
def phases(played: tuple[Settings, Run]) -> dict[str, Summary]:
    """What it came to, phase by phase."""
    settings, run = played
    return {span.name: summarise(run, span, settings.good_within) for span in run.spans}


def _served(rank: str, *rows: Summary) -> float:
    counts = [row.served.get(action, (0, 0)) for row in rows for action in RANKS[rank]]
    return sum(served for served, _ in counts) / sum(sent for _, sent in counts)


def test_goodput_stays(played: tuple[Settings, Run], phases: dict[str, Summary]) -> None:
    """At four times of what it can answer, the shop answers four fifths of that, or more."""
    settings, _ = played
    assert phases["4x"].throughput >= 0.8 * settings.rate


def test_who_is_let_in_does_not_wait(phases: dict[str, Summary]) -> None:
    """It was the queue that took the time."""
    assert max(phases[name].p95 for name in (SETTLED, *BEYOND)) < 0.6


def test_what_is_critical_is_served_and_what_is_sheddable_is_not(phases: dict[str, Summary]) -> None:
    """In every phase, and at the top."""
    assert _served("critical", *(phases[name] for name in BEYOND)) >= 0.994
    assert _served("sheddable", phases["4x"]) < 0.05


def test_every_probe_is_answered(played: tuple[Settings, Run]) -> None:
    """From the slot that is theirs."""
    _, run = played
    assert {sample.outcome for sample in run.samples if sample.action == "probe"} == {"200"}
