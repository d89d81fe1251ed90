"""The WSGI middleware."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ..health.serving.wsgi import send_answer
from ..policies.rate_limiter.decision import Decision
from ..policies.rate_limiter.limiter import RateLimiter
from .door import Block, Visit, Waits, asked_of, outcome
from .guard import Guard
from .problem import REFUSALS
from .request import WsgiRequest
from .surroundings import Surroundings, restore, surroundings, swap

__all__ = ["WAITS", "ResilienceMiddleware", "at_once"]

# Coroutines in name only: they wait inside, in the thread, so that each runs to its end in one step.


async def _hit(limiter: RateLimiter, key: str) -> Decision:
    return limiter.hit(key)


async def _refund(limiter: RateLimiter, decision: Decision) -> None:
    limiter.refund(decision)


async def _enter(place: Block) -> None:
    place.__enter__()


WAITS: Final = Waits(_hit, _refund, _enter)
"""How a thread waits."""


def at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what waits by `WAITS` to its end."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has waited outside its thread")


class ResilienceMiddleware(Guard[WSGIApplication]):
    """Guard a WSGI app: rate limits, load shedding, deadlines, maintenance, and answers to refusals.

    A request passes, in this order: *health*, *exempt* paths (which nothing here touches), *maintenance*, the
    deadline the client sent, *rate_limit*, *shed*. Who is refused gets 429, 503 or 504 with a problem
    document and, where it is known, a `Retry-After`. So does whoever's request ends in a `RejectedError` or
    `CallTimeoutError` that leaves the app, if no part of the body has been sent; otherwise that error is
    raised on.

    The place that *shed* gave and the deadline are given back when the server closes the body. A thread
    cannot be interrupted: the deadline is obeyed by the retries, time limits and waits inside. It holds while
    the app is called and while a chunk is made, and so does the priority; in between, the thread may serve
    others.

    Args:
        app: the WSGI app.
        rate_limit: a `RateLimiter`; a rate such as "100/minute"; or a mapping of path patterns to either. The
            exact path wins, then the longest `"/prefix/*"`, then `"*"`; one limit applies to each request.
            Nobody waits: a limiter's `max_wait` and `key` are for calls. None: no limit.
        key: makes the key a request is limited by; None from it lifts the limit. None: the client's address.
        shed: a gate such as a `Bulkhead` or a `CircuitBreaker`. It is told of errors and of answers of 500
            and above as failures, and of bodies that were not sent to their end as abandonments. None:
            nothing is shed.
        priority: tells the priority of a request, for *shed* and everything inside. None, or None from it:
            requests for "/livez" and the like are probes, where they are not *exempt*, and the others have
            the priority of the context.
        deadline: seconds a request may take; above 0. Whoever is *trusted* may ask for less by
            `grpc-timeout`, `x-envoy-expected-rq-timeout-ms` or `x-request-timeout-ms`; from anybody else the
            fields are ignored. What fails when that time is up is an abandonment for *shed*. None: only that.
        maintenance: the switch that closes the service. None: there is none.
        exempt: paths that nothing here touches, in the patterns of *rate_limit*.
        headers: "ietf" for `RateLimit` and `RateLimit-Policy`, "legacy" for `X-RateLimit-*`, "both", or None.
        trusted: the proxies and services whose `X-Forwarded-For` or `Forwarded`, and whose deadlines, are
            believed: networks, or `TrustedProxies`. None are by default.
        health: a `Health`, or its `Endpoints` where they are not the usual ones. Requests for it are answered
            before anything else happens, closed or overloaded as the service may be; what is below `/health/`
            and not to be answered goes on to the app. None: the app answers for health.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of requests and threads at once; nothing of a request is kept here.

    Source: PEP 3333; draft-ietf-httpapi-ratelimit-headers-11; RFC 9457; RFC 7239.
    """

    _in_tasks = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request; see PEP 3333.

        Args:
            environ: the facts of the request.
            start_response: takes status and header.

        Returns:
            The body.
        """
        request, health = WsgiRequest(environ, self._door.proxies), self._door.health
        if health is not None and (place := health.find(request.path)) is not None:
            asked = asked_of(request)
            if health.claims(place, asked):
                return send_answer(health.respond(place, asked), start_response)
        if self._door.exempts(request):
            return self.app(environ, start_response)
        exchange = _Exchange(Visit(self._door, request, WAITS), start_response)
        return exchange.run(self.app, environ)


