"""What incident A8 is made of: the payment service, its book, who buys, and what is concluded of it."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from examples.shop.backends import Backends
from examples.shop.crowds import BUYERS, Crowd, plan
from examples.shop.figures import Note, Run, Sample, summarise
from examples.shop.incident import Outcome
from examples.shop.incidents.failing_grpc import IN_BOOK, SICK, VICTIM, FailingGrpc
from examples.shop.processes import ServiceDiedError
from examples.shop.services import payment
from examples.shop.services.payment import Book, Payment
from examples.shop.till import STATS, TOLD


class AbortedError(Exception):
    """What ends a call with a status."""


class Context:
    """As much of gRPC's as the service asks for."""

    code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise AbortedError(details)


def wish(key: str, order: str = "") -> bytes:
    """A request to charge for an order."""
    return json.dumps({"key": key, "order": order or key, "amount": "7.50 USD"}).encode()


@pytest.fixture
def book(tmp_path: Path):
    """An empty book."""
    opened = Book(tmp_path / "charges.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def told() -> list[dict[str, Any]]:
    """What services tell."""
    return []


@pytest.fixture
def services(book, tmp_path, told, monkeypatch):
    """Two services with one book, as two processes have it, that charge at once."""
    monkeypatch.setattr(payment, "CHARGE_TIME", 0)
    other = Book(tmp_path / "charges.sqlite")
    write = lambda line: told.append(json.loads(line))  # noqa: E731
    yield Payment("payment-1", book, write), Payment("payment-2", other, write)
    other.close()


async def test_same_key_is_charged_once(services, book, told):
    """At whichever service, and however often it is asked."""
    for service in (*services, *services):
        receipt = json.loads(await service.charge(wish("a"), Context()))
        assert receipt["receipt"] == "a"

    assert book.orders() == ["a"]
    assert [line["note"] for line in told if line["note"] != "asked"] == [
        "charged",
        "known",
        "known",
        "known",
    ]


async def test_two_keys_are_charged_twice(services, book):
    """It is the key that protects, and not the order: who makes a new one for each attempt pays again."""
    for service, key in zip(services, ("first", "second"), strict=True):
        await service.charge(wish(key, "order-1"), Context())

    assert book.orders() == ["order-1", "order-1"]


async def test_half_of_the_errors_come_after_the_charge(services, book):
    """So that nobody can tell from an error whether the money was moved."""
    [service, _] = services
    service.knobs.error_ratio = 1.0
    codes: Counter[grpc.StatusCode | None] = Counter()
    for number in range(100):
        context = Context()
        with pytest.raises(AbortedError):
            await service.charge(wish(f"order-{number}"), context)
        codes[context.code] += 1

    assert codes.keys() == {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
    assert len(book.orders()) == codes[grpc.StatusCode.UNAVAILABLE]
    assert 30 <= len(book.orders()) <= 70


async def test_acquirer_is_judged_by_what_came_of_it(services, monkeypatch):
    """Not well with many errors, and well again when those are a while ago."""
    [service, _] = services
    assert service.acquirer()
    service.knobs.error_ratio = 1.0
    for number in range(payment.ENOUGH):
        assert service.acquirer()
        with pytest.raises(AbortedError):
            await service.charge(wish(str(number)), Context())
    assert not service.acquirer()

    monkeypatch.setattr(payment, "LATELY", 0.0)
    assert service.acquirer()


@pytest.mark.faults
async def test_service_that_cannot_start_is_not_waited_for(tmp_path):
    """What it said last is told, and nothing is left behind."""
    backends = Backends(tmp_path, lambda *_: None, {})
    port = int(backends.addresses[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ServiceDiedError, match="did not come up"):
        await backends.start(VICTIM)
    assert backends.charged() == []
    await backends.close()


def test_buyers_fill_a_cart_before_they_buy():
    """Each buys once, a while after they have put something in their cart."""
    due = list(plan(Crowd(BUYERS, 30, 0, 10)))
    filled: dict[str, float] = {}
    bought = Counter()
    for each in due:
        user = each.path.partition("user=")[2].partition("&")[0]
        if each.action == "checkout":
            bought[user] += 1
            assert each.at - filled[user] > 0.7
        else:
            filled[user] = each.at

    assert len(due) == 300
    assert set(bought.values()) == {1}
    assert bought.total() > 120


def outcome(orders: list[str], *payments: tuple[str, str], stats: dict[str, Any] | None = None) -> Outcome:
    """A run in which these payments were told of, and these orders stand in the book."""
    incident = FailingGrpc()
    run = Run("any", incident.spans(incident.defaults, incident.versions[0]))
    middle = sum((run.span(SICK).start, run.span(SICK).end)) / 2
    for span in run.spans:
        run.samples.append(Sample(span.start, "checkout", 0.1, 0.0, "200"))
    for order, said in payments:
        told = {"order": order, "outcome": said, "by": VICTIM, "seconds": 0.2}
        run.notes.append(Note(middle, TOLD, told))
        run.notes.append(Note(middle, "asked", {"by": VICTIM, "order": order}))
    run.notes.append(Note(run.spans[-1].end, IN_BOOK, {"orders": orders}))
    run.notes.append(Note(run.spans[-1].end, STATS, {"services": stats or {}}))
    return Outcome(run, {span.name: summarise(run, span, 0.8) for span in run.spans})


def verdict(protected: Outcome, words: str) -> bool:
    """Whether the promise with these words was kept."""
    incident = FailingGrpc()
    checks = incident.checks(incident.defaults, outcome(["z"], ("z", "paid")), protected)
    [check] = [check for check in checks if words in check.promise]
    return check.held


@pytest.mark.parametrize(
    ("orders", "payments", "held"),
    [
        (["a", "b"], [("a", "paid"), ("b", "paid")], True),
        (["a", "a"], [("a", "paid")], False),
        ([], [("a", "paid")], False),
        (["a", "b"], [("a", "paid"), ("b", "UNAVAILABLE")], False),
        (["a"], [("a", "paid"), ("b", "UNAVAILABLE")], True),
        ([], [], False),
    ],
    ids=["right", "twice", "not charged", "in vain", "failed and not charged", "nothing played"],
)
def test_book_is_compared_with_what_was_told(orders, payments, held):
    """Twice, not at all, in vain: each breaks the promise; so does a play in which nobody paid."""
    assert verdict(outcome(orders, *payments), "exactly once") is held


def test_figures_have_to_name_the_victim():
    """Without connection failures, or with a success rate as good as the other's, nothing was told."""
    good = {"ratio": 1.0, "attempts": 9, "connection_failures": 0, "statuses": {}}
    bad = {"ratio": 0.5, "attempts": 9, "connection_failures": 3, "statuses": {}}

    assert verdict(outcome(["a"], ("a", "paid"), stats={VICTIM: bad, "payment-2": good}), "success rate")
    assert not verdict(outcome(["a"], ("a", "paid"), stats={VICTIM: good, "payment-2": good}), "success rate")
