"""What both middlewares do alike: who is let in, in which order, and what the others are told."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from typing import Any

import pytest
from tests.support.naming import named
from tests.web.support import WORLDS, Asgi, SpyGate, World, Wsgi, hello

from resilient import CircuitBreaker, RateLimiter, errors, time_left
from resilient.asgi import Maintenance, api_key, client_address, requested_priority, user
from resilient.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    MaintenanceError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RateLimitedError,
    RejectedError,
    ThrottledError,
)
from resilient.testing import FakeClock
from resilient.web.problem import REFUSALS

PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types#"


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]


def raiser(error: BaseException) -> Any:
    def handler() -> tuple[int, bytes]:
        raise error

    return handler


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class TestRateLimits:
    def test_admitted_request_is_answered_by_the_app_and_told_what_is_left(self, world: World) -> None:
        """The app's answer passes, and the two fields of the draft tell of the limit."""
        app = world.middleware(rate_limit=RateLimiter("3/minute", clock=FakeClock()))

        reply = world.get(app)

        assert (reply.status, reply.body) == (200, b"hello")
        assert reply["RateLimit"] == '"3/minute";r=2;t=20'
        assert reply["RateLimit-Policy"] == '"3/minute";q=3;w=60'
        assert reply["Retry-After"] is None

    def test_denied_request_is_answered_with_429_and_when_to_come_back(self, world: World) -> None:
        """The document of the draft, and two fields that agree on a time that is not early."""
        clock = FakeClock()
        app = world.middleware(rate_limit=RateLimiter("1/minute", clock=clock))
        world.get(app)
        clock.advance(0.5)

        reply = world.get(app)

        assert reply.status == 429
        assert reply["Retry-After"] == "60"
        assert reply["RateLimit"] == '"1/minute";r=0;t=60'
        assert reply["Content-Type"] == "application/problem+json"
        assert reply["Cache-Control"] == "no-store"
        assert reply["Content-Length"] == str(len(reply.body))
        document = json.loads(reply.body)
        assert document["type"] == f"{PROBLEM_TYPES}quota-exceeded"
        assert document["status"] == 429
        assert document["violated-policies"] == ["1/minute"]

    def test_waiting_as_long_as_told_is_enough(self, world: World) -> None:
        """Whoever comes back after `Retry-After` is let in."""
        clock = FakeClock()
        app = world.middleware(rate_limit=RateLimiter("7/minute", clock=clock))
        for _ in range(7):
            world.get(app)
        clock.advance(0.3)

        clock.advance(int(world.get(app)["Retry-After"] or "0"))

        assert world.get(app).status == 200

    def test_each_client_has_its_own_limit(self, world: World) -> None:
        """By default a client is an address."""
        app = world.middleware(rate_limit="1/hour")

        statuses = [world.get(app, peer=peer).status for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]

        assert statuses == [200, 200, 429]

    def test_forwarded_addresses_do_not_help_strangers(self, world: World) -> None:
        """However many addresses a client invents, it is one client."""
        app = world.middleware(rate_limit="1/hour")

        statuses = [
            world.get(app, headers={"x-forwarded-for": f"198.51.100.{n}", "forwarded": f"for=198.51.100.{n}"})
            for n in range(20)
        ]

        assert [reply.status for reply in statuses].count(200) == 1

    def test_forwarded_addresses_count_behind_declared_proxies(self, world: World) -> None:
        """Behind a declared proxy, its clients are told apart."""
        app = world.middleware(rate_limit="1/hour", trusted="192.0.2.1")

        statuses = [
            world.get(app, headers={"x-forwarded-for": f"1.1.1.1, 198.51.100.{n}"}).status for n in (1, 2, 1)
        ]

        assert statuses == [200, 200, 429]

    def test_most_specific_pattern_decides_alone(self, world: World) -> None:
        """One limit applies to a request: that of the exact path, else of the longest prefix, else of all."""
        app = world.middleware(
            rate_limit={"/api/*": "8/hour", "/api/v2/*": "7/hour", "*": "9/hour", "/api/login": "1/hour"}
        )

        names = [world.get(app, path)["RateLimit-Policy"] for path in ("/", "/api/x", "/api/login", "/api")]

        api = '"/api/*";q=8;w=3600'
        assert names == ['"*";q=9;w=3600', api, '"/api/login";q=1;w=3600', api]
        assert world.get(app, "/api/v2/x")["RateLimit-Policy"] == '"/api/v2/*";q=7;w=3600'
        assert world.get(app, "/api/login").status == 429
        assert world.get(app, "/api/x").status == 200

    def test_path_without_a_pattern_has_no_limit(self, world: World) -> None:
        """A mapping without `*` limits what it names."""
        app = world.middleware(rate_limit={"/login": "1/hour"})

        replies = [world.get(app, "/other") for _ in range(3)]

        assert [reply.status for reply in replies] == [200] * 3
        assert replies[0]["RateLimit"] is None

    def test_key_of_none_lifts_the_limit(self, world: World) -> None:
        """A key function may except requests."""
        app = world.middleware(rate_limit="1/hour", key=lambda request: request.header("x-me"))

        assert [world.get(app).status for _ in range(3)] == [200] * 3
        assert [world.get(app, headers={"x-me": "a"}).status for _ in range(2)] == [200, 429]

    def test_keys_do_not_show(self, world: World) -> None:
        """No part of an answer holds the key it is about."""
        app = world.middleware(rate_limit=RateLimiter("1/hour", name="api"), key=api_key())
        replies = [world.get(app, headers={"x-api-key": "s3cret"}) for _ in range(2)]

        assert replies[1].status == 429
        assert not [
            text
            for reply in replies
            for text in (*map(str, reply.fields), str(reply.body))
            if "s3cret" in text
        ]

    def test_legacy_dialect_tells_the_time_of_day(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`X-RateLimit-Reset` is in seconds since 1970."""
        monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
        app = world.middleware(rate_limit=RateLimiter("2/minute", clock=FakeClock()), headers="legacy")

        reply = world.get(app)

        assert reply["X-RateLimit-Limit"] == "2"
        assert reply["X-RateLimit-Remaining"] == "1"
        assert reply["X-RateLimit-Reset"] == "1700000031"
        assert reply["RateLimit"] is None

    @pytest.mark.parametrize(("headers", "told"), [("both", 5), ("ietf", 2), ("legacy", 3), (None, 0)])
    def test_dialects_decide_which_fields_there_are(self, world: World, headers: Any, told: int) -> None:
        """Both, one, the other or none; a refusal is one in each."""
        app = world.middleware(rate_limit="1/hour", headers=headers)

        for status in (200, 429):
            reply = world.get(app)
            assert reply.status == status
            assert len([name for name, _ in reply.fields if "ratelimit" in name.lower()]) == told
            assert (reply["Retry-After"] is not None) == (status == 429)

    def test_head_gets_the_fields_of_get_and_no_body(self, world: World) -> None:
        """A refusal of HEAD tells the length of what GET would get."""
        app = world.middleware(rate_limit="1/hour")
        world.get(app)

        get, head = world.get(app), world.get(app, method="HEAD")

        assert (head.status, head.body) == (429, b"")
        assert head["Content-Length"] == get["Content-Length"] == str(len(get.body))


class TestRefusals:
    """Every error that is answered, raised by the app."""

    @pytest.mark.parametrize(
        ("error", "status", "kind"),
        [
            (RateLimitedError("r", retry_after=3.2), 429, f"{PROBLEM_TYPES}quota-exceeded"),
            (CircuitOpenError("c", retry_after=3.2), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (BulkheadFullError("b"), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (MaintenanceError("m", retry_after=3.2), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (PoolTimeoutError("p"), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (PoolFullError("f"), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (PoolUnavailableError("u", retry_after=3.2), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (ThrottledError("a"), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (RejectedError("x"), 503, f"{PROBLEM_TYPES}temporary-reduced-capacity"),
            (DeadlineExceededError("d"), 504, "about:blank"),
            (CallTimeoutError("t"), 504, "about:blank"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
    )
    def test_error_is_answered(self, world: World, error: Exception, status: int, kind: str) -> None:
        """Status and type are those of the error's class; its message stays inside."""
        error.args = ("payments at 10.0.0.7 is down",)

        reply = world.get(world.middleware(raiser(error)))

        document = json.loads(reply.body)
        assert (reply.status, document["status"], document["type"]) == (status, status, kind)
        assert reply["Content-Type"] == "application/problem+json"
        assert b"payments" not in reply.body
        assert "10.0.0.7" not in str(reply.fields)

    def test_every_refusal_is_tried(self) -> None:
        """No class of error escapes the test above."""
        marks = self.test_error_is_answered.pytestmark  # type: ignore[attr-defined]
        tried = {type(row[0]) for row in marks[0].args[1]}

        known = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, REFUSALS)}
        assert known == tried

    @pytest.mark.parametrize(
        ("left", "least", "most"), [(3.2, 4, 6), (None, 1, 3), (-5.0, 0, 2), (100.0, 100, 150)]
    )
    def test_overload_spreads_those_who_come_back(
        self, world: World, left: float | None, least: int, most: int
    ) -> None:
        """`Retry-After` of a 503 is never early, at most half as long again, and not the same for all."""
        app = world.middleware(raiser(CircuitOpenError("c", retry_after=left)))

        told = {int(world.get(app)["Retry-After"] or "-1") for _ in range(60)}

        assert least <= min(told) <= max(told) <= most
        assert len(told) > 1

    @pytest.mark.parametrize("left", [None, math.inf, math.nan, 1e12])
    def test_time_that_is_not_known_is_not_told(self, world: World, left: float | None) -> None:
        """A quota that never comes back has no `Retry-After`."""
        reply = world.get(world.middleware(raiser(RateLimitedError("r", retry_after=left))))

        assert reply.status == 429
        assert reply["Retry-After"] is None

    def test_limit_inside_the_app_is_told(self, world: World) -> None:
        """A `RateLimiter` on a function of the app answers with its own quota."""
        inner = RateLimiter("1/minute", name="exports", clock=FakeClock())
        app = world.middleware(inner(hello))
        world.get(app)

        reply = world.get(app)

        assert reply.status == 429
        assert reply["RateLimit"] == '"exports";r=0;t=60'
        assert reply["RateLimit-Policy"] == '"exports";q=1;w=60'
        assert json.loads(reply.body)["violated-policies"] == ["exports"]

    def test_error_of_the_app_is_its_own(self, world: World) -> None:
        """What is no refusal passes, and so does a timeout that is not ours."""
        for error in (ValueError("bad"), TimeoutError("theirs"), KeyboardInterrupt()):
            gate = SpyGate()
            with pytest.raises(type(error)) as caught:
                world.get(world.middleware(raiser(error), shed=gate))
            assert caught.value is error
            assert gate.left == [error]


