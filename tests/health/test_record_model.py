"""A record, step by step at random, against a model that keeps every finding and counts anew each time."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilient.engine.finding import Finding, Status
from resilient.health.record import Record, Rules

# Exact in binary, so that no sum is rounded.
SECONDS = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 16.0])
STEPS = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 8.0, 32.0])


@dataclass
class Found:
    """What was found when; *hung* where nothing was, in time."""

    status: Status
    at: float
    hung: bool = False


class Model:
    """All that was found, in order, and the run that is under way."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.found: list[Found] = []
        self.since: float | None = None
        self.queued: float | None = None

    @property
    def row(self) -> list[Found]:
        """What says something: it does its work, or it does not."""
        return [one for one in self.found if one.status is not Status.UNKNOWN]

    @property
    def failures(self) -> int:
        """How many there are at the end."""
        return _length(self.row, failed=True)

    @property
    def has_passed(self) -> bool:
        """Whether it ever has."""
        return any(one.status is not Status.FAIL for one in self.row)

    @property
    def is_down(self) -> bool:
        """Go through it all from the beginning."""
        down, passed = False, False
        for count in range(1, len(self.row) + 1):
            so_far = self.row[:count]
            if so_far[-1].status is Status.FAIL:
                down = down or not passed or _length(so_far, failed=True) >= self.rules.fail_after
            else:
                down = down and passed and _length(so_far, failed=False) < self.rules.pass_after
                passed = True
        return down

    def look(self, now: float) -> None:
        """Note each time at which the run that is under way was too late."""
        if self.since is None:
            return
        late = self.since + self.rules.timeout
        while late <= now:
            if not any(one.hung and one.at == late for one in self.found):
                self.found.append(Found(Status.FAIL, late, hung=True))
            late += max(self.rules.timeout, self.rules.failed_ttl)

    def is_overdue(self, now: float) -> bool:
        """Whether the time of the run that is under way is up."""
        return self.since is not None and now - self.since >= self.rules.timeout

    def is_stuck(self, now: float) -> bool:
        """Whether it, or its beginning, is late."""
        waited = 0.0 if self.queued is None else now - self.queued
        return self.is_overdue(now) or waited >= self.rules.timeout

    def due_at(self) -> float:
        """When it is to be run again."""
        last = self.found[-1]
        return last.at + (self.rules.failed_ttl if last.status is Status.FAIL else self.rules.ttl)

    def status(self, now: float) -> Status:
        """Return what counts."""
        if not self.found or now - self.found[-1].at > self.rules.stale_after:
            return Status.UNKNOWN
        last = self.found[-1].status
        if last is Status.UNKNOWN:
            return last
        if last is Status.FAIL and not self.is_down:
            return Status.WARN
        if last is not Status.FAIL and self.is_down:
            return Status.FAIL
        if last is Status.FAIL and not self.has_passed and now < self.rules.grace:
            return Status.UNKNOWN
        return last


def _length(row: list[Found], *, failed: bool) -> int:
    count = 0
    for one in reversed(row):
        if (one.status is Status.FAIL) is not failed:
            break
        count += 1
    return count


class RecordMachine(RuleBasedStateMachine):
    """Begin and end runs, in time and late, and let time pass."""

    @initialize(
        timeout=SECONDS,
        ttl=SECONDS,
        failed_ttl=SECONDS,
        fail_after=st.integers(1, 3),
        pass_after=st.integers(1, 3),
        grace=st.sampled_from([0.0, 1.0, 8.0]),
        stale_periods=st.sampled_from([1.0, 3.0]),
    )
    def start(
        self,
        *,
        timeout: float,
        ttl: float,
        failed_ttl: float,
        fail_after: int,
        pass_after: int,
        grace: float,
        stale_periods: float,
    ) -> None:
        stale_after = stale_periods * ttl + timeout
        rules = Rules(timeout, ttl, failed_ttl, fail_after, pass_after, grace, stale_after, background=False)
        self.now = 0.0
        self.record, self.model = Record(rules, self.now), Model(rules)

    @rule(seconds=STEPS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.model.since is self.model.queued is None)
    @rule()
    def queue(self) -> None:
        self.record.queue(self.now)
        self.model.queued = self.now

    @precondition(lambda self: self.model.queued is not None)
    @rule()
    def begin(self) -> None:
        self.record.begin(self.now)
        self.model.since, self.model.queued = self.now, None

    @precondition(lambda self: self.model.since is not None)
    @rule(status=st.sampled_from(Status))
    def end(self, status: Status) -> None:
        self.model.look(self.now)
        if not self.model.is_overdue(self.now):
            self.model.found.append(Found(status, self.now))
        self.model.since = None
        self.record.end(Finding(status), self.now)

    @precondition(lambda self: self.model.since is not self.model.queued)
    @rule(looks=st.booleans())
    def abandon(self, looks: bool) -> None:
        if looks:  # what nobody has looked at before is not counted
            self.model.look(self.now)
            self.record.look(self.now)
        self.model.since = self.model.queued = None
        self.record.abandon()

    @rule()
    def look(self) -> None:
        """Everything that is told of it is what the model tells."""
        self.model.look(self.now)
        wanting = self.record.is_wanting(self.now)
        standing = self.record.standing(self.now)
        found, rules = self.model.found, self.model.rules
        assert standing.status is self.model.status(self.now), (standing, found)
        assert self.record.failures == self.model.failures
        assert self.record.since == self.model.since
        assert self.record.is_stuck(self.now) is self.model.is_stuck(self.now)
        assert (standing.finding is None) is (not found)
        if found:
            assert standing.age == self.now - found[-1].at
            assert standing.stale is (standing.age > rules.stale_after)
            assert wanting is (self.now > self.model.due_at() + rules.timeout)
        else:
            assert wanting
        busy = self.model.since is not self.model.queued
        due = not busy and (not found or self.now >= self.model.due_at())
        assert self.record.is_due(self.now) is due

    @invariant()
    def hung_is_never_wanted(self) -> None:
        """Nobody waits for a run whose time is up."""
        if hasattr(self, "model") and self.model.is_overdue(self.now):
            self.model.look(self.now)
            assert not self.record.is_wanting(self.now)


TestRecord = RecordMachine.TestCase
