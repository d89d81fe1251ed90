"""An ASGI request that waits at the gate: its client may leave meanwhile, and no message of it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.web.support import Ask, Client, Patient, SpyGate, http_scope

from resilient import RateLimiter
from resilient.asgi import ResilienceMiddleware
from resilient.errors import BulkheadFullError, RejectedError

DISCONNECT = {"type": "http.disconnect"}
REQUEST = {"type": "http.request", "body": b"", "more_body": False}


class WaitingGate(SpyGate):
    """A gate at which everybody waits to be let in, or refused."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.gave_up = 0
        self.opened = asyncio.Event()
        self.refuses = False

    def calling(self) -> Any:
        place = super().calling()

        async def enter() -> None:
            self.waiting += 1
            try:
                await self.opened.wait()
            except asyncio.CancelledError:
                self.gave_up += 1
                raise
            finally:
                self.waiting -= 1
            if self.refuses:
                raise BulkheadFullError("full")
            place.__enter__()

        place.__aenter__ = enter  # type: ignore[method-assign]
        return place


class App:
    """An app that notes what it receives, and answers."""

    def __init__(self, messages: int = 1) -> None:
        self.received: list[Any] = []
        self._messages = messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for _ in range(self._messages):
            self.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def gate() -> WaitingGate:
    return WaitingGate()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def visiting(app: Any, client: Client, **scope: Any) -> asyncio.Task[None]:
    """Let *client* ask *app*."""
    return asyncio.create_task(app(http_scope(Ask()) | scope, client.receive, client.send))


class TestClientThatLeaves:
    async def test_gives_up_its_turn(self, gate: WaitingGate) -> None:
        """The app is not called for an answer that nobody reads; outside, there is one all the same."""
        app, client = App(), Patient()
        task = visiting(ResilienceMiddleware(app, shed=gate), client)
        await settled()
        assert gate.waiting == 1

        client.left.set()
        await task

        assert (gate.waiting, gate.gave_up, gate.entered) == (0, 1, 0)
        assert app.received == []
        assert client.reply.status == 503

    async def test_nothing_is_left_behind(self, gate: WaitingGate) -> None:
        """Neither a task of ours nor a cancellation that a time limit outside could take for its own."""
        client = Patient()

        async def within_a_limit() -> int:
            async with asyncio.timeout(60):
                await ResilienceMiddleware(App(), shed=gate)(http_scope(Ask()), client.receive, client.send)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        task = asyncio.create_task(within_a_limit())
        await settled()
        client.left.set()

        assert await task == 0
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_does_not_get_its_permit_back(self, gate: WaitingGate) -> None:
        """Or whoever comes and goes could do so without a limit."""
        limiter, client = RateLimiter("10/hour"), Patient()
        task = visiting(ResilienceMiddleware(App(), shed=gate, rate_limit=limiter), client)
        await settled()
        client.left.set()
        await task

        assert limiter.stats().allowed == 1

    async def test_server_may_not_take_the_answer(self, gate: WaitingGate) -> None:
        """Since ASGI 2.4 it may raise an `OSError`; that is not passed on."""

        class Strict(Patient):
            async def send(self, message: Any) -> None:
                raise OSError("gone")

        client = Strict()
        task = visiting(ResilienceMiddleware(App(), shed=gate), client)
        await settled()
        client.left.set()

        await task

    async def test_leaving_when_the_place_is_there_comes_too_late(self, gate: WaitingGate) -> None:
        """The app is called, and told of it as always."""
        app, client = App(messages=2), Patient()
        task = visiting(ResilienceMiddleware(app, shed=gate), client)
        await settled()
        gate.opened.set()
        await settled()
        client.left.set()
        await task

        assert app.received == [REQUEST, DISCONNECT]
        assert gate.left == [None]

    async def test_leaving_in_the_moment_of_admission_loses_no_place(self, gate: WaitingGate) -> None:
        """Whichever of the two the loop sees first: the place is taken and given back, or never taken."""
        for first, second in [(gate.opened, None), (None, gate.opened)]:
            gate.opened.clear()
            client = Patient()
            task = visiting(ResilienceMiddleware(App(), shed=gate), client)
            await settled()
            for event in (first, client.left, second):
                if event is not None:
                    event.set()
            await task

            assert (gate.waiting, gate.held) == (0, 0)
            assert client.complete

    async def test_cancellation_from_outside_stays_one(self, gate: WaitingGate) -> None:
        """Also if the client leaves at the same time."""
        client = Patient()
        task = visiting(ResilienceMiddleware(App(), shed=gate), client)
        await settled()
        client.left.set()
        await asyncio.sleep(0)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        assert (gate.waiting, gate.held) == (0, 0)

    async def test_time_that_runs_out_meanwhile_is_still_a_504(self, gate: WaitingGate) -> None:
        """The deadline cancels the same task by the same means, and both are told apart."""
        client = Patient()
        app = ResilienceMiddleware(App(), shed=gate, deadline=0.01)

        await visiting(app, client)

        assert client.reply.status == 504
        assert gate.gave_up == 1

    async def test_websocket_gives_up_its_turn_too(self, gate: WaitingGate) -> None:
        """Nothing is sent to it any more."""
        client = Patient({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006})
        app = ResilienceMiddleware(App(), shed=gate)

        await visiting(app, client, type="websocket")

        assert (gate.gave_up, gate.entered, client.sent) == (1, 0, [])


