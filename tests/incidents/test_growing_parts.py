"""What is promised of a service that leaks: each promise can be kept, and each can be broken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from examples.shop import figures, recommending
from examples.shop.calls import Calls
from examples.shop.figures import Note, Run, Sample
from examples.shop.incident import Outcome, Settings
from examples.shop.incidents.growing import (
    HEALTH,
    LEAD,
    LIMIT,
    MINUTE,
    SERVICE,
    GrowingService,
    look_at_health,
    read_health,
)
from examples.shop.orchestrator import ENDED, KILLED, MEMORY, STARTED
from examples.shop.report.page import Played, write
from examples.shop.service import application
from examples.shop.services import recommendation
from examples.shop.services.recommendation import MB, Answer, Model, routes
from examples.shop.timing import lifetime
from tests.support.waiting import await_until

from resilient.health import Health, MemoryGrowth

GROWING = GrowingService()
SETTINGS = Settings(rate=10, warm_up=1, calm=0, fault=10, recovery=0)
TOLD = "grew 60 MB in 1.1 s, 4000.0 MB/min"


def _killed(at: float) -> list[Note]:
    return [
        Note(at, KILLED, {"why": MEMORY, "mb": LIMIT + 1}),
        Note(at + 0.1, ENDED, {"code": -9}),
        Note(at + 0.2, STARTED, {"number": 2}),
    ]


def _said(at: float, status: str, *, rate: float = 10.0, says: str = TOLD) -> Note:
    return Note(at, HEALTH, {"http": 200, "status": status, "says": says, "mb_per_minute": rate})


def _run(name: str) -> Run:
    """Return a run as it is to be, of the version of this name."""
    [version] = [version for version in GROWING.versions if version.name == name]
    run = Run(name, GROWING.spans(SETTINGS, version))
    for number in range(int(10 * run.spans[-1].end)):
        failed = name == "bare" and number % 20 == 0
        run.samples.append(Sample(number / 10, "browse", 0.1, 0.001, "502" if failed else "200"))
    run.api_calls = [(second * 1.0, second) for second in range(12)]
    run.notes = [Note(at / 10, MEMORY, {"mb": 260.0 + at % 3}) for at in range(60)]
    if name == "bare":
        run.notes += [*_killed(4.0), *_killed(9.0), Note(1.0, HEALTH, {"status": "up", "says": ""})]
    if name == "watched":
        run.notes += [_said(1.5, "pass"), _said(2.0, "warn"), *_killed(5.0)]
    if name == "protected":
        run.notes += [_said(at, "pass") for at in (1.0, 2.0, 3.0)]
    return run


def _outcome(run: Run) -> Outcome:
    return Outcome(run, {span.name: figures.summarise(run, span, good_within=4) for span in run.spans})


def _verdict(**changed: Callable[[Run], object]) -> list[bool]:
    """Return which promises hold, of runs of which some are changed."""
    runs = [_run(version.name) for version in GROWING.versions]
    for run in runs:
        changed.get(run.version, lambda _: None)(run)
    return [check.held for check in GROWING.checks(SETTINGS, *map(_outcome, runs))]


def _without(what: str) -> Callable[[Run], object]:
    def change(run: Run) -> None:
        run.notes = [note for note in run.notes if note.what != what]

    return change


def _with(*notes: Note) -> Callable[[Run], object]:
    return lambda run: run.notes.extend(notes)


def _tell_late(run: Run) -> None:
    _without(HEALTH)(run)
    [killed] = run.noted(KILLED)
    run.notes.append(_said(killed.at - 0.9 * LEAD * lifetime(MINUTE), "warn"))


def _fail_some(run: Run) -> None:
    run.samples[20] = Sample(2.0, "browse", 0.1, 0.001, "502")


def _fail_none(run: Run) -> None:
    run.samples = [Sample(s.at, s.action, s.latency, s.lag, "200") for s in run.samples]


def test_verdict_holds_where_it_is_killed_and_told_and_prevented() -> None:
    """All of it."""
    assert _verdict() == [True] * 6


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        pytest.param(0, {"bare": _without(KILLED)}, id="nobody is killed"),
        pytest.param(0, {"bare": _fail_none}, id="nobody notices"),
        pytest.param(1, {"watched": _without(KILLED)}, id="a warning, and no kill"),
        pytest.param(1, {"watched": _tell_late}, id="told too late"),
        pytest.param(
            2, {"watched": _with(*(_said(3.0, "warn", rate=20.0) for _ in range(5)))}, id="a wrong rate"
        ),
        pytest.param(3, {"protected": _with(*_killed(3.0))}, id="it is killed"),
        pytest.param(3, {"protected": _with(_said(3.0, "warn"))}, id="a false alarm"),
        pytest.param(4, {"protected": _with(Note(3.0, MEMORY, {"mb": 300.0}))}, id="it grows"),
        pytest.param(5, {"protected": _fail_some}, id="a page that fails"),
    ],
)
def test_each_promise_can_be_broken(number: int, changed: dict[str, Callable[[Run], object]]) -> None:
    """By one thing that goes wrong."""
    assert _verdict(**changed) == [index != number for index in range(6)]


def test_leak_of_which_nobody_is_told_breaks_both_promises_about_that() -> None:
    """Neither when, nor how fast."""
    assert _verdict(watched=_without(HEALTH)) == [True, False, False, True, True, True]


def test_report_tells_the_memory_and_what_was_said_of_it(tmp_path: Path) -> None:
    """Every life of the service, and each thing that its health said."""
    outcomes = {version.name: _outcome(_run(version.name)) for version in GROWING.versions}
    checks = GROWING.checks(SETTINGS, *outcomes.values())
    page = write(tmp_path, [Played(GROWING, SETTINGS, outcomes, checks)]).read_text(encoding="utf-8")

    assert "Incident prevented" in page
    assert "def growth() -&gt; MemoryGrowth" in page
    assert page.count(f"<td>{TOLD}") == 3
    lives = re.findall(r"<td>bare</td><td>(\d+) min</td><td>513 MB", page)
    assert lives == [f"{at / lifetime(MINUTE):.0f}" for at in (4.0, 4.8)]


def test_gauges_tell_how_the_service_is_doing() -> None:
    """While it is played, and before anything was seen."""
    watched = _run("watched")

    assert GROWING.gauges(watched, []) == {"memory": "262 MB", "killed": "1", "health": "warn"}
    assert GROWING.gauges(Run("bare", []), []) == {"memory": "-", "killed": "0", "health": "-"}


def test_service_grows_as_fast_as_it_did() -> None:
    """What each answer leaves behind makes ten megabytes a minute."""
    environment = GROWING.environment(SETTINGS)
    answers_per_minute = 10 * 10 / 19 * lifetime(MINUTE)

    assert float(environment["SHOP_KEPT_MB"]) * answers_per_minute == pytest.approx(10.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model of next to nothing, that nobody has loaded yet."""
    monkeypatch.setattr(recommendation, "MODEL_SIZE", 1000)
    monkeypatch.setattr(recommendation, "KEPT_SIZE", 10)
    recommending.model.clear()
    yield
    recommending.model.clear()


