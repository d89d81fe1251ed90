"""What is asked for and what is answered, without any server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.health.standin import GROUPS, StandIn, result

from resilient.health import Asked, Endpoints, Status, bearer, from_networks
from resilient.health.serving.asked import Answer
from resilient.health.serving.handler import Place, endpoints_of, without_drain_delay


def ask(
    endpoints: Endpoints, path: str = "/health", query: str = "", method: str = "GET", **fields: str
) -> Answer:
    """Ask by a thread, and by a task, which gets the same."""
    asked = Asked(method, path, query, {name.replace("_", "-"): fields[name] for name in fields}.get)
    answer = endpoints.respond(endpoints.find(path), asked)
    assert asyncio.run(endpoints.arespond(endpoints.find(path), asked)) == answer
    return answer


def field(answer: Answer, name: str) -> str | None:
    """Return a header field that may stand there once."""
    values = [value for key, value in answer.headers if key == name]
    assert len(values) <= 1
    return values[0] if values else None


# Paths.


def test_default_paths_never_move() -> None:
    """Balancers and orchestrators are configured for these by hand, outside of this code.

    In incidents C1 and E3 a deploy moved the path, every target failed its checks, and the balancer took all
    of them out: nineteen times. Whoever changes this test breaks services that are running.
    """
    health = StandIn()
    endpoints = Endpoints(health)

    assert {path: place.name for path, place in endpoints.places} == {
        "/livez": "live",
        "/readyz": "ready",
        "/startupz": "startup",
        "/health": "all",
    }
    for path, group in [
        ("/livez", "live"),
        ("/readyz", "ready"),
        ("/startupz", "startup"),
        ("/health", "all"),
    ]:
        health.asked.clear()
        assert ask(endpoints, path).status == 200
        assert set(health.asked) == {group}
    assert ask(endpoints, "/health/ready").status == 200


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"prefix": "/v1"}, {"/v1/livez", "/v1/readyz", "/v1/startupz", "/v1/health"}),
        ({"prefix": "/v1/"}, {"/v1/livez", "/v1/readyz", "/v1/startupz", "/v1/health"}),
        ({"paths": {"ready": "/ready"}}, {"/livez", "/ready", "/startupz", "/health"}),
        ({"paths": {"ready": ["/ready", "/up/"]}}, {"/livez", "/ready", "/up", "/startupz", "/health"}),
        ({"paths": {"startup": None, "storage": "/disks"}}, {"/livez", "/readyz", "/disks", "/health"}),
        ({"aliases": {"/healthz": "live"}}, {"/livez", "/readyz", "/startupz", "/health", "/healthz"}),
        (
            {"prefix": "/ops", "aliases": {"/ping": "live"}},
            {"/ops/livez", "/ops/readyz", "/ops/startupz", "/ops/health", "/ops/ping"},
        ),
    ],
)
def test_paths_are_configured(words: Any, expected: set[str]) -> None:
    """Each group keeps its path unless it is given others; the prefix is before all of them."""
    endpoints = Endpoints(StandIn(), **words)

    assert {path for path, _ in endpoints.places} == expected
    assert all(ask(endpoints, path).status == 200 for path in expected)
    assert endpoints.find("/elsewhere") is None


def test_names_go_below_each_path_of_everything() -> None:
    """A prefix, another path and an alias have names below them, too."""
    endpoints = Endpoints(
        StandIn(), prefix="/v1", paths={"all": ["/health", "/status"]}, aliases={"/h": "all"}
    )

    assert endpoints.below == ("/v1/health/", "/v1/status/", "/v1/h/")
    assert endpoints.find("/v1/h/a/b") == Place("a/b", free=True)
    assert endpoints.find("/v1/h/a/") == Place("a", free=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/livez", Place("live")),
        ("/livez/", Place("live")),
        ("/livez//", None),
        ("/LIVEZ", None),
        ("livez", None),
        ("/", None),
        ("", None),
        ("/livez/x", None),
        ("/health/", Place("all")),
        ("/health/storage", Place("storage", free=True)),
        ("/healthy", None),
        ("/api/health", None),
    ],
)
def test_only_its_paths_are_health(path: str, expected: Place | None) -> None:
    """One slash at the end does no harm; everything else is the app's."""
    assert Endpoints(StandIn()).find(path) == expected


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"paths": {"ready": "ready"}}, ValueError, "paths must be paths such as '/ready'"),
        ({"paths": {"ready": "/{x}"}}, ValueError, "paths must"),
        ({"paths": {"ready": "/"}}, ValueError, "paths must"),
        ({"paths": {"ready": "/a\r\nb"}}, ValueError, "paths must"),
        ({"paths": {"ready": 7}}, TypeError, "paths must"),
        ({"paths": {"ready": ["/a", 7]}}, TypeError, "paths must"),
        ({"paths": {"": "/a"}}, ValueError, "paths must not be empty"),
        ({"paths": "/ready"}, TypeError, "paths must be a mapping"),
        ({"paths": {"ready": "/livez"}}, ValueError, "must not give the path of 'live' to 'ready'"),
        ({"aliases": {"/livez": "ready"}}, ValueError, "aliases must not give the path of 'live'"),
        ({"aliases": ["/x"]}, TypeError, "aliases must be a mapping"),
        ({"aliases": {"/x": None}}, TypeError, "aliases must be text"),
        ({"prefix": "v1"}, ValueError, "prefix must"),
        ({"prefix": None}, TypeError, "prefix must be text"),
        ({"details": "sometimes"}, ValueError, "details must be one of 'never', 'always'"),
        ({"details": True}, TypeError, "details must be callable"),
        ({"retry_after": -1}, ValueError, "retry_after must be at least 0"),
        ({"drain_delay": -1}, ValueError, "drain_delay must be at least 0"),
        ({"drain_delay": "5"}, TypeError, "drain_delay must be a number"),
    ],
)
def test_bad_arguments_are_refused(words: Any, error: type[Exception], match: str) -> None:
    """The message names the parameter and the rule."""
    with pytest.raises(error, match=match):
        Endpoints(StandIn(), **words)


