"""A pool that is watched: its borrowers, its leaks, its metrics and its health."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType, TracebackType
from typing import Any, ClassVar, Final, Self

from ...engine import living, params
from ...engine.announcing import Announcing
from ...engine.finding import Finding, Status
from ...engine.latency import Histogram
from ...engine.measure import Measure
from ...engine.workers import Job, Stage, Workers
from ...errors import PoolTimeoutError, PoolUnavailableError
from ...events import Announcer, error_text
from ...telemetry.connections import ConnectionCounts, of_connections
from ...typing import Seconds
from ..borrowers import Borrower
from ..durations import Durations
from ..findings import told
from ..refusals import OLDEST
from ..rounds import attend, dismiss
from .ledger import Ledger

__all__ = ["GO_BETWEENS", "NOTHING", "Adapter", "Levels", "WatchStats", "Watched"]

NOTHING: Final[frozenset[str]] = frozenset()

GO_BETWEENS: Final = frozenset({"contextlib", "opentelemetry", "wrapt", "ddtrace", "sentry_sdk"})
"""Packages that may stand between a library and whoever uses it: the frames of none say who borrowed."""

_CHECK_SECONDS: Final = 2.0
_IN_TIME: Final = 0.9  # of a check's time, for the library to say itself that there is no connection
_CUT_OFF: Final = 0.95  # after which a probe is cancelled, and has the rest to give its connection back
_NO_ANSWER: Final = "no answer from the server"


@dataclass(frozen=True, slots=True)
class Levels:
    """What a library says of its pool; None where it says nothing."""

    idle: int | None = None
    idle_max: int | None = None
    idle_min: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class WatchStats:
    """Where a watched pool stands, and what was seen of it since it is watched.

    Attributes:
        idle: open connections that nobody has; None where the library does not tell.
        used: connections that are lent. Those that were lent before it was watched are not seen.
        max_size: the most connections there may be; None: no limit, or the library does not tell.
        waiting: callers that have asked for a connection and have none yet.
        checkouts: how often one was lent.
        timeouts: callers that waited in vain.
        leaked: connections that are lent, and were reported as held too long.
        leaks: how often that was reported.
        returned_late: how many of these were returned after all.
        collected: borrowers that were garbage-collected without returning their connection.
    """

    idle: int | None
    used: int
    max_size: int | None
    waiting: int
    checkouts: int
    timeouts: int
    leaked: int
    leaks: int
    returned_late: int
    collected: int


class Adapter(ABC):
    """What is done differently for each library.

    Nothing here keeps the pool alive, where the pool can be referred to weakly.
    """

    skip: ClassVar[frozenset[str]]
    """Packages whose frames say nothing of a borrower: the library's own, and who wraps it."""

    asynchronous: bool
    """Whether connections are awaited."""

    @abstractmethod
    def name(self) -> str:
        """Return what the pool is called, where nobody gave it a name. It holds no password."""

    @abstractmethod
    def install(self, ledger: Ledger, mark: object) -> None:
        """Have *ledger* told of everything that happens from now on, and keep *mark* as long as the pool."""

    @abstractmethod
    def uninstall(self) -> None:
        """Undo `install`."""

    @abstractmethod
    def levels(self) -> Levels | None:
        """Return where the pool stands, without waiting for anything; None: there is no pool any more."""

    def emitted(self) -> frozenset[str]:
        """Return what others report of this pool already: "count", "timeouts", "create", "wait"."""
        return NOTHING

    def probe(self, seconds: float, /) -> None:
        """Borrow a connection, within *seconds* where the library can, and have the server answer.

        Called in a thread of its own.
        """
        raise NotImplementedError

    async def aprobe(self, seconds: float, /) -> None:
        """Do as `probe`, for a pool whose connections are awaited."""
        raise NotImplementedError

    def elsewhere(self) -> FrameType | None:
        """Return the frame of whoever this works for, where it is on another stack than the library."""
        return None

    def is_timeout(self, error: BaseException) -> bool:
        """Return whether *error* says that no connection came free in time."""
        raise NotImplementedError


