"""Bulkheads and throttles at the door: who is refused, who waits and how long, and what they learn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.web.support import (
    WORLDS,
    Asgi,
    Ask,
    Client,
    Patient,
    Response,
    SpyGate,
    World,
    environ_of,
    hello,
    http_scope,
)

from resilient import (
    AIMD,
    AdaptiveThrottle,
    Bulkhead,
    CircuitOpenError,
    Gradient,
    Priority,
    RateLimiter,
    current_priority,
    time_left,
    wsgi,
)
from resilient.asgi import FaultyAnswerError, Gate, ResilienceMiddleware, requested_priority
from resilient.errors import CallTimeoutError, DeadlineExceededError
from resilient.testing import FakeClock
from resilient.web.headers import pause

PEER = "192.0.2.1"  # where requests come from in these tests


@pytest.fixture(params=WORLDS, ids=repr)
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]


@contextlib.contextmanager
def taken(bulkhead: Bulkhead, slots: int, level: Priority | None = None) -> Iterator[None]:
    """Take *slots* of a bulkhead's, as requests under way would."""
    with contextlib.ExitStack() as blocks:
        for _ in range(slots):
            blocks.enter_context(bulkhead.calling(level))
        yield


def failing_throttle() -> AdaptiveThrottle:
    """Return a throttle that refuses everybody it may refuse."""
    throttle = AdaptiveThrottle("app", min_calls=1, max_rejection=1.0, random=lambda: 0.0)
    for _ in range(5):
        with contextlib.suppress(ValueError), throttle.calling():
            raise ValueError("no")
        if throttle.stats().probability > 0.0:
            return throttle
    raise AssertionError("it does not throttle")


class TestRefusals:
    @pytest.mark.parametrize("make", [lambda: Bulkhead("app", 1), failing_throttle])
    def test_is_a_503_with_a_time_that_is_spread(self, world: World, make: Any) -> None:
        """Nobody knows when there will be room; clients come back soon, and not all at once."""
        gate = make()
        app = world.middleware(shed=gate)

        with taken(gate, 1) if isinstance(gate, Bulkhead) else contextlib.nullcontext():
            replies = [world.get(app) for _ in range(40)]

        assert {reply.status for reply in replies} == {503}
        assert {reply["Content-Type"] for reply in replies} == {"application/problem+json"}
        assert json.loads(replies[0].body)["detail"] == "The service cannot take this request now."
        waits = {int(reply["Retry-After"] or "0") for reply in replies}
        assert min(waits) >= 1
        assert waits == {pause(None) for _ in range(200)}  # spread as every other 503
        assert len(waits) > 1

    def test_nothing_of_the_bulkhead_is_told(self, world: World) -> None:
        """Neither its name nor how full it is."""
        gate = Bulkhead("payments at 10.0.0.7", 1)
        with taken(gate, 1):
            reply = world.get(world.middleware(shed=gate))

        assert b"payments" not in reply.body
        assert "payments" not in str(reply.fields)

    def test_permit_of_the_rate_limit_comes_back(self, world: World) -> None:
        """Whoever is shed has not been served."""
        gate, limiter = Bulkhead("app", 1), RateLimiter("2/hour")
        app = world.middleware(shed=gate, rate_limit=limiter)

        with taken(gate, 1):
            assert [world.get(app).status for _ in range(5)] == [503] * 5
        assert [world.get(app).status for _ in range(3)] == [200, 200, 429]

    def test_throttle_learns_from_answers(self, world: World) -> None:
        """Faulty ones are none that the app has accepted."""
        gate: Gate = AdaptiveThrottle("app", min_calls=1, random=lambda: 0.0)
        statuses = iter([200, 500, 500, 500])
        app = world.middleware(lambda: (next(statuses), b""), shed=gate)

        assert [world.get(app).status for _ in range(5)] == [200, 500, 500, 503, 503]


