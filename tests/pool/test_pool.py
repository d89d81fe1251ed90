"""The pool for threads: who gets a connection, in which order, and how it ends."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.pool.support import Conn, LostError, SteppedPool, World
from tests.support.waiting import wait_until

from resilient import ConnectionPool, deadline
from resilient.errors import (
    ConnectionReclaimedError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    RejectedError,
)
from resilient.pool.members import Errand


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def in_line(pool: Any, count: int, then: Callable[[Conn], object]) -> list[threading.Thread]:
    """Return so many threads that wait for a connection, to do something with it, in their order."""

    def borrow() -> None:
        with pool.connection(timeout=20.0) as conn:
            then(conn)

    threads: list[threading.Thread] = []
    for _ in range(count):
        threads.append(threading.Thread(target=borrow))
        threads[-1].start()
        wait_until(lambda: pool.stats().waiting == len(threads), "waiting")
    return threads


# Borrowing.


def test_nothing_is_connected_before_somebody_asks(world: World) -> None:
    """A pool is made at import, where no server need be there."""
    pool = world.pool(min_size=2)
    pool.round()
    assert world.server.attempts == 0
    with pool.connection() as conn:
        assert conn.ask() == "pong"
    assert world.server.attempts == 2


def test_connection_that_was_used_last_is_lent_first(world: World) -> None:
    """So that those that are too many can go."""
    pool = world.pool()
    one, two, three = (pool.getconn() for _ in range(3))
    for conn in (two, three, one):
        pool.putconn(conn)
    held = [pool.getconn() for _ in range(3)]
    assert [conn.number for conn in held] == [0, 2, 1]


def test_no_more_connections_than_allowed(world: World) -> None:
    """The limit holds also while some are being made."""
    pool = world.pool(max_size=2, timeout=0.0)
    held = [pool.getconn(1.0), pool.getconn(1.0)]
    for _ in range(3):
        with pytest.raises(PoolTimeoutError):
            pool.getconn()
    assert len(world.server.made) == 2
    assert pool.stats().timeouts == 3
    del held


def test_timeout_ends_the_wait_whatever_the_server_does(world: World) -> None:
    """hikari#588, #2192: making a connection and checking one are within the time."""
    pool = world.pool(timeout=3.0, check=Conn.check, check_timeout=60.0)
    with pool.connection():
        pass
    world.clock.advance(10.0)
    pool.crew.at_once = False  # nobody answers any more
    began = world.clock()

    with pytest.raises(PoolTimeoutError):
        pool.getconn()

    assert world.clock() - began == pytest.approx(3.0)
    assert pool.stats().wait_seconds == pytest.approx(3.0)
    assert pool.stats().waiting == 0


def test_deadline_of_the_caller_counts_if_it_is_earlier(world: World) -> None:
    """Nobody waits beyond it."""
    pool = world.pool(timeout=30.0, max_size=1)
    with pool.connection():
        began = world.clock()
        with deadline(2.0), pytest.raises(PoolTimeoutError):
            pool.getconn()
        assert world.clock() - began <= 2.0
        with deadline(600.0), pytest.raises(PoolTimeoutError):
            pool.getconn(timeout=timedelta(seconds=1))
        assert world.clock() - began <= 3.0
        with deadline(1e-9), pytest.raises(PoolTimeoutError, match="at once"):
            pool.getconn()


def test_whoever_does_not_wait_gets_what_is_free(world: World) -> None:
    """And starts the making of another, so that the next one gets it."""
    pool = world.pool(timeout=0)
    pool.crew.at_once = False
    with pytest.raises(PoolTimeoutError, match="at once"):
        pool.getconn()
    assert pool.crew.do() == 1
    with pool.connection() as conn:
        assert conn.ask()


def test_those_who_wait_are_served_in_the_order_of_their_coming() -> None:
    """hikari#1909, asyncpg#1247: strictly, and nobody who comes later is let in between."""
    pool = World().pool(max_size=1)
    served: list[int] = []
    held = pool.getconn()
    threads = in_line(pool, 5, lambda conn: served.append(threading.get_ident()))

    pool.putconn(held)
    late = pool.getconn(timeout=20.0)
    pool.putconn(late)

    for thread in threads:
        thread.join(10.0)
    assert served == [thread.ident for thread in threads]


def test_too_many_are_not_let_wait() -> None:
    """The line is bounded."""
    pool = World().pool(max_size=1, max_waiting=2)
    held = pool.getconn()
    threads = in_line(pool, 2, lambda conn: conn.ask())

    with pytest.raises(PoolFullError):
        pool.getconn()

    assert pool.stats().refused == 1
    pool.putconn(held)
    for thread in threads:
        thread.join(10.0)
    assert pool.stats().used == 0


