"""Connecting: at once while that works; when not, ever more rarely, and nobody waits for nothing."""

from __future__ import annotations

import pytest
from tests.pool.support import LostError, SteppedPool, World

from resilient.errors import PoolTimeoutError, PoolUnavailableError, RejectedError
from resilient.events import PoolAvailable, PoolUnavailable
from resilient.pool.members import Errand
from resilient.pool.supply import Supply


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def refused_by(pool: SteppedPool, timeout: float | None = None) -> RejectedError:
    """Return how somebody is refused who wants a connection."""
    with pytest.raises(RejectedError) as refused:
        pool.getconn(timeout)
    return refused.value


def bring_down(world: World, pool: SteppedPool) -> None:
    """Have the server refuse until the pool knows it."""
    world.server.failure = LostError("refused")
    for _ in range(10):
        if not pool.available:
            return
        refused_by(pool, 1.0)
    pytest.fail("the pool does not notice")


# The account of failures.


def supply(jitter: float = 1.0) -> Supply:
    return Supply(3, 2.0, lambda: jitter)


def test_pauses_double_but_stay_below_a_second() -> None:
    """A server that is back is noticed within that; hikari's grow to five."""
    account, now, pauses = supply(), 100.0, []
    for _ in range(8):
        account.failed(now, "refused")
        pauses.append(account.pause(now))
        now = account.retry_at
    assert pauses[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert 0.5 < pauses[4] <= pauses[5] == pauses[6] == pauses[7] <= 1.0


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_pauses_are_at_random_but_half(jitter: float, share: float) -> None:
    """So that processes do not come back together."""
    account = supply(jitter)
    account.failed(100.0, "refused")
    assert account.pause(100.0) == pytest.approx(0.05 * share)
    assert account.pause(200.0) == 0.0


def test_three_failures_in_a_row_mean_that_it_is_down() -> None:
    """And a success that it is not; how long it was is told."""
    account, now = supply(), 100.0
    told = []
    for _ in range(4):
        told.append(account.failed(now, "refused"))
        now = account.retry_at
    assert told == [False, False, True, False]
    assert account.is_down
    assert account.last_failure == "refused"
    assert account.succeeded(130.0) == pytest.approx(30.0)
    assert not account.is_down
    assert account.last_failure is None
    assert account.succeeded(131.0) is None


def test_attempts_that_fail_side_by_side_count_once() -> None:
    """A blip while three were being made is one failure."""
    account = supply()
    for _ in range(3):
        account.failed(100.0, "refused")
    assert account.failures == 1
    assert account.pause(100.0) == pytest.approx(0.05)


def test_one_attempt_at_a_time_while_it_fails() -> None:
    """Three where it works: a spike of callers makes no spike of connections."""
    account = supply()
    assert [account.allows(connecting) for connecting in range(4)] == [True, True, True, False]
    account.failed(100.0, "refused")
    assert [account.allows(connecting) for connecting in range(2)] == [True, False]


def test_old_knowledge_is_no_knowledge() -> None:
    """Whoever comes long after the last attempt had better find out anew."""
    account, now = supply(), 100.0
    for _ in range(3):
        account.failed(now, "refused")
        now = account.retry_at
    assert account.is_known_down(now)
    assert account.is_known_down(now + 6.0)
    assert not account.is_known_down(now + 8.0)
    assert account.is_down


# What comes of it.


def test_spike_makes_no_more_than_three_at_once(world: World) -> None:
    """Each that is made lets another begin."""
    pool = world.pool(max_size=10, min_size=10)
    pool.crew.at_once = False
    refused_by(pool, 0.0)
    assert pool.crew.waiting_for(Errand.CONNECT) == pool.stats().connecting == 3
    pool.crew.do_one()
    assert pool.crew.waiting_for(Errand.CONNECT) == 3
    pool.crew.do()
    assert pool.stats().idle == 10


def test_known_failure_is_told_at_once(world: World) -> None:
    """hikari#1686, #2254: nobody waits his whole time for a server that is known to be down."""
    pool = world.pool(timeout=30.0)
    began = world.clock()
    world.server.failure = LostError("refused")

    first = refused_by(pool)

    assert isinstance(first, PoolUnavailableError)
    assert world.clock() - began < 2.0
    began = world.clock()
    second = refused_by(pool)
    assert isinstance(second, PoolUnavailableError)
    assert world.clock() == began
    assert second.retry_after is not None
    assert second.retry_after <= 1.0
    assert second.last_failure == "LostError: refused"
    assert len(world.of(PoolUnavailable)) == 1
    assert world.of(PoolUnavailable)[0].error == "LostError: refused"
    assert not pool.available
    assert not pool.stats().available
    assert pool.stats().refused == 2


def test_server_that_is_back_is_noticed_though_nobody_waits(world: World) -> None:
    """hikari#358, #1663: in the background, by one attempt; whoever comes then is served."""
    pool = world.pool()
    bring_down(world, pool)
    refused_by(pool)
    world.server.failure = None
    world.clock.advance(1.0)
    pool.crew.do_due(world.clock())
    assert pool.available
    assert pool.getconn(timeout=0).ask() == "pong"
    (event,) = world.of(PoolAvailable)
    assert 0.0 < event.seconds < 5.0


def test_refusals_cause_no_storm(world: World) -> None:
    """A thousand refused callers cause as many attempts as one."""
    pool = world.pool()
    bring_down(world, pool)
    attempts = world.server.attempts
    for _ in range(1_000):
        refused_by(pool)
    assert world.server.attempts == attempts
    assert pool.stats().connecting == 1


def test_attempts_grow_rare_in_a_long_outage(world: World) -> None:
    """About one a second, where the pool has to keep some open."""
    pool = world.pool(min_size=5)
    bring_down(world, pool)
    attempts = world.server.attempts
    for _ in range(60):
        world.clock.advance(1.0)
        pool.round()
        pool.crew.do_due(world.clock())
    assert 25 <= world.server.attempts - attempts <= 121
    world.server.failure = None
    for _ in range(5):
        world.clock.advance(1.0)
        pool.crew.do_due(world.clock())
    assert pool.stats().idle == 5


def test_those_who_wait_are_told_when_it_is_known(world: World) -> None:
    """All of them, and not only the next who comes."""
    pool = world.pool(timeout=30.0)
    pool.crew.at_once = False
    began = world.clock()
    world.server.failure = LostError("refused")
    world.meanwhile = [pool.crew.do_one] * 5
    assert isinstance(refused_by(pool), PoolUnavailableError)
    assert world.clock() - began < 5.0
    assert pool.stats().waiting == 0
    assert pool.stats().refused == 1


def test_server_that_refuses_new_connections_fails_nobody(world: World) -> None:
    """B1, "too many connections": the old ones go on working, and those who wait get them in turn."""
    pool = world.pool(max_size=10, timeout=5.0)
    held = [pool.getconn() for _ in range(2)]
    world.server.failure = LostError("FATAL: sorry, too many clients already")
    for turn in range(50):
        world.meanwhile = [lambda: None, lambda turn=turn: pool.putconn(held.pop(0))]
        held.append(pool.getconn())
        assert held[-1].ask(turn) == turn
    stats = pool.stats()
    assert (stats.timeouts, stats.refused, stats.checkouts) == (0, 0, 52)
    assert stats.connect_failures > 3
    assert len(world.server.made) == 2


def test_long_loans_do_not_make_a_pool_unavailable(world: World) -> None:
    """Borrowers that keep theirs for longer than others wait: those who have the time wait for them."""
    pool = world.pool(max_size=2, timeout=5.0)
    conn = pool.getconn()
    world.server.failure = LostError("FATAL: sorry, too many clients already")
    world.meanwhile = [lambda: None] * 8 + [lambda: pool.putconn(conn)]
    assert pool.getconn(timeout=20.0).ask() == "pong"


def test_all_that_is_there_is_lent_while_the_server_refuses(world: World) -> None:
    """Free ones are lent, whatever is known of new ones."""
    pool = world.pool()
    conn = pool.getconn()
    bring_down(world, pool)
    pool.putconn(conn)
    for _ in range(5):
        with pool.connection() as again:
            assert again.ask() == "pong"


def test_back_after_a_quiet_time_is_told(world: World) -> None:
    """Down, then nobody asks for a minute, then it works: whoever keeps account of both has to hear of it."""
    pool = world.pool()
    bring_down(world, pool)
    pool.crew.do_one()
    while pool.crew.pending:
        pool.crew.drop()
    world.server.failure = None
    world.clock.advance(60.0)
    assert not pool.available
    with pool.connection() as conn:
        assert conn.ask()
    assert len(world.of(PoolUnavailable)) == len(world.of(PoolAvailable)) == 1


def test_after_a_quiet_time_it_is_tried_anew(world: World) -> None:
    """Whoever comes a minute later is not refused for what was then."""
    pool = world.pool(timeout=3.0)
    bring_down(world, pool)
    world.clock.advance(60.0)
    pool.crew.pending.clear()
    pool.crew._due.clear()
    attempts = world.server.attempts
    refused_by(pool)
    assert world.server.attempts > attempts


def test_attempt_that_hangs_counts_as_failed(world: World) -> None:
    """A black hole: its place is free again after a while, and who connects late is welcome or closed."""
    pool = world.pool(max_size=1, connect_timeout=2.0, timeout=1.0)
    pool.crew.at_once = False
    assert isinstance(refused_by(pool), PoolTimeoutError)
    world.clock.advance(2.0)
    pool.round()
    stats = pool.stats()
    assert (stats.size, stats.connecting, stats.connect_failures) == (0, 0, 1)
    assert stats.last_failure == "no connection after 2 s"


@pytest.mark.parametrize("is_replaced", [False, True])
def test_attempt_that_ends_late_is_used_if_there_is_room(is_replaced: bool, world: World) -> None:
    """It is closed if there is none: there are never more than allowed."""
    pool = world.pool(max_size=1, connect_timeout=2.0)
    pool.crew.at_once = False
    refused_by(pool, 0.0)
    pool.crew.begin_one(0)  # and it hangs
    world.clock.advance(2.0)
    pool.round()
    if is_replaced:
        refused_by(pool, 0.0)
        pool.crew.do()
    pool.crew.end_one(0)
    pool.crew.do()

    assert [conn.number for conn in world.server.open] == [int(is_replaced)]
    assert pool.getconn(timeout=0).number == int(is_replaced)
    stats = pool.stats()
    assert (stats.size, stats.connect_failures) == (1, 1)
    assert stats.connects - stats.closed == 1


def test_attempt_that_never_began_is_not_made_late(world: World) -> None:
    """After an hour in a black hole there would be hundreds, all for nothing."""
    pool = world.pool(connect_timeout=2.0, min_size=1)
    pool.crew.at_once = False
    refused_by(pool, 0.0)
    for _ in range(100):
        world.clock.advance(2.0)
        pool.round()
    assert pool.stats().size <= 1
    world.server.attempts = 0
    pool.crew.do()
    assert world.server.attempts == 1
    assert pool.stats().idle == 1


def test_server_that_accepts_and_is_of_no_use_is_not_stormed(world: World) -> None:
    """Connect, use, discard, connect: without a pause that would be thousands a second."""
    pool = world.pool(timeout=5.0)
    began = world.clock()
    for _ in range(20):
        with pytest.raises(LostError), pool.connection():
            raise LostError("gone")
    seconds = world.clock() - began
    assert world.server.attempts == 20
    assert 5.0 <= seconds <= 20.0
    assert pool.stats().connect_failures == 0


def test_failures_of_somebody_elses_do_not_slow_the_pool(world: World) -> None:
    """A third party that fails inside of blocks: those who borrow after that get connections as before."""
    pool = world.pool(timeout=5.0)
    began = world.clock()
    for _ in range(100):
        with pytest.raises(TimeoutError), pool.connection():
            raise TimeoutError
    assert world.clock() == began


def test_interrupt_of_connect_is_a_failure(world: World) -> None:
    """Whoever connects may be ended; the place is free, and the caller gets its connection from another."""
    pool = world.pool(timeout=5.0)
    world.server.failure = SystemExit(3)
    with pytest.raises(SystemExit):
        pool.getconn(timeout=0)
    assert pool.stats().connect_failures == 1
    assert pool.stats().size == 0
    world.server.failure = None
    assert pool.getconn().ask() == "pong"