class TestSeveral:
    """Middlewares of ours in one another, as where an app is mounted in an app."""

    @pytest.mark.parametrize("headers", ["ietf", "legacy", "both", None])
    @pytest.mark.parametrize("inner", ["9/hour", "1/hour"])
    def test_limits_of_both_are_told_of_once(self, world: World, headers: Any, inner: str) -> None:
        """By the outer one: lists hold both; of the older fields there is one each, about the inner."""
        app = world.middleware(rate_limit=inner, headers=headers)
        app = world.module.ResilienceMiddleware(app, rate_limit="7/hour", headers=headers)

        for status in (200, 200 if inner == "9/hour" else 429):
            reply = world.get(app)
            assert reply.status == status
            ietf, legacy = headers in {"ietf", "both"}, headers in {"legacy", "both"}
            assert reply["X-RateLimit-Limit"] == (inner.partition("/")[0] if legacy else None)
            names = [item.strip().partition(";")[0] for item in (reply["RateLimit"] or "").split(",")]
            assert names == (['"7/hour"', f'"{inner}"'] if ietf else [""])

    def test_limit_of_the_inner_one_alone_is_told(self, world: World) -> None:
        """In its own words, and also where the outer one is not asked."""
        inner = world.middleware(rate_limit="9/hour", headers="legacy", exempt=())
        app = world.module.ResilienceMiddleware(inner, exempt=["/exempt"])

        for path in ("/", "/exempt"):
            reply = world.get(app, path)
            assert (reply["X-RateLimit-Limit"], reply["RateLimit"]) == ("9", None)


