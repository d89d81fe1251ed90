"""What policies and pools see of real traffic, in a report: nobody is probed for it, and who judges what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.health.scripted import AScripted, Scripted, a_health, states
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    Cache,
    CircuitBreaker,
    CircuitOpenError,
    ConnectionPool,
    Pipeline,
    RateLimiter,
    Retry,
    Timeout,
)
from resilient.health import Finding, Health, Status, Witness
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


class Seen:
    """A witness that tells what it is told."""

    kind = "seen"

    def __init__(self, name: str, finding: Any = None) -> None:
        self.name = name
        self.answer = Finding(Status.PASS) if finding is None else finding
        self.asked = 0

    def finding(self) -> Any:
        """Tell it."""
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Growing(Seen):
    """One through which a call goes between any two looks."""

    def finding(self) -> Any:
        """Tell one more."""
        return replace(super().finding(), calls=self.asked)


def names(health: Health) -> list[tuple[str, str]]:
    """Return what is watched, by kind and name."""
    return [(result.kind, result.name) for result in health.latest().results]


# What can be watched


def test_policies_pipelines_pools_and_functions_are_watched() -> None:
    """Each of their parts that sees traffic, once; a function stands for the policies on it."""
    breaker, bulkhead = CircuitBreaker("payments"), Bulkhead("payments", 3)
    limiter, cache = RateLimiter("10/second", name="payments"), Cache("prices", ttl=60.0)
    pool = ConnectionPool(object, name="orders", max_size=1)
    pipeline = Pipeline(Retry(on=ValueError), breaker, bulkhead)

    @pipeline
    def pay() -> None:
        """Pay."""

    @limiter
    @breaker
    def refund() -> None:
        """Refund."""

    health = Health("shop")
    health.watch(pipeline, cache, pool)
    assert names(health) == [
        ("retry", "retry"),
        ("circuit_breaker", "payments"),
        ("bulkhead", "payments"),
        ("cache", "prices"),
        ("connection_pool", "orders"),
    ]
    health.watch(pay, refund, breaker)  # known, all but the limiter
    assert names(health)[5:] == [("rate_limiter", "payments")]
    assert health.report().status is Status.PASS
    pool.close()


def test_whatever_has_a_name_and_a_finding_is_watched() -> None:
    """That is the whole protocol."""
    seen = Seen("queue", Finding(Status.WARN, "long", 12, "orders", {"oldest": 3.0}))
    assert isinstance(seen, Witness)
    health = Health("shop")
    health.watch(seen)
    (result,) = health.report().results
    assert (result.kind, result.name, result.status, result.output) == ("seen", "queue", Status.WARN, "long")
    assert (result.value, result.unit, result.facts) == (12, "orders", {"oldest": 3.0})
    assert (result.age, result.critical, result.external, result.groups) == (0.0, False, True, frozenset())


# What it does to the groups


def test_open_breaker_warns_and_never_fails(clock: FakeClock) -> None:
    """The service has a fallback for that; an open breaker that makes all unready is an outage of its own."""
    breaker = CircuitBreaker("payments", fail_max=1, clock=clock)
    health = Health("shop")
    health.watch(breaker, groups=["ready"])
    with pytest.raises(ValueError, match="down"):
        breaker.call(_fail)
    with pytest.raises(CircuitOpenError):
        breaker.call(_fail)
    for group in ("ready", "all"):
        report = health.report(group)
        assert (report.status, report.http_status) == (Status.WARN, 200)
        assert report.result("payments").status is Status.WARN
    assert health.report("startup").results == ()


def _fail() -> None:
    raise ValueError("down")


def test_breaker_that_is_critical_fails() -> None:
    """Where somebody says that nothing works without it."""
    breaker = CircuitBreaker("payments")
    health = Health("shop")
    health.watch(breaker, critical=True)
    assert health.report("ready").ok
    assert [one.name for one in health.report("startup").results] == ["payments"]
    breaker.force_open(reason="maintenance of the bank")
    report = health.report("ready")
    assert (report.status, report.result("payments").status) == (Status.FAIL, Status.FAIL)
    breaker.resume()
    assert health.report("ready").ok


def test_last_words_hold_for_what_is_watched_already() -> None:
    """A pipeline was watched as a whole, and one of its parts is critical."""
    breaker = CircuitBreaker("payments")
    health = Health("shop")
    health.watch(breaker)
    health.watch(breaker, critical=True, groups=["ready"])
    assert len(health.latest().results) == 1
    breaker.force_open()
    assert not health.report("ready").ok
    health.watch(breaker)
    assert health.report("ready").results == ()


def test_failure_that_another_explains_is_unknown() -> None:
    """What is watched stands on checks, too."""
    with a_health() as health:
        health.add(Scripted(False), "network")
        health.watch(Seen("payments", Finding(Status.FAIL)), critical=True, depends_on=["network"])
        report = health.report("ready")
    assert {one.name: one.status for one in report.results} == {
        "network": Status.FAIL,
        "payments": Status.UNKNOWN,
    }
    assert report.status is Status.FAIL


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (RuntimeError("no idea"), Status.UNKNOWN),
        ("fine", Status.WARN),
        (None, Status.PASS),
        (Finding("splendid"), Status.WARN),  # type: ignore[arg-type]
    ],
    ids=["raises", "text", "pass", "splendid"],
)
def test_witness_that_fails_fails_no_report(answer: Any, status: Status) -> None:
    """It is told of like any."""
    health = Health("shop")
    health.watch(Seen("odd", answer))
    assert health.report().result("odd").status is status


def test_secrets_in_what_a_witness_tells_are_masked() -> None:
    """As in what a check does."""
    health = Health("shop")
    health.watch(Seen("raises", RuntimeError("postgres://shop:hunter2@db")))
    health.watch(Seen("tells", Finding(Status.WARN, "postgres://shop:hunter2@db")))
    assert "hunter2" not in repr(health.report())


def test_who_is_watched_is_taken_out_by_name() -> None:
    """With the check of the same name."""
    health = Health("shop")
    health.add(Scripted(), "payments")
    health.watch(CircuitBreaker("payments"))
    health.remove("payments")
    assert health.latest().results == ()


# Judged by traffic


@pytest.mark.parametrize("kind", [Scripted, AScripted])
def test_nobody_probes_what_traffic_judges(kind: Callable[[], Any], clock: FakeClock) -> None:
    """For as long as calls end there; then the check is run."""
    judge, check = Seen("payments", Finding(Status.WARN, "slow", calls=7)), kind()
    with a_health(clock=clock, ttl=1.0) as health:
        health.add(check, "bank", judged_by=judge)
        for calls in range(8, 13):
            judge.answer = Finding(Status.WARN, "slow", calls=calls)
            result = health.report().result("bank")
            assert (result.kind, result.status, result.output) == ("check", Status.WARN, "slow")
            clock.advance(1.0)
        assert check.runs == 0
        for runs in (1, 2):  # nothing has ended there since
            clock.advance(600.0)
            assert health.report().result("bank").status is Status.PASS
            assert check.runs == runs


def test_judge_is_asked_no_more_often_than_the_check_would_be(clock: FakeClock) -> None:
    """Its word is kept for the ttl."""
    judge = Seen("payments", Finding(Status.PASS, calls=7))
    with a_health(clock=clock, ttl=10.0) as health:
        health.add(Scripted(), "bank", critical=True, judged_by=judge)
        health.report("ready")
        asked = judge.asked
        for _ in range(10):
            assert health.report("ready").ok
        assert judge.asked == asked


def test_check_is_run_where_traffic_fails(clock: FakeClock) -> None:
    """Who else would find out that all is well again? What comes through is what readiness goes by."""
    judge, check = Seen("payments", Finding(Status.PASS, calls=7)), Scripted()
    with a_health(clock=clock, ttl=10.0) as health:
        health.add(check, "bank", critical=True, judged_by=judge)
        judge.answer = Finding(Status.FAIL, "open for 3 s", calls=9)
        assert health.report("ready").ok
        assert check.runs == 1
        check.answer = False
        clock.advance(600.0)
        judge.answer = Finding(Status.FAIL, "open for 13 s", calls=12)
        assert health.report("ready").status is Status.FAIL


def test_run_of_the_check_itself_is_no_traffic(clock: FakeClock) -> None:
    """It may go through the breaker that judges it."""
    breaker, runs = CircuitBreaker("bank", clock=clock), []
    with a_health(clock=clock, ttl=10.0) as health:
        health.add(breaker(lambda: runs.append(1)), "bank", judged_by=breaker)
        for count in range(1, 5):
            health.report()
            assert len(runs) == count
            clock.advance(600.0)


def test_judge_that_cannot_judge_is_refused() -> None:
    """At once: words that do nothing would be believed. A pool does not see what came of a loan."""
    pool = ConnectionPool(object, name="bank")
    with a_health() as health:
        for judge in (
            Bulkhead("bank", 3),
            RateLimiter("5/second"),
            Retry(on=OSError),
            Pipeline(Bulkhead("bank", 3)),
            pool,
            Seen("odd", RuntimeError("no idea")),
            Seen("odd", "fine"),
        ):
            with pytest.raises(
                ValueError, match="judged_by must see how calls end, as circuit breakers and "
            ):
                health.add(Scripted(), "bank", judged_by=judge)
        for judge in ("breaker", Timeout(3), Scripted()):
            with pytest.raises(TypeError, match="judged_by must be a policy, a pool, or whatever"):
                health.add(Scripted(), "bank", judged_by=judge)


def test_pipelines_and_functions_judge(clock: FakeClock) -> None:
    """Each by the first thing in it that sees how calls end."""
    guarded = Pipeline(Retry(on=OSError), CircuitBreaker("bank", fail_max=3))

    @guarded
    def ask() -> None: ...

    @AdaptiveThrottle("bank")
    def throttled() -> None: ...

    for judge, call in ((guarded, ask), (ask, ask), (throttled, throttled)):
        check = Scripted()
        with a_health(clock=clock, ttl=10.0) as health:
            health.add(check, "bank", judged_by=judge)
            for runs in (0, 0, 1):
                if not runs:
                    call()
                assert health.report().result("bank").status is Status.PASS
                assert check.runs == runs
                clock.advance(600.0)


def test_real_breaker_judges_what_its_calls_show(clock: FakeClock) -> None:
    """No check is run while calls go through it; when they have stopped, it is."""
    breaker, check = CircuitBreaker("bank", clock=clock), Scripted(False)
    with a_health(clock=clock, ttl=1.0) as health:
        health.add(check, "bank", judged_by=breaker)
        breaker.call(lambda: None)
        assert health.report().result("bank").status is Status.PASS
        assert check.runs == 0
        clock.advance(3_600.0)
        assert health.report().result("bank").status is Status.FAIL
        assert check.runs == 1


def test_judge_in_the_background_keeps_the_check_from_running() -> None:
    """That is where probes would be most."""
    judge, check = Growing("payments", Finding(Status.PASS, calls=0)), Scripted()
    with a_health() as health:
        health.add(check, "bank", judged_by=judge, interval=0.02)
        health.start()
        wait_until(lambda: judge.asked >= 3, "it is asked")
        assert states(health) == {"bank": Status.PASS}
        assert check.runs == 0
