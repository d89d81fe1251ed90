"""Requests keep flowing while the server dies, freezes, forgets or vanishes: none waits long, none fails.

Eight workers, threads and tasks, ask for permits of three keys all the time. The rate's window is an hour, so
what they may be given is known: the shared limit once; this process's share of it while the server is away;
and the shared limit once more if the server came back empty.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, suppress
from dataclasses import dataclass

import pytest
import redis
from tests.fleet.leftovers import assert_tidy
from tests.support.hammer import Hammers, Job, total
from tests.support.tcp_proxy import Forward, Latency, ResetPeer, Slicer, TcpProxy, Timeout, Toxic
from tests.support.traffic import Traffic
from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

from resilient import RateLimiter
from resilient.events import RungChanged
from resilient.testing import CapturedEvents, capture_events

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
# Seconds a server is away.
AWAY = 5.0 if SOAK else 0.5

HOUR = 3_600.0
LIMIT, INSTANCES = 60, 2
SHARE = LIMIT // INSTANCES
KEYS = ("ann", "bob", "cid")
DECISION_TIMEOUT = 0.05
LATEST = DECISION_TIMEOUT + 0.010
BACK_WITHIN = 3.0


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


@contextmanager
def deaf(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Cut the connections, and let every attempt to make another hang."""
    with proxy.deaf():
        yield


