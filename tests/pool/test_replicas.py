"""Replica sets: where a read goes, where it goes instead, and what is held against a replica."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.waiting import await_until, wait_until

from resilient import (
    AsyncConnectionPool,
    AsyncReplicaSet,
    CircuitBreaker,
    ConnectionPool,
    ReplicaSet,
    deadline,
)
from resilient.engine.waiting import ThreadWaiter
from resilient.engine.workers import Stage
from resilient.errors import (
    ConnectionReturnedError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RejectedError,
)
from resilient.pool.replicas.routing import Trip, choose
from resilient.testing import FakeClock, capture_events


class Server:
    """Something to connect to, which can be away, or not answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.answers = threading.Event()
        self.answers.set()
        self.made = 0
        self.lag: Any = 0.0

    def connect(self) -> Conn:
        self.answers.wait(20.0)
        if not self.up:
            raise ConnectionRefusedError(self.name)
        self.made += 1
        return Conn(self)

    async def aconnect(self) -> Conn:
        return self.connect()


class Conn:
    """A connection to it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(self) -> str:
        if not self.server.up:
            raise ConnectionResetError(self.server.name)
        return self.server.name


class ReadOnlyError(Exception):
    """What a server says that takes no writes, as the one of a client's."""

    sqlstate = "25006"


class Transactional(Conn):
    """A connection of which nobody knows whether a transaction is open, as those of many databases."""

    def __init__(self, server: Server, failure: Exception | None = None) -> None:
        super().__init__(server)
        self.failure = failure
        self.used = False

    def ask(self) -> str:
        self.used = True
        return super().ask()

    def cursor(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    def commit(self) -> None:
        if self.used and self.failure is not None:
            raise self.failure


class Rig:
    """A primary and replicas, each a pool of its own, and the set made of them."""

    def __init__(self, replicas: int = 2, *, pools: dict[str, Any] | None = None, **settings: Any) -> None:
        self.clock = FakeClock(100.0)
        names = ["primary", *(f"r{number}" for number in range(1, replicas + 1))]
        self.servers = {name: Server(name) for name in names}
        given_ = {"max_size": 4, "timeout": 5.0, "check_after_idle": 60.0, **(pools or {})}
        self.pools = {
            name: ConnectionPool(server.connect, name=name, **given_) for name, server in self.servers.items()
        }
        self.set = ReplicaSet(
            self.pools["primary"],
            [self.pools[name] for name in names[1:]],
            **{"name": "orders", "clock": self.clock, **settings},
        )

    def read(self, timeout: float | None = None) -> str:
        with self.set.reading(timeout) as conn:
            return conn.ask()

    def read_apart(self) -> str:
        """Read as somebody else: what is read inside a probe is a part of that."""
        return contextvars.Context().run(self.read)

    def write(self) -> str:
        with self.set.writing() as conn:
            return conn.ask()

    def lose(self, name: str) -> None:
        """Have a server away, with all of its connections."""
        self.servers[name].up = False
        self.pools[name].drain()

    def state(self, name: str) -> str:
        return self.set.breakers[name].current_state

    def close(self) -> None:
        for server in self.servers.values():
            server.answers.set()
        self.set.close(0.0)


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    """Make rigs, to be closed after the test."""
    with ExitStack() as rigs:

        def made(*args: Any, **settings: Any) -> Rig:
            rig = Rig(*args, **settings)
            rigs.callback(rig.close)
            return rig

        yield made


def fake(lent: int, size: int, *, waiting: int = 0) -> Any:
    """Return what `choose` looks at: a pool with so many connections lent, and so many callers waiting."""
    return SimpleNamespace(
        alert=[True] if waiting else [],
        roster=range(lent + 1),
        idle=[None],
        stock=SimpleNamespace(max_size=size),
        load=(lent + waiting) / size,
    )


class TestChoice:
    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 3)), max_size=5))
    def test_never_the_busiest_of_several(self, pools):
        """The choice is one of those there are, and never one that is busier than all others."""
        nodes = [fake(lent, size, waiting=waiting) for lent, size, waiting in pools]
        chosen = choose(nodes)
        if not nodes:
            assert chosen is None
            return
        assert chosen in nodes
        others = [node.load for node in nodes if node is not chosen]
        assert not others or chosen.load <= max(others)

    @pytest.mark.parametrize(
        ("busy", "free"),
        [
            (fake(2, 4), fake(1, 4)),
            (fake(2, 4), fake(3, 8)),
            (fake(4, 4, waiting=1), fake(4, 4)),
            (fake(4, 4, waiting=2), fake(8, 8, waiting=3)),
        ],
        ids=["fewer", "larger pool", "nobody waits", "shorter line for its size"],
    )
    def test_the_less_busy_of_two(self, busy, free):
        """Of two, the less busy one is chosen, however they stand."""
        assert all(choose([busy, free]) is free and choose([free, busy]) is free for _ in range(20))

    @pytest.mark.parametrize("number", [2, 3, 5])
    def test_idle_ones_get_the_same_share(self, number):
        """Among replicas that are equally busy, each is chosen equally often, give or take a fifth."""
        nodes = [fake(0, 4) for _ in range(number)]
        counts = Counter(id(choose(nodes)) for _ in range(2000 * number))
        assert all(1600 < counts[id(node)] < 2400 for node in nodes)


REFUSALS = {
    "down": PoolUnavailableError("down"),
    "slow": PoolTimeoutError("slow", size=2, used=0),
    "busy": PoolTimeoutError("busy", size=2, used=2),
    "full": PoolFullError("full"),
}
FATES = st.sampled_from(["good", *REFUSALS])


NAMES = ("primary", "r1", "r2", "r3")


def travel(rig: Rig, timeout: float, fates: dict[str, str]) -> tuple[list[str], bool]:
    """Have a read look for a connection where each pool has its fate; return where it was, and its luck."""
    until = rig.clock() + timeout + 1e-9
    asked: list[str] = []
    with suppress(RejectedError):
        for step in Trip(rig.set._routing, timeout, None, None, ThreadWaiter):
            fate = fates[step.pool.name]
            asked.append(step.pool.name)
            assert rig.clock() + step.seconds <= until
            if fate == "good":
                step.arrived()
                step.node.gate.success(step.ticket, None)
                return asked, True
            if fate in {"slow", "busy"}:
                rig.clock.advance(step.seconds)
            assert step.goes_on(copy.copy(REFUSALS[fate]))
    return asked, False


