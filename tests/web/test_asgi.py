"""What only ASGI has: streams, clients that leave, background work, WebSockets, other scopes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.web.support import Ask, Client, Patient, SpyGate, asend, http_scope

from resilient import CircuitBreaker, RateLimiter, Timeout, events, time_left
from resilient.asgi import Maintenance, ResilienceMiddleware
from resilient.errors import BulkheadFullError, CallTimeoutError, CircuitOpenError, RejectedError
from resilient.testing import capture_events

App = Callable[[Any, Any, Any], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}
CHUNK = {**BODY, "more_body": True}
DISCONNECT = {"type": "http.disconnect"}
CONNECT = {"type": "websocket.connect"}


def sending(*messages: dict[str, Any]) -> App:
    """Return an app that sends *messages*."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


async def visit(app: App, other_side: Client | None = None, **scope: Any) -> Client:
    """Call *app* with one request, and return the other side of it."""
    other_side = other_side or Client()
    await app(http_scope(Ask()) | scope, other_side.receive, other_side.send)
    return other_side


class TestPlace:
    """The place that the gate gave: until the body is done, and given back exactly once."""

    async def test_is_held_until_the_last_chunk_is_sent(self) -> None:
        """A stream holds it between its chunks; what comes after the last one does not."""
        gate = SpyGate()
        held: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for message in (START, CHUNK, CHUNK, BODY):
                await send(message)
                held.append(gate.held)

        await visit(ResilienceMiddleware(app, shed=gate))

        assert held == [1, 1, 1, 0]
        assert gate.left == [None]

    async def test_is_still_held_while_the_last_chunk_is_being_sent(self) -> None:
        """A client that reads slowly keeps it: its body is not done."""
        gate = SpyGate()
        held: list[int] = []

        async def send(message: Any) -> None:
            held.append(gate.held)

        await ResilienceMiddleware(sending(START, BODY), shed=gate)(http_scope(Ask()), Client().receive, send)

        assert held == [1, 1]

    @pytest.mark.parametrize("last", ["http.response.pathsend", "http.response.zerocopysend"])
    async def test_ends_with_the_other_kinds_of_body(self, last: str) -> None:
        """Servers that send files by themselves are told so in one message."""
        gate = SpyGate()
        seen: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send({"type": last})
            seen.append(gate.held)

        await visit(ResilienceMiddleware(app, shed=gate))

        assert (seen, gate.left) == ([0], [None])

    async def test_is_free_during_background_tasks(self) -> None:
        """Work after the answer holds no place and has no deadline, and its error leaves the place alone."""
        gate = SpyGate()
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await sending(START, BODY)(scope, receive, send)
            await asyncio.sleep(0.02)
            seen.append((gate.held, time_left()))
            raise RejectedError("too late to answer")

        client = Client()
        with pytest.raises(RejectedError, match="too late"):
            await visit(ResilienceMiddleware(app, shed=gate, deadline=0.01), client)

        assert seen == [(0, None)]
        assert gate.left == [None]
        assert client.reply.body == b"x"

    @pytest.mark.parametrize("messages", [(), (START,), (START, CHUNK)], ids=["nothing", "start", "part"])
    async def test_comes_back_from_an_app_that_returns_early(self, messages: Any) -> None:
        """An app that never answers, or not to the end, does not keep it."""
        gate = SpyGate()

        await visit(ResilienceMiddleware(sending(*messages), shed=gate))

        assert (gate.entered, gate.held) == (1, 0)
        assert isinstance(gate.left[0], Exception)  # no answer, or part of one, is a failure of the app

    async def test_app_that_stops_since_its_client_has_left_is_not_to_blame(self) -> None:
        """It may return in the middle of its answer."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await sending(START, CHUNK)(scope, receive, send)
            await receive()

        await visit(ResilienceMiddleware(app, shed=gate), Client(DISCONNECT))

        assert [type(error) for error in gate.left] == [asyncio.CancelledError]

    @pytest.mark.parametrize("messages", [(), (START,), (START, CHUNK), (START, BODY)], ids=len)
    @pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError(), KeyboardInterrupt()])
    async def test_comes_back_from_an_app_that_raises(self, messages: Any, error: BaseException) -> None:
        """Before, during and after the response; the error is the app's and passes."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await sending(*messages)(scope, receive, send)
            raise error

        with pytest.raises(type(error)) as caught:
            await visit(ResilienceMiddleware(app, shed=gate))

        assert caught.value is error
        assert gate.left == [None if len(messages) == 2 and messages[1] is BODY else error]

    async def test_comes_back_from_a_request_that_is_cancelled(self) -> None:
        """While the app works, while the gate lets wait, and while the limit is asked."""
        gate, never = SpyGate(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await never.wait()

        for steps in range(6):
            task = asyncio.create_task(
                visit(ResilienceMiddleware(app, shed=gate, rate_limit="1000/second", deadline=60))
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        assert gate.entered > 0
        assert gate.held == 0
        assert all(isinstance(error, asyncio.CancelledError) for error in gate.left)

    async def test_client_that_leaves_is_an_abandonment(self) -> None:
        """An app that fails because its client has gone is not to blame."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            message = await receive()
            assert message == DISCONNECT
            raise ConnectionError("client gone")

        with pytest.raises(ConnectionError):
            await visit(ResilienceMiddleware(app, shed=gate), Client(DISCONNECT))

        assert [type(error) for error in gate.left] == [asyncio.CancelledError]

    async def test_client_that_is_found_gone_when_sending_is_an_abandonment(self) -> None:
        """Servers tell it by an `OSError` from `send`."""
        breaker = CircuitBreaker("app", fail_max=1)

        async def send(message: Any) -> None:
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await ResilienceMiddleware(sending(START, BODY), shed=breaker)(
                http_scope(Ask()), Client().receive, send
            )

        assert breaker.stats().state == "closed"

    async def test_answer_of_an_app_whose_client_left_is_a_success(self) -> None:
        """Whoever answers to the end has done its work, read or not."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await sending(START, BODY)(scope, receive, send)

        await visit(ResilienceMiddleware(app, shed=gate), Client(DISCONNECT))

        assert gate.left == [None]

    async def test_comes_back_when_a_task_of_the_app_sends_the_end(self) -> None:
        """Frameworks send streams from a task of their own; the place knows no task."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.create_task(sending(START, CHUNK, BODY)(scope, receive, send))

        await visit(ResilienceMiddleware(app, shed=gate, deadline=60))

        assert gate.left == [None]

    async def test_is_shared_by_no_two_requests(self) -> None:
        """Nothing of one request is kept where another one finds it."""
        gate, go = SpyGate(places=3), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await sending({**START, "status": int(scope["path"][1:])}, BODY)(scope, receive, send)

        middleware = ResilienceMiddleware(app, shed=gate)
        tasks = [asyncio.create_task(visit(middleware, path=f"/{status}")) for status in range(200, 205)]
        for _ in range(5):
            await asyncio.sleep(0)
        go.set()

        statuses = [(await task).reply.status for task in tasks]

        assert statuses == [200, 201, 202, 503, 503]
        assert (gate.entered, gate.held) == (3, 0)


class TestAnswers:
    async def test_refusal_after_the_first_byte_is_raised_on(self) -> None:
        """Nothing is answered twice."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            raise CircuitOpenError("too late")

        client = Client()
        with pytest.raises(CircuitOpenError):
            await visit(ResilienceMiddleware(app), client)

        assert [message["type"] for message in client.sent] == ["http.response.start"]

    async def test_first_message_that_could_not_be_sent_counts_as_begun(self) -> None:
        """Nobody knows how much of it has arrived."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])
            raise BulkheadFullError("of the server")

        with pytest.raises(BulkheadFullError):
            await ResilienceMiddleware(sending(START))(http_scope(Ask()), Client().receive, send)

        assert sent == ["http.response.start"]

    async def test_fields_are_added_and_the_app_keeps_its_message(self) -> None:
        """The app's fields stay in front, even if it gave a tuple or none; its own message is not touched."""
        for headers in ({"headers": ((b"x-a", b"1"),)}, {"headers": [[b"x-a", b"1"]]}, {}):
            message: dict[str, Any] = {"type": "http.response.start", "status": 200, **headers}
            before = dict(message)

            client = await visit(ResilienceMiddleware(sending(message, BODY), rate_limit="9/hour"))

            names = [bytes(name) for name, _ in client.sent[0]["headers"]]
            assert names == [*([b"x-a"] if headers else []), b"ratelimit", b"ratelimit-policy"]
            assert message == before

    async def test_other_messages_pass_as_they_are(self) -> None:
        """Early hints, trailers, whatever comes: in order, the very objects."""
        others = [
            {"type": "http.response.debug", "info": {}},
            {**START, "trailers": True},
            CHUNK,
            BODY,
            {"type": "http.response.trailers", "headers": []},
        ]
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await ResilienceMiddleware(sending(*others))(http_scope(Ask()), Client().receive, send)

        assert [message["type"] for message in sent] == [message["type"] for message in others]
        assert sent[2] is CHUNK

    async def test_body_of_the_request_reaches_the_app(self) -> None:
        """Chunk by chunk, nothing is read ahead."""
        chunks = [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.request", "body": b"b"},
        ]
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.extend([await receive(), await receive()])
            await sending(START, BODY)(scope, receive, send)

        await visit(ResilienceMiddleware(app, shed=SpyGate()), Client(*chunks))

        assert seen == chunks


class TestDeadline:
    async def test_app_that_hangs_is_cut_off_with_504(self) -> None:
        """The app is cancelled, the gate is told of a timeout, and the event of it told."""
        gate = SpyGate()
        cancelled: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        with capture_events() as told:
            client = await visit(ResilienceMiddleware(app, shed=gate, deadline=0.01))

        assert client.reply.status == 504
        assert cancelled == [True]
        assert [type(error) for error in gate.left] == [CallTimeoutError]
        assert [event.seconds for event in told.of(events.CallTimedOut)] == [0.01]
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    async def test_header_cuts_the_app_off_too(self) -> None:
        """The client's patience is the app's."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(30)

        gate = SpyGate()
        middleware = ResilienceMiddleware(app, shed=gate, trusted="192.0.2.1")
        reply = await asend(middleware, Ask(headers={"grpc-timeout": "10m"}))

        assert reply.status == 504
        assert [type(error) for error in gate.left] == [asyncio.CancelledError]

    async def test_clients_in_a_hurry_open_no_breaker(self) -> None:
        """Neither one that is believed, at the gate, nor one that is not, anywhere."""
        breaker, inner = CircuitBreaker("door", min_calls=2), CircuitBreaker("inner", min_calls=2)

        @inner
        @Timeout(5)
        async def call() -> None:
            await asyncio.sleep(0.02)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["client"][0] != "192.0.2.1":
                await call()
            await asyncio.sleep(0.02)
            await sending(START, BODY)(scope, receive, send)

        middleware = ResilienceMiddleware(app, shed=breaker, trusted="192.0.2.1")
        hurry = {"x-request-timeout-ms": "5"}
        believed = [(await asend(middleware, Ask(headers=hurry))).status for _ in range(5)]
        others = [(await asend(middleware, Ask(headers=hurry, peer="192.0.2.2"))).status for _ in range(5)]

        assert (believed, others) == ([504] * 5, [200] * 5)
        assert (breaker.stats().state, inner.stats().state) == ("closed", "closed")

    async def test_stream_that_hangs_is_cut_off_with_an_error(self) -> None:
        """The response has begun: the server is told by the error, and closes the connection."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(CHUNK)
            await asyncio.sleep(30)

        client = Client()
        with pytest.raises(CallTimeoutError):
            await visit(ResilienceMiddleware(app, shed=gate, deadline=0.01), client)

        assert [message["type"] for message in client.sent] == [START["type"], BODY["type"]]
        assert gate.held == 0

    async def test_waiting_at_the_gate_counts(self) -> None:
        """A gate that lets wait does so within the deadline, and no longer."""

        class Slow(SpyGate):
            def calling(self) -> Any:
                place = super().calling()

                async def enter() -> None:
                    await asyncio.sleep(30)

                place.__aenter__ = enter  # type: ignore[method-assign]
                return place

        gate = Slow()
        app = ResilienceMiddleware(sending(START, BODY), shed=gate, deadline=0.01)
        client = await visit(app, Patient())

        assert (client.reply.status, gate.entered) == (504, 0)

    async def test_cancellation_from_outside_stays_one(self) -> None:
        """A server that gives up is not told of a deadline."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(30)

        task = asyncio.create_task(visit(ResilienceMiddleware(app, deadline=60)))
        await asyncio.sleep(0)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_answer_in_spite_of_the_cut_is_kept(self) -> None:
        """An app that answers while it is being cancelled has answered."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await sending(START, BODY)(scope, receive, send)

        client = await visit(ResilienceMiddleware(app, deadline=0.01))

        assert client.reply.status == 200
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    @pytest.mark.parametrize(("cancelled", "raised"), [(0, CallTimeoutError), (1, asyncio.CancelledError)])
    async def test_cut_at_the_moment_of_the_answer_is_no_bare_cancellation(
        self, cancelled: int, raised: type[BaseException]
    ) -> None:
        """A task of the app's ends the answer while the app is being cut off; a server's cancel stays one."""
        gate = SpyGate()
        followed: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = asyncio.current_task()
            assert request is not None

            async def answer() -> None:
                await send(START)
                while (time_left() or 0) > 0:  # the loop is busy, and then the timer is due
                    pass
                for _ in range(2):
                    await asyncio.sleep(0)  # and this task has its turn before the app
                assert request.cancelling() == 1
                for _ in range(cancelled):
                    request.cancel()
                await send(BODY)

            task = asyncio.create_task(answer())
            await asyncio.shield(task)
            followed.append(True)

        client = Client()
        with pytest.raises(raised):
            await asyncio.create_task(visit(ResilienceMiddleware(app, shed=gate, deadline=0.01), client))

        assert client.reply.body == b"x"
        assert (gate.left, followed) == ([None], [])


class TestContext:
    async def test_what_the_app_sets_is_seen_outside(self) -> None:
        """Context variables pass upwards: a middleware outside finds what the app has left."""
        variable = contextvars.ContextVar("variable", default="")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            variable.set("from the app")
            await sending(START, BODY)(scope, receive, send)

        await visit(ResilienceMiddleware(app, rate_limit="9/hour", shed=SpyGate(), deadline=60))

        assert variable.get() == "from the app"

    async def test_requests_in_one_context_follow_each_other(self) -> None:
        """The deadline of one request is over when the next one comes, in the same task too."""
        seen: list[float | None] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(time_left())
            await sending(START, BODY)(scope, receive, send)

        middleware = ResilienceMiddleware(app, trusted="192.0.2.1")
        for timeout in ("1S", None, "9S"):
            headers = {"grpc-timeout": timeout} if timeout else {}
            await asend(middleware, Ask(headers=headers))

        assert seen[0] is not None
        assert seen[0] <= 1
        assert seen[1] is None
        assert seen[2] is not None
        assert seen[2] > 8


class TestWebSockets:
    @staticmethod
    def scope(**extra: Any) -> dict[str, Any]:
        scope = http_scope(Ask("/ws"))
        del scope["method"]
        return scope | {"type": "websocket", "scheme": "ws", "subprotocols": [], **extra}

    async def talk(self, app: App, *incoming: Any, **extra: Any) -> list[dict[str, Any]]:
        """Open a WebSocket at *app*; return what it sent."""
        messages, sent = [CONNECT, *incoming, {"type": "websocket.disconnect", "code": 1000}], []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            assert len(messages) < 2 + len(incoming), "an answer before the client has asked"
            sent.append(message)

        await app(self.scope(**extra), receive, send)
        return sent

    @staticmethod
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    async def test_connection_holds_its_place_to_the_end(self) -> None:
        """Accepted, it has no deadline, and its place as long as it lives."""
        gate = SpyGate()
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.echo(scope, receive, send)
            seen.append((gate.held, time_left()))

        sent = await self.talk(
            ResilienceMiddleware(app, shed=gate, deadline=60, rate_limit="1/hour", trusted="192.0.2.1"),
            {"type": "websocket.receive", "text": "hi"},
            headers=[(b"grpc-timeout", b"0S")],
        )

        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
        assert seen == [(1, None)]
        assert gate.left == [None]

    async def test_refused_one_is_answered_where_the_server_can(self) -> None:
        """With the extension, a client gets status, fields and document."""
        app = ResilienceMiddleware(self.echo, rate_limit="1/hour")
        extensions = {"extensions": {"websocket.http.response": {}}}
        await self.talk(app, **extensions)

        start, body = await self.talk(app, **extensions)

        assert start["type"] == "websocket.http.response.start"
        assert start["status"] == 429
        assert dict(start["headers"])[b"retry-after"] == b"3600"
        assert body["type"] == "websocket.http.response.body"
        assert b"quota-exceeded" in body["body"]

    async def test_refused_one_is_closed_where_the_server_cannot(self) -> None:
        """Before it is accepted: 1008 for a quota, 1013 (try again later) for everything else."""
        limited = ResilienceMiddleware(self.echo, rate_limit="1/hour")
        await self.talk(limited)
        maintenance = Maintenance()
        maintenance.on()

        sent = [
            await self.talk(limited),
            await self.talk(ResilienceMiddleware(self.echo, maintenance=maintenance)),
            await self.talk(ResilienceMiddleware(self.echo, shed=SpyGate(places=0))),
        ]

        assert sent == [[{"type": "websocket.close", "code": code}] for code in (1008, 1013, 1013)]

    async def test_refusal_by_the_app_before_it_accepts_is_answered(self) -> None:
        """The client has asked already; it is not waited for again."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            raise CircuitOpenError("down")

        assert await self.talk(ResilienceMiddleware(app)) == [{"type": "websocket.close", "code": 1013}]

    async def test_app_that_denies_a_connection_tells_of_the_limit(self) -> None:
        """Its own response has the fields, too; a connection that is accepted has no answer to hold them."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})

        start, _ = await self.talk(ResilienceMiddleware(app, rate_limit="9/hour"))

        assert dict(start["headers"])[b"ratelimit"].startswith(b'"9/hour";r=8')

    async def test_refusal_by_the_app_after_it_accepted_is_raised_on(self) -> None:
        """The server closes the connection."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.echo(scope, receive, send)
            raise CircuitOpenError("down")

        with pytest.raises(CircuitOpenError):
            await self.talk(ResilienceMiddleware(app, shed=gate))

        assert gate.held == 0

    @pytest.mark.parametrize("accepts", [True, False])
    async def test_client_that_leaves_is_an_abandonment(self, accepts: bool) -> None:
        """Frameworks raise an error then; it opens no breaker."""
        gate, breaker = SpyGate(), CircuitBreaker("app", min_calls=2)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if accepts:
                await send({"type": "websocket.accept"})
            assert (await receive())["type"] == "websocket.disconnect"
            raise RuntimeError("WebSocketDisconnect")

        guarded = ResilienceMiddleware(ResilienceMiddleware(app, shed=gate), shed=breaker)
        for _ in range(5):
            with pytest.raises(RuntimeError):
                await self.talk(guarded)

        assert [type(error) for error in gate.left] == [asyncio.CancelledError] * 5
        assert breaker.stats().state == "closed"

    async def test_client_that_is_found_gone_when_sending_is_an_abandonment(self) -> None:
        """Servers raise an OSError then."""
        gate = SpyGate()

        async def send(message: Any) -> None:
            if message["type"] == "websocket.send":
                raise OSError("gone")

        messages = [CONNECT, {"type": "websocket.receive", "text": "hi"}]

        async def receive() -> Any:
            return messages.pop(0)

        with pytest.raises(OSError, match="gone"):
            await ResilienceMiddleware(self.echo, shed=gate)(self.scope(), receive, send)

        assert [type(error) for error in gate.left] == [asyncio.CancelledError]

    @pytest.mark.parametrize(
        ("messages", "failed"),
        [
            ([], True),
            ([{"type": "websocket.close", "code": 1000}], False),
            ([{"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}], False),
            *(
                (
                    [
                        {"type": "websocket.http.response.start", "status": status, "headers": []},
                        {"type": "websocket.http.response.body", "body": b""},
                    ],
                    status == 500,
                )
                for status in (403, 500)
            ),
        ],
    )
    async def test_gate_is_told_what_the_app_has_answered(self, messages: Any, failed: bool) -> None:
        """No answer and one of 500 and above are failures; a connection taken or declined is none."""
        gate = SpyGate()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await sending(*messages)(scope, receive, send)

        await self.talk(ResilienceMiddleware(app, shed=gate))

        assert [isinstance(error, Exception) for error in gate.left] == [failed]

    async def test_client_that_leaves_before_the_app_refuses_is_sent_nothing(self) -> None:
        """The app has heard that it is gone, and refuses all the same."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await receive()
            raise CircuitOpenError("down")

        assert await self.talk(ResilienceMiddleware(app)) == []

    async def test_client_that_left_before_it_was_refused_is_sent_nothing(self) -> None:
        """There is nobody to refuse."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.disconnect", "code": 1006}

        async def send(message: Any) -> None:
            sent.append(message)

        await ResilienceMiddleware(self.echo, shed=SpyGate(places=0))(self.scope(), receive, send)

        assert not sent


class TestOtherScopes:
    @pytest.mark.parametrize("kind", ["lifespan", "something.new"])
    async def test_pass_untouched(self, kind: str) -> None:
        """The app gets the very arguments, whatever the settings."""
        got: list[Any] = []

        async def app(*args: Any) -> None:
            got.extend(args)

        maintenance = Maintenance()
        maintenance.on()
        scope, receive, send = {"type": kind}, Client().receive, Client().send

        await ResilienceMiddleware(app, maintenance=maintenance, shed=SpyGate(places=0), deadline=1)(
            scope, receive, send
        )

        assert got[0] is scope
        assert got[1:] == [receive, send]


async def test_users_of_starlette_are_told_apart() -> None:
    """`scope["user"]` by its identity; whoever has not logged in, by address."""
    from starlette.authentication import SimpleUser, UnauthenticatedUser

    from resilient.asgi import user

    app = ResilienceMiddleware(sending(START, BODY), rate_limit="1/hour", key=user())

    async def status(who: Any, peer: str) -> int:
        return (await visit(app, user=who, client=(peer, 1))).reply.status

    assert await status(SimpleUser("ada"), "192.0.2.1") == 200
    assert await status(SimpleUser("ada"), "192.0.2.2") == 429
    assert await status(SimpleUser("bob"), "192.0.2.1") == 200
    assert await status(UnauthenticatedUser(), "192.0.2.1") == 200
    assert await status(UnauthenticatedUser(), "192.0.2.1") == 429


async def test_limit_on_a_shared_store_is_awaited(shared_valkey: Any) -> None:
    """The same words with a store behind them."""
    limiter = RateLimiter("2/minute", name="test-asgi-door", storage=shared_valkey.url, decision_timeout=5)
    app = ResilienceMiddleware(sending(START, BODY), rate_limit=limiter)

    statuses = [(await visit(app)).reply.status for _ in range(3)]
    await limiter.aclose()

    assert statuses == [200, 200, 429]
