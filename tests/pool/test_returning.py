"""Connections that come back: in good order, broken, in a transaction, twice, too late."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from tests.pool.support import Conn, LostError, World

from resilient.errors import (
    ConnectionReclaimedError,
    ConnectionReturnedError,
)
from resilient.events import ConnectionDiscarded
from resilient.pool.members import Errand


class Session(Conn):
    """A connection of a database: something on it may be open, until it is committed or rolled back."""

    in_transaction = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.log: list[str] = []
        self.refusal: Exception | None = None

    def ask(self, what: object = "pong") -> object:
        self.in_transaction = True
        return super().ask(what)

    def cursor(self) -> None:
        """Be known as a database's."""

    def commit(self) -> None:
        self._end("commit")
        if self.refusal is not None:
            raise self.refusal

    def rollback(self) -> None:
        self._end("rollback")

    def _end(self, how: str) -> None:
        super().ask()
        self.in_transaction = False
        self.log.append(how)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def leave(pool: Any, error: BaseException | None, before: Callable[[Any], object] = lambda _: None) -> None:
    """Leave a block by *error*, having done something with the connection."""
    with pool.connection() as conn:
        before(conn)
        if error is not None:
            raise error


def test_double_return_is_an_error(world: World) -> None:
    """A second return would lend one connection to two."""
    pool = world.pool()
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError, match="'orders' was returned after it had been returned"):
        pool.putconn(conn)
    block = pool.connection()
    pool.putconn(block.__enter__())
    with pytest.raises(ConnectionReturnedError):
        block.__exit__(None, None, None)
    assert pool.stats().idle == pool.stats().size == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit, ValueError])
def test_failure_of_a_block_is_not_hidden(kind: type[BaseException], world: World) -> None:
    """Though its connection had been returned by hand."""
    pool = world.pool()
    with pytest.raises(kind):
        leave(pool, kind("in the block"), pool.putconn)
    assert pool.stats().used == 0


def test_broken_connection_is_replaced(world: World) -> None:
    """Whoever comes next gets another one; the broken one is closed, and it is told why."""
    pool = world.pool(max_size=1)
    world.clock.advance(1.0)
    with pytest.raises(LostError):
        leave(pool, None, lambda conn: [world.server.die(), conn.ask()])

    with pool.connection() as conn:
        assert conn.number == 1
    assert world.server.made[0].closed == 1
    assert pool.stats().discarded == pool.stats().closed == 1
    (event,) = world.of(ConnectionDiscarded)
    assert event.reason == "LostError: connection 0 is lost"


def test_user_says_what_else_breaks_a_connection(world: World) -> None:
    """Beside what is known; a predicate that fails counts as yes."""
    pool = world.pool(broken=(KeyError, lambda exc: exc.args[0] == "bad"))
    numbers: list[int] = []

    def look(conn: Conn) -> None:
        numbers.append(conn.number)
        world.clock.advance(2.0)

    for error in (LookupError("fine"), KeyError("x"), ValueError("bad"), ValueError(), LostError("x"), None):
        with suppress(Exception):
            leave(pool, error, look)
    assert numbers == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_breaks_a_connection_that_cannot_tell(error: type[BaseException], world: World) -> None:
    """redis-py#2624, #2641: it may be in the middle of an answer, which the next borrower would get."""
    pool = world.pool()
    with pytest.raises(error), pool.connection():
        raise error
    with pool.connection() as conn:
        assert conn.number == 1


def test_reset_is_called_before_it_is_lent_again(world: World) -> None:
    """Not by the borrower, who does not wait for it."""
    pool = world.pool(reset=Conn.reset, max_size=1)
    pool.crew.at_once = False
    world.meanwhile = [pool.crew.do]
    conn = pool.getconn()
    made = world.server.made[0]
    pool.putconn(conn)
    assert made.resets == 0
    assert pool.crew.waiting_for(Errand.RESET) == 1
    assert pool.stats().idle == 0

    pool.crew.do()
    assert made.resets == 1
    with pool.connection() as conn:
        assert conn.number == 0


def test_connection_that_cannot_be_reset_is_replaced(world: World) -> None:
    """It is no good for anybody."""
    pool = world.pool(reset=Conn.reset)
    with pool.connection():
        world.clock.advance(1.0)
        world.server.die()
    with pool.connection() as conn:
        assert conn.number == 1
    assert world.server.made[0].closed == 1
    assert pool.stats().discarded == 1


def test_block_commits_when_it_is_left_well(world: World) -> None:
    """Rolls back when it is not; by hand, it is rolled back too."""
    world.server.kind = Session
    pool = world.pool()
    with pool.connection() as conn:
        conn.ask()
    made: Any = world.server.made[0]
    assert made.log == ["commit"]

    with pytest.raises(ValueError, match="no"):
        leave(pool, ValueError("no"), Session.ask)
    assert made.log == ["commit", "rollback"]

    conn = pool.getconn()
    conn.ask()
    pool.putconn(conn)
    assert made.log == ["commit", "rollback", "rollback"]

    with pool.connection():
        pass
    assert made.log == ["commit", "rollback", "rollback"]


def test_pool_that_does_not_commit_rolls_back(world: World) -> None:
    """Whoever wants it to last commits."""
    world.server.kind = Session
    pool = world.pool(commit=False)
    with pool.connection() as conn:
        conn.ask()
        conn.commit()  # type: ignore[attr-defined]
        conn.ask()
    made: Any = world.server.made[0]
    assert made.log == ["commit", "rollback"]


def test_commit_that_fails_is_the_callers_business(world: World) -> None:
    """A deferred constraint, say; the connection comes back, and goes on being watched.

    The caller keeps the exception, as an error tracker does: its traceback must not keep the next borrower's
    loss from being seen.
    """
    world.server.kind = Session
    pool = world.pool(max_size=1)
    conn: Any = pool.getconn()
    pool.unwrap(conn).refusal = ValueError("deferred constraint")
    pool.putconn(conn)
    with pytest.raises(ValueError, match="deferred constraint") as kept, pool.connection() as conn:
        conn.ask()
    made: Any = world.server.made[0]
    made.refusal = None
    assert pool.stats().used == 0

    pool.getconn()
    gc.collect()
    pool.round()
    assert pool.stats().collected == 1
    assert pool.stats().used == 0
    assert kept.value.__traceback__ is not None


def test_late_return_of_a_connection_that_was_taken_is_told(world: World) -> None:
    """Leaving a block well says that what was done there is lost; leaving it by an error hides nothing."""
    pool = world.pool(on_leak="reclaim", max_hold=5.0, leak_after=None)

    def hold() -> None:
        world.clock.advance(5.0)
        pool.round()

    with pytest.raises(ConnectionReclaimedError, match="what was not committed is lost"), pool.connection():
        hold()
    with pytest.raises(ValueError, match="own"):
        leave(pool, ValueError("own"), lambda _: hold())
    conn = pool.getconn()
    hold()
    with pytest.raises(ConnectionReclaimedError):
        pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError):
        pool.putconn(conn)
    assert pool.stats().reclaimed == 3
