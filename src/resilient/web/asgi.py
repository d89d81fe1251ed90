"""The ASGI middleware."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from ..engine.priority import innermost_priority
from ..errors import RejectedError
from ..health.serving.asgi import send_answer, start
from ..policies.rate_limiter.decision import Decision
from ..policies.rate_limiter.limiter import RateLimiter
from .ahead import Ahead, ClientGoneError, Message, Receive
from .door import Block, Visit, Waits, asked_of, outcome
from .guard import Guard
from .headers import Fields
from .problem import REFUSALS, Answer
from .request import AsgiRequest

__all__ = ["WAITS", "ResilienceMiddleware", "close_code", "deniable"]

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def _hit(limiter: RateLimiter, key: str) -> Awaitable[Decision]:
    return limiter.ahit(key)


def _refund(limiter: RateLimiter, decision: Decision) -> Awaitable[None]:
    return limiter.arefund(decision)


def _enter(place: Block) -> Awaitable[object]:
    return place.__aenter__()


WAITS: Final = Waits(_hit, _refund, _enter)
"""How a task waits."""


class ResilienceMiddleware(Guard[App]):
    """Guard an ASGI app: rate limits, load shedding, deadlines, maintenance, and answers to refusals.

    A request passes, in this order: *health*, *exempt* paths (which nothing here touches), *maintenance*, the
    deadline the client sent, *rate_limit*, *shed*. Who is refused gets 429, 503 or 504 with a problem
    document and, where it is known, a `Retry-After`. So does whoever's request ends in a `RejectedError` or
    `CallTimeoutError` that leaves the app, if no response has begun; otherwise that error is raised on.

    The place that *shed* gave and the deadline are given back when the body has been sent, before background
    tasks; for a WebSocket, the place when the connection ends. WebSockets have no deadline. Refused ones are
    answered before they are accepted.

    The deadline cuts tasks off. A thread, in which frameworks run routes that are no coroutine functions,
    cannot be interrupted: the client has its answer, place and deadline are given back, and the thread works
    on. Put `Timeout(threads=...)` around such work, or make it a coroutine.

    Args:
        app: the ASGI app.
        rate_limit: a `RateLimiter`; a rate such as "100/minute"; or a mapping of path patterns to either. The
            exact path wins, then the longest `"/prefix/*"`, then `"*"`; one limit applies to each request.
            Nobody waits: a limiter's `max_wait` and `key` are for calls. None: no limit.
        key: makes the key a request is limited by; None from it lifts the limit. None: the client's address.
        shed: a gate such as a `Bulkhead` or a `CircuitBreaker`. It is told of errors and of answers of 500
            and above as failures, and of clients that have left as abandonments. A request whose client
            leaves while it waits at the gate gives up its turn. None: nothing is shed.
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
            and not to be answered goes on to the app. Its checks are begun, as by `Health.start`, when the
            server starts the app. None: the app answers for health.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: serves any number of requests and loops at once; nothing of a request is kept here.

    Source: ASGI 3.0; draft-ietf-httpapi-ratelimit-headers-11; RFC 9457; RFC 7239.
    """

    _in_tasks = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; see the ASGI specification.

        Args:
            scope: what kind of connection it is, and its facts.
            receive: awaited for the client's messages.
            send: awaited with the app's.
        """
        exchange_type, health = _EXCHANGES.get(scope["type"]), self._door.health
        if exchange_type is None:
            if health is None or await start(health, scope, receive, send):
                await self.app(scope, receive, send)
            return
        request = AsgiRequest(scope, self._door.proxies)
        if health is not None and exchange_type is _Http:
            place = health.find(request.path)
            if place is not None and health.claims(place, asked := asked_of(request)):
                await send_answer(await health.arespond(place, asked), send)
                return
        if self._door.exempts(request):
            await self.app(scope, receive, send)
            return
        visit = Visit(self._door, request, WAITS, timed=exchange_type is _Http)
        await exchange_type(visit, scope, receive, send).run(self.app)