@pytest.mark.parametrize("health", [None, StandIn, "health", object()])
def test_what_is_no_health_is_refused(health: Any) -> None:
    """At once, and not when the first probe comes."""
    with pytest.raises(TypeError, match="health must be a Health"):
        Endpoints(health)
    with pytest.raises(TypeError, match="health must be a Health, Endpoints or None"):
        endpoints_of("health", health)


def test_health_stands_for_its_usual_endpoints() -> None:
    """And endpoints for themselves."""
    health = StandIn()
    endpoints = Endpoints(health, prefix="/v1")

    assert endpoints_of("health", health).health is health
    assert endpoints_of("health", endpoints) is endpoints


def test_drain_delay_is_refused_where_nothing_would_come_of_it() -> None:
    """Silence would be the worst: the process would end at once."""
    with pytest.raises(ValueError, match="drain_delay must be None but for ASGI"):
        without_drain_delay(Endpoints(StandIn(), drain_delay=0))


# Answers.


@pytest.mark.parametrize(
    ("status", "expected"),
    [(Status.PASS, 200), (Status.WARN, 200), (Status.FAIL, 503), (Status.UNKNOWN, 200)],
)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/health/live"])
def test_status(path: str, status: Status, expected: int) -> None:
    """A warning is no reason to send requests elsewhere; a failure is."""
    answer = ask(Endpoints(StandIn(status)), path)

    assert answer.status == expected
    assert field(answer, "Content-Type") == "application/health+json"
    assert field(answer, "Cache-Control") == "no-store"
    assert json.loads(answer.body)["status"] == {Status.UNKNOWN: "warn"}.get(status, status.value)