class TestShedding:
    def test_full_gate_is_answered_with_503(self, world: World) -> None:
        """A gate's refusal is an answer; the app is not called."""
        calls: list[int] = []
        app = world.middleware(lambda: calls.append(1) or (200, b""), shed=SpyGate(places=0))

        reply = world.get(app)

        assert (reply.status, calls) == (503, [])
        assert reply["Retry-After"]

    def test_place_is_held_while_the_app_works_and_given_back_once(self, world: World) -> None:
        """The gate sees one visitor, inside during the call and gone after it."""
        gate = SpyGate()
        held: list[int] = []

        world.get(world.middleware(lambda: held.append(gate.held) or hello(), shed=gate))

        assert (held, gate.held, gate.left) == ([1], 0, [None])

    def test_denied_request_takes_no_place(self, world: World) -> None:
        """Rate limits come before the gate."""
        gate = SpyGate()
        app = world.middleware(rate_limit="1/hour", shed=gate)

        assert [world.get(app).status for _ in range(3)] == [200, 429, 429]
        assert gate.entered == 1

    def test_shed_request_gets_its_permit_back(self, world: World) -> None:
        """A client that was refused for want of room has used nothing of its limit."""
        limiter = RateLimiter("2/hour")
        app = world.middleware(rate_limit=limiter, shed=SpyGate(places=0), key=lambda request: "k")

        assert [world.get(app).status for _ in range(4)] == [503] * 4
        assert limiter.peek("k").remaining == 2

    def test_shed_request_without_a_limit_has_nothing_to_get_back(self, world: World) -> None:
        """A key of None lifts the limit."""
        app = world.middleware(rate_limit="2/hour", shed=SpyGate(places=0), key=lambda request: None)

        assert world.get(app).status == 503

    def test_shed_request_keeps_the_fields_of_its_limit(self, world: World) -> None:
        """A 503 tells of the limit too, as it was decided."""
        reply = world.get(world.middleware(rate_limit="5/hour", shed=SpyGate(places=0)))

        assert reply.status == 503
        assert (reply["RateLimit"] or "").startswith('"5/hour";r=4')

    def test_answers_of_500_and_above_are_failures(self, world: World) -> None:
        """A breaker as a gate opens when the app answers with errors, though it raises none."""
        breaker = CircuitBreaker("app", fail_max=2)
        app = world.middleware(lambda: (500, b"oops"), shed=breaker)

        assert [world.get(app).status for _ in range(4)] == [500, 500, 503, 503]
        assert breaker.stats().state == "open"

    def test_answers_below_500_are_successes(self, world: World) -> None:
        """A client's mistake is nothing against the app."""
        gate = SpyGate()
        world.get(world.middleware(lambda: (404, b"no"), shed=gate))

        assert gate.left == [None]

    def test_refusal_inside_the_app_is_no_evidence(self, world: World) -> None:
        """The gate is given the refusal itself, which policies do not count."""
        gate, error = SpyGate(), CircuitOpenError("inner")

        assert world.get(world.middleware(raiser(error), shed=gate)).status == 503
        assert gate.left == [error]

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (caused(RuntimeError("response already started"), CircuitOpenError("a")), CircuitOpenError),
            (caused(ValueError("a bug"), CircuitOpenError("a")), ValueError),
            (caused(RuntimeError("a bug"), ValueError("a")), RuntimeError),
            (ExceptionGroup("tasks", [CircuitOpenError("a"), BulkheadFullError("b")]), CircuitOpenError),
            (ExceptionGroup("tasks", [ExceptionGroup("more", [CircuitOpenError("a")])]), CircuitOpenError),
            (ExceptionGroup("tasks", [CircuitOpenError("a"), CallTimeoutError("b")]), CallTimeoutError),
            (ExceptionGroup("tasks", [CircuitOpenError("a"), ValueError("b")]), ExceptionGroup),
            (ExceptionGroup("tasks", [ValueError("b")]), ExceptionGroup),
        ],
        ids=repr,
    )
    def test_refusal_in_the_guise_of_another_error_is_none_of_its_faults(
        self, world: World, error: Exception, told: type[Exception]
    ) -> None:
        """Frameworks and task groups wrap refusals; the error itself is the app's, and passes."""
        gate = SpyGate()

        with pytest.raises(type(error)) as caught:
            world.get(world.middleware(raiser(error), shed=gate))

        assert caught.value is error
        assert [type(one) for one in gate.left] == [told]

    def test_gate_that_refuses_with_hindsight_changes_nothing(self, world: World) -> None:
        """A breaker that raises on the call that trips it does so to the next request."""
        breaker = CircuitBreaker("app", fail_max=1, throw_new_error_on_trip=True)
        app = world.middleware(lambda: (500, b"oops"), shed=breaker)

        assert [world.get(app).status for _ in range(2)] == [500, 503]


