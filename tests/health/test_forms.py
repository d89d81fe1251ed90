"""The forms of a report: each as its specification has it, and none telling what it should not."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.health.schemas import HEALTH_JSON, MICROPROFILE, SPRING, VERBOSE, valid
from tests.health.standin import GROUPS, StandIn, result

from resilient.health import Asked, Endpoints, Result, Status
from resilient.health.serving.asked import Answer

QUERIES = {
    "json": "format=json",
    "plain": "format=plain",
    "spring": "format=spring",
    "microprofile": "format=microprofile",
    "verbose": "verbose",
}


def answer(health: StandIn, query: str = "", path: str = "/health", accept: str | None = None) -> Answer:
    """Ask for one form."""
    endpoints = Endpoints(health)
    return endpoints.respond(endpoints.find(path), Asked("GET", path, query, {"accept": accept}.get))


def body(health: StandIn, form: str, path: str = "/health") -> Any:
    """Return what one form says; JSON read."""
    got = answer(health, QUERIES[form], path).body
    return got.decode() if form in {"plain", "verbose"} else json.loads(got)


EVERYTHING = (
    result(),
    result(
        "cache", Status.WARN, output="80 % full", value=80.5, unit="percent", external=False, critical=False
    ),
    result(
        "pool",
        Status.PASS,
        kind="pool",
        value=3,
        unit="connections",
        took=None,
        facts={"size": 10, "idle": 2.5},
    ),
    result(
        "redis", Status.FAIL, output="connection refused", failures_in_a_row=3, stale=True, running_for=0.25
    ),
    result(
        "orders", Status.UNKNOWN, behind=("redis",), depends_on=("redis", "dns"), at=None, age=None, took=None
    ),
)


def shown(status: Status = Status.FAIL, results: Any = EVERYTHING, **more: Any) -> StandIn:
    """Return what everybody sees everything of."""
    return StandIn(status, results, details="always", **more)


# As specified.


class TestHealthJson:
    def test_whole_report(self) -> None:
        """Root, one array for each measurement, response times of their own."""
        got = body(shown(), "json")

        valid(got, HEALTH_JSON)
        root = {name: value for name, value in got.items() if name != "checks"}
        assert root == {
            "status": "fail",
            "version": "1.4.2",
            "serviceId": "checkout",
            "description": "Health of checkout",
            "time": "2026-01-31T12:30:15.250Z",
        }
        assert got["checks"].keys() == {
            "postgres:status",
            "postgres:responseTime",
            "cache:utilization",
            "cache:responseTime",
            "pool:connections",
            "redis:status",
            "redis:responseTime",
            "orders:status",
        }
        assert got["checks"]["postgres:responseTime"] == [
            {
                "componentType": "component",
                "observedValue": 12.5,
                "observedUnit": "ms",
                "status": "pass",
                "time": "2026-01-31T12:30:15.250Z",
            }
        ]
        [cache] = got["checks"]["cache:utilization"]
        assert (cache["observedValue"], cache["observedUnit"]) == (80.5, "percent")
        assert (cache["componentType"], cache["output"], cache["critical"]) == ("system", "80 % full", False)
        [redis] = got["checks"]["redis:status"]
        assert (redis["failuresInARow"], redis["stale"], redis["runningFor"]) == (3, True, 0.25)
        assert got["checks"]["pool:connections"][0]["facts"] == {"size": 10, "idle": 2.5}

    def test_unknown_is_a_warning_that_says_so(self) -> None:
        """The draft has no word for it."""
        [orders] = body(shown(), "json")["checks"]["orders:status"]

        assert (orders["status"], orders["unknown"]) == ("warn", True)
        assert (orders["behind"], orders["dependsOn"]) == (["redis"], ["redis", "dns"])
        assert "time" not in orders

    def test_draining_is_told(self) -> None:
        """Why the service is not ready, where no check is to blame."""
        got = body(shown(Status.PASS, output="draining: the process was told to end"), "json", "/readyz")

        valid(got, HEALTH_JSON)
        assert (got["status"], got["output"]) == ("fail", "draining: the process was told to end")
        assert got["description"] == "Readiness of checkout"

    def test_component_has_no_colon(self) -> None:
        """What comes before the first one is the component; two of one name are two of the array."""
        got = body(shown(results=[result("db:5432"), result("db_5432")]), "json")

        valid(got, HEALTH_JSON)
        assert len(got["checks"]["db_5432:status"]) == 2


class TestSpring:
    def test_whole_report(self) -> None:
        """Components with their details, and the names of the groups."""
        got = body(shown(), "spring")

        valid(got, SPRING)
        assert got["status"] == "DOWN"
        assert got["groups"] == sorted(GROUPS)
        assert {name: one["status"] for name, one in got["components"].items()} == {
            "postgres": "UP",
            "cache": "UP",
            "pool": "UP",
            "redis": "DOWN",
            "orders": "UNKNOWN",
        }
        assert got["components"]["redis"]["details"]["reason"] == "connection refused"
        assert got["components"]["cache"]["details"]["warning"] == "80 % full"
        assert "details" not in got["components"]["orders"]

    def test_groups_are_told_with_everything_only(self) -> None:
        """As Actuator does."""
        assert "groups" not in body(shown(), "spring", "/readyz")

    def test_drained_service_is_out_of_service(self) -> None:
        """And not down; its liveness is up."""
        health = shown(Status.PASS, output="draining")

        assert body(health, "spring", "/readyz")["status"] == "OUT_OF_SERVICE"
        assert answer(health, "format=spring", "/readyz").status == 503
        assert body(health, "spring", "/livez")["status"] == "UP"


class TestMicroProfile:
    def test_whole_report(self) -> None:
        """What is critical and unknown is down: it has two words only. What is not critical fails nothing."""
        mail = result("mail", Status.FAIL, critical=False, output="refused")
        got = body(shown(results=(*EVERYTHING, mail)), "microprofile")

        valid(got, MICROPROFILE)
        assert got["status"] == "DOWN"
        statuses = {check["name"]: check["status"] for check in got["checks"]}
        up, down = "UP", "DOWN"
        assert statuses == {
            "postgres": up,
            "cache": up,
            "pool": up,
            "redis": down,
            "orders": down,
            "mail": up,
        }
        assert got["checks"][-1]["data"]["reason"] == "refused"

    def test_drained_service_says_so_in_a_check_of_its_own(self) -> None:
        """No other is to blame, and what is down has one that is."""
        mail = result("mail", Status.FAIL, critical=False)
        got = body(shown(Status.PASS, [mail], output="draining"), "microprofile", "/readyz")

        valid(got, MICROPROFILE)
        statuses = {check["name"]: check["status"] for check in got["checks"]}
        assert (got["status"], statuses) == ("DOWN", {"mail": "UP", "readyz": "DOWN"})
        assert got["checks"][-1]["data"] == {"reason": "draining"}

    def test_check_that_is_asked_for_by_its_name_is_down(self) -> None:
        """Though it is not critical."""
        got = body(
            shown(results=[result("mail", Status.FAIL, critical=False)]), "microprofile", "/health/mail"
        )

        assert (got["status"], got["checks"][0]["status"]) == ("DOWN", "DOWN")


class TestVerbose:
    def test_whole_report(self) -> None:
        """Line by line as Kubernetes does."""
        got = body(shown(), "verbose", "/health")

        assert re.fullmatch(VERBOSE, got)
        assert got.splitlines() == [
            "[+]postgres ok",
            "[+]cache ok: warn, 80 % full",
            "[+]pool ok",
            "[-]redis failed: connection refused",
            "[-]orders unknown: reason withheld",
            "health check failed",
        ]

    @pytest.mark.parametrize(
        ("path", "word"),
        [
            ("/livez", "livez"),
            ("/readyz", "readyz"),
            ("/startupz", "startupz"),
            ("/health/storage", "storage"),
        ],
    )
    def test_last_line_names_what_was_asked(self, path: str, word: str) -> None:
        """For whoever reads several."""
        assert body(shown(Status.PASS), "verbose", path) == f"[+]postgres ok\n{word} check passed\n"

    def test_draining_is_told(self) -> None:
        """In the last line: all checks pass."""
        got = body(shown(Status.PASS, [result()], output="draining"), "verbose", "/readyz")

        assert got == "[+]postgres ok\nreadyz check failed: draining\n"

    def test_output_cannot_forge_a_line(self) -> None:
        """Whatever a dependency says stays on its line, and moves no terminal's cursor."""
        evil = "no\n[+]etcd ok\r\u2028\x1b[2Kreadyz check passed\n"
        got = body(shown(results=[result("x\ny", Status.FAIL, output=evil)]), "verbose")

        assert len(got.splitlines()) == 2
        assert "\x1b" not in got
        assert got.startswith("[-]x y failed: no [+]etcd ok ")


