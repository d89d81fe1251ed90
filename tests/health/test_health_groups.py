"""Who is in which group, what starting and draining do to the answer, and what liveness must not look at."""

from __future__ import annotations

import pytest
from tests.health.scripted import Scripted, a_health

from resilient.health import Health, Status
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


# Groups


def test_who_is_in_which_group_unless_told() -> None:
    """Local: ready. External and critical: ready and startup. Else only in all."""
    health = Health("shop")
    health.add(Scripted(), "local", external=False)
    health.add(Scripted(), "vital", critical=True)
    health.add(Scripted(), "useful")
    health.add(Scripted(), "nightly", groups=["night"])
    health.add(Scripted(), "nowhere", external=False, groups=[])
    groups = {one.name: set(one.groups) for one in health.latest().results}
    assert groups == {
        "local": {"ready"},
        "vital": {"ready", "startup"},
        "useful": set(),
        "nightly": {"night"},
        "nowhere": set(),
    }
    assert health.groups == {"live", "ready", "startup", "all", "night"}


@pytest.mark.parametrize(
    ("groups", "critical"),
    [
        (None, False),
        (["night"], False),
        (["ready"], True),
        (["startup", "night"], True),
        (["live"], True),
    ],
)
def test_check_is_critical_where_it_was_put_into_a_gate(groups: list[str] | None, critical: bool) -> None:
    """Whoever names the group of a probe means it, unless he says that it is not critical."""
    health = Health("shop")
    health.add(Scripted(), "it", external=False, groups=groups)
    health.add(Scripted(), "warns", external=False, groups=groups, critical=False)
    assert [one.critical for one in health.latest().results] == [critical, False]


def test_unknown_group_is_a_key_error() -> None:
    """From every question; a group of the user's ends with its last check."""
    health = Health("shop")
    for ask in (health.report, health.latest):
        with pytest.raises(KeyError, match="night"):
            ask("night")
    health.add(Scripted(), "it", groups=["night"])
    assert health.report("night").ok
    health.remove("it")
    with pytest.raises(KeyError, match="night"):
        health.report("night")


# Liveness


def test_external_check_is_refused_where_life_and_death_are_decided() -> None:
    """The message says what would happen, and what to do instead; nothing was registered."""
    health = Health("shop")
    with pytest.raises(
        ValueError, match="groups of the external check 'postgres' must not name 'live'"
    ) as no:
        health.add(Scripted(), "postgres", groups=["ready", "live"])
    for words in ("killed and started again", "'ready'", "external=False", "live_anyway='the reason'"):
        assert words in str(no.value)
    assert health.report().results == ()


def test_liveness_is_refused_what_is_outside_behind_what_is_inside() -> None:
    """Through any number of steps: else a lost database would kill every process after all."""
    health = Health("shop")
    health.add(Scripted(False), "network")
    health.add(Scripted(), "pool", external=False, depends_on=["network"])
    with pytest.raises(ValueError, match="'network'"):
        health.add(Scripted(), "loop", external=False, groups=["live"], depends_on=["pool"])
    assert health.report("live").ok
    assert health.report("live").results == ()


def test_watched_policy_is_refused_for_liveness() -> None:
    """It tells of what is outside, as a check does."""

    class Breaker:
        name = "payments"

        def finding(self) -> None:
            """Tell nothing."""

    with pytest.raises(ValueError, match="'payments' must not name 'live'"):
        Health("shop").watch(Breaker(), groups=["live"])


def test_external_check_decides_about_liveness_where_somebody_says_why() -> None:
    """And so does what it stands on."""
    health = Health("shop")
    health.add(Scripted(False), "disk array")
    why = "the disk array is mounted, and comes back with the process only"
    health.add(Scripted(False), "files", groups=["live"], live_anyway=why, depends_on=["disk array"])
    report = health.report("live")
    assert report.status is Status.FAIL
    assert report.result("files").behind == ("disk array",)


def test_critical_dependency_that_is_lost_leaves_liveness_as_it_is() -> None:
    """A lost database makes nobody ready, and kills nobody."""
    with a_health() as health:
        health.add(Scripted(False), "postgres", critical=True)
        health.add(Scripted(), "loop", external=False, groups=["live", "ready"])
        assert {group: health.report(group).ok for group in ("live", "ready")} == {
            "live": True,
            "ready": False,
        }


# Starting


def test_service_that_starts_is_not_ready_and_lives(clock: FakeClock) -> None:
    """In its grace a failure is no failure, but nor is it a pass."""
    database = Scripted(False)
    with a_health(clock=clock, ttl=1.0, grace=30.0) as health:
        health.add(database, "postgres", critical=True)
        report = health.report("startup")
        assert (report.status, report.result("postgres").output) == (
            Status.FAIL,
            "starting: the check returned False",
        )
        assert health.report("live").status is Status.PASS
        assert health.report("all").status is Status.WARN
        clock.advance(30.0)
        assert health.report("all").status is Status.FAIL


def test_startup_is_passed_once_and_for_all(clock: FakeClock) -> None:
    """A database that is lost later is a matter of readiness: restarting helps nobody."""
    database = Scripted(False)
    with a_health(clock=clock, ttl=1.0) as health:
        health.add(database, "postgres", critical=True)
        assert not health.report("startup").ok
        database.answer = True
        clock.advance(60.0)
        assert health.report("startup").ok
        database.answer = False
        clock.advance(60.0)
        assert health.report("startup").ok
        assert not health.report("ready").ok


def test_service_is_not_ready_before_it_has_come_up(clock: FakeClock) -> None:
    """What it needs only once, such as warm caches, holds it back; then it does not count any more."""
    warm = Scripted(False)
    with a_health(clock=clock, ttl=1.0) as health:
        health.add(warm, "warm", external=False, groups=["startup"])
        assert not health.report("ready").ok
        assert [one.name for one in health.report("ready").results] == ["warm"]
        warm.answer = True
        clock.advance(60.0)
        assert health.report("ready").ok
        warm.answer = False
        clock.advance(60.0)
        assert health.report("ready").ok
        assert health.report("ready").results == ()


# Draining


def test_draining_service_is_not_ready_and_lives() -> None:
    """The reason is told; nothing is wrong with its checks."""
    with a_health() as health:
        health.add(Scripted(), "it", critical=True, groups=["ready", "night"])
        health.add(Scripted(), "loop", external=False, groups=["live"])
        health.drain("SIGTERM")
        assert health.draining
        assert {group: health.report(group).ok for group in sorted(health.groups)} == {
            "all": False,
            "live": True,
            "night": False,
            "ready": False,
            "startup": True,
        }
        report = health.report("ready")
        assert (report.output, report.http_status) == ("draining: SIGTERM", 503)
        assert report.result("it").status is Status.PASS
        assert health.report("live").output == ""
        health.resume()
        assert not health.draining
        assert health.report("ready").ok
        assert health.report("ready").output == ""


def test_service_that_drains_before_it_has_come_up_has_not_come_up() -> None:
    """For its own reasons: draining is none of them."""
    with a_health() as health:
        health.add(Scripted(False), "postgres", critical=True)
        health.drain()
        report = health.report("startup")
        assert (report.ok, report.output) == (False, "")
        assert health.report("ready").output == "draining"


def test_draining_needs_no_reason() -> None:
    """And no checks."""
    health = Health("shop")
    health.drain()
    assert health.report("ready").output == "draining"
    assert not health.latest("ready").ok
