"""The game day's own parts: who comes and when, how it is ranked, and verdicts that can be broken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree as ET

import httpx
import pytest
from examples.shop import figures, shedding
from examples.shop.crowds import CUSTOMERS, PREFETCH, PROBES, Crowd, Due, plan
from examples.shop.figures import Run, Sample
from examples.shop.incident import Outcome, Settings, Version
from examples.shop.incidents.overload import ADAPTIVE, FROM_HIGH, LADDER, RANKS, Overload
from examples.shop.scenario import Recorder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from resilient import current_priority

OVERLOAD = Overload()
SETTINGS = Settings(rate=100, warm_up=1, calm=2, onset=2, fault=2, recovery=1, patience=2.0, good_within=2.0)
RANK_OF = {action: rank for rank, actions in RANKS.items() for action in actions}


def _requests(version: Version) -> list[Due]:
    crowds = OVERLOAD.crowds(SETTINGS, version)
    names = dict.fromkeys(crowd.name for crowd in crowds)
    return [due for name in names for due in plan(*(crowd for crowd in crowds if crowd.name == name))]


def _outcome(version: Version) -> Outcome:
    """Return what comes of a shop that beyond its capacity answers nobody, or those who matter."""
    run = Run(version.name, OVERLOAD.spans(SETTINGS, version))
    loads = {f"{load:g}x": load for load in LADDER} | dict.fromkeys(("warm-up", "recovery"), 0.5)
    for number, due in enumerate(_requests(version)):
        [span] = [span for span in run.spans if due.at in span]
        rank, load = RANK_OF[due.action], loads.get(span.name, 2.0)
        # Of 57 requests 6 are of those who buy, 13 of those who do not yet; 38 browsers make by themselves.
        room = {"default": (57 / load - 6) / 13, "sheddable": (57 / load - 19) / 38}.get(rank, 1.0)
        if rank == "probe" or load <= 1 or (version.protections and number * 0.618 % 1 < room):
            became = (0.2, 0.0, "200")
        else:
            became = (0.2, 0.0, "503") if version.protections else (2.0, 0.0, "timeout")
        run.samples.append(Sample(due.at, due.action, *became, due.crowd))
    run.limits = [(at / 5, 14 if at > 5 else 140) for at in range(int(5 * run.spans[-1].end))]
    phases = {span.name: figures.summarise(run, span, SETTINGS.good_within) for span in run.spans}
    return Outcome(run, phases)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What comes of all five, as promised."""
    return {version.name: _outcome(version) for version in OVERLOAD.versions}


def _held(outcomes: Mapping[str, Outcome]) -> list[bool]:
    return [check.held for check in OVERLOAD.checks(SETTINGS, *outcomes.values())]


def test_verdict_holds_where_the_shop_sheds_what_is_too_much(outcomes: dict[str, Outcome]) -> None:
    """Every promise, at once."""
    assert _held(outcomes) == [True] * 9


@pytest.mark.parametrize(
    ("broken", "version", "phase", "changed"),
    [
        pytest.param(0, "bare", "4x", {"throughput": 90.0}, id="the bare shop stands"),
        pytest.param(1, "adaptive", "4x", {"throughput": 20.0}, id="goodput falls"),
        pytest.param(2, "adaptive", "3x", {"p95": 0.6}, id="who is let in waits"),
        pytest.param(3, "adaptive", "2x", {"errors": 600}, id="who is let in fails"),
        pytest.param(4, "adaptive", "2x", {"served": {"checkout": (90, 100)}}, id="buying is shed"),
        pytest.param(4, "adaptive", "4x", {"served": {"prefetch": (6, 100)}}, id="fetching is served"),
        pytest.param(5, "adaptive", "1x", {"served": {"probe": (9, 10)}}, id="a probe is refused"),
        pytest.param(5, "from-high", "settling", {"served": {"probe": (9, 10)}}, id="a probe, early on"),
        pytest.param(6, "adaptive", "settled", {"throughput": 20.0}, id="a low limit stays low"),
        pytest.param(7, "from-high", "settled", {"p95": 0.6}, id="a high limit stays high"),
        pytest.param(8, "from-high", "slower", {"throughput": 20.0}, id="the limit gives way to slowness"),
    ],
)
def test_each_promise_can_be_broken(
    outcomes: dict[str, Outcome], broken: int, version: str, phase: str, changed: dict[str, object]
) -> None:
    """By the one figure it is about, and no other."""
    outcome = outcomes[version]
    row = replace(outcome.phases[phase], **changed)  # type: ignore[arg-type]
    spoilt = {**outcomes, version: replace(outcome, phases={**outcome.phases, phase: row})}

    assert _held(spoilt) == [index != broken for index in range(9)]


async def _say_priority(request: Request) -> Response:
    return PlainTextResponse(current_priority().name.lower())


