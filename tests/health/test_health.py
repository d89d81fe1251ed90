"""Health, asked by threads: when checks run, how long anybody waits for them, and who is in which group."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from tests.health.scripted import AScripted, Scripted, a_health, states
from tests.support.waiting import wait_until

from resilient.health import Finding, Health, Status
from resilient.testing import FakeClock

SOON = 5.0  # seconds in which a slow machine answers what needs no waiting


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


# What is told


def test_service_without_checks_is_well() -> None:
    """In each of its groups."""
    health = Health("shop", "1.4.2")
    for group in ("live", "ready", "startup", "all"):
        report = health.report(group)
        assert (report.status, report.results, report.group) == (Status.PASS, (), group)
        assert (report.service, report.version, report.http_status) == ("shop", "1.4.2", 200)


def test_report_has_what_was_said_and_what_was_found(clock: FakeClock) -> None:
    """The time of the wall, the age by the clock."""
    finding = Finding(Status.WARN, "slow", 0.25, "s", {"role": "replica"})
    with a_health(clock=clock) as health:
        health.add(Scripted(), "network")
        health.add(
            lambda: finding, "postgres", critical=True, groups=["ready", "night"], depends_on=["network"]
        )
        before = datetime.now(UTC)
        report = health.report()
        clock.advance(2.0)
        result = health.latest().result("postgres")
    assert before <= report.at <= datetime.now(UTC)
    assert (result.status, result.output, result.value, result.unit) == (Status.WARN, "slow", 0.25, "s")
    assert result.facts == {"role": "replica"}
    assert (result.kind, result.critical, result.external) == ("check", True, True)
    assert (result.groups, result.depends_on) == ({"ready", "night"}, ("network",))
    assert (result.age, result.took, result.running_for) == (2.0, 0.0, None)
    assert result.at is not None
    assert abs((datetime.now(UTC) - result.at).total_seconds() - 2.0) < SOON
    assert health.latest().uptime == 2.0
    assert "shop" in repr(health)


def test_checks_are_told_in_the_order_in_which_they_were_registered() -> None:
    """Not in that in which they end."""
    with a_health() as health:
        for name in "cab":
            health.add(Scripted(), name)
        assert [result.name for result in health.report().results] == ["c", "a", "b"]


def test_decorated_function_is_the_function() -> None:
    """It can be called by itself, and registered again under another name."""
    health = Health("shop")

    @health.check("one")
    @health.check("two")
    def fine() -> bool:
        return True

    assert fine() is True
    assert set(states(health)) == {"one", "two"}


def test_object_brings_its_own_name_and_says_where_it_looks() -> None:
    """What is said at the registration counts more."""

    class Disk:
        name, external, kind = "disk", False, "disk"

        def __call__(self) -> None:
            """Find nothing."""

    health = Health("shop")
    disk = Disk()
    assert health.add(disk) is disk
    health.add(disk, "far away", external=True)
    own, other = health.report().results
    assert (own.name, own.external, own.kind, own.groups) == ("disk", False, "disk", {"ready"})
    assert (other.name, other.external) == ("far away", True)


# Together, each in its time


def test_checks_run_at_the_same_time() -> None:
    """Each of them waits until all have begun."""
    barrier = threading.Barrier(8)
    with a_health() as health:
        for number in range(8):
            health.add(lambda: barrier.wait(SOON) >= 0, f"check {number}")
        report = health.report()
    assert report.status is Status.PASS, report


def test_hanging_thread_holds_nobody_longer_than_its_timeout() -> None:
    """The answer says so; other checks have passed; the thread is not started twice."""
    hung = Scripted()
    with a_health(timeout=0.05) as health:
        health.add(hung, "hung", failed_ttl=0.01)
        health.add(Scripted(), "well")
        with hung.held():
            began = time.monotonic()
            report = health.report()
            assert time.monotonic() - began < SOON
            assert report.result("hung").status is Status.FAIL
            assert report.result("hung").output == "no answer within 0.05 s"
            assert report.result("well").status is Status.PASS
            for _ in range(20):
                health.report()
                time.sleep(0.001)
            assert hung.runs == 1
            running_for = health.latest().result("hung").running_for
            assert running_for is not None
            assert running_for > 0.05
        wait_until(lambda: health.report().result("hung").status is Status.PASS, "it is run again and passes")
        assert hung.runs == 2


def test_check_that_is_deaf_to_being_cancelled_holds_nobody() -> None:
    """It is cancelled at its time, not waited for, and not run beside itself."""
    deaf = AScripted(deaf=True)
    deaf.is_held = True
    with a_health(timeout=0.05, ttl=0.01) as health:
        health.add(deaf, "deaf")
        began = time.monotonic()
        assert health.report().result("deaf").output == "no answer within 0.05 s"
        wait_until(lambda: deaf.cancelled > 0, "it is cancelled")
        for _ in range(20):
            health.report()
        assert (deaf.runs, deaf.most) == (1, 1)
        assert time.monotonic() - began < SOON
        deaf.is_held = False
        wait_until(lambda: health.report().result("deaf").status is Status.PASS, "it is run again")


def test_nobody_waits_longer_than_the_answer_may_take() -> None:
    """Though the check may: what it has not found by then is unknown, and told by the next answer."""
    slow = Scripted()
    with a_health(answer_within=0.02) as health:
        health.add(slow, "slow", critical=True)
        with slow.held():
            assert health.report("ready").result("slow").output == "the first run is under way"
            assert not health.report("ready", within=0.0).ok  # nobody knows yet
            assert health.report("all").ok
        wait_until(lambda: health.report("ready").ok, "it is found")
        assert slow.runs == 1


def test_what_takes_long_has_the_time_it_needs_where_the_asker_has_it() -> None:
    """The words of the question count more than those of the service."""
    slow = Scripted()
    with a_health(answer_within=0.0) as health, ThreadPoolExecutor() as threads:
        health.add(slow, "slow")
        with slow.held():
            assert health.report().result("slow").status is Status.UNKNOWN
            patient = threads.submit(health.report, within=SOON)
            assert not patient.done()
        assert patient.result(SOON).result("slow").status is Status.PASS


def test_there_are_so_many_threads_at_most() -> None:
    """The others wait in the line."""
    held = [Scripted() for _ in range(5)]
    running: Callable[[], int] = lambda: sum(one.at_once for one in held)  # noqa: E731
    with a_health(max_threads=2, answer_within=0.0) as health:
        for number, one in enumerate(held):
            health.add(one, f"check {number}")
        with held[0].held(), held[1].held():
            health.report()
            wait_until(lambda: running() == 2, "two run")
            health.report()
            assert running() == 2
            assert sum(one.runs for one in held) == 2
        wait_until(lambda: health.report().status is Status.PASS, "all are found")
        assert [one.runs for one in held] == [1] * 5


def test_time_of_a_check_is_its_own_and_not_that_of_those_before_it() -> None:
    """One thread for all, and the first takes longer than any other may: they wait, and have not failed."""
    first = Scripted()
    with a_health(max_threads=1) as health, ThreadPoolExecutor(1) as threads:
        health.add(first, "first")
        for number in range(5):
            health.add(Scripted(), f"check {number}", timeout=0.2)
        with first.held():
            asked = threads.submit(health.report)
            time.sleep(0.25)
        report = asked.result(SOON)
    assert {result.status for result in report.results} == {Status.PASS}, report


def test_checks_for_which_there_was_no_thread_have_not_failed() -> None:
    """Nobody knows how they are doing, and why is told; one thread is free, and they are found."""
    hung, starved = Scripted(), Scripted()
    with a_health(max_threads=1, timeout=0.05, answer_within=0.2) as health:
        health.add(hung, "hung")
        health.add(starved, "starved")
        with hung.held():
            for _ in range(2):
                report = health.report()
                assert report.result("hung").status is Status.FAIL
                assert report.result("starved").status is Status.UNKNOWN
                assert "thread" in report.result("starved").output
        wait_until(lambda: health.report().result("starved").status is Status.PASS, "it is found")
        assert starved.runs == 1


# How often


def test_what_was_found_is_kept_for_the_ttl(clock: FakeClock) -> None:
    """Then the next question has it run again, and is answered with what was found last."""
    checked = Scripted()
    with a_health(clock=clock, ttl=5.0, answer_within=0.0) as health:
        health.add(checked, "it")
        health.report(within=SOON)
        for _ in range(50):
            clock.advance(0.0999)
            health.report()
        assert checked.runs == 1
        checked.answer = False
        clock.advance(0.01)
        with checked.held():
            report = health.report(within=SOON)  # does not wait
            assert (report.result("it").status, report.result("it").age) == (
                Status.PASS,
                pytest.approx(5.005),
            )
            assert checked.begun.wait(SOON)
            assert health.latest().result("it").running_for == 0.0
        wait_until(lambda: states(health) == {"it": Status.FAIL}, "it is found")
        assert checked.runs == 2


def test_failure_is_kept_for_less(clock: FakeClock) -> None:
    """And for the ttl, where that is less still."""
    for words, kept in (({"ttl": 60.0}, 5.0), ({"ttl": 2.0}, 2.0), ({"ttl": 60.0, "failed_ttl": 7.0}, 7.0)):
        failing = Scripted(False)
        with a_health(clock=clock) as health:
            health.add(failing, "it", **words)
            health.report()
            clock.advance(kept - 0.25)
            health.report()
            assert failing.runs == 1, words
            clock.advance(0.5)
            health.report()
            wait_until(lambda failing=failing: failing.runs == 2, "it is run again")


def test_failure_that_is_kept_for_longer_is_believed_for_as_long(clock: FakeClock) -> None:
    """It does not turn into nobody knows what before anybody looks again."""
    with a_health(clock=clock, ttl=5.0, timeout=1.0) as health:
        health.add(Scripted(False), "it", failed_ttl=100.0)
        health.report()
        clock.advance(99.0)
        assert health.report().result("it").status is Status.FAIL


def test_what_is_too_old_is_waited_for(clock: FakeClock) -> None:
    """Nobody asked for a minute: the next one hears how it stands now, not how it stood."""
    checked = Scripted()
    with a_health(clock=clock, timeout=1.0) as health:
        health.add(checked, "it")
        health.report()
        checked.answer = False
        clock.advance(60.0)
        assert health.report().result("it").status is Status.FAIL


def test_hundred_at_once_get_one_run() -> None:
    """Threads that ask while it runs wait for that run."""
    checked = Scripted()
    with a_health() as health, ThreadPoolExecutor(32) as threads:
        health.add(checked, "it")
        with checked.held():
            asked = [threads.submit(health.report) for _ in range(100)]
            assert checked.begun.wait(SOON)
        assert {one.result(SOON).status for one in asked} == {Status.PASS}
    assert checked.runs == 1


def test_latest_waits_for_nothing_and_begins_what_is_due() -> None:
    """It is found by and by."""
    checked = Scripted()
    with a_health() as health:
        health.add(checked, "it")
        with checked.held():
            assert health.latest().result("it").status is Status.UNKNOWN
            assert checked.begun.wait(SOON)
        wait_until(lambda: health.latest().result("it").status is Status.PASS, "it is found")
        assert checked.runs == 1


def test_only_what_is_asked_for_is_run() -> None:
    """With what it stands on: a probe for liveness has nobody look at the database."""
    checks = {name: Scripted() for name in ("network", "postgres", "loop")}
    with a_health() as health:
        health.add(checks["network"], "network")
        health.add(checks["postgres"], "postgres", critical=True, depends_on=["network"])
        health.add(checks["loop"], "loop", external=False, groups=["live"])
        assert [one.name for one in health.report("live").results] == ["loop"]
        assert {name: one.runs for name, one in checks.items()} == {"network": 0, "postgres": 0, "loop": 1}
        assert [one.name for one in health.report("ready").results] == ["network", "postgres"]
        assert {one.runs for one in checks.values()} == {1}


# Hysteresis, grace, staleness: that they are wired; `test_record` has the rules


def test_hysteresis_from_end_to_end(clock: FakeClock) -> None:
    """As the service is configured, unless the check says otherwise."""
    flapping = Scripted()
    seen = []
    with a_health(clock=clock, ttl=1.0, fail_after=2, pass_after=2) as health:
        health.add(flapping, "it", critical=True)
        health.add(flapping, "nervous", fail_after=1, pass_after=1)
        for answer in (True, False, False, True, True):
            flapping.answer = answer
            clock.advance(60.0)
            report = health.report("ready")
            seen.append((report.result("it").status.value, report.status.value))
            nervous = health.report().result("nervous").status
            assert nervous is (Status.PASS if answer else Status.FAIL)
    assert seen == [
        ("pass", "pass"),
        ("warn", "warn"),
        ("fail", "fail"),
        ("fail", "fail"),
        ("pass", "pass"),
    ]


def test_what_was_found_once_is_not_told_for_ever(clock: FakeClock) -> None:
    """Closed, nobody finds anything new: after a while the old findings are not believed."""
    with a_health(clock=clock, ttl=5.0, timeout=1.0) as health:
        health.add(Scripted(), "it", critical=True)
        health.add(Scripted(), "patient", stale_after=100.0)
        assert health.report().ok
        health.close()
        clock.advance(17.0)
        report = health.report()
        assert (report.result("it").status, report.result("it").stale) == (Status.UNKNOWN, True)
        assert report.result("it").output == "not known since 17 s"
        assert report.result("patient").status is Status.PASS
        assert not health.report("ready").ok


# What comes and goes


def test_removed_check_counts_no_more_and_its_run_ends_by_itself() -> None:
    """A new one of the same name begins anew."""
    slow = Scripted(False)
    with a_health(answer_within=0.0) as health:
        health.add(slow, "it")
        with slow.held():
            health.report()
            assert slow.begun.wait(SOON)
            health.remove("it")
            assert health.report().results == ()
            health.add(Scripted(), "it")
            assert health.report(within=SOON).result("it").status is Status.PASS
        wait_until(lambda: not slow.at_once, "the old one ends")
        assert states(health) == {"it": Status.PASS}


def test_closed_it_runs_nothing_and_answers_at_once(clock: FakeClock) -> None:
    """With what was found last; closing twice is closing once."""
    checked = Scripted()
    with Health("shop", clock=clock) as health:
        health.add(checked, "it")
        health.report()
    clock.advance(6.0)
    health.close()
    assert health.report().result("it").status is Status.PASS
    health.start()
    assert health.latest().result("it").age == 6.0
    assert checked.runs == 1
