"""Which pool a read goes to, and which one next; no waiting, and no connection is touched.

Concurrency: what all readers look at (`up`, `due`) is replaced as a whole when a breaker changes. Whoever
looks at an old one is corrected by the breaker, which decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from math import inf
from random import random
from typing import Any, Final, cast

from ...engine.deadline import time_left
from ...engine.fork import renew_after_fork
from ...engine.waiting import TaskWaiter, ThreadWaiter
from ...engine.window import Tally
from ...errors import (
    BulkheadFullError,
    CircuitOpenError,
    PoolClosedError,
    PoolUnavailableError,
    RejectedError,
)
from ...events import error_text
from ...policies.bulkhead.line import Turn
from ...policies.circuit_breaker.breaker import CircuitBreaker
from ...policies.circuit_breaker.states import Probe
from ...typing import Clock
from ..drivers.base import evidence, is_named
from ..drivers.dbapi import sqlstate_of
from ..front import Front
from .nodes import PATIENCE, Node, Primary, Replica
from .stats import ReplicaSetStats, ReplicaStats

__all__ = ["Counts", "Routing", "Trip", "choose"]

_DRAIN_EVERY: Final = 1.0  # seconds at least between two times that the primary's connections are replaced

# What a server says that is no primary any more: PostgreSQL's state, MySQL's codes, redis-py's class.
_READ_ONLY_STATE: Final = "25006"
_READ_ONLY_CODE: Final = 1836
_PREVENTED_BY_OPTION: Final = 1290
_READ_ONLY_ERROR: Final = "ReadOnlyError"


class Counts:
    """What is counted of reads that did not go the usual way, and of writes that went wrong."""

    def __init__(self) -> None:
        self.failovers: Final = Tally()
        self.on_primary: Final = Tally()
        self.pinned: Final = Tally()
        self.refused: Final = Tally()
        self.demotions: Final = Tally()


class Routing:
    """Knows the pools of a replica set, which of them can be read from, and who has just written."""

    def __init__(
        self,
        name: str,
        primary: Front[Any, Any],
        replicas: Sequence[tuple[Front[Any, Any], CircuitBreaker]],
        *,
        timeout: float,
        sticky: float,
        share: float | None,
        clock: Clock,
    ) -> None:
        self.name: Final = name
        self.primary: Final = primary
        self.timeout: Final = timeout
        self.clock: Final = clock
        self.counts: Final = Counts()
        self.home: Final = Primary(primary, None)
        """The primary, for those that have just written."""
        self.fallback: Final = None if share is None else Primary(primary, share if replicas else None)
        """The primary, for those that no replica can serve. None: it is not there for these."""
        self._begin: Callable[[], None] | None = None
        self._to_begin: Callable[[], None] | None = None
        self._sticky = sticky
        # One for each set, since a context remembers for which of them it wrote. They are few.
        self._pinned_until: ContextVar[float] = ContextVar("resilient_pinned_until", default=0.0)
        self._lock = threading.RLock()  # re-entrant: a signal handler may read too
        self._drained_at = -inf
        # Those that are read from, and those that are not: in one step, so that no interrupt loses anybody.
        self._sides: tuple[tuple[Replica, ...], tuple[Replica, ...]] = ((), ())
        self._due = -inf  # when one of those that are not may be tried again
        self.replicas: tuple[Replica, ...] = ()
        self.replicas = tuple(Replica(pool, breaker, clock, self.sort) for pool, breaker in replicas)
        self.sort()
        renew_after_fork(self)

    # The usual way.

    def pick(self) -> Replica | None:
        """Return the replica to read from; None if there is more to be thought about."""
        until = self._pinned_until.get()
        if until and self.clock() < until:
            return None
        if self._due < inf and self.clock() >= self._due:
            return None
        return choose(self._sides[0])

    # What is known of the pools.

    @property
    def up(self) -> tuple[Replica, ...]:
        """The replicas that are read from."""
        return self._sides[0]

    @property
    def down(self) -> tuple[Replica, ...]:
        """The others."""
        return self._sides[1]

    def sort(self) -> None:
        """Tell the replicas that can be read from from the others; to be called when one has changed."""
        with self._lock:
            self._due = -inf  # if an interrupt comes before the end, the next read will `review`
            up = tuple(replica for replica in self.replicas if replica.is_up)
            self._sides = up, tuple(replica for replica in self.replicas if replica not in up)
            self.look_ahead()

    def look_ahead(self) -> None:
        """Find out when one of those that are down may be tried again."""
        with self._lock:
            times = (replica.retry_at for replica in self.down if not replica.stock.closed)
            self._due = min(times, default=inf) if self._to_begin is None else -inf

    def review(self) -> None:
        """Begin what goes on in the background, and see whether anything was missed: events can be."""
        begin, self._to_begin = self._to_begin, None
        if begin is not None:
            begin()
        if all(replica.is_up for replica in self.up) and not any(replica.is_up for replica in self.down):
            self.look_ahead()
        else:
            self.sort()

    def watch(self, begin: Callable[[], None] | None) -> None:
        """Have *begin* called with the first read, in each process; None: nothing."""
        self._begin = self._to_begin = begin
        self.look_ahead()

    # Who has written.

    @property
    def is_pinned(self) -> bool:
        """Whether this context has just written."""
        return self.clock() < self._pinned_until.get()

    def wrote(self, exc: BaseException | None = None) -> None:
        """Note that this context writes, or has written and that this ended with *exc*."""
        if self._sticky:
            self._pinned_until.set(self.clock() + self._sticky)
        if exc is not None and any(_is_read_only(one) for one in evidence(exc)):
            self._demoted()

    def _demoted(self) -> None:
        """Have the primary's connections replaced: they lead to a server that is no primary any more."""
        with self._lock:
            now = self.clock()
            if now < self._drained_at + _DRAIN_EVERY:
                return
            self._drained_at = now
        next(self.counts.demotions.ticker)
        self.primary.drain()

    # What there is to see.

    def stats(self) -> ReplicaSetStats:
        """Return what was counted, and how the pools do."""
        counts = self.counts
        return ReplicaSetStats(
            primary=self.primary.stats(),
            replicas=tuple(
                ReplicaStats(one.pool.name, one.lag, one.breaker.stats(), one.pool.stats())
                for one in self.replicas
            ),
            failovers=counts.failovers.read(),
            on_primary=counts.on_primary.read(),
            pinned=counts.pinned.read(),
            refused=counts.refused.read(),
            demotions=counts.demotions.read(),
        )

    def after_fork(self) -> None:
        """Free the lock, whose holder may not exist in this process, and begin anew in the background."""
        self._lock = threading.RLock()
        self._to_begin = self._begin
        self.look_ahead()


