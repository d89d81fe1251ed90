"""Who is told when a check does better or worse: once per change, in order, and in the log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.health.scripted import Scripted, a_health
from tests.support.waiting import wait_until

from resilient import events
from resilient.events import HealthChanged
from resilient.health import Finding, Health, Status
from resilient.testing import FakeClock

SOON = 5.0


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


@pytest.fixture
def heard() -> list[Any]:
    """What was announced."""
    return []


@pytest.fixture
def health(clock: FakeClock, heard: list[Any]) -> Iterator[Health]:
    """A Health that announces to *heard*, and whose findings are old after a minute."""
    with a_health(clock=clock, ttl=1.0, listeners=[heard.append]) as made:
        yield made


def assert_told(heard: list[Any], *changes: str) -> None:
    """Fail unless these were announced, and nothing else; it is told in the thread of whoever found it."""

    def in_short() -> list[str]:
        return [f"{one.policy}: {one.previous} -> {one.status}" for one in heard]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: len(heard) >= len(changes), "all are told", within=SOON)
    assert in_short() == list(changes)


def test_changes_are_told_once_and_in_order(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """Of what has always been well nothing is said."""
    it, other = Scripted(), Scripted()
    health.add(it, "it")
    health.add(other, "other")
    for answer in (True, False, False, Finding(Status.WARN, "slow"), True, True):
        it.answer = answer
        clock.advance(60.0)
        for _ in range(3):
            health.report()
    assert_told(heard, "it: pass -> fail", "it: fail -> warn", "it: warn -> pass")
    assert [one.reason for one in heard] == ["the check returned False", "slow", ""]


def test_what_has_not_been_looked_at_is_no_news(health: Health, heard: list[Any]) -> None:
    """Nor is its first pass."""
    it = Scripted()
    health.add(it, "it")
    with it.held():
        health.latest()
        assert it.begun.wait(SOON)
        health.latest()
    health.report()
    assert heard == []


def test_run_that_is_too_late_is_told(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """Once, though it goes on; and what comes late is no news."""
    it = Scripted()
    health.add(it, "it", timeout=2.0)
    with it.held():
        health.latest()
        assert it.begun.wait(SOON)
        for _ in range(5):
            clock.advance(2.0)
            health.latest()
    wait_until(lambda: health.latest().result("it").running_for is None, "it ends")
    assert_told(heard, "it: pass -> fail")
    assert heard[0].reason == "no answer within 2 s"


def test_what_becomes_old_is_told(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """Closed, it finds nothing any more."""
    health.add(Scripted(), "it")
    health.report()
    health.close()
    clock.advance(600.0)
    health.report()
    assert_told(heard, "it: pass -> unknown")


def test_what_is_behind_a_failure_is_told_as_such(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """Both are; the second is not said to have failed, if the first was known to have."""
    network, database = Scripted(), Scripted()
    health.add(network, "network")
    health.add(database, "postgres", depends_on=["network"])
    health.report()
    network.answer = False
    clock.advance(5.0)
    with database.held():
        health.latest()
        wait_until(lambda: bool(heard), "the network has failed")
        database.answer = False
    wait_until(lambda: len(heard) == 2, "both are told")
    assert_told(heard, "network: pass -> fail", "postgres: pass -> unknown")
    assert heard[1].reason.startswith("not known, as network fails")


def test_being_old_is_no_news_while_somebody_looks_again(
    health: Health, clock: FakeClock, heard: list[Any]
) -> None:
    """Nobody asked for ten minutes: that all is well is found, and nothing was amiss in between."""
    network, database = Scripted(), Scripted()
    health.add(network, "network")
    health.add(database, "postgres", depends_on=["network"])
    health.report()
    clock.advance(600.0)
    with database.held():
        health.latest()
        wait_until(lambda: health.latest().result("network").age == 0.0, "the network is found")
    health.report()
    assert heard == []


def test_watched_policies_are_told_too(health: Health, heard: list[Any]) -> None:
    """When somebody asks."""

    class Breaker:
        name = "payments"
        status = Status.PASS

        def finding(self) -> Finding:
            return Finding(self.status, "open")

    breaker = Breaker()
    health.watch(breaker)
    health.report()
    breaker.status = Status.FAIL
    health.report()
    health.report()
    assert_told(heard, "payments: pass -> warn")


def test_draining_is_told_in_the_name_of_the_service(health: Health, heard: list[Any]) -> None:
    """Once, however often it is said; so is its end."""
    health.drain("SIGTERM")
    health.drain("again")
    health.resume()
    health.resume()
    assert_told(heard, "shop: pass -> fail", "shop: fail -> pass")
    assert heard[0].reason == "draining: SIGTERM"


def test_changes_are_logged(health: Health, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A warning for what is worse, information for what is well again; no traceback, no secret, one line."""
    it = Scripted(ConnectionError("postgres://shop:hunter2@db/orders\nis not there"))
    caplog.set_level(logging.INFO, "resilient")
    health.add(it, "postgres")
    health.report()
    it.answer = None
    clock.advance(60.0)
    health.report()
    health.drain("SIGTERM")
    health.resume()
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        (
            "WARNING",
            "health of shop: postgres fail: ConnectionError: postgres://shop:***@db/orders is not there",
        ),
        ("INFO", "health of shop: postgres pass: "),
        ("INFO", "health of shop: draining: SIGTERM"),
        ("INFO", "health of shop: resumed"),
    ]
    assert not any(one.exc_info for one in caplog.records)


