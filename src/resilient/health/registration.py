"""What is registered: checks and policies that are watched, and the rules about who may be where."""

from __future__ import annotations

import contextvars
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ..engine import params
from ..engine.finding import Finding, Status, Witness
from ..engine.policy import policies_of
from ..engine.shape import Shape, describe, shape_of
from .aggregation import ALL, LIVE, READY, STARTUP, with_dependencies
from .record import Record, Standing
from .report import Result
from .runs import Run
from .tidy import reason, tidy

__all__ = [
    "Checked",
    "Entry",
    "Facts",
    "Registry",
    "Watched",
    "facts_of",
    "is_coroutine_check",
    "judge_in",
    "kind_of",
    "testimony_of",
    "witnesses_in",
]

_GATES: Final = frozenset({LIVE, READY, STARTUP})
_GROUP: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_LONGEST_NAME: Final = 100
_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Facts:
    """What was said of a check when it was registered; see `Result`."""

    name: str
    kind: str
    critical: bool
    external: bool
    groups: frozenset[str]
    depends_on: tuple[str, ...]
    live_anyway: str | None


class Entry:
    """What is registered under a name and a kind."""

    __slots__ = ("facts", "told", "told_at")

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.told = Status.PASS  # what was announced last
        self.told_at = 0  # the number of the look at all of them that found it

    def result(self, now: float, at: datetime) -> Result:
        """Return how it stands; *now* and *at* are the same moment."""
        raise NotImplementedError

    def _result(
        self,
        standing: Standing,
        now: datetime,
        *,
        took: float | None = None,
        running_for: float | None = None,
        failures: int = 0,
    ) -> Result:
        """Return *standing* with what was said of it when it was registered."""
        facts, finding, age = self.facts, standing.finding, standing.age
        return Result(
            facts.name,
            facts.kind,
            standing.status,
            standing.output,
            None if finding is None else finding.value,
            None if finding is None else finding.unit,
            None if finding is None else finding.facts,
            critical=facts.critical,
            external=facts.external,
            groups=facts.groups,
            depends_on=facts.depends_on,
            at=None if age is None else now - timedelta(seconds=age),
            age=age,
            took=took,
            running_for=running_for,
            failures_in_a_row=failures,
            stale=standing.stale,
        )


class Checked(Entry):
    """A check, and what it has found. All but *facts* is guarded by the lock of whoever made it."""

    __slots__ = (
        "abandoned",
        "blamed",
        "check",
        "context",
        "heard",
        "is_async",
        "judge",
        "lag",
        "offer_loop",
        "record",
        "run",
    )

    def __init__(self, facts: Facts, check: Callable[[], Any], record: Record, judge: Witness | None) -> None:
        super().__init__(facts)
        self.check = check
        self.is_async = is_coroutine_check(check)
        self.context = contextvars.copy_context()
        self.offer_loop: Callable[[Any], object] | None = getattr(check, "offer_loop", None)
        self.judge = judge
        self.heard = 0 if judge is None else testimony_of(judge).calls or 0  # calls that it had seen by then
        self.record = record
        self.run: Run | None = None  # that is under way
        self.blamed = False  # whether it was told that its loop stood still
        self.abandoned = 0  # runs in a row that were cancelled from outside
        self.lag = 0.0  # seconds by which background runs come late, so that the processes of a fleet differ

    def begin(self, now: float, lag: float = 0.0) -> Run | None:
        """Return a new run, if one has been due for *lag* seconds and none is under way."""
        self._drop_lost_run(now)
        if self.run is not None or not self.record.is_due(now - lag):
            return None
        run = self.run = Run(self.check, self.record.rules.timeout, self)
        self.record.queue(now)
        return run

    def testimony(self) -> Finding | None:
        """Return what the judge says, if it has seen calls since the last look and they do not fail.

        Where they do, or none were let through, the check has to look for itself: who else would see that
        what it guards is back?
        """
        if self.judge is None:
            return None
        testimony = testimony_of(self.judge)
        before, self.heard = self.heard, testimony.calls or 0
        return testimony if self.heard > before and testimony.status is not Status.FAIL else None

    def hear(self) -> None:
        """Do not count what the judge has seen of a run of the check itself."""
        if self.judge is not None:
            self.heard = testimony_of(self.judge).calls or 0

    def begun(self, run: Run, now: float) -> bool:
        """Have the time of *run* run from now on; return False where it is not to begin any more."""
        if self.run is not run:
            return False
        self.record.begin(now)
        run.begin()
        return True

    def end(self, run: Run, finding: Finding | None, now: float) -> None:
        """Take what *run* has found; None: nothing, it was cancelled."""
        if self.run is not run:  # given up, or made by the parent of this process
            return
        if finding is None:
            self.abandoned += 1
            self.record.abandon()
        else:
            self.abandoned = 0
            self.record.end(finding, now)
        self.run = None

    def renew(self, now: float) -> None:
        """Begin anew: nothing was found, nothing is under way."""
        self.record = Record(self.record.rules, now)
        self.run = None

    def _drop_lost_run(self, now: float) -> None:
        # Where only one of the two knows of it, an interrupt has struck whoever was about to note it.
        half_noted = (self.run is not None) is not self.record.is_busy
        # Not before its time is up: whoever began it may be about to start it.
        lost = self.run is not None and self.record.is_stuck(now) and self.run.is_lost()
        if half_noted or lost:
            self.record.abandon()
            self.run = None

    def result(self, now: float, at: datetime) -> Result:
        """Return what counts of what it has found."""
        record = self.record
        return self._result(
            record.standing(now),
            at,
            took=record.took,
            running_for=None if self.run is None else record.running_for(now),
            failures=record.failures,
        )


