"""The health of a service: its checks, what its policies see, and who may ask."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from ..engine import params
from ..engine.announcing import Announcing
from ..engine.finding import Status, Witness
from ..engine.waiting import TaskWaiter, ThreadWaiter, running_loop
from ..events import Announcer, HealthChanged, Listener
from ..typing import Clock, Seconds
from .aggregation import ALL, LIVE, READY, STARTUP, overall, with_dependencies
from .details import NEVER, Details, details_of
from .monitor import Monitor
from .record import Record
from .registration import Checked, Entry, Watched, facts_of, witnesses_in
from .report import Report, Result
from .runs import Run, inside
from .settings import CheckWords, Defaults

__all__ = ["Health"]

C = TypeVar("C", bound=Callable[[], Any])

_log = logging.getLogger("resilient")

_LAG: Final = 0.1  # of an interval


class Health(Announcing):
    """Know how a service is doing, and tell whoever asks, quickly.

    Checks run in parallel, each with its own timeout, at most one run of a check at a time. What they find
    is kept for *ttl* seconds; after that the next question has them run again, and is answered with what was
    found last, where that is not old: so a storm of probes costs nothing, and no probe waits for a slow
    check. Where a check has *interval*, it is run in the background, and no question ever runs it.

    The groups are "live" (is this process beyond help?), "ready" (shall it get requests?), "startup" (has it
    come up?), "all", and those that checks name. "ready" holds the local and the critical checks, and it
    fails until "startup" has been passed once, and while the service drains.

    Args:
        service: the name of the service.
        version: of the service; None: it is not told.
        timeout: seconds that a check may take, unless it has its own; above 0.
        ttl: seconds for which what a check finds is kept, unless it has its own; above 0.
        interval: seconds after which checks are run again in the background; above 0. None: they run when
            somebody asks.
        fail_after: failures in a row that make a check which has passed fail; at least 1.
        pass_after: passes in a row that make a failed check pass again; at least 1.
        grace: seconds from now in which a check that has not passed yet counts as starting, not as failed; 0
            for none.
        answer_within: seconds in which a question is answered, whatever the checks do: what has not been
            found by then is unknown. Probers wait for a second, if not told otherwise. 0: nobody waits.
        details: who is shown more than the status by the handlers: "never" anybody, "always" everybody, or a
            function of the request that says so.
        max_threads: checks that are plain functions and run at the same time; at least 1.
        listeners: called with every `HealthChanged`.
        clock: tells the time in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and event loop. Coroutine functions run on the loop that asks
        first, or, where threads ask, on one in a thread of its own. In a forked child nothing has been found
        yet.

    Source: draft-inadarei-api-health-check-06 for the words; D. Yanacek, "Implementing health checks" (Amazon
        Builders' Library), for what a probe may look at.
    """

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
        self._started = False  # whether "startup" has been passed
        self._draining: str | None = None

    def __repr__(self) -> str:
        return f"<Health of {self._service!r}, {len(self._monitor.registry.entries)} checks>"

    @property
    def service(self) -> str:
        """The name of the service."""
        return self._service

    @property
    def version(self) -> str | None:
        """The version of the service; None where it was not told."""
        return self._version

    @property
    def details(self) -> Details:
        """Who is shown more than the status."""
        return self._details

    @property
    def groups(self) -> frozenset[str]:
        """The groups that may be asked for."""
        return self._monitor.registry.groups

    # What there is to check

    def check(
        self,
        name: str,
        *,
        critical: bool | None = None,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        failed_ttl: Seconds | None = None,
        interval: Seconds | None = None,
        fail_after: int | None = None,
        pass_after: int | None = None,
        grace: Seconds | None = None,
        stale_after: Seconds | None = None,
        groups: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
        external: bool | None = None,
        live_anyway: str | None = None,
        judged_by: Witness | None = None,
    ) -> Callable[[C], C]:
        """Register a function as a check: `@health.check("postgres", critical=True)`.

        It passes where it returns None or True, and fails where it returns False or raises anything. It may
        return a `Finding` and say more. An exception becomes a short reason, in which secrets are masked.

        Args:
            name: of the check; it is in reports, and depends on by others.
            critical: whether the groups it is in fail with it; otherwise they warn. None: where *groups*
                names "live", "ready" or "startup".
            timeout: seconds that it may take; above 0. A coroutine function is cancelled then, a function
                runs on in its thread; neither is run again before it has really ended, or waited for. None:
                as for all.
            ttl: seconds for which what it finds is kept; above 0. None: as for all, or *interval*.
            failed_ttl: the same for a failure. None: *ttl*, but 5 at most.
            interval: seconds after which it is run again in the background; above 0. None: as for all.
            fail_after: failures in a row that make it fail once it has passed. None: as for all.
            pass_after: passes in a row that make it pass again. None: as for all.
            grace: seconds from the making of the `Health` in which it is starting, and has not failed, until
                it has passed once. None: as for all.
            stale_after: seconds after which what it found is too old to be believed. None: three times *ttl*,
                and *timeout*.
            groups: beside "all". None: "ready" where it is local; "ready" and "startup" where it is critical;
                else none.
            depends_on: names of checks that it stands on, registered before. When it fails and one of them
                does, it is unknown how it is doing; and they are as critical as it is.
            external: whether it looks at anything outside this process. None: as the object given to `add`
                says, else True.
            live_anyway: why an external check is to decide about life and death of the process; None: it is
                refused in the group "live".
            judged_by: a policy or a pool that sees the traffic to what this checks. While it has seen calls
                lately, what it says counts, and the check is not run. None: it always is.

        Returns:
            A decorator that returns the function as it is.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; there is a check of this name; or an external check is to
                decide about liveness.
        """
        words: CheckWords = {
            "critical": critical,
            "timeout": timeout,
            "ttl": ttl,
            "failed_ttl": failed_ttl,
            "interval": interval,
            "fail_after": fail_after,
            "pass_after": pass_after,
            "grace": grace,
            "stale_after": stale_after,
            "groups": groups,
            "depends_on": depends_on,
            "external": external,
            "live_anyway": live_anyway,
            "judged_by": judged_by,
        }
        params.named("name", name)

        def register(check: C) -> C:
            return self.add(check, name, **words)

        return register

    def add(self, check: C, name: str | None = None, **words: Unpack[CheckWords]) -> C:
        """Register a check.

        Args:
            check: a function or a coroutine function without arguments, or an object that can be called so,
                such as `DiskSpace("/")`.
            name: of the check. None: the object's own name.
            **words: the arguments of `check`.

        Returns:
            The check.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range; there is a check of this name; or an external check is to
                decide about liveness.
        """
        external = words.get("external")
        facts = facts_of(
            getattr(check, "name", None) if name is None else name,
            getattr(check, "kind", "check"),
            critical=words.get("critical"),
            external=getattr(check, "external", True) if external is None else external,
            groups=words.get("groups"),
            depends_on=words.get("depends_on", ()),
            live_anyway=words.get("live_anyway"),
        )
        judge = words.get("judged_by")
        if judge is not None and not isinstance(judge, Witness):
            params.refuse(
                TypeError, "judged_by", "must be a policy or a pool, with a name and finding()", judge
            )
        entry = Checked(facts, check, Record(self._defaults.rules(words), self._born), judge)
        if entry.record.rules.background:
            entry.lag = random.uniform(0.0, _LAG * entry.record.rules.ttl)
        with self._monitor.lock:
            self._monitor.registry.add(entry)
        return check

    def watch(
        self,
        *parts: Any,
        critical: bool = False,
        groups: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
    ) -> None:
        """Report what policies and pools see of the traffic through them; nobody is probed for it.

        What cannot be used, such as what is behind an open circuit, is a warning, and no failure: the service
        has fallbacks for that, and does not get better by getting no requests.

        Args:
            *parts: policies, pipelines, pools, replica sets, pools that are watched; functions, which stand
                for the policies they are decorated with; or anything with `name` and `finding()`.
            critical: whether what cannot be used is a failure all the same.
            groups: beside "all". None: "ready" and "startup" where it is critical, else none.
            depends_on: names of checks that they stand on, registered before.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: another one of the same kind has the same name; or liveness is to depend on it.
        """
        for witness in dict.fromkeys(one for part in parts for one in witnesses_in(part)):
            facts = facts_of(
                witness.name,
                getattr(witness, "kind", type(witness).__name__),
                critical=critical,
                external=True,
                groups=groups,
                depends_on=depends_on,
                live_anyway=None,
            )
            with self._monitor.lock:
                if not any(
                    isinstance(one, Watched) and one.witness is witness
                    for one in self._monitor.registry.entries
                ):
                    self._monitor.registry.add(Watched(facts, witness))

    def remove(self, name: str) -> None:
        """Take out what was registered under *name*.

        Args:
            name: of checks, policies or pools.

        Raises:
            KeyError: there are none of this name.
            ValueError: something depends on it.

        Concurrency: a run that is under way ends in its own time, and counts no more.
        """
        with self._monitor.lock:
            self._monitor.registry.remove(name)

    # Who asks

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
            raise RuntimeError("an event loop runs in this thread: use `await health.areport()`")
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
        self._monitor.begin(self._members(group))
        return self._tell(group)

    # What is to come

    def start(self) -> None:
        """Begin with the checks that run in the background; the first question does so, too.

        Concurrency: where a loop runs in this thread, coroutine functions will run on it.
        """
        self._monitor.start()

    def close(self) -> None:
        """Run no check any more, and answer with what was found last; closing twice does nothing."""
        self._monitor.close()

    def drain(self, reason: str = "") -> None:
        """Have the service get no more requests: all groups but "live" and "startup" fail from now on.

        Args:
            reason: in one line for people.
        """
        if not isinstance(reason, str):
            params.refuse(TypeError, "reason", "must be text", reason)
        self._set_draining(f"draining: {reason}" if reason else "draining")

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
            raise KeyError(group)
        wanted = {group, STARTUP} if group == READY and not self._started else {group}
        edges: dict[str, tuple[str, ...]] = {}
        for entry in entries:
            name = entry.facts.name
            edges[name] = (*edges.get(name, ()), *entry.facts.depends_on)
        chosen = [entry for entry in entries if not wanted.isdisjoint(entry.facts.groups)]
        below = set(with_dependencies((need for one in chosen for need in one.facts.depends_on), edges))
        return tuple(entry for entry in entries if entry in chosen or entry.facts.name in below)

    def _to_wait_for(self, group: str, within: Seconds | None) -> Generator[tuple[Run, float]]:
        """Begin what is due, and return what to wait for, and how long at most, one after the other."""
        patience = self._answer_within if within is None else params.seconds("within", within)
        self._monitor.start()
        runs = self._monitor.begin(self._members(group))
        if self._monitor in inside.get():
            return  # a check asks: to wait for itself would take long
        until = time.monotonic() + patience
        for run in runs:
            # When its time is up, it has failed, whether it has ended or not.
            if (left := min(until, run.until) - time.monotonic()) > 0.0:
                yield run, left

    def _tell(self, group: str) -> Report:
        results = self._monitor.results()
        members = [results[entry] for entry in self._members(group) if entry in results]
        status = overall(members, strict=group not in {ALL, LIVE})
        if group in {READY, STARTUP} and not self._started and status is not Status.FAIL:
            self._started = self._is_startup_passed(results)
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

    def _is_startup_passed(self, results: dict[Entry, Result]) -> bool:
        members = [results[entry] for entry in self._members(STARTUP) if entry in results]
        return overall(members, strict=True) is not Status.FAIL

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
