"""How much a request matters: who says so, who is believed, where it holds, and what is told on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.web.support import (
    WORLDS,
    Ask,
    Client,
    Response,
    SpyGate,
    World,
    environ_of,
    hello,
    http_scope,
)

from resilient import Priority, asgi, current_priority, priority, wsgi
from resilient.asgi import TrustedProxies, priority_headers, requested_priority
from resilient.web.door import PROBES

PEER = "192.0.2.1"  # where requests come from in these tests
WORDS = {
    "critical": Priority.CRITICAL,
    "default": Priority.DEFAULT,
    "sheddable": Priority.SHEDDABLE,
    "high": Priority.DEFAULT,
    "medium": Priority.DEFAULT,
    "low": Priority.SHEDDABLE,
    "CriticaL": Priority.CRITICAL,
    "  low ": Priority.SHEDDABLE,
    "probe": Priority.CRITICAL,
}
NONSENSE = (
    "",
    "0",
    "1",
    "urgent",
    "critical, low",
    "low,low",
    "Priority.CRITICAL",
    "\xe9",
    "low;",
    "x" * 9_000,
)


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]


class Seen:
    """What a request was taken for: at the gate, and inside the app."""

    def __init__(self, world: World, **options: Any) -> None:
        self._gate = SpyGate()
        self._inside: list[Priority] = []
        self._world = world
        self._app = world.middleware(self._note, shed=self._gate, **options)

    def _note(self) -> tuple[int, bytes]:
        self._inside.append(current_priority())
        return hello()

    def of(self, path: str = "/", **ask: Any) -> Priority:
        assert self._world.get(self._app, path, **ask).status == 200
        assert self._gate.priorities == self._inside  # both know the same
        return self._inside[-1]


class TestFunction:
    @pytest.mark.parametrize("said", [Priority.CRITICAL, "critical"])
    def test_what_it_says_holds_at_the_gate_and_inside(self, world: World, said: Any) -> None:
        """As a `Priority` or by name."""
        seen = Seen(world, priority=lambda request: said if request.path == "/checkout" else None)

        assert seen.of("/checkout") is Priority.CRITICAL
        assert seen.of("/other") is Priority.DEFAULT

    def test_without_an_answer_the_priority_of_the_context_stays(self, world: World) -> None:
        """A middleware outside, or whoever serves the request, may have set it."""
        seen = Seen(world, priority=lambda request: None)

        with priority("sheddable"):
            assert seen.of() is Priority.SHEDDABLE

    def test_it_holds_for_its_request_only(self, world: World) -> None:
        """Whoever comes next in this thread, or in this task, has its own."""
        app = world.middleware(shed=SpyGate(), priority=lambda request: "critical")

        assert world.get(app).status == 200
        assert current_priority() is Priority.DEFAULT

    def test_it_ends_with_an_error_too(self, world: World) -> None:
        """Be it the app's or the gate's."""

        def fail() -> tuple[int, bytes]:
            raise ValueError("bad")

        for options in ({"shed": SpyGate()}, {"shed": SpyGate(places=0)}):
            app = world.middleware(fail, priority=lambda request: "critical", **options)
            with contextlib.suppress(ValueError):
                world.get(app)
            assert current_priority() is Priority.DEFAULT

    def test_answer_that_is_none_is_a_mistake_that_is_named(self, world: World) -> None:
        """Of whoever wrote the function: what clients say has to be read by `requested_priority`."""
        for answer, error in [("urgent", ValueError), (7, TypeError)]:
            app = world.middleware(priority=lambda request, answer=answer: answer)
            with pytest.raises(error, match=f"what priority= returns must be .*{answer!r}"):
                world.get(app)

    def test_inner_middleware_has_the_last_word(self, world: World) -> None:
        """As it is nearer to the app; where it says nothing, the outer one's holds."""
        gate, outer = SpyGate(), SpyGate()
        inner = world.middleware(shed=gate, priority=lambda request: request.header("x-inner"))
        app = world.module.ResilienceMiddleware(inner, shed=outer, priority=lambda request: "sheddable")

        world.get(app)
        world.get(app, headers={"x-inner": "critical"})

        assert outer.priorities == [Priority.SHEDDABLE] * 2
        assert gate.priorities == [Priority.SHEDDABLE, Priority.CRITICAL]

    def test_request_without_a_gate_has_its_priority(self, world: World) -> None:
        """For the app's own bulkheads, and for the calls it makes."""
        told: list[dict[str, str]] = []

        def handler() -> tuple[int, bytes]:
            told.append(priority_headers())
            return hello()

        world.get(world.middleware(handler, priority=lambda request: "critical"))

        assert told == [{"x-request-priority": "critical"}]


