"""What only WSGI has: bodies that are closed, headers that can still change, files, `write`."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from tests.web.support import Ask, Response, SpyGate, Wsgi, environ_of, once, wsend

from resilient import deadline, time_left
from resilient.errors import BulkheadFullError, CircuitOpenError
from resilient.wsgi import ResilienceMiddleware

App = Callable[[Any, Any], Any]

PLAIN = [("Content-Type", "text/plain")]


class Body:
    """A body that notes what happens to it."""

    def __init__(self, *chunks: bytes | BaseException) -> None:
        self._chunks = list(chunks)
        self.closed = 0
        self.asked = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.asked += 1
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed += 1


def answering(body: Any) -> App:
    """Return an app that answers with *body*."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        return body

    return app


class TestPlace:
    """The place that the gate gave: until the body is closed, and given back exactly once."""

    def test_is_held_until_the_body_is_closed(self) -> None:
        """The last chunk is not the end: the server may still be writing it."""
        gate, body = SpyGate(), Body(b"a", b"b")
        result = ResilienceMiddleware(answering(body), shed=gate)(environ_of(Ask()), Response().start)

        assert [(chunk, gate.held) for chunk in result] == [(b"a", 1), (b"b", 1)]
        assert (gate.held, body.closed) == (1, 0)
        result.close()
        assert (gate.left, body.closed) == ([None], 1)

    def test_is_given_back_once_however_often_the_body_is_closed(self) -> None:
        """Servers should close it once; the app's is closed once whatever they do."""
        gate, body = SpyGate(), Body(b"a")
        result = ResilienceMiddleware(answering(body), shed=gate)(environ_of(Ask()), Response().start)
        list(result)

        for _ in range(3):
            result.close()

        assert (gate.left, body.closed) == ([None], 1)

    def test_admission_is_not_put_off_until_the_body_is_asked_for(self) -> None:
        """An app that is a generator begins late; the door does not."""
        gate = SpyGate()

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", list(PLAIN))
            yield b"x"

        middleware = ResilienceMiddleware(app, shed=gate, rate_limit="1/hour")
        result: Any = middleware(environ_of(Ask()), Response().start)
        assert gate.held == 1
        assert wsend(middleware, Ask()).status == 429
        result.close()
        assert gate.held == 0

    def test_generator_that_was_never_begun_is_an_abandonment(self) -> None:
        """A client that leaves before the first chunk says nothing about the app."""
        gate, body = SpyGate(), Body(b"a")
        result: Any = ResilienceMiddleware(answering(body), shed=gate)(environ_of(Ask()), Response().start)

        result.close()

        assert (body.asked, body.closed) == (0, 1)
        assert gate.held == 0
        assert gate.left[0] is not None
        assert not isinstance(gate.left[0], Exception)

    def test_stream_that_was_not_read_to_its_end_is_an_abandonment(self) -> None:
        """Servers close the body when the client has gone."""
        gate, body = SpyGate(), Body(b"a", b"b")
        result: Any = ResilienceMiddleware(answering(body), shed=gate)(environ_of(Ask()), Response().start)
        next(iter(result))

        result.close()

        assert gate.held == 0
        assert not isinstance(gate.left[0], Exception)

    def test_body_that_nobody_closes_gives_it_back_when_it_is_dropped(self) -> None:
        """A server that breaks the rule does not use up the places."""
        gate = SpyGate()
        result = ResilienceMiddleware(answering(Body(b"a")), shed=gate)(environ_of(Ask()), Response().start)
        assert gate.held == 1

        del result
        gc.collect()

        assert gate.held == 0

    @pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
    def test_comes_back_from_an_app_that_raises(self, error: BaseException) -> None:
        """When it is called, before or after `start_response`, and while the body is read."""

        def at_once(environ: Any, start_response: Any) -> Any:
            raise error

        def after_start(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            raise error

        for app in (at_once, after_start, answering(Body(error)), answering(Body(b"a", error))):
            gate = SpyGate()
            with pytest.raises(type(error)) as caught:
                wsend(ResilienceMiddleware(app, shed=gate), Ask())
            assert caught.value is error
            assert gate.left == [error]

    def test_comes_back_from_a_body_that_cannot_be_closed(self) -> None:
        """The error of `close` is the app's, and passes."""

        class Bad(Body):
            def close(self) -> None:
                super().close()
                raise OSError("cannot close")

        gate, body = SpyGate(), Bad(b"a")

        with pytest.raises(OSError, match="cannot close"):
            wsend(ResilienceMiddleware(answering(body), shed=gate), Ask())

        assert (gate.held, len(gate.left), body.closed) == (0, 1, 1)

    def test_deadline_holds_while_the_body_is_made(self) -> None:
        """It is over when the body is closed, not before."""
        seen: list[bool] = []

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", list(PLAIN))
            seen.append(time_left() is None)
            yield b"x"

        wsend(ResilienceMiddleware(app, deadline=60), Ask())

        assert seen == [False]
        assert time_left() is None

    @pytest.mark.parametrize("words", [{"deadline": 0.01}, {"deadline": 60}])
    def test_deadline_is_not_the_next_request_s(self, words: Any) -> None:
        """Between its chunks, and when nobody closes the body, the thread has the deadline it had before."""
        seen: list[float | None] = []

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", list(PLAIN))
            for _ in range(2):
                seen.append(time_left())
                yield b"x"

        middleware = ResilienceMiddleware(app, **words)
        with deadline(30):
            bodies = [iter(middleware(environ_of(Ask()), Response().start)) for _ in range(2)]
            for body in bodies * 2:
                next(body)
                seen.append(time_left())

        least = min(words["deadline"], 30)
        assert [left is not None and left <= least for left in seen[::2]] == [True] * 4
        assert [left is not None and 29 < left <= 30 for left in seen[1::2]] == [True] * 4

    def test_body_is_closed_within_the_deadline(self) -> None:
        """What the app does at the end keeps to it as well, and it is over afterwards."""
        seen: list[float | None] = []

        class Last(Body):
            def close(self) -> None:
                seen.append(time_left())

        wsend(ResilienceMiddleware(answering(Last(b"x")), deadline=60), Ask())

        assert seen[0] is not None
        assert time_left() is None

    def test_request_whose_body_nobody_closes_leaves_no_deadline_behind(self) -> None:
        """The next one in this thread, long after, does not inherit it."""
        middleware = ResilienceMiddleware(answering(Body(b"x")), deadline=60)

        body: Any = middleware(environ_of(Ask()), Response().start)

        assert time_left() is None
        body.close()


class TestAnswers:
    @pytest.mark.parametrize("started", [False, True])
    def test_refusal_before_the_first_chunk_is_answered(self, started: bool) -> None:
        """The app's header, not sent yet, is replaced; its body is closed all the same."""
        body = Body(CircuitOpenError("down"), b"never")

        def app(environ: Any, start_response: Any) -> Any:
            if started:
                start_response("200 OK", [("Content-Length", "5")])
            return body

        gate = SpyGate()
        reply = wsend(ResilienceMiddleware(app, shed=gate), Ask())

        assert reply.status == 503
        assert reply["Content-Length"] == str(len(reply.body))
        assert b"temporary-reduced-capacity" in reply.body
        assert (body.closed, len(gate.left)) == (1, 1)

    def test_refusal_after_an_empty_chunk_is_answered(self) -> None:
        """An empty chunk sends nothing, not even the header."""
        reply = wsend(ResilienceMiddleware(answering(Body(b"", CircuitOpenError("down")))), Ask())

        assert reply.status == 503

    def test_refusal_after_the_first_chunk_is_raised_on(self) -> None:
        """Nothing is answered twice."""
        response, body = Response(), Body(b"a", CircuitOpenError("down"))
        result: Any = ResilienceMiddleware(answering(body))(environ_of(Ask()), response.start)

        with pytest.raises(CircuitOpenError):
            response.written.extend(iter(result))
        result.close()

        assert response.status == "200 OK"
        assert body.closed == 1

    def test_refusal_after_the_first_chunk_is_raised_on_under_a_lax_server(self) -> None:
        """Even if the server would take another header."""
        statuses: list[str] = []
        body = Body(b"a", CircuitOpenError("down"))
        result = ResilienceMiddleware(answering(body))(
            environ_of(Ask()), lambda status, *_: statuses.append(status) or io.BytesIO().write
        )

        with pytest.raises(CircuitOpenError):
            list(result)

        assert statuses == ["200 OK"]

    def test_refusal_of_a_call_that_had_started_the_response_is_answered(self) -> None:
        """By `exc_info`, as the standard wants it."""

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            raise BulkheadFullError("full")

        assert wsend(validator(ResilienceMiddleware(app)), Ask()).status == 503

    def test_refusal_after_write_is_raised_on(self) -> None:
        """What `write` was given is sent: the server refuses another header, and the error is the app's."""
        error = CircuitOpenError("down")

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))(b"written")
            raise error

        with pytest.raises(CircuitOpenError) as caught:
            wsend(ResilienceMiddleware(app), Ask())

        assert caught.value is error

    def test_write_passes(self) -> None:
        """The server's own callable reaches the app; the fields are there."""

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))(b"written, ")
            return [b"returned"]

        reply = wsend(ResilienceMiddleware(app, rate_limit="9/hour", shed=SpyGate()), Ask())

        assert reply.body == b"written, returned"
        assert reply["RateLimit"]

    def test_app_may_replace_its_own_answer(self) -> None:
        """`start_response` with `exc_info` passes, and the second answer has the fields too, once."""

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            try:
                raise ValueError("bad")
            except ValueError as error:
                start_response("500 Oops", list(PLAIN), (ValueError, error, error.__traceback__))
            return [b"oops"]

        gate = SpyGate()
        reply = wsend(validator(ResilienceMiddleware(validator(app), rate_limit="9/hour", shed=gate)), Ask())

        assert reply.status == 500
        assert reply["RateLimit"]
        assert isinstance(gate.left[0], Exception)

    def test_app_that_starts_twice_is_told_by_the_server(self) -> None:
        """The middleware hides no mistake."""

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            start_response("200 OK", list(PLAIN))
            return []

        gate = SpyGate()
        with pytest.raises(AssertionError, match="twice"):
            wsend(ResilienceMiddleware(app, shed=gate), Ask())

        assert gate.held == 0

    @pytest.mark.parametrize("body", [[b"a"], [b"a", b"b"], (b"a",), []], ids=len)
    def test_length_of_a_body_is_kept(self, body: Any) -> None:
        """Servers make a `Content-Length` of it; a body without one has none here either."""
        gate = SpyGate()
        middleware = ResilienceMiddleware(answering(body), shed=gate)
        result: Any = middleware(environ_of(Ask()), Response().start)

        assert len(result) == len(body)
        assert result
        assert list(result) == list(body)
        result.close()
        streamed: Any = ResilienceMiddleware(answering(once(body)))(environ_of(Ask()), Response().start)
        assert not hasattr(streamed, "__len__")

    def test_nothing_is_read_ahead(self) -> None:
        """A chunk is made when the server asks for it."""
        body = Body(b"a", b"b")
        result = iter(
            ResilienceMiddleware(answering(body), shed=SpyGate())(environ_of(Ask()), Response().start)
        )

        assert body.asked == 0
        next(result)
        assert body.asked == 1