class TestTrip:
    @given(
        fates=st.fixed_dictionaries(dict.fromkeys(NAMES, FATES)),
        opened=st.sets(st.sampled_from(NAMES[1:])),
        pinned=st.booleans(),
        fallback=st.booleans(),
        timeout=st.sampled_from([0.0, 0.4, 60.0]),
    )
    def test_whatever_becomes_of_each_pool(self, fates, opened, pinned, fallback, timeout):
        """A read goes to no pool twice, to the primary at its turn only, and waits no longer than it may."""
        rig = Rig(3, fallback_to_primary=fallback, primary_share=0.25)
        for name in opened:
            rig.set.breakers[name].force_open()
        if pinned:
            rig.set._routing._pinned_until.set(rig.clock() + 1000.0)
        asked, lucky = travel(rig, timeout, fates)
        up = set(NAMES[1:]) - opened
        everywhere = up | ({"primary"} if fallback or pinned else set())
        assert len(asked) == len(set(asked))
        assert everywhere >= set(asked)
        assert lucky or set(asked) == everywhere
        if "primary" in asked:
            assert asked[0 if pinned else -1] == "primary"
            assert pinned or set(asked) == everywhere
        for name in up & set(asked):
            blamed = fates[name] == "down" or (fates[name] == "slow" and timeout > 1.0)
            assert rig.set.breakers[name].stats().failures == blamed
        if fallback:
            assert rig.set._routing.fallback.slots.held == 0


class TestReadsAndWrites:
    def test_reads_from_replicas_writes_to_the_primary(self, make):
        """No read goes to the primary while a replica is there, and each replica has its share."""
        rig = make(sticky=0)
        counts = Counter(rig.read() for _ in range(400))
        assert counts.keys() == {"r1", "r2"}
        assert min(counts.values()) > 120
        assert {rig.write() for _ in range(10)} == {"primary"}
        assert rig.set.stats().primary.checkouts == 10
        assert rig.set.stats().on_primary == 0

    def test_decorators_lend_a_connection(self, make):
        """Functions, methods and generators get a connection, and lose the parameter for it."""
        rig = make(sticky=0)

        @rig.set.reads
        def find(conn: Conn, number: int) -> tuple[str, int]:
            return conn.ask(), number

        @rig.set.writes
        def store(conn: Conn, number: int) -> tuple[str, int]:
            return conn.ask(), number

        @rig.set.reads
        def every(conn: Conn) -> Iterator[str]:
            yield conn.ask()
            yield conn.ask()

        class Orders:
            @rig.set.reads
            def find(self, conn: Conn) -> str:
                return conn.ask()

        assert find(7)[0] in {"r1", "r2"}
        assert store(number=7) == ("primary", 7)
        assert set(every()) <= {"r1", "r2"}
        assert Orders().find() in {"r1", "r2"}
        assert list(inspect.signature(find).parameters) == ["number"]

        async def coroutine(conn: Conn) -> None: ...

        with pytest.raises(TypeError, match="ReplicaSet 'orders' needs a function"):
            rig.set.reads(coroutine)  # type: ignore[arg-type]

    def test_borrowers_are_named_by_their_own_code(self, make):
        """A report of who has a connection leads to whoever read, not to the set."""
        rig = make()
        with rig.set.reading():
            borrowers = [one for pool in rig.pools.values() for one in pool.borrowers()]
        assert [one.where.endswith("test_borrowers_are_named_by_their_own_code") for one in borrowers] == [
            True
        ]

    def test_a_connection_returned_inside_the_block_is_an_error(self, make):
        """Who gives the connection back by hand is told so at the end, unless there is worse to be told."""
        rig = make(1)
        with pytest.raises(ConnectionReturnedError), rig.set.reading() as conn:
            rig.pools["r1"].putconn(conn)
        with pytest.raises(KeyError):
            self.return_and_fail(rig)
        assert rig.read() == "r1"

    def return_and_fail(self, rig: Rig) -> None:
        with rig.set.reading() as conn:
            rig.pools["r1"].putconn(conn)
            raise KeyError

    def test_without_replicas_the_primary_serves_all(self, make):
        """With no replicas at all, as on a developer's machine, reads are not counted against any share."""
        rig = make(0)
        with ExitStack() as blocks:
            conns = [blocks.enter_context(rig.set.reading()) for _ in range(4)]
            assert {conn.ask() for conn in conns} == {"primary"}

    def test_stats_and_repr(self, make):
        """Names and numbers are where one looks for them."""
        rig = make()
        rig.read()
        rig.write()
        stats = rig.set.stats()
        assert [one.name for one in stats.replicas] == ["r1", "r2"]
        assert sum(one.pool.checkouts for one in stats.replicas) == 1
        assert sum(one.breaker.calls for one in stats.replicas) == 1
        assert (stats.failovers, stats.refused, stats.pinned, stats.demotions) == (0, 0, 0, 0)
        assert repr(rig.set) == "<ReplicaSet 'orders' 2 of 2 replicas up>"
        assert rig.set.name == "orders"
        assert rig.set.primary is rig.pools["primary"]
        assert rig.set.replicas == (rig.pools["r1"], rig.pools["r2"])


