"""SIGTERM put off: by real signals, in this process."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from tests.health.standin import StandIn
from tests.support.waiting import await_until, wait_until
from tests.web.support import Client

from resilient.asgi import ResilienceMiddleware
from resilient.health import Endpoints
from resilient.health.serving.asgi import asgi_app
from resilient.health.serving.drain import drain_on_sigterm
from resilient.integrations.gunicorn import draining

SOON = 0.02
NEVER = 3_600.0


class Former:
    """Who handled SIGTERM before."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.heard.append(number)


@pytest.fixture
def former() -> Iterator[Former]:
    """A handler for the test; the one of before comes back."""
    before = signal.getsignal(signal.SIGTERM)
    handler = Former()
    signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def told_to_end() -> None:
    """Get SIGTERM."""
    signal.raise_signal(signal.SIGTERM)


def test_readiness_fails_at_once_and_the_signal_comes_later(former: Former) -> None:
    """To whoever handled it before, as the signal that it was."""
    health = StandIn()
    drain_on_sigterm(health, SOON)

    told_to_end()
    wait_until(lambda: bool(health.drained), "draining")
    wait_until(lambda: bool(former.heard), "the former handler")

    assert health.drained == ["the process was told to end"]
    assert former.heard == [signal.SIGTERM]


def test_signal_waits_for_its_delay(former: Former) -> None:
    """And the second one does not; the first does not come again after that."""
    health = StandIn()
    drain_on_sigterm(health, NEVER)

    told_to_end()
    wait_until(lambda: bool(health.drained), "draining")
    assert former.heard == []
    told_to_end()
    assert former.heard == [signal.SIGTERM]
    told_to_end()
    assert former.heard == [signal.SIGTERM] * 2
    assert len(health.drained) == 1


def test_no_delay(former: Former) -> None:
    """0 drains and goes on."""
    health = StandIn()
    drain_on_sigterm(health, 0)

    told_to_end()
    wait_until(lambda: bool(former.heard), "the former handler")
    assert health.drained


def test_twice_is_once(former: Former) -> None:
    """The handler is not put before itself: the delay would be twice as long."""
    health = StandIn()
    drain_on_sigterm(health, NEVER)
    installed = signal.getsignal(signal.SIGTERM)
    drain_on_sigterm(health, SOON)

    assert signal.getsignal(signal.SIGTERM) == installed
    told_to_end()
    wait_until(lambda: bool(former.heard), "the former handler")
    assert len(health.drained) == 1


def test_several_drain_together(former: Former) -> None:
    """For the longest of their delays."""
    one, other = StandIn(), StandIn()
    drain_on_sigterm(one, 0)
    drain_on_sigterm(other, NEVER)

    told_to_end()
    wait_until(lambda: bool(one.drained and other.drained), "draining")
    assert former.heard == []


def test_handler_that_a_server_puts_over_it_is_put_off_in_turn(former: Former) -> None:
    """As when it is called at import, and once more when the server starts the app."""
    health = StandIn()
    drain_on_sigterm(health, NEVER)
    server = Former()
    signal.signal(signal.SIGTERM, server)
    drain_on_sigterm(health, SOON)

    told_to_end()
    wait_until(lambda: bool(server.heard), "the server's handler")
    assert former.heard == []


def test_server_that_has_ended_meanwhile_is_left_alone(former: Former) -> None:
    """SIGINT ends it at once; the signal that was put off must not break off what it still does."""
    health = StandIn()
    drain_on_sigterm(health, SOON)
    told_to_end()
    over = Former()
    signal.signal(signal.SIGTERM, over)
    thread_is_over = threading.Event()
    threading.Timer(10 * SOON, thread_is_over.set).start()

    assert thread_is_over.wait(10)
    assert over.heard == former.heard == []
    assert health.drained


