"""What is promised of carts when their store dies: each promise can be kept, and each can be broken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from examples.shop import figures
from examples.shop.figures import Note, Run, Sample
from examples.shop.incident import Outcome, Settings
from examples.shop.incidents.lost_cart import BACK, KILLED, REPLACED, LostCart
from examples.shop.report.page import Played, write
from examples.shop.store import Address

LOST_CART = LostCart()
SETTINGS = Settings(rate=20, warm_up=1, calm=2, onset=5, recovery=2, fault=4)
PORT, OTHER = 7001, 7002


def _run(version: str, *, failing: bool) -> Run:
    """Return a run in which requests that need a cart fail, or none does."""
    run = Run(version, LOST_CART.spans(SETTINGS, LOST_CART.versions[0]))
    for number in range(280):
        at, action = number / 20, "view cart" if number % 3 == 0 else "browse"
        away = at in run.span(KILLED) or at >= 11.0
        failed = failing and away and action == "view cart"
        run.samples.append(Sample(at, action, 0.1, 0.001, "502" if failed else "200"))
    run.api_calls = [(second * 1.0, second) for second in range(15)]
    run.notes = [
        Note(3.0, KILLED, {"port": PORT}),
        *(Note(3.0 + number / 10, "dial", {"port": PORT}) for number in range(1, 10)),
        Note(8.0, BACK, {"port": PORT}),
        Note(8.5, "stored", {}),
        Note(10.1, "promoted", {"port": OTHER}),
        Note(11.0, REPLACED, {"port": PORT}),
        Note(11.5, "stored", {}),
        Note(1.0, "added", {"entry": "ada/1"}),
        Note(1.0, "added", {"entry": "bob/1"}),
        Note(2.0, "bought", {"entries": ["bob/1"]}),
        *(_cart(did, 6.0 if failing else 0.2) for did in ("view", "add", "take", "buy")),
        Note(14.5, "in store", {"entries": ["ada/1"]}),
    ]
    return run


def _cart(did: str, seconds: float) -> Note:
    return Note(4.0, "cart", {"did": did, "outcome": "primary", "seconds": seconds})


def _outcome(run: Run) -> Outcome:
    return Outcome(run, {span.name: figures.summarise(run, span, good_within=4) for span in run.spans})


def _verdict(bare: Run, protected: Run) -> list[bool]:
    return [check.held for check in LOST_CART.checks(SETTINGS, _outcome(bare), _outcome(protected))]


def test_verdict_holds_where_carts_are_kept() -> None:
    """Bare, a third of all requests fails; protected, none."""
    assert _verdict(_run("bare", failing=True), _run("protected", failing=False)) == [True] * 8


def test_there_is_no_incident_where_nothing_fails() -> None:
    """Nor one where nobody has to wait."""
    verdict = _verdict(_run("bare", failing=False), _run("protected", failing=False))

    assert verdict == [False, False, True, True, True, True, True, True]


def test_verdict_wants_the_demoted_server_to_break_the_bare_shop() -> None:
    """Not only the dead one."""
    bare = _run("bare", failing=True)
    bare.samples = [Sample(s.at, s.action, s.latency, s.lag, "200") if s.at > 9 else s for s in bare.samples]

    assert _verdict(bare, _run("protected", failing=False)) == [False] + [True] * 7


def test_verdict_wants_fewer_than_one_error_in_a_hundred() -> None:
    """Three of 220 are too many, two are not."""
    protected = _run("protected", failing=False)
    for index in (100, 200, 270):
        assert _verdict(_run("bare", failing=True), protected)[2]
        sample = protected.samples[index]
        protected.samples[index] = Sample(sample.at, sample.action, 0.1, 0.001, "503")

    assert not _verdict(_run("bare", failing=True), protected)[2]


@pytest.mark.parametrize(
    ("number", "notes"),
    [
        pytest.param(3, [_cart("view", 1.3)], id="a look that takes too long"),
        pytest.param(3, [_cart("buy", 8.3)], id="a purchase that takes too long"),
        pytest.param(
            5, [Note(4 + n / 100, "dial", {"port": PORT}) for n in range(20)], id="a server under siege"
        ),
        pytest.param(6, [Note(5.0, "added", {"entry": "ada/2"})], id="an entry that is lost"),
        pytest.param(6, [Note(5.0, "bought", {"entries": ["ada/1"]})], id="a purchase that is in the cart"),
        pytest.param(7, [Note(5.0, "strangers", {"user": "ada", "entries": ["bob/1"]})], id="a stranger"),
    ],
)
def test_each_promise_can_be_broken(number: int, notes: list[Note]) -> None:
    """By what was noted in the protected run."""
    protected = _run("protected", failing=False)
    protected.notes += notes

    verdict = _verdict(_run("bare", failing=True), protected)
    assert verdict == [index != number for index in range(8)]


@pytest.mark.parametrize("late", [9.3, 12.3])
def test_verdict_wants_changes_to_be_stored_soon(late: float) -> None:
    """After the server is back, and after another has taken its place."""
    protected = _run("protected", failing=False)
    protected.notes = [
        Note(late, "stored", {}) if note.what == "stored" and 0 < late - note.at < 1 else note
        for note in protected.notes
    ]

    assert _verdict(_run("bare", failing=True), protected) == [True] * 4 + [False] + [True] * 3


def test_what_is_under_way_at_the_end_is_not_held_against_anybody() -> None:
    """An entry may come after the store was looked at."""
    protected = _run("protected", failing=False)
    protected.notes += [Note(14.4, "added", {"entry": "ada/9"}), Note(14.6, "bought", {"entries": ["ada/1"]})]

    assert _verdict(_run("bare", failing=True), protected) == [True] * 8


def test_attempts_to_connect_elsewhere_are_no_siege() -> None:
    """Nor are those to the server when it is back."""
    protected = _run("protected", failing=False)
    protected.notes += [Note(4.0, "dial", {"port": OTHER})] * 100 + [Note(9.0, "dial", {"port": PORT})] * 100

    assert _verdict(_run("bare", failing=True), protected) == [True] * 8


def test_report_tells_who_answered_for_the_carts(tmp_path: Path) -> None:
    """And holds the source of what protects them."""
    runs = [_run("bare", failing=True), _run("protected", failing=False)]
    outcomes = {run.version: _outcome(run) for run in runs}
    checks = LOST_CART.checks(SETTINGS, *outcomes.values())
    page = write(tmp_path, [Played(LOST_CART, SETTINGS, outcomes, checks)]).read_text(encoding="utf-8")

    assert "Incident prevented" in page
    assert "class ProtectedCarts" in page
    answers = re.findall(r"<td>protected<td>killed<td>(\w+)<td>(primary[^<]*)", page.replace("</td>", ""))
    assert answers == [(did, "primary 1") for did in ("view", "add", "take", "buy")]


def test_gauges_tell_how_the_carts_are_doing() -> None:
    """While it is played."""
    run: Any = _run("bare", failing=True)
    lately = [sample for sample in run.samples if 4 <= sample.at < 5]

    assert LOST_CART.gauges(run, lately) == {"carts failed": "100%", "lately": "primary 4"}


def test_address_survives_the_environment() -> None:
    """What the service reads is what was written."""
    address = Address(("127.0.0.1", 7001), [("127.0.0.1", 7002), ("127.0.0.1", 7003)])

    assert Address.parse(str(address)) == address