class TestFailover:
    def test_goes_to_the_next_within_the_call(self, make):
        """A replica that is away costs no read its answer, and is left alone soon."""
        rig = make(sticky=0)
        rig.lose("r1")
        assert {rig.read() for _ in range(20)} == {"r2"}
        wait_until(lambda: rig.state("r1") == "open", "left alone")
        assert 1 <= rig.set.stats().failovers <= 3
        assert rig.set.stats().on_primary == 0

    def test_the_body_is_run_once(self, make):
        """An error in the body is the caller's, and nobody runs the body again."""
        rig = make()
        runs = []

        @rig.set.reads
        def read(conn: Conn) -> None:
            runs.append(conn)
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            read()
        assert len(runs) == 1

    def test_one_that_does_not_answer_takes_a_part_of_the_time_only(self, make):
        """A read waits for a replica that hangs for its part of the timeout, and then goes to another."""
        rig = make(fallback_to_primary=False, clock=time.monotonic)
        with rig.pools["r2"].connection():
            pass  # it is there, and so nothing to wait for
        rig.servers["r1"].answers.clear()
        took = 0.0
        while not rig.set.stats().failovers:
            began = time.monotonic()
            assert rig.read(2.0) == "r2"
            took = time.monotonic() - began
        assert 1.0 <= took < 2.0

    def test_a_deadline_holds_for_all_of_it(self, make):
        """The caller's deadline ends the search before the timeout does."""
        rig = make(clock=time.monotonic)
        for server in rig.servers.values():
            server.answers.clear()
        began = time.monotonic()
        with deadline(0.2), pytest.raises(PoolTimeoutError) as caught:
            rig.read(30.0)
        assert 0.15 < time.monotonic() - began < 5.0
        notes = "".join(caught.value.__notes__)
        assert all(f"{name}: PoolTimeoutError" in notes for name in rig.servers)
        assert rig.set.stats().refused == 1

    def test_timeout_zero_takes_what_is_free(self, make):
        """With no time to wait, any replica's free connection will do."""
        rig = make(sticky=0)
        with rig.pools["r1"].connection():
            pass
        assert {rig.read(0) for _ in range(5)} >= {"r1"}

    def test_interrupts_are_no_evidence_and_come_through(self, make):
        """What is no exception of a pool's ends the search."""
        rig = make(1)

        def interrupted(timeout: float) -> Any:
            raise KeyboardInterrupt

        rig.pools["r1"]._checkout = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            rig.read()
        assert rig.set.breakers["r1"].stats().failures == 0

    def test_a_replica_whose_pool_is_closed_is_left_out(self, make):
        """Somebody closes a replica's pool: reads go on, and nothing is held against its server."""
        rig = make(sticky=0)
        rig.pools["r1"].close()
        assert {rig.read() for _ in range(20)} == {"r2"}
        assert rig.set.stats().failovers <= 1
        assert rig.set.breakers["r1"].stats().failures == 0

    def test_a_closed_set_says_so(self, make):
        """Nothing is lent any more."""
        rig = make(fallback_to_primary=False)
        rig.set.close()
        with pytest.raises(PoolClosedError):
            rig.read()
        with pytest.raises(PoolClosedError, match="replica set 'orders' is closed"):
            rig.read()
        with pytest.raises(PoolClosedError):
            rig.write()


