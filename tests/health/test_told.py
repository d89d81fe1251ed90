"""Answers of other services: every form there is, ours and those of others, and nonsense."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.health import Report, Result, Status
from resilient.health.mapping.dependency_map import map_of
from resilient.health.serving.forms import View, chosen
from resilient.health.serving.told import LARGEST, line, report_in

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

OURS = Report(
    group="all",
    status=Status.FAIL,
    service="checkout",
    version="1.4.2",
    at=NOW,
    uptime=7.0,
    results=(
        Result("postgres", "check", Status.FAIL, "away", critical=True, at=NOW, age=1.0, took=0.25),
        Result("payments", "circuit_breaker", Status.WARN, "open for 3 s", value=0.5, unit="ratio"),
        Result("payments", "check", Status.PASS, at=NOW, age=1.0, took=0.1, depends_on=("network",)),
        Result("network", "check", Status.UNKNOWN, at=NOW, age=1.0, took=0.1),
        Result("memory", "check", Status.PASS, external=False, value=7.0, unit="bytes"),
    ),
    output="draining",
)


def told(answer: Any) -> Report:
    """Return the report that is in *answer*."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    found = report_in(body, "somebody")
    assert found is not None
    return found


def brief(report: Report) -> dict[str, str]:
    """Return what counts of its results."""
    return {result.name: result.status.value for result in report.results}


# Ours.


def written(report: Report, query: str = "", *, details: bool = True) -> bytes:
    """Return *report* as our handlers write it."""
    return chosen(query, None).body(report, View(details=details, word="health", groups=()))


def test_our_own_json_gives_the_same_map() -> None:
    """Whoever draws it from afar sees what the service sees, but for what is not told."""
    found = told(written(OURS))

    assert (found.service, found.version, found.status, found.at) == ("checkout", "1.4.2", Status.FAIL, NOW)
    assert found.output == "draining"
    assert map_of(found) == map_of(OURS)


def test_our_own_json_without_details_has_the_status() -> None:
    """And the name by which the service was asked."""
    found = told(written(OURS, details=False))

    assert (found.service, found.status, found.results) == ("somebody", Status.FAIL, ())


@pytest.mark.parametrize("form", ["json", "spring", "microprofile", "verbose", "plain"])
@pytest.mark.parametrize("details", [True, False])
def test_each_of_our_forms_tells_that_it_fails(form: str, details: bool) -> None:
    """Whatever a proxy or a setting makes of the question."""
    assert told(written(OURS, f"format={form}", details=details)).status is Status.FAIL


@pytest.mark.parametrize("form", ["json", "spring", "microprofile"])
def test_each_of_our_forms_tells_the_checks(form: str) -> None:
    """By name, as far as the form has words for it."""
    found = brief(told(written(OURS, f"format={form}")))

    assert {"postgres", "payments", "network", "memory"} <= set(found)
    assert found["postgres"] == "fail"
    assert found["memory"] == "pass"


# Those of others.


