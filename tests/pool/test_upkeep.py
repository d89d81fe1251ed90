"""What is seen to though nobody asks: connections too few, too many, too old, idle too long, or dead."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.pool.support import Conn, LostError, SteppedPool, World

from resilient.errors import RejectedError
from resilient.events import ConnectionDiscarded
from resilient.pool.members import Errand


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def filled(pool: SteppedPool, count: int) -> SteppedPool:
    """Return *pool* with so many connections that were used and are free, the last one first."""
    held = [pool.getconn() for _ in range(count)]
    while held:
        pool.putconn(held.pop())
    return pool


def break_one(pool: SteppedPool) -> None:
    """Have somebody find a connection broken, which has worked before."""
    with pool.connection():
        pool.core.rules.clock.advance(0.25)  # type: ignore[attr-defined]
    conn = pool.getconn()
    pool.core.give_back(pool._token_of(conn), LostError("broken"))


def pass_time(world: World, pool: SteppedPool, seconds: float) -> None:
    """Let time go by, with a round each second."""
    for _ in range(int(seconds)):
        world.clock.advance(1.0)
        pool.round()


# How many there are.


def test_least_is_kept(world: World) -> None:
    """hikari#1830: made when somebody comes first, and again when one is gone, whyever."""
    pool = world.pool(min_size=3)
    with pool.connection():
        assert pool.stats().size == 3
    break_one(pool)
    assert pool.stats().idle == 3
    pool.drain()
    assert pool.stats().idle == 3
    assert [conn.number for conn in world.server.open] == [4, 5, 6]


def test_idle_ones_go_after_a_time(world: World) -> None:
    """But those that are kept open; those that were used last go last."""
    pool = filled(world.pool(min_size=1, max_idle=60.0), 4)
    pass_time(world, pool, 30.0)
    with pool.connection() as conn:
        assert conn.number == 0
    pass_time(world, pool, 29.0)
    assert pool.stats().idle == 4
    pass_time(world, pool, 2.0)
    assert [conn.number for conn in world.server.open] == [0]
    assert pool.stats().expired == pool.stats().closed == 3
    pass_time(world, pool, 100.0)
    assert [conn.number for conn in world.server.open] == [0]


def test_idle_ones_go_but_none_more_while_they_are_being_closed(world: World) -> None:
    """Closing takes time; the next round does not count them again."""
    pool = filled(world.pool(min_size=2, max_idle=60.0), 4)
    pool.crew.at_once = False
    pass_time(world, pool, 70.0)
    assert pool.crew.waiting_for(Errand.CLOSE) == 2
    pool.crew.do()
    assert len(world.server.open) == 2


def test_checks_do_not_keep_an_idle_connection(world: World) -> None:
    """Being asked is not being used."""
    pool = filled(world.pool(check=Conn.check, check_every=10.0, max_idle=60.0), 1)
    pass_time(world, pool, 59.0)
    assert world.server.made[0].checks >= 5
    assert pool.stats().idle == 1
    pass_time(world, pool, 2.0)
    assert pool.stats().size == 0


def test_idle_one_is_not_lent_after_its_time(world: World) -> None:
    """A process that was asleep finds out before the round does."""
    pool = filled(world.pool(max_idle=60.0), 1)
    world.clock.advance(61.0)
    with pool.connection() as conn:
        assert conn.number == 1


# How old they get.


def test_lifetime_is_looked_at_before_lending(world: World) -> None:
    """psycopg#584, #1018: not only when it is returned, and not only in the background."""
    pool = filled(world.pool(max_lifetime=100.0, max_idle=math.inf), 2)
    world.clock.advance(100.0)
    with pool.connection() as conn:
        assert conn.number == 2
    assert [one.closed for one in world.server.made] == [1, 1, 0]
    assert pool.stats().expired == 2


def test_lifetime_is_looked_at_in_the_background(world: World) -> None:
    """psycopg#381, #472, #482: those that nobody asks for, too; and replaced, where some are to stay."""
    pool = filled(world.pool(max_lifetime=100.0, max_idle=math.inf, min_size=1), 2)
    pass_time(world, pool, 101.0)
    assert [one.closed for one in world.server.made[:2]] == [1, 1]
    assert pool.stats().idle == 1


def test_lifetime_ends_no_loan(world: World) -> None:
    """Whoever has one keeps it; it is replaced when it is back."""
    pool = world.pool(max_lifetime=100.0)
    with pool.connection() as conn:
        pass_time(world, pool, 200.0)
        assert conn.ask() == "pong"
        assert not world.server.made[0].closed
    assert world.server.made[0].closed == 1
    assert pool.stats().expired == 1


