"""Rounds made about once a second by one thread for all pools of the process: leaks, upkeep."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from typing import Final, Protocol

from ..engine.fork import renew_after_fork
from ..engine.threads import start
from ..engine.workers import Job, Stage, Workers
from ..events import log_fault

__all__ = ["Party", "Watcher", "attend", "dismiss"]

_EVERY: Final = 1.0
_PATIENCE: Final = 1.0  # seconds that others wait for one party
_WORKERS: Final = 4  # parties that may hang before nobody is visited any more


class Party(Protocol):
    """Whoever is to be visited."""

    def round(self) -> None:
        """Do what is due by now; must not take long."""


class _Place(weakref.ref[Party]):
    """A party's place among the others. It is as long-lived as the party."""

    __slots__ = ("faulty", "job")

    faulty: bool  # whether that was logged
    job: Job | None  # the last visit


class Watcher:
    """Visits those that attend every *every* seconds, for as long as they live.

    The thread is started by the first that attends, and ends when none is left. It visits nobody itself: a
    party whose listener hangs would keep it from all others. It waits for each for a moment, then goes on,
    and leaves those alone that are not done.

    Concurrency: safe from any thread. A forked child gets a thread of its own, for those that live on there.
    """

    def __init__(self, every: float = _EVERY) -> None:
        self._every = every
        # Not a WeakSet: that runs Python code when one of them dies, in which an interrupt would be lost.
        self._places: set[_Place] = set()
        self._workers = Workers(_WORKERS, "resilient-pools")
        self._lock = threading.RLock()  # re-entrant: a signal handler may make a pool too
        self._thread: threading.Thread | None = None
        renew_after_fork(self)

    def attend(self, party: Party) -> None:
        """Visit *party* from now on; one that attends already is visited as before."""
        place = _Place(party, self._places.discard)
        place.faulty = False
        place.job = None
        with self._lock:
            self._places.add(place)
            self._see_to_thread()

    def dismiss(self, party: Party) -> None:
        """Visit *party* no more; a visit that is under way ends in its own time."""
        with self._lock:
            self._places.discard(_Place(party))

    def visit_all(self) -> None:
        """Make one round."""
        for place in list(self._places):
            self._visit(place)

    @property
    def attended(self) -> int:
        """How many attend now."""
        return len(self._places)

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _visit(self, place: _Place) -> None:
        party = place()
        if party is None or (place.job is not None and place.job.stage is Stage.RUNNING):
            return
        place.job = job = Job(partial(_round_of, party, place), self._workers.overdue)
        del party  # or it would live until the next one's turn
        try:
            self._workers.carry_out(job, _PATIENCE)
        except RuntimeError:  # there are no more threads: for now, or because the interpreter ends
            job.withdraw()

    def _see_to_thread(self) -> None:
        """Start the thread if there is none; requires the lock."""
        if self._places and not self.running:
            thread = threading.Thread(target=self._make_rounds, name="resilient-rounds", daemon=True)
            self._thread = thread
            try:
                start(thread)
            except RuntimeError:  # no more threads; whoever attends next tries again
                self._thread = None

    def _make_rounds(self) -> None:
        while True:
            time.sleep(self._every)
            self.visit_all()
            with self._lock:  # whoever attends now is seen here, or sees that there is no thread
                if not self._places:
                    self._thread = None
                    return

    def after_fork(self) -> None:
        """Start a thread in this process, if anybody attends."""
        self._lock = threading.RLock()
        self._thread = None
        for place in list(self._places):
            place.job = None  # it was made by a thread of the parent
        self._see_to_thread()


def _round_of(party: Party, place: _Place) -> None:
    try:
        party.round()
    except BaseException:  # noqa: BLE001 - of somebody else's code, in a thread of ours; it is visited again
        if not place.faulty:
            place.faulty = True
            log_fault("%r failed in its round; that will not be reported again", party)


_watcher = Watcher()
attend = _watcher.attend
dismiss = _watcher.dismiss
