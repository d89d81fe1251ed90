"""Health as an ASGI app, and for the ASGI middleware."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, TypeAlias, Unpack

from ...engine import params
from .asked import Answer, Asked
from .drain import Drained, drain_on_sigterm
from .handler import Endpoints, EndpointWords, Place, Reporter, place_below, without_drain_delay

__all__ = [
    "AsgiHealth",
    "AsgiPlace",
    "DrainingAsgi",
    "asgi_app",
    "asked_of",
    "places_of",
    "send_answer",
    "start",
]

_log = logging.getLogger("resilient")

_Scope: TypeAlias = MutableMapping[str, Any]
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def asgi_app(health: Reporter, app: AsgiApp | None = None, **words: Unpack[EndpointWords]) -> AsgiHealth:
    """Make an ASGI app that answers for the health of a service.

    Args:
        health: the `Health` that is reported.
        app: an ASGI app that gets everything else, its own pages below `/health` included; None: everything
            else is answered with 404.
        **words: the arguments of `Endpoints`.

    Returns:
        The app. When the server starts it, it begins with the checks, as `Health.start` does, and with
        `drain_delay=` puts SIGTERM off.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    return AsgiHealth(Endpoints(health, **words), app)


class AsgiHealth:
    """An ASGI app that answers for health, before another one or by itself.

    Args:
        endpoints: what is asked for where.
        app: gets everything else, and what is below `/health` and no name that may be asked for; None: there
            is nothing else.

    Concurrency: serves any number of requests and loops at once.
    """

    def __init__(self, endpoints: Endpoints, app: AsgiApp | None = None) -> None:
        self._endpoints = endpoints
        self._app = None if app is None else params.callback("app", app)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection; see the ASGI specification.

        Args:
            scope: what kind of connection it is, and its facts.
            receive: awaited for the client's messages.
            send: awaited with ours.
        """
        kind = scope["type"]
        endpoints = self._endpoints
        if not await start(endpoints, scope, receive, send):
            return
        if kind == "http":
            asked = asked_of(scope)
            place = endpoints.find(asked.path)
            if self._app is None or (place is not None and endpoints.claims(place, asked)):
                await send_answer(await endpoints.arespond(place, asked), send)
                return
        if self._app is not None:
            await self._app(scope, receive, send)
        elif kind == "lifespan":
            await _live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})


class DrainingAsgi:
    """An ASGI app before which SIGTERM is put off when the server starts it; see `drain_on_sigterm`."""

    def __init__(self, app: AsgiApp, health: Drained, delay: float) -> None:
        self._app = app
        self._health = health
        self._delay = delay

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection; see the ASGI specification."""
        if scope["type"] != "lifespan" or await _put_off(self._health, self._delay, receive, send):
            await self._app(scope, receive, send)


def places_of(endpoints: Endpoints) -> Iterator[tuple[str, AsgiPlace]]:
    """Return each path, also with a slash at its end, as Starlette writes them, and what answers there.

    Raises:
        ValueError: *endpoints* are to put SIGTERM off: a route does not see the server start.
    """
    without_drain_delay(endpoints)
    for path, place in endpoints.places:
        yield path, AsgiPlace(endpoints, place)
        # Starlette would redirect, and not everybody who probes follows that.
        yield f"{path}/", AsgiPlace(endpoints, place)
    for beginning in endpoints.below:
        yield f"{beginning}{{name:path}}", AsgiPlace(endpoints, None)


class AsgiPlace:
    """An ASGI app that answers for one path which a framework has found.

    Args:
        endpoints: who is told how much.
        place: what the path leads to; None where the framework knows the name that the client has chosen.
    """

    def __init__(self, endpoints: Endpoints, place: Place | None) -> None:
        self._endpoints = endpoints
        self._place = place

    async def __call__(self, scope: _Scope, _receive: _Receive, send: _Send) -> None:
        """Serve one connection; see the ASGI specification."""
        place = self._place or place_below(str(scope["path_params"]["name"]))
        await send_answer(await self._endpoints.arespond(place, asked_of(scope)), send)


async def start(endpoints: Endpoints, scope: _Scope, receive: _Receive, send: _Send) -> bool:
    """Begin with the checks when the server starts the app, and put SIGTERM off where that is wanted.

    The server has handlers of its own by then, and its loop is the one that clients in the app belong to:
    checks that are coroutine functions run on it, whoever asks first.

    Returns:
        Whether the app may start. If not, the server has been told why.
    """
    if scope["type"] != "lifespan":
        return True
    try:
        endpoints.health.start()
    except Exception:  # noqa: BLE001 - as when there can be no more threads; the first question tries again
        _log.exception("The checks were not begun when the app was started")
    delay = endpoints.drain_delay
    if delay is None:
        return True
    return await _put_off(endpoints.health, delay, receive, send)


async def _put_off(health: Drained, delay: float, receive: _Receive, send: _Send) -> bool:
    # A server in another thread, as in tests, gets no signals.
    if threading.current_thread() is not threading.main_thread():
        return True
    try:
        drain_on_sigterm(health, delay)
    except RuntimeError as error:
        # Raised, it would be taken for an app that does not know about starting.
        await receive()
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return False
    return True


async def _live(receive: _Receive, send: _Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def asked_of(scope: _Scope) -> Asked:
    """Return what the scope of a request asks."""
    fields: list[tuple[bytes, bytes]] = list(scope.get("headers", ()))

    def header(name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        values = [value for key, value in fields if key == wanted]
        return b",".join(values).decode("latin-1") if values else None

    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    # Some servers put it in front of the path, some do not.
    if root and f"{path}/".startswith(f"{root}/"):
        path = path.removeprefix(root) or "/"
    client = scope.get("client")
    query = bytes(scope.get("query_string") or b"").decode("latin-1")
    return Asked(str(scope.get("method", "GET")), path, query, header, str(client[0]) if client else None)


async def send_answer(answer: Answer, send: _Send) -> None:
    """Send a whole response."""
    headers = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
