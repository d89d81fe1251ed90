"""What a request costs: frames, which do not wobble as times do, and nothing for the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from tests.web.support import WORLDS, Asgi, Ask, Client, SpyGate, World, environ_of, hello, http_scope

from resilient import RateLimiter
from resilient.errors import CircuitOpenError

# More than the bare app takes, with a limit in this process.
MOST_FRAMES = 42


def frames_of(call: Callable[[], Any]) -> int:
    """Return how many Python functions *call* enters."""
    entered: list[str] = []

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            entered.append(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return len(entered)


def request_of(world: World, app: Any) -> Callable[[], Any]:
    """Return what makes one request to *app*, without a loop and without the validator."""
    if isinstance(world, Asgi):
        client = Client()
        return lambda: _finished(app(http_scope(Ask()), client.receive, client.send))
    return lambda: list(app(environ_of(Ask()), lambda *_: None))


def _finished(coroutine: Any) -> None:
    with contextlib.suppress(StopIteration):
        coroutine.send(None)


def plain(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_limit_costs_so_many_frames(world: World) -> None:
    """Counted twice: what is made at the first request is not every request's."""
    app = world.app(hello) if isinstance(world, Asgi) else plain
    guarded = world.module.ResilienceMiddleware(app, rate_limit=RateLimiter("1000/second"))
    frames_of(request_of(world, guarded))

    assert frames_of(request_of(world, guarded)) - frames_of(request_of(world, app)) <= MOST_FRAMES


def test_imports_no_framework() -> None:
    """Both middlewares run on the standard library and the package's own dependencies."""
    code = (
        "import sys, resilient.asgi, resilient.wsgi; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not set(loaded.split()) & {"starlette", "fastapi", "flask", "werkzeug", "django", "anyio", "httpx"}


def refused() -> tuple[int, bytes]:
    raise CircuitOpenError("down")


@pytest.mark.parametrize("world", WORLDS, ids=repr)
@pytest.mark.parametrize("handler", [hello, refused, lambda: (500, b"oops")], ids=["ok", "refused", "failed"])
@pytest.mark.parametrize("rate", ["1000/second", "1/hour"])
def test_requests_leave_no_circles(world: World, handler: Any, rate: str) -> None:
    """Answered or refused, a request and all that belongs to it are gone when it is over."""
    app = world.middleware(handler, rate_limit=rate, shed=SpyGate(), deadline=60)
    if isinstance(world, Asgi):
        with asyncio.Runner() as runner:
            assert _circles(lambda: runner.run(_one(app))) == 0
    else:
        assert _circles(lambda: world.get(app)) == 0


async def _one(app: Any) -> None:
    client = Client()
    await app(http_scope(Ask()), client.receive, client.send)


def _circles(call: Callable[[], Any]) -> int:
    """Return what the collector finds after ten more calls than ten, beyond what it finds after these."""
    gc.collect()
    gc.disable()
    try:
        found = []
        for times in (10, 20):
            for _ in range(times):
                call()
            found.append(gc.collect())
        return max(0, found[1] - found[0])
    finally:
        gc.enable()