def test_numbers_are_short() -> None:
    """Ages to the millisecond, response times to the microsecond, whole numbers without a fraction."""
    one = result(
        took=0.00123456789,
        age=0.001348660996882245,
        running_for=2.0000004,
        value=3.0,
        facts={"limit_bytes": 52428800.0, "share": 0.125, "huge": 1e300},
    )
    health = shown(results=[one])

    checks = body(health, "json")["checks"]
    [told], [took] = checks["postgres:status"], checks["postgres:responseTime"]
    assert json.dumps([told["age"], told["runningFor"], told["observedValue"]]) == "[0.001, 2, 3]"
    assert took["observedValue"] == 1.235
    assert json.dumps(told["facts"]) == '{"limit_bytes": 52428800, "share": 0.125, "huge": 1e+300}'
    for form in ("spring", "microprofile"):
        text = json.dumps(body(health, form))
        assert '"limit_bytes": 52428800,' in text
        assert '"value": 3,' in text
        assert '"responseTime": "1.235 ms"' in text


def test_plain_is_one_word() -> None:
    """For `grep` and simple balancers."""
    assert [body(shown(status), "plain") for status in Status] == ["pass", "warn", "fail", "warn"]


def test_long_output_is_cut() -> None:
    """Ten thousand lines of it are an answer of a few hundred characters."""
    health = shown(
        results=[result(status=Status.FAIL, output="line\n" * 10_000, facts={"trace": "x" * 9_999})]
    )

    assert all(len(answer(health, query).body) < 2_000 for query in QUERIES.values())