class _Exchange:
    """One request and its response: knows how far it has come, and ends the visit once."""

    __slots__ = ("_files", "_start_response", "_started", "_status", "_visit")

    def __init__(self, visit: Visit, start_response: StartResponse) -> None:
        self._visit = visit
        self._start_response = start_response
        self._started = False
        self._status: int | None = None
        self._files: list[tuple[object, _File]] = []

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Let the request in and call the app, or answer in its place; and not as late as the body."""
        around = surroundings()
        try:
            at_once(self._visit.enter())
            inside = surroundings()
            wraps = environ.get("wsgi.file_wrapper") is not None and self._visit.holds
            body = self._call_wrapping(app, environ) if wraps else app(environ, self._start)
        except BaseException as error:
            self.end(error)
            if isinstance(error, REFUSALS):
                return [self.refuse(error)]
            raise
        finally:
            # The server may close the body much later, or never: until then the thread serves others.
            restore(around)
        for wrapper, file in self._files:
            if wrapper is body:
                file.exchange = self
                self._files.clear()  # or the two would keep each other alive
                return body
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        return kind(self, body, None if inside == around else inside)

    def refuse(self, error: Exception) -> bytes:
        """Answer *error*, which is being handled, and return the body.

        Raises:
            Exception: *error* itself, where the server has sent the header already.
        """
        answer = self._visit.answer(error)
        status, fields = f"{answer.status} {HTTPStatus(answer.status).phrase}", list(answer.fields)
        if self._started:  # the server decides whether the app's header can still be replaced
            self._start_response(status, fields, sys.exc_info())
        else:
            self._start_response(status, fields)
        return answer.body

    def end(self, error: BaseException | None = None, *, complete: bool = True) -> None:
        """Give back what the request holds, if it still does.

        Args:
            error: what left the app, if anything did.
            complete: whether the body was sent to its end.
        """
        self._visit.leave(outcome(self._status, error, gone=error is None and not complete))

    def __del__(self) -> None:
        # A server that never closes the body must not cost a place for ever.
        self.end(complete=False)

    def _call_wrapping(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        make = environ["wsgi.file_wrapper"]
        # Servers send a body fast that they recognise as their own wrapper, so it cannot be put into one of
        # ours. What it reads from can. Afterwards it is as it was: servers look for its class there.
        environ["wsgi.file_wrapper"] = functools.partial(self._wrap_file, make)
        try:
            return app(environ, self._start)
        finally:
            environ["wsgi.file_wrapper"] = make

    def _wrap_file(self, make: Callable[..., Any], file: Any, *options: Any) -> Any:
        watched = _File(file)
        wrapper = make(watched, *options)
        self._files.append((wrapper, watched))
        return wrapper

    def _start(
        self, status: str, headers: list[tuple[str, str]], *exc_info: Any
    ) -> Callable[[bytes], object]:
        write = self._start_response(status, [*headers, *self._visit.notes.fields], *exc_info)
        # After the server has had its say: it may have refused what the app gave.
        self._started = True
        code = status[:3]
        self._status = int(code) if code.isdecimal() else None
        if self._visit.wants_to_know is not None:
            self._visit.answered(self._status)
        return write


class _File:
    """What the server's file wrapper reads from; closing it ends the visit, if the wrapper is the body."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.exchange: _Exchange | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        try:
            # An app may have put its own `close` on the file meanwhile, as Django does.
            close = getattr(self._file, "close", None)
            if close is not None:
                close()
        finally:
            if self.exchange is not None:
                self.exchange.end()


class _Body:
    """The app's body, passed on chunk by chunk; closing it ends the visit."""

    def __init__(self, exchange: _Exchange, body: Iterable[bytes], inside: Surroundings | None) -> None:
        self._exchange = exchange
        self._body = body
        self._inside = inside
        self._chunks: Iterator[bytes] | None = None
        self._begun = False
        self._finished = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        around = None if self._inside is None else swap(self._inside)
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            chunk = next(self._chunks)
        except StopIteration:
            self._finished = True
            raise
        except BaseException as error:
            self._exchange.end(error)
            if self._begun or not isinstance(error, REFUSALS):
                raise
            chunk = self._exchange.refuse(error)
            self._chunks = iter(())
        finally:
            if around is not None:
                restore(around)
        self._begun = self._begun or bool(chunk)
        return chunk

    def close(self) -> None:
        """Close the app's body, once, and end the visit."""
        body, self._body = self._body, ()
        close = getattr(body, "close", None)
        around = None if self._inside is None else swap(self._inside)
        try:
            if close is not None:
                close()
        except BaseException as error:
            self._exchange.end(error)
            raise
        finally:
            if around is not None:
                restore(around)
        self._exchange.end(complete=self._finished)


class _SizedBody(_Body):
    """A body that has a length, from which servers work out the `Content-Length`."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True  # an empty body is a body