class TestBreakers:
    def test_errors_of_the_application_are_no_evidence(self, make):
        """However often a body fails for its own reasons, the replica stays."""
        rig = make(1)
        for _ in range(50):
            with suppress(ValueError), rig.set.reading():
                raise ValueError
        stats = rig.set.breakers["r1"].stats()
        assert (stats.state, stats.failures) == ("closed", 0)
        assert rig.read() == "r1"

    def test_broken_connections_are_evidence(self, make):
        """Three connections in a row that break open the breaker, and reads go elsewhere."""
        rig = make(1)
        for _ in range(3):
            with suppress(ConnectionResetError), rig.set.reading():
                raise ConnectionResetError
        assert rig.state("r1") == "open"
        assert rig.read() == "primary"

    def test_a_commit_that_breaks_the_connection_is_evidence(self):
        """A connection that breaks when the pool commits on it counts, another failure of that does not."""

        lost = ConnectionPool(lambda: Transactional(Server("r"), ConnectionResetError()), name="r")
        with ReplicaSet(pool("p"), [lost]) as readers:
            with pytest.raises(ConnectionResetError), readers.reading() as conn:
                conn.ask()
            assert readers.breakers["r"].stats().failures == 1
        refused = ConnectionPool(lambda: Transactional(Server("r"), ValueError("too late")), name="r")
        with ReplicaSet(pool("p"), [refused]) as readers:
            with pytest.raises(ValueError, match="too late"), readers.reading() as conn:
                conn.ask()
            assert readers.breakers["r"].stats().failures == 0
        kept = ConnectionPool(lambda: Transactional(Server("r")), name="r")
        with ReplicaSet(pool("p"), [kept]) as readers:
            with readers.reading() as conn:
                conn.ask()
            assert readers.breakers["r"].stats().calls == 1

    def test_a_pool_that_is_only_busy_is_no_evidence(self, make):
        """All connections lent is the callers' doing: whoever waited in vain goes elsewhere, that is all."""
        rig = make(1, pools={"max_size": 1}, sticky=0)
        rig.write()  # the primary has its connection, so that there is nothing to wait for
        with rig.pools["r1"].connection():
            for _ in range(5):
                with rig.set.reading(0.1) as conn:
                    assert conn.ask() == "primary"
        assert rig.set.breakers["r1"].stats().failures == 0
        assert rig.set.stats().on_primary == 5
        assert rig.read() == "r1"

    def test_a_pool_of_which_nothing_comes_back_is_evidence(self, make):
        """All connections lent, and none of them for less than a second: that is a server which hangs."""
        clock = FakeClock()
        rig = make(1, pools={"max_size": 2, "clock": clock}, fallback_to_primary=False, clock=clock)
        replica = rig.set._routing.replicas[0]

        def failures_after_waiting(seconds: float) -> int:
            error = PoolTimeoutError("nothing came free", size=2, used=2)
            replica.failed(replica.admit(None, (), {}), error, seconds)
            return rig.set.breakers["r1"].stats().failures

        with rig.pools["r1"].connection():
            clock.advance(0.9)
            assert failures_after_waiting(0.5) == 0
            with rig.pools["r1"].connection():
                clock.advance(0.9)
                assert failures_after_waiting(0.5) == 0
                clock.advance(0.2)
                assert failures_after_waiting(0.4) == 0
                assert failures_after_waiting(0.5) == 1

    def test_slow_ones_can_be_evidence(self, make):
        """A breaker that is given may count slow reads, too."""

        def breaker(name: str) -> CircuitBreaker:
            return CircuitBreaker(name, slow_after=1.0, slow_ratio=0.5, min_calls=2, clock=clock)

        clock = FakeClock()
        rig = make(1, breaker=breaker, clock=clock)
        for _ in range(2):
            assert rig.state("r1") == "closed"
            with rig.set.reading():
                clock.advance(1.1)
        assert rig.state("r1") == "open"

    def test_one_probe_at_a_time_brings_it_back(self, make):
        """After its pause a replica gets one read; the others go elsewhere until that has ended well."""
        rig = make(2, sticky=0)
        rig.set.breakers["r1"].open()
        assert {rig.read() for _ in range(20)} == {"r2"}
        rig.clock.advance(1.0)
        with rig.set.reading() as probe:
            assert probe.ask() == "r1"
            assert rig.state("r1") == "half-open"
            assert {rig.read_apart() for _ in range(20)} == {"r2"}
        assert rig.state("r1") == "closed"
        assert {rig.read() for _ in range(40)} == {"r1", "r2"}

    def test_a_probe_that_said_nothing_is_followed_by_another(self, make):
        """A probe whose body fails for its own reasons gives its place to the next read, a little later."""
        rig = make(2, sticky=0)
        rig.set.breakers["r1"].open()
        rig.clock.advance(1.0)
        with suppress(ValueError), rig.set.reading() as probe:
            assert probe.ask() == "r1"
            rig.read_apart()  # finds the place of the probe taken
            raise ValueError
        assert rig.state("r1") == "half-open"
        assert rig.read() == "r2"
        rig.clock.advance(0.2)
        assert rig.read() == "r1"
        assert rig.state("r1") == "closed"

    def test_a_probe_that_fails_is_served_elsewhere(self, make):
        """The reader who happens to be the probe gets an answer too, and the pause doubles."""
        rig = make(2, sticky=0)
        rig.lose("r1")
        wait_until(lambda: (rig.read(), rig.state("r1") == "open")[1], "open")
        rig.clock.advance(1.0)
        assert rig.read() == "r2"
        assert rig.state("r1") == "open"
        rig.clock.advance(1.9)
        assert rig.set._routing.pick() is rig.set._routing.replicas[1]
        rig.clock.advance(0.2)
        assert rig.set._routing.pick() is None  # there is more to be thought about: a probe

    def test_comes_back_as_soon_as_its_pool_connects(self, make):
        """A pool that has connected again need not wait for the end of the breaker's pause."""
        rig = make(2, sticky=0, pools={"min_size": 1})
        rig.set.wait()
        rig.lose("r1")
        wait_until(lambda: not rig.pools["r1"].available, "known to be down")
        rig.set.breakers["r1"].open()
        rig.servers["r1"].up = True
        wait_until(lambda: rig.state("r1") == "half-open", "half-open")
        wait_until(lambda: rig.read() == "r1", "read from again")
        assert rig.state("r1") == "closed"

    def test_forced_by_hand_it_stays_so(self, make):
        """An operator takes a replica out, and brings it back."""
        rig = make(2, sticky=0)
        rig.set.breakers["r1"].force_open(reason="maintenance")
        rig.clock.advance(1000.0)
        assert {rig.read() for _ in range(20)} == {"r2"}
        rig.set.breakers["r1"].resume()
        assert "r1" in {rig.read() for _ in range(2)}
        assert rig.state("r1") == "closed"

    def test_observed_only_it_is_read_from(self, make):
        """A breaker that is told to refuse nothing refuses no read."""
        rig = make(1, sticky=0)
        rig.set.breakers["r1"].observe_only()
        for _ in range(3):
            with suppress(ConnectionResetError), rig.set.reading():
                raise ConnectionResetError
        assert rig.state("r1") == "open"
        assert rig.read() == "r1"

    def test_refused_by_chance_a_read_goes_elsewhere(self, make):
        """While a breaker lets traffic back in bit by bit, what it does not let in yet is read elsewhere."""

        def breaker(name: str) -> CircuitBreaker:
            return CircuitBreaker(name, ramp=1000.0, clock=clock)

        clock = FakeClock()
        rig = make(sticky=0, breaker=breaker, clock=clock)
        rig.set.breakers["r1"].open()
        clock.advance(30.0)
        assert rig.read() == "r1"  # the probe
        clock.advance(100.0)  # now it is a tenth of the reads
        assert Counter(rig.read() for _ in range(200))["r1"] < 30
        assert rig.set.stats().on_primary == 0

    def test_an_event_that_was_missed_does_no_harm(self, make):
        """A listener can be interrupted; the next read that looks twice sees what there is to be seen."""
        rig = make(2, sticky=0)
        for replica in rig.set._routing.replicas:
            replica.breaker.remove_listener(replica._on_breaker)
        rig.set.breakers["r1"].open()
        assert {rig.read() for _ in range(40)} == {"r2"}
        rig.clock.advance(1.0)
        assert {rig.read() for _ in range(40)} == {"r1", "r2"}
        assert rig.state("r1") == "closed"
        assert rig.set._routing.up == rig.set._routing.replicas

    def test_made_as_one_likes(self, make):
        """A factory makes the breakers, which judge by their own rules."""
        made: list[str] = []

        def breaker(name: str) -> CircuitBreaker:
            made.append(name)
            return CircuitBreaker(name, fail_max=1, throw_new_error_on_trip=True)

        rig = make(breaker=breaker)
        assert made == ["orders/r1", "orders/r2"]
        with suppress(ConnectionResetError), rig.set.reading() as conn:
            name = conn.ask()
            raise ConnectionResetError
        assert rig.state(name) == "open"