class Shelf(Calls):
    """Calls to a catalogue of eight products."""

    def __init__(self) -> None:
        super().__init__(httpx.AsyncClient(), {})

    async def products(self) -> list[dict[str, str]]:
        return [{"id": f"P{number}"} for number in range(8)]


async def _ask(app: Any, times: int) -> list[list[str]]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://recommendation") as http:
        asking = [http.get("/recommendations/P3") for _ in range(times)]
        return [answer.json() for answer in await asyncio.gather(*asking)]


async def test_recommendations_are_the_same_with_and_without_protection(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four others; the model is loaded for each answer, or once for all who ask."""
    models = []

    class Counted(Model):
        def __init__(self) -> None:
            super().__init__()
            models.append(self)

    monkeypatch.setattr(recommendation, "Model", Counted)
    bare = await _ask(application(routes(Shelf())), 5)
    loaded = len(models)
    protected = await _ask(application(routes(Shelf(), recommending.load)), 5)

    assert bare == protected
    assert len(set(bare[0]) - {"P3"}) == 4
    assert (loaded, len(models) - loaded) == (5, 1)


async def test_answers_are_kept_for_good_unless_bounded(small: None) -> None:
    """With the evidence, which is why they are so big."""
    kept: list[Answer] = []
    await _ask(application(routes(Shelf(), recommendation.load, kept)), 5)

    assert [answer.product for answer in kept] == ["P3"] * 5
    assert {len(answer.evidence) for answer in kept} == {10}


@pytest.mark.parametrize(
    ("protections", "bounded", "watched"),
    [([], False, False), (["model"], False, True), (["model", "bounded"], True, True)],
)
async def test_what_is_on_decides_what_is_kept_and_watched(
    small: None, monkeypatch: pytest.MonkeyPatch, protections: list[str], bounded: bool, watched: bool
) -> None:
    """Answers where they do not pile up, and a check of the memory."""
    kept = recommending.latest()
    monkeypatch.setattr(recommending, "latest", lambda: kept)
    with Health("recommendation", details="always") as health:
        async with recommendation.opened(Shelf(), protections, health) as served:
            await _ask(application(served), 5)
            report = await health.areport()

    assert [result.name for result in report.results] == (["memory-growth"] if watched else [])
    assert len(kept) == (recommending.ANSWERS if bounded else 0)


async def test_health_is_looked_at_again_and_again() -> None:
    """What is said of the growth is written down, in the incident's minutes; who is gone says nothing."""
    answers = iter([None, {"status": "pass"}, None])
    heard: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told = next(answers, {"status": "UP"})
        if told is None:
            raise httpx.ConnectError("it was killed")
        return httpx.Response(200, json=told)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        looking = asyncio.create_task(look_at_health("http://service", http, heard.append))
        await await_until(lambda: len(heard) >= 2, "two answers")
        looking.cancel()
        await asyncio.wait([looking])

    assert [line["status"] for line in heard[:2]] == ["pass", "up"]
    assert {line["note"] for line in heard} == {HEALTH}


async def test_health_tells_the_growth_in_the_incidents_minutes() -> None:
    """As the check tells it in the demo's."""
    per_second = 10 * MB / lifetime(MINUTE)
    seconds, sizes = count(0.0), count(0.0, per_second)
    check = MemoryGrowth(window=10, settle=0, read=lambda: next(sizes), clock=lambda: next(seconds))
    for _ in range(12):
        check()
    with Health(SERVICE, details="always") as health:
        health.add(check)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(health.asgi())) as http:
            read = read_health(await http.get("http://service/health"))

    assert (read["http"], read["status"]) == (200, "warn")
    assert read["says"].startswith("grew ")
    assert read["mb_per_minute"] == pytest.approx(10.0)


async def test_health_that_says_nothing_of_the_memory_is_read_as_well() -> None:
    """Such as the bare shop's."""
    assert read_health(httpx.Response(200, json={"status": "UP"})) == {
        "http": 200,
        "status": "up",
        "says": "",
        "mb_per_minute": 0.0,
    }
