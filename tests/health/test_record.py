"""What one check has found, and what of it counts: each rule by itself, on times that are just numbers."""

from __future__ import annotations

from typing import Any

import pytest

from resilient.engine.finding import Finding, Status
from resilient.health.record import Record, Rules

GOOD = Finding(Status.PASS)
SO_SO = Finding(Status.WARN, "slow")
BAD = Finding(Status.FAIL, "refused")
WHO_KNOWS = Finding(Status.UNKNOWN, "not asked")


def record(**words: Any) -> Record:
    """Return the record of a check whose runs may take 1 s, and which is run every 5 s."""
    rules: dict[str, Any] = {
        "timeout": 1.0,
        "ttl": 5.0,
        "failed_ttl": 2.0,
        "fail_after": 1,
        "pass_after": 1,
        "grace": 0.0,
        "stale_after": 16.0,
        "background": False,
    }
    return Record(Rules(**rules | words), 0.0)


def found(of: Record, *findings: Finding, now: float = 0.0) -> None:
    """Have runs find that, one after the other."""
    for finding in findings:
        of.begin(now)
        of.end(finding, now)


# What was found


def test_before_the_first_run_nothing_is_known() -> None:
    """Nor has it failed; a run is due, and worth waiting for."""
    fresh = record()
    standing = fresh.standing(3.0)
    assert (standing.status, standing.output) == (Status.UNKNOWN, "not looked at yet")
    assert (standing.finding, standing.age, standing.stale) == (None, None, False)
    assert fresh.is_due(3.0)
    assert fresh.is_wanting(3.0)


def test_while_the_first_run_is_under_way_that_is_told() -> None:
    """It is not due a second time."""
    running = record()
    running.begin(0.0)
    assert running.standing(0.5).output == "the first run is under way"
    assert not running.is_due(0.5)
    assert running.is_wanting(0.5)


@pytest.mark.parametrize("finding", [GOOD, SO_SO, BAD, WHO_KNOWS], ids=lambda finding: finding.status)
def test_first_finding_counts_at_once(finding: Finding) -> None:
    """Its output, its age and how long it took are told."""
    first = record()
    first.begin(1.0)
    first.end(finding, 1.25)
    standing = first.standing(3.25)
    assert (standing.status, standing.output) == (finding.status, finding.output)
    assert standing.finding is finding
    assert (standing.age, first.took) == (2.0, 0.25)


def test_finding_is_kept_for_the_ttl_and_a_failure_for_less() -> None:
    """To the tick: at the ttl a run is due."""
    kept = record()
    found(kept, GOOD)
    assert (kept.is_due(4.99), kept.is_due(5.0)) == (False, True)
    found(kept, BAD, now=10.0)
    assert (kept.is_due(11.99), kept.is_due(12.0)) == (False, True)


def test_nobody_waits_for_a_refresh_until_what_is_known_is_older_than_it_should_get() -> None:
    """A ttl and the time that a run may take."""
    kept = record()
    found(kept, GOOD)
    assert (kept.is_wanting(6.0), kept.is_wanting(6.01)) == (False, True)


def test_what_nobody_refreshed_is_not_believed_for_ever() -> None:
    """A pass of long ago is no pass; what it was is told."""
    old = record()
    found(old, SO_SO)
    assert not old.standing(16.0).stale
    standing = old.standing(17.0)
    assert (standing.status, standing.stale, standing.age) == (Status.UNKNOWN, True, 17.0)
    assert standing.output == "not known since 17 s: slow"


def test_clock_that_goes_back_makes_no_negative_age() -> None:
    """Whatever clock was passed."""
    odd = record()
    found(odd, GOOD, now=10.0)
    assert odd.standing(9.0).age == 0.0


def test_time_of_a_run_begins_with_it_and_not_while_it_waits_for_a_thread() -> None:
    """It is under way, and not due again; that it waits is no failure, however long."""
    waiting = record()
    waiting.queue(0.0)
    assert not waiting.is_due(0.0)
    assert waiting.standing(3.0).output == "waiting for a free thread or its event loop"
    assert (waiting.is_stuck(0.99), waiting.is_stuck(1.0)) == (False, True)
    assert waiting.failures == 0
    waiting.begin(3.0)
    assert not waiting.is_stuck(3.99)
    waiting.end(GOOD, 3.5)
    assert waiting.standing(3.5).status is Status.PASS
    assert waiting.took == 0.5


# Hysteresis


def test_check_that_has_passed_fails_only_after_so_many_in_a_row() -> None:
    """Until then it warns, and says how far it has come."""
    damped = record(fail_after=3)
    found(damped, GOOD, BAD)
    assert damped.standing(0.0)[:2] == (Status.WARN, "failing, 1 of 3 in a row: refused")
    found(damped, BAD)
    assert damped.standing(0.0)[:2] == (Status.WARN, "failing, 2 of 3 in a row: refused")
    found(damped, BAD)
    assert damped.standing(0.0)[:2] == (Status.FAIL, "refused")
    assert damped.failures == 3


def test_one_pass_in_between_begins_the_count_anew() -> None:
    """A flapping dependency never fails."""
    damped = record(fail_after=2)
    for _ in range(5):
        found(damped, GOOD, BAD)
        assert damped.standing(0.0).status is Status.WARN