class TestSlots:
    def test_is_held_while_the_app_works(self, world: World) -> None:
        """And is free with the end of the answer, good or bad."""
        gate = Bulkhead("app", 3)
        held: list[int] = []

        def handler() -> tuple[int, bytes]:
            held.append(gate.stats().in_use)
            if len(held) == 2:
                raise ValueError("bad")
            return hello()

        app = world.middleware(handler, shed=gate)
        for _ in range(3):
            with contextlib.suppress(ValueError):
                world.get(app)
            assert gate.stats().in_use == 0

        assert held == [1, 1, 1]
        assert gate.stats().calls == 3

    async def test_stream_holds_it_to_its_end(self) -> None:
        """Also between its chunks, and not in the background work after it."""
        gate = Bulkhead("app", 1)
        held: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            for more in (True, True, False):
                await send({"type": "http.response.body", "body": b"x", "more_body": more})
                held.append(gate.stats().in_use)

        client = Client()
        await ResilienceMiddleware(app, shed=gate)(http_scope(Ask()), client.receive, client.send)

        assert held == [1, 1, 0]

    def test_body_holds_it_until_it_is_closed(self) -> None:
        """As PEP 3333 has the server do in every case; once more does no harm."""
        gate = Bulkhead("app", 1)

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            yield b"a"
            yield b"b"

        guarded = wsgi.ResilienceMiddleware(app, shed=gate)
        body: Any = guarded(environ_of(Ask()), Response().start)
        assert gate.stats().in_use == 1
        assert list(body) == [b"a", b"b"]
        assert gate.stats().in_use == 1
        body.close()
        body.close()

        assert gate.stats().in_use == 0
        with taken(gate, 1):  # not two slots, either
            assert wsgi_status(guarded) == 503


def wsgi_status(app: Any) -> int:
    response = Response()
    body = app(environ_of(Ask()), response.start)
    list(body)
    return response.reply.status


class TestWaiting:
    def test_lasts_no_longer_than_the_time_the_client_has(self, world: World) -> None:
        """The queue is bounded by what is left of the deadline, and the answer says that the time is up."""
        gate = Bulkhead("app", 1, max_wait=30)
        calls: list[Any] = []
        app = world.middleware(lambda: calls.append(1) or hello(), shed=gate, trusted=PEER)
        began = time.monotonic()

        with taken(gate, 1):
            reply = patiently(world, app, {"x-request-timeout-ms": "60"})

        assert reply.status == 504
        assert 0.05 <= time.monotonic() - began < 5.0
        assert calls == []
        assert gate.stats().waiting == 0

    def test_lasts_no_longer_than_the_service_allows(self, world: World) -> None:
        """Its own deadline bounds it in the same way."""
        gate = Bulkhead("app", 1, max_wait=30)
        app = world.middleware(shed=gate, deadline=0.06)

        with taken(gate, 1):
            assert patiently(world, app, {}).status == 504

    def test_that_ends_before_the_deadline_is_a_503(self, world: World) -> None:
        """There is time left, but no room."""
        gate = Bulkhead("app", 1, max_wait=0.02)
        app = world.middleware(shed=gate, deadline=30)

        with taken(gate, 1):
            assert patiently(world, app, {}).status == 503
        assert gate.stats().gave_up == 1

    def test_gives_back_the_permit_of_the_rate_limit(self, world: World) -> None:
        """If it was in vain, under threads; a task is cut off, and by then its time was its own."""
        gate, limiter = Bulkhead("app", 1, max_wait=0.02), RateLimiter("1/hour")
        app = world.middleware(shed=gate, rate_limit=limiter)

        with taken(gate, 1):
            assert patiently(world, app, {}).status == 503
        assert patiently(world, app, {}).status == 200

    async def test_order_is_that_of_arrival(self) -> None:
        """Until there is overload."""
        assert await served(Bulkhead("app", 1, max_wait=30)) == [1, 2, 3, 4]

    async def test_newest_comes_first_under_overload(self) -> None:
        """Once who is first has waited for half of his time, the last to come may still be served in time."""
        clock = FakeClock()
        gate = Bulkhead("app", 1, max_wait=30, order="newest-first", clock=clock)

        assert await served(gate, lambda: clock.advance(16)) == [4, 3, 2, 1]

    async def test_importance_goes_before_age(self) -> None:
        """The queue, too, is in order of priority."""
        shares = {"default": 1, "sheddable": 1}
        gate = Bulkhead("app", 1, max_wait=30, priority=current_priority, shares=shares, reserve=0)
        paths = ["/sheddable", "/default", "/critical", "/probe"]
        options = {"priority": lambda request: request.path[1:], "paths": paths}

        assert await served(gate, **options) == [4, 3, 2, 1]