def test_head_has_the_header_of_get_and_no_body() -> None:
    """Its length included."""
    endpoints = Endpoints(StandIn(Status.FAIL), details="always")

    got, head = ask(endpoints), ask(endpoints, method="HEAD")

    assert (head.status, head.headers, head.body) == (503, got.headers, b"")
    assert field(head, "Content-Length") == str(len(got.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "", "\r\nX"])
def test_other_methods_are_not_allowed(method: str) -> None:
    """The answer says which are; nobody's check is asked."""
    health = StandIn()
    answer = ask(Endpoints(health), "/readyz", method=method)

    assert (answer.status, field(answer, "Allow")) == (405, "GET, HEAD")
    assert int(field(answer, "Content-Length") or 0) == len(answer.body)
    assert health.asked == []


def test_failure_tells_when_to_ask_again_unless_it_drains() -> None:
    """What drains does not come back; what is well needs no retry."""
    health = StandIn(Status.FAIL)

    assert field(ask(Endpoints(health)), "Retry-After") == "5"
    assert field(ask(Endpoints(health, retry_after=0.2)), "Retry-After") == "1"
    assert field(ask(Endpoints(health, retry_after=None)), "Retry-After") is None
    health.drain("the end")
    assert field(ask(Endpoints(health), "/readyz"), "Retry-After") is None
    assert field(ask(Endpoints(health), "/livez"), "Retry-After") == "5"
    assert field(ask(Endpoints(StandIn())), "Retry-After") is None


@pytest.mark.parametrize("error", [RuntimeError("on a loop"), KeyError("live"), ZeroDivisionError()])
def test_report_that_cannot_be_made_is_a_failure(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """In the form that the prober reads, with nothing of the error in it; the log has it all."""
    endpoints = Endpoints(StandIn(error=error), details="always")

    with caplog.at_level(logging.ERROR, "resilient"):
        answers = [ask(endpoints, path) for path in ("/livez", "/health", "/health/postgres")]

    assert [answer.status for answer in answers] == [503] * 3
    assert json.loads(answers[0].body)["status"] == "fail"
    assert type(error).__name__ not in answers[0].body.decode()
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error


async def test_loop_is_not_held_up() -> None:
    """An app for threads that is called on a loop tells what is known, at once."""
    health = StandIn()

    assert Endpoints(health).respond(Place("ready"), Asked("GET", "/readyz")).status == 200
    assert health.knew == ["ready"]


def test_cancelled_task_is_cancelled() -> None:
    """It is no failure of the service's that the client has left."""
    endpoints = Endpoints(StandIn(error=asyncio.CancelledError()))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(endpoints.arespond(Place("live"), Asked("GET", "/livez")))


def test_one_check_is_asked_for_by_its_name() -> None:
    """Only by those who may see details: that there is such a check is one."""
    health = StandIn(results=[result(), result("redis", Status.FAIL), result("dns", Status.UNKNOWN)])
    shown, hidden = Endpoints(health, details="always"), Endpoints(health)

    assert [ask(shown, f"/health/{name}").status for name in ("postgres", "redis", "dns")] == [200, 503, 200]
    assert json.loads(ask(shown, "/health/redis").body)["checks"].keys() == {
        "redis:status",
        "redis:responseTime",
    }
    assert json.loads(ask(shown, "/health/dns").body)["unknown"] is True
    assert ask(shown, "/health/nothing").status == ask(hidden, "/health/redis").status == 404
    assert ask(hidden, "/health/redis") == ask(hidden, "/health/nothing")


GROUP_NAMES = ("live", "ready", "startup", "all")


def test_groups_of_the_users_are_asked_for_by_those_who_may_see_details() -> None:
    """A group such as "provider-stripe" can be guessed, and is news of a partner."""
    shown, hidden = Endpoints(StandIn(), details="always"), Endpoints(StandIn())

    assert ask(shown, "/health/storage").status == 200
    assert ask(hidden, "/health/storage") == ask(hidden, "/health/nothing")
    assert ask(hidden, "/health/storage").status == 404
    assert [ask(hidden, f"/health/{name}").status for name in GROUP_NAMES] == [200] * 4


@pytest.mark.parametrize("words", [{"paths": {"storage": "/disks"}}, {"aliases": {"/disks": "storage"}}])
def test_group_that_has_a_path_is_asked_for_by_everybody(words: Any) -> None:
    """Whoever gives it one has said so."""
    endpoints = Endpoints(StandIn(), **words)

    assert [ask(endpoints, path).status for path in ("/disks", "/health/storage")] == [200, 200]


def claims(path: str, health: StandIn | None = None, method: str = "GET", **words: Any) -> bool | None:
    """Tell whether a path is answered where an app is behind; None where it is not found at all."""
    endpoints = Endpoints(health or StandIn(results=[result(), result("db/main")]), **words)
    place = endpoints.find(path)
    return None if place is None else endpoints.claims(place, Asked(method, path))


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "to_strangers", "to_operators"),
    [
        ("/livez", True, True),
        ("/health", True, True),
        ("/health/", True, True),
        ("/health/ready", True, True),
        ("/health/ready/", True, True),
        ("/health/all", True, True),
        ("/health/storage", False, True),
        ("/health/postgres", False, True),
        ("/health/db/main", False, True),
        ("/health/db", False, False),
        ("/health/patients", False, False),
        ("/health/ready/7", False, False),
        ("/orders", None, None),
    ],
)
def test_what_is_not_answered_is_the_apps(
    path: str, method: str, *, to_strangers: bool | None, to_operators: bool | None
) -> None:
    """It may have pages below `/health`; strangers cannot tell by it which checks there are."""
    assert claims(path, method=method) is to_strangers
    assert claims(path, method=method, details="always") is to_operators