class Watched(Entry):
    """A policy or a pool that tells what it sees of real traffic."""

    __slots__ = ("witness",)

    def __init__(self, facts: Facts, witness: Witness) -> None:
        super().__init__(facts)
        self.witness = witness

    def result(self, now: float, at: datetime) -> Result:  # noqa: ARG002 - it tells of this moment
        """Return what the witness tells; it is a failure only where that is critical."""
        finding = testimony_of(self.witness)
        status = finding.status
        if status is Status.FAIL and not self.facts.critical:
            status = Status.WARN
        return self._result(Standing(status, finding.output, finding, 0.0, stale=False), at)


def testimony_of(witness: Witness) -> Finding:
    """Return what *witness* tells; that it raises is a finding, too."""
    try:
        return tidy(witness.finding())
    except Exception as error:  # noqa: BLE001 - of somebody else's; a report never fails
        return tidy(Finding(Status.UNKNOWN, reason(error)))


class Registry:
    """What is registered, in order. Changes make a new tuple, so that readers take no lock."""

    def __init__(self) -> None:
        self.entries: tuple[Entry, ...] = ()
        self._named: dict[str, list[Entry]] = {}
        self._links = _Links(self.entries)

    def add(self, entry: Entry) -> None:
        """Register *entry*.

        Raises:
            ValueError: there is one of this name and kind, or it depends on what is not registered, or it is
                for liveness and depends on what is outside.
        """
        facts = entry.facts
        named = self._named.get(facts.name, [])
        if any(other.facts.kind == facts.kind for other in named):
            raise ValueError(
                f"a {facts.kind} named {facts.name!r} is registered already: give this one another name"
            )
        self._check_dependencies(facts)
        self._named[facts.name] = [*named, entry]
        self._set((*self.entries, entry))

    def free_name(self, name: str, kind: str) -> str:
        """Return *name*, with a number where there is one of this kind and name already."""
        number, free = 1, name
        while any(entry.facts.kind == kind for entry in self._named.get(free, ())):
            number += 1
            free = f"{name} {number}"
        return free

    def change(self, entry: Entry, facts: Facts) -> None:
        """Register *entry*, which is there already, with other words.

        Raises:
            ValueError: as `add`, or it would depend on itself.
        """
        self._check_dependencies(facts)
        entry.facts = facts
        self._set([*self.entries])  # another tuple, as it says something else

    def remove(self, name: str) -> None:
        """Take out everything named *name*.

        Raises:
            KeyError: there is nothing of this name.
            ValueError: something depends on it.
        """
        if name not in self._named:
            raise KeyError(name)
        for entry in self.entries:
            if name in entry.facts.depends_on:
                raise ValueError(f"{entry.facts.name!r} depends on {name!r}: remove that first")
        gone = self._named.pop(name)
        self._set(tuple(entry for entry in self.entries if entry not in gone))

    @property
    def groups(self) -> frozenset[str]:
        """The groups there are."""
        return frozenset({ALL, *_GATES}).union(*(entry.facts.groups for entry in self.entries))

    def below(self, names: Iterable[str]) -> list[str]:
        """Return *names* and all that they stand on, the nearest first."""
        return with_dependencies(names, self.links.needs)

    @property
    def links(self) -> _Links:
        """What stands on what."""
        links, entries = self._links, self.entries
        if links.of is not entries:
            # From what one reader has, which nobody changes: whoever comes second does it once more.
            links = self._links = _Links(entries)
        return links

    def _set(self, entries: Iterable[Entry]) -> None:
        self.entries = (*entries,)

    def _check_dependencies(self, facts: Facts) -> None:
        for name in facts.depends_on:
            if name not in self._named:
                rule = "must be registered before what depends on it"
                params.refuse(ValueError, "depends_on", rule, name)
        for name in self.below(facts.depends_on) if facts.depends_on else ():
            if name == facts.name:
                params.refuse(ValueError, "depends_on", "must not lead back to the check itself", name)
            for other in self._named[name]:
                outside = other.facts.external and LIVE not in other.facts.groups
                if outside and LIVE in facts.groups and facts.live_anyway is None:
                    raise ValueError(
                        _deadly(f"depends_on of {facts.name!r}, which is in 'live',", repr(name))
                    )


