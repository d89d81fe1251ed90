"""What one check has found over time, and what of it counts now: no threads, no locks, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..engine.finding import Finding, Status

__all__ = ["Record", "Rules", "Standing"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How often a check is run and how its findings are judged; durations in seconds.

    Attributes:
        timeout: that a run may take.
        ttl: for which a finding is taken as it is.
        failed_ttl: the same, for a failure.
        fail_after: failures in a row that make a check which has passed fail.
        pass_after: passes in a row that make it pass again.
        grace: after the start, in which a check that has never passed is starting and has not failed.
        stale_after: after which a finding is too old to be believed.
        background: whether somebody else sees to it that the check is run when it is due.
    """

    timeout: float
    ttl: float
    failed_ttl: float
    fail_after: int
    pass_after: int
    grace: float
    stale_after: float
    background: bool


class Standing(NamedTuple):
    """What counts now: a finding, and what its age and those before it make of it."""

    status: Status
    output: str
    finding: Finding | None
    age: float | None
    stale: bool


class Record:
    """The findings of one check.

    A run that takes longer than its time is a failure the moment its time is up, whether or not it ever ends:
    nobody need watch it, for whoever looks counts it. While it goes on, it counts as failed again and again,
    as often as the check would have been run; and what it finds in the end is dropped.

    Concurrency: guarded by the lock of whoever made it.
    """

    __slots__ = (
        "_born",
        "_down",
        "_finding",
        "_found_at",
        "_overdue",
        "_passed",
        "_passes",
        "failures",
        "queued",
        "rules",
        "since",
        "took",
    )

    def __init__(self, rules: Rules, born: float) -> None:
        self.rules = rules
        self.queued: float | None = None  # since when a run waits to be begun
        self.since: float | None = None  # when the run that is under way began
        self.took: float | None = None
        self.failures = 0  # in a row
        self._born = born
        self._finding: Finding | None = None
        self._found_at = born
        self._overdue = 0  # how often the run that is under way has counted as a failure
        self._passes = 0  # in a row
        self._passed = False  # whether it ever has
        self._down = False  # whether it counts as failed, hysteresis considered

    def is_due(self, now: float) -> bool:
        """Whether it is to be run now."""
        return not self.is_busy and (self._finding is None or now >= self.due_at)

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way, or waits to be begun."""
        return self.since is not None or self.queued is not None

    @property
    def due_at(self) -> float:
        """When it is to be run again, once it has ended."""
        return self._found_at + self.period

    @property
    def period(self) -> float:
        """Seconds between the end of one run and the next."""
        finding = self._finding
        failed = finding is not None and finding.status is Status.FAIL
        return self.rules.failed_ttl if failed else self.rules.ttl

    def running_for(self, now: float) -> float:
        """Return how long the run that is under way has lasted; 0 while it waits to be begun."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def is_stuck(self, now: float) -> bool:
        """Whether the run that is under way should have ended by now, or the one that waits, have begun."""
        self.look(now)
        return self._overdue > 0 or (self.queued is not None and now - self.queued >= self.rules.timeout)

    def is_wanting(self, now: float, lag: float = 0.0) -> bool:
        """Whether what is known is so old, or so little, that a run is worth waiting for.

        Args:
            now: by the clock.
            lag: seconds by which the next run is begun later than it is due.
        """
        self.look(now)
        # The next run begins when the ttl is over, and is given so much time: what was found last serves
        # until then. It is older where nobody asked in the meantime.
        return self._finding is None or now > self.due_at + lag + self.rules.timeout

    def queue(self, now: float) -> None:
        """Note that a run waits to be begun; there must be none yet. Its time does not run before it is."""
        self.queued = now

    def begin(self, now: float) -> None:
        """Note that a run has begun; there must be none under way."""
        self.queued = None
        self.since = now
        self._overdue = 0

    def end(self, finding: Finding, now: float) -> None:
        """Note what the run has found; nothing is, where its time was up before."""
        self.look(now)
        since, overdue = self.since, self._overdue
        self.abandon()
        if since is not None and not overdue:
            self.note(finding, now, now - since)

    def abandon(self) -> None:
        """Note that the run has ended without a finding that says anything: it was cancelled from outside."""
        self.queued = self.since = None
        self._overdue = 0

    def note(self, finding: Finding, at: float, took: float | None, times: int = 1) -> None:
        """Take *finding* as the last one; as so many in a row, all the same."""
        self._finding = finding
        self._found_at = at
        self.took = took
        if finding.status is Status.FAIL:
            self._passes = 0
            self.failures += times
            # Whoever has never passed need not fail several times to be believed.
            self._down = self._down or not self._passed or self.failures >= self.rules.fail_after
        elif finding.status is not Status.UNKNOWN:
            self.failures = 0
            self._passes += times
            if not self._passed or self._passes >= self.rules.pass_after:
                self._down = False
            self._passed = True

    def look(self, now: float) -> None:
        """Count the run that is under way as failed, as often as its time is up."""
        if self.since is None:
            return
        rules = self.rules
        over = now - self.since - rules.timeout
        if over < 0.0:
            return
        period = max(rules.timeout, rules.failed_ttl)
        times = 1 + int(over / period)
        if times > self._overdue:
            finding = Finding(Status.FAIL, f"no answer within {rules.timeout:g} s")
            at = self.since + rules.timeout + (times - 1) * period
            self.note(finding, at, None, times - self._overdue)
            self._overdue = times

    def standing(self, now: float) -> Standing:
        """Return what counts now."""
        self.look(now)
        finding = self._finding
        if finding is None:
            return Standing(Status.UNKNOWN, self._nothing_yet(), None, None, stale=False)
        age = max(0.0, now - self._found_at)
        if age > self.rules.stale_after:
            output = f"not known since {age:.0f} s{_after(finding.output)}"
            return Standing(Status.UNKNOWN, output, finding, age, stale=True)
        status, output = self._damped(finding, now)
        return Standing(status, output, finding, age, stale=False)

    def _nothing_yet(self) -> str:
        if self.since is not None:
            return "the first run is under way"
        return "not looked at yet" if self.queued is None else "waiting for a free thread or its event loop"

    def _damped(self, finding: Finding, now: float) -> tuple[Status, str]:
        status, rules = finding.status, self.rules
        if status is Status.FAIL and not self._down:
            return (
                Status.WARN,
                f"failing, {self.failures} of {rules.fail_after} in a row{_after(finding.output)}",
            )
        if status in {Status.PASS, Status.WARN} and self._down:
            return Status.FAIL, f"passing again, {self._passes} of {rules.pass_after} in a row"
        if status is Status.FAIL and not self._passed and now - self._born < rules.grace:
            return Status.UNKNOWN, f"starting{_after(finding.output)}"
        return status, finding.output


def _after(output: str) -> str:
    return f": {output}" if output else ""
