"""Whatever an app does, in whatever order: one place taken, one given back, and at most one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.web.support import Ask, Patient, Response, SpyGate, environ_of, http_scope

from resilient import Bulkhead, asgi, wsgi
from resilient.errors import CircuitOpenError

ENDINGS = ("return", "refuse", "fail", "cancel")
ERRORS = {"refuse": CircuitOpenError, "fail": ValueError, "cancel": asyncio.CancelledError}


def end(how: str) -> None:
    """End as *how* says: by returning, or by an exception."""
    if how in ERRORS:
        raise ERRORS[how](how)


class SpiedBulkhead(SpyGate):
    """A bulkhead, and a note of who came and how each one left."""

    def __init__(self, limit: int = 1) -> None:
        super().__init__(limit)
        self.bulkhead = Bulkhead("app", limit, max_wait=30.0)

    def calling(self) -> Any:
        return _SpiedBlock(super().calling(), self.bulkhead.calling())

    @property
    def slots(self) -> tuple[int, int, int]:
        """How many slots were given out, how many are taken, and how many requests wait for one."""
        stats = self.bulkhead.stats()
        return stats.calls, stats.in_use, stats.waiting


class _SpiedBlock:
    def __init__(self, place: Any, block: Any) -> None:
        self._place = place
        self._block = block

    def __enter__(self) -> None:
        self._block.__enter__()
        self._place.__enter__()

    async def __aenter__(self) -> None:
        await self._block.__aenter__()
        self._place.__enter__()

    def __exit__(self, *how: object) -> None:
        self._place.__exit__(*how)
        self._block.__exit__(*how)


class Script:
    """An ASGI app that does what *steps* say, one after the other."""

    def __init__(self, steps: list[str], ending: str, status: int, gate: SpyGate) -> None:
        self._steps = steps
        self._ending = ending
        self._status = status
        self._gate = gate
        self.sent: list[str] = []
        self.held_after_the_end: set[int] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for step in self._steps:
            await self._act(step, receive, send)
            if "final" in self.sent:
                self.held_after_the_end.add(self._gate.held)
        end(self._ending)

    async def _act(self, step: str, receive: Any, send: Any) -> None:
        if step == "receive":
            await receive()
        elif step == "wait":
            await asyncio.sleep(0)
        elif step == "task":
            await asyncio.create_task(self._send("chunk", send))
        else:
            await self._send(step, send)

    async def _send(self, step: str, send: Any) -> None:
        self.sent.append(step)
        kind = "start" if step == "start" else "body"
        await send({"type": f"http.response.{kind}", "status": self._status, "more_body": step == "chunk"})


class Server:
    """A server whose client is there for so many messages; None: to the end."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self.sent: list[str] = []

    async def send(self, message: Any) -> None:
        if self._patience is not None and len(self.sent) >= self._patience:
            raise OSError("gone")
        self.sent.append(message["type"])

    async def receive(self) -> Any:
        return {"type": "http.request" if self._patience is None else "http.disconnect"}

    async def serve(self, app: Any) -> type[BaseException] | None:
        """Make one request; return the type of what left the app."""
        try:
            await app(http_scope(Ask()), self.receive, self.send)
        except (*ERRORS.values(), OSError) as error:
            return type(error)
        return None


class TestAsgi:
    """An app that sends, receives, waits and starts tasks; a client that leaves; a server that tells so."""

    @given(
        steps=st.lists(st.sampled_from(["start", "chunk", "final", "receive", "wait", "task"]), max_size=8),
        ending=st.sampled_from(ENDINGS),
        status=st.sampled_from([200, 404, 500]),
        patience=st.one_of(st.none(), st.integers(0, 8)),
        deadline=st.sampled_from([None, 60]),
    )
    def test_place_comes_back_once(
        self, steps: list[str], ending: str, status: int, patience: int | None, deadline: float | None
    ) -> None:
        """And when the body is done, not later; the client gets what the app sent, or one refusal."""
        gate, server = SpiedBulkhead(), Server(patience)
        script = Script(steps, ending, status, gate)

        error = asyncio.run(server.serve(asgi.ResilienceMiddleware(script, shed=gate, deadline=deadline)))

        assert (gate.entered, len(gate.left)) == (1, 1)
        assert gate.slots == (1, 0, 0)
        assert script.held_after_the_end <= {0}
        if error is OSError:  # the client has gone: nobody is to blame
            assert not isinstance(gate.left[0], OSError)
            return
        refused = ending == "refuse" and "start" not in script.sent
        assert error is (None if refused else ERRORS.get(ending))
        assert len(server.sent) == len(script.sent) + (2 if refused else 0)


