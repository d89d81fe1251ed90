"""What is promised of a shop whose network is cut: each promise can be kept, and each can be broken."""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx
import pytest
from examples.shop import ecb, figures, static
from examples.shop.figures import Note, Run, Sample
from examples.shop.incident import Outcome, Settings
from examples.shop.incidents.cut_off import (
    BACK_WITHIN,
    CARTS,
    DEPENDENT,
    NOTICED_WITHIN,
    OUR_OWN,
    PAGES,
    TOLD_WITHIN,
    CutOff,
)
from examples.shop.orchestrator import KILLED, LIVE, PROBE, READY
from examples.shop.report.page import Played, write
from examples.shop.service import application
from examples.shop.services import frontend

CUT_OFF = CutOff()
SETTINGS = Settings(rate=20, warm_up=1, calm=2, fault=8, recovery=6)
CUT, WHOLE, END = 3.0, 11.0, 17.0
URLS = {name: f"http://{name}" for name in (*OUR_OWN, "rates")}


def _probes(bare: bool) -> list[Note]:
    """Return what every service is asked each second, and says."""
    notes = []
    for second in range(int(END)):
        cut = CUT <= second < WHOLE
        for name in OUR_OWN:
            asks_others = bare and name != "catalogue"
            live = "timeout" if cut and asks_others else "200"
            ready = "503" if cut and name == DEPENDENT and second > CUT + 1 else "200"
            for kind, answer in ((LIVE, live), (READY, live if bare else ready)):
                told = {"of": name, "kind": kind, "answer": answer, "seconds": 0.05}
                notes.append(Note(second + 0.5, PROBE, told))
    return notes


def _killed(name: str, at: float = 7.0) -> Note:
    return Note(at, KILLED, {"of": name, "why": LIVE})


def _probe(at: float, kind: str, answer: str, seconds: float = 0.05, of: str = DEPENDENT) -> Note:
    return Note(at, PROBE, {"of": of, "kind": kind, "answer": answer, "seconds": seconds})


def _run(version: str) -> Run:
    """Return a run as it is to be."""
    bare = version == "bare"
    run = Run(version, CUT_OFF.spans(SETTINGS, CUT_OFF.versions[0]))
    actions = [*PAGES, *CARTS] * 100
    for number in range(int(20 * END)):
        at, action = number / 20, actions[number]
        cut = CUT <= at < (WHOLE + 3 if bare else WHOLE)
        failed = cut and (bare or action in CARTS)
        run.samples.append(Sample(at, action, 0.2, 0.001, "503" if failed else "200"))
    run.api_calls = [(second * 1.0, second) for second in range(18)]
    run.notes = _probes(bare)
    if bare:
        run.notes += [_killed(name) for name in OUR_OWN if name != "catalogue"]
    return run


def _outcome(run: Run) -> Outcome:
    return Outcome(run, {span.name: figures.summarise(run, span, good_within=4) for span in run.spans})


def _verdict(
    bare: Callable[[Run], object] = lambda _: None, protected: Callable[[Run], object] = lambda _: None
) -> list[bool]:
    """Return which promises hold, of runs of which one is changed."""
    runs = _run("bare"), _run("protected")
    for run, change in zip(runs, (bare, protected), strict=True):
        change(run)
    return [check.held for check in CUT_OFF.checks(SETTINGS, *map(_outcome, runs))]


def _with(*notes: Note) -> Callable[[Run], object]:
    return lambda run: run.notes.extend(notes)


def _serve(
    at: float, actions: Sequence[str], outcome: str = "200", latency: float = 0.2
) -> Callable[[Run], object]:
    """Return what makes the requests for something end otherwise, from a moment on for two seconds."""

    def change(run: Run) -> None:
        run.samples = [
            Sample(s.at, s.action, latency, s.lag, outcome)
            if s.action in actions and at <= s.at < at + 2
            else s
            for s in run.samples
        ]

    return change


def _probe_late(run: Run) -> None:
    """Have the dependent service say that it is not ready only when that is over."""
    run.notes = [
        note
        for note in run.notes
        if not (note.told.get("kind") == READY and note.told["of"] == DEPENDENT and CUT < note.at < WHOLE)
    ]
    run.notes += [_probe(CUT + NOTICED_WITHIN + 0.1, READY, "503")]


def test_verdict_holds_where_the_shop_is_down_and_the_other_is_not() -> None:
    """All of it."""
    assert _verdict() == [True] * 7


@pytest.mark.parametrize(
    ("number", "bare", "protected"),
    [
        pytest.param(0, _serve(5.0, PAGES), None, id="the bare shop serves pages"),
        pytest.param(2, None, _with(_probe(5.0, LIVE, "timeout")), id="a probe of life that fails"),
        pytest.param(2, None, _with(_killed("catalogue")), id="a service that is started again"),
        pytest.param(3, None, _probe_late, id="readiness that is told late"),
        pytest.param(3, None, _with(_probe(5.0, READY, "503", seconds=1.1)), id="a probe that takes long"),
        pytest.param(4, None, _serve(5.0, ["browse"], "504"), id="pages that fail"),
        pytest.param(
            5, None, _serve(5.0, ["checkout"], "504", TOLD_WITHIN + 0.1), id="a customer who is kept waiting"
        ),
        pytest.param(6, None, _serve(WHOLE + BACK_WITHIN, ["view cart"], "503"), id="carts that stay away"),
    ],
)
def test_each_promise_can_be_broken(
    number: int, bare: Callable[[Run], object] | None, protected: Callable[[Run], object] | None
) -> None:
    """By one thing that goes wrong."""
    verdict = _verdict(bare or (lambda _: None), protected or (lambda _: None))
    assert verdict == [index != number for index in range(7)]