class TestFallback:
    def test_the_primary_serves_no_more_than_its_share(self, make):
        """Reads that no replica can serve have half of the primary's connections, writes the rest."""
        rig = make(sticky=0)
        for breaker in rig.set.breakers.values():
            breaker.open()
        with rig.pools["primary"].connection(), ExitStack() as blocks:
            conns = [blocks.enter_context(rig.set.reading()) for _ in range(2)]
            assert {conn.ask() for conn in conns} == {"primary"}
            with pytest.raises(PoolUnavailableError, match="2 of 2 slots are taken") as caught:
                rig.read(0)
            assert caught.value.retry_after == pytest.approx(1.0)
            assert "r1: its breaker is open" in str(caught.value)
            assert rig.write() == "primary"
        assert rig.read() == "primary"
        assert rig.set.stats().on_primary == 3

    def test_who_finds_the_share_taken_waits_for_a_part_of_it(self, make):
        """A place that comes free goes to whoever waits for it, within the timeout."""
        rig = make(1, sticky=0, primary_share=0.25)
        rig.set.breakers["r1"].force_open()
        slots = rig.set._routing.fallback.slots
        with ThreadPoolExecutor(2) as threads:
            with rig.set.reading():
                reads = [threads.submit(rig.read) for _ in range(2)]
                wait_until(lambda: slots.waiting == 2, "both wait")
            assert [read.result(20.0) for read in reads] == ["primary", "primary"]
        assert slots.held == 0

    def test_a_share_that_is_forgotten_comes_back(self, make):
        """Blocks that nobody leaves, and that are collected, do not use up the share."""
        rig = make(1, sticky=0, primary_share=0.25)
        rig.set.breakers["r1"].force_open()
        for _ in range(5):
            rig.set.reading().__enter__()
        assert rig.read() == "primary"

    def test_a_forked_child_has_the_whole_share(self, make):
        """What the parent reads in place of replicas does not count against its child."""
        rig = make(1, sticky=0, primary_share=0.25)
        rig.set.breakers["r1"].force_open()
        routing = rig.set._routing
        with rig.set.reading():
            routing.after_fork()
            routing.fallback.after_fork()
            assert rig.read() == "primary"
        assert rig.read() == "primary"
        with rig.set.reading(), pytest.raises(PoolUnavailableError, match="1 of 1 slots are taken"):
            rig.read(0)

    def test_the_share_follows_the_size_of_the_pool(self, make):
        """A primary's pool that is resized serves so many more, or fewer."""
        rig = make(1, sticky=0)
        rig.set.breakers["r1"].force_open()
        rig.pools["primary"].resize(8)
        with ExitStack() as blocks:
            for _ in range(4):
                blocks.enter_context(rig.set.reading())
            with pytest.raises(PoolUnavailableError, match="4 of 4 slots are taken"):
                rig.read(0)
        rig.pools["primary"].resize(2)
        with rig.set.reading(), pytest.raises(PoolUnavailableError, match="1 of 1 slots are taken"):
            rig.read(0)

    def test_not_if_it_is_not_to_be(self, make):
        """Without the fallback a read fails, and says of each replica why."""
        rig = make(fallback_to_primary=False)
        rig.lose("r1")
        rig.set.breakers["r2"].force_open()
        with pytest.raises(PoolUnavailableError, match="pool 'r1'") as caught:
            rig.read()
        assert any(note.startswith("r1: ") for note in caught.value.__notes__)
        rig.set.breakers["r1"].force_open()
        with pytest.raises(
            PoolUnavailableError, match="replica set 'orders' has nobody to read from"
        ) as caught:
            rig.read()
        assert 0.0 < caught.value.retry_after <= 1.0


class TestOwnWrites:
    def test_are_read_from_the_primary_for_a_while(self, make):
        """After a write the same context reads what it wrote, until *sticky* seconds have passed."""
        rig = make(sticky=2.0)
        assert rig.read() != "primary"
        rig.write()
        assert {rig.read() for _ in range(5)} == {"primary"}
        rig.clock.advance(1.9)
        assert rig.read() == "primary"
        rig.clock.advance(0.2)
        assert rig.read() != "primary"
        assert rig.set.stats().pinned == 6
        assert rig.set.stats().on_primary == 0

    def test_also_inside_the_block_and_after_an_error(self, make):
        """What was committed in a block is there for reads in it, and after it, however it ended."""
        rig = make()
        with suppress(ValueError), rig.set.writing():
            assert rig.read() == "primary"
            raise ValueError
        assert rig.read() == "primary"

    def test_no_other_context_is_concerned(self, make):
        """Others read from replicas; what was begun after the write does as its parent."""
        rig = make()
        before = contextvars.copy_context()
        rig.write()
        assert before.run(rig.read) != "primary"
        assert contextvars.Context().run(rig.read) != "primary"
        assert contextvars.copy_context().run(rig.read) == "primary"

    def test_zero_switches_it_off(self, make):
        """With `sticky=0` a write changes nothing for reads."""
        rig = make(sticky=0)
        rig.write()
        assert "primary" not in {rig.read() for _ in range(10)}

    def test_go_to_a_replica_if_the_primary_is_away(self, make):
        """Rather an answer that may be a little old than none."""
        rig = make()
        rig.write()
        rig.lose("primary")
        assert rig.read() in {"r1", "r2"}
        assert rig.set.stats().failovers == 1


class TestPrimary:
    @pytest.mark.parametrize(
        "error",
        [
            ReadOnlyError(),
            type("ReadOnlyError", (Exception,), {})("READONLY You can't write against a read only replica."),
            OSError(1836, "Running in read-only mode"),
            OSError(1290, "running with the --read-only option"),
        ],
        ids=["PostgreSQL", "Redis", "MySQL", "MySQL, by option"],
    )
    def test_read_only_replaces_its_connections(self, make, error):
        """A write that finds the primary read-only has `connect` look for another, at most once a second."""
        rig = make()
        rig.write()
        assert rig.servers["primary"].made == 1
        for _ in range(3):
            with pytest.raises(type(error)), rig.set.writing():
                raise error
        assert rig.set.stats().demotions == 1
        rig.clock.advance(1.0)
        with pytest.raises(type(error)), rig.set.writing():
            raise error
        assert rig.set.stats().demotions == 2
        made = rig.servers["primary"].made
        rig.write()
        assert rig.servers["primary"].made == made + 1

    def test_read_only_at_the_commit_too(self):
        """A primary that is found read-only when the block ends is one that is none any more, too."""
        primary = ConnectionPool(lambda: Transactional(Server("p"), ReadOnlyError()), name="p")
        with ReplicaSet(primary, [pool("r")]) as orders:
            with pytest.raises(ReadOnlyError), orders.writing() as conn:
                conn.ask()
            assert orders.stats().demotions == 1

    def test_other_errors_do_not(self, make):
        """An error of the statement's leaves the connections alone."""
        rig = make()
        for _ in range(3):
            with pytest.raises(OSError, match="1290"), rig.set.writing():
                raise OSError(1290, "running with the --secure-file-priv option")
        assert rig.servers["primary"].made == 1
        assert rig.set.stats().demotions == 0

    def test_away_writes_fail_at_once_until_it_is_back(self, make):
        """The pool's own error, without a wait, and without asking a replica."""
        rig = make(pools={"min_size": 1})
        rig.set.wait()
        rig.lose("primary")
        wait_until(lambda: not rig.pools["primary"].available, "known to be down")
        with pytest.raises(PoolUnavailableError, match="pool 'primary'"):
            rig.write()
        rig.servers["primary"].up = True
        wait_until(lambda: rig.pools["primary"].available, "back")
        assert rig.write() == "primary"


