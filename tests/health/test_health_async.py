"""Health, asked by tasks and threads: on which loop checks run, and what becomes of them with it."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.health.scripted import AScripted, Scripted, a_health, states
from tests.support.waiting import await_until, wait_until

from resilient.health import Health, Status
from resilient.testing import FakeClock

SOON = 5.0  # seconds in which a slow machine answers what needs no waiting


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


# Together, each in its time


async def test_checks_of_both_kinds_run_at_the_same_time() -> None:
    """Each of them waits until all have begun; the loop is not blocked by those that are functions."""
    barrier, all_here = threading.Barrier(3), asyncio.Event()
    here = 0

    async def awaited() -> None:
        nonlocal here
        here += 1
        if here == 3:
            all_here.set()
        await asyncio.wait_for(all_here.wait(), SOON)

    with a_health() as health:
        for number in range(3):
            health.add(lambda: barrier.wait(SOON) >= 0, f"function {number}")
            health.add(awaited, f"coroutine function {number}")
        report = await health.areport()
    assert report.status is Status.PASS, report


async def test_slow_coroutine_is_cancelled_when_its_time_is_up() -> None:
    """Nobody waits longer; it is run again when it has ended."""
    slow = AScripted()
    slow.is_held = True
    with a_health(timeout=0.05, ttl=0.01) as health:
        health.add(slow, "slow")
        health.add(AScripted(), "well")
        began = time.monotonic()
        report = await health.areport()
        assert time.monotonic() - began < SOON
        assert report.result("slow").output == "no answer within 0.05 s"
        assert report.result("well").status is Status.PASS
        await await_until(lambda: slow.cancelled == 1, "it is cancelled")
        slow.is_held = False
        await await_until(lambda: states(health)["slow"] is Status.PASS, "it is run again")
        assert slow.most == 1


async def test_coroutine_that_is_deaf_to_being_cancelled_holds_nobody() -> None:
    """It is not waited for, and not run beside itself; the answer says so for as long as it goes on."""
    deaf = AScripted(deaf=True)
    deaf.is_held = True
    with a_health(timeout=0.05, ttl=0.01) as health:
        health.add(deaf, "deaf")
        began = time.monotonic()
        for _ in range(20):
            report = await health.areport()
        assert report.result("deaf").output == "no answer within 0.05 s"
        assert time.monotonic() - began < SOON
        assert (deaf.runs, deaf.most) == (1, 1)
        deaf.is_held = False
        await await_until(lambda: states(health)["deaf"] is Status.PASS, "it is run again")


async def test_hanging_thread_holds_no_task() -> None:
    """Nor the loop, which goes on meanwhile."""
    hung = Scripted()
    with a_health(timeout=0.05) as health:
        health.add(hung, "hung")
        with hung.held():
            report = await asyncio.wait_for(health.areport(), SOON)
        assert report.result("hung").output == "no answer within 0.05 s"


async def test_nobody_waits_longer_than_the_answer_may_take() -> None:
    """What is not found by then is unknown, and told by the next answer."""
    slow = AScripted()
    slow.is_held = True
    with a_health(answer_within=0.02) as health:
        health.add(slow, "slow")
        assert (await health.areport()).result("slow").output == "the first run is under way"
        slow.is_held = False
        assert (await health.areport(within=SOON)).result("slow").status is Status.PASS
        assert slow.runs == 1


async def test_report_for_threads_is_refused_on_a_loop() -> None:
    """It would block it; `latest` does not, and is not."""
    health = Health("shop")
    with pytest.raises(RuntimeError, match=r"use `await health\.areport\(\)`"):
        health.report()
    assert health.latest().ok


# How often


async def test_five_hundred_tasks_get_one_run() -> None:
    """And the next five hundred none, within the ttl."""
    checked = AScripted()
    checked.is_held = True
    with a_health() as health:
        health.add(checked, "it")
        asked = [asyncio.create_task(health.areport()) for _ in range(500)]
        await await_until(lambda: checked.runs > 0, "it runs")
        checked.is_held = False
        assert {(await one).status for one in asked} == {Status.PASS}
        for report in await asyncio.gather(*(health.areport() for _ in range(500))):
            assert report.ok
    assert checked.runs == 1


@pytest.mark.parametrize("kind", [Scripted, AScripted])
async def test_threads_tasks_and_loops_share_one_run(kind: type[Scripted | AScripted]) -> None:
    """Whoever began it, all are told what it found."""
    checked = kind()

    def ask_on_a_loop(health: Health) -> Status:
        async def ask() -> Status:
            return (await health.areport()).status

        return asyncio.run(ask())

    def ask_in_a_thread(health: Health) -> Status:
        return health.report().status

    with a_health() as health, ThreadPoolExecutor(24) as threads:
        health.add(checked, "it")
        with checked.held():
            tasks = [asyncio.create_task(health.areport()) for _ in range(20)]
            asked = [
                threads.submit((ask_on_a_loop, ask_in_a_thread)[number % 2], health) for number in range(20)
            ]
            await await_until(lambda: checked.runs > 0, "it runs")
        found = [(await task).status for task in tasks]
        found += [await asyncio.wrap_future(one) for one in asked]
    assert set(found) == {Status.PASS}
    assert checked.runs == 1


async def test_refresh_keeps_nobody_waiting(clock: FakeClock) -> None:
    """They hear what was found last, and how old it is."""
    checked = AScripted()
    with a_health(clock=clock, ttl=5.0) as health:
        health.add(checked, "it")
        await health.areport()
        checked.answer, checked.is_held = False, True
        clock.advance(5.5)
        for _ in range(3):
            result = (await health.areport()).result("it")
            assert (result.status, result.age) == (Status.PASS, 5.5)
        checked.is_held = False
        await await_until(lambda: states(health)["it"] is Status.FAIL, "it is found")
        assert checked.runs == 2


# Cancelled askers


async def test_cancelled_asker_cancels_no_check() -> None:
    """The others get their answer, and nobody is left behind who waits for nothing."""
    checked = AScripted()
    checked.is_held = True
    with a_health() as health:
        health.add(checked, "it")
        first, second = (asyncio.create_task(health.areport()) for _ in range(2))
        await await_until(lambda: checked.runs > 0, "it runs")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (entry,) = health._monitor.registry.entries
        assert len(entry.run.waiters) == 1
        checked.is_held = False
        assert (await second).ok
    assert (checked.runs, checked.cancelled) == (1, 0)


async def test_asker_with_a_timeout_of_its_own_keeps_it() -> None:
    """`asyncio.timeout` around the question ends it, and nothing else."""
    checked = AScripted()
    checked.is_held = True
    with a_health() as health:
        health.add(checked, "it")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await health.areport()
        checked.is_held = False
        assert (await health.areport()).ok
    assert checked.runs == 1


# On which loop


async def test_coroutines_run_on_the_loop_that_asks() -> None:
    """For what they use, such as a client with connections, belongs to that."""
    checked = AScripted()
    for ask in (lambda health: health.areport(), _latest):
        with a_health() as health:
            health.add(checked, "it")
            await ask(health)
            await await_until(lambda health=health: states(health)["it"] is Status.PASS, "it is found")
    assert checked.loops == [asyncio.get_running_loop()] * 2
    assert checked.threads == [threading.current_thread()] * 2


async def _latest(health: Health) -> None:
    health.latest()


async def test_coroutines_run_on_that_loop_for_threads_too(clock: FakeClock) -> None:
    """As long as it runs."""
    checked = AScripted()
    with a_health(clock=clock, ttl=1.0) as health, ThreadPoolExecutor(1) as threads:
        health.add(checked, "it")
        await health.areport()
        clock.advance(60.0)
        assert (await asyncio.wrap_future(threads.submit(health.report))).ok
    assert checked.loops == [asyncio.get_running_loop()] * 2


def test_where_only_threads_ask_coroutines_have_a_thread_of_their_own() -> None:
    """A daemon, which ends when the Health is closed."""
    checked = AScripted()
    with a_health() as health:
        health.add(checked, "it")
        assert health.report().ok
        (thread,) = checked.threads
        assert thread is not threading.current_thread()
        assert thread.daemon
        assert thread.is_alive()
    wait_until(lambda: not thread.is_alive(), "the thread has ended")


def test_no_thread_and_no_loop_where_none_is_needed() -> None:
    """Functions that hang on nothing leave nothing running but their own threads, which end when idle."""
    before = set(threading.enumerate())
    with a_health() as health:
        health.add(Scripted(), "it")
        health.report()
        health.start()
        new = [one.name for one in threading.enumerate() if one not in before]
    assert set(new) <= {"resilient-health"}


async def test_on_a_loop_coroutines_need_no_thread() -> None:
    """Not one is started."""
    before = set(threading.enumerate())
    with a_health() as health:
        health.add(AScripted(), "it")
        assert (await health.areport()).ok
        assert set(threading.enumerate()) <= before


def test_one_health_serves_one_loop_after_another(clock: FakeClock) -> None:
    """Each of them in its turn runs the checks."""
    checked = AScripted()
    with a_health(clock=clock, ttl=1.0) as health:
        health.add(checked, "it")
        for _ in range(5):
            clock.advance(60.0)
            assert asyncio.run(health.areport()).ok
        clock.advance(60.0)
        assert health.report().ok
    assert checked.runs == 6
    assert checked.threads[:5] == [threading.main_thread()] * 5
    assert checked.threads[5] is not threading.main_thread()


def test_loops_that_end_before_the_check_do_not_keep_it_from_ever_ending() -> None:
    """A loop for each request, and a check slower than the answer: it is found on a loop of ours then."""
    slow = AScripted()
    slow.is_held = True
    with a_health(answer_within=0.01) as health:
        health.add(slow, "slow")
        for _ in range(4):
            assert asyncio.run(health.areport()).result("slow").status is Status.UNKNOWN
        slow.is_held = False
        wait_until(lambda: asyncio.run(health.areport()).ok, "it is found")
        wait_until(lambda: states(health)["slow"] is Status.PASS, "it passes")
    assert slow.runs <= 4, "run again with each question"


def test_loop_that_stands_still_with_a_run_on_it_is_given_up() -> None:
    """As with `run_until_complete` now and then: after its timeout the check is run elsewhere."""
    slow = AScripted()
    slow.is_held = True
    loop = asyncio.new_event_loop()
    with a_health(timeout=0.05, ttl=0.01, answer_within=0.01) as health:
        health.add(slow, "slow")
        loop.run_until_complete(health.areport())
        slow.is_held = False
        wait_until(lambda: health.report().result("slow").status is Status.PASS, "it passes")
        assert slow.loops[0] is loop
        assert slow.loops[-1] is not loop
        loop.run_until_complete(asyncio.sleep(0.01))  # what was begun there ends, and counts no more
        assert health.report().result("slow").status is Status.PASS
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_loop_closed_with_a_run_on_it_loses_nothing() -> None:
    """The run is cancelled with everything else there, and begun anew by the next who asks."""
    checked = AScripted()
    checked.is_held = True
    with a_health() as health:
        health.add(checked, "it")

        async def ask_and_go() -> None:
            question = asyncio.create_task(health.areport())
            await await_until(lambda: checked.runs > 0, "it runs")
            question.cancel()

        asyncio.run(ask_and_go())
        assert checked.cancelled == 1
        assert states(health)["it"] is Status.UNKNOWN
        checked.is_held = False
        assert asyncio.run(health.areport()).ok


async def test_eager_tasks_are_tasks() -> None:
    """With Python's eager task factory a check may be done before anybody can wait for it."""
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("Python 3.12 has it")
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        with a_health() as health:
            quick, slow = AScripted(), AScripted()
            slow.is_held = True
            health.add(quick, "quick")
            health.add(slow, "slow")
            loop.call_later(0.01, setattr, slow, "is_held", False)
            assert (await health.areport()).ok
    finally:
        loop.set_task_factory(None)