class Trip:
    """The way of one read from pool to pool, until one has a connection; all within one timeout.

    Iterated, it goes to one after the other. `node` is where it has come to, `ticket` what let it in there,
    and `seconds` how long it may wait for a connection. If there is a `turn`, that comes first. What came of
    it is told by `arrived` or by `goes_on`.

    Args:
        routing: knows the way.
        timeout: seconds, for all of it.
        node: the first pool, if the read has been let in there.
        ticket: by what.
        waiter: makes what it waits with.
    """

    __slots__ = (
        "_has_missed",
        "_last",
        "_routing",
        "_said",
        "_since",
        "_tried",
        "_until",
        "_waiter",
        "node",
        "seconds",
        "ticket",
        "turn",
    )

    def __init__(
        self,
        routing: Routing,
        timeout: float,
        node: Node | None,
        ticket: Any,
        waiter: Callable[[], ThreadWaiter | TaskWaiter],
    ) -> None:
        left = time_left()
        self._routing = routing
        self._since = routing.clock()
        self._until = self._since + (timeout if left is None else min(timeout, left))
        self._tried: list[Node] = []
        self._said: list[str] = []  # what came of each try; not the exceptions, which lead back here
        self._last: Exception | None = None  # of those that tell of a pool which had no connection
        self._has_missed = False  # there was such a pool
        self.node = node or routing.home
        self.ticket = ticket
        self.turn: Turn | None = None
        self.seconds = 0.0
        self._waiter = waiter

    def __iter__(self) -> Iterator[Trip]:
        """Go from pool to pool.

        Raises:
            RejectedError: none had a connection.
            PoolClosedError: the pools are closed.
        """
        if self.ticket is not None:
            yield self._at(self.node)
        for node in self._nodes():
            try:
                self.ticket = node.begin(self._waiter)
            except RejectedError as refusal:
                self._tried.append(node)
                self._said.append(f"{node.pool.name}: {error_text(refusal)}")
                if isinstance(node, Replica) and isinstance(refusal, CircuitOpenError):
                    node.refused(refusal)
                    self._routing.look_ahead()
            else:
                yield self._at(node)
        next(self._routing.counts.refused.ticker)
        raise self._failure()

    def wait(self) -> None:
        """Wait for the `turn`, in a thread."""
        self._have_turn(cast("Primary", self.node).slots.wait(self._turn()))

    async def await_(self) -> None:
        """Wait for the `turn`, in a task."""
        self._have_turn(await cast("Primary", self.node).slots.await_(self._turn()))

    def arrived(self) -> None:
        """Note that there was a connection."""
        counts, node = self._routing.counts, self.node
        self._last = None
        if self._has_missed:
            next(counts.failovers.ticker)
        if node is self._routing.home:
            next(counts.pinned.ticker)
        elif node is self._routing.fallback:
            next(counts.on_primary.ticker)

    def goes_on(self, exc: BaseException) -> bool:
        """Note that there was none, because of *exc*; return whether that is a reason to look elsewhere."""
        self.node.failed(self.ticket, exc, self._routing.clock() - self._since)
        if not isinstance(exc, RejectedError | PoolClosedError):
            return False
        self._said.append(f"{self.node.pool.name}: {error_text(exc)}")
        if isinstance(exc, BulkheadFullError):  # it has not even come to the primary
            return True
        self._has_missed = True
        self._last = exc
        return True

    @property
    def pool(self) -> Any:
        """The pool of `node`, of either kind."""
        return self.node.pool

    def _at(self, node: Node) -> Trip:
        self._tried.append(node)
        self.node = node
        self._since = now = self._routing.clock()
        if isinstance(self.ticket, Turn):
            self.turn, self.ticket = self.ticket, None
        # Each gets its part of the time, so that one that does not answer leaves some for the others.
        self.seconds = max(0.0, self._until - now) / (1 + self._ways_left)
        if isinstance(self.ticket, Probe):
            self.seconds = min(self.seconds, PATIENCE)
        return self

    def _turn(self) -> Turn:
        turn, self.turn = cast("Turn", self.turn), None
        turn.until = turn.since + self.seconds  # on the clock of the slots
        return turn

    def _have_turn(self, ticket: Any) -> None:
        self.ticket = ticket
        self._since = self._routing.clock()
        self.seconds = max(0.0, self._until - self._since)

    def _nodes(self) -> Iterator[Node]:
        routing = self._routing
        routing.review()
        is_pinned = routing.is_pinned
        if is_pinned:
            yield routing.home
        now = routing.clock()
        yield from [one for one in routing.down if now >= one.retry_at and not one.stock.closed]
        while (replica := choose(self._untried)) is not None:
            yield replica
        if routing.fallback is not None and not is_pinned:
            yield routing.fallback

    @property
    def _untried(self) -> Sequence[Replica]:
        return [replica for replica in self._routing.up if replica not in self._tried]

    @property
    def _ways_left(self) -> int:
        """How many pools there are to try after this one."""
        primaries = {self._routing.home, self._routing.fallback}
        return len(self._untried) + (self._routing.fallback is not None and primaries.isdisjoint(self._tried))

    def _failure(self) -> Exception:
        """Return why there is no connection: what the last pool said, or else why it has not been to any."""
        last, self._last = self._last, None
        if last is not None:
            for line in self._said:
                last.add_note(line)
            return last
        routing = self._routing
        if all(replica.stock.closed for replica in routing.replicas):
            return PoolClosedError(f"replica set {routing.name!r} is closed", policy=routing.name)
        self._said += [f"{one.pool.name}: {one.state}" for one in routing.down if one not in self._tried]
        message = f"replica set {routing.name!r} has nobody to read from: {'; '.join(self._said)}"
        wait = max(0.0, min(one.retry_at for one in routing.replicas) - routing.clock())
        return PoolUnavailableError(message, policy=routing.name, retry_after=wait)


def choose(replicas: Sequence[Replica]) -> Replica | None:
    """Return the less busy of two of *replicas*, which are chosen by chance.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    number = len(replicas)
    if number < 2:  # noqa: PLR2004 - two are a choice
        return replicas[0] if number else None
    one = int(random() * number)
    other = int(random() * (number - 1))
    first, second = replicas[one], replicas[other + (other >= one)]
    if first.alert or second.alert:
        return second if second.load < first.load else first
    # Their loads, in line: to call for them would cost more than all the rest.
    busy = len(first.roster) - len(first.idle)
    if busy and (len(second.roster) - len(second.idle)) * first.stock.max_size < busy * second.stock.max_size:
        return second
    return first


def _is_read_only(exc: BaseException) -> bool:
    """Tell whether *exc* says that the server takes no writes."""
    code = exc.args[0] if exc.args else None
    return (
        sqlstate_of(exc) == _READ_ONLY_STATE
        or is_named(exc, _READ_ONLY_ERROR)
        or code == _READ_ONLY_CODE
        or (code == _PREVENTED_BY_OPTION and "read-only" in str(exc))
    )
