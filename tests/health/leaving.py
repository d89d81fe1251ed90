"""Programs that end, or fork, while checks are under way. Run by `test_hostile.py`, each by itself.

A test process has threads and state of its own that a child should not inherit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tests.health.scripted import AScripted, Scripted
from tests.support.waiting import wait_until

from resilient.events import HealthChanged
from resilient.health import Health, Status

HUNG = 15  # seconds after which a child is taken for hung
LONG = 60.0
FORKS = 100 if os.environ.get("RESILIENT_SOAK") else 2
_kept: list[Any] = []


def a_health(**words: Any) -> Health:
    """Return a Health with checks of each kind that hang, one that is well, and one in the background."""
    health = Health("shop", timeout=LONG, answer_within=0.05, **words)
    hung, ahung, deaf = Scripted(), AScripted(), AScripted(deaf=True)
    _kept.append((health, hung.held(), ahung, deaf))
    _kept[-1][1].__enter__()
    ahung.is_held = deaf.is_held = True
    health.add(hung, "hung")
    health.add(ahung, "hung, too")
    health.add(deaf, "deaf")
    health.add(Scripted(), "well")
    health.add(Scripted(), "background", interval=0.01)
    return health


# Ends


def with_checks_that_hang() -> None:
    """Of each kind, and a background that goes on."""
    health = a_health()
    assert health.report().result("well").status is Status.PASS


def with_askers() -> None:
    """Daemons that wait for an answer, and others that ask again and again."""
    health = a_health()
    for within in (LONG, 0.001):

        def ask(within: float = within) -> None:
            with contextlib.suppress(RuntimeError):
                while True:
                    health.report(within=within)

        threading.Thread(target=ask, daemon=True).start()
    health.report()


def with_a_loop_of_its_own() -> None:
    """The loop ends while checks run on it; the one that is deaf has to be let go for that."""

    async def main() -> None:
        health = a_health()
        await health.areport()
        _kept[-1][3].is_held = False

    asyncio.run(main())


def closed() -> None:
    """By the block in which it was used."""
    with a_health() as health:
        health.report()


def asked_by_an_exit_handler() -> None:
    """No thread can be started any more in some versions; an answer comes all the same."""
    import atexit

    health = a_health()

    def ask() -> None:
        assert health.report().result("well").name == "well"

    atexit.register(ask)
    _kept.append(health)


def by_an_exception() -> None:
    """With an answer under way."""
    with a_health() as health:
        health.report()
        sys.exit(0)


# Forks


def in_child(act: Callable[[], None]) -> None:
    """Run *act* in a forked child; fail unless it ends well, and soon."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(HUNG)
        code = 1
        try:
            act()
            gc.collect()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"


def fork_while_checks_run() -> None:
    """The child has found nothing yet, runs the checks itself, and the parent goes on."""
    health = a_health()
    checked = Scripted(Status.WARN)
    health.add(checked, "it", ttl=LONG)
    assert health.report().result("it").status is Status.WARN
    hung = _kept[-1]

    def look() -> None:
        hung[1].__exit__(None, None, None)
        hung[2].is_held = hung[3].is_held = False
        checked.answer = None
        assert health.report(within=0.0).result("it").status is not Status.WARN
        wait_until(lambda: health.report().status is Status.PASS, "all are found", within=HUNG)
        runs = _runs(health)
        wait_until(lambda: _runs(health) > runs, "the background goes on", within=HUNG)
        health.close()

    for _ in range(FORKS):
        in_child(look)
    assert health.latest().result("it").status is Status.WARN
    assert health.latest().result("hung").running_for is not None


def _runs(health: Health) -> int:
    (entry,) = (one for one in health._monitor.registry.entries if one.facts.name == "background")
    return entry.check.runs  # type: ignore[attr-defined, no-any-return]


def fork_with_every_lock_held() -> None:
    """By threads that the child does not have; and events are delivered there."""
    entered, leave = threading.Event(), threading.Event()
    heard: list[HealthChanged] = []

    def listen(event: Any) -> None:
        heard.append(event)
        if threading.current_thread() is not threading.main_thread() and os.getpid() == parent:
            entered.set()
            leave.wait(LONG)

    parent = os.getpid()
    health = Health("shop", listeners=[listen], answer_within=5.0)
    checked = Scripted(False)
    health.add(checked, "it", failed_ttl=0.01)
    drainer = threading.Thread(target=health.drain)  # which delivers, and hangs there
    drainer.start()
    entered.wait(LONG)
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        monitor = health._monitor
        workers, keeper = monitor._runner._workers, monitor._runner.keeper
        with monitor.lock, workers._lock, keeper._lock, health.announcer._lock:
            holding.set()
            done.wait(LONG)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(LONG)

    def look() -> None:
        heard.clear()
        health.add_listener(heard.append)
        assert health.report().result("it").status is Status.FAIL
        assert health.draining
        health.resume()
        wait_until(lambda: "pass" in [one.status for one in heard], "it is told", within=HUNG)

    for _ in range(FORKS):
        in_child(look)
    done.set()
    leave.set()
    holder.join()
    drainer.join()


def fork_in_a_loop() -> None:
    """The child asks from a loop of its own, and from none."""

    async def main() -> None:
        health = Health("shop", answer_within=0.05, timeout=LONG)
        checked = AScripted()
        checked.is_held = True
        health.add(checked, "it")
        await health.areport()
        assert checked.runs == 1
        child = multiprocessing.get_context("fork").Process(target=look, args=(health, checked))
        child.start()
        await asyncio.to_thread(child.join, HUNG)
        assert child.exitcode == 0, child.exitcode
        checked.is_held = False
        assert (await health.areport(within=LONG)).ok

    def look(health: Health, checked: AScripted) -> None:
        checked.is_held = False
        assert health.report(within=HUNG).ok
        with contextlib.suppress(RuntimeError):
            assert asyncio.run(health.areport()).ok
        health.close()

    asyncio.run(main())


if __name__ == "__main__":
    logging.getLogger("resilient").setLevel("CRITICAL")
    logging.getLogger("asyncio").setLevel("ERROR")  # a busy machine is no fault of ours
    for name in sys.argv[1:]:
        globals()[name]()