class TestDeadlines:
    def test_app_sees_the_deadline(self, world: World) -> None:
        """What is below keeps to it, and afterwards it is over."""
        seen: list[float | None] = []
        app = world.middleware(lambda: seen.append(time_left()) or hello(), deadline=5)

        world.get(app)

        assert seen[0] is not None
        assert 4 < seen[0] <= 5
        assert time_left() is None

    @pytest.mark.parametrize(
        ("headers", "least", "most"),
        [
            ({"grpc-timeout": "2S"}, 1, 2),
            ({"grpc-timeout": "2000m"}, 1, 2),
            ({"grpc-timeout": "1M"}, 4, 5),
            ({"grpc-timeout": "99999999H"}, 4, 5),
            ({"x-envoy-expected-rq-timeout-ms": "2000"}, 1, 2),
            ({"x-request-timeout-ms": "2000"}, 1, 2),
            ({"x-request-timeout-ms": " 2000 "}, 1, 2),
            ({"x-request-timeout-ms": "2000", "grpc-timeout": "3S"}, 1, 2),
            ({"x-request-timeout-ms": "4000", "grpc-timeout": "3S"}, 2, 3),
            ({"x-request-timeout-ms": "nonsense", "grpc-timeout": "3S"}, 2, 3),
            ({"x-request-timeout-ms": "2.5"}, 4, 5),
            ({"x-request-timeout-ms": "-1"}, 4, 5),
            ({"x-request-timeout-ms": "2000,1"}, 4, 5),
            ({"x-request-timeout-ms": "9" * 400}, 4, 5),
            ({"x-request-timeout-ms": ""}, 4, 5),
            ({"x-request-timeout-ms": "\u00b2"}, 4, 5),
            ({"grpc-timeout": "123456789S"}, 4, 5),
            ({"grpc-timeout": "1s"}, 4, 5),
            ({"grpc-timeout": "S"}, 4, 5),
            ({"grpc-timeout": "1 S"}, 4, 5),
        ],
    )
    def test_earliest_of_header_and_setting_counts(
        self, world: World, headers: dict[str, str], least: float, most: float
    ) -> None:
        """Malformed fields are as good as none."""
        seen: list[float] = []
        app = world.middleware(
            lambda: seen.append(time_left() or -1.0) or hello(), deadline=5, trusted="192.0.2.1"
        )

        assert world.get(app, headers=headers).status == 200

        assert least < seen[0] <= most

    def test_header_counts_without_a_setting(self, world: World) -> None:
        """`deadline=None` leaves it to the client."""
        seen: list[float | None] = []
        app = world.middleware(lambda: seen.append(time_left()) or hello(), trusted="192.0.2.1")

        world.get(app)
        world.get(app, headers={"grpc-timeout": "1M"})

        assert seen[0] is None
        assert seen[1] is not None
        assert 59 < seen[1] <= 60

    @pytest.mark.parametrize("headers", [{"grpc-timeout": "0S"}, {"x-request-timeout-ms": "0"}])
    @pytest.mark.parametrize("deadline", [None, 5])
    def test_deadline_that_has_passed_is_answered_at_once(
        self, world: World, headers: dict[str, str], deadline: float | None
    ) -> None:
        """504; the app is not called, no permit of the limit is used and no place taken."""
        calls: list[int] = []
        gate, limiter = SpyGate(), RateLimiter("1/hour")
        app = world.middleware(
            lambda: calls.append(1) or hello(),
            shed=gate,
            deadline=deadline,
            rate_limit=limiter,
            trusted="192.0.2.1",
        )

        reply = world.get(app, headers=headers)

        assert (reply.status, calls, gate.entered) == (504, [], 0)
        assert limiter.stats().allowed == 0
        assert time_left() is None

    @pytest.mark.parametrize("peer", ["192.0.2.2", None])
    @pytest.mark.parametrize(
        "field", ["grpc-timeout", "x-envoy-expected-rq-timeout-ms", "x-request-timeout-ms"]
    )
    def test_strangers_set_no_deadline(self, world: World, field: str, peer: str | None) -> None:
        """Whoever could would have what is inside time out for everybody: only proxies are believed."""
        seen: list[float | None] = []
        app = world.middleware(lambda: seen.append(time_left()) or hello(), trusted="192.0.2.1")
        told = {field: "0n" if field == "grpc-timeout" else "0"}

        assert world.get(app, headers=told, peer=peer).status == 200
        assert seen == [None]
        assert world.get(app, headers=told).status == 504

    @pytest.mark.parametrize("handler", [raiser(CallTimeoutError("slow")), lambda: (500, b"slow")])
    def test_time_that_the_client_has_set_is_no_evidence(self, world: World, handler: Any) -> None:
        """What fails after it is an abandonment; after the service's own, a failure."""
        gate = SpyGate()

        def slow() -> tuple[int, bytes]:
            while (time_left() or 0) > 0:
                pass
            return handler()  # type: ignore[no-any-return]

        for deadline, told in ((5, "20m"), (0.02, "5S")):
            app = world.middleware(slow, shed=gate, deadline=deadline, trusted="192.0.2.1")
            world.get(app, headers={"grpc-timeout": told})

        assert isinstance(gate.left[0], asyncio.CancelledError)
        assert isinstance(gate.left[1], Exception)

    @pytest.mark.parametrize(
        ("inner", "outer"), [({}, {"deadline": 0.5}), ({"deadline": 9}, {"deadline": 0.5})]
    )
    def test_client_does_not_lengthen_the_deadline_around(self, world: World, inner: Any, outer: Any) -> None:
        """Of two middlewares, the earliest deadline counts, whoever asks for more."""
        seen: list[float] = []
        app = world.app(lambda: seen.append(time_left() or -1.0) or hello())
        for words in (inner, outer):
            app = world.module.ResilienceMiddleware(app, **words, trusted="192.0.2.1")

        assert world.get(app, headers={"x-request-timeout-ms": "5000"}).status == 200
        assert 0 < seen[0] <= 0.5

    def test_gate_of_an_inner_middleware_knows_who_gave_up(self, world: World) -> None:
        """The outer one has set the client's deadline already."""
        gate = SpyGate()

        def slow() -> tuple[int, bytes]:
            while (time_left() or 0) > 0:
                pass
            raise CallTimeoutError("slow")

        app = world.module.ResilienceMiddleware(
            world.middleware(slow, shed=gate, trusted="192.0.2.1"), trusted="192.0.2.1"
        )

        assert world.get(app, headers={"grpc-timeout": "20m"}).status == 504
        assert [type(error) for error in gate.left] == [asyncio.CancelledError]

    def test_error_ends_the_deadline_too(self, world: World) -> None:
        """Neither a crash nor a refusal leaves it to whoever comes next in this thread."""
        app = world.middleware(raiser(ValueError("bad")), deadline=5, trusted="192.0.2.1")

        with pytest.raises(ValueError, match="bad"):
            world.get(app, headers={"grpc-timeout": "3S"})

        assert time_left() is None


