"""What a check has of whoever asks, or registered it: nothing but its own time, and that it is a probe."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from tests.health.scripted import Scripted, a_health

from resilient import Priority, current_priority, deadline, priority, time_left
from resilient.health import Finding, Health, Status
from resilient.testing import FakeClock

SOON = 5.0


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


def register(health: Health, see: Callable[[], Any], *, name: str = "it", **words: Any) -> None:
    """Register *see* as a function and as a coroutine function."""

    async def asee() -> None:
        see()

    health.add(see, name, **words)
    health.add(asee, f"{name}, too", **words)


def whole(seconds: float | None) -> int:
    """Return *seconds* to the next ten: a slow machine has used some of them."""
    return 10 * math.ceil((seconds or 0.0) / 10.0)


def test_deadline_of_the_asker_does_not_reach_the_check() -> None:
    """It has its own time, all of it."""
    left: list[float | None] = []
    with a_health(timeout=20.0) as health:
        register(health, lambda: left.append(time_left()))
        with deadline(60.0):
            health.report()
        health.remove("it")
        health.remove("it, too")
        register(health, lambda: left.append(time_left()), timeout=10.0)
        with deadline(0.5):
            health.report()
    assert [whole(one) for one in left] == [20, 20, 10, 10]


async def test_nor_does_that_of_a_task() -> None:
    """Which may be over, and cut the task off, while the check goes on."""
    left: list[float | None] = []
    with a_health(timeout=20.0) as health:
        register(health, lambda: left.append(time_left()))
        async with deadline(0.5):
            await health.areport()
    assert [whole(one) for one in left] == [20, 20]


def test_deadline_under_which_it_was_registered_does_not_hold_for_the_check() -> None:
    """Starting up may have had little time."""
    left: list[float | None] = []
    with a_health(timeout=20.0) as health, deadline(0.5):
        register(health, lambda: left.append(time_left()))
        health.report()
    assert [whole(one) for one in left] == [20, 20]


def test_check_is_a_probe_whoever_asks() -> None:
    """So a bulkhead keeps a slot for it, and the service that it asks knows, too."""
    seen: list[Priority] = []
    with a_health() as health, priority(Priority.SHEDDABLE):
        register(health, lambda: seen.append(current_priority()))
        health.report()
    assert seen == [Priority.PROBE] * 2


def test_check_has_the_context_in_which_it_was_registered() -> None:
    """A copy of it for each run; what the asker set is the asker's."""
    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen: list[str] = []

    def see() -> None:
        seen.append(who.get())
        who.set("the run before")

    with a_health() as health:
        who.set("whoever registered")
        register(health, see)
        who.set("whoever asks")
        health.report()
        register(health, see, name="another")
        health.report()
    assert seen == ["whoever registered"] * 2 + ["whoever asks"] * 2


# Checks that ask


def test_check_that_asks_its_own_health_is_answered_at_once() -> None:
    """With what is known: to wait for itself would take for ever."""
    seen: list[Status] = []
    with a_health() as health:
        health.add(Scripted(), "well")
        health.report()

        @health.check("recursive")
        def ask() -> None:
            seen.append(health.report().result("well").status)
            seen.append(health.report().result("recursive").status)

        @health.check("recursive, too")
        async def aask() -> None:
            report = await health.areport()
            seen.append(report.result("recursive, too").status)

        began = time.monotonic()
        report = health.report()
        assert time.monotonic() - began < SOON
    assert {result.status for result in report.results} == {Status.PASS}
    assert sorted(seen) == [Status.PASS, Status.UNKNOWN, Status.UNKNOWN]


def test_two_healths_that_check_each_other_end_quickly(clock: FakeClock) -> None:
    """From whichever side one asks, in threads and in tasks."""
    with a_health(clock=clock, ttl=1.0) as one, a_health(clock=clock, ttl=1.0) as other:

        @one.check("other")
        def other_is_well() -> bool:
            return other.report().ok

        @other.check("one")
        async def one_is_well() -> bool:
            return (await one.areport()).ok

        for ask in (one.report, other.report, lambda: asyncio.run(one.areport())):
            began = time.monotonic()
            assert ask().ok
            assert time.monotonic() - began < SOON
            clock.advance(60.0)


def test_check_of_one_asks_another_and_waits_for_that() -> None:
    """Only its own questions are answered at once."""
    slow = Scripted()
    with a_health() as inner, a_health() as outer:
        inner.add(slow, "slow")
        outer.add(lambda: inner.report().result("slow").status, "inner")
        with slow.held():
            thread = threading.Thread(target=outer.report)
            thread.start()
            assert slow.begun.wait(SOON)
        thread.join(SOON)
        assert outer.latest().result("inner").status is Status.PASS


def test_background_that_was_begun_by_a_check_of_another_waits_like_any() -> None:
    """It is inside nobody."""
    seen: list[bool] = []
    with a_health() as outer, a_health() as inner:
        slow = Scripted()
        outer.add(slow, "slow")

        @inner.check("asks back", interval=60.0)
        def ask() -> None:
            seen.append(outer.report("slow").ok)

        outer.remove("slow")
        outer.add(lambda: inner.start(), "begins it", groups=["begins"])  # noqa: PLW0108
        outer.add(slow, "slow", groups=["slow"])
        with slow.held():
            outer.report("begins")
            assert slow.begun.wait(SOON)
            assert not seen, "it did not wait"
        inner.report(within=SOON)
    assert seen == [True]


async def test_check_may_spawn_tasks_and_have_blocks() -> None:
    """It is a task like any: groups, timeouts and deadlines work in it."""

    async def look() -> Finding:
        async with asyncio.timeout(SOON), deadline(SOON), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "well"))
        return Finding(Status.PASS, task.result())

    with a_health() as health:
        health.add(look, "it")
        assert (await health.areport()).result("it").output == "well"
