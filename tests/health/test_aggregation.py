"""From single results to the status of a group: examples, and graphs at random against a naive model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.engine.finding import Status
from resilient.health import Health, Report, Result
from resilient.health.aggregation import behind_failures, overall, with_dependencies

PASS, WARN, FAIL, UNKNOWN = Status


def result(
    name: str, status: Status = PASS, *depends_on: str, critical: bool = False, kind: str = "check"
) -> Result:
    """Return how a check stands."""
    return Result(name, kind, status, "why", critical=critical, depends_on=depends_on)


def statuses(results: Sequence[Result]) -> dict[str, Status]:
    """Return the statuses by name."""
    return {one.name: one.status for one in results}


# What is behind


def test_what_is_behind_a_failed_network_is_unknown_and_not_failed_twice() -> None:
    """One failure, one cause; what has not failed itself stays as it is."""
    given_ = [
        result("network", FAIL),
        result("postgres", FAIL, "network"),
        result("redis", PASS, "network"),
        result("disk", FAIL),
    ]
    network, postgres, redis, disk = behind_failures(given_)
    assert postgres.status is UNKNOWN
    assert postgres.output == "not known, as network fails: why"
    assert postgres.behind == ("network",)
    assert (network, redis, disk) == (given_[0], given_[2], given_[3])


def test_cause_is_the_one_that_nothing_else_explains() -> None:
    """Through several steps, whether those between have failed or not."""
    seen = behind_failures(
        [
            result("cable", FAIL),
            result("switch", PASS, "cable"),
            result("network", FAIL, "switch"),
            result("postgres", FAIL, "network"),
        ]
    )
    assert statuses(seen) == {"cable": FAIL, "switch": PASS, "network": UNKNOWN, "postgres": UNKNOWN}
    assert seen[3].behind == ("cable",)


def test_several_causes_are_all_told() -> None:
    """The nearest first."""
    seen = behind_failures(
        [result("dns", FAIL), result("network", FAIL), result("api", FAIL, "network", "dns")]
    )
    assert seen[2].behind == ("network", "dns")
    assert seen[2].output.startswith("not known, as network, dns fail: ")


@pytest.mark.parametrize("below", [PASS, WARN, UNKNOWN])
def test_only_a_failure_explains_a_failure(below: Status) -> None:
    """What is not known to have failed is no excuse."""
    seen = behind_failures([result("network", below), result("postgres", FAIL, "network")])
    assert seen[1].status is FAIL


def test_check_and_breaker_of_one_name_both_stand_for_it() -> None:
    """Whichever of them has failed, it explains what stands on that name."""
    for first, second in ((FAIL, PASS), (PASS, FAIL)):
        seen = behind_failures(
            [
                result("postgres", first),
                result("postgres", second, kind="circuit_breaker"),
                result("orders", FAIL, "postgres"),
            ]
        )
        assert seen[2].status is UNKNOWN


# The status of a group


def test_nothing_passes() -> None:
    """A service without checks is well."""
    assert overall([], strict=True) is PASS


@pytest.mark.parametrize(
    ("status", "critical", "strict", "expected"),
    [
        (PASS, True, True, PASS),
        (WARN, True, True, WARN),
        (FAIL, True, True, FAIL),
        (FAIL, True, False, FAIL),
        (UNKNOWN, True, True, FAIL),
        (UNKNOWN, True, False, WARN),
        (FAIL, False, True, WARN),
        (UNKNOWN, False, True, WARN),
    ],
)
def test_one_result_does_that_much(status: Status, critical: bool, strict: bool, expected: Status) -> None:
    """Only what is critical fails a group."""
    seen = [result("well"), result("it", status, critical=critical), result("well too", critical=True)]
    assert overall(seen, strict=strict) is expected


def test_what_a_critical_check_stands_on_is_as_critical() -> None:
    """Otherwise the group would warn of a failed network, though nothing critical can be reached."""
    seen = behind_failures([result("network", FAIL), result("postgres", FAIL, "network", critical=True)])
    assert statuses(seen) == {"network": FAIL, "postgres": UNKNOWN}
    assert overall(seen, strict=False) is FAIL
    seen = behind_failures([result("network", FAIL), result("postgres", FAIL, "network")])
    assert overall(seen, strict=True) is WARN


def test_order_does_not_matter() -> None:
    """A warning before or behind a failure hides nothing."""
    some = [result("a", WARN), result("b", FAIL, critical=True), result("c", UNKNOWN)]
    assert {overall(one, strict=False) for one in (some, some[::-1], [some[1], some[0]])} == {FAIL}


# Graphs at random

NAMES = "abcdefgh"


@st.composite
def graphs(draw: st.DrawFn) -> list[Result]:
    """Return results of which each depends on some before it, and of which two may have one name."""
    made: list[Result] = []
    for place in range(draw(st.integers(0, 7))):
        name = draw(st.sampled_from(NAMES[: place + 1]))
        kinds = [one.kind for one in made if one.name == name]
        below = sorted({one.name for one in made} - {name})
        needs = draw(st.lists(st.sampled_from(below), unique=True, max_size=3)) if below else []
        needs = [need for need in needs if not _reaches(made, need, name)]
        made.append(
            result(
                name,
                draw(st.sampled_from(Status)),
                *needs,
                critical=draw(st.booleans()),
                kind=f"kind {len(kinds)}",
            )
        )
    return made


def _reaches(results: Sequence[Result], start: str, goal: str) -> bool:
    """Whether *goal* is below *start*: straight from the words, one path after the other."""
    return any(
        need == goal or _reaches(results, need, goal)
        for one in results
        if one.name == start
        for need in one.depends_on
    )


def _below(results: Sequence[Result], one: Result) -> set[str]:
    everything = {other.name for other in results}
    return {
        name
        for name in everything
        if name in one.depends_on or any(_reaches(results, need, name) for need in one.depends_on)
    }


@given(graphs())
def test_failures_are_told_once_whatever_the_graph(results: list[Result]) -> None:
    """A failure stays one where nothing below it has failed; else it is unknown, and its causes are named."""
    seen = behind_failures(results)
    failed = {one.name for one in results if one.status is FAIL}
    for before, after in zip(results, seen, strict=True):
        guilty = _below(results, before) & failed
        if before.status is FAIL and guilty:
            assert after.status is UNKNOWN
            assert set(after.behind) <= guilty
            assert after.behind
        else:
            assert after is before
    still = {one.name for one in seen if one.status is FAIL}
    assert bool(still) is bool(failed)
    assert {name for one in seen for name in one.behind} <= still


@given(graphs(), st.booleans())
def test_group_fails_with_what_is_critical_and_nothing_else(results: list[Result], strict: bool) -> None:
    """By asking of each critical result whether it fails, or is not known since something else fails."""
    seen = behind_failures(results)
    fails = warns = False
    for one in seen:
        explained = any(other.name in one.behind and other.status is FAIL for other in seen)
        bad = one.status is FAIL or (one.status is UNKNOWN and (strict or explained))
        fails = fails or (one.critical and bad)
        warns = warns or one.status is not PASS
    expected = FAIL if fails else WARN if warns else PASS
    assert overall(seen, strict=strict) is expected


@given(graphs(), st.booleans())
def test_explaining_failures_turns_no_failed_group_into_one_that_is_well(
    results: list[Result], strict: bool
) -> None:
    """Nor one that fails into one that warns: what explains a failure is as critical."""
    if overall(results, strict=strict) is FAIL:
        assert overall(behind_failures(results), strict=strict) is FAIL


@given(graphs())
def test_dependencies_are_found_once_and_nearest_first(results: list[Result]) -> None:
    """What one stands on comes before what that stands on in turn."""
    edges: dict[str, list[str]] = {}
    for one in results:
        edges.setdefault(one.name, []).extend(one.depends_on)
    for one in results:
        found = with_dependencies(one.depends_on, edges)
        assert len(found) == len(set(found))
        assert set(found) == _below(results, one)
        assert found[: len(one.depends_on)] == list(one.depends_on)


# The same through Health: groups


def made_of(results: Sequence[Result], groups: dict[str, frozenset[str]]) -> Health:
    """Return a Health with checks that find just that."""
    health = Health("shop", answer_within=5.0, timeout=5.0, max_threads=1)
    for one in results:
        health.add(
            lambda status=one.status: status,
            one.name,
            critical=one.critical,
            external=False,
            groups=groups[one.name],
            depends_on=one.depends_on,
        )
    return health


@given(graphs(), st.data())
def test_group_has_its_members_and_what_they_stand_on(results: list[Result], data: st.DataObject) -> None:
    """And its status is made of those alone."""
    results = [one for one in results if one.kind == "kind 0"]
    names = {one.name for one in results}
    groups = {
        name: data.draw(st.frozensets(st.sampled_from(["live", "ready", "startup", "night"])))
        for name in sorted(names)
    }
    health = made_of(results, groups)
    everything = behind_failures(results)
    for group in sorted(health.groups - {"ready", "startup"}):
        wanted = {name for name in names if group == "all" or group in groups[name]}
        wanted |= {name for one in results if one.name in wanted for name in _below(results, one)}
        report: Report = health.report(group)
        members = [one for one in everything if one.name in wanted]
        assert statuses(report.results) == statuses(members)
        assert [one.behind for one in report.results] == [one.behind for one in members]
        assert report.status is overall(members, strict=group not in {"all", "live"})
    started = [one for one in everything if "startup" in groups[one.name]]
    started_names = {one.name for one in started}
    started_names |= {name for one in started for name in _below(results, one)}
    passed = overall([one for one in everything if one.name in started_names], strict=True) is not FAIL
    ready = health.report("ready")
    assert health.report("startup").ok is passed
    assert not (ready.ok and not passed)
    health.close()