def test_nobody_waiting_does_not_mean_nobody_served(world: World) -> None:
    """A pool in which nobody may wait connects all the same, for whoever comes next."""
    pool = world.pool(max_waiting=0)
    for _ in range(3):
        try:
            with pool.connection() as conn:
                assert conn.ask()
                break
        except PoolFullError:
            continue
    else:
        pytest.fail("nobody was ever served")


def test_statistics_add_up(world: World) -> None:
    """What was lent, waited for, and for how long."""
    pool = world.pool(max_size=2, min_size=1)
    with pool.connection():
        world.clock.advance(2.0)
        with pool.connection():
            world.clock.advance(1.0)
            stats = pool.stats()
            assert (stats.size, stats.used, stats.idle) == (2, 2, 0)
            with pytest.raises(PoolTimeoutError):
                pool.getconn(timeout=4.0)
    stats = pool.stats()
    assert (stats.size, stats.used, stats.idle, stats.waiting, stats.connecting) == (2, 0, 2, 0, 0)
    assert (stats.checkouts, stats.connects, stats.timeouts) == (2, 2, 1)
    assert (stats.min_size, stats.max_size) == (1, 2)
    assert stats.use_seconds == pytest.approx(7.0 + 5.0)
    assert stats.wait_seconds == pytest.approx(4.0)
    assert stats.waited == 3
    assert stats.available
    assert stats.last_failure is None
    assert repr(pool) == "<ConnectionPool 'orders' 0 of 2 lent, 2 idle, 0 waiting>"


# The whole of it.


def test_wait_is_for_those_that_are_kept_open(world: World) -> None:
    """Before traffic comes."""
    pool = world.pool(min_size=3)
    pool.wait()
    assert pool.stats().idle == 3
    pool.wait(timeout=0)


def test_wait_in_vain_says_why(world: World) -> None:
    """The last failure is in the text."""
    pool = world.pool(min_size=1)
    world.server.failure = LostError("refused")
    with pytest.raises(PoolTimeoutError, match="connecting failed last with LostError: refused"):
        pool.wait(timeout=3.0)
    world.server.failure = None
    pool.wait()


def test_wait_for_a_closed_pool_is_refused(world: World) -> None:
    """At once, and also if it is closed in the meantime."""
    pool = world.pool(min_size=1)
    pool.crew.at_once = False
    world.meanwhile = [lambda: None, lambda: pool.close(drain=0)]
    began = world.clock()
    with pytest.raises(PoolClosedError):
        pool.wait(timeout=30.0)
    assert world.clock() - began <= 3.0
    with pytest.raises(PoolClosedError):
        pool.wait(timeout=30.0)


def test_drain_replaces_every_connection(world: World) -> None:
    """Those that are free now, those that are lent when they come back, those that are being made."""
    pool = world.pool(max_size=3)
    lent, free = pool.getconn(), pool.getconn()
    pool.putconn(free)
    pool.crew.at_once = False
    with pool.connection():
        with pytest.raises(PoolTimeoutError):
            pool.getconn(timeout=0)  # which has one made
        pool.drain()
    assert lent.ask() == "pong"
    pool.putconn(lent)
    pool.crew.do()

    assert not world.server.open
    assert all(conn.closed == 1 for conn in world.server.made)
    pool.crew.at_once = True
    with pool.connection() as conn:
        assert conn.number == 3
    pool.putconn(pool.getconn())
    assert len(world.server.made) == 4


def test_smaller_pool_lets_go_what_is_too_much(world: World) -> None:
    """What is free at once, what is lent when it is back; and not one more than that."""
    pool = world.pool(max_size=4)
    held = [pool.getconn() for _ in range(4)]
    pool.putconn(held.pop())
    pool.crew.at_once = False
    pool.resize(2)
    assert pool.crew.waiting_for(Errand.CLOSE) == 1
    pool.round()
    pool.putconn(held.pop())
    assert pool.crew.do() == 2
    pool.round()
    for conn in held:
        pool.putconn(conn)
    pool.crew.do()
    assert pool.stats().idle == len(world.server.open) == 2


def test_larger_pool_serves_who_waits(world: World) -> None:
    """At once."""
    pool = world.pool(max_size=1)
    first = pool.getconn()
    world.meanwhile = [lambda: pool.resize(2)]
    second = pool.getconn()
    assert {first.number, second.number} == {0, 1}