def test_verdict_wants_every_dependent_service_to_be_started_again() -> None:
    """Or probes are no danger."""

    def spare_the_frontend(run: Run) -> None:
        run.notes = [note for note in run.notes if note.what != KILLED or note.told["of"] != "frontend"]

    assert _verdict(bare=spare_the_frontend) == [True, False] + [True] * 5


def test_readiness_that_never_changes_breaks_its_promise() -> None:
    """Either way."""

    def never(run: Run) -> None:
        run.notes = [note for note in run.notes if note.told["kind"] == LIVE] + [_probe(1.0, READY, "200")]

    assert _verdict(protected=never) == [True] * 3 + [False] + [True] * 3


def test_report_tells_what_probes_were_told(tmp_path: Path) -> None:
    """For each service, while the network was cut."""
    outcomes = {version: _outcome(_run(version)) for version in ("bare", "protected")}
    checks = CUT_OFF.checks(SETTINGS, *outcomes.values())
    page = write(tmp_path, [Played(CUT_OFF, SETTINGS, outcomes, checks)]).read_text(encoding="utf-8")

    assert "Incident prevented" in page
    assert "class StaticCalls(ProtectedCalls)" in page
    rows = re.findall(r"<td>(\w+)</td><td>checkout</td><td>([^<]*)</td><td>([^<]*)</td><td>(\d)</td>", page)
    assert rows == [("bare", "timeout 8", "timeout 8", "1"), ("protected", "200 8", "503 6, 200 2", "0")]


def test_gauges_tell_who_is_not_ready() -> None:
    """As the latest probes were told."""
    run = _run("bare")
    run.notes = [note for note in run.notes if note.at < WHOLE]

    assert CUT_OFF.gauges(run, []) == {"restarts": "3", "not ready": "currency, checkout, frontend"}
    assert CUT_OFF.gauges(Run("bare", []), []) == {"restarts": "0", "not ready": "none"}


class Window:
    """The frontend behind `StaticCalls`, and services that answer or do not."""

    def __init__(self, asked: list[str]) -> None:
        self.status: int | None = None
        self._asked = asked
        self._others = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        app = application(frontend.routes(static.StaticCalls(self._others, URLS)))
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://frontend")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self._asked.append(request.url.path)
        if self.status is None:
            raise httpx.ReadTimeout("nothing comes")
        if self.status != 200:
            return httpx.Response(self.status)
        shelf = [{"id": "NEW", "name": "Teapot", "price_usd": "10.00"}]
        answers = {
            "/products": shelf,
            "/products/NEW": shelf[0],
            "/currencies": ["EUR"],
            "/convert": ["9.99"],
        }
        return httpx.Response(200, json=answers[request.url.path])

    async def ask(self, method: str, path: str) -> httpx.Response:
        """Ask for a page."""
        return await self._http.request(method, path)

    async def close(self) -> None:
        """Leave."""
        await self._http.aclose()
        await self._others.aclose()


@pytest.fixture
def asked() -> list[str]:
    """What other services were asked."""
    return []


@pytest.fixture
async def window(asked: list[str]) -> AsyncIterator[Window]:
    """A shop window whose shop is away, with policies that have seen nothing yet."""
    importlib.reload(static)
    window = Window(asked)
    yield window
    await window.close()


@pytest.mark.parametrize("status", [None, 503])
async def test_pages_that_nobody_has_seen_are_as_shipped(window: Window, status: int | None) -> None:
    """Whether nobody answers, or somebody in the place of who was asked."""
    window.status = status
    home = (await window.ask("GET", "/?currency=JPY")).json()["products"]
    product = (await window.ask("GET", "/product/6E92ZMYYFZ?currency=USD")).json()
    currency = await window.ask("POST", "/currency?currency=TRY")

    rates = ecb.shipped().per_euro
    assert [one["id"] for one in home] == list(static.shipped_products())
    assert float(home[-1]["price"]) == pytest.approx(
        8.99 / float(rates["USD"]) * float(rates["JPY"]), abs=0.01
    )
    assert product == {"id": "6E92ZMYYFZ", "name": "Mug", "price": "8.99", "currency": "USD"}
    assert currency.status_code == 200


async def test_pages_that_were_seen_are_shown_again(window: Window) -> None:
    """Also such as never were shipped."""
    window.status = 200
    seen = await window.ask("GET", "/product/NEW?currency=EUR")
    window.status = None
    again = await window.ask("GET", "/product/NEW?currency=EUR")

    assert seen.json() == again.json() == {"id": "NEW", "name": "Teapot", "price": "9.99", "currency": "EUR"}


@pytest.mark.parametrize("path", ["/product/NOSUCH", "/?currency=XXX"])
async def test_what_nobody_has_ever_heard_of_is_no_page(window: Window, path: str) -> None:
    """It is not known while the others are away, and not made up."""
    assert (await window.ask("GET", path)).status_code in {502, 503, 504}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/cart"), ("POST", "/cart?product=NEW"), ("POST", "/checkout")]
)
async def test_carts_are_not_made_up(window: Window, asked: list[str], method: str, path: str) -> None:
    """Who wants one is told that it cannot be done; after three times nobody is asked any more."""
    answers = [await window.ask(method, path) for _ in range(5)]

    assert [answer.status_code for answer in answers] == [502, 502, 502, 503, 503]
    assert "retry-after" in answers[-1].headers
    assert len(asked) == 3


async def test_wrong_question_stays_one(window: Window) -> None:
    """An answer of 404 is an answer, and not replaced by what was shipped."""
    window.status = 404

    assert (await window.ask("GET", "/product/6E92ZMYYFZ")).status_code == 404
