"""Checks in the background: no question runs them, and they end with whoever has them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextvars import ContextVar, copy_context

import pytest
from tests.health.scripted import AScripted, Scripted, a_health, states
from tests.support.waiting import await_until, wait_until

from resilient import CircuitBreaker
from resilient.health import Health, Status
from resilient.testing import FakeClock

LOOP = "resilient-health-loop"
SOON = 5.0
OFTEN = 0.02  # seconds


@pytest.fixture(autouse=True)
def no_loop_of_ours_is_left() -> object:
    """The thread ends with the test."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not [one for one in set(threading.enumerate()) - before if one.name == LOOP], "ended")


_before: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _those_of_others() -> None:
    """Other tests, and the code in the docs, may have left a Health that lives on."""
    _before.clear()
    _before.update(threading.enumerate())


def pulses() -> list[threading.Thread]:
    """Return the threads in which the background runs, but for those of others."""
    return [one for one in threading.enumerate() if one.name == LOOP and one not in _before]


@pytest.mark.parametrize("kind", [Scripted, AScripted])
def test_checks_run_again_and_again_though_nobody_asks(kind: type[Scripted | AScripted]) -> None:
    """From the start on."""
    checked = kind()
    with a_health() as health:
        health.add(checked, "it", interval=OFTEN)
        health.start()
        wait_until(lambda: checked.runs >= 4, "it runs")
        assert checked.most == 1
        checked.answer = False
        wait_until(lambda: states(health)["it"] is Status.FAIL, "it is found")


def test_entering_it_starts_the_background() -> None:
    """And leaving it ends that, until it is begun again."""
    checked = Scripted()
    with Health("shop", interval=OFTEN) as health:
        health.add(checked, "early")
        health.report()
        wait_until(lambda: checked.runs >= 3, "it runs")
    wait_until(lambda: not pulses(), "the thread has ended")
    runs = checked.runs
    health.report()
    assert not pulses()
    assert checked.runs == runs
    with health:  # a server that is started again in the same process
        wait_until(lambda: checked.runs >= runs + 2, "it runs again")
    wait_until(lambda: not pulses(), "the thread has ended")


def test_no_question_runs_what_is_run_in_the_background() -> None:
    """But the first one, which nobody could answer otherwise; a failure is looked at no more often."""
    checked = Scripted(False)
    with a_health() as health:
        health.add(checked, "it", interval=60.0)
        assert health.report().result("it").status is Status.FAIL
        for _ in range(50):
            health.report()
            health.latest()
        assert checked.runs == 1


def test_question_waits_for_no_refresh_in_the_background() -> None:
    """It hears what was found last, however long the refresh takes."""
    checked = Scripted()
    with a_health() as health:
        health.add(checked, "it", interval=OFTEN, stale_after=60.0)
        health.report()
        with checked.held():
            assert checked.begun.wait(SOON)
            result = health.report().result("it")
            assert result.status is Status.PASS


