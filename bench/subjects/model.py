"""The shape of a subject and the functions it guards."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Work = Callable[[int], Any]

ARGUMENT = 1
"""What every call is made with; the guarded function returns it."""

OK = 200
"""The status with which an app that was reached answers."""

TOO_MANY_REQUESTS = 429
"""The status with which a limit answers in its place."""


class BrokenError(Exception):
    """The failure of the guarded function."""


class Outcome(enum.Enum):
    """What one call of a subject must do; checked before anything is timed."""

    RETURNS = "calls the function and returns its result"
    REMEMBERS = "returns the result without calling the function"
    FAILS = "calls the function and passes its exception on"
    REJECTS = "raises an error of its own without calling the function"
    ALLOWS = "allows, with no function to call"
    DENIES = "denies without raising"
    ANSWERS = "calls the function in an app that answers with 200"
    REFUSES = "answers with 429 in place of the app"

    @property
    def raises(self) -> bool:
        """Say whether a call ends in an exception."""
        return self in (Outcome.FAILS, Outcome.REJECTS)

    @property
    def reaches_the_function(self) -> bool:
        """Say whether a call enters the guarded function."""
        return self in (Outcome.RETURNS, Outcome.FAILS, Outcome.ANSWERS)

    def fits(self, result: object) -> bool:
        """Say whether a call may end with this: what it returned, or the exception it raised."""
        if self is Outcome.FAILS:
            return isinstance(result, BrokenError)
        if self is Outcome.REJECTS:
            return isinstance(result, Exception) and not isinstance(result, BrokenError)
        expected = _RESULTS.get(self, ARGUMENT)
        # The type too: 1 == True, and a count is no permission.
        return type(result) is type(expected) and result == expected


_RESULTS: Mapping[Outcome, object] = {
    Outcome.ALLOWS: True,
    Outcome.DENIES: False,
    Outcome.ANSWERS: OK,
    Outcome.REFUSES: TOO_MANY_REQUESTS,
}
"""What comes of a call where it is not the function's result."""


def as_it_is(result: Any) -> Any:
    """Read a result that says by itself what came of the call."""
    return result


@dataclass(frozen=True, slots=True)
class Crowd:
    """Threads that make their calls all at once.

    Args:
        threads: How many, >= 2.
        slots: How many of them may be in the guarded function at once; checked before anything is timed.
        rest: Seconds for which the guarded function leaves the processor to others, as a query does; 0: it
            returns at once.
    """

    threads: int
    slots: int
    rest: float = 0.0


@dataclass(frozen=True, slots=True)
class Subject:
    """One library doing one job.

    Args:
        family: The job; subjects of one family are compared with one another.
        name: The library, with what is special about its settings in brackets.
        build: Takes the function to guard, returns it guarded. Runs on the event loop when *awaited*, and may
            then be a coroutine function itself.
        package: Distribution whose version goes into the results; None for the standard library.
        awaited: The guarded function is a coroutine function.
        outcome: What a call must do.
        read: Turns what a call returned into what the outcome is about, such as a decision into whether it
            allows. Only for checking, never timed.
        crowd: Who calls; None: one thread alone. A crowd calls functions only, and its figures are the time
            on the wall for one call of any of them.
    """

    family: str
    name: str
    build: Callable[[Work], Any]
    package: str | None = None
    awaited: bool = False
    outcome: Outcome = Outcome.RETURNS
    read: Callable[[Any], object] = as_it_is
    crowd: Crowd | None = None

    @property
    def id(self) -> str:
        """Return `family/name`, by which targets and `--only` speak of the subject."""
        return f"{self.family}/{self.name}"

    @property
    def callers(self) -> int:
        """Return how many call at once."""
        return self.crowd.threads if self.crowd else 1

    @property
    def rests(self) -> bool:
        """Say whether the guarded function keeps others waiting, so that how long they do is of interest."""
        return self.crowd is not None and self.crowd.rest > 0.0


Row = tuple[str, str | None, Callable[[Work], Any]]
"""One line of a family's table: name, package, builder."""


def family(
    title: str,
    *rows: Row,
    awaited: bool = False,
    outcome: Outcome = Outcome.RETURNS,
    crowd: Crowd | None = None,
) -> tuple[Subject, ...]:
    """Return the subjects of one family."""
    return tuple(
        Subject(title, name, build, package, awaited, outcome, crowd=crowd) for name, package, build in rows
    )


def make_work(*, awaited: bool, fails: bool, rest: float = 0.0) -> Work:
    """Return a fresh function to guard, so that no subject meets the marks another left on it.

    Args:
        awaited: Make a coroutine function.
        fails: Raise `BrokenError` instead of returning the argument.
        rest: Seconds it leaves the processor to others before it returns; only if neither of the above.
    """

    def works(x: int) -> int:
        return x

    def breaks(x: int) -> int:
        raise BrokenError(x)

    def rests(x: int) -> int:
        time.sleep(rest)
        return x

    async def works_async(x: int) -> int:
        return x

    async def breaks_async(x: int) -> int:
        raise BrokenError(x)

    if awaited:
        return breaks_async if fails else works_async
    if fails:
        return breaks
    return rests if rest else works


def counted(work: Work, *, awaited: bool, note: Callable[[int], object]) -> Work:
    """Return *work* with *note* told at each entry how many are inside: for checking, never for timing."""
    inside: list[None] = []

    def counting(x: int) -> Any:
        inside.append(None)
        note(len(inside))
        try:
            return work(x)
        finally:
            inside.pop()

    async def counting_async(x: int) -> Any:
        inside.append(None)
        note(len(inside))
        try:
            return await work(x)
        finally:
            inside.pop()

    return counting_async if awaited else counting