class TestProbes:
    @pytest.mark.parametrize("path", [*PROBES, "/livez/"])
    def test_those_that_are_not_exempt_are_probes(self, world: World, path: str) -> None:
        """They have slots of their own in a bulkhead, instead of passing it by."""
        assert Seen(world, exempt=()).of(path) is Priority.PROBE
        assert Seen(world, exempt=(), priority=lambda request: None).of(path) is Priority.PROBE

    def test_function_has_the_last_word(self, world: World) -> None:
        """Such as where the path is used for something else."""
        assert Seen(world, exempt=(), priority=lambda request: "default").of("/health") is Priority.DEFAULT

    def test_exempt_ones_are_touched_by_nothing(self, world: World) -> None:
        """The function is not even asked."""
        asked: list[str] = []
        app = world.middleware(
            lambda: asked.append(current_priority().name) or hello(),
            shed=SpyGate(places=0),
            priority=lambda request: asked.append(request.path),
            exempt=("/livez",),
        )

        assert world.get(app, "/livez").status == 200
        assert asked == ["DEFAULT"]
        assert world.get(app, "/readyz").status == 503
        assert asked == ["DEFAULT", "/readyz"]

    def test_other_paths_are_none(self, world: World) -> None:
        """Nothing that merely looks like one."""
        seen = Seen(world, exempt=())

        assert {seen.of(path) for path in ("/", "/livez/x", "//livez", "/LIVEZ")} == {Priority.DEFAULT}