def test_the_example_of_the_draft_is_understood() -> None:
    """draft-inadarei-api-health-check-06, section 5."""
    found = told(
        {
            "status": "pass",
            "version": "1",
            "serviceId": "f03e522f-1f44-4062-9b55-9587f91c9c41",
            "description": "health of authz service",
            "checks": {
                "cassandra:responseTime": [
                    {
                        "componentId": "dfd6cf2b",
                        "componentType": "datastore",
                        "observedValue": 250,
                        "observedUnit": "ms",
                        "status": "pass",
                        "affectedEndpoints": ["/users/{userId}"],
                        "time": "2018-01-17T03:36:48Z",
                        "output": "",
                    }
                ],
                "cassandra:connections": [
                    {"componentType": "datastore", "observedValue": 75, "status": "warn"}
                ],
                "uptime": [{"componentType": "system", "observedValue": 1209600.245, "status": "pass"}],
                "cpu:utilization": [
                    {"node": 1, "componentType": "system", "observedValue": 85, "status": "warn"},
                    {
                        "node": 2,
                        "componentType": "system",
                        "observedValue": 85,
                        "status": "fail",
                        "output": "hot",
                    },
                ],
            },
        }
    )

    assert brief(found) == {"cassandra": "warn", "uptime": "pass", "cpu": "fail"}
    assert [result.external for result in found.results] == [True, False, False]
    assert found.result("cpu").output == "hot"
    assert found.service.startswith("f03e522f")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("postgres:responseTime", "postgres"),
        ("postgres:https://schema.example/latency", "postgres"),
        ("http://cart:8080/health:status", "http_//cart_8080/health"),
        ("http://cart:status", "http_//cart"),
        ("http://cart", "http_//cart"),
        ("redis://cache:6379", "redis_//cache_6379"),
        ("://", "_//"),
        (":", "_"),
        (":status", "_status"),
    ],
)
def test_component_may_be_a_url(key: str, name: str) -> None:
    """Not all services that one calls by http are one of the name "http"."""
    report = report_in(json.dumps({"status": "pass", "checks": {key: [{"status": "pass"}]}}).encode(), "shop")

    assert report is not None
    assert [result.name for result in report.results] == [name]


def test_measurement_without_a_status_is_nothing_to_complain_of() -> None:
    """The draft does not ask for one; what is critical in one of two entries is."""
    found = told(
        {
            "status": "pass",
            "uptime": 7,
            "checks": {
                "disk:free": [{"observedValue": 7}],
                "db:a": [{"status": "pass", "critical": True}],
                "db:b": [{"status": "pass"}],
            },
        }
    )

    assert brief(found) == {"disk": "pass", "db": "pass"}
    assert (found.uptime, found.result("db").critical) == (7.0, True)


def test_actuator_is_understood() -> None:
    """Components within components, each by its whole name."""
    found = told(
        {
            "status": "DOWN",
            "groups": ["liveness", "readiness"],
            "components": {
                "db": {
                    "status": "UP",
                    "components": {
                        "orders": {"status": "UP", "details": {"database": "PostgreSQL"}},
                        "users": {"status": "UNKNOWN"},
                    },
                },
                "diskSpace": {"status": "UP", "details": {"total": 1, "free": 1}},
                "redis": {"status": "DOWN", "details": {"error": "RedisConnectionException: refused"}},
                "mail": {"status": "OUT_OF_SERVICE"},
            },
        }
    )

    assert brief(found) == {
        "db/orders": "pass",
        "db/users": "unknown",
        "diskSpace": "pass",
        "redis": "fail",
        "mail": "fail",
    }
    assert found.result("redis").output == "RedisConnectionException: refused"
    assert not found.result("diskSpace").external


def test_actuator_of_version_2_is_understood() -> None:
    """It calls the components details."""
    found = told({"status": "UP", "details": {"db": {"status": "UP", "details": {"database": "H2"}}}})

    assert brief(found) == {"db": "pass"}


def test_aspnet_is_understood() -> None:
    """As HealthChecks.UI writes it."""
    found = told(
        {
            "status": "Unhealthy",
            "totalDuration": "00:00:00.05",
            "entries": {
                "sql": {"status": "Unhealthy", "description": "timed out", "data": {}, "tags": ["ready"]},
                "queue": {"status": "Degraded", "data": {}},
            },
        }
    )

    assert (found.status, brief(found)) == (Status.FAIL, {"sql": "fail", "queue": "warn"})
    assert found.result("sql").output == "timed out"


def test_microprofile_is_understood() -> None:
    """Its checks are a list."""
    found = told(
        {"status": "UP", "checks": [{"name": "db", "status": "UP", "data": {}}, {"status": "UP"}, 7]}
    )

    assert (found.status, brief(found)) == (Status.PASS, {"db": "pass"})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"pass", Status.PASS),
        (b"OK\n", Status.PASS),
        (b'"UP"', Status.PASS),
        (b"Healthy", Status.PASS),
        (b"Degraded", Status.WARN),
        (b"DOWN", Status.FAIL),
        (b"[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n", Status.FAIL),
        (b"[+]ping ok\nlivez check passed\n", Status.PASS),
        (b'\xef\xbb\xbf{"status": "UP"}', Status.PASS),
        (b'{"checks": {"a": {"status": "down"}}}', Status.FAIL),
    ],
)
def test_a_word_is_enough(body: bytes, status: Status) -> None:
    """Of those that mean something."""
    assert told(body).status is status


