"""A pool's core, step by step at random, against a model that is too simple to be wrong.

The model is a list of callers, in the order in which they came, and what is known of each. Connections say
for themselves whether they are open. After each step every connection is looked for in all the places where
one can be.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.pool.model import Books, Caller, Interrupt, Waiter
from tests.pool.support import Conn, LostError, World, conn_of

from resilient.errors import (
    ConnectionReclaimedError,
    ConnectionReturnedError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    PoolUnavailableError,
    RejectedError,
)
from resilient.pool.line import Turn
from resilient.pool.members import Errand, Member, Token

# Exact in binary, so that no sum is rounded.
PATIENCE = (4.0, 0.0, 0.25, 1.0, 16.0)
SECONDS = (0.25, 0.125, 0.5, 1.0, 2.0, 4.0, 16.0)
SIZES = st.integers(1, 4)
T = TypeVar("T")

ANY = st.integers(0, 1_000)
_ENOUGH = 200  # turns: more than there ever wait
_LOOKS = 3  # whoever looks for lost tokens makes some, and drops them


# What may happen, and how often.
_WEIGHTS = {
    "arrive": 6,
    "come_to": 6,
    "interrupt": 2,
    "vanish": 1,
    "use": 2,
    "returns": 6,
    "fails": 2,
    "forgets": 2,
    "chore_succeeds": 4,
    "chores_succeed": 3,
    "chore_begins": 2,
    "chore_ends": 2,
    "chore_fails": 2,
    "chore_is_lost": 1,
    "connection_dies": 1,
    "pass_time": 5,
    "attend": 2,
    "visit": 3,
    "resize": 1,
    "drain": 1,
    "close": 1,
    "quieten": 1,
}
MOVES = tuple(name for name, weight in _WEIGHTS.items() for _ in range(weight))


def one_of(options: Sequence[T], which: int) -> T:
    """Return one of *options*."""
    return options[which % len(options)]


class PoolMachine(Books, RuleBasedStateMachine):
    """Do what callers, the server, the clock and the operator may do, in any order."""

    @initialize(
        min_size=st.integers(0, 2),
        max_size=SIZES,
        max_waiting=st.sampled_from([None, None, 0, 1, 3]),
        check_after_idle=st.sampled_from([0.0, 0.5, 0.5, math.inf]),
        checks=st.booleans(),
        resets=st.booleans(),
        leak_after=st.sampled_from([None, 4.0]),
        max_hold=st.sampled_from([None, None, 8.0]),
    )
    def start(
        self,
        *,
        min_size: int,
        max_size: int,
        max_waiting: int | None,
        check_after_idle: float,
        checks: bool,
        resets: bool,
        leak_after: float | None,
        max_hold: float | None,
    ) -> None:
        world = World()
        pool = world.pool(
            min_size=min(min_size, max_size),
            max_size=max_size,
            max_waiting=max_waiting,
            check=Conn.check if checks else None,
            reset=Conn.reset if resets else None,
            broken=LostError,
            check_after_idle=check_after_idle,
            check_every=4.0,
            max_idle=32.0,
            max_lifetime=64.0,
            check_timeout=2.0,
            connect_timeout=2.0,
            leak_after=leak_after,
            max_hold=max_hold,
            on_leak="report" if max_hold is None else "reclaim",
        )
        self.open_books(world, pool)
        self.crew.at_once = False

    @rule(move=st.sampled_from(MOVES), which=ANY)
    def step(self, move: str, which: int) -> None:
        """Make one of the moves below. One rule, for of many some would be left out each time."""
        getattr(self, move)(which)

    # Callers.

    def arrive(self, which: int) -> None:
        """Somebody wants a connection, or some at once."""
        for _ in range(one_of((1, 1, 3, 6), which // 5)):
            self.want(one_of(PATIENCE, which))

    def want(self, timeout: float) -> None:
        now = self.clock()
        ahead = self.alive()
        best = self.best()
        caller = Caller(since=now, until=now + timeout)
        conn = self.pool.core.take()
        if conn is None:
            found = self.begin(timeout, caller)
            if found is None:
                return
            conn = self.pool.core.lend(found, now, 1)
            del found
        assert all(self.is_over(other) for other in ahead), "overtaken"
        if best is not None:
            assert self.pool.unwrap(conn).number == best
        self.lent(caller, conn)

    def begin(self, timeout: float, caller: Caller) -> Token | None:
        """Take the long way; return what is there, and note who waits or is refused."""
        waiting, best = len(self.line), self.best()
        caller.waiter = waiter = Waiter()
        try:
            found = self.pool.core.begin(timeout, lambda: waiter)
        except (PoolClosedError, RejectedError) as error:
            assert best is None
            self.was_refused(error, caller, waiting)
            return None
        if isinstance(found, Turn):
            assert timeout > 0.0
            caller.turn = found
            self.line.append(caller)
            return None
        return found

    def was_refused(self, error: Exception, caller: Caller, waiting: int) -> None:
        """Judge whether *error* is right, and count it."""
        assert isinstance(error, PoolClosedError) == self.is_shut
        match error:
            case PoolClosedError():
                assert str(error) == "pool 'orders' is closed"
            case PoolUnavailableError():
                assert error.last_failure is not None
                self.counts["refused"] += 1
            case PoolFullError():
                assert error.waiting is not None
                assert (self.pool.core.rules.max_waiting or 0) <= error.waiting <= waiting
                self.counts["refused"] += 1
            case PoolTimeoutError():
                assert self.clock() >= caller.until
                assert error.used == len(self.held()) + self.orphans()
                assert error.size == len(self.pool.core.stock.roster)
                self.counts["timeouts"] += 1
            case _:
                raise AssertionError(f"what is {error!r}?")

    def come_to(self, which: int) -> None:
        """Somebody whose wait is over goes on."""
        over = [caller for caller in self.line if self.is_over(caller)]
        if over:
            self.conclude(one_of(over, which))

    def conclude(self, caller: Caller) -> None:
        assert caller.turn is not None
        self.line.remove(caller)
        now = self.clock()
        is_served = caller.turn.token is not None
        self.counts["waited"] += 1
        self.wait_seconds += now - caller.since
        try:
            token = self.pool.core.wait(caller.turn)
        except (PoolClosedError, RejectedError) as error:
            assert not is_served or self.is_shut
            self.was_refused(error, caller, 0)
        else:
            assert is_served
            try:
                conn = self.pool.core.lend(token, now, 1)
            except ConnectionReclaimedError:
                assert self.is_shut
                return
            del token
            self.lent(caller, conn)

    def interrupt(self, which: int) -> None:
        """Somebody who waits is interrupted, maybe after it was given a connection."""
        waiting = [caller for caller in self.line if not self.is_over(caller)]
        if not waiting:
            return
        caller = one_of(waiting, which)
        meanwhile = one_of(("nothing", "attend", "chores", "return"), which // 5)
        assert caller.waiter is not None
        assert caller.turn is not None

        def happen() -> None:
            if meanwhile == "attend":
                self.pool.core.attend()
            elif meanwhile == "chores":
                self.crew.do(Errand.CONNECT, Errand.CHECK)
            elif meanwhile == "return" and self.held():
                self.give_back(self.held()[0])

        caller.waiter.meanwhile.append(happen)
        try:
            self.pool.core.wait(caller.turn)
        except Interrupt:
            pass
        else:
            raise AssertionError("the interrupt was lost")
        finally:
            caller.waiter.meanwhile.clear()
        self.line.remove(caller)
        self.counts["waited"] += 1
        self.wait_seconds += self.clock() - caller.since
        if caller.turn.error is not None:
            self.counts["refused"] += isinstance(caller.turn.error, PoolUnavailableError)

    def vanish(self, which: int) -> None:
        """Somebody who waits is gone, without a word: interrupted before it began to."""
        if self.line:
            caller = self.line.pop(which % len(self.line))
            assert caller.turn is not None
            self.counts["refused"] += isinstance(caller.turn.error, PoolUnavailableError)

    # Borrowers.

    def use(self, which: int) -> None:
        """Somebody uses a connection, which answers to nobody else."""
        if self.holders:
            caller = one_of(self.holders, which)
            if caller.is_reclaimed:
                self.refuses(caller.conn)
            elif not self.server.made[caller.number].is_dead:
                assert caller.conn.ask(caller) is caller

    def returns(self, which: int) -> None:
        """Somebody gives a connection back in good order."""
        if self.holders:
            self.give_back(one_of(self.holders, which))

    def give_back(self, caller: Caller) -> None:
        conn = caller.conn
        self.ends(caller)
        try:
            self.pool.putconn(conn)
        except ConnectionReclaimedError:
            assert caller.is_reclaimed
        else:
            assert not caller.is_reclaimed
        self.is_refused_twice(conn)

    def fails(self, which: int) -> None:
        """Somebody leaves its block by an exception."""
        kind = one_of((LostError, ValueError, Interrupt), which // 5)
        if not self.holders:
            return
        caller = one_of(self.holders, which)
        conn = caller.conn
        number, open_before = caller.number, len(self.server.open)
        self.ends(caller)
        self.pool._finish(self.pool._token_of(conn), kind("in the block"))
        if kind is not ValueError and not caller.is_reclaimed:
            self.counts["discarded"] += 1
            assert number not in {self.number_of(token) for token in self.pool.core.stock.idle}
        assert len(self.server.open) == open_before, "closing is not done here"
        self.is_refused_twice(conn)

    def forgets(self, which: int) -> None:
        """Somebody forgets a connection; maybe it has kept something that was made of it."""
        if self.holders:
            caller = one_of(self.holders, which)
            if which % 3 and not caller.is_reclaimed:
                self.kept.append(caller.conn.ask)
            self.counts["forgotten"] += not caller.is_reclaimed
            self.ends(caller)
            caller.conn = None

    def is_refused_twice(self, conn: Any) -> None:
        for again in (self.pool.putconn, self.pool.unwrap, lambda conn: conn.ask()):
            try:
                again(conn)
            except ConnectionReturnedError:
                continue
            raise AssertionError("was not refused")

    def refuses(self, conn: Any) -> None:
        try:
            conn.ask()
        except ConnectionReclaimedError:
            return
        raise AssertionError("was not refused")

    # The server, and those who talk to it.

    def chore_succeeds(self, which: int) -> None:
        """A chore is done."""
        if self.crew.pending:
            self.crew.do_one(which % len(self.crew.pending))

    def chores_succeed(self, _: int) -> None:
        """All are done, and what comes of them."""
        self.crew.do()

    def chore_begins(self, which: int) -> None:
        """A chore is begun; the answer takes its time."""
        if self.crew.pending:
            self.crew.begin_one(which % len(self.crew.pending))

    def chore_ends(self, which: int) -> None:
        """There is an answer."""
        if self.crew.under_way:
            self.crew.end_one(which % len(self.crew.under_way))

    def chore_fails(self, which: int) -> None:
        """A chore is tried; nobody answers."""
        if not self.crew.pending:
            return
        place = which % len(self.crew.pending)
        _, chore = self.crew.pending[place]
        conn, errand = conn_of(chore.token), chore.errand
        del chore
        if conn is not None:
            conn.is_dead = True
        del conn
        if errand is Errand.CONNECT:
            self.server.failure = LostError("nobody answers")
        self.crew.do_one(place)
        self.server.failure = None

    def chore_is_lost(self, which: int) -> None:
        """Whoever does a chore vanishes with it."""
        if self.crew.pending:
            place = which % len(self.crew.pending)
            # What the pool has given up is not its any more: nobody looks for that.
            if isinstance(self.crew.pending[place][1].token.member, Member):
                self.crew.drop(place)

    def connection_dies(self, which: int) -> None:
        """The server ends a connection."""
        if self.server.open:
            one_of(self.server.open, which).is_dead = True

    # Time, and operators.

    def pass_time(self, which: int) -> None:
        """The clock goes on."""
        self.clock.advance(one_of(SECONDS, which))

    def attend(self, _: int) -> None:
        """Somebody looks."""
        self.pool.core.attend()

    def visit(self, _: int) -> None:
        """The round is made."""
        self.pool.round()
        self.notice()
        limit = self.pool.core.rules.max_hold
        assert limit is None or all(self.clock() - caller.since < limit for caller in self.held())

    def resize(self, which: int) -> None:
        """The operator wants another size."""
        max_size, min_size = 1 + which % 4, which % 3
        self.max_size = max_size
        self.ceiling = max(max_size, self.ceiling)
        self.pool.resize(max_size, min(min_size, max_size))

    def drain(self, _: int) -> None:
        """The operator wants other connections."""
        before = {member.conn for member in self.pool.core.stock.roster if member.conn is not None}
        self.pool.drain()
        idle = {self.number_of(token) for token in self.pool.core.stock.idle}
        assert not idle & {conn.number for conn in before}

    def close(self, which: int) -> None:
        """The operator wants an end, in the end."""
        if self.counts["lent"] > 5:
            self.is_shut = True
            self.pool.core.shut()
            assert all(self.is_over(caller) for caller in self.line)
            if which % 2:
                self.pool.core.cut()
                assert not self.pool.borrowers()

    def quieten(self, _: int) -> None:
        """Whoever has a connection returns it, the server answers, and everybody is served."""
        if self.is_shut:
            return
        for caller in list(self.holders):
            self.give_back(caller)
        for _ in range(_ENOUGH):
            self.crew.do()
            while self.crew.under_way:
                self.crew.end_one(0)
            for caller in [caller for caller in self.line if self.is_over(caller)]:
                self.conclude(caller)
            for caller in list(self.holders):
                self.give_back(caller)
            if not self.line and not self.crew.pending:
                break
            self.pool.core.attend()
        assert not self.line, "somebody waits though all is there"
        self.pool.round()
        self.crew.do()
        stats = self.pool.stats()
        assert stats.size == stats.idle <= self.max_size
        if self.counts["lent"]:
            assert stats.idle >= stats.min_size
        assert {conn.number for conn in self.server.open} == {
            self.number_of(token) for token in self.pool.core.stock.idle
        }

    # What holds after each step.

    @invariant()
    def all_is_well(self) -> None:
        """Whatever was done."""
        for _ in range(_LOOKS):
            if self.pool.core.stock.roster.unsettled:
                self.pool.core.attend()
        self.first_come_first_served()
        self.every_connection_is_in_one_place()
        self.there_are_not_too_many()
        self.nobody_shares()
        self.counters_agree()

    def teardown(self) -> None:
        """In the end everybody is told, and every connection is closed."""
        if not hasattr(self, "pool"):
            return
        self.kept.clear()
        self.is_shut = True
        self.pool.core.shut()
        for caller in list(self.line):
            self.conclude(caller)
        for caller in list(self.holders):
            self.give_back(caller)
        gc.collect(0)
        while self.crew.under_way:
            self.crew.end_one(0)
        self.crew.do()  # and nobody looks any more
        assert not self.server.open
        assert self.pool.stats().size == 0
        assert all(conn.closed for conn in self.server.made)


class TestPoolModel(PoolMachine.TestCase):  # type: ignore[valid-type, misc]
    """Any sequence of steps leaves every connection in one place, and everybody in turn."""

    settings = settings(report_multiple_bugs=False, max_examples=4 * settings().max_examples)

    def setUp(self) -> None:
        # A line for each leak, and there are thousands.
        logging.getLogger("resilient").disabled = True

    def tearDown(self) -> None:
        logging.getLogger("resilient").disabled = False