def test_listeners_come_and_go(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """And there are those of the whole process."""
    everybody: list[Any] = []
    it = Scripted(False)
    health.add(it, "it")
    events.add_listener(everybody.append)
    try:
        health.report()
        health.remove_listener(heard.append)
        it.answer = True
        clock.advance(60.0)
        health.report()
    finally:
        events.remove_listener(everybody.append)
    assert_told(heard, "it: pass -> fail")
    assert_told(everybody, "it: pass -> fail", "it: fail -> pass")
    assert isinstance(heard[0], HealthChanged)


def test_listener_that_fails_changes_nothing(
    clock: FakeClock, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, in the log."""

    def fail(_event: object) -> None:
        raise ValueError("of the listener's")

    it = Scripted(False)
    with a_health(clock=clock, ttl=1.0, listeners=[fail, heard.append]) as health:
        health.add(it, "it")
        assert health.report().result("it").status is Status.FAIL
        it.answer = True
        clock.advance(60.0)
        assert health.report().ok
    assert_told(heard, "it: pass -> fail", "it: fail -> pass")
    assert sum("listener" in one.getMessage() for one in caplog.records) == 1


def test_listener_may_ask_and_drain_and_take_out(clock: FakeClock) -> None:
    """It is called under no lock, and its own changes come after the one it was told of."""
    heard: list[Any] = []

    def act(event: Any) -> None:
        heard.append(event)
        if event.policy == "it":
            assert health.latest().result("it").status is Status.FAIL
            health.drain(event.reason)
            other = threading.Thread(target=health.latest)
            other.start()
            other.join(SOON)
            assert not other.is_alive(), "a lock is held while listeners are told"

    with a_health(clock=clock, listeners=[act]) as health:
        health.add(Scripted(False), "it")
        health.report()
        wait_until(lambda: len(heard) == 2, "both are told")
        assert health.draining
    assert_told(heard, "it: pass -> fail", "shop: pass -> fail")


def test_old_news_is_not_told_after_new(health: Health, clock: FakeClock, heard: list[Any]) -> None:
    """Whoever looked first may be held up, by a witness that takes its time, and come last."""
    it, held, gate, at = Scripted(), list[threading.Thread](), threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        def finding(self) -> Finding:
            if threading.current_thread() in held:
                at.set()
                gate.wait(SOON)
            return Finding(Status.PASS)

    health.add(it, "it")
    health.report()
    health.watch(Slow())
    held.append(threading.Thread(target=health.latest))
    held[0].start()
    assert at.wait(SOON)
    it.answer = False
    clock.advance(60.0)
    health.report()
    gate.set()
    held[0].join()
    health.latest()
    assert_told(heard, "it: pass -> fail")


def test_change_back_before_it_was_told_is_no_change(
    health: Health, clock: FakeClock, heard: list[Any]
) -> None:
    """What was seen to fail by whoever is held up has passed again by then."""
    it, held, gate, at = Scripted(), list[threading.Thread](), threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        def finding(self) -> Finding:
            if threading.current_thread() in held:
                at.set()
                gate.wait(SOON)
            return Finding(Status.PASS)

    health.add(it, "it", timeout=2.0, ttl=0.5)
    health.report()
    health.watch(Slow())
    it.answer = True
    with it.held():
        clock.advance(1.0)
        health.latest()  # begins a run
        assert it.begun.wait(SOON)
        clock.advance(3.0)  # which is too late by now
        held.append(threading.Thread(target=health.latest))
        held[0].start()
        assert at.wait(SOON)
    clock.advance(60.0)
    wait_until(lambda: health.report().result("it").status is Status.PASS, "it passes")
    before = len(heard)
    gate.set()
    held[0].join()
    health.latest()
    assert len(heard) == before, heard