class TestLag:
    @pytest.fixture
    def rig(self, make: Callable[..., Rig]) -> Rig:
        """A rig whose replicas are asked when the test says so."""
        return make(sticky=0, lag=lambda conn: conn.server.lag, max_lag=5.0)

    def ask(self, rig: Rig) -> None:
        """Have all asked, and wait for their answers."""
        gauge: Any = rig.set._gauge
        wait_until(lambda: self.have_answered(gauge), "all have answered")
        rig.clock.advance(1.0)
        now = rig.clock()
        gauge.round()
        wait_until(lambda: all(one.measured == now for one in rig.set._routing.replicas), "asked")

    def have_answered(self, gauge: Any) -> bool:
        return all(job.stage is Stage.DONE for job in gauge._jobs.values())

    def test_too_far_behind_it_is_left_out_until_it_has_caught_up(self, rig):
        """A replica over the limit gets no read, and one that is under it again gets a probe first."""
        rig.read()
        self.ask(rig)
        assert {rig.read() for _ in range(40)} == {"r1", "r2"}
        rig.servers["r1"].lag = 6.5
        with capture_events() as events:
            self.ask(rig)
            wait_until(lambda: rig.state("r1") == "open", "left out")
            assert {rig.read() for _ in range(20)} == {"r2"}
            assert [one.lag for one in rig.set.stats().replicas] == [6.5, 0.0]
            rig.servers["r1"].lag = 4.0
            self.ask(rig)
            wait_until(lambda: rig.state("r1") == "half-open", "let in again")
            assert rig.read() == "r1"
        assert rig.state("r1") == "closed"
        told = [(type(one).__name__, getattr(one, "reason", None)) for one in events]
        assert told == [
            ("CircuitOverridden", "6.5 s behind, which is more than 5 s"),
            ("CircuitResumed", None),
            ("CircuitHalfOpened", None),
            ("CircuitClosed", None),
        ]

    def test_one_that_does_not_answer_is_left_out(self, rig):
        """Nobody knows how far behind a replica is that does not answer: after a while it is left out."""
        rig.read()
        self.ask(rig)
        gauge: Any = rig.set._gauge
        rig.servers["r1"].answers.clear()
        rig.pools["r1"].drain()
        rig.clock.advance(8.5)
        gauge.round()
        wait_until(lambda: rig.state("r1") == "open", "left out")
        assert "it has not told for" in str(rig.set._routing.replicas[0].held)
        rig.servers["r1"].answers.set()
        self.ask(rig)
        wait_until(lambda: rig.state("r1") == "half-open", "let in again")

    def test_what_was_set_by_hand_is_left_alone(self, rig):
        """An operator's word counts more than the lag, either way."""
        rig.read()
        self.ask(rig)
        breaker = rig.set.breakers["r1"]
        breaker.force_closed()
        rig.servers["r1"].lag = 100.0
        self.ask(rig)
        assert rig.state("r1") == "closed"
        breaker.force_open(reason="maintenance")
        rig.servers["r1"].lag = 0.0
        self.ask(rig)
        assert rig.state("r1") == "open"

    def test_a_hand_that_takes_over_is_not_undone(self, rig):
        """A replica that was behind, and then was taken out by hand, stays out when it has caught up."""
        rig.read()
        rig.servers["r1"].lag = 100.0
        self.ask(rig)
        wait_until(lambda: rig.state("r1") == "open", "left out")
        rig.set.breakers["r1"].force_open(reason="maintenance")
        rig.servers["r1"].lag = 0.0
        self.ask(rig)
        assert rig.set.breakers["r1"].stats().override == "forced open"

    def test_none_says_nothing(self, rig):
        """A server that cannot tell is not left out for that."""
        rig.read()
        rig.servers["r1"].lag = None
        self.ask(rig)
        assert rig.state("r1") == "closed"
        assert rig.set.stats().replicas[0].lag is None

    def test_where_there_was_no_thread_the_next_round_asks(self, rig, monkeypatch):
        """A process at its limit asks again when it can."""

        def submit(_job: object) -> None:
            raise RuntimeError("can't start new thread")

        rig.read()
        self.ask(rig)
        gauge: Any = rig.set._gauge
        wait_until(lambda: self.have_answered(gauge), "all have answered")
        with monkeypatch.context() as patch:
            patch.setattr(gauge._workers, "submit", submit)
            rig.clock.advance(1.0)
            with contextlib.suppress(RuntimeError):  # unless the one who makes rounds was here first
                gauge.round()
        self.ask(rig)
        assert rig.set.stats().replicas[0].lag == 0.0

    def test_nonsense_is_logged_once(self, rig, caplog):
        """An answer that is no number is reported, and again only after a good one."""
        rig.read()
        rig.servers["r1"].lag = "soon"
        gauge: Any = rig.set._gauge
        with caplog.at_level("WARNING", "resilient"):
            for _ in range(3):
                wait_until(lambda: self.have_answered(gauge), "all have answered")
                rig.clock.advance(1.0)
                gauge.round()
            wait_until(lambda: self.have_answered(gauge), "all have answered")
        reason = "ValueError: could not convert string to float: 'soon'"
        assert [record.getMessage() for record in caplog.records] == [
            f"replica 'r1' cannot tell by how much it is behind: {reason}"
        ]


class TestWaitAndClose:
    def test_wait_does_not_need_every_replica(self, make):
        """A replica that is down keeps nobody from starting; no replica at all, or no primary, does."""
        rig = make(pools={"min_size": 1}, clock=time.monotonic)
        rig.servers["r1"].up = False
        rig.set.wait(5.0)
        rig.lose("r2")
        wait_until(lambda: not rig.pools["r2"].available, "known to be down")
        with pytest.raises(PoolTimeoutError):
            rig.set.wait(0.1)

    def test_wait_needs_the_primary(self, make):
        """Without the primary there is nothing to start with."""
        rig = make(pools={"min_size": 1}, clock=time.monotonic)
        rig.servers["primary"].up = False
        with pytest.raises(PoolTimeoutError, match="pool 'primary'"):
            rig.set.wait(0.1)

    def test_leaving_it_closes_all_pools(self, make):
        """As a context manager it ends with its block."""
        rig = make()
        with rig.set:
            rig.read()
        assert all(pool.closed for pool in rig.pools.values())


def apool(name: str, server: Server | None = None) -> AsyncConnectionPool[Any]:
    return AsyncConnectionPool(
        (server or Server(name)).aconnect, name=name, max_size=4, check_after_idle=60.0
    )