# Nonsense.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"<!DOCTYPE html><title>Welcome</title>",
        b"Not Found",
        b"It works!",
        b"null",
        b"true",
        b"7",
        b"[]",
        b"{}",
        b'"yes"',
        b'{"status": 200}',
        b'{"status": "?"}',
        b'{"status": ["pass"]}',
        b'{"checks": {}}',
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b"9" * 10_000,
        b"\x00\xff\xfe" * 100,
        b'{"status": "pass"}' + b" " * LARGEST,
    ],
    ids=range(20),
)
def test_what_is_no_report_is_none(body: bytes) -> None:
    """A front page, an answer cut off, 500,000 brackets: nobody can tell."""
    assert report_in(body, "somebody") is None


STRANGE = {
    "status": "pass",
    "serviceId": "\x1b[31m" + "x" * 5_000,
    "version": ["1"],
    "time": "yesterday",
    "uptime": 10**400,
    "output": {"a": 1},
    "checks": {
        "": [{"status": "fail", "output": "a\nb\x00\u202e" + "y" * 5_000, "kind": 7}],
        "a:b:c": [{"status": "warn", "dependsOn": ["b", 3, None], "critical": "yes"}],
        "n": [None, 3, "x", [], {"nothing": 1}],
        "m": {"status": "WARN", "unknown": True, "output": 7},
    },
}


def test_strange_members_are_left_out_or_cut() -> None:
    """What can be understood is, and nothing of it does anything to a terminal."""
    found = told(STRANGE)

    assert brief(found) == {"?": "fail", "a": "warn", "m": "unknown"}
    assert (found.version, found.uptime, found.output) == (None, 0.0, "")
    assert found.result("a").depends_on == ("b",)
    assert not found.result("a").critical
    assert found.result("m").output == ""
    for text in (found.service, found.result("?").output):
        assert text.isprintable()
        assert len(text) <= 300


def test_checks_beyond_a_thousand_are_left_out() -> None:
    """And quickly."""
    body = json.dumps({"status": "pass", "checks": {f"c{n}": [{"status": "pass"}] for n in range(20_000)}})
    begun = time.process_time()

    assert len(told(body.encode()).results) == 1_000
    assert time.process_time() - begun < 5.0


def test_components_deeper_than_anybody_has_them_are_one() -> None:
    """No recursion without end."""
    inner: dict[str, Any] = {"status": "UP"}
    for _ in range(50):
        inner = {"status": "UP", "components": {"c": inner}}

    (only,) = told(inner).results
    assert only.name == "c/c/c/c/c/c"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["pass", "UP", "fail"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["status", "checks", "components", "details", "name", "kind", "dependsOn", "a:b", "time"]
            )
            | st.text(),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_no_json_raises(answer: Any) -> None:
    """Whatever Hypothesis finds; and what is understood can be drawn."""
    found = report_in(json.dumps(answer).encode(), "somebody")

    if found is not None:
        assert isinstance(found.status, Status)
        assert map_of(found).to_json()


@given(st.binary())
def test_no_bytes_raise(body: bytes) -> None:
    """The same for what is no JSON."""
    found = report_in(body, "somebody")

    assert found is None or isinstance(found.status, Status)


def test_a_line_is_one_line() -> None:
    """Short, and all of it can be seen."""
    assert line("a\n b\t\x1b[0m\u2028c") == "a b \N{REPLACEMENT CHARACTER}[0m c"
    assert len(line("x" * 10_000)) == 300
    assert line("x" * 300) == "x" * 300
    assert line(None) == "None"