async def test_door_ranks_what_visitors_ask_for_as_the_report_does() -> None:
    """Each kind of request, as the load generator sends it."""
    routes = [Route("/{page:path}", _say_priority, methods=["GET", "POST"])]
    transport = httpx.ASGITransport(shedding.guarded(Starlette(routes=routes)))
    told = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        for due in {due.action: due for due in _requests(ADAPTIVE)}.values():
            answer = await http.request(due.method, due.path, headers=dict(due.fields))
            told[due.action] = answer.text

    assert told == RANK_OF


@pytest.mark.parametrize("purpose", ["prefetch;prerender", "prefetch"])
async def test_prefetching_is_sheddable_whatever_the_page(purpose: str) -> None:
    """A browser that asks ahead for a cart buys nothing yet."""
    transport = httpx.ASGITransport(shedding.guarded(Starlette(routes=[Route("/cart", _say_priority)])))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        answer = await http.get("/cart", headers={"Sec-Purpose": purpose})

    assert answer.text == "sheddable"


def test_visitors_come_at_random_and_the_same_for_every_shop() -> None:
    """At the rate of the crowd, and in gaps of any length."""
    crowd = Crowd(CUSTOMERS, 100, 2.0, 42.0, at_random=True)
    times = list(crowd.times())
    gaps = [later - earlier for earlier, later in pairwise(times)]

    assert times == list(crowd.times())
    assert len(times) == pytest.approx(4000, rel=0.05)
    assert all(2.0 < at < 42.0 for at in times)
    # Of exponential gaps, one in e is longer than the mean.
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)


def test_crowd_at_random_survives_the_command_line() -> None:
    """What the load generator reads is what was written."""
    crowd = Crowd(PREFETCH, 33.5, 5.0, 9.25, at_random=True)

    assert Crowd.parse(str(crowd)) == crowd


def test_crowd_whose_rate_changes_goes_on_with_its_carts() -> None:
    """A checkout of the second step may be of a cart that was filled in the first."""
    steps = [Crowd(CUSTOMERS, rate, start, start + 20) for start, rate in ((0, 10), (20, 40))]
    requests = list(plan(*steps))
    filled = {httpx.URL(due.path).params["user"] for due in requests if due.action == "add to cart"}
    before = {
        httpx.URL(due.path).params["user"] for due in requests if due.action == "add to cart" and due.at < 20
    }
    paid = [
        httpx.URL(due.path).params["user"] for due in requests if due.action == "checkout" and due.at >= 20
    ]

    assert len(requests) == 1000
    assert set(paid) <= filled
    assert before & set(paid)


def test_steps_offer_multiples_of_the_capacity() -> None:
    """From half of it to four times."""
    requests = [due for due in _requests(ADAPTIVE) if due.crowd != PROBES]
    spans = OVERLOAD.spans(SETTINGS, ADAPTIVE)
    offered = [sum(due.at in span for due in requests) / span.seconds / SETTINGS.rate for span in spans]

    assert [span.name for span in spans if span.faulty] == ["1.5x", "2x", "3x", "4x"]
    assert offered[3:-1] == pytest.approx(LADDER, rel=0.25)


def test_rates_turn_slower_for_one_shop_only() -> None:
    """So that the others tell of their limits alone."""
    latencies = {
        version.name: [OVERLOAD.api_latency(span) for span in OVERLOAD.spans(SETTINGS, version)]
        for version in OVERLOAD.versions
    }

    assert latencies.pop(FROM_HIGH.name) == [0.1, 0.1, 0.1, 0.4, 0.4]
    assert {latency for several in latencies.values() for latency in several} == {0.1}


def test_rates_turn_slower_when_those_who_came_before_are_gone() -> None:
    """Or they would wait for them, and the limit that is judged by their latency be blamed for it."""
    spans = {span.name: span for span in OVERLOAD.spans(SETTINGS, FROM_HIGH)}

    assert spans["slowing"].start >= spans["settled"].end + SETTINGS.patience


def test_report_draws_every_shop_and_every_rank(outcomes: dict[str, Outcome]) -> None:
    """Goodput and latency by load, the share of each rank, and the limits over time."""
    exhibits = OVERLOAD.exhibits(SETTINGS, *outcomes.values())
    drawn = [
        [
            {str(group.get("class")).removeprefix("line ") for group in ET.fromstring(plot).iter("g")}
            for plot in re.findall(r"<svg.*?</svg>", exhibit.body, re.DOTALL)
        ]
        for exhibit in exhibits
    ]

    assert drawn == [
        [{"bare", "fixed", "adaptive"}] * 2,
        [set(RANKS)] * 3,
        [{"adaptive"}, {"from-high"}],
    ]


def test_limits_told_before_the_first_request_are_not_kept() -> None:
    """They would have a time of their own."""
    recorder = Recorder(Run("adaptive", []))
    recorder.hear("frontend", {"limit": 20})
    recorder.start()
    recorder.hear("frontend", {"limit": 14})

    assert [limit for _, limit in recorder.run.limits] == [14]