class _Links:
    """What stands on what, as of one moment.

    Attributes:
        of: the entries of which this tells.
        needs: the names on which each name stands directly, where there are any.
        apart: the checks of which can be told without a word of a witness: neither they nor what they stand
            on have the name of one.
    """

    __slots__ = ("_alone", "_linked", "_together", "apart", "needs", "of")

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        needs: dict[str, tuple[str, ...]] = {}
        for facts in (entry.facts for entry in entries):
            if facts.depends_on:
                needs[facts.name] = (*needs.get(facts.name, ()), *facts.depends_on)
        witnesses = {entry.facts.name for entry in entries if isinstance(entry, Watched)}
        self.of = entries
        self.needs: Mapping[str, Sequence[str]] = needs
        self.apart = tuple(
            entry for entry in entries if witnesses.isdisjoint(with_dependencies((entry.facts.name,), needs))
        )
        # The names of all that stand on something, or that something stands on.
        self._linked = frozenset(needs).union(*needs.values())
        self._together = tuple(entry for entry in self.apart if entry.facts.name in self._linked)
        self._alone = frozenset(self.apart).difference(self._together)

    def touched_by(self, entry: Entry) -> Sequence[Entry]:
        """Return those of *apart* for whom it may be news what has become of *entry*: mostly nobody else."""
        if entry in self._alone:
            return (entry,)
        return self._together if entry.facts.name in self._linked else ()