class TestRequestedPriority:
    @pytest.mark.parametrize("word", WORDS)
    def test_trusted_peers_are_believed_as_far_as_critical(self, world: World, word: str) -> None:
        """Our own names, and those of OpenTelemetry's `service.criticality`."""
        seen = Seen(world, priority=requested_priority(), trusted=PEER)

        assert seen.of(headers={"x-request-priority": word}) is WORDS[word]

    @pytest.mark.parametrize("word", WORDS)
    def test_strangers_may_only_stand_back(self, world: World, word: str) -> None:
        """Whatever they say, they are not put before anybody."""
        seen = Seen(world, priority=requested_priority(), trusted="10.0.0.0/8")
        lowered = WORDS[word] is Priority.SHEDDABLE

        expected = Priority.SHEDDABLE if lowered else Priority.DEFAULT
        assert seen.of(headers={"x-request-priority": word}) is expected
        with priority("sheddable"):
            assert seen.of(headers={"x-request-priority": word}) is Priority.SHEDDABLE

    @pytest.mark.parametrize("value", NONSENSE)
    @pytest.mark.parametrize("trusted", [(), PEER])
    def test_nonsense_is_ignored(self, world: World, value: str, trusted: Any) -> None:
        """As if it were not there."""
        seen = Seen(world, priority=requested_priority(), trusted=trusted)

        assert seen.of(headers={"x-request-priority": value}) is Priority.DEFAULT

    @given(value=st.text(st.characters(max_codepoint=255)), trusted=st.booleans())
    def test_no_value_makes_it_fail_or_a_probe(self, value: str, *, trusted: bool) -> None:
        """Whoever sends it."""
        for world in WORLDS:
            seen = Seen(world, priority=requested_priority(), trusted=PEER if trusted else ())

            assert seen.of(headers={"x-request-priority": value}) in WORDS.values()

    def test_field_may_have_another_name(self, world: World) -> None:
        """In whatever case."""
        seen = Seen(world, priority=requested_priority("X-Criticality"), trusted=PEER)

        assert seen.of(headers={"x-criticality": "critical"}) is Priority.CRITICAL
        assert seen.of(headers={"x-request-priority": "critical"}) is Priority.DEFAULT

    def test_trust_may_be_its_own(self, world: World) -> None:
        """Who is believed about addresses need not be so about importance, and the other way round."""
        words = {"x-request-priority": "critical"}
        by_stranger = Seen(world, priority=requested_priority(trusted="10.0.0.1"), trusted=PEER)
        by_friend = Seen(world, priority=requested_priority(trusted=TrustedProxies(PEER)))

        assert by_stranger.of(headers=words) is Priority.DEFAULT
        assert by_friend.of(headers=words) is Priority.CRITICAL

    @pytest.mark.parametrize(
        ("highest", "word", "expected"),
        [
            ("probe", "probe", Priority.PROBE),
            (Priority.DEFAULT, "critical", Priority.DEFAULT),
            ("default", "low", Priority.SHEDDABLE),
        ],
    )
    def test_highest_is_the_most_that_anybody_gets(
        self, world: World, highest: Any, word: str, expected: Priority
    ) -> None:
        """Of those who are trusted; strangers get nothing."""
        words = {"x-request-priority": word}
        asked = requested_priority(highest=highest)

        assert Seen(world, priority=asked, trusted=PEER).of(headers=words) is expected
        assert Seen(world, priority=asked).of(headers=words) >= Priority.DEFAULT

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"header": "not a name"}, ValueError, "header must be the name of a header field"),
            ({"header": None}, TypeError, "header must be text"),
            ({"highest": "urgent"}, ValueError, "highest must be one of 'probe'"),
            ({"highest": 1.5}, TypeError, "highest must be a Priority or one of"),
            ({"trusted": 5}, TypeError, "trusted must be networks"),
        ],
    )
    def test_bad_arguments_are_refused_by_name(
        self, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """When the app is made, not when the first request comes."""
        with pytest.raises(error, match=message):
            requested_priority(**arguments)


class TestPriorityHeaders:
    @pytest.mark.parametrize("level", Priority)
    def test_next_service_reads_what_is_told(self, world: World, level: Priority) -> None:
        """Where it trusts us; a probe of ours is no probe of its own."""
        seen = Seen(world, priority=requested_priority(), trusted=PEER)

        with priority(level):
            headers = priority_headers()

        assert seen.of(headers=headers) is max(level, Priority.CRITICAL)

    def test_default_needs_no_words(self) -> None:
        """Nor does a context in which nothing was said."""
        assert priority_headers() == {}

    def test_field_may_have_another_name(self) -> None:
        """That the other service knows."""
        with priority("critical"):
            assert priority_headers("X-Criticality") == {"x-criticality": "critical"}
            with pytest.raises(ValueError, match="header must be the name of a header field"):
                priority_headers("a: b\r\n")


class TestContext:
    """Where the priority holds, and where no longer."""

    def test_thread_serves_others_between_the_chunks_of_a_body(self) -> None:
        """Each is made with the priority of its request; in between there is none."""
        made: list[Priority] = []

        def body() -> Iterator[bytes]:
            for chunk in (b"a", b"b"):
                made.append(current_priority())
                yield chunk
            made.append(current_priority())

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return body()

        guarded = wsgi.ResilienceMiddleware(app, priority=lambda request: request.path[1:])
        bodies = [guarded(environ_of(Ask(path)), Response().start) for path in ("/critical", "/sheddable")]
        for chunks in (*bodies, *bodies):
            assert next(iter(chunks))
            assert current_priority() is Priority.DEFAULT
        with priority("probe"):
            for chunks in bodies:
                assert list(chunks) == []
                chunks.close()
            assert current_priority() is Priority.PROBE

        assert made == [Priority.CRITICAL, Priority.SHEDDABLE] * 3

    async def test_task_that_asks_twice_is_as_before_each_time(self) -> None:
        """Some servers, and tests, serve several requests in one task."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": current_priority().name.encode()})
            await asyncio.sleep(0)
            background.append(current_priority())

        background: list[Priority] = []
        guarded = asgi.ResilienceMiddleware(app, priority=lambda request: request.path[1:] or None)
        bodies = []
        for path in ("/critical", "/"):
            client = Client()
            await guarded(http_scope(Ask(path)), client.receive, client.send)
            bodies.append(client.sent[-1]["body"])
            assert current_priority() is Priority.DEFAULT

        assert bodies == [b"CRITICAL", b"DEFAULT"]
        assert background == [Priority.CRITICAL, Priority.DEFAULT]  # it is the request's work still
