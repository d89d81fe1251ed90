"""Who holds what since when: the books that are kept of somebody else's pool.

Whoever borrows and returns takes no lock, writes no log and calls no listener here: one entry is made in a
dictionary, and taken out. What is to be said of it is found and said in rounds, by another thread. That also
holds for returns that the garbage collector makes, which may come at any point of any thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from itertools import chain
from types import FrameType
from typing import Any, Final

from ...engine.fork import renew_after_fork
from ...engine.waiting import running_loop
from ...engine.window import ticker
from ...events import Announcer, Event, log_fault
from ...typing import Clock
from ..borrowers import FEW_FRAMES, Borrower, Site, lines_of, nearest, site_of, where_of
from ..durations import Timings
from ..refusals import OLDEST
from ..reports import collection_of, late_return_of, leak_of, tell

__all__ = ["Ask", "Ledger", "Loan", "frame_at"]

_KEPT: Final = 10_000  # loans that wait to be reported; the oldest give way

frame_at = sys._getframe  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - nothing else is as quick
"""Return the frame so many calls up, or of its caller, as `sys._getframe`."""


class Loan(weakref.ref[Any]):
    """A connection that is lent. It refers to what the borrower has, weakly."""

    __slots__ = (
        "by_borrower",
        "key",
        "posted",
        "reported",
        "returned",
        "seen",
        "since",
        "site",
        "task",
        "thread",
        "until",
    )

    key: int | None  # a number that the library's events tell; None: what was lent is told itself
    since: float
    until: float | None  # when it ended, where anybody wants to know
    site: Site
    thread: threading.Thread
    task: str | None
    returned: bool  # whether the pool has the connection back
    by_borrower: bool  # whether the borrower saw to it; what becomes of it later is nobody's concern
    reported: bool  # whether it was found to be overdue; who returns it says so to the next round then
    posted: bool  # whether that was posted as an event
    seen: bool  # whether a round has found that its borrower is no more

    @property
    def place(self) -> Hashable:
        """Where it stands in the books."""
        return self if self.key is None else self.key


class Ask:
    """Somebody who wants a connection, for as long as it lives: no interrupt leaves one behind."""

    __slots__ = ("__weakref__", "place", "since")

    since: float
    place: weakref.ref[Ask]  # among those who wait


class Ledger:
    """The loans of one pool; *round* finds what is to be reported.

    Args:
        name: the pool's name, for the reports.
        leak_after: seconds after which a loan is reported; None: none is.
        depth: frames that are kept of a borrower's stack.
        skip: packages whose innermost frames are not kept.
        elsewhere: returns where the stack goes on, where all of it belongs to *skip*; None: nowhere.
        clock: tells the time.
        announcer: where events are posted.
        timed: whether it is noted how long connections are made, waited for and lent.

    Concurrency: `ask`, `lend`, `give_up` and `take_back` are called from anywhere, finalizers included.
    """

    def __init__(
        self,
        name: str,
        *,
        leak_after: float | None,
        depth: int,
        skip: frozenset[str],
        elsewhere: Callable[[], FrameType | None],
        clock: Clock,
        announcer: Announcer,
        timed: bool,
    ) -> None:
        self.name = name
        self.timings: Final = Timings(clock) if timed else None
        self.timeouts = self.leaks = self.late = self.collected = 0
        self._leak_after = leak_after
        self._depth = depth
        self._skip = skip
        self._inside: dict[object, bool] = {}  # by the name of a module: whether it belongs to one of these
        self._elsewhere = elsewhere
        self._clock = clock
        self._announcer = announcer
        self._faulty = False
        self._closed = False
        self._lent = ticker()
        self._reads = 0
        self.after_fork()
        renew_after_fork(self)

    def ask(self) -> Ask | None:
        """Note that somebody wants a connection; return what to give to `lend` or `give_up`."""
        try:
            asked = Ask()
            asked.since = self._clock()
            asked.place = place = weakref.ref(asked, self._pending.discard)
            self._pending.add(place)
        except Exception:  # noqa: BLE001 - nothing of ours may reach who borrows
            self._fault()
            return None
        return asked

    def give_up(self, asked: Ask | None, *, late: BaseException | None = None) -> None:
        """Note that whoever *asked* gets none.

        *late* is the error, if that is because none came free in time: it gets a note of who has them.
        """
        if asked is not None:  # its frame may live on, in a traceback
            self._pending.discard(asked.place)
        if late is None or self._closed:
            return
        with self._lock:
            self.timeouts += 1
        try:
            oldest = self.borrowers()[:OLDEST]
            if oldest:
                late.add_note(f"pool {self.name!r}: held for longest: {'; '.join(map(str, oldest))}")
        except Exception:  # noqa: BLE001
            self._fault()

    def lend(self, asked: Ask | None, lent: object, frame: FrameType, key: int | None = None) -> None:
        """Note that whoever *asked* has *lent* now.

        *frame* is that of the method of the pool, which was called from where it was borrowed. *key* is by
        what it will be returned, where that is not *lent* itself.
        """
        try:
            if asked is not None:
                self._pending.discard(asked.place)
            if self._closed:
                return
            loan = Loan(lent, self._lost.append)
            loan.key = key
            loan.since = now = self._clock()
            loan.until = None
            loan.site = self._site(frame)
            loan.thread = threading.current_thread()
            loan.task = _task_name()
            loan.returned = loan.by_borrower = loan.reported = loan.posted = loan.seen = False
            # Not by the address of what was lent: once that is dead, another one may have it.
            self._loans[loan if key is None else key] = loan
            next(self._lent)
            if asked is not None and self.timings is not None:
                self.timings.wait.record(now - asked.since)
        except Exception:  # noqa: BLE001
            self._fault()

    def take_back(self, lent: object) -> Loan | None:
        """Note that *lent* is back, and return the loan that it was.

        To be called before the pool has it: after that, somebody else may have it already. What was not lent,
        or was lent before anybody watched, is none of our business.
        """
        try:
            return self._end(weakref.ref(lent), returned=True)
        except Exception:  # noqa: BLE001 - the pool is given something else altogether, and will say so
            return None

    def take_back_by(self, key: int, *, returned: bool = True) -> None:
        """Note that what was lent under *key* is back, or, without *returned*, that the pool is rid of it."""
        try:
            self._end(key, returned=returned)
        except Exception:  # noqa: BLE001
            self._fault()

    def _end(self, key: Hashable, *, returned: bool) -> Loan | None:
        loan = self._loans.pop(key, None)
        if loan is None:
            return None
        loan.returned = returned
        # Not where the library's own finalizer returns what was forgotten: that is reported as lost.
        loan.by_borrower = loan() is not None
        if loan.reported or self.timings is not None:
            loan.until = now = self._clock()
            if self.timings is not None:
                self.timings.use.record(now - loan.since)
        if loan.reported and loan.by_borrower:
            self._late.append(loan)
        return loan

    def keep(self, loan: Loan | None) -> None:
        """Note that a loan is none the less: what was to be returned was not, and nobody will try again."""
        if loan is not None and not self._closed:
            loan.returned = loan.by_borrower = False
            loan.until = None
            self._loans.setdefault(loan.place, loan)

    def begin(self) -> float:
        """Return the time at which somebody begins to make a connection."""
        try:
            return self._clock()
        except Exception:  # noqa: BLE001
            self._fault()
            return 0.0

    def created(self, begun: float) -> None:
        """Note that a connection was made since *begun*."""
        try:
            if self.timings is not None:
                self.timings.create.record(self._clock() - begun)
        except Exception:  # noqa: BLE001
            self._fault()

    @property
    def lent(self) -> int:
        """How many connections are lent, as far as was seen."""
        return len(self._loans)

    @property
    def pending(self) -> int:
        """How many have asked and have none yet."""
        return len(self._pending)

    @property
    def leaked(self) -> int:
        """How many are lent that were reported."""
        return sum(loan.posted for loan in list(self._loans.values()))

    @property
    def loans(self) -> int:
        """How often a connection was lent."""
        with self._lock:
            self._reads += 1
            return next(self._lent) - self._reads + 1

    def borrowers(self) -> list[Borrower]:
        """Return who has a connection, oldest first."""
        now = self._clock()
        loans = sorted(self._loans.copy().values(), key=lambda loan: loan.since)
        return [_borrower(loan, now) for loan in loans]

    def round(self) -> None:
        """Find what is to be reported, and report it."""
        if self.timings is not None:
            self.timings.fold()
        # One at a time: each loan is reported once.
        with self._lock:
            events = [*chain(self._find_leaks(), self._find_lost(), self._find_late())]
            for event in events:
                self._announcer.post(event)
        if events:
            tell(self._announcer, *events)

    def close(self) -> None:
        """Keep no books any more."""
        self._closed = True
        self._loans.clear()
        self._pending.clear()

    def after_fork(self) -> None:
        """Forget the loans: they are the parent's, and so is who would return them."""
        self._lock = threading.RLock()
        self._loans: dict[Hashable, Loan] = {}
        self._pending: set[weakref.ref[Ask]] = set()
        # Bounded, for the case that no rounds are made: there may be no more threads.
        self._lost: deque[Loan] = deque(maxlen=_KEPT)  # whose borrowers were garbage-collected
        self._late: deque[Loan] = deque(maxlen=_KEPT)  # returned after they were found to be overdue

    def _site(self, frame: FrameType) -> Site:
        """Return the stack of whoever called the method that has this *frame*."""
        caller = frame.f_back
        first = self._outside(caller) or self._outside(self._elsewhere()) or caller or frame
        return nearest(first) if self._depth == FEW_FRAMES else site_of(first, self._depth)

    def _outside(self, frame: FrameType | None) -> FrameType | None:
        """Return the innermost frame, from *frame* on, that belongs to no package to be skipped."""
        inside = self._inside
        while frame is not None:
            module: object = frame.f_globals.get("__name__")
            skipped = inside.get(module)
            if skipped is None:
                skipped = inside[module] = str(module).partition(".")[0] in self._skip
            if not skipped:
                return frame
            frame = frame.f_back
        return None

    def _find_leaks(self) -> list[Event]:
        if self._leak_after is None:
            return []
        found: list[Event] = []
        now = self._clock()
        for loan in list(self._loans.values()):
            if loan.reported or now - loan.since < self._leak_after:
                continue
            loan.reported = True
            # Only now: who returned it before this line says nothing of it, and neither do we.
            if self._loans.get(loan.place) is loan:
                loan.posted = True
                self.leaks += 1
                found.append(leak_of(self.name, _borrower(loan, now)))
        return found

    def _find_lost(self) -> list[Event]:
        found: list[Event] = []
        for _ in range(len(self._lost)):
            loan = self._lost.popleft()
            if loan.by_borrower:
                continue
            # The library may be about to return it, in a finalizer that takes its time.
            if not loan.returned and not loan.seen:
                loan.seen = True
                self._lost.append(loan)
                continue
            if loan.key is None or self._loans.get(loan.key) is loan:
                self._loans.pop(loan.place, None)
            self.collected += 1
            found.append(collection_of(self.name, _borrower(loan, self._clock()), reused=loan.returned))
        return found

    def _find_late(self) -> list[Event]:
        found: list[Event] = []
        while self._late:
            loan = self._late.popleft()
            if loan.posted:
                self.late += 1
                found.append(late_return_of(self.name, _borrower(loan, self._clock())))
        return found

    def _fault(self) -> None:
        if not self._faulty:
            self._faulty = True
            log_fault("watching pool %r failed; that will not be reported again", self.name)


def _task_name() -> str | None:
    loop = running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return None if task is None else task.get_name()


def _borrower(loan: Loan, now: float) -> Borrower:
    return Borrower(
        where=where_of(loan.site),
        stack=lines_of(loan.site),
        thread=loan.thread.name,
        task=loan.task,
        held_for=(now if loan.until is None else loan.until) - loan.since,
        leaked=loan.posted,
    )