class TestCrowd:
    """Many requests for few slots: they wait, are cancelled, leave, and are cut off, all at any moment."""

    @given(
        fates=st.lists(
            st.tuples(
                st.lists(st.sampled_from(["start", "chunk", "final", "wait", "task"]), max_size=6),
                st.sampled_from(ENDINGS),
                st.sampled_from(["stays", "leaves", "is cancelled"]),
                st.integers(0, 12),
            ),
            min_size=1,
            max_size=8,
        ),
        limit=st.integers(1, 3),
    )
    def test_every_slot_comes_back(self, fates: list[Any], limit: int) -> None:
        """And none is there twice: never are more requests in the app than there are slots."""
        gate = SpiedBulkhead(limit)

        asyncio.run(self.let_come(gate, fates))

        given, taken, waiting = gate.slots
        assert (gate.held, taken, waiting) == (0, 0, 0)
        assert given >= gate.entered  # some were given to a request in the moment in which it was given up

    async def let_come(self, gate: SpiedBulkhead, fates: list[Any]) -> None:
        """Let a request come for each of *fates*, and end all of them."""
        clients = [Patient() for _ in fates]
        tasks = [
            asyncio.create_task(self.visit(gate, client, steps, ending))
            for client, (steps, ending, _, _) in zip(clients, fates, strict=True)
        ]
        for tick in range(13):
            for client, task, (_, _, how, when) in zip(clients, tasks, fates, strict=True):
                if tick == when and how == "leaves":
                    client.left.set()
                elif tick == when and how == "is cancelled":
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def visit(gate: SpiedBulkhead, client: Patient, steps: list[str], ending: str) -> None:
        """Make one request."""

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        script = Script(steps, ending, 200, gate)
        await asgi.ResilienceMiddleware(script, shed=gate)(http_scope(Ask()), client.receive, send)


class TestWsgi:
    """An app that starts, writes and yields; a server that reads so far and closes, or does not."""

    @given(
        steps=st.lists(st.sampled_from(["start", "write", "chunk", "empty"]), max_size=6),
        ending=st.sampled_from(["return", "refuse", "fail"]),
        lazy=st.booleans(),
        reads=st.integers(0, 8),
        closes=st.integers(0, 2),
    )
    def test_place_comes_back_once(
        self, steps: list[str], ending: str, lazy: bool, reads: int, closes: int
    ) -> None:
        """However far the server reads, and however often it closes the body."""
        gate, response = SpiedBulkhead(), Response()
        # PEP 3333: an app starts once, before anything else.
        steps = [*(["start"] if "start" in steps else []), *(step for step in steps if step != "start")]

        def produce(start_response: Any) -> Iterator[bytes]:
            write: Any = None
            for step in steps:
                if step == "start":
                    write = start_response("200 OK", [])
                elif step == "write" and write is not None:
                    write(b"w")
                elif step in {"chunk", "empty"}:
                    yield b"c" * (step == "chunk")
            end(ending)

        def app(environ: Any, start_response: Any) -> Any:
            chunks = produce(start_response)
            return chunks if lazy else list(chunks)

        error = self.serve(wsgi.ResilienceMiddleware(app, shed=gate), response, reads, closes)

        assert (gate.entered, len(gate.left)) == (1, 1)
        assert gate.slots == (1, 0, 0)
        if isinstance(error, CircuitOpenError):
            assert any(response.written)  # or it would have been answered
        if response.status.startswith("503"):
            assert sum(bool(chunk) for chunk in response.written) <= 1  # the document alone

    @staticmethod
    def serve(app: Any, response: Response, reads: int, closes: int) -> BaseException | None:
        """Play a server that reads *reads* chunks and closes the body *closes* times."""
        try:
            body = app(environ_of(Ask()), response.start)
            chunks = iter(body)
            for _, chunk in zip(range(reads), chunks, strict=False):
                response.written.append(chunk)
            for _ in range(closes if hasattr(body, "close") else 0):
                body.close()
        except tuple(ERRORS.values()) as error:
            return error.with_traceback(None)  # whose frames hold the body
        return None