ODD = st.text(max_size=20) | st.sampled_from(["\ud800", "\x00", "\u202e", "a:b", '"', "</script>"])
NUMBER = (
    st.floats() | st.integers() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 10**400, 10**5_000])
)
RESULTS = st.builds(
    Result,
    ODD.map(lambda name: f"x{name}"),
    st.sampled_from(["check", "pool", "circuit_breaker"]),
    st.sampled_from(Status),
    ODD,
    NUMBER | st.none(),
    st.sampled_from([None, "percent", "s", "connections"]),
    st.dictionaries(ODD, NUMBER | ODD | st.booleans() | st.none(), max_size=3) | st.none(),
    st.booleans(),
    st.booleans(),
    age=st.none() | st.floats(),
    took=st.none() | st.floats(),
    running_for=st.none() | st.floats(),
)


@given(st.lists(RESULTS, max_size=4), st.sampled_from(Status))
def test_every_report_has_every_form(results: list[Result], status: Status) -> None:
    """Numbers that JSON does not have, letters that UTF-8 does not have: the schema holds."""
    health = shown(status, results)

    valid(body(health, "json"), HEALTH_JSON)
    valid(body(health, "spring"), SPRING)
    profile = body(health, "microprofile")
    valid(profile, MICROPROFILE)
    assert (profile["status"] == "UP") is all(check["status"] == "UP" for check in profile["checks"])
    assert re.fullmatch(VERBOSE, body(health, "verbose"))
    assert body(health, "plain") in {"pass", "warn", "fail"}


# As asked for.

