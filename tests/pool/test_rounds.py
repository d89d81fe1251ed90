"""Rounds: everybody is visited, for as long as they live, and nobody keeps the thread from the others."""

from __future__ import annotations

import gc
import logging
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
from tests.support.waiting import wait_until

from resilient.engine import workers
from resilient.pool import rounds
from resilient.pool.rounds import Watcher


class Party:
    """Counts its visits, and does *what* each time."""

    def __init__(self, what: object = None) -> None:
        self.visits = 0
        self._what = what

    def round(self) -> None:
        self.visits += 1
        if isinstance(self._what, BaseException):
            raise self._what
        if isinstance(self._what, threading.Event):
            self._what.wait(10.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle threads go at once, and nobody wait long for one that hangs."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "_PATIENCE", 0.05)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What hanging rounds wait for; it comes at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_everybody_is_visited_by_one_thread_that_ends_with_the_last() -> None:
    """It is started by the first, and there is none where nobody attends."""
    watcher = Watcher(every=0.01)
    one, other = Party(), Party()
    assert not watcher.running

    watcher.attend(one)
    watcher.attend(other)
    wait_until(lambda: one.visits > 1 and other.visits > 1, "visits")
    assert sum(thread.name == "resilient-rounds" for thread in threading.enumerate()) <= 2

    watcher.dismiss(one)
    watcher.dismiss(other)
    wait_until(lambda: not watcher.running, "the end of the thread")
    assert watcher.attended == 0

    watcher.attend(one)
    seen = one.visits
    wait_until(lambda: one.visits > seen, "visits by a new thread")
    watcher.dismiss(one)


def test_whoever_attends_twice_is_visited_once() -> None:
    """A party has one place."""
    watcher, party = Watcher(every=60.0), Party()

    watcher.attend(party)
    watcher.attend(party)
    watcher.visit_all()

    assert (watcher.attended, party.visits) == (1, 1)
    watcher.dismiss(party)
    watcher.dismiss(party)
    watcher.visit_all()
    assert (watcher.attended, party.visits) == (0, 1)


def test_attending_keeps_nobody_alive() -> None:
    """A party that nothing else refers to is gone, after a visit too."""
    watcher, party = Watcher(every=60.0), Party()
    watcher.attend(party)
    watcher.visit_all()

    del party
    wait_until(lambda: gc.collect() >= 0 and watcher.attended == 0, "the party's end")


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=repr)
def test_party_that_fails_is_logged_once_and_visited_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Its fault is its own: the others are visited as before."""
    watcher, faulty, other = Watcher(every=60.0), Party(error), Party()
    watcher.attend(faulty)
    watcher.attend(other)

    with caplog.at_level(logging.ERROR, "resilient"):
        watcher.visit_all()
        watcher.visit_all()

    assert (faulty.visits, other.visits) == (2, 2)
    assert len(caplog.records) == 1
    assert "failed in its round" in caplog.text


def test_party_that_hangs_holds_up_nobody_for_long(stuck: threading.Event) -> None:
    """It is left alone until it is done; the others have their rounds."""
    watcher, hanging, other = Watcher(every=60.0), Party(stuck), Party()
    watcher.attend(hanging)
    watcher.attend(other)

    watcher.visit_all()
    watcher.visit_all()
    assert (hanging.visits, other.visits) == (1, 2)

    stuck.set()

    def visited_again() -> bool:
        watcher.visit_all()
        return hanging.visits > 1

    wait_until(visited_again, "a further visit")


def test_no_thread_to_be_had_is_nobodys_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, attending succeeds, and the next that attends starts it."""
    watcher, party = Watcher(every=60.0), Party()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        watcher.attend(party)
        watcher.visit_all()
    assert not watcher.running
    assert party.visits == 0

    watcher.attend(party)
    assert watcher.running
    watcher.visit_all()
    assert party.visits == 1
    watcher.dismiss(party)


def test_forked_child_goes_on_making_rounds() -> None:
    """The thread is not copied: the child has one of its own for those that attend."""
    watcher, party = Watcher(every=0.01), Party()
    watcher.attend(party)
    wait_until(lambda: party.visits > 0, "visits")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: there are threads
        child = os.fork()
    if not child:
        seen, code = party.visits, 1
        try:
            wait_until(lambda: party.visits > seen + 1, "visits in the child")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    watcher.dismiss(party)