@contextmanager
def slow(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Deliver every answer, 200 ms late."""
    with proxy.toxic(Latency(0.2)):
        yield


@contextmanager
def dripping(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Deliver answers byte by byte, each just soon enough to look like progress."""
    with proxy.toxic(Slicer(size=1, seconds=DECISION_TIMEOUT / 2)):
        yield


@contextmanager
def resetting(server: ValkeyServer, proxy: TcpProxy) -> Iterator[None]:
    """Reset every connection as soon as it has an answer."""
    with proxy.toxic(ResetPeer()):
        yield


Fault = Callable[[ValkeyServer, TcpProxy], AbstractContextManager[None]]


@dataclass
class Scene:
    """A server behind a proxy, a limiter on it, and the traffic."""

    server: ValkeyServer
    proxy: TcpProxy
    limiter: RateLimiter
    traffic: Traffic
    events: CapturedEvents

    def rungs(self) -> list[tuple[str, str]]:
        """Return the changes of rung so far, as (from, to)."""
        return [(event.previous, event.rung) for event in self.events.of(RungChanged)]

    def wait_until_back(self, changes: int = 2) -> None:
        """Wait until the server decides again, and fail unless each change was one event."""
        wait_until(lambda: self.limiter.stats().rung == "shared", "back on the server", within=BACK_WITHIN)
        assert self.rungs() == [("shared", "local"), ("local", "shared")] * (changes // 2)

    def assert_nobody_felt_it(self) -> None:
        """Fail if a request failed or waited too long."""
        assert self.traffic.errors == []
        assert self.traffic.late(LATEST) == [], self.traffic.figures()
        assert_tidy(self.server, HOUR)


@contextmanager
def scene(
    server: ValkeyServer, *, echo: Callable[[], object] | None = None, **options: object
) -> Iterator[Scene]:
    """Let the requests flow as long as the block lasts, and then until there are no permits left.

    At first for a moment without a fault.
    """
    with TcpProxy(server.port) as proxy, capture_events() as events:
        options = {
            "on_outage": "local",
            "instances": INSTANCES,
            "decision_timeout": DECISION_TIMEOUT,
        } | options
        limiter = RateLimiter(
            f"{LIMIT}/hour", name="door", storage=f"redis://{proxy.host}:{proxy.port}/0", **options
        )
        with closing(limiter), Traffic(limiter, KEYS, echo=echo) as traffic:
            traffic.flow(0.4)
            if server.running:  # a busy machine may be late with the first connections
                wait_until(lambda: limiter.stats().rung == "shared", "all is well", within=BACK_WITHIN)
                events.clear()
            yield Scene(server, proxy, limiter, traffic, events)
            traffic.use_up()


OUTAGES = pytest.mark.parametrize(
    ("outage", "away"),
    [
        (killed, AWAY),
        (frozen, 5.0),
        (black_holed, AWAY),
        (deaf, AWAY),
        (slow, AWAY),
        (dripping, AWAY),
        (resetting, AWAY),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)


@OUTAGES
def test_outage_is_survived_on_the_local_share(valkey: ValkeyServer, outage: Fault, away: float):
    """One event there, one back; let through are the limit, the share, and the limit again if it was lost."""
    with scene(valkey) as play:
        with outage(valkey, play.proxy):
            play.traffic.flow(away)
            assert play.rungs() == [("shared", "local")]
        play.wait_until_back()
        play.traffic.flow(0.2)

    play.assert_nobody_felt_it()
    lost = LIMIT if outage is killed else 0
    for key, admitted in play.traffic.admitted().items():
        assert LIMIT <= admitted <= LIMIT + SHARE + lost, key


@pytest.mark.parametrize(("on_outage", "admitted"), [("allow", True), ("deny", False)])
def test_outage_is_met_as_told(valkey: ValkeyServer, on_outage: str, admitted: bool):
    """Everything passes, or nothing does, and the event says which."""
    with scene(valkey, on_outage=on_outage) as play:
        with black_holed(valkey, play.proxy):
            play.traffic.flow(AWAY)
            meanwhile = [
                sample.decision for sample in list(play.traffic.samples) if sample.decision.rung != "shared"
            ]
        wait_until(lambda: play.limiter.stats().rung == "shared", "back on the server", within=BACK_WITHIN)
        assert play.rungs() == [("shared", on_outage), (on_outage, "shared")]

    assert meanwhile
    assert {(decision.allowed, decision.rung) for decision in meanwhile} == {(admitted, on_outage)}
    play.assert_nobody_felt_it()


@pytest.mark.parametrize("command", ["SCRIPT FLUSH", "CLIENT KILL TYPE normal"])
def test_hiccup_is_no_outage(valkey: ValkeyServer, command: str):
    """Scripts that are gone are loaded again, connections made again: the count goes on where it was."""

    def echo() -> None:
        with suppress(redis.ConnectionError), valkey.client(timeout=5.0) as client:
            client.ping()

    # With patience, so that a server that is late for reasons of its own changes nothing.
    with scene(valkey, echo=echo, decision_timeout=5.0) as play:
        for _ in range(5):
            with valkey.client() as client:
                client.execute_command(command)
            play.traffic.flow(0.1)

    play.assert_nobody_felt_it()
    # Scripts are sent again. A request whose connection was killed is not: it may have been counted.
    assert play.rungs() == [] or command != "SCRIPT FLUSH"
    for key, admitted in play.traffic.admitted().items():
        assert LIMIT <= admitted <= LIMIT + (SHARE if play.traffic.rungs()["local"] else 0), key


def test_server_that_is_full_is_an_outage(valkey: ValkeyServer):
    """It answers, but keeps nothing: a limit that cannot be counted there is counted here."""
    limiter = RateLimiter("100/hour", name="door", storage=valkey.url, instances=2, decision_timeout=5.0)
    with closing(limiter), valkey.client() as client, capture_events() as events:
        assert limiter.hit().rung == "shared"
        client.config_set("maxmemory", "1")
        decisions = [limiter.hit() for _ in range(60)]
        client.config_set("maxmemory", "0")
        wait_until(lambda: limiter.hit().rung == "shared", "back on the server", within=BACK_WITHIN)

    assert {decision.rung for decision in decisions} == {"local"}
    assert sum(decision.allowed for decision in decisions) == 50
    assert [event.rung for event in events.of(RungChanged)] == ["local", "shared"]


def test_server_that_comes_late_is_found(valkey: ValkeyServer):
    """A service that starts during an outage decides locally at once, and on the server when it is there."""
    valkey.kill()
    with scene(valkey) as play:
        assert play.rungs() == [("shared", "local")]
        valkey.start()
        play.wait_until_back()
        play.traffic.flow(0.5)

    play.assert_nobody_felt_it()
    for key, admitted in play.traffic.admitted().items():
        assert LIMIT <= admitted <= LIMIT + SHARE, key


def test_processes_without_a_server_share_the_limit(hammers: Hammers, valkey: ValkeyServer):
    """Each has its part of it, told how many they are: together they let through the limit, exactly."""
    valkey.kill()
    options = {"instances": len(hammers), "decision_timeout": DECISION_TIMEOUT}

    sums = total(hammers.strike(Job(valkey.url, "100/hour", "door", options=options)))

    assert sums["permits"] == 100
    assert (sums["local"], sums["shared"]) == (4 * 8 * 25, 0)


def test_answer_that_comes_late_is_nobody_elses(valkey: ValkeyServer):
    """Two limiters with very different counts share connections whose answers are, now and then, too late."""
    with TcpProxy(valkey.port) as proxy:
        uri = f"redis://{proxy.host}:{proxy.port}/0"
        small, large = (RateLimiter(rate, name="door", storage=uri) for rate in ("10/hour", "100000/hour"))
        with Traffic(small, KEYS) as few, Traffic(large, KEYS) as many:
            for _ in range(4):
                few.flow(0.4)
                with proxy.toxic(Latency(2 * DECISION_TIMEOUT)):
                    few.flow(DECISION_TIMEOUT)

    rungs = few.rungs() + many.rungs()
    assert min(rungs["shared"], rungs["local"]) > 100
    assert max(sample.decision.remaining for sample in few.samples) <= 10
    assert min(sample.decision.remaining for sample in many.samples) > 50_000
    assert few.errors + many.errors == []


def test_outage_after_outage_admits_one_share_only(valkey: ValkeyServer):
    """The share is the hour's, not the outage's: a server that flaps opens no door."""
    with scene(valkey) as play:
        for _ in range(3):
            with black_holed(valkey, play.proxy):
                wait_until(lambda: play.limiter.stats().rung == "local", "away")
            wait_until(lambda: play.limiter.stats().rung == "shared", "back", within=BACK_WITHIN)

    play.assert_nobody_felt_it()
    for key, admitted in play.traffic.admitted().items():
        assert LIMIT <= admitted <= LIMIT + SHARE, key


@dataclass
class Once:
    """Do to one chunk of data what *toxic* does, and to none after it."""

    toxic: Toxic
    done: bool = False

    async def __call__(self, data: bytes, forward: Forward) -> None:
        """Pass *data* to the toxic, or on."""
        first, self.done = not self.done, True
        await (self.toxic(data, forward) if first else forward(data))


@pytest.mark.parametrize(
    "toxic", [ResetPeer(), Timeout(0.0), Timeout()], ids=["reset", "closed", "swallowed"]
)
async def test_answer_lost_after_the_count_is_not_asked_for_again(valkey: ValkeyServer, toxic: Toxic):
    """The server counted the call; asking once more, on a connection that works, would count it twice."""
    direct = RateLimiter("1000/hour", name="door", storage=valkey.url, decision_timeout=5.0)
    for times in range(1, 7):
        with TcpProxy(valkey.port) as proxy:
            limiter = RateLimiter(
                "1000/hour", name="door", storage=f"redis://{proxy.host}:{proxy.port}/0", decision_timeout=0.2
            )
            async with aclosing(limiter):
                # Connected, and the script is there; and no answer is still on its way that came too late.
                wait_until(lambda limiter=limiter: limiter.peek().rung == "shared", "it is connected")
                while (await limiter.apeek()).rung != "shared":  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
                with proxy.toxic(Once(toxic)):
                    decision = limiter.hit() if times % 2 else await limiter.ahit()

        assert decision.rung == "local"
        assert direct.peek().remaining == 1000 - times
