"""A breaker's state storage on a real server that dies, freezes or vanishes from the network: calls go on."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pybreaker
import pytest
import redis
from tests.support.tcp_proxy import TcpProxy, Timeout
from tests.support.valkey import ValkeyServer, client_for

from resilient import CircuitBreaker
from resilient.events import StorageLost, StorageRestored
from resilient.policies.circuit_breaker import pybreaker_bridge
from resilient.testing import capture_events

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Seconds until a client of the tests gives a server up.
PATIENCE = 0.2


class DependencyError(Exception):
    """A failure."""


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a lost storage more often than users need it."""
    monkeypatch.setattr(pybreaker_bridge, "_RETRY_SECONDS", 0.05)


StorageAt = Callable[[int], pybreaker.CircuitRedisStorage]


@pytest.fixture
def storage_at() -> Iterator[StorageAt]:
    """Make storages on a port as users do, on clients that give up soon, and close these in the end."""
    with ExitStack() as clients:

        def storage_at(port: int) -> pybreaker.CircuitRedisStorage:
            client = clients.enter_context(client_for(f"redis://127.0.0.1:{port}/0", timeout=PATIENCE))
            return pybreaker.CircuitRedisStorage("closed", client, "shop")

        yield storage_at


def eventually(look: Callable[[], Any], expected: Any, within: float = 10.0) -> None:
    """Wait until *look* returns *expected*."""
    give_up_at = time.monotonic() + within
    while (seen := look()) != expected and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert seen == expected


def call_badly(breaker: CircuitBreaker, times: int = 1) -> None:
    """Make calls that fail."""
    for _ in range(times):
        with pytest.raises(DependencyError), breaker.calling():
            raise DependencyError("down")


def raw_state(server: ValkeyServer) -> str | None:
    """Return the state as the server has it, past pybreaker."""
    with server.client() as client:
        value = client.get("shop:pybreaker:state")
        return None if value is None else value.decode()