def test_what_ignored_it_goes_on_ignoring_it(former: Former) -> None:
    """It drains all the same."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    health = StandIn()
    drain_on_sigterm(health, NEVER)

    told_to_end()
    wait_until(lambda: bool(health.drained), "draining")
    told_to_end()


def test_first_process_of_a_container_ends_all_the_same(
    former: Former, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does not do the default to it, so Python has to end it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    drain_on_sigterm(StandIn(), NEVER)
    handler: Any = signal.getsignal(signal.SIGTERM)
    told_to_end()
    monkeypatch.setattr(signal, "raise_signal", lambda _number: None)

    with pytest.raises(SystemExit) as ended:
        handler(signal.SIGTERM, None)
    assert ended.value.code == 143


def test_drain_that_raises_keeps_nobody_alive(former: Former) -> None:
    """The process has been told to end."""

    class Broken(StandIn):
        def drain(self, reason: str = "") -> None:
            raise ZeroDivisionError

    drain_on_sigterm(Broken(), SOON)
    told_to_end()

    wait_until(lambda: bool(former.heard), "the former handler")


def test_no_more_threads_mean_no_delay(former: Former, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than a process that does not end."""

    def no_more(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", no_more)
    drain_on_sigterm(StandIn(), NEVER)
    told_to_end()

    assert former.heard == [signal.SIGTERM]


def test_health_whose_lock_is_held_by_the_main_thread(former: Former) -> None:
    """The handler runs in the middle of what that thread does: it must not wait for it."""
    lock = threading.Lock()

    class Locking(StandIn):
        def drain(self, reason: str = "") -> None:
            with lock:
                super().drain(reason)

    health = Locking()
    drain_on_sigterm(health, NEVER)
    with lock:
        told_to_end()
        assert not health.drained

    wait_until(lambda: bool(health.drained), "draining")


def test_other_threads_are_told_off(former: Former) -> None:
    """Python would say so in words of its own."""
    errors: list[str] = []

    def call() -> None:
        try:
            drain_on_sigterm(StandIn())
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert errors == ["drain_on_sigterm must be called in the main thread: signals are handled there"]
    assert signal.getsignal(signal.SIGTERM) is former


def test_handler_that_is_not_pythons_is_an_error(former: Former, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that embeds Python: it could be neither called nor put back."""
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)

    with pytest.raises(RuntimeError, match="something other than Python"):
        drain_on_sigterm(StandIn())


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"delay": -1}, ValueError, "delay must be at least 0"),
        ({"delay": "5"}, TypeError, "delay must be a number"),
        ({"health": None}, TypeError, "health must be a Health"),
        ({"health": StandIn}, TypeError, "health must be a Health"),
    ],
)
def test_bad_arguments_are_refused(former: Former, words: Any, error: type[Exception], match: str) -> None:
    """And nothing is installed."""
    with pytest.raises(error, match=match):
        drain_on_sigterm(**{"health": StandIn(), **words})
    assert signal.getsignal(signal.SIGTERM) is former


# Where an event loop handles the signal.


async def test_handler_of_the_loop_is_put_off(former: Former) -> None:
    """Signals go to a loop whatever `signal.signal` says, so its own handler is the one to replace."""
    heard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.append, "the end")
    health = StandIn()
    try:
        drain_on_sigterm(health, NEVER)
        drain_on_sigterm(health, SOON)
        told_to_end()
        await await_until(lambda: bool(heard), "the loop's handler")
    finally:
        loop.remove_signal_handler(signal.SIGTERM)

    assert heard == ["the end"]
    assert len(health.drained) == 1


async def test_second_signal_goes_to_the_loop_at_once(former: Former) -> None:
    """As to any other handler."""
    heard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.append, "the end")
    health = StandIn()
    try:
        drain_on_sigterm(health, NEVER)
        told_to_end()
        await await_until(lambda: bool(health.drained), "draining")
        assert heard == []
        told_to_end()
        await await_until(lambda: bool(heard), "the loop's handler")
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def test_loop_that_is_not_running_cannot_be_asked(former: Former) -> None:
    """The message says what to do."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.add_signal_handler(signal.SIGTERM, former)
        try:
            with pytest.raises(
                RuntimeError, match=r"call drain_on_sigterm in a task of that loop, or health.drain"
            ):
                drain_on_sigterm(StandIn())
        finally:
            loop.remove_signal_handler(signal.SIGTERM)


# Where a server starts an app.


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Start, and no more."""
    await receive()
    await send({"type": "lifespan.startup.complete"})


APPS: dict[str, Callable[[StandIn], Any]] = {
    "alone": lambda health: asgi_app(health, drain_delay=SOON),
    "around": lambda health: asgi_app(health, hello, drain_delay=SOON),
    "middleware": lambda health: ResilienceMiddleware(hello, health=Endpoints(health, drain_delay=SOON)),
}


def start(app: Any) -> list[Any]:
    """Start an ASGI app as a server does; return what it sent."""
    client = Client({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    asyncio.run(app({"type": "lifespan"}, client.receive, client.send))
    return client.sent


@pytest.mark.parametrize("kind", APPS)
def test_app_puts_the_signal_off_when_it_is_started(kind: str, former: Former) -> None:
    """After the server has installed its handlers, and not before."""
    health = StandIn()
    app = APPS[kind](health)
    assert signal.getsignal(signal.SIGTERM) is former

    assert start(app)[0] == {"type": "lifespan.startup.complete"}
    told_to_end()

    wait_until(lambda: bool(former.heard), "the former handler")
    assert len(health.drained) == 1


@pytest.mark.parametrize("kind", APPS)
def test_app_that_cannot_does_not_start(kind: str, former: Former, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is told why: nobody would notice before the first deployment that loses requests."""
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)

    [message] = start(APPS[kind](StandIn()))

    assert message["type"] == "lifespan.startup.failed"
    assert "something other than Python" in message["message"]


def test_server_in_another_thread_gets_no_signals(former: Former) -> None:
    """As in the tests of an app: it starts, and that is all."""
    sent: list[Any] = []
    thread = threading.Thread(target=lambda: sent.extend(start(APPS["alone"](StandIn()))))
    thread.start()
    thread.join()

    assert sent[0] == {"type": "lifespan.startup.complete"}
    assert signal.getsignal(signal.SIGTERM) is former


def test_app_without_a_delay_leaves_the_signal_alone(former: Former) -> None:
    """Nobody asked."""
    start(asgi_app(StandIn()))
    start(ResilienceMiddleware(hello, health=StandIn()))

    assert signal.getsignal(signal.SIGTERM) is former


# gunicorn's hook.


def a_worker() -> tuple[Any, list[str]]:
    """Return what stands for a worker of gunicorn's, and the warnings in its log."""
    warnings: list[str] = []
    log = SimpleNamespace(warning=lambda text, *words: warnings.append(text % words))
    return SimpleNamespace(cfg=SimpleNamespace(graceful_timeout=30), log=log), warnings


def test_hook_finds_the_health_in_the_worker(former: Former) -> None:
    """By name, so that the app is imported after the fork."""
    worker, _ = a_worker()
    draining(f"{__name__}:HOLDER.health", delay=SOON)(worker)
    told_to_end()

    wait_until(lambda: bool(former.heard), "gunicorn's handler")
    assert HOLDER.health.drained


HOLDER = SimpleNamespace(health=StandIn())


@pytest.mark.parametrize(("delay", "warned"), [(29.9, False), (30, True), (60, True)])
def test_worker_that_would_be_killed_while_it_drains_is_warned(
    delay: float, warned: bool, former: Former
) -> None:
    """By gunicorn's own log, at the start and not at the first deployment."""
    worker, warnings = a_worker()

    draining(StandIn(), delay)(worker)

    assert bool(warnings) is warned
    assert all("graceful_timeout = 30 s" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("health", "delay", "error", "match"),
    [
        ("shop", 5, ValueError, "health must be like 'module:name'"),
        (":health", 5, ValueError, "health must be like 'module:name'"),
        ("shop:", 5, ValueError, "health must be like 'module:name'"),
        (None, 5, TypeError, "health must be a Health, or 'module:name'"),
        (StandIn, 5, TypeError, "health must be a Health, or 'module:name'"),
        (StandIn(), -1, ValueError, "delay must be at least 0"),
    ],
)
def test_bad_hook_is_refused(health: Any, delay: Any, error: type[Exception], match: str) -> None:
    """When gunicorn reads its configuration."""
    with pytest.raises(error, match=match):
        draining(health, delay)
