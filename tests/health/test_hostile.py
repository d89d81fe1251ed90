"""Checks that do what nobody should, and programs that end or fork under them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.health import leaving
from tests.health.scripted import AScripted, Scripted, a_health, states
from tests.support.waiting import await_until, wait_until

from resilient.health import Finding, Health, Status
from resilient.testing import FakeClock

ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
QUICK = 20.0  # seconds that a program has for starting, what it does, and its end, on a busy machine
SOON = 5.0
MANY = 10_000 if SOAK else 1_000
PYTHON = [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning"]

ENDS = [
    leaving.with_checks_that_hang,
    leaving.with_askers,
    leaving.with_a_loop_of_its_own,
    leaving.closed,
    leaving.asked_by_an_exit_handler,
    leaving.by_an_exception,  # the last one: it ends the program
]
FORKS = [leaving.fork_while_checks_run, leaving.fork_with_every_lock_held, leaving.fork_in_a_loop]


def run(*names: str, within: float = QUICK) -> None:
    """Run a program that does these; fail if it says anything, or takes its time."""
    command = [*PYTHON, "-m", "tests.health.leaving", *names]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as it:
        try:
            said, _ = it.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            it.kill()
            raise
    assert (it.returncode, said) == (0, "")


@pytest.mark.parametrize(
    "ends", [[end] for end in ENDS] if SOAK else [ENDS], ids=lambda ends: ends[0].__name__
)
def test_program_ends_at_once_whatever_hangs(ends: list[Callable[[], None]]) -> None:
    """Without a word: no thread is waited for, no loop complains."""
    run(*(end.__name__ for end in ends))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "forks", [[fork] for fork in FORKS] if SOAK else [FORKS], ids=lambda forks: forks[0].__name__
)
def test_forked_child_begins_anew(forks: list[Callable[[], None]]) -> None:
    """It waits for no thread and no run of its parent, and says nothing."""
    run(*(fork.__name__ for fork in forks), within=600.0 if SOAK else 45.0)


# Checks that meddle


def test_check_that_closes_the_health_ends_nothing_but_that() -> None:
    """From a thread, and from the loop that is closed with it."""
    for kind in ("function", "coroutine function"):
        with a_health() as health:

            def close(health: Health = health) -> None:
                health.close()

            async def aclose(health: Health = health) -> None:
                health.close()

            health.add(close if kind == "function" else aclose, "it")
            health.add(Scripted(), "well")
            report = health.report(within=0.5)
            assert {result.status for result in report.results} <= {Status.PASS, Status.UNKNOWN}


def test_check_that_registers_and_takes_out_checks() -> None:
    """Also itself; those who ask meanwhile see one or the other."""
    with a_health() as health:

        def meddle() -> None:
            health.remove("it")
            health.add(Scripted(), "new")

        health.add(meddle, "it")
        assert set(states(health)) <= {"it", "new"}
        wait_until(lambda: states(health) == {"new": Status.PASS}, "the new one is found")


def test_check_whose_thread_ends_threads_of_others_is_run_like_any() -> None:
    """Names, identities and daemons of threads are no business of ours."""

    def rename() -> None:
        threading.current_thread().name = "mine"

    with a_health() as health:
        health.add(rename, "it")
        health.add(rename, "too")
        assert health.report().ok


def test_check_that_stops_its_loop_has_failed_at_its_time() -> None:
    """The loop of ours is gone with it: the next run has a new one."""
    runs: list[asyncio.AbstractEventLoop] = []

    async def stop() -> None:
        runs.append(asyncio.get_running_loop())
        if len(runs) == 1:
            runs[0].stop()
            await asyncio.sleep(60.0)

    with a_health(timeout=0.05) as health:
        health.add(stop, "it", failed_ttl=0.01)
        health.report()
        wait_until(lambda: health.report().result("it").status is Status.PASS, "it is run elsewhere")
        assert runs[0] is not runs[-1]


def test_clock_that_stands_still_holds_nobody() -> None:
    """The time of a run is real."""
    hung = Scripted()
    with a_health(clock=FakeClock(), timeout=0.02) as health:
        health.add(hung, "it")
        with hung.held():
            began = time.monotonic()
            health.report()
            assert time.monotonic() - began < SOON


def test_no_more_threads_is_a_reason_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of checks of both kinds; when there are threads again, they are found."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    function, coroutine, often = Scripted(), AScripted(), Scripted()
    with a_health(ttl=0.01) as health:
        health.add(function, "function", critical=True)
        health.add(coroutine, "coroutine function")
        health.add(often, "in the background", interval=0.01)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            for _ in range(3):
                report = health.report("all")
                assert not health.report("ready").ok
        for result in report.results:
            assert result.status is Status.UNKNOWN
            assert "can't start new thread" in result.output
        wait_until(lambda: set(states(health).values()) == {Status.PASS}, "all are found")


# Many


def test_thousands_of_checks_are_found_in_one_question() -> None:
    """Also in a group, and where some stand on others."""
    began = time.monotonic()
    with a_health() as health:
        for number in range(MANY):
            health.add(
                Scripted() if number % 2 else AScripted(),
                f"check {number}",
                external=False,
                depends_on=[f"check {number - 1}"] if number % 100 == 99 else (),
            )
        for group in ("all", "ready"):
            report = health.report(group)
            assert (report.status, len(report.results)) == (Status.PASS, MANY)
    assert time.monotonic() - began < 20.0, "more than in proportion"


def test_ten_thousand_questions_about_a_check_that_hangs_leave_nothing_behind() -> None:
    """No thread, no waiter, no task, no run; and the memory stays as it was."""
    hung, ahung = Scripted(), AScripted(deaf=True)
    ahung.is_held = True
    with a_health(timeout=0.02, answer_within=0.001) as health, hung.held():
        health.add(hung, "hung", failed_ttl=0.001)
        health.add(ahung, "hung, too", failed_ttl=0.001)
        health.report()
        wait_until(lambda: Status.UNKNOWN not in states(health).values(), "both are too late")
        gc.collect()
        threads, objects = threading.active_count(), len(gc.get_objects())

        async def ask_many() -> None:
            for _ in range(20):
                await asyncio.gather(*(health.areport() for _ in range(100)))

        asyncio.run(ask_many())
        for _ in range(4_000):
            health.report()
            health.latest()
        gc.collect()
        assert threading.active_count() <= threads
        assert len(gc.get_objects()) - objects < 500
        for entry in health._monitor.registry.entries:
            assert not entry.run.waiters  # type: ignore[attr-defined]
        assert (hung.runs, ahung.runs) == (1, 1)
        ahung.is_held = False


async def test_askers_who_are_cancelled_leave_no_waiter() -> None:
    """A thousand of them, while the check hangs."""
    hung = AScripted()
    hung.is_held = True
    with a_health() as health:
        health.add(hung, "it")
        asked = [asyncio.create_task(health.areport()) for _ in range(1_000)]
        await await_until(lambda: hung.runs > 0, "it runs")
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
        assert all(one.cancelled() for one in asked)
        (entry,) = health._monitor.registry.entries
        assert not entry.run.waiters
        hung.is_held = False
        assert (await health.areport()).ok


@pytest.mark.parametrize("step", range(6))
async def test_asker_cancelled_at_any_await_loses_nothing(step: int) -> None:
    """After so many turns of the loop; the next one is answered."""
    first, second = AScripted(), AScripted()
    first.is_held = True
    with a_health() as health:
        health.add(first, "first")
        health.add(second, "second")
        asker = asyncio.create_task(health.areport())
        for _ in range(step):
            await asyncio.sleep(0)
        asker.cancel()
        asyncio.get_running_loop().call_soon(setattr, first, "is_held", False)
        with pytest.raises(asyncio.CancelledError):
            await asker
        assert (await health.areport()).ok
        assert first.runs == second.runs == 1


def test_health_dropped_with_runs_under_way_is_collected() -> None:
    """Their ends find nobody to tell, and complain of nothing."""
    hung, ahung = Scripted(), AScripted()
    ahung.is_held = True
    with hung.held():
        health = Health("shop", answer_within=0.01)
        health.add(hung, "hung")
        health.add(ahung, "hung, too")
        health.report()
        wait_until(lambda: hung.runs == ahung.runs == 1, "both run")
        (thread,) = ahung.threads
        del health
        gc.collect()
        wait_until(lambda: not thread.is_alive(), "the loop has ended")
        assert ahung.cancelled == 1
    wait_until(lambda: not hung.at_once, "the thread is free")


def test_ten_thousand_lines_and_facts_of_a_hostile_check_cost_little() -> None:
    """Nothing is masked but what is told."""

    def shout() -> Finding:
        return Finding(Status.FAIL, "a@b:c " * 100_000, facts={f"{n}": "x" * 10_000 for n in range(1_000)})

    with a_health() as health:
        health.add(shout, "it")
        began = time.monotonic()
        result: Any = health.report().result("it")
        assert time.monotonic() - began < SOON
    assert len(repr(result)) < 20_000


def test_witness_that_blocks_holds_only_those_who_ask_for_it() -> None:
    """Liveness above all: the process would be killed for a queue that nobody has asked about."""
    gate, begun = threading.Event(), threading.Event()

    class Blocking:
        name = "queue"

        def finding(self) -> Finding:
            begun.set()
            gate.wait(QUICK)
            return Finding(Status.PASS)

    with a_health() as health:
        health.add(Scripted(), "loop", external=False, groups=["live"])
        health.watch(Blocking(), groups=["ready"])
        asker = threading.Thread(target=health.report, args=("ready",))
        asker.start()
        try:
            assert begun.wait(SOON)
            assert health.report("live").ok
            assert health.latest("startup").ok
        finally:
            gate.set()
            asker.join()


def test_witness_that_blocks_takes_no_thread_of_the_checks() -> None:
    """Nor the loop of the background, though it stands on a check: it is asked by those who ask for it."""
    gate, asked = threading.Event(), list[str]()

    class Blocking:
        name = "queue"

        def finding(self) -> Finding:
            asked.append(threading.current_thread().name)
            gate.wait(QUICK)
            return Finding(Status.PASS)

    network, often, coroutine = Scripted(), Scripted(), AScripted()
    with a_health(max_threads=2) as health:
        health.add(network, "network", external=False, groups=["live"], ttl=0.001)
        health.add(coroutine, "coroutine function", external=False, groups=["live"], ttl=0.001)
        health.add(often, "often", interval=0.01)
        health.watch(Blocking(), groups=["ready"], depends_on=["network", "often"])
        health.start()
        try:
            wait_until(lambda: health.report("live").ok and network.runs > 5, "it is run", within=SOON)
            wait_until(lambda: coroutine.runs > 5 and often.runs > 5, "all are", within=SOON)
            assert not asked
        finally:
            gate.set()


def test_background_outlives_what_nobody_expects() -> None:
    """A clock that fails once in a while: it is told of, and the checks run on."""
    fails = False

    def clock() -> float:
        if fails and threading.current_thread().name == "resilient-health-loop":
            raise ArithmeticError("of the clock's")
        return time.monotonic()

    checked = Scripted()
    with a_health(clock=clock) as health:
        health.add(checked, "it", interval=0.01)
        health.start()
        wait_until(lambda: checked.runs > 0, "it runs")
        fails = True
        time.sleep(0.05)
        fails = False
        runs = checked.runs
        wait_until(lambda: checked.runs > runs + 1, "it runs on", within=SOON)