def test_group_with_a_path_is_answered_before_an_app_once_it_is_there() -> None:
    """Until then it is a page of the app's."""
    words: Any = {"paths": {"caches": "/caches"}}
    health = StandIn()

    assert claims("/health/caches", health, **words) is False
    health.groups = frozenset({*GROUPS, "caches"})
    assert claims("/health/caches", health, **words) is True


@pytest.mark.parametrize("details", ["never", "always"])
def test_page_of_the_apps_runs_no_check(details: str) -> None:
    """Nor is a report made for it: the names are enough."""
    health = StandIn(results=[result()], details=details)

    assert [claims(path, health) for path in ("/health/postgres", "/health/patients")] == [
        details == "always",
        False,
    ]
    assert health.asked == health.knew == []


def test_policies_that_share_a_name_are_told_together() -> None:
    """The worst of them counts."""
    results = [
        result("payments", Status.WARN, kind="circuit_breaker"),
        result("payments", Status.FAIL, kind="bulkhead"),
    ]
    endpoints = Endpoints(StandIn(results=results), details="always")

    assert ask(endpoints, "/health/payments").status == 503
    assert len(json.loads(ask(endpoints, "/health/payments").body)["checks"]["payments:status"]) == 2
    spring = json.loads(ask(endpoints, "/health", "format=spring").body)["components"]
    assert spring.keys() == {"payments", "payments (bulkhead)"}


def test_group_that_is_not_there_is_not_found() -> None:
    """A path may be configured before the checks are registered; so it is no error until somebody asks."""
    health = StandIn()
    endpoints = Endpoints(health, paths={"caches": "/caches"})

    assert ask(endpoints, "/caches").status == 404
    health.groups = frozenset({*GROUPS, "caches"})
    assert ask(endpoints, "/caches").status == 200


# Whatever a client writes.

JUNK = st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
ACCEPTED = st.lists(
    st.sampled_from(
        [
            "*/*",
            "text/*",
            "text/plain",
            "application/json",
            "application/health+json",
            "q=0",
            ";q=1.001",
            ";q=",
            '"',
            ",",
            ";",
        ]
    )
    | JUNK
).map(",".join)
QUERIES = st.lists(
    st.sampled_from(["verbose", "format=", "spring", "&", "=", "%", "%00", "plain", "json"]) | JUNK
).map("".join)
NO_HEADER = re.compile(r"[^\x20-\x7e]")