def pool(name: str) -> ConnectionPool[Any]:
    return ConnectionPool(Server(name).connect, name=name)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "primary must be a ConnectionPool, got 7", {"primary": 7}),
        (TypeError, "primary must be a ConnectionPool; AsyncReplicaSet takes", {"primary": apool("p")}),
        (TypeError, "replicas must hold ConnectionPools; AsyncReplicaSet takes", {"replicas": [apool("r")]}),
        (TypeError, "replicas must be a collection of pools", {"replicas": 7}),
        (TypeError, "replicas must be a collection of pools", {"replicas": pool("r")}),
        (ValueError, "replicas must have a name of its own each", {"replicas": [pool("r"), pool("r")]}),
        (ValueError, "replicas must have a name of its own each", {"replicas": [pool("p")]}),
        (ValueError, "replicas must not be empty", {"replicas": [], "fallback_to_primary": False}),
        (TypeError, "fallback_to_primary must be True or False", {"fallback_to_primary": 1}),
        (ValueError, "primary_share must be greater than 0", {"primary_share": 0}),
        (ValueError, "primary_share must be at most 1", {"primary_share": 2}),
        (ValueError, "sticky must be at least 0", {"sticky": -1}),
        (ValueError, "timeout must be at least 0", {"timeout": -1}),
        (TypeError, "name must be text", {"name": 7}),
        (TypeError, "clock must be callable", {"clock": 7}),
        (TypeError, "breaker must be callable", {"breaker": 7}),
        (TypeError, "breaker must return a CircuitBreaker", {"breaker": lambda name: name}),
        (ValueError, "max_lag must be given with lag", {"lag": lambda conn: 0.0}),
        (ValueError, "max_lag must be given with lag", {"max_lag": 5.0}),
        (ValueError, "max_lag must be at least 0", {"lag": lambda conn: 0.0, "max_lag": -1}),
        (TypeError, "lag must be an ordinary function", {"lag": apool, "max_lag": 1.0}),
        (ValueError, "lag_every must be greater than 0", {"lag_every": 0}),
    ],
)
def test_bad_arguments(error, words, arguments):
    """What cannot work is refused when the set is made, with the parameter, the rule and the value."""
    if arguments.get("lag") is apool:

        async def lag(conn: Any) -> float:
            return 0.0

        arguments = {**arguments, "lag": lag}
    with pytest.raises(error, match=words):
        ReplicaSet(**{"primary": pool("p"), "replicas": [pool("r")], **arguments})


def test_the_primary_is_no_replica():
    """The primary's pool among the replicas would be read from twice as often as meant."""
    primary = pool("p")
    with pytest.raises(ValueError, match="replicas must not hold the primary"):
        ReplicaSet(primary, [primary])


def test_each_replica_has_a_breaker_of_its_own():
    """A breaker that two share would leave both alone for what one has done."""
    breaker = CircuitBreaker("b")
    with pytest.raises(ValueError, match="breaker must return another one for each replica"):
        ReplicaSet(pool("p"), [pool("r1"), pool("r2")], breaker=lambda name: breaker)


def test_bad_timeouts_are_told_where_they_are_given():
    """A block with a timeout that cannot be is not made."""
    readers = ReplicaSet(pool("p"), [pool("r")])
    with pytest.raises(ValueError, match="timeout must be at least 0, got -1"):
        readers.reading(-1)
    with pytest.raises(TypeError, match="timeout must be a number"):
        readers.writing("soon")  # type: ignore[arg-type]