def test_close_waits_for_borrowers_then_cuts_them(world: World) -> None:
    """Those that return in time are closed in good order."""
    pool = world.pool()
    quick, slow = pool.getconn(), pool.getconn()
    pool.putconn(pool.getconn())
    began = world.clock()
    world.meanwhile = [lambda: None, lambda: pool.putconn(quick)]

    pool.close(drain=4.0)

    assert world.clock() - began == pytest.approx(4.0)
    assert [conn.closed for conn in world.server.made] == [1, 0, 1]
    assert [conn.cut for conn in world.server.made] == [False, True, False]
    assert pool.closed
    with pytest.raises(ConnectionReclaimedError, match="the pool was closed"):
        slow.ask()
    with pytest.raises(ConnectionReclaimedError):
        pool.putconn(slow)
    gc.collect()
    assert world.server.made[1].closed == 1
    assert pool.stats().size == 0
    pool.close()


def test_close_ends_as_soon_as_all_are_back(world: World) -> None:
    """It does not wait for nothing."""
    pool = world.pool()
    with pool.connection():
        pass
    began = world.clock()
    pool.close(drain=60.0)
    assert world.clock() == began
    for call in (pool.getconn, pool.connection().__enter__):
        with pytest.raises(PoolClosedError):
            call()


def test_close_refuses_those_who_wait(world: World) -> None:
    """At once; they need not wait for their time to be up."""
    pool = world.pool(max_size=1)
    held = pool.getconn()
    world.meanwhile = [lambda: pool.close(drain=0)]
    began = world.clock()
    with pytest.raises(PoolClosedError):
        pool.getconn(timeout=60.0)
    assert world.clock() - began <= 1.0
    del held


def test_connection_for_somebody_who_finds_the_pool_closed_is_closed(world: World) -> None:
    """It was handed over, the pool was closed, and then whoever waited came to; nobody looks after that."""
    pool = world.pool()
    pool.crew.at_once = False

    def hand_over_and_close() -> None:
        pool.crew.do()
        pool.core.shut()

    world.meanwhile = [hand_over_and_close]
    with pytest.raises(PoolClosedError):
        pool.getconn()
    pool.crew.do()
    assert not world.server.open


def test_close_is_no_failure_of_the_server(world: World) -> None:
    """What is under way when the pool is cut says nothing about it."""
    pool = world.pool(min_size=3, check=Conn.check)
    pool.crew.at_once = False
    with pytest.raises(PoolTimeoutError):
        pool.getconn(timeout=0)
    assert pool.crew.waiting_for(Errand.CONNECT) == 3
    pool.close(drain=0)
    stats = pool.stats()
    assert (stats.connect_failures, stats.discarded, stats.available) == (0, 0, True)
    assert world.heard == []
    pool.crew.do()
    assert not world.server.open


def test_block_closes_the_pool() -> None:
    """`with ConnectionPool(...) as pool`, with real threads."""
    world = World()
    with ConnectionPool(world.server.connect, name="orders") as pool, pool.connection() as conn:
        assert conn.ask()
    assert pool.closed
    assert not world.server.open


def test_pool_is_one_of_a_kind(world: World) -> None:
    """A copy is the pool itself; another process gets none."""
    pool = world.pool()
    assert copy.copy(pool) is pool
    assert copy.deepcopy([pool])[0] is pool
    with pytest.raises(TypeError, match="cannot be pickled: its connections belong to one process"):
        pickle.dumps(pool)
    assert pool.name == "orders"
    assert pool.available
    assert not pool.closed


def test_coroutine_function_in_disguise_is_told_apart() -> None:
    """What `connect` returns has to be awaited: that is for the other pool, and nothing is left unawaited."""

    async def aconnect() -> None: ...

    with (
        ConnectionPool(lambda: aconnect(), name="orders", timeout=1.0) as pool,  # noqa: PLW0108
        pytest.raises(RejectedError, match="a coroutine function needs an AsyncConnectionPool"),
    ):
        pool.getconn()


@pytest.mark.parametrize("answer", [None, False])
def test_connect_that_returns_nothing_has_failed(answer: object, world: World) -> None:
    """Forgetting `return` is easy; no is no either, for a check."""
    if answer is None:
        pool: SteppedPool = world.pool(connect=lambda: None, timeout=1.0)
        with pytest.raises(RejectedError, match="connect must return a connection, got None"):
            pool.getconn()
    else:
        pool = world.pool(check=lambda conn: conn.number > 0, check_after_idle=0)
        pool.putconn(pool.getconn())
        world.clock.advance(1.0)
        assert pool.getconn().number == 1
