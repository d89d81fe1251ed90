"""What both pools are: their settings, and all that needs no waiting."""

from __future__ import annotations

import sys
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, Generic, Literal, NoReturn, TypeVar

from ..engine import params
from ..engine.announcing import Announcing
from ..engine.clock import MONOTONIC
from ..engine.finding import Finding, Status
from ..engine.living import remember
from ..engine.matching import Matcher
from ..engine.measure import Measure
from ..errors import ConnectionReturnedError
from ..events import Announcer
from ..telemetry.connections import ConnectionCounts, of_connections
from ..typing import Clock, FailureRule, Seconds
from .borrowed import held_by, is_borrowed
from .borrowers import ALL_FRAMES, FEW_FRAMES, Borrower
from .core import Core, Crew
from .findings import Flaw, told
from .handling import Act, Handling
from .measures import of_pool
from .members import Gone, Token
from .rules import Rules
from .stats import PoolStats

__all__ = ["C", "Front"]

# Seconds without use after which a connection is asked: however few, and however many, unless it is suspect.
_ALWAYS: Final = -1.0
_NEVER: Final = sys.float_info.max

C = TypeVar("C")
R = TypeVar("R")


class Front(Announcing, Generic[C, R], metaclass=ABCMeta):
    """Base of both pools; see `ConnectionPool` for the arguments."""

    kind: ClassVar[str]
    _task_name: Callable[[], str | None] | None = None

    def __init__(
        self,
        connect: Callable[[], R],
        *,
        name: str,
        close: Act | None = None,
        check: Act | None = None,
        reset: Act | None = None,
        broken: FailureRule | None = None,
        min_size: int = 0,
        max_size: int = 10,
        timeout: Seconds = 5.0,
        max_waiting: int | None = None,
        max_idle: Seconds = 600.0,
        max_lifetime: Seconds = 1800.0,
        jitter: float = 0.1,
        check_after_idle: Seconds = 0.5,
        check_every: Seconds | None = 30.0,
        check_timeout: Seconds = 2.0,
        connect_timeout: Seconds | None = None,
        max_connecting: int = 3,
        commit: bool = True,
        leak_after: Seconds | None = 30.0,
        on_leak: Literal["report", "reclaim"] = "report",
        max_hold: Seconds | None = None,
        full_stacks: bool = False,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.announcer = Announcer()
        wait = params.seconds("timeout", timeout)
        rules = Rules(
            name=params.named("name", name),
            timeout=wait,
            max_waiting=None if max_waiting is None else params.count("max_waiting", max_waiting, least=0),
            max_idle=params.seconds("max_idle", max_idle, above=True, infinite=True),
            max_lifetime=params.seconds("max_lifetime", max_lifetime, above=True, infinite=True),
            jitter=params.ratio("jitter", jitter, zero=True),
            check_after_idle=_check_after(check_after_idle),
            check_every=params.optional_seconds("check_every", check_every),
            check_timeout=params.seconds("check_timeout", check_timeout, above=True),
            connect_timeout=_or(params.optional_seconds("connect_timeout", connect_timeout), max(wait, 1.0)),
            max_connecting=params.count("max_connecting", max_connecting),
            leak_after=params.optional_seconds("leak_after", leak_after),
            max_hold=_max_hold(on_leak, max_hold),
            depth=ALL_FRAMES if params.flag("full_stacks", full_stacks) else FEW_FRAMES,
            clock=params.callback("clock", clock),
        )
        handling = Handling(
            close=self._act("close", close),
            check=self._act("check", check),
            reset=self._act("reset", reset),
            broken=None if broken is None else Matcher("broken", broken),
            commits=params.flag("commit", commit),
        )
        low, high = _sizes(min_size, max_size)
        crew = self._make_crew(params.callback("connect", connect), rules.name, high)
        self._core = Core(
            rules, handling, crew, self.announcer, min_size=low, max_size=high, task_name=self._task_name
        )
        remember(self)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._core.rules.name

    @property
    def available(self) -> bool:
        """Whether the server is there, as far as is known."""
        return not self._core.stock.supply.is_down

    @property
    def closed(self) -> bool:
        """Whether the pool lends nothing any more."""
        return self._core.stock.closed

    def stats(self) -> PoolStats:
        """Return what the pool has counted and where it stands, as of one moment."""
        return self._core.stats()

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        stats = self.stats()
        yield from of_pool(stats)
        counts = ConnectionCounts(timeouts=stats.timeouts)
        if not self.closed:
            counts = ConnectionCounts(
                idle=stats.idle,
                used=stats.used,
                idle_max=stats.max_size,
                idle_min=stats.min_size,
                limit=stats.max_size,
                pending=stats.waiting,
                timeouts=stats.timeouts,
                leaked=stats.leaked,
            )
        durations = self._core.stock.timings.by_name()
        yield from of_connections(counts, {what: one.histogram() for what, one in durations.items()})

    def finding(self) -> Finding:
        """Return how it stands, for health.

        Failing: it is closed, or its server is known to be down and no connection is left. A warning: it
        cannot connect, a borrower has been reported, callers wait for all that there is, or 80 % of five
        connections or more are lent.
        """
        stats = self.stats()
        flaws: list[Flaw] = []
        if self.closed:
            flaws.append((Status.FAIL, "closed"))
        elif self._core.is_cut_off():
            flaws.append((Status.FAIL, f"cannot connect: {stats.last_failure}"))
        elif not stats.available:
            # Known from those who came last. If it failed because of that, and nobody came any more, nobody
            # would find out that the server is back.
            flaws.append((Status.WARN, f"could not connect when it was last tried: {stats.last_failure}"))
        return told(flaws, stats, self.borrowers)

    def borrowers(self) -> list[Borrower]:
        """Return who holds a connection: where it was borrowed, by whom and since when.

        Returns:
            The borrowers, the oldest first.

        Concurrency: safe from any thread; as of one moment.
        """
        return self._core.borrowers()

    def drain(self) -> None:
        """Have every connection replaced: those that are free now, those that are lent when they come back.

        For what no error shows: credentials that were changed, a server that is about to go.

        Concurrency: blocks nobody.
        """
        self._core.drain()

    def resize(self, max_size: int, min_size: int | None = None) -> None:
        """Have room for more connections, or for fewer, from now on.

        Args:
            max_size: the most there may be; at least 1. Those beyond it are closed when they are free.
            min_size: how many are kept open; at most *max_size*. None: as before, or *max_size* if that is
                less.

        Raises:
            TypeError: a size is not a whole number.
            ValueError: a size is out of range.

        Concurrency: blocks nobody.
        """
        least = (
            min(self._core.stock.min_size, params.count("max_size", max_size))
            if min_size is None
            else min_size
        )
        low, high = _sizes(least, max_size)
        self._core.resize(low, high)

    def unwrap(self, conn: C) -> C:
        """Return the connection itself that a borrower has a stand-in for.

        For what looks into the object, such as an extension written in C. The pool cannot fence it: do not
        keep it for longer than the stand-in.

        Args:
            conn: what was borrowed.

        Returns:
            The connection.

        Raises:
            TypeError: *conn* was not borrowed from a pool.
            ValueError: it was borrowed from another one.
            ConnectionReturnedError: it has been returned.
            ConnectionReclaimedError: it has been taken away.
        """
        token = self._held(conn, "unwrapped")[0]
        if isinstance(token.member, Gone):
            raise token.member.error()
        unwrapped: C = token.conn
        return unwrapped

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self.kind} {self.name!r} cannot be pickled: its connections belong to one process")

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{self.kind} {self.name!r} {stats.used} of {stats.max_size} lent, {stats.idle} idle, "
            f"{stats.waiting} waiting>"
        )

    @abstractmethod
    def _make_crew(self, connect: Callable[[], Any], name: str, max_size: int) -> Crew: ...

    @abstractmethod
    def _act(self, parameter: str, act: Act | None) -> Act | None: ...

    def _token_of(self, conn: Any) -> Token:
        """Take the token out of a stand-in, which is returned by that."""
        held = self._held(conn, "returned")
        try:
            return held.pop()
        except IndexError:  # another thread was quicker
            raise self._twice("returned") from None

    def _held(self, conn: Any, what: str) -> list[Token]:
        if not is_borrowed(conn):
            params.refuse(TypeError, "conn", f"must be a connection borrowed from pool {self.name!r}", conn)
        held = held_by(conn)
        try:
            home = held[0].member.home
        except IndexError:
            raise self._twice(what) from None
        if home is not self._core:
            rule = f"must be borrowed from pool {self.name!r}, and is of pool {home.rules.name!r}"
            params.refuse(ValueError, "conn", rule, conn)
        return held

    def _twice(self, what: str) -> ConnectionReturnedError:
        message = f"a connection of pool {self.name!r} was {what} after it had been returned"
        return ConnectionReturnedError(message, policy=self.name)

    def _checked(self, timeout: Seconds | None) -> float | None:
        return None if timeout is None else params.seconds("timeout", timeout)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _check_after(idle: Seconds) -> float:
    seconds = params.seconds("check_after_idle", idle, infinite=True)
    return min(seconds, _NEVER) if seconds else _ALWAYS


def _sizes(min_size: int, max_size: int) -> tuple[int, int]:
    high = params.count("max_size", max_size)
    low = params.count("min_size", min_size, least=0)
    if low > high:
        params.refuse(ValueError, "min_size", f"must be at most max_size, which is {high}", min_size)
    return low, high


def _max_hold(on_leak: str, max_hold: Seconds | None) -> float | None:
    reclaims = params.one_of("on_leak", on_leak, ("report", "reclaim")) == "reclaim"
    if reclaims and max_hold is None:
        params.refuse(ValueError, "max_hold", "must be given with on_leak='reclaim'", max_hold)
    if max_hold is not None and not reclaims:
        params.refuse(ValueError, "max_hold", "goes with on_leak='reclaim' only", max_hold)
    return params.optional_seconds("max_hold", max_hold)