def test_check_that_has_never_passed_needs_fail_only_once() -> None:
    """There is no good news to hold on to."""
    damped = record(fail_after=3)
    found(damped, BAD)
    assert damped.standing(0.0).status is Status.FAIL


def test_failed_check_passes_only_after_so_many_in_a_row() -> None:
    """Until then it fails, and says how far it has come; a failure begins the count anew."""
    damped = record(pass_after=2)
    found(damped, GOOD, BAD, GOOD)
    assert damped.standing(0.0)[:2] == (Status.FAIL, "passing again, 1 of 2 in a row")
    found(damped, BAD, GOOD)
    assert damped.standing(0.0).status is Status.FAIL
    found(damped, GOOD)
    assert damped.standing(0.0).status is Status.PASS


def test_first_pass_ever_counts_at_once() -> None:
    """A service that comes up does not wait for several passes."""
    damped = record(pass_after=3)
    found(damped, BAD, GOOD)
    assert damped.standing(0.0).status is Status.PASS


def test_warning_is_no_failure() -> None:
    """It does its work: that ends a row of failures."""
    damped = record(fail_after=2)
    found(damped, GOOD, BAD, SO_SO, BAD)
    assert damped.standing(0.0).status is Status.WARN
    assert damped.failures == 1


def test_what_says_nothing_neither_begins_nor_ends_a_row() -> None:
    """Nobody was asked."""
    damped = record(fail_after=2)
    found(damped, GOOD, BAD, WHO_KNOWS)
    assert damped.standing(0.0).status is Status.UNKNOWN
    found(damped, BAD)
    assert damped.standing(0.0).status is Status.FAIL


# Grace


def test_in_its_grace_a_check_that_has_not_passed_is_starting() -> None:
    """It counts as failed the moment the grace is over, and nothing else need happen for that."""
    young = record(grace=3.0)
    found(young, BAD)
    assert young.standing(2.99)[:2] == (Status.UNKNOWN, "starting: refused")
    assert young.standing(3.0)[:2] == (Status.FAIL, "refused")


def test_grace_ends_with_the_first_pass() -> None:
    """What worked and works no longer is not starting."""
    young = record(grace=100.0)
    found(young, BAD, GOOD, BAD)
    assert young.standing(1.0).status is Status.FAIL


# Runs that take too long


def test_run_fails_the_moment_its_time_is_up_though_it_goes_on() -> None:
    """Whoever looks counts it."""
    slow = record()
    found(slow, GOOD)
    slow.begin(10.0)
    assert slow.standing(10.99).status is Status.PASS
    standing = slow.standing(11.0)
    assert (standing.status, standing.output, standing.age) == (Status.FAIL, "no answer within 1 s", 0.0)
    assert slow.is_stuck(11.0)
    assert slow.took is None


def test_hung_run_fails_again_and_again_as_often_as_it_would_have_been_run() -> None:
    """So hysteresis has its row of failures, and the failure is never old."""
    hung = record(fail_after=3)
    found(hung, GOOD)
    hung.begin(10.0)
    assert hung.standing(11.0).output == "failing, 1 of 3 in a row: no answer within 1 s"
    assert hung.standing(12.9).output == "failing, 1 of 3 in a row: no answer within 1 s"
    assert hung.standing(13.0).output == "failing, 2 of 3 in a row: no answer within 1 s"
    assert hung.standing(15.0).status is Status.FAIL
    standing = hung.standing(10_000.0)
    assert (standing.status, standing.stale) == (Status.FAIL, False)
    assert hung.failures == 1 + int((10_000.0 - 11.0) / 2.0)


def test_nobody_waits_for_a_hung_run_a_second_time() -> None:
    """What is known of it is known: it hangs."""
    hung = record()
    hung.begin(0.0)
    assert hung.is_wanting(0.9)
    assert not any(hung.is_wanting(at / 10) for at in range(10, 500))


def test_what_comes_late_is_dropped() -> None:
    """It was counted as failed; that it passed in the end says nothing of now, but the next run is due."""
    late = record()
    late.begin(0.0)
    late.end(GOOD, 1.0)
    assert late.standing(1.0)[:2] == (Status.FAIL, "no answer within 1 s")
    assert not late.is_due(2.9)
    assert late.is_due(3.0)
    assert late.since is None


def test_what_comes_in_time_to_the_tick_counts() -> None:
    """The limit itself is too late."""
    just = record()
    just.begin(0.0)
    just.end(GOOD, 0.999)
    assert just.standing(1.0).status is Status.PASS


def test_run_that_was_cancelled_from_outside_says_nothing() -> None:
    """It is due again at once, and what was known stays."""
    cut = record()
    found(cut, SO_SO)
    cut.begin(5.0)
    cut.abandon()
    assert cut.is_due(5.0)
    assert cut.standing(5.0).status is Status.WARN
    assert cut.failures == 0


def test_abandoned_after_its_time_it_stays_failed() -> None:
    """The next run begins its own count."""
    cut = record()
    cut.begin(0.0)
    cut.look(1.5)
    cut.abandon()
    assert cut.standing(1.5).status is Status.FAIL
    assert not cut.is_stuck(1.5)
    cut.begin(3.0)
    assert not cut.is_stuck(3.0)
    assert cut.failures == 1