class TestExemptions:
    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/healthz", "/healthz/"])
    def test_probes_pass_whatever_happens(self, world: World, path: str) -> None:
        """Neither maintenance nor a limit, a gate or a deadline touches them."""
        maintenance, gate, limiter = Maintenance(), SpyGate(places=0), RateLimiter("1/hour")
        maintenance.on()
        seen: list[float | None] = []
        app = world.middleware(
            lambda: seen.append(time_left()) or hello(),
            maintenance=maintenance,
            shed=gate,
            rate_limit=limiter,
            deadline=5,
            trusted="192.0.2.1",
        )

        replies = [world.get(app, path, headers={"grpc-timeout": "0S"}) for _ in range(3)]

        assert [reply.status for reply in replies] == [200] * 3
        assert limiter.stats().allowed == limiter.stats().denied == 0
        assert seen == [None] * 3
        assert replies[0]["RateLimit"] is None

    @pytest.mark.parametrize("path", ["/livez//", "//livez", "/LIVEZ", "/livez/../x", "/x/livez"])
    def test_only_the_very_path_is_exempt(self, world: World, path: str) -> None:
        """Nothing that merely looks like an exempt path gets around the limit."""
        app = world.middleware(shed=SpyGate(places=0))

        assert world.get(app, path).status == 503

    def test_patterns_and_other_characters(self, world: World) -> None:
        """The table reads as that of the limits does, beyond ASCII as well."""
        app = world.middleware(shed=SpyGate(places=0), exempt=("/static/*", "/\u00fcber"))

        assert [world.get(app, path).status for path in ("/static/a", "/static", "/\u00fcber", "/livez")] == [
            200,
            200,
            200,
            503,
        ]

    def test_paths_are_those_below_the_mount(self) -> None:
        """Where an app is mounted is not its business, whichever way the server tells it."""
        middleware = Asgi().middleware(shed=SpyGate(places=0), exempt=("/livez", "/apiary"))
        for path, root, status in [
            ("/api/livez", "/api", 200),
            ("/livez", "/api", 200),
            ("/apilivez", "/api", 503),
            ("/api/livez", "", 503),
            ("/api", "/api", 503),
            ("/apiary", "/api", 200),
        ]:
            assert Asgi().get(middleware, path, extra={"root_path": root}).status == status, path
        wsgi = Wsgi().middleware(shed=SpyGate(places=0), exempt=("/livez",))
        assert Wsgi().get(wsgi, "/livez", extra={"SCRIPT_NAME": "/api"}).status == 200


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"app": None}, TypeError, "app must be callable, got None"),
            ({"rate_limit": 5}, TypeError, "rate_limit must be a RateLimiter, a rate such as"),
            ({"rate_limit": {}}, TypeError, "rate_limit must be a RateLimiter, a rate such as"),
            ({"rate_limit": "often"}, ValueError, "rate must read like"),
            (
                {"rate_limit": {"/x": 5}},
                TypeError,
                r"rate_limit\['/x'\] must be a RateLimiter or a rate, got 5",
            ),
            ({"rate_limit": {"x": "1/hour"}}, ValueError, "rate_limit must name paths like .*, got 'x'"),
            ({"rate_limit": {"/a*b": "1/hour"}}, ValueError, "rate_limit must name paths like"),
            ({"rate_limit": {5: "1/hour"}}, TypeError, "rate_limit must name paths as text, got 5"),
            ({"key": "address"}, TypeError, "key must be callable, got 'address'"),
            ({"key": client_address}, TypeError, "key must be a key function: write"),
            ({"key": user}, TypeError, "key must be a key function: write"),
            ({"shed": object()}, TypeError, "shed must be a gate"),
            ({"shed": CircuitBreaker}, TypeError, "shed must be a gate itself, not its class"),
            ({"priority": "critical"}, TypeError, "priority must be callable, got 'critical'"),
            (
                {"priority": requested_priority},
                TypeError,
                "priority must be a function: write requested_prio",
            ),
            ({"exempt": None}, TypeError, "exempt must be several paths, .*got None"),
            ({"exempt": 5}, TypeError, "exempt must be several paths, .*got 5"),
            ({"exempt": [["/x"]]}, TypeError, r"exempt must name paths as text, got \['/x'\]"),
            ({"deadline": 0}, ValueError, "deadline must be greater than 0, got 0"),
            ({"deadline": "5"}, TypeError, "deadline must be a number of seconds"),
            ({"maintenance": True}, TypeError, "maintenance must be a Maintenance or None, got True"),
            ({"exempt": "/livez"}, TypeError, "exempt must be several paths, not one text"),
            ({"exempt": ["livez"]}, ValueError, "exempt must name paths like"),
            ({"exempt": ["/a/*b"]}, ValueError, "exempt must name paths like"),
            ({"exempt": [""]}, ValueError, "exempt must name paths like"),
            ({"headers": "x"}, ValueError, "headers must be one of 'ietf', 'legacy', 'both', got 'x'"),
            ({"headers": 1}, TypeError, "headers must be text, got 1"),
            ({"trusted": "10.0.0.0/33"}, ValueError, "trusted must name networks like .*, got '10.0.0.0/33'"),
            ({"trusted": ["10.0.0.1/8"]}, ValueError, "trusted must name networks like"),
            ({"trusted": [5]}, TypeError, "trusted must name networks as text or ipaddress objects, got 5"),
            ({"trusted": 5}, TypeError, "trusted must be networks or TrustedProxies, got 5"),
            ({"trusted": "::ffff:10.0.0.0/104"}, ValueError, "trusted must name IPv4 networks as such"),
        ],
        ids=named,
    )
    def test_bad_ones_are_refused_by_name(
        self, world: World, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """The message tells parameter, rule and value."""
        with pytest.raises(error, match=message):
            world.module.ResilienceMiddleware(**{"app": lambda: None, **options})

    def test_asynchronous_key_function_is_refused(self, world: World) -> None:
        """Its coroutine would be one key for all."""

        async def key(request: object) -> str:
            return ""

        with pytest.raises(TypeError, match="key must be an ordinary function"):
            world.middleware(key=key)


def test_one_object_serves_both_worlds_and_many_threads() -> None:
    """Limiter and gate may be shared; the count is exact, and every place comes back."""
    limiter, gate = RateLimiter("100/hour"), SpyGate()
    apps = [(world, world.middleware(rate_limit=limiter, shed=gate)) for world in WORLDS]
    statuses: list[int] = []

    def visit(world: World, app: Any) -> None:
        statuses.extend(world.get(app).status for _ in range(40))

    threads = [threading.Thread(target=visit, args=pair) for pair in apps * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses.count(200) == 100
    assert (gate.entered, gate.held) == (100, 0)