_left: Final[set[asyncio.Task[None]]] = set()  # probes that nobody waits for; a loop refers to them weakly


def _forget(probe: asyncio.Task[None]) -> None:
    _left.discard(probe)
    if not probe.cancelled():
        probe.exception()  # nobody else asks for it


class _Share:
    """What is ours of *durations*, of which others report a part, while they do."""

    __slots__ = ("_durations", "_ours", "_theirs")

    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._ours = self._theirs = durations.histogram()

    def take(self, theirs: bool, /) -> Histogram | None:
        """Return all that is ours; None while it is *theirs*, as all is then that has come since."""
        every = self._durations.histogram()
        if theirs:
            self._theirs = every - self._ours
            return None
        self._ours = every - self._theirs
        return self._ours


class Watched(Announcing):
    """A pool of another library under watch; made by `watch`. As a context manager it ends the watch.

    Args:
        adapter: how the library is spoken to.
        ledger: who holds what.
        announcer: by which events are told.
        metrics: whether to report metrics; None: those that nobody else reports.

    Concurrency: safe from any thread and any event loop.
    """

    kind: ClassVar[str] = "WatchedPool"

    def __init__(
        self, adapter: Adapter, ledger: Ledger, announcer: Announcer, *, metrics: bool | None
    ) -> None:
        self._adapter = adapter
        self._ledger = ledger
        self.announcer = announcer
        self._metrics = metrics
        self._checks = Workers(1, "resilient-check")  # one: while a check hangs, no other joins it
        timings = {} if ledger.timings is None else ledger.timings.by_name()
        self._shares = {what: _Share(durations) for what, durations in timings.items()}
        adapter.install(ledger, self)
        attend(ledger)
        if metrics is not False:
            # Not read in a fork: a library may wait there for a lock that nobody has any more.
            living.remember(self, counts=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        """The name of the pool in events, metrics and the log."""
        return self._ledger.name

    def borrowers(self) -> list[Borrower]:
        """Return who has a connection.

        Returns:
            The borrowers, oldest first. Who borrowed before the pool was watched is not among them.
        """
        return self._ledger.borrowers()

    def stats(self) -> WatchStats:
        """Return where the pool stands, and what was seen of it.

        Returns:
            A snapshot.
        """
        ledger, levels = self._ledger, self._adapter.levels() or Levels()
        return WatchStats(
            idle=levels.idle,
            used=ledger.lent,
            max_size=levels.limit,
            waiting=ledger.pending,
            checkouts=ledger.loans,
            timeouts=ledger.timeouts,
            leaked=ledger.leaked,
            leaks=ledger.leaks,
            returned_late=ledger.late,
            collected=ledger.collected,
        )

    def finding(self) -> Finding:
        """Return how it stands, for health.

        A warning: a borrower has been reported, callers wait for all that there is, or 80 % of five
        connections or more are lent. Unknown: the pool is gone.
        """
        if self._adapter.levels() is None:
            return Finding(Status.UNKNOWN, "the pool is gone")
        return told([], self.stats(), self.borrowers)

    def counts(self) -> ConnectionCounts:
        """Return what is to be reported as metrics now; nothing of what others report."""
        levels = self._adapter.levels()
        if levels is None:
            return ConnectionCounts()
        ledger, others = self._ledger, self._reported_by_others()
        tells_count = "count" not in others
        return ConnectionCounts(
            idle=levels.idle if tells_count else None,
            used=ledger.lent if tells_count else None,
            idle_max=levels.idle_max,
            idle_min=levels.idle_min,
            limit=levels.limit,
            pending=ledger.pending,
            timeouts=None if "timeouts" in others else ledger.timeouts,
            leaked=ledger.leaked,
        )

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it; nothing of what others report."""
        counts, others = self.counts(), self._reported_by_others()
        durations = {what: share.take(what in others) for what, share in self._shares.items()}
        return of_connections(counts, {what: ours for what, ours in durations.items() if ours is not None})

    def check(self, timeout: Seconds = _CHECK_SECONDS) -> None:
        """Borrow a connection, and ask the server whether it is there.

        Args:
            timeout: seconds for all of it. It ends in time whatever the pool or the server does: it runs in
                a thread of its own, one at a time.

        Raises:
            PoolTimeoutError: no connection came free in time, or no answer came. It names the three oldest
                borrowers.
            PoolUnavailableError: the server could not be reached, or answered with an error.
            TypeError: the connections of this pool are awaited: `acheck` is for them.

        Concurrency: blocks the calling thread. While an earlier check hangs, this one fails at its timeout.
        """
        if self._adapter.asynchronous:
            raise TypeError(f"the connections of pool {self.name!r} are awaited: use `await acheck()`")
        seconds = params.seconds("timeout", timeout, above=True)
        job = Job(partial(self._probe, seconds), self._checks.overdue)
        if self._checks.carry_out(job, seconds) is not Stage.DONE:
            raise self._too_late(_NO_ANSWER, seconds)
        self._judge(job.outcome, seconds)

    async def acheck(self, timeout: Seconds = _CHECK_SECONDS) -> None:
        """Borrow a connection, and ask the server whether it is there.

        Args:
            timeout: seconds for all of it.

        Raises:
            PoolTimeoutError: no connection came free in time, or no answer came. It names the three oldest
                borrowers.
            PoolUnavailableError: the server could not be reached, or answered with an error.

        Concurrency: to be awaited on the event loop of the pool; for a pool whose connections are not
            awaited, it waits for a thread, and does not block the loop.
        """
        seconds = params.seconds("timeout", timeout, above=True)
        if not self._adapter.asynchronous:
            await asyncio.to_thread(self.check, seconds)
            return
        # In a task of its own: some drivers ask the server to cancel before they let go, and if that hangs,
        # too, whoever waits for them is held.
        probe = asyncio.create_task(self._adapter.aprobe(_IN_TIME * seconds))
        try:
            done, _ = await asyncio.wait((probe,), timeout=_CUT_OFF * seconds)
        finally:
            if not probe.done():
                _left.add(probe)
                probe.add_done_callback(_forget)
                probe.cancel()
        if not done:
            await asyncio.wait((probe,), timeout=(1.0 - _CUT_OFF) * seconds)
            raise self._too_late(_NO_ANSWER, seconds)
        self._judge(probe.result, seconds)

    def unwatch(self) -> None:
        """End the watch, and leave the pool as it was; ending it twice does nothing.

        Concurrency: whoever has a connection keeps it. Calls of the pool that are under way end well.
        """
        dismiss(self._ledger)
        living.forget(self)
        self._adapter.uninstall()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unwatch()

    def _probe(self, seconds: float) -> None:
        self._adapter.probe(_IN_TIME * seconds)

    def _reported_by_others(self) -> frozenset[str]:
        return NOTHING if self._metrics else self._adapter.emitted()

    def _judge(self, outcome: Callable[[], Any], seconds: float) -> None:
        try:
            outcome()
        except Exception as exc:
            raise self._verdict(exc, seconds) from exc

    def _verdict(self, error: Exception, seconds: float) -> Exception:
        if self._adapter.is_timeout(error):
            return self._too_late("no connection came free", seconds)
        text = error_text(error)
        return PoolUnavailableError(
            f"the check of pool {self.name!r} failed: {text}", policy=self.name, last_failure=text
        )

    def _too_late(self, what: str, seconds: float) -> PoolTimeoutError:
        stats, borrowers = self.stats(), self.borrowers()[:OLDEST]
        oldest = f"; the oldest borrowers: {'; '.join(map(str, borrowers))}" if borrowers else ""
        return PoolTimeoutError(
            f"the check of pool {self.name!r} failed: {what} within {seconds:g} s; {stats.used} connections "
            f"are lent, {stats.waiting} callers wait{oldest}",
            policy=self.name,
            size=None if stats.idle is None else stats.idle + stats.used,
            idle=stats.idle,
            used=stats.used,
            waiting=stats.waiting,
            borrowers=tuple(borrowers),
        )
