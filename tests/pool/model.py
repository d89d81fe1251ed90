"""What a pool must look like from outside: who waits, who has what, what was counted, in plain lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from tests.pool.support import Conn, ManualCrew, Server, SteppedPool, World, conn_of

from resilient.errors import PoolUnavailableError
from resilient.events import (
    ConnectionCollected,
    ConnectionLeaked,
    ConnectionReclaimed,
    ConnectionReturnedLate,
)
from resilient.pool.borrowed import held_by
from resilient.pool.line import Turn
from resilient.pool.members import Member, Token
from resilient.testing import FakeClock


class Interrupt(BaseException):
    """Comes from outside, at any moment."""


class Waiter:
    """Somebody who waits, and is interrupted while it does."""

    def __init__(self) -> None:
        self.stranded = False
        self.woken = 0
        self.meanwhile: list[Any] = []

    def wake(self) -> None:
        self.woken += 1

    def park(self, seconds: float) -> bool:
        assert seconds > 0.0
        assert self.meanwhile, "a decided turn must not wait"
        for act in self.meanwhile:
            act()
        raise Interrupt


@dataclass(eq=False)
class Caller:
    """One caller: as the model sees it, and the real one."""

    since: float
    until: float
    turn: Turn | None = None
    waiter: Waiter | None = None
    conn: Any = None
    number: int = -1
    is_reclaimed: bool = False


class Books:
    """The callers of a pool, in the order in which they came, and what is known of each."""

    world: World
    clock: FakeClock
    server: Server
    pool: SteppedPool
    crew: ManualCrew
    ceiling: int
    max_size: int

    def open_books(self, world: World, pool: SteppedPool) -> None:
        """Begin with a pool that was never used."""
        self.world, self.clock, self.server = world, world.clock, world.server
        self.pool, self.crew = pool, pool.crew
        self.ceiling = self.max_size = pool.stats().max_size
        self.line: list[Caller] = []  # in the order in which they came
        self.holders: list[Caller] = []
        self.kept: list[Any] = []  # what was made of connections that were forgotten
        self.counts: Counter[str] = Counter()
        self.wait_seconds = 0.0
        self.is_shut = False

    # What holds after each step.

    def first_come_first_served(self) -> None:
        """Nobody is served while somebody who came before waits on."""
        waits = False
        for caller in self.line:
            turn = caller.turn
            assert turn is not None
            if turn.token is not None:
                assert not waits, "overtaken"
            if turn.decided:
                assert caller.waiter is not None
                assert caller.waiter.woken
            elif self.clock() < caller.until:
                waits = True

    def every_connection_is_in_one_place(self) -> None:
        """It is free, or lent to one, or promised to one, or there is something done with it."""
        core = self.pool.core
        assert not core.stock.roster.unsettled
        self.notice()
        tokens = [*core.stock.idle, *(chore.token for _, chore in self.crew.pending)]
        tokens += [token for token, *_ in self.crew.under_way]
        tokens += [held_by(caller.conn)[0] for caller in self.holders]
        tokens += [caller.turn.token for caller in self.line if caller.turn and caller.turn.token]
        assert len({id(token) for token in tokens}) == len(tokens), "two have one token"
        ours = [token for token in tokens if isinstance(token.member, Member)]
        members = [*core.stock.roster]
        assert Counter(id(token.member) for token in ours) == Counter(map(id, members))
        for token in ours:
            assert token.conn is cast("Member", token.member).conn
        alive = [member.conn.number for member in members if member.conn is not None]
        assert len(set(alive)) == len(alive), "one connection twice"
        # What the pool has given up is about to be closed, or held by somebody who will be told.
        ends = {self.number_of(token) for token in tokens if not isinstance(token.member, Member)}
        parted = {
            member.conn.number for member in core.stock.roster._parted.values() if member.conn is not None
        }
        for conn in self.server.open:
            assert conn.number in {*alive} | ends | parted | self.arriving(), "lost"
        # Whoever hangs in closing one may come back, when it has been given up.
        assert all(conn.closed <= 1 or conn.cut for conn in self.server.made), "closed twice"

    def there_are_not_too_many(self) -> None:
        """Never more than the most there may be; after it was lowered, never more again."""
        size = len(self.pool.core.stock.roster)
        if size > self.ceiling:
            raise AssertionError(f"{size} connections, and {self.ceiling} are the most there may be")
        self.ceiling = max(self.max_size, size)

    def nobody_shares(self) -> None:
        """No connection is in two hands, and each borrower is on the list."""
        numbers = [caller.number for caller in self.held()]
        assert len(set(numbers)) == len(numbers)
        ages = sorted((self.clock() - caller.since for caller in self.held()), reverse=True)
        told = [borrower.held_for for borrower in self.pool.borrowers()]
        orphans = self.orphans()
        assert len(told) == len(ages) + orphans
        assert orphans or told == ages

    def counters_agree(self) -> None:
        """What the pool has counted is what was seen from outside."""
        stats, roster = self.pool.stats(), self.pool.core.stock.roster
        orphans = self.orphans()
        assert stats.checkouts == self.counts["lent"]
        assert stats.waited == self.counts["waited"]
        assert stats.wait_seconds == self.wait_seconds
        assert stats.timeouts == self.counts["timeouts"]
        untold = sum(
            isinstance(caller.turn.error, PoolUnavailableError) for caller in self.line if caller.turn
        )
        assert stats.refused == self.counts["refused"] + untold
        assert stats.used == len(self.held()) + orphans
        assert stats.connects == len(self.server.made) - len(self.arriving())
        assert stats.closed == stats.connects - sum(member.conn is not None for member in roster)
        assert stats.collected == len(self.world.of(ConnectionCollected))
        assert stats.collected + orphans <= self.counts["forgotten"]
        assert stats.leaks == len(self.world.of(ConnectionLeaked))
        assert stats.reclaimed == len(self.world.of(ConnectionReclaimed))
        assert stats.reclaimed >= self.counts["reclaimed"]
        assert stats.leaked <= stats.leaks
        assert stats.discarded >= self.counts["discarded"] >= 0
        assert stats.size == len(roster)
        undecided = sum(not caller.turn.decided for caller in self.line if caller.turn)
        assert len(self.alive()) <= stats.waiting <= undecided
        assert len(self.world.of(ConnectionReturnedLate)) <= stats.leaks

    # What happens.

    def lent(self, caller: Caller, conn: Any) -> None:
        caller.conn = conn
        caller.since = self.clock()
        caller.number = self.pool.unwrap(conn).number
        assert not self.server.made[caller.number].closed, "lent though it is closed"
        self.holders.append(caller)
        self.counts["lent"] += 1

    def ends(self, caller: Caller) -> None:
        self.notice()
        self.holders.remove(caller)

    def notice(self) -> None:
        """See what the pool has taken away, as it may in any step."""
        for caller in self.held():
            if not isinstance(held_by(caller.conn)[0].member, Member):
                caller.is_reclaimed = True
                self.counts["reclaimed"] += 1

    def held(self) -> list[Caller]:
        """Return those who have a connection that was not taken away."""
        return [caller for caller in self.holders if not caller.is_reclaimed]

    def arriving(self) -> set[int]:
        """Return the connections that are made, and that the pool does not know yet."""
        return {answer.number for *_, answer in self.crew.under_way if isinstance(answer, Conn)}

    def orphans(self) -> int:
        """Return how many are lent to somebody who has been collected."""
        return sum(member.orphan for member in self.pool.core.stock.roster)

    def is_over(self, caller: Caller) -> bool:
        assert caller.turn is not None
        return caller.turn.decided or self.clock() >= caller.until

    def alive(self) -> list[Caller]:
        """Return those who wait, and would be served now."""
        return [caller for caller in self.line if not self.is_over(caller)]

    def number_of(self, token: Token) -> int:
        conn = conn_of(token)
        return -1 if conn is None else conn.number

    def best(self) -> int | None:
        """Return the connection that whoever comes now has to get, if there is one."""
        core = self.pool.core
        if self.alive() or self.is_shut or core.stock.roster.unsettled or not core.stock.idle:
            return None
        now, rules = self.clock(), core.rules
        if len(core.stock.roster) > self.max_size:
            return None
        member = core.stock.idle[-1].member
        assert isinstance(member, Member)
        if now >= member.expires or member.suspect or now - member.returned >= rules.check_after_idle:
            return None
        return None if now - member.idle_since >= rules.max_idle else member.conn.number