def facts_of(
    name: object,
    kind: str,
    *,
    critical: object,
    external: object,
    groups: object,
    depends_on: object,
    live_anyway: object,
) -> Facts:
    """Return the arguments of a registration, checked, with what is not said filled in.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or something outside is to decide about liveness.
    """
    checked_name, is_external = _name("name", name), params.flag("external", external)
    if checked_name in {ALL, *_GATES}:
        params.refuse(ValueError, "name", "must not be that of a group", name)
    chosen = None if groups is None else frozenset(_group(group) for group in _names("groups", groups))
    if critical is not None:
        params.flag("critical", critical)
    forced = None if live_anyway is None else params.named("live_anyway", live_anyway)
    is_critical = (
        bool(critical) if critical is not None else chosen is not None and not _GATES.isdisjoint(chosen)
    )
    if chosen is None:
        chosen = _default_groups(is_external, is_critical)
    if LIVE in chosen and is_external and forced is None:
        raise ValueError(_deadly(f"groups of the external check {checked_name!r}", "'live'"))
    return Facts(
        checked_name,
        kind,
        is_critical,
        is_external,
        chosen,
        tuple(_names("depends_on", depends_on)),
        forced,
    )


def kind_of(thing: object, otherwise: str) -> str:
    """Return what kind of check or witness *thing* is, as reports tell it: its own word, or *otherwise*."""
    kind = getattr(thing, "kind", None)
    return _CAPITAL.sub("_", kind if isinstance(kind, str) and kind.isidentifier() else otherwise).lower()


def is_coroutine_check(check: Callable[[], Any]) -> bool:
    """Whether *check* is awaited.

    Raises:
        TypeError: it is no function or object that can be a check.
    """
    if isinstance(check, type) or not callable(check):
        rule = "must be a function, or an object that can be called, and no class"
        params.refuse(TypeError, "check", rule, check)
    shape = shape_of(check)
    try:
        inspect.signature(check).bind()
    except TypeError as error:
        raise TypeError(f"check must need no arguments, {describe(check)} does: {error}") from None
    except ValueError:  # of something in C that does not tell
        pass
    if shape in {Shape.GENERATOR, Shape.ASYNC_GENERATOR}:
        raise TypeError(
            f"check must be a function or a coroutine function, {describe(check)} is a {shape.value}"
        )
    return shape is Shape.COROUTINE


def judge_in(given: Any) -> Witness | None:
    """Return the witness in *given* that tells how calls end.

    Raises:
        TypeError: it is no policy or pool.
        ValueError: none in it tells that.
    """
    if given is None:
        return None
    for witness in witnesses_in("judged_by", given):
        if testimony_of(witness).calls is not None:
            return witness
    rule = "must see how calls end, as circuit breakers and adaptive throttles do"
    return params.refuse(ValueError, "judged_by", rule, given)


def witnesses_in(parameter: str, given: Any) -> tuple[Witness, ...]:
    """Return the witnesses that *given* is, or consists of, or is decorated with.

    Raises:
        TypeError: there is none.
    """
    if isinstance(given, Witness):
        return (given,)
    parts: Iterable[Any] = getattr(given, "layers", ()) or policies_of(given)
    witnesses = tuple(part for part in parts if isinstance(part, Witness))
    if not witnesses:
        rule = (
            "must be a policy, a pool, or whatever has a name and finding(); or a function with such policies"
        )
        params.refuse(TypeError, parameter, rule, given)
    return witnesses


def _default_groups(external: bool, critical: bool) -> frozenset[str]:
    if not external:
        return frozenset({READY})
    return frozenset({READY, STARTUP}) if critical else frozenset()


def _names(parameter: str, value: object) -> Collection[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        params.refuse(TypeError, parameter, "must be several names, such as a list", value)
    return dict.fromkeys(_name(parameter, one) for one in value)


def _name(parameter: str, value: object) -> str:
    name = params.named(parameter, value)
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        params.refuse(
            ValueError, parameter, f"must be printable, with at most {_LONGEST_NAME} characters", value
        )
    return name


def _group(name: str) -> str:
    if name == ALL or _GROUP.fullmatch(name) is None:
        rule = "must be of small letters, digits, '.', '_' and '-', and not 'all', which everything is in"
        params.refuse(ValueError, "a group", rule, name)
    return name


def _deadly(what: str, whom: str) -> str:
    return (
        f"{what} must not name {whom}: when something outside fails, every process that looks at it would be "
        "killed and started again, which helps none of them; put the check into 'ready', or say "
        "external=False if it looks at this process only, or live_anyway='the reason'"
    )
