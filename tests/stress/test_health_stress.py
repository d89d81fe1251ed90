"""Crowds that ask at once: threads, tasks, loops, signals. Each check runs once at a time, once per ttl."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any, Self

import pytest
from tests.health.scripted import AScripted, Scripted, a_health
from tests.stress.signals import Interrupter
from tests.support.waiting import wait_until

from resilient.health import Health, Report, Status

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
SECONDS = 20.0 if SOAK else 0.4
THREADS, LOOPS, TASKS = 32, 3, 500
TTL = 0.02

pytestmark = pytest.mark.timeout(600.0 if SOAK else 60.0, method="thread")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is tried elsewhere."""
    caplog.set_level("CRITICAL", "resilient")


class Crowd:
    """Threads, and tasks on several loops, that ask for as long as the block lasts."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.answers = 0
        self.errors: list[BaseException] = []
        self.slowest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(THREADS)]
        self._threads += [threading.Thread(target=self._ask_on_a_loop) for _ in range(LOOPS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20.0)
        assert not any(thread.is_alive() for thread in self._threads), "some hang"
        assert not self.errors, self.errors[0]

    def _note(self, report: Report, began: float) -> None:
        self.answers += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert len({one.name for one in report.results}) == len(report.results)

    def _ask(self) -> None:
        groups = ("all", "ready", "live")
        try:
            while not self._over.is_set():
                began = time.monotonic()
                self._note(self.health.report(groups[self.answers % 3]), began)
                self.health.latest()
        except BaseException as exc:
            self.errors.append(exc)

    def _ask_on_a_loop(self) -> None:
        async def ask(number: int) -> None:
            await asyncio.sleep(number * 0.0005)
            while not self._over.is_set():
                began = time.monotonic()
                question = asyncio.ensure_future(self.health.areport())
                if number % 7 == 0:
                    asyncio.get_running_loop().call_later(0.001, question.cancel)
                with contextlib.suppress(asyncio.CancelledError):
                    self._note(await question, began)
                await asyncio.sleep(0.2)

        async def main() -> None:
            await asyncio.gather(*(ask(number) for number in range(TASKS // LOOPS)))

        try:
            while not self._over.is_set():
                asyncio.run(main())
        except BaseException as exc:
            self.errors.append(exc)


@pytest.mark.usefixtures("restless")
def test_crowd_gets_answers_and_each_check_runs_once_at_a_time() -> None:
    """While checks come and go, fail and hang, and the service drains."""
    checks: dict[str, Any] = {f"function {n}": Scripted() for n in range(3)}
    checks |= {f"coroutine function {n}": AScripted() for n in range(3)}
    checks["in the background"] = Scripted()
    began = time.monotonic()
    with a_health(ttl=TTL, timeout=0.1, answer_within=0.2) as health:
        for name, check in checks.items():
            health.add(
                check,
                name,
                external=False,
                critical=True,
                failed_ttl=TTL,
                interval=TTL if name == "in the background" else None,
            )
        with Crowd(health) as crowd:
            number = 0
            while time.monotonic() - began < SECONDS:
                number += 1
                health.add(Scripted(), "for a moment", external=False, depends_on=["function 0"])
                checks["function 1"].answer = number % 2 == 0
                with checks["function 2"].held(), checks["coroutine function 2"].held():
                    time.sleep(0.02)
                health.drain()
                health.remove("for a moment")
                health.resume()
            checks["function 1"].answer = None
        elapsed = time.monotonic() - began
        assert crowd.answers > 100
        wait_until(lambda: health.report().status is Status.PASS, "all are well in the end")
        for name, check in checks.items():
            assert check.most == 1, name
            assert check.runs <= elapsed / TTL + 2, name
        assert not any(
            entry.run is not None and entry.run.waiters for entry in health._monitor.registry.entries
        )


def test_hundreds_of_questions_a_second_about_a_slow_check_are_answered_quickly() -> None:
    """It takes longer than everybody would wait, and is run once per ttl at most."""
    slow = Scripted()
    took: list[float] = []
    with a_health(ttl=0.1, timeout=5.0, answer_within=0.5) as health:
        health.add(slow, "slow", critical=True)
        health.report()
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            with slow.held():
                for _ in range(50):
                    asked = time.perf_counter()
                    assert health.report("ready").ok
                    took.append(time.perf_counter() - asked)
                    time.sleep(0.001)
        elapsed = time.monotonic() - began
        took.sort()
        assert took[int(0.9 * len(took))] < 0.1, "on however busy a machine"
        assert slow.runs <= elapsed / 0.1 + 2


# Signals


@pytest.fixture
def health() -> Iterator[Health]:
    """A Health with a check of each kind."""
    with a_health(ttl=0.001, timeout=0.05, answer_within=0.2) as made:
        for name, check in (("function", Scripted()), ("coroutine function", AScripted())):
            made.add(check, name, failed_ttl=0.001)
        made.add(Scripted(), "in the background", interval=0.01, failed_ttl=0.001)
        made.report()
        yield made


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("without_collector")
def test_interrupts_at_any_moment_of_a_question_lose_no_check(health: Health) -> None:
    """Real signals, whose handler raises; the questions after them are answered, and all is well.

    A few are swallowed by Python's own record of threads, a WeakSet, where the last to know of a thread that
    has been idle is the one who asks.
    """
    interrupter = Interrupter()
    previous = signal.signal(signal.SIGALRM, interrupter.handle)
    try:
        interrupter.storm(health.report, seconds=SECONDS)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert interrupter.interrupts > 100, "too few interrupts to mean anything"
    assert interrupter.inside > 0.5 * interrupter.struck
    wait_until(lambda: health.report().status is Status.PASS, "all are found")
    for entry in health._monitor.registry.entries:
        assert entry.check.most == 1  # type: ignore[attr-defined]
        wait_until(lambda entry=entry: not (entry.run and entry.run.waiters), "nobody waits")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_signal_handlers_that_ask_and_drain_hang_nobody(health: Health) -> None:
    """They come into the questions of the main thread, at any moment."""
    struck = 0

    def handle(*_: object) -> None:
        nonlocal struck
        struck += 1
        health.latest()
        health.drain("a signal") if struck % 2 else health.resume()
        health.report(within=0.0)

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            health.report()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    assert struck > 10
    health.resume()
    wait_until(lambda: health.report().status is Status.PASS, "all are found")


# Memory


def test_memory_does_not_grow_with_runs_and_questions() -> None:
    """After as many as a service makes in a day, at one in ten seconds."""
    with a_health(ttl=1e-6) as health:
        health.add(Scripted(), "function")
        health.add(AScripted(), "coroutine function")
        health.add(Scripted(ConnectionError("it is down")), "failing", failed_ttl=1e-6)
        questions = 8_640 if SOAK else 600

        def ask(times: int) -> None:
            for _ in range(times):
                health.report()

            async def atask() -> None:
                for _ in range(times):
                    await health.areport()

            asyncio.run(atask())

        ask(100)
        for entry in health._monitor.registry.entries:
            if isinstance(check := entry.check, AScripted):  # type: ignore[attr-defined]
                check.loops, check.threads = _Forgetful(), _Forgetful()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            ask(questions)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 50_000, f"{grown} bytes"


class _Forgetful(list[Any]):
    def append(self, _item: object) -> None:
        """Forget it."""