def patiently(world: World, app: Any, headers: dict[str, str]) -> Any:
    """Ask as a client does that waits for its answer."""
    if not isinstance(world, Asgi):
        return world.get(app, headers=headers)

    async def ask() -> Any:
        client = Patient()
        await app(http_scope(Ask(headers=headers)), client.receive, client.send)
        return client.reply

    return asyncio.run(ask())


async def served(
    gate: Bulkhead, meanwhile: Any = None, *, paths: list[str] | None = None, **options: Any
) -> list[int]:
    """Return in which order four requests are served that wait for the only slot."""
    order: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["number"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    guarded = ResilienceMiddleware(app, shed=gate, **options)
    tasks = []
    async with gate.calling():
        for number, path in enumerate(paths or ["/"] * 4, 1):
            client = Patient()
            scope = http_scope(Ask(path)) | {"number": number}
            tasks.append(asyncio.create_task(guarded(scope, client.receive, client.send)))
            await asyncio.sleep(0)
        assert gate.stats().waiting == 4
        if meanwhile is not None:
            meanwhile()
    await asyncio.gather(*tasks)
    return order


class TestPriorities:
    def test_least_important_requests_go_first(self, world: World) -> None:
        """Of ten slots, "sheddable" may fill seven, everybody else but "critical" nine."""
        gate = Bulkhead("app", 10, priority=current_priority)
        app = world.middleware(shed=gate, priority=requested_priority(), trusted=PEER)

        def statuses() -> dict[str, int]:
            words = ("low", "default", "critical")
            return {w: world.get(app, headers={"x-request-priority": w}).status for w in words}

        served = {"low": 200, "default": 200, "critical": 200}
        with taken(gate, 6, Priority.CRITICAL):
            assert statuses() == served
        with taken(gate, 7, Priority.CRITICAL):
            assert statuses() == {**served, "low": 503}
        with taken(gate, 9, Priority.CRITICAL):
            assert statuses() == {"low": 503, "default": 503, "critical": 200}
        with taken(gate, 10, Priority.CRITICAL):
            assert statuses() == {"low": 503, "default": 503, "critical": 503}

    def test_stranger_gets_no_better_place(self, world: World) -> None:
        """By whatever it says of itself."""
        gate = Bulkhead("app", 10, priority=current_priority)
        app = world.middleware(shed=gate, priority=requested_priority())

        with taken(gate, 9, Priority.CRITICAL):
            for word in ("critical", "high", "probe", "default"):
                assert world.get(app, headers={"x-request-priority": word}).status == 503

    def test_probes_are_served_when_all_is_taken(self, world: World) -> None:
        """From the reserve, where they are not exempt; nobody else gets that, and it is not without end."""
        gate = Bulkhead("app", 2, priority=current_priority)
        app = world.middleware(shed=gate, exempt=(), priority=requested_priority(), trusted=PEER)

        with taken(gate, 2, Priority.CRITICAL):
            assert world.get(app, "/readyz").status == 200
            assert world.get(app, headers={"x-request-priority": "probe"}).status == 503
            with taken(gate, 1, Priority.PROBE):
                assert world.get(app, "/readyz").status == 503

    def test_bulkhead_of_the_app_knows_the_priority(self, world: World) -> None:
        """It is that of the context."""
        inner = Bulkhead("database", 10, priority=current_priority)

        @inner
        def query() -> tuple[int, bytes]:
            return hello()

        app = world.middleware(query, priority=lambda request: request.path[1:])

        with taken(inner, 8, Priority.CRITICAL):
            assert world.get(app, "/sheddable").status == 503
            assert world.get(app, "/default").status == 200


class Learning:
    """A gate with an adaptive limit on a clock of its own, and an app that takes a tenth of a second."""

    def __init__(self, world: World, **options: Any) -> None:
        self.clock = FakeClock()
        self.gate = Bulkhead(
            "app",
            AIMD(initial=10, window=1.0, min_samples=1),
            clock=self.clock,
            drops=options.pop("drops", TimeoutError),
        )
        self._world = world
        self._answers: Any = None
        self._app = world.middleware(self._work, shed=self.gate, **options)

    def _work(self) -> tuple[int, bytes]:
        self.clock.advance(0.1)
        answer = self._answers()
        if isinstance(answer, BaseException):
            raise answer
        return answer, b""

    def see(self, answers: Any, **ask: Any) -> tuple[int, float | None, int]:
        """Return the status, the time that was learnt, and how many drops."""
        self._answers = answers if callable(answers) else lambda: answers
        status = self._world.get(self._app, **ask).status
        self.clock.advance(1.0)
        with self.gate.calling():  # closes the window; nothing is learnt from it
            stats = self.gate.stats().adaptive
        assert stats is not None
        return status, stats.rtt, stats.dropped


class TestWhatIsLearnt:
    def test_answers_tell_how_long_they_took(self, world: World) -> None:
        """Also those that tell the client of its own mistakes."""
        for status in (200, 302, 404):
            assert Learning(world).see(status) == (status, pytest.approx(0.1), 0)

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_faulty_answers_tell_nothing(self, world: World, status: int) -> None:
        """They are mostly quick, and would look like a service that has nothing to do."""
        assert Learning(world).see(status) == (status, None, 0)

    def test_faulty_answers_may_be_drops(self, world: World) -> None:
        """By the error that stands for them."""
        assert Learning(world, drops=FaultyAnswerError).see(503) == (503, None, 1)

    @pytest.mark.parametrize("answer", [504, CallTimeoutError("slow"), TimeoutError()], ids=repr)
    def test_timeouts_are_drops(self, world: World, answer: Any) -> None:
        """Whichever way the app tells of them."""
        learning = Learning(world)
        if type(answer) is TimeoutError:  # the app's own error, which the server answers
            with pytest.raises(TimeoutError):
                learning.see(answer)
            with learning.gate.calling():
                stats = learning.gate.stats().adaptive
            assert stats is not None
            assert (stats.rtt, stats.dropped) == (None, 1)
        else:
            assert learning.see(answer) == (504, None, 1)

    @pytest.mark.parametrize("refusal", [CircuitOpenError("open"), DeadlineExceededError("late")], ids=repr)
    def test_refusals_inside_tell_nothing(self, world: World, refusal: Exception) -> None:
        """A circuit that is open answers at once, and that is no sign of speed."""
        status = 503 if isinstance(refusal, CircuitOpenError) else 504

        assert Learning(world).see(refusal) == (status, None, 0)

    def test_time_that_the_client_has_set_tells_nothing(self, world: World) -> None:
        """Whoever gives a request no time could have the limit fall for all others."""
        learning = Learning(world, trusted=PEER)

        def late() -> Exception:
            while (time_left() or 0) > 0:
                pass
            return CallTimeoutError("slow")

        assert learning.see(late, headers={"grpc-timeout": "20m"}) == (504, None, 0)

    async def test_client_that_has_gone_tells_nothing(self) -> None:
        """Its request was broken off, not done."""
        clock = FakeClock()
        gate = Bulkhead("app", Gradient(window=1.0, min_samples=1), clock=clock)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            clock.advance(0.1)
            await receive()

        client = Client({"type": "http.disconnect"})
        await ResilienceMiddleware(app, shed=gate)(http_scope(Ask()), client.receive, client.send)
        clock.advance(1.0)
        with gate.calling():
            stats = gate.stats().adaptive

        assert stats is not None
        assert (stats.rtt, stats.dropped) == (None, 0)


class Listening(SpyGate):
    """A gate that wants to know when an answer begins."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[BaseException | None, int]] = []

    def calling(self) -> Any:
        place = super().calling()
        place.answered = lambda error: self.heard.append((error, self.held))  # type: ignore[attr-defined]
        return place


class TestBeginningOfAnswers:
    """From there on a client sets the pace: what learns from times is told, and holds its place on."""

    def test_is_told_once_and_before_the_end(self, world: World) -> None:
        """With what the answer will be taken for."""
        gate, statuses = Listening(), iter([200, 500, 504])
        app = world.middleware(lambda: (next(statuses), b"x"), shed=gate)
        for _ in range(3):
            world.get(app)

        assert [(type(error), held) for error, held in gate.heard] == [
            (type(None), 1),
            (FaultyAnswerError, 1),
            (type(gate.left[2]), 1),
        ]
        assert [type(error) for error in gate.left] == [type(error) for error, _ in gate.heard]
        assert isinstance(gate.left[2], TimeoutError)

    def test_without_an_answer_of_the_app_there_is_none(self, world: World) -> None:
        """Ours, in its place, comes when the place has been given back."""
        gate = Listening()

        def refused() -> tuple[int, bytes]:
            raise CircuitOpenError("open")

        assert world.get(world.middleware(refused, shed=gate)).status == 503
        assert gate.heard == []

    async def test_stream_has_begun_long_before_its_end(self) -> None:
        """The place is held all the while."""
        gate = Listening()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            assert gate.heard == [(None, 1)]
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body", "body": b"x"})

        client = Client()
        await ResilienceMiddleware(app, shed=gate)(http_scope(Ask()), client.receive, client.send)

        assert (gate.heard, gate.left) == ([(None, 1)], [None])

    async def test_websocket_is_answered_by_being_accepted(self) -> None:
        """It may last for days."""
        gate = Listening()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            assert gate.heard == [(None, 1)]
            await send({"type": "websocket.send", "text": "x"})
            await send({"type": "websocket.close"})

        client = Client({"type": "websocket.connect"})
        scope = http_scope(Ask()) | {"type": "websocket"}
        await ResilienceMiddleware(app, shed=gate)(scope, client.receive, client.send)

        assert (gate.heard, gate.left) == ([(None, 1)], [None])

    async def test_stream_that_lasts_does_not_look_like_a_request_that_is_stuck(self) -> None:
        """An adaptive limit has learnt how long its answer took to begin; it holds a slot, no more."""
        clock, go = FakeClock(), asyncio.Event()
        gate = Bulkhead("app", Gradient(window=0.1, min_samples=1), clock=clock)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            clock.advance(0.1)
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            if scope["path"] == "/events":
                await go.wait()
            await send({"type": "http.response.body", "body": b"x"})

        async def visit(path: str) -> None:
            client = Patient()
            await ResilienceMiddleware(app, shed=gate)(http_scope(Ask(path)), client.receive, client.send)

        streams = [asyncio.create_task(visit("/events")) for _ in range(8)]
        await asyncio.sleep(0)
        for _ in range(600):
            await visit("/")
            clock.advance(1.0)
        stats = gate.stats()
        go.set()
        await asyncio.gather(*streams)

        assert stats.adaptive is not None
        assert (stats.in_use, stats.adaptive.overdue, stats.rejected) == (8, 0, 0)
        assert stats.adaptive.rtt == pytest.approx(0.1)