class _Exchange:
    """One connection: passes messages on, and knows how far it has come."""

    __slots__ = (
        "_ahead",
        "_complete",
        "_gone",
        "_raw_receive",
        "_raw_send",
        "_scope",
        "_status",
        "_visit",
        "begun",
    )

    def __init__(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        self._visit = visit
        self._scope = scope
        self._raw_receive = receive
        self._raw_send = send
        self._ahead: Ahead | None = None
        self._status: int | None = None
        self._gone = False
        self._complete = False
        self.begun = False

    async def run(self, app: App) -> None:
        """Let the connection in and call the app, or answer in its place."""
        visit = self._visit
        around = innermost_priority.get()
        try:
            try:
                await visit.enter(self._at_gate)
                await app(self._scope, self.receive, self.send)
            except BaseException as error:
                visit.leave(self._outcome(error))
                raise
            visit.leave(self._outcome(None))
        except REFUSALS as error:
            if self.begun:
                raise
            await self.refuse(visit.answer(error))
        except ClientGoneError:
            # Nobody will read it, but middlewares outside count on an answer.
            with contextlib.suppress(OSError):
                await self.refuse(visit.answer(RejectedError("the client has gone")))
        finally:
            innermost_priority.set(around)
            if self._ahead is not None:
                self._ahead.close()

    async def _at_gate(self, place: Block) -> None:
        """Enter *place*; whoever leaves while it waits for that gives up its turn.

        Raises:
            ClientGoneError: the client has left.
            RejectedError: *place* cannot be entered.
        """
        # It comes to this only if the gate has the task wait.
        watch = asyncio.get_running_loop().call_soon(self._watch, asyncio.current_task())
        try:
            await place.__aenter__()
        except asyncio.CancelledError:
            if self._stop_watching(watch):
                self._gone = True
                raise ClientGoneError from None
            raise
        finally:
            self._stop_watching(watch)

    def _watch(self, task: asyncio.Task[Any] | None) -> None:
        """Receive ahead of the app."""
        # But not from a client that asks before it sends its body: to receive would be to say yes.
        if task is not None and all(name != b"expect" for name, _ in self._scope.get("headers", ())):
            self._ahead = Ahead(self._raw_receive, task)
            self._raw_receive = self._ahead.receive

    def _stop_watching(self, watch: asyncio.Handle) -> bool:
        watch.cancel()
        return self._ahead is not None and self._ahead.stop()

    async def receive(self) -> Message:
        """Pass on a message of the client's."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Pass on a message of the app's."""
        raise NotImplementedError

    async def refuse(self, answer: Answer) -> None:
        """Give *answer*, where nothing has been answered yet."""
        raise NotImplementedError

    def _telling(self, message: Message) -> Message:
        return {**message, "headers": [*message.get("headers", ()), *_wire(self._visit.notes.fields)]}

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        """Return what a gate is told where the app has ended; see `outcome`."""
        raise NotImplementedError


class _Http(_Exchange):
    """A request and its response."""

    __slots__ = ()

    async def receive(self) -> Message:
        message = await self._raw_receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.begun = True
            self._status = message["status"]
            if self._visit.wants_to_know is not None:
                self._visit.answered(self._status)
            message = self._telling(message)
        try:
            await self._raw_send(message)
        except OSError:  # what servers raise when the client has gone
            self._gone = True
            raise
        if kind in _BODIES and not message.get("more_body", False):
            self._complete = True
            # Here, not when the app returns: its background tasks run after the answer and are no part of it.
            self._visit.leave(outcome(self._status, None, gone=False))

    async def refuse(self, answer: Answer) -> None:
        await self._raw_send(_start("http.response.start", answer))
        await self._raw_send({"type": "http.response.body", "body": answer.body})

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        # An answer that was begun and not ended is none.
        return outcome(self._status if self._complete else None, error, gone=self._gone)


class _WebSocket(_Exchange):
    """A WebSocket. Its place is held until the app has done with it."""

    __slots__ = ("_connected",)

    def __init__(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(visit, scope, receive, send)
        self._connected = False

    async def receive(self) -> Message:
        self._connected = True
        message = await self._raw_receive()
        if message["type"] == "websocket.disconnect":
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        self.begun = True  # whatever an app sends accepts the connection or ends it
        kind = message["type"]
        if self._status is None:
            self._status = message["status"] if kind == _DENIAL else _ANSWERED_BY.get(kind)
            self._visit.answered(self._status)
        if kind == _DENIAL:
            message = self._telling(message)
        try:
            await self._raw_send(message)
        except OSError:  # what servers raise when the client has gone
            self._gone = True
            raise

    async def refuse(self, answer: Answer) -> None:
        # The answer is one to the client's "connect", so that comes first; it may have gone instead.
        if not self._connected:
            await self.receive()
        if self._gone:
            return
        if deniable(self._scope):
            await self._raw_send(_start(_DENIAL, answer))
            await self._raw_send({"type": "websocket.http.response.body", "body": answer.body})
        else:
            await self._raw_send({"type": "websocket.close", "code": close_code(answer.status)})

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        # Every connection ends by somebody's leaving: an app that takes it well has done its work.
        gone = self._gone and (error is not None or self._status is None)
        return outcome(self._status, error, gone=gone)


_DENIAL: Final = "websocket.http.response.start"
# The answer to the handshake that these messages stand for.
_ANSWERED_BY: Final[dict[str, int]] = {
    "websocket.accept": HTTPStatus.SWITCHING_PROTOCOLS,
    "websocket.close": HTTPStatus.FORBIDDEN,
}
_EXCHANGES: Final[dict[str, type[_Exchange]]] = {"http": _Http, "websocket": _WebSocket}
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
_POLICY_VIOLATION: Final = 1008  # RFC 6455
_TRY_AGAIN_LATER: Final = 1013  # of IANA's registry


def deniable(scope: Scope) -> bool:
    """Tell whether a WebSocket that is not accepted can be given a response."""
    return "websocket.http.response" in (scope.get("extensions") or ())


def close_code(status: int) -> int:
    """Return what closes a WebSocket where a response would have *status*."""
    return _POLICY_VIOLATION if status == HTTPStatus.TOO_MANY_REQUESTS else _TRY_AGAIN_LATER


def _wire(fields: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in fields]


def _start(kind: str, answer: Answer) -> Message:
    return {"type": kind, "status": answer.status, "headers": _wire(answer.fields)}