class TestAsync:
    def make(self, **settings: Any) -> tuple[AsyncReplicaSet[Any], dict[str, Server]]:
        servers = {name: Server(name) for name in ("primary", "r1", "r2")}
        primary, *replicas = [apool(name, server) for name, server in servers.items()]
        return AsyncReplicaSet(primary, replicas, name="orders", **settings), servers

    async def test_kinds_are_not_mixed(self):
        """A synchronous pool is refused at once, with the name of the class that takes it."""
        with pytest.raises(TypeError, match="primary must be a AsyncConnectionPool; ReplicaSet takes"):
            AsyncReplicaSet(pool("p"), [])  # type: ignore[arg-type]

    async def test_reads_and_writes(self):
        """Reads go to replicas, writes to the primary, in blocks and in functions."""
        orders, _ = self.make(sticky=0)
        async with orders:
            await orders.wait()

            @orders.reads
            async def find(conn: Conn, number: int) -> tuple[str, int]:
                return conn.ask(), number

            @orders.writes
            async def store(conn: Conn) -> str:
                return conn.ask()

            assert await find(7) in {("r1", 7), ("r2", 7)}
            assert await store() == "primary"
            async with orders.reading() as conn:
                assert conn.ask() in {"r1", "r2"}
            async with orders.writing() as conn:
                assert conn.ask() == "primary"
        with pytest.raises(PoolClosedError):
            await find(7)

    async def test_goes_to_the_next_within_the_call(self):
        """A replica that is away costs no read its answer."""
        orders, servers = self.make(sticky=0)
        servers["r1"].up = False
        async with orders:
            for _ in range(20):
                async with orders.reading() as conn:
                    assert conn.ask() == "r2"
            await await_until(lambda: orders.breakers["r1"].current_state == "open", "left alone")
            assert 1 <= orders.stats().failovers <= 3

    async def test_broken_connections_are_evidence_and_cancellation_is_none(self):
        """A task that is cancelled says nothing of the replica; a connection that breaks does."""
        orders, _ = self.make()
        async with orders:

            async def reads(entered: asyncio.Event) -> None:
                async with orders.reading():
                    entered.set()
                    await asyncio.sleep(60)

            for _ in range(5):
                entered = asyncio.Event()
                task = asyncio.create_task(reads(entered))
                await entered.wait()
                task.cancel()
                await asyncio.wait([task])
            assert sum(one.breaker.failures for one in orders.stats().replicas) == 0
            with pytest.raises(ConnectionResetError):
                async with orders.reading():
                    raise ConnectionResetError
            assert sum(one.breaker.failures for one in orders.stats().replicas) == 1

    @pytest.mark.parametrize(
        ("failure", "failures"),
        [(ValueError("too late"), 0), (ConnectionResetError("gone"), 1)],
        ids=["refused", "broken"],
    )
    async def test_a_commit_that_breaks_the_connection_is_evidence(self, failure, failures):
        """A connection that breaks when the pool commits on it counts, another failure of that does not."""

        async def connect() -> Transactional:
            return Transactional(Server("r"), failure)

        async with AsyncReplicaSet(apool("p"), [AsyncConnectionPool(connect, name="r")]) as orders:
            with pytest.raises(type(failure)):
                async with orders.reading() as conn:
                    conn.ask()
            assert orders.breakers["r"].stats().failures == failures

    async def test_a_commit_that_goes_well_is_none(self):
        """A read that is committed counts as one that went well."""

        async def connect() -> Transactional:
            return Transactional(Server("r"))

        async with AsyncReplicaSet(apool("p"), [AsyncConnectionPool(connect, name="r")]) as orders:
            async with orders.reading():
                pass
            stats = orders.breakers["r"].stats()
            assert (stats.calls, stats.failures) == (1, 0)

    async def test_a_connection_returned_inside_the_block_is_an_error(self):
        """Who gives the connection back by hand is told so at the end, unless there is worse to be told."""
        replica = apool("r")
        async with AsyncReplicaSet(apool("p"), [replica]) as orders:
            with pytest.raises(ConnectionReturnedError):
                async with orders.reading() as conn:
                    await replica.putconn(conn)
            with suppress(KeyError):
                async with orders.reading() as conn:
                    await replica.putconn(conn)
                    raise KeyError
            assert orders.breakers["r"].stats().abandoned == 2

    async def test_no_connection_at_all(self):
        """Who waits in vain is told so, who is cancelled while waiting is cancelled; neither is evidence."""
        replica = AsyncConnectionPool(Server("r").aconnect, name="r", max_size=1)
        async with AsyncReplicaSet(apool("p"), [replica], fallback_to_primary=False) as orders:
            async with orders.reading():
                with pytest.raises(PoolTimeoutError):
                    await orders.reading(0.01).__aenter__()
                waiting = asyncio.create_task(orders.reading(60.0).__aenter__())
                await await_until(lambda: replica.stats().waiting == 1, "it waits")
                waiting.cancel()
                await asyncio.wait([waiting])
                assert waiting.cancelled()
            stats = orders.stats()
            assert (stats.refused, stats.replicas[0].breaker.failures) == (1, 0)

    async def test_who_finds_the_share_taken_waits_for_a_part_of_it(self):
        """A place that comes free goes to whoever waits for it; who is cancelled gives his up."""
        orders, _ = self.make(sticky=0, primary_share=0.25)
        for breaker in orders.breakers.values():
            breaker.force_open()

        async def read() -> str:
            async with orders.reading() as conn:
                name: str = conn.ask()
                return name

        async with orders:
            fallback: Any = orders._routing.fallback
            async with orders.reading():
                reads = [asyncio.create_task(read()) for _ in range(3)]
                await await_until(lambda: fallback.slots.waiting == 3, "all wait")
                reads[0].cancel()
            assert await asyncio.gather(*reads[1:]) == ["primary", "primary"]
            assert fallback.slots.held == 0

    async def test_refused_by_chance_a_read_goes_elsewhere(self):
        """While a breaker lets traffic back in bit by bit, what it does not let in yet is read elsewhere."""

        def breaker(name: str) -> CircuitBreaker:
            return CircuitBreaker(name, ramp=1000.0, reset_timeout=0.0)

        orders, _ = self.make(sticky=0, breaker=breaker)
        async with orders:
            orders.breakers["r1"].open()
            served = Counter[str]()
            for _ in range(50):
                async with orders.reading() as conn:
                    served[conn.ask()] += 1
            assert served["r1"] < 10
            assert served["primary"] == 0

    async def test_read_only_at_the_commit(self):
        """A primary that is found read-only when the block ends is one that is none any more, too."""

        async def connect() -> Transactional:
            return Transactional(Server("p"), ReadOnlyError())

        async with AsyncReplicaSet(AsyncConnectionPool(connect, name="p"), [apool("r")]) as orders:
            with pytest.raises(ReadOnlyError):
                async with orders.writing() as conn:
                    conn.ask()
            assert orders.stats().demotions == 1

    async def test_wait_does_not_need_every_replica(self):
        """A replica that is down keeps nobody from starting; if all are, it is told."""
        servers = {name: Server(name) for name in ("p", "r1", "r2")}
        servers["r1"].up = False
        pools = [
            AsyncConnectionPool(server.aconnect, name=name, min_size=1) for name, server in servers.items()
        ]
        async with AsyncReplicaSet(pools[0], pools[1:]) as orders:
            await orders.wait()
            servers["r2"].up = False
            pools[2].drain()
            with pytest.raises(PoolTimeoutError):
                await orders.wait(0.1)

    async def test_writes_pin_the_reads_of_later_tasks(self):
        """A task begun after the write reads from the primary, one that was there before does not."""
        orders, _ = self.make(sticky=60)

        async def read() -> str:
            async with orders.reading() as conn:
                name: str = conn.ask()
                return name

        async with orders:
            before = contextvars.copy_context()
            async with orders.writing():
                pass
            assert await asyncio.create_task(read()) == "primary"
            assert await asyncio.create_task(read(), context=before) in {"r1", "r2"}

    async def test_read_only_replaces_the_connections(self):
        """A write that finds the primary read-only has `connect` look for another."""
        orders, servers = self.make()
        async with orders:
            with pytest.raises(ReadOnlyError):
                async with orders.writing():
                    raise ReadOnlyError
            assert orders.stats().demotions == 1
            async with orders.writing():
                pass
            assert servers["primary"].made == 2

    async def test_lag_is_asked_in_tasks(self):
        """A replica that is behind is left out, and let in again when it has caught up."""

        async def lag(conn: Conn) -> float:
            await asyncio.sleep(0)
            behind: float = conn.server.lag
            return behind

        orders, servers = self.make(sticky=0, lag=lag, max_lag=1.0, lag_every=0.01)
        servers["r1"].lag = 2.0
        async with orders:
            async with orders.reading():
                pass
            breaker = orders.breakers["r1"]
            await await_until(lambda: breaker.current_state == "open", "left out")
            for _ in range(10):
                async with orders.reading() as conn:
                    assert conn.ask() == "r2"
            servers["r1"].lag = 0.5
            await await_until(lambda: breaker.current_state == "half-open", "let in again")
            assert orders.stats().replicas[0].lag == pytest.approx(0.5)
            async with orders.reading() as conn:
                assert conn.ask() == "r1"

    async def test_belongs_to_the_loop_of_its_pools(self):
        """Used in another loop it says so, and nothing is held against a replica."""
        orders, _ = self.make()

        async def read() -> None:
            async with orders.reading():
                pass

        async with orders:
            await orders.wait()
            with pytest.raises(RuntimeError, match="belongs to the event loop"):
                await asyncio.to_thread(asyncio.run, read())
            assert sum(one.breaker.failures for one in orders.stats().replicas) == 0