@contextmanager
def killed(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Let the server crash; it comes back empty."""
    server.kill()
    yield
    server.start()


@contextmanager
def frozen(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Let the kernel accept connections that nobody answers."""
    server.pause()
    yield
    server.resume()


@contextmanager
def black_holed(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Let the network swallow every answer."""
    with proxy.toxic(Timeout()):
        yield


Outage = Callable[[ValkeyServer, TcpProxy], AbstractContextManager[None]]
OUTAGES = pytest.mark.parametrize("outage", [killed, frozen, black_holed])


@OUTAGES
@pytest.mark.parametrize("before", ["closed", "open"])
def test_outage_is_told_once_and_made_up_for(
    valkey: ValkeyServer, storage_at: StorageAt, outage: Outage, before: str
):
    """Lost once, restored once; and the server has the state that the breaker has come to meanwhile.

    From closed, too, where pybreaker's own answer to an outage, "closed", looks as if all were well.
    """
    with TcpProxy(valkey.port) as proxy, capture_events() as captured:
        breaker = CircuitBreaker("rates", fail_max=1, state_storage=storage_at(proxy.port))
        if before == "open":
            call_badly(breaker)
        else:
            breaker.half_open()
            breaker.close()
        eventually(lambda: raw_state(valkey), before)
        with outage(valkey, proxy):
            for _ in range(3):
                breaker.half_open()
                breaker.close()
            eventually(lambda: [event.policy for event in captured.of(StorageLost)], ["rates"])
            time.sleep(3 * PATIENCE)  # it goes on trying, and says no more
            call_badly(breaker)

        eventually(lambda: raw_state(valkey), "open")
        eventually(lambda: len(captured.of(StorageRestored)), 1)
        assert storage_at(valkey.port).counter == 1
        assert len(captured.of(StorageLost)) == 1


@OUTAGES
def test_calls_do_not_feel_an_outage(valkey: ValkeyServer, storage_at: StorageAt, outage: Outage):
    """Good and bad calls cost what they cost without a storage; the worst is far below the client's wait."""
    settings: dict[str, Any] = {"failure_ratio": 1.0, "min_calls": 10**6}
    with TcpProxy(valkey.port) as proxy:
        plain = CircuitBreaker("plain", **settings)
        mirrored = CircuitBreaker("mirrored", **settings, state_storage=storage_at(proxy.port))
        with outage(valkey, proxy):
            call_badly(mirrored)
            times: dict[str, list[float]] = {"plain": [], "mirrored": []}
            for _ in range(400):
                for breaker in (plain, mirrored):
                    times[breaker.name].append(seconds_for_a_good_and_a_bad_call(breaker))
        eventually(lambda: raw_state(valkey), "closed")

    assert statistics.median(times["mirrored"]) < 3 * statistics.median(times["plain"])
    assert max(times["mirrored"]) < 0.05


def seconds_for_a_good_and_a_bad_call(breaker: CircuitBreaker) -> float:
    """Time one call of each kind."""
    begun = time.perf_counter()
    breaker.call(int)
    call_badly(breaker)
    return time.perf_counter() - begun


def test_open_circuit_survives_a_restart_of_the_process(valkey: ValkeyServer, storage_at: StorageAt):
    """The next process refuses from the start, for the rest of the time."""
    program = (
        "import sys, time, redis, pybreaker\n"
        "from resilient import CircuitBreaker\n"
        "storage = pybreaker.CircuitRedisStorage('closed', redis.Redis(port=int(sys.argv[1])), 'shop')\n"
        "CircuitBreaker('rates', fail_max=1, state_storage=storage).open()\n"
        "while storage.state != 'open': time.sleep(0.01)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(valkey.port)], check=True, timeout=20)

    breaker = CircuitBreaker("rates", fail_max=1, reset_timeout=30, state_storage=storage_at(valkey.port))
    eventually(lambda: breaker.current_state, "open")
    with pytest.raises(pybreaker.CircuitBreakerError) as caught, breaker.calling():
        pass
    assert 0 < caught.value.retry_after < 30
    assert breaker.stats().times_opened == 1


def test_restart_after_restart_does_not_prolong_it(valkey: ValkeyServer, storage_at: StorageAt):
    """The time of opening is the first one's: or a process that restarts often would never probe."""
    first = CircuitBreaker("rates", fail_max=1, reset_timeout=2, state_storage=storage_at(valkey.port))
    call_badly(first)
    eventually(lambda: raw_state(valkey), "open")
    opened_at = storage_at(valkey.port).opened_at
    time.sleep(1.1)  # the server keeps whole seconds

    second = CircuitBreaker("rates", fail_max=1, reset_timeout=2, state_storage=storage_at(valkey.port))
    eventually(lambda: second.current_state, "open")
    assert second.stats().opened_for >= 1.0
    assert storage_at(valkey.port).opened_at == opened_at
    time.sleep(1.0)
    assert second.call(int) == 0
    eventually(lambda: raw_state(valkey), "closed")  # its writer needs the client no more


def test_opening_again_renews_the_time_of_opening(valkey: ValkeyServer, storage_at: StorageAt):
    """Also where the writer has not come round to half-open in between."""
    breaker = CircuitBreaker("rates", fail_max=1, state_storage=storage_at(valkey.port))
    call_badly(breaker)
    eventually(lambda: raw_state(valkey), "open")
    first = storage_at(valkey.port).opened_at
    time.sleep(1.1)
    breaker.half_open()
    call_badly(breaker)

    eventually(lambda: storage_at(valkey.port).opened_at > first, True)


def test_state_is_adopted_when_the_server_comes_late(valkey: ValkeyServer, storage_at: StorageAt):
    """A service that starts during an outage takes the state over as soon as it can."""
    with TcpProxy(valkey.port) as proxy, capture_events() as captured:
        storage = storage_at(proxy.port)
        storage.state = "open"
        with proxy.down():
            breaker = CircuitBreaker("rates", fail_max=1, state_storage=storage)
            eventually(lambda: len(captured.of(StorageLost)), 1)
            assert breaker.call(int) == 0

        eventually(lambda: breaker.current_state, "open")
        eventually(lambda: len(captured.of(StorageRestored)), 1)


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (lambda breaker: breaker.force_closed(), "closed"),
        (lambda breaker: breaker.close(), "closed"),
        (call_badly, "closed"),
        (lambda breaker: breaker.half_open(), "half-open"),
    ],
    ids=["forced closed", "closed by hand", "failures", "half-open by hand"],
)
def test_what_happened_here_is_not_undone_by_what_is_adopted_late(
    valkey: ValkeyServer, storage_at: StorageAt, act: Any, state: str
):
    """The storage remembers; the breaker knows."""
    with TcpProxy(valkey.port) as proxy:
        storage = storage_at(proxy.port)
        storage.state = "open"
        with proxy.down():
            breaker = CircuitBreaker("rates", fail_max=5, state_storage=storage)
            act(breaker)

        eventually(lambda: raw_state(valkey), state)
        assert breaker.current_state == state


def test_listeners_of_the_constructor_hear_of_a_storage_that_is_down_from_the_start(
    valkey: ValkeyServer, storage_at: StorageAt
):
    """They are there before the first attempt."""
    heard: list[Any] = []
    with TcpProxy(valkey.port) as proxy:
        storage = storage_at(proxy.port)
        with proxy.down():
            CircuitBreaker("rates", state_storage=storage, listeners=[heard.append])
            eventually(lambda: [type(event) for event in heard], [StorageLost])


def test_client_with_decode_responses_works(valkey: ValkeyServer):
    """pybreaker itself cannot read through one."""
    client = redis.Redis(port=valkey.port, decode_responses=True)
    with client:
        storage = pybreaker.CircuitRedisStorage("closed", client, "shop")
        breaker = CircuitBreaker("rates", fail_max=1, state_storage=storage)
        with capture_events() as captured:
            call_badly(breaker)
            eventually(lambda: raw_state(valkey), "open")
            second = CircuitBreaker("rates", state_storage=storage)
            eventually(lambda: second.current_state, "open")
            assert second.stats().opened_for > 0

        assert not captured.of(StorageLost)


def test_storage_of_the_user_is_left_as_it_is(valkey: ValkeyServer, storage_at: StorageAt):
    """Errors are heard through a copy."""
    storage = storage_at(valkey.port)
    before = dict(vars(storage))
    CircuitBreaker("rates", state_storage=storage).open()
    eventually(lambda: raw_state(valkey), "open")

    assert vars(storage) == before


def test_calls_that_change_nothing_write_nothing(valkey: ValkeyServer, storage_at: StorageAt):
    """A storage is no toll on good calls, whatever path they take."""
    with valkey.client() as client:
        breaker = CircuitBreaker(
            "rates",
            on_result=lambda _: False,
            listeners=[lambda _: None],
            state_storage=storage_at(valkey.port),
        )
        call_badly(breaker)
        # It is 0 to begin with: without this, the writes to come would be taken for writes of good calls.
        eventually(lambda: client.get("shop:pybreaker:fail_counter"), b"1")
        breaker.call(int)
        eventually(lambda: client.get("shop:pybreaker:fail_counter"), b"0")
        before = client.info("commandstats")["cmdstat_set"]["calls"]
        for _ in range(200):
            breaker.call(int)
        time.sleep(0.1)

        assert client.info("commandstats")["cmdstat_set"]["calls"] == before


def test_storage_in_memory_that_raises_breaks_no_call():
    """Its outage is told like any other, and the next change is written."""

    class Moody(pybreaker.CircuitMemoryStorage):
        away = True

        def increment_counter(self) -> None:
            if self.away:
                raise ConnectionError("moody")
            super().increment_counter()

    storage = Moody("closed")
    breaker = CircuitBreaker("rates", fail_max=10, state_storage=storage)
    with capture_events() as captured:
        call_badly(breaker, 3)
        storage.away = False
        call_badly(breaker)

    assert storage.counter == 4
    assert [type(event) for event in captured] == [StorageLost, StorageRestored]


def test_no_thread_to_be_had_breaks_no_call(monkeypatch: pytest.MonkeyPatch):
    """A process at its limit goes on without a mirror, and says so."""
    import fakeredis

    storage = pybreaker.CircuitRedisStorage("closed", fakeredis.FakeRedis(), "shop")
    breaker = CircuitBreaker("rates", fail_max=10, state_storage=storage)
    eventually(lambda: breaker._mirror._busy, False)

    def submit(job: object) -> None:
        raise RuntimeError("can't start new thread")

    with capture_events() as captured, monkeypatch.context() as patch:
        patch.setattr(breaker._mirror._workers, "submit", submit)
        call_badly(breaker, 2)
    assert [event.error for event in captured.of(StorageLost)] == ["RuntimeError: can't start new thread"]

    call_badly(breaker)
    eventually(lambda: storage.counter, 3)


def test_interrupt_that_keeps_a_thread_from_starting_loses_no_change(monkeypatch: pytest.MonkeyPatch):
    """It is told with the next one."""
    import fakeredis

    monkeypatch.setattr("resilient.engine.workers._IDLE_SECONDS", 0.01)
    storage = pybreaker.CircuitRedisStorage("closed", fakeredis.FakeRedis(), "shop")
    breaker = CircuitBreaker("rates", fail_max=10, state_storage=storage)
    eventually(lambda: breaker._mirror._workers.threads, 0)

    def start(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            call_badly(breaker)

    call_badly(breaker)
    eventually(lambda: storage.counter, 2)


def test_forked_child_mirrors_on(valkey: ValkeyServer):
    """The thread that wrote was the parent's."""
    program = (
        "import os, sys, time, redis, pybreaker\n"
        "from resilient import CircuitBreaker\n"
        "storage = pybreaker.CircuitRedisStorage('closed', redis.Redis(port=int(sys.argv[1])), 'shop')\n"
        "breaker = CircuitBreaker('rates', state_storage=storage)\n"
        "breaker._mirror._busy = True  # as if at work in the very moment\n"
        "if pid := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "breaker.open()\n"
        "give_up_at = time.monotonic() + 10\n"
        "while storage.state != 'open' and time.monotonic() < give_up_at: time.sleep(0.01)\n"
        "os._exit(storage.state != 'open')\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(valkey.port)],
        check=True,
        timeout=30,
    )