SENT = st.tuples(
    st.sampled_from(["GET", "HEAD", "POST"]) | JUNK,
    JUNK | st.sampled_from(["/health", "/livez", "/health/"]) | JUNK.map("/health/{}".format),
    QUERIES,
    st.fixed_dictionaries({}, optional={"accept": ACCEPTED, "authorization": JUNK, "x-real-ip": JUNK}),
    JUNK | st.none(),
)


@given(SENT)
@example(("GET", "/health/\r\nSet-Cookie: a=b", "format=\r\nX: y", {"accept": "a/b\r\nX: y"}, "\x00"))
@example(("GET", "/health", "format=\ud800&verbose=\udfff", {"accept": "text/plain;q=\u0663"}, "::%x"))
@example(("GET", "/health", "", {"authorization": "bearer \ud800"}, None))
def test_nothing_that_a_client_writes_is_an_error(sent: Any) -> None:
    """Every request has an answer, and no header has a control character or another line."""
    method, path, query, fields, client = sent
    token, near = bearer("a-long-secret"), from_networks("10.0.0.0/8", "fe80::/16")
    health = StandIn(results=[result("we\nird", output="a\r\nb\x1b[31m", facts={"\x00": "\n"})])
    for details in ("always", "never", lambda asked: token(asked) or near(asked)):
        endpoints = Endpoints(health, details=details)
        asked = Asked(method, path, query, fields.get, client)
        answer = endpoints.respond(endpoints.find(path), asked)

        assert answer.status in {200, 404, 405}
        assert not any(NO_HEADER.search(name + value) for name, value in answer.headers)
        assert method == "HEAD" or field(answer, "Content-Length") == str(len(answer.body))


# Who sees more.


class Telling:
    """A predicate, and what it was asked."""

    def __init__(self, verdict: Callable[[Asked], Any]) -> None:
        self.verdict = verdict
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Any:
        self.asked.append(asked)
        return self.verdict(asked)


def sees(details: Any, asked: Asked | None = None) -> bool:
    """Tell whether whoever sent *asked* sees more than the status."""
    endpoints = Endpoints(StandIn(results=[result()], details=details))
    answer = endpoints.respond(Place("all"), asked or Asked("GET", "/health"))
    members = json.loads(answer.body)
    assert ("checks" in members) == ("version" in members)
    return "checks" in members


def test_details_are_as_the_health_says_unless_the_endpoints_say_otherwise() -> None:
    """A port for operators may show what the public one does not."""
    health = StandIn(results=[result()], details="never")

    assert json.loads(ask(Endpoints(health)).body) == {"status": "pass"}
    assert "checks" in json.loads(ask(Endpoints(health, details="always")).body)


def test_predicate_decides_by_what_is_asked() -> None:
    """It gets the whole of it."""
    predicate = Telling(lambda asked: asked.header("x-staff") == "yes")
    staff = Asked("GET", "/health", "a=b", {"x-staff": "yes"}.get, "192.0.2.1")

    assert sees(predicate, staff)
    assert not sees(predicate)
    assert predicate.asked[0] is staff


def test_predicate_that_raises_says_no() -> None:
    """And is no error of the endpoint's."""
    assert not sees(Telling(lambda _asked: 1 / 0))
    assert not sees(Telling(lambda _asked: None))


def test_coroutine_says_no() -> None:
    """It would count as a yes. One that is plainly asynchronous is refused at once."""

    async def later(_asked: Asked) -> bool:
        return True

    hidden = Telling(later)
    with pytest.raises(TypeError, match="details must be an ordinary function"):
        Endpoints(StandIn(), details=later)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        assert not sees(hidden)