HEALTH, JSON, SPRING_V3 = (
    "application/health+json",
    "application/json",
    "application/vnd.spring-boot.actuator.v3+json",
)
PLAIN = "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, HEALTH),
        ("", HEALTH),
        ("*/*", HEALTH),
        ("application/*", HEALTH),
        ("application/json", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/health+json", HEALTH),
        ("text/plain", PLAIN),
        ("text/*", PLAIN),
        ("text/plain;charset=utf-8", PLAIN),
        (SPRING_V3, SPRING_V3),
        ("application/vnd.spring-boot.actuator.v2+json", SPRING_V3),
        # What browsers, axios, curl and Spring Boot Admin send.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HEALTH),
        ("application/json, text/plain, */*", JSON),
        (f"{SPRING_V3}, application/vnd.spring-boot.actuator.v2+json, application/json", SPRING_V3),
        # Weights.
        ("text/plain;q=0.5, application/json;q=0.4", PLAIN),
        ("text/plain;q=0.4, application/json; q=0.5", JSON),
        ("text/plain; Q=0.4, application/json;Q = 0.5", JSON),
        ("text/plain;q=0.9, */*", HEALTH),
        ("text/plain, */*", PLAIN),
        ("text/plain;q=0, */*;q=0.1", HEALTH),
        ("application/health+json;q=0, application/*", JSON),
        ("*/*;q=0", HEALTH),
        ("text/plain;q=0", HEALTH),
        ("text/plain;level=1;q=0.3, application/json;q=0.2", PLAIN),
        # Strange, and no error.
        ("image/png", HEALTH),
        ("text", HEALTH),
        (",,;;==", HEALTH),
        ("text/plain;q=2", HEALTH),
        ("text/plain;q=", HEALTH),
        ("text/plain;q=nan, application/json;q=0.1", JSON),
        ("text/plain;q=\u0661", HEALTH),
        ("x" * 100_000, HEALTH),
        ("text/plain," * 10_000, PLAIN),
        (";q=1" * 50_000, HEALTH),
    ],
)
def test_form_is_the_one_accepted(accept: str | None, expected: str) -> None:
    """The heaviest, then the closest, then the first; the default where there is none."""
    assert dict(answer(StandIn(), accept=accept).headers)["Content-Type"] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("format=json", HEALTH),
        ("format=plain", PLAIN),
        ("format=SPRING", SPRING_V3),
        ("format=microprofile", JSON),
        ("verbose", PLAIN),
        ("verbose=1&format=json", PLAIN),
        ("verbose=", PLAIN),
        ("a=b&format=plain", PLAIN),
        ("format=xml", SPRING_V3),
        ("format", SPRING_V3),
        ("format=%00", SPRING_V3),
        ("&&=&", SPRING_V3),
        ("verbosely", SPRING_V3),
    ],
)
def test_query_goes_before_accept(query: str, expected: str) -> None:
    """A form that does not exist is as if nobody had asked for it."""
    assert dict(answer(StandIn(), query, accept=SPRING_V3).headers)["Content-Type"] == expected


# What is kept.

SECRETS = re.compile(
    r"postgres|redis|shop-db|5432|10\.0\.0\.7|hunter2|Traceback|Error|refused|/var/|\.py|checkout|1\.4\.2|percent|\d\.\d",
    re.IGNORECASE,
)
TELLING = (
    result("postgres-main", Status.FAIL, output="ConnectionRefusedError: shop-db.internal:5432 (10.0.0.7)"),
    result("redis", Status.FAIL, output="redis://user:hunter2@10.0.0.7:6379/0", value=99.5, unit="percent"),
    result(
        "disk", Status.UNKNOWN, output='Traceback: File "/var/lib/shop/app.py"', facts={"path": "/var/lib"}
    ),
)


@pytest.mark.parametrize("form", QUERIES)
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("output", ["", "draining: checkout 1.4.2 leaves shop-db"])
@pytest.mark.parametrize("error", [None, ConnectionRefusedError("shop-db:5432 refused")])
def test_nothing_is_disclosed(form: str, status: Status, output: str, error: Exception | None) -> None:
    """No name, host, port, version, path, figure or exception, in any form, whatever has failed."""
    endpoints = Endpoints(StandIn(status, TELLING, output=output, error=error))
    for path in ("/livez", "/readyz", "/startupz", "/health", "/health/storage", "/health/redis", "/nothing"):
        for method in ("GET", "POST"):
            got = endpoints.respond(endpoints.find(path), Asked(method, path, QUERIES[form]))
            headers = [value for name, value in got.headers if name not in {"Content-Type", "Content-Length"}]

            assert not SECRETS.search(got.body.decode())
            assert not SECRETS.search("\n".join(headers))


@pytest.mark.parametrize("form", QUERIES)
def test_disclosure_test_would_see_it(form: str) -> None:
    """With details there is something to find in all forms but the one word."""
    assert bool(SECRETS.search(answer(shown(results=TELLING), QUERIES[form]).body.decode())) is (
        form != "plain"
    )


def test_bare_forms() -> None:
    """All that there is without details."""
    health = StandIn(Status.FAIL, TELLING)

    assert {form: body(health, form, "/readyz") for form in QUERIES} == {
        "json": {"status": "fail"},
        "plain": "fail",
        "spring": {"status": "DOWN"},
        "microprofile": {"status": "DOWN", "checks": []},
        "verbose": "readyz check failed\n",
    }
