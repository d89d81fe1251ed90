"""Incidents B1 and C2 without a shop: their visitors, verdicts, and what the report shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from examples.shop import figures, lending
from examples.shop.crowds import CUSTOMERS, EXPORTS, NEWCOMERS, REGULARS, plan
from examples.shop.figures import Note, Run
from examples.shop.incident import BARE, Incident, Outcome, Settings
from examples.shop.incidents.held import HeldSessions
from examples.shop.incidents.leak import Leak, culprit
from examples.shop.scenario import Recorder
from examples.shop.services.orders import BOOKING_TIME, MAX_SIZE, MIN_SIZE

LEAK, HELD = Leak(), HeldSessions()
LEAK_SETTINGS = Settings(rate=45, warm_up=1, calm=2, onset=2, fault=2, recovery=1)
HELD_SETTINGS = Settings(rate=8, warm_up=1, calm=2, onset=2, fault=2, recovery=3)

Spoil = Callable[[Run], None]


def _visited(incident: Incident, settings: Settings, version: str, faults: set[str]) -> Run:
    """Return a run whose requests take 0.1 s, and in some phases are never answered."""
    chosen = next(each for each in incident.versions if each.name == version)
    run = Run(version, incident.spans(settings, chosen))
    crowds = incident.crowds(settings, chosen)
    for name in dict.fromkeys(crowd.name for crowd in crowds):
        for due in plan(*(crowd for crowd in crowds if crowd.name == name)):
            [phase] = [span.name for span in run.spans if due.at in span]
            lost = phase in faults or name == EXPORTS
            latency, outcome = (settings.patience, "timeout") if lost else (0.1, "200")
            run.samples.append(figures.Sample(due.at, due.action, latency, 0.0, outcome, name))
    return run


def _noted(run: Run, what: str, **told: Any) -> None:
    """Note the same in every tenth of a second, or what a function says of that moment."""
    for tenth in range(int(10 * run.spans[-1].end)):
        at = tenth / 10
        figures_of = {name: value(at) if callable(value) else value for name, value in told.items()}
        run.notes.append(Note(at, what, figures_of))


def _leaked(version: str) -> Run:
    """Return a run in which a pool runs dry and the shop with it, or does not."""
    bare = version == "bare"
    run = _visited(LEAK, LEAK_SETTINGS, version, {"fault", "recovery"} if bare else set())
    dry = run.span("onset").start
    _noted(
        run, "pool", used=lambda at: MAX_SIZE if bare and at >= dry else MAX_SIZE // 2, waiting=0, expired=0
    )
    _noted(run, "sessions", open=MAX_SIZE, oldest=0.0)
    for sample in [] if bare else run.of(NEWCOMERS):
        told = {"where": culprit(), "stack": [culprit()], "reused": True}
        run.notes.append(Note(sample.at, "ConnectionCollected", told))
    return run


def _held(version: str) -> Run:
    """Return a run in which exports hold sessions for as long as they like, or as they may."""
    bare = version == "bare"
    run = _visited(HELD, HELD_SETTINGS, version, {"fault"} if bare else set())
    rush, fault = run.span("rush"), run.span("fault")
    longest = BOOKING_TIME if bare else lending.MAX_HOLD
    _noted(
        run, "pool", used=MAX_SIZE if bare else MIN_SIZE, waiting=3 if bare else 0, expired=0 if bare else 4
    )
    _noted(run, "sessions", open=lambda at: MAX_SIZE if at < rush.end else MIN_SIZE, oldest=longest)
    for sample in [] if bare else run.of(EXPORTS):
        run.notes.append(Note(sample.at + 1, "ConnectionReclaimed", {"where": "orders.py:1 in export"}))
        run.notes.append(Note(fault.end, "raised", {"error": "ConnectionReclaimedError"}))
    return run


def _outcome(run: Run, settings: Settings) -> Outcome:
    phases = {span.name: figures.summarise(run, span, settings.good_within) for span in run.spans}
    return Outcome(run, phases)


def _held_promises(incident: Incident, settings: Settings, *runs: Run) -> list[bool]:
    outcomes = (_outcome(run, settings) for run in runs)
    return [check.held for check in incident.checks(settings, *outcomes)]


def _fail(phase: str, every: int) -> Spoil:
    def spoil(run: Run) -> None:
        for number, sample in enumerate(run.samples):
            if sample.at in run.span(phase) and number % every == 0 and sample.crowd != EXPORTS:
                run.samples[number] = replace(sample, outcome="502")

    return spoil


def _slow(phase: str, latency: float) -> Spoil:
    def spoil(run: Run) -> None:
        run.samples = [
            replace(sample, latency=latency) if sample.at in run.span(phase) else sample
            for sample in run.samples
        ]

    return spoil


def _tell(what: str, **told: object) -> Spoil:
    def spoil(run: Run) -> None:
        run.notes = [
            replace(note, told={**note.told, **told}) if note.what == what else note for note in run.notes
        ]

    return spoil


def _forget(what: str) -> Spoil:
    def spoil(run: Run) -> None:
        last = run.noted(what)[-1]
        run.notes.remove(last)

    return spoil


def test_leak_verdict_holds_where_the_shop_dies_and_does_not_notice() -> None:
    """Bare and protected."""
    assert _held_promises(LEAK, LEAK_SETTINGS, _leaked("bare"), _leaked("protected")) == [True] * 5


@pytest.mark.parametrize(
    ("broken", "version", "spoil"),
    [
        pytest.param({0}, "bare", _tell("pool", used=MAX_SIZE // 2), id="the pool does not run dry"),
        pytest.param({0}, "bare", _tell("pool", used=MAX_SIZE), id="the pool was dry before"),
        pytest.param({1}, "bare", _slow("fault", 0.1), id="the bare shop stays fast"),
        pytest.param({2}, "protected", _fail("onset", 30), id="requests fail while it begins"),
        pytest.param({2}, "protected", _fail("fault", 30), id="requests fail"),
        pytest.param({3}, "protected", _slow("fault", 0.21), id="requests are slow"),
        pytest.param({3}, "protected", _tell("pool", used=MAX_SIZE), id="the pool is used up"),
        pytest.param(
            {4},
            "protected",
            _tell("ConnectionCollected", where="orders.py:1 in f"),
            id="another place is named",
        ),
        pytest.param({4}, "protected", _forget("ConnectionCollected"), id="a leak is not reported"),
    ],
)
def test_each_promise_about_the_leak_can_be_broken(broken: set[int], version: str, spoil: Spoil) -> None:
    """By the one figure it is about, and no other."""
    runs = {name: _leaked(name) for name in ("bare", "protected")}
    spoil(runs[version])

    held = _held_promises(LEAK, LEAK_SETTINGS, *runs.values())
    assert held == [index not in broken for index in range(5)]


def test_bare_shop_that_recovers_is_no_incident() -> None:
    """What is lost is lost until somebody restarts it."""
    bare = _visited(LEAK, LEAK_SETTINGS, "bare", {"fault"})
    bare.notes = _leaked("bare").notes

    assert _held_promises(LEAK, LEAK_SETTINGS, bare, _leaked("protected")) == [True, False, True, True, True]


def test_verdict_on_held_sessions_holds_where_they_are_reclaimed() -> None:
    """And are not in the bare shop."""
    assert _held_promises(HELD, HELD_SETTINGS, _held("bare"), _held("protected")) == [True] * 5


@pytest.mark.parametrize(
    ("broken", "version", "spoil"),
    [
        pytest.param({0}, "bare", _tell("sessions", oldest=lending.MAX_HOLD), id="nobody holds for long"),
        pytest.param({0}, "bare", _tell("pool", used=MAX_SIZE - 1), id="there is one left"),
        pytest.param({0}, "bare", _tell("pool", waiting=2), id="nobody waits"),
        pytest.param(
            {1},
            "protected",
            _tell("sessions", oldest=lending.MAX_HOLD + 1.6),
            id="the server sees one for longer",
        ),
        pytest.param({1}, "protected", _tell("sessions", oldest=0.0), id="the server sees none"),
        pytest.param({2}, "protected", _forget("raised"), id="a borrower is not told"),
        pytest.param({2}, "protected", _tell("raised", error="OperationalError"), id="it is told otherwise"),
        pytest.param({2}, "protected", _forget("ConnectionReclaimed"), id="one is not reclaimed"),
        pytest.param({3}, "protected", _tell("sessions", open=MAX_SIZE), id="idle ones stay"),
        pytest.param({3}, "protected", _tell("pool", expired=3), id="they went another way"),
        pytest.param({4}, "protected", _fail("fault", 5), id="customers' requests fail"),
        pytest.param({4}, "protected", _slow("fault", 0.2), id="customers wait"),
    ],
)
def test_each_promise_about_held_sessions_can_be_broken(broken: set[int], version: str, spoil: Spoil) -> None:
    """By the one figure it is about, and no other."""
    runs = {name: _held(name) for name in ("bare", "protected")}
    spoil(runs[version])

    held = _held_promises(HELD, HELD_SETTINGS, *runs.values())
    assert held == [index not in broken for index in range(5)]


def test_newcomers_come_with_the_incident_and_have_no_orders() -> None:
    """All others are there all the time, and regulars are customers of long standing."""
    crowds = {crowd.name: crowd for crowd in LEAK.crowds(LEAK_SETTINGS, BARE)}
    paths = {name: [due.path for due in plan(crowd)] for name, crowd in crowds.items()}

    assert (crowds[NEWCOMERS].start, crowds[NEWCOMERS].end) == (3, 7)
    assert {(crowds[name].start, crowds[name].end) for name in (CUSTOMERS, REGULARS)} == {(0, 8)}
    assert crowds[CUSTOMERS].rate + crowds[REGULARS].rate == 45
    assert all(re.fullmatch(r"/orders\?user=user-\d{1,3}", path) for path in paths[REGULARS])
    assert paths[NEWCOMERS] == [f"/orders?user=new-{number}" for number in range(12)]


def test_exports_are_no_requests_of_customers() -> None:
    """They are not counted in any phase."""
    run = _held("protected")

    assert len(run.of(EXPORTS)) == 3
    assert all(sample.crowd != EXPORTS for span in run.spans for sample in run.sent_in(span))


def test_recorder_keeps_what_a_pool_says_of_a_place() -> None:
    """As a note beside the count of events."""
    recorder = Recorder(Run("protected", []))
    recorder.start()
    line = {"event": "ConnectionCollected", "policy": "orders", "where": "orders.py:1 in f"}
    recorder.hear("orders", dict(line))
    recorder.hear("orders", {"event": "PoolAvailable", "policy": "orders", "seconds": 1.0})

    assert recorder.run.events == {
        "orders: orders ConnectionCollected": 1,
        "orders: orders PoolAvailable": 1,
    }
    assert [(note.what, note.told["where"]) for note in recorder.run.notes] == [
        ("ConnectionCollected", "orders.py:1 in f")
    ]


def _drawn(incident: Incident, settings: Settings, *runs: Run) -> list[list[set[str | None]]]:
    """Return the classes of the lines in each plot of each section."""
    exhibits = incident.exhibits(settings, *(_outcome(run, settings) for run in runs))
    return [
        [
            {group.get("class") for group in ET.fromstring(plot).iter("g")}
            for plot in re.findall(r"<svg.*?</svg>", exhibit.body, re.DOTALL)
        ]
        for exhibit in exhibits
    ]


def test_report_draws_both_shops() -> None:
    """In each plot of the leak; apart from each other where the phases are not the same."""
    both = {"line bare", "line protected"}

    assert _drawn(LEAK, LEAK_SETTINGS, _leaked("bare"), _leaked("protected")) == [[], [both] * 2, [both] * 2]
    assert _drawn(HELD, HELD_SETTINGS, _held("bare"), _held("protected")) == [
        [{"line bare"}] * 3,
        [{"line protected"}] * 3,
    ]


@pytest.mark.parametrize(
    ("incident", "settings", "played"),
    [pytest.param(LEAK, LEAK_SETTINGS, _leaked, id="b1"), pytest.param(HELD, HELD_SETTINGS, _held, id="c2")],
)
def test_tiles_tell_of_both_shops(
    incident: Incident, settings: Settings, played: Callable[[str], Run]
) -> None:
    """Each of them."""
    outcomes = [_outcome(played(version), settings) for version in ("bare", "protected")]

    assert all(tile.figures.keys() == {"bare", "protected"} for tile in incident.tiles(*outcomes))


def test_report_names_the_leak_of_the_protected_shop_only() -> None:
    """Within the project, and not by where that lies on this machine."""
    outcomes = [_outcome(_leaked(version), LEAK_SETTINGS) for version in ("bare", "protected")]
    [named] = [
        exhibit for exhibit in LEAK.exhibits(LEAK_SETTINGS, *outcomes) if "reported" in exhibit.heading
    ]
    bare, protected = named.body.split("The protected run")

    assert "Nothing was reported." in bare
    assert "examples/shop/services/orders.py:" in protected
    assert "OrderBook.history" in protected
    assert str(lending.__file__).removesuffix("examples/shop/lending.py") not in named.body