def test_background_that_is_not_to_be_had_is_made_good_by_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started for it: then those who ask run what has become old."""
    checked = Scripted()
    with a_health(timeout=0.05) as health:
        monkeypatch.setattr(
            "resilient.health.keeper.Keeper.loop",
            property(lambda _keeper: (_ for _ in ()).throw(RuntimeError("can't start new thread"))),
        )
        health.add(checked, "it", interval=OFTEN)
        assert health.report().ok
        wait_until(lambda: health.report().ok and checked.runs >= 3, "it is run again")
        assert not pulses()


def test_processes_of_a_fleet_do_not_ask_at_the_same_moment() -> None:
    """Each comes late by a share of its own, a tenth of the interval at most."""
    lags = set()
    for _ in range(20):
        health = Health("shop")
        health.add(Scripted(), "it", interval=10.0)
        health.add(Scripted(), "when asked")
        background, other = health._monitor.registry.entries
        assert 0.0 <= background.lag <= 1.0
        assert other.lag == 0.0
        lags.add(background.lag)
    assert len(lags) > 15


def test_question_does_not_come_before_a_background_that_is_late_on_purpose() -> None:
    """What is a tenth of an interval late is neither old nor lost."""
    clock, checked = FakeClock(), Scripted()
    with a_health(clock=clock, timeout=1.0) as health:
        health.add(checked, "it", interval=60.0)
        (entry,) = health._monitor.registry.entries
        entry.lag = 6.0
        health.report()
        for _ in range(65):
            clock.advance(1.0)
            health.report()
        assert checked.runs == 1


def test_no_thread_where_nothing_runs_in_the_background() -> None:
    """Nor before anybody asks."""
    with a_health() as health:
        health.add(Scripted(), "when asked")
        health.start()
        health.report()
        health.latest()
        assert not pulses()
        health.add(Scripted(), "in the background", interval=60.0)
        assert not pulses()
        health.report()
        assert len(pulses()) == 1


def test_one_thread_for_all_of_them() -> None:
    """However many ask."""
    with a_health() as health:
        for number in range(20):
            health.add(AScripted(), f"check {number}", interval=60.0)
        threads = [threading.Thread(target=health.report) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pulses()) == 1
        assert health.report().ok


@pytest.mark.parametrize("hangs", [False, True])
def test_background_ends_with_a_health_that_nobody_has_any_more(hangs: bool) -> None:
    """Also while one of its checks hangs."""
    checked, hung = Scripted(), Scripted()
    health = Health("shop", interval=OFTEN, timeout=0.05)
    health.add(checked, "it")
    with hung.held():
        if hangs:
            health.add(hung, "hung")
        health.report()
        wait_until(lambda: checked.runs >= 2, "it runs")
        gone = weakref.ref(health)
        del health
        gc.collect()
        assert gone() is None
        wait_until(lambda: not pulses(), "the thread has ended")
        runs = checked.runs
        assert not checked.at_once
    assert checked.runs == runs


def test_background_keeps_nothing_of_whoever_asked_first() -> None:
    """Not their request, nor their deadline: they would live as long as the service."""
    request: ContextVar[object] = ContextVar("request")

    class Request:
        """What is not to be kept."""

    seen = []
    with a_health() as health:
        health.check("function", interval=60.0)(lambda: seen.append(request.get(None)))

        @health.check("coroutine function", interval=60.0)
        async def look() -> None:
            seen.append(request.get(None))

        def ask() -> weakref.ref[Request]:
            request.set(mine := Request())
            health.report()
            return weakref.ref(mine)

        gone = copy_context().run(ask)
        gc.collect()
        wait_until(lambda: gone() is None, "the request is forgotten")
    assert seen == [None, None]


async def test_background_runs_coroutines_on_the_loop_that_asks() -> None:
    """The thread only says when."""
    checked = AScripted()
    with a_health() as health:
        health.add(checked, "it", interval=OFTEN)
        health.start()
        await await_until(lambda: checked.runs >= 3, "it runs")
    assert set(checked.loops) == {asyncio.get_running_loop()}


def test_background_goes_on_when_the_loop_that_asked_has_ended() -> None:
    """On one of its own."""
    checked = AScripted()
    with a_health() as health:
        health.add(checked, "it", interval=OFTEN)
        asyncio.run(health.areport())
        first = checked.loops[0]
        wait_until(lambda: checked.loops[-1] is not first and health.latest().ok, "it runs elsewhere")


def test_check_in_the_background_that_hangs_keeps_no_other_from_running() -> None:
    """It is told of, and run again when it has ended."""
    hung, well = Scripted(), Scripted()
    with a_health(interval=OFTEN, timeout=0.05) as health:
        health.add(hung, "hung")
        health.add(well, "well")
        with hung.held():
            health.start()
            wait_until(lambda: states(health) == {"hung": Status.FAIL, "well": Status.PASS}, "told")
            runs = well.runs
            wait_until(lambda: well.runs >= runs + 2, "it goes on")
            assert hung.runs == 1
        wait_until(lambda: states(health)["hung"] is Status.PASS, "it is run again")


def test_failure_in_the_background_is_announced_though_nobody_asks() -> None:
    """That is what it is for."""
    checked, heard = Scripted(), []
    with a_health(listeners=[heard.append]) as health:
        health.add(checked, "it", interval=OFTEN)
        health.start()
        wait_until(lambda: checked.runs > 0, "it runs")
        checked.answer = False
        wait_until(lambda: bool(heard), "it is told")
    assert (heard[0].policy, heard[0].status) == ("it", "fail")


def test_failure_on_which_a_policy_stands_is_announced_though_nobody_asks() -> None:
    """The policy is asked by nobody: what it sees does not matter for what it stands on."""
    checked, heard = Scripted(False), []
    breaker = CircuitBreaker("payments")
    with a_health(listeners=[heard.append]) as health:
        health.add(checked, "network", interval=OFTEN)
        health.watch(breaker, depends_on=["network"])
        health.add(Scripted(), "behind", interval=OFTEN, depends_on=["network"])
        health.start()
        wait_until(lambda: bool(heard), "it is told", within=SOON)
    assert (heard[0].policy, heard[0].status) == ("network", "fail")


def test_removed_check_is_run_no_more() -> None:
    """The others are."""
    gone, stays = Scripted(), Scripted()
    with a_health(interval=OFTEN) as health:
        health.add(gone, "gone")
        health.add(stays, "stays")
        health.report()
        health.remove("gone")
        wait_until(lambda: not gone.at_once, "it has ended")
        runs, more = gone.runs, stays.runs
        wait_until(lambda: stays.runs >= more + 2, "the others go on")
        assert gone.runs == runs