def test_lifetimes_do_not_end_together(world: World) -> None:
    """hikari#1830: each is shortened at random, by a tenth at most where that was said."""
    pool = filled(
        world.pool(
            max_lifetime=1_000.0, jitter=0.1, max_size=40, max_idle=math.inf, check_after_idle=math.inf
        ),
        40,
    )
    ends: list[float] = []
    began = world.clock()
    while pool.stats().size:
        before = pool.stats().size
        pass_time(world, pool, 10.0)
        ends += [world.clock() - began] * (before - pool.stats().size)
    assert 900.0 <= min(ends) < 950.0 < max(ends) <= 1_010.0
    assert len(set(ends)) > 4


# Whether they are alive.


def test_connection_that_was_just_used_is_not_asked(world: World) -> None:
    """hikari: half a second, in which it costs nothing to borrow."""
    pool = world.pool(check=Conn.check)
    for seconds, checks in ((0.0, 0), (0.4, 0), (0.6, 1), (0.5, 1), (100.0, 2)):
        with pool.connection():
            pass
        world.clock.advance(seconds)
        with pool.connection():
            pass
        assert world.server.made[0].checks == checks, seconds


def test_connection_is_asked_each_time_where_that_was_said(world: World) -> None:
    """`check_after_idle=0`: once for each loan, but one that was made for it."""
    pool = world.pool(check=Conn.check, check_after_idle=0)
    for checks in (0, 1, 2, 3):
        with pool.connection():
            world.clock.advance(0.125)
        world.clock.advance(0.125)
        assert sum(conn.checks for conn in world.server.made) == checks


def test_connection_is_not_asked_where_that_was_said(world: World) -> None:
    """`check_after_idle=inf`: only in the background, and after another was broken."""
    pool = filled(world.pool(check=Conn.check, check_after_idle=math.inf, check_every=None), 3)
    world.clock.advance(500.0)
    with pool.connection():
        pass
    assert not any(conn.checks for conn in world.server.made)

    break_one(pool)
    world.clock.advance(1.5)
    pool.round()
    assert len(world.server.open) == 2, "the others are not idle for longer by that"
    with pool.connection():
        pass
    assert sum(conn.checks for conn in world.server.made) == 1


def test_dead_connection_is_found_before_it_is_lent(world: World) -> None:
    """Whoever comes first after a restart gets one that works, or waits for it."""
    pool = filled(world.pool(check=Conn.check, timeout=5.0), 3)
    world.clock.advance(5.0)
    world.server.die()
    with pool.connection() as conn:
        assert conn.ask() == "pong"
    assert pool.stats().discarded >= 1


def test_who_does_not_wait_gets_what_is_there(world: World) -> None:
    """There is no time to have a connection asked, which may be better than none."""
    pool = filled(world.pool(check=Conn.check), 1)
    world.clock.advance(5.0)
    pool.crew.at_once = False
    assert pool.getconn(timeout=0).number == 0
    assert pool.crew.waiting_for(Errand.CHECK) == 0


def test_check_that_hangs_is_given_up(world: World) -> None:
    """Its connection is cut, the place is free, and who waits gets another."""
    pool = filled(world.pool(check=Conn.check, check_timeout=2.0, timeout=10.0, max_size=1), 1)
    world.clock.advance(5.0)
    pool.crew.at_once = False

    def others_work() -> None:
        pool.crew.do(Errand.CONNECT, Errand.CUT)

    world.meanwhile = [lambda: None, lambda: None, lambda: None, others_work, others_work]
    conn = pool.getconn()
    assert conn.number == 1
    assert world.server.made[0].cut
    assert pool.stats().discarded == 1
    assert world.of(ConnectionDiscarded)[0].reason == "no answer after 2 s"
    world.server.made[0].is_dead = False
    pool.crew.do()  # it answers after all
    pool.round()
    pool.crew.do()
    assert pool.stats().size == 1
    assert world.server.made[0].closed == 1


def test_idle_ones_are_asked_now_and_then(world: World) -> None:
    """A server that ended them is noticed, and they are replaced, unasked for."""
    pool = filled(world.pool(check=Conn.check, check_every=30.0, min_size=2), 2)
    pass_time(world, pool, 29.0)
    assert not any(conn.checks for conn in world.server.made)
    pass_time(world, pool, 2.0)
    assert [conn.checks for conn in world.server.made] == [1, 1]
    world.server.die()
    pass_time(world, pool, 31.0)
    assert len(world.server.made) == 4
    assert pool.stats().idle == 2