class TestFiles:
    """A server recognises its own file wrapper, and sends the file by itself."""

    class File(io.BytesIO):
        """A file that notes being closed, and may not be closed more than once."""

        def close(self) -> None:
            assert not self.closed
            super().close()

    @staticmethod
    def ask() -> dict[str, Any]:
        return environ_of(Ask(extra={"wsgi.file_wrapper": FileWrapper}))

    def test_body_is_the_wrapper_of_the_server(self) -> None:
        """Its class, its content; what the app finds in the environ is as before when it returns."""
        gate, file, environ = SpyGate(), self.File(b"content"), self.ask()

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            return environ["wsgi.file_wrapper"](file, 3)

        result: Any = ResilienceMiddleware(app, shed=gate)(environ, Response().start)

        assert type(result) is FileWrapper
        assert environ["wsgi.file_wrapper"] is FileWrapper
        assert result.filelike.getvalue() == b"content"  # what servers look for, such as fileno(), is there
        assert list(result) == [b"con", b"ten", b"t"]
        assert gate.held == 1
        result.close()
        assert gate.left == [None]
        assert file.closed

    def test_django_may_put_its_close_on_the_file(self) -> None:
        """The response's `close` takes the place of the file's; it is called, and the place comes back."""
        gate, file = SpyGate(), self.File(b"content")
        closed: list[bool] = []

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            file.close = lambda: closed.append(True)  # type: ignore[method-assign]
            return environ["wsgi.file_wrapper"](file)

        wsend_to(ResilienceMiddleware(app, shed=gate), self.ask())

        assert (closed, gate.left) == ([True], [None])

    def test_file_without_close_gives_the_place_back_too(self) -> None:
        """Whatever can be read is a file."""

        class Minimal:
            def __init__(self) -> None:
                self._rest = [b"a", b""]

            def read(self, size: int) -> bytes:
                return self._rest.pop(0)

        gate = SpyGate()

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            return environ["wsgi.file_wrapper"](Minimal())

        reply = wsend_to(ResilienceMiddleware(app, shed=gate), self.ask())

        assert (reply.body, gate.left) == (b"a", [None])

    def test_file_that_nobody_closes_gives_the_place_back_when_it_is_dropped(self) -> None:
        """At once: nothing keeps the file and the request alive but the body."""
        gate = SpyGate()

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

        gc.disable()
        try:
            result = ResilienceMiddleware(app, shed=gate)(self.ask(), Response().start)
            assert gate.held == 1
            del result
            assert gate.held == 0
        finally:
            gc.enable()

    def test_wrapper_that_is_not_the_body_ends_nothing(self) -> None:
        """An app may read a file through it and answer with something else."""
        gate = SpyGate()
        held: list[int] = []

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", list(PLAIN))
            wrapper = environ["wsgi.file_wrapper"](self.File(b"content"))
            wrapper.close()
            held.append(gate.held)
            return [b"x"]

        wsend_to(ResilienceMiddleware(app, shed=gate), self.ask())

        assert (held, gate.left) == ([1], [None])

    def test_environ_is_put_right_after_an_error_too(self) -> None:
        """Whatever the app does."""
        environ = self.ask()

        def app(environ: Any, start_response: Any) -> Any:
            raise ValueError("bad")

        with pytest.raises(ValueError, match="bad"):
            ResilienceMiddleware(app, shed=SpyGate())(environ, Response().start)

        assert environ["wsgi.file_wrapper"] is FileWrapper

    def test_nothing_is_put_in_between_where_there_is_nothing_to_give_back(self) -> None:
        """Without a gate and a deadline the app has the server's wrapper itself."""
        seen: list[Any] = []

        def app(environ: Any, start_response: Any) -> Any:
            seen.append(environ["wsgi.file_wrapper"])
            start_response("200 OK", list(PLAIN))
            return []

        wsend_to(ResilienceMiddleware(app, rate_limit="9/hour"), self.ask())

        assert seen == [FileWrapper]


def wsend_to(app: Any, environ: dict[str, Any]) -> Any:
    """Send the request that *environ* tells; return the reply."""
    return wsend(lambda _environ, start_response: app(environ, start_response), Ask())


def test_gate_that_waits_outside_the_thread_is_a_mistake() -> None:
    """The one step in which a request is let in under WSGI cannot be left to an event loop."""
    from resilient.web import wsgi

    class Forever:
        def __await__(self) -> Any:
            yield

    async def wait() -> None:
        await Forever()

    with pytest.raises(RuntimeError, match="waited outside"):
        wsgi.at_once(wait())


def test_user_of_the_server_is_one() -> None:
    """`REMOTE_USER` is who has logged in."""
    from resilient.wsgi import user

    app = Wsgi().middleware(rate_limit="1/hour", key=user())

    statuses = [
        Wsgi().get(app, peer=peer, extra=extra).status
        for peer, extra in [
            ("192.0.2.1", {"REMOTE_USER": "ada"}),
            ("192.0.2.2", {"REMOTE_USER": "ada"}),
            ("192.0.2.1", {}),
            ("192.0.2.1", {"REMOTE_USER": ""}),
        ]
    ]

    assert statuses == [200, 429, 200, 429]
