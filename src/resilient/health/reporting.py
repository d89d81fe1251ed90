"""Questions about the health of a service: what they wait for, and how they are answered."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import ClassVar, NoReturn, Self

from ..engine import params
from ..engine.announcing import Announcing
from ..engine.deadline import time_left
from ..engine.finding import Status
from ..engine.fork import renew_after_fork
from ..engine.living import remember
from ..engine.measure import Measure
from ..engine.waiting import TaskWaiter, ThreadWaiter, running_loop
from ..events import Announcer, HealthChanged, Listener
from ..typing import Clock, Seconds
from .aggregation import ALL, LIVE, READY, STARTUP, overall
from .measures import of_results
from .monitor import Monitor
from .registration import Entry
from .report import Report
from .runs import Run, inside
from .serving.details import NEVER, Details, details_of
from .settings import Defaults
from .tidy import one_line

__all__ = ["Reporting"]

_log = logging.getLogger("resilient")


class Reporting(Announcing):
    """What threads and tasks can ask how it is doing; its arguments are those of `Health`."""

    kind: ClassVar[str] = "Health"

    def __init__(
        self,
        service: str,
        version: str | None = None,
        *,
        timeout: Seconds = 1.0,
        ttl: Seconds = 5.0,
        interval: Seconds | None = None,
        fail_after: int = 1,
        pass_after: int = 1,
        grace: Seconds = 0.0,
        answer_within: Seconds = 0.75,
        details: Details = NEVER,
        max_threads: int = 32,
        listeners: Iterable[Listener] = (),
        clock: Clock = time.monotonic,
    ) -> None:
        self._service = params.named("service", service)
        if not service.isprintable():
            params.refuse(ValueError, "service", "must be printable, in one line", service)
        self._version = None if version is None else params.named("version", version)
        self._defaults = Defaults(
            timeout=params.seconds("timeout", timeout, above=True),
            ttl=params.seconds("ttl", ttl, above=True),
            interval=params.optional_seconds("interval", interval),
            fail_after=params.count("fail_after", fail_after),
            pass_after=params.count("pass_after", pass_after),
            grace=params.seconds("grace", grace),
        )
        self._answer_within = params.seconds("answer_within", answer_within)
        self._details = details_of("details", details)
        self._clock = params.callback("clock", clock)
        self._born = self._clock()
        self.announcer = Announcer()
        for listener in listeners:
            self.announcer.listeners.add(listener)
        threads = params.count("max_threads", max_threads)
        self._monitor = Monitor(self._service, threads, self.announcer, self._clock)
        # A check that hangs keeps the monitor alive, which would go on without a Health.
        weakref.finalize(self, self._monitor.close).atexit = False
        self._started = False  # whether "startup" has been passed
        self._draining: str | None = None
        renew_after_fork(self)
        remember(self, counts=False)  # asked, it begins what is due

    def after_fork(self) -> None:
        """Begin anew in a forked child, where nothing has been found yet; what drains, drains."""
        self._started = False
        self._born = self._clock()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"the Health of {self._service!r} cannot be pickled: it belongs to one process; make it at "
            "module level and import it where it is needed"
        )

    def __repr__(self) -> str:
        return f"<Health of {self._service!r}, {len(self._monitor.registry.entries)} checks>"

    @property
    def service(self) -> str:
        """The name of the service."""
        return self._service

    @property
    def name(self) -> str:
        """The same, for metrics."""
        return self._service

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it: what was found last. What is due is begun, as by any question."""
        return of_results(self.latest().results)

    @property
    def version(self) -> str | None:
        """The version of the service; None where it was not told."""
        return self._version

    @property
    def details(self) -> Details:
        """Who is shown more than the status."""
        return self._details

    @property
    def answer_within(self) -> float:
        """Seconds in which a question is answered, unless whoever asks says otherwise."""
        return self._answer_within

    @property
    def names(self) -> frozenset[str]:
        """The names of all checks, and of what is watched."""
        return frozenset(entry.facts.name for entry in self._monitor.registry.entries)

    @property
    def groups(self) -> frozenset[str]:
        """The groups that may be asked for."""
        return self._monitor.registry.groups

    def report(self, group: str = ALL, *, within: Seconds | None = None) -> Report:
        """Return how the service stands; a thread asks.

        Args:
            group: "live", "ready", "startup", "all", or one that checks name.
            within: seconds to wait at most for what is not known yet. None: *answer_within*.

        Returns:
            The report.

        Raises:
            KeyError: there is no such group.
            RuntimeError: an event loop runs in this thread: `areport` is for tasks.

        Concurrency: blocks the calling thread, for *within* at most.
        """
        if running_loop() is not None:
            raise RuntimeError(
                "an event loop runs in this thread: use `await health.areport()`, or ask in a thread"
            )
        for run, seconds in self._to_wait_for(group, within):
            waiter = ThreadWaiter()
            if self._monitor.join(run, waiter):
                try:
                    waiter.park(seconds)
                finally:
                    self._monitor.leave(run, waiter)
        return self._tell(group)

    async def areport(self, group: str = ALL, *, within: Seconds | None = None) -> Report:
        """Return how the service stands; a task asks.

        Args:
            group: "live", "ready", "startup", "all", or one that checks name.
            within: seconds to wait at most for what is not known yet. None: *answer_within*.

        Returns:
            The report.

        Raises:
            KeyError: there is no such group.

        Concurrency: cancelling the task that asks cancels no check.
        """
        for run, seconds in self._to_wait_for(group, within):
            waiter = TaskWaiter()
            if self._monitor.join(run, waiter):
                try:
                    await waiter.park(seconds)
                finally:
                    self._monitor.leave(run, waiter)
        return self._tell(group)

    def latest(self, group: str = ALL) -> Report:
        """Return what is known of how the service stands; whatever is due is begun, and not waited for.

        Args:
            group: "live", "ready", "startup", "all", or one that checks name.

        Returns:
            The report.

        Raises:
            KeyError: there is no such group.

        Concurrency: never waits, and may be called anywhere.
        """
        self._monitor.start()
        self._monitor.begin(self._members(group))
        return self._tell(group)

    def start(self) -> None:
        """Begin with the checks that run in the background; the first question does so, too.

        Concurrency: where a loop runs in this thread, coroutine functions will run on it. After `close`, all
            of it begins anew.
        """
        self._monitor.open()
        self._monitor.start()

    def close(self) -> None:
        """Run no check any more, until `start`, and answer with what was found last."""
        self._monitor.close()

    def drain(self, reason: str = "") -> None:
        """Have the service get no more requests: all groups but "live" and "startup" fail from now on.

        Args:
            reason: in one line for people.
        """
        if not isinstance(reason, str):
            params.refuse(TypeError, "reason", "must be text", reason)
        self._set_draining(one_line(f"draining: {reason}" if reason else "draining"))

    def resume(self) -> None:
        """Take back `drain`."""
        self._set_draining(None)

    @property
    def draining(self) -> bool:
        """Whether the service is to get no more requests."""
        return self._draining is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _members(self, group: str) -> tuple[Entry, ...]:
        """Return those in *group*, and those that they stand on."""
        entries = self._monitor.registry.entries
        if group == ALL:
            return entries
        if group not in self.groups:
            raise KeyError(f"group must be one of {', '.join(sorted(self.groups))}, got {group!r}")
        wanted = {group, STARTUP} if group == READY and not self._started else {group}
        chosen = [entry for entry in entries if not wanted.isdisjoint(entry.facts.groups)]
        below = {*self._monitor.registry.below(need for one in chosen for need in one.facts.depends_on)}
        members = {*chosen}
        return tuple(entry for entry in entries if entry in members or entry.facts.name in below)

    def _to_wait_for(self, group: str, within: Seconds | None) -> Generator[tuple[Run, float]]:
        """Begin what is due, and return what to wait for, and how long at most, one after the other."""
        patience = self._answer_within if within is None else params.seconds("within", within)
        deadline = time_left()
        patience = patience if deadline is None else min(patience, deadline)
        self._monitor.start()
        runs = self._monitor.begin(self._members(group))
        if self._monitor in inside.get():
            return  # a check asks: to wait for itself would take long
        until = time.monotonic() + patience
        for run in runs:
            # When its time is up, it has failed, whether it has ended or not; that runs when it has begun.
            while not run.ended and (left := min(until, run.until) - time.monotonic()) > 0.0:
                yield run, min(left, run.timeout)
                if not run.has_begun:  # for want of a thread, or somebody was interrupted who was to start it
                    run = (*self._monitor.begin((run.place,)), run)[0]  # noqa: PLW2901 - it, or in its place

    def _tell(self, group: str) -> Report:
        members = [*self._monitor.results(self._members(group)).values()]
        status = overall(members, strict=group not in {ALL, LIVE})
        if group in {READY, STARTUP} and status is not Status.FAIL:
            self._started = True  # "ready" has had the members of "startup", too
        draining = self._draining
        if group == STARTUP and self._started:
            status = Status.PASS
        elif draining is not None and group not in {LIVE, STARTUP}:
            status = Status.FAIL
        else:
            draining = None
        return Report(
            group,
            status,
            self._service,
            self._version,
            datetime.now(UTC),
            max(0.0, self._clock() - self._born),
            tuple(members),
            draining or "",
        )

    def _set_draining(self, reason: str | None) -> None:
        with self._monitor.lock:
            previous, self._draining = self._draining, reason
            if (previous is None) is (reason is None):
                return
            status = Status.PASS if reason is None else Status.FAIL
            before = Status.FAIL if reason is None else Status.PASS
            self.announcer.post(HealthChanged(self._service, status, before, reason or "resumed"))
        self.announcer.deliver()
        _log.info("health of %s: %s", self._service, reason or "resumed")