class TestMessages:
    async def test_all_reach_the_app_in_order(self, gate: WaitingGate) -> None:
        """Those that came while the request waited, and those that come later."""
        parts = [{"type": "http.request", "body": bytes([n]), "more_body": n < 4} for n in range(5)]
        app, client = App(messages=5), Patient(*parts[:3])
        task = visiting(ResilienceMiddleware(app, shed=gate), client)
        await settled()
        assert client.incoming == []
        gate.opened.set()
        client.incoming = parts[3:]
        client.left.set()
        await task

        assert app.received == parts

    async def test_only_so_much_of_a_body_is_kept(self, gate: WaitingGate) -> None:
        """The rest stays with the server, which has its sender wait."""
        parts = [{"type": "http.request", "body": bytes(20_000), "more_body": True} for _ in range(20)]
        app, client = App(messages=20), Patient(*parts)
        task = visiting(ResilienceMiddleware(app, shed=gate), client)
        await settled()
        kept = len(parts) - len(client.incoming)
        assert 65_536 <= 20_000 * kept <= 65_536 + 20_000
        gate.opened.set()
        await task

        assert app.received == parts

    async def test_server_that_never_lets_wait_does_not_stop_the_loop(self, gate: WaitingGate) -> None:
        """As those of some tests do, which always have the same empty message."""

        class Endless(Client):
            async def receive(self) -> dict[str, Any]:
                return REQUEST

        task = visiting(ResilienceMiddleware(App(), shed=gate), Endless())
        await settled()
        gate.opened.set()
        await task

        assert gate.left == [None]

    async def test_app_may_give_up_receiving_and_come_back(self, gate: WaitingGate) -> None:
        """What was asked for while the request waited is not lost with the app's own wait for it."""
        received: list[Any] = []
        gave_up = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            received.append(await receive())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0.001)
            gave_up.set()
            received.extend(await asyncio.gather(receive(), receive()))
            await App(messages=0)(scope, receive, send)

        more = {"type": "http.request", "body": b"more", "more_body": False}
        client = Patient(REQUEST)
        task = visiting(ResilienceMiddleware(app, shed=gate), client)
        await settled()
        gate.opened.set()
        await gave_up.wait()
        client.incoming.append(more)
        client.left.set()
        await task

        assert sorted(received, key=str) == sorted([REQUEST, more, DISCONNECT], key=str)

    async def test_error_of_the_server_is_the_app_s_to_see(self, gate: WaitingGate) -> None:
        """It says nothing about the wait."""

        class Broken(Client):
            async def receive(self) -> dict[str, Any]:
                raise ConnectionError("broken")

        task = visiting(ResilienceMiddleware(App(), shed=gate), Broken())
        await settled()
        assert gate.waiting == 1
        gate.opened.set()

        with pytest.raises(ConnectionError, match="broken"):
            await task
        assert len(gate.left) == 1

    async def test_client_that_asks_before_it_sends_is_not_told_to(self, gate: WaitingGate) -> None:
        """Servers say "100 Continue" as soon as somebody asks for the body."""
        client = Patient()
        task = visiting(
            ResilienceMiddleware(App(), shed=gate), client, headers=[(b"expect", b"100-continue")]
        )
        await settled()
        assert client.incoming == [REQUEST]
        gate.opened.set()
        await task

        assert client.reply.status == 200

    async def test_refused_request_leaves_nothing_behind(self, gate: WaitingGate) -> None:
        """What was being received goes with it."""
        gate.refuses = True
        client = Patient()
        task = visiting(ResilienceMiddleware(App(), shed=gate), client)
        await settled()
        gate.opened.set()
        await task
        await settled()

        assert client.reply.status == 503
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_request_that_need_not_wait_is_not_received_for(self) -> None:
        """Nothing is read ahead of an app that may begin at once."""

        class AtOnce(SpyGate):
            def calling(self) -> Any:
                place = super().calling()

                async def enter() -> None:
                    place.__enter__()

                place.__aenter__ = enter  # type: ignore[method-assign]
                return place

        client = Client()
        await visiting(ResilienceMiddleware(App(messages=0), shed=AtOnce()), client)

        assert client.incoming == [REQUEST]


async def test_middleware_outside_knows_of_a_client_that_has_left(gate: WaitingGate) -> None:
    """It is told so by the same messages, and blames nobody."""
    outer, client = SpyGate(), Patient()
    app = ResilienceMiddleware(ResilienceMiddleware(App(), shed=gate), shed=outer)
    task = visiting(app, client)
    await settled()
    client.left.set()
    await task

    assert isinstance(outer.left[0], RejectedError | asyncio.CancelledError)