def test_nobody_is_asked_where_nothing_is_known(world: World) -> None:
    """Without a check, and of a kind that has none: it is lent as it is."""
    pool = filled(world.pool(check_after_idle=0), 1)
    world.clock.advance(100.0)
    pool.round()
    assert pool.getconn(timeout=0).number == 0


# After one was broken.


def test_others_are_suspect_after_one_was_broken(world: World) -> None:
    """hikari#1667: a failover broke them all; the next ones are asked, though they were just used."""
    pool = filled(world.pool(check=Conn.check, max_size=5), 5)
    world.server.die()
    break_one(pool)
    for _ in range(5):
        with pool.connection() as conn:
            assert conn.ask() == "pong"
    assert all(conn.closed for conn in world.server.made[:5])


def test_suspects_that_answer_are_lent_again(world: World) -> None:
    """One that was broken by itself does not cost the others."""
    pool = filled(world.pool(check=Conn.check, max_size=5), 5)
    break_one(pool)
    held = [pool.getconn() for _ in range(4)]
    assert sorted(conn.number for conn in held) == [1, 2, 3, 4]
    assert [conn.checks for conn in world.server.made] == [0, 1, 1, 1, 1]
    assert pool.stats().discarded == 1


def test_suspects_are_asked_two_at_a_time(world: World) -> None:
    """A server that is just back gets no storm of checks, by callers or by the round."""
    pool = filled(world.pool(check=Conn.check, max_size=20, check_every=1.0), 20)
    pool.crew.at_once = False
    break_one(pool)
    for _ in range(5):
        with pytest.raises(RejectedError):
            pool.getconn(timeout=0)
    assert pool.crew.waiting_for(Errand.CHECK) <= 2
    world.clock.advance(1.0)
    pool.round()
    assert pool.crew.waiting_for(Errand.CHECK) <= 2
    most = 0
    while pool.crew.pending:
        pool.crew.do_one()
        pool.round()
        most = max(most, pool.crew.waiting_for(Errand.CHECK))
        if most and not pool.crew.waiting_for(Errand.CHECK):
            break
    assert most <= 2


def test_rest_is_given_up_unasked_when_two_are_dead(world: World) -> None:
    """Nobody waits for eighteen checks to fail, each in its own time."""
    pool = filled(world.pool(check=Conn.check, max_size=20), 20)
    world.server.die()
    break_one(pool)
    with pool.connection() as conn:
        assert conn.ask()
    assert sum(one.checks for one in world.server.made) <= 3
    assert all(one.closed for one in world.server.made[:20])
    assert pool.stats().discarded == 20


def test_what_was_made_since_is_above_suspicion(world: World) -> None:
    """The dead of the last failover say nothing about those of today."""
    pool = filled(world.pool(check=Conn.check, max_size=6), 3)
    world.server.die()
    break_one(pool)
    with pool.connection():
        pass
    filled(pool, 6)
    before = {conn.number for conn in world.server.open}
    held = [pool.getconn() for _ in range(2)]
    for conn in held:
        pool.core.give_back(pool._token_of(conn), LostError())
    assert len({conn.number for conn in world.server.open} & before) == 4


def test_reset_that_fails_casts_no_suspicion(world: World) -> None:
    """What a borrower has made of its connection says nothing about those of others."""
    pool = filled(world.pool(check=Conn.check, reset=Conn.reset, max_size=3), 3)
    with pool.connection() as conn:
        pool.unwrap(conn).is_dead = True
    held = [pool.getconn() for _ in range(2)]
    assert [conn.number for conn in held] == [1, 2]
    assert [conn.checks for conn in world.server.made] == [0, 0, 0]
    assert pool.stats().discarded == 1


# The clock.


def test_clock_that_leaps_loses_nothing(world: World) -> None:
    """hikari#679, #2290: a suspended machine finds its connections too old, and those lent reported once."""
    pool = filled(world.pool(min_size=1, check=Conn.check), 3)
    conn: Any = pool.getconn()
    world.clock.advance(1e5)
    pool.round()
    assert pool.stats().leaks == 1
    assert pool.stats().used == 1
    assert conn.ask() == "pong"
    pool.putconn(conn)
    with pool.connection() as again:
        assert again.ask() == "pong"
    assert all(one.closed for one in world.server.made[:3])


def test_round_of_a_pool_that_nobody_uses_does_nothing(world: World) -> None:
    """It is made at import, in a process that may fork."""
    pool = world.pool(min_size=3)
    for _ in range(5):
        pool.round()
        world.clock.advance(60.0)
    assert world.server.attempts == 0
