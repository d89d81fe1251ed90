"""Incident A7, for real and short: a flood ends at the protected shop's door.

`make soak` has the demo play it in full, and take the shop as first written down.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from examples.shop.crowds import CUSTOMERS, FLOOD, HEEDFUL
from examples.shop.figures import Run
from examples.shop.incident import Check, Settings
from examples.shop.incidents.flood import Flood
from examples.shop.scenario import play
from tests.incidents.playing import Demo, demo_of, judged

LIMIT_OF_CALM_RATE, BURST_OF_CALM_RATE, FLOOD_OF_CALM_RATE = 1 / 2, 1, 10

# Twice as long as it takes, and more: the machine may have other things to do.
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(150)]

in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="a minute: make soak")
HURRY = {"warm_up": 0.5, "calm": 2.5, "onset": 2.0, "fault": 4.0, "recovery": 0.3}
PROMISES = ("fast", "customers served", "flood limited", "who waits is let in")

Played = tuple[Settings, Run]


async def _play(logs: Path) -> Played:
    flood = Flood()
    [_, protected] = flood.versions
    settings = await flood.prepare(replace(flood.defaults, **HURRY), logs)
    return settings, await play(flood, protected, settings, logs, lambda *_: None)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The protected shop, in a hurry."""
    return asyncio.run(_play(tmp_path_factory.mktemp("logs")))


@pytest.fixture(scope="module")
def checks(played: Played) -> dict[str, Check]:
    """What came of the promises about it."""
    _, *promised = judged(Flood(), *played)
    return dict(zip(PROMISES, promised, strict=True))


demo = demo_of("a7", within=140)


def _outcomes(run: Run, crowd: str) -> Counter[str]:
    return Counter(sample.outcome for sample in run.of(crowd))


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(checks: dict[str, Check], promise: str) -> None:
    """In the flood."""
    check = checks[promise]
    assert check.held, f"{check.promise}: {check.measured}"


def test_protected_shop_turns_no_customer_away(played: Played) -> None:
    """All of them come in, in the middle of the flood."""
    assert _outcomes(played[1], CUSTOMERS).keys() == {"200"}


def test_protected_shop_gives_the_flood_its_limit_and_429_beyond(played: Played) -> None:
    """Nothing fails, and nothing slips in: no more than burst and rate allow."""
    settings, run = played
    flood, seconds = _outcomes(run, FLOOD), settings.onset + settings.fault

    allowed = BURST_OF_CALM_RATE * settings.rate + LIMIT_OF_CALM_RATE * settings.rate * seconds
    assert flood.keys() == {"200", "429"}
    assert flood["200"] == pytest.approx(allowed, rel=0.05)
    assert flood.total() == pytest.approx((FLOOD_OF_CALM_RATE - 1) * settings.rate * seconds, abs=2)


def test_client_that_waits_as_long_as_it_was_told_is_let_in(played: Played) -> None:
    """Every time; and it was told the next whole second, not to come back some day."""
    _, run = played
    refused = [sample.retry_after for sample in run.samples if sample.outcome == "429"]
    returned = [sample.outcome for sample in run.of(HEEDFUL) if sample.action == "come back"]

    assert set(refused) == {1.0}
    assert len(returned) >= 3
    assert set(returned) == {"200"}


@in_full
def test_demo_ends_well_and_says_so(demo: Demo) -> None:
    """On a terminal, in the exit code and in the report."""
    demo.assert_ended_well()


@in_full
@pytest.mark.parametrize("service", ["catalogue", "currency", "checkout"])
def test_bare_service_is_waited_for_five_times_as_long(demo: Demo, service: str) -> None:
    """Behind the frontend, everybody is slow."""
    calm, fault = demo.phases["bare calm"], demo.phases["bare fault"]

    assert fault["services"][service] >= 5 * calm["services"][service]


@in_full
def test_bare_frontend_is_five_times_slower(demo: Demo) -> None:
    """Which is what customers see."""
    assert demo.phases["bare fault"]["page_p95"] >= 5 * demo.phases["bare calm"]["page_p95"]
