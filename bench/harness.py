"""Timing in interleaved rounds: one sample of every subject, then again, then again."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import statistics
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from types import FrameType, FunctionType
from typing import Any, Self, cast

from bench import resources
from bench.arithmetic import calls_for
from bench.crowd import Together
from bench.subjects.model import ARGUMENT, Outcome, Subject, Work, counted, make_work

WARM_UP_CALLS = 200
"""Calls before anything is timed: they fill caches, open breakers and let the interpreter specialise."""

FEW_CALLS = 16
"""Calls with which one begins to find out how many fill a sample."""

CHECK_CALLS = 20

CROWD_SHARE = 0.5
"""How much of a sample each thread of a crowd does: together that is many of the interpreter's turns."""

CHECK_REST = 0.0002
"""Seconds the guarded function rests while a crowd is checked: enough for all to meet inside it."""

_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s:()'\"]+/)+")


class WrongBehaviourError(Exception):
    """A subject does not do what its family is about, so its time would mean nothing."""


@dataclass(slots=True)
class Runner:
    """A subject ready to be timed, and its samples so far.

    Args:
        subject: What is measured.
        call: The guarded function.
        loop: Calls it so many times, returns the seconds that took; awaited if the subject is. Of a crowd,
            each thread calls it so many times.
        frames: Python frames one call enters, the guarded function's included.
        calls: Calls in one sample.
        samples: Nanoseconds per call, one for each round.
        longest: Nanoseconds the longest call took, one for each round; only of a crowd whose calls rest, and
            so wait for one another.
    """

    subject: Subject
    call: Work
    loop: Callable[[Work, int], Any]
    frames: int = 0
    calls: int = 1
    samples: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)

    def note(self, took: float) -> None:
        """Keep what a sample *took*, in seconds."""
        self.samples.append(took / self.calls * 1e9)
        if isinstance(self.loop, Together) and self.subject.rests:
            self.longest.append(self.loop.longest * 1e9)


@dataclass(frozen=True, slots=True)
class Absent:
    """A subject that could not be measured, and why."""

    subject: Subject
    reason: str


class Harness:
    """Prepare subjects and take their samples, the asynchronous ones on one event loop.

    Args:
        sample: Seconds one sample takes, > 0; each thread of a crowd, half as many.
    """

    def __init__(self, sample: float) -> None:
        self._sample = sample
        self._asyncio = asyncio.Runner()

    def __enter__(self) -> Self:
        self._asyncio.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._asyncio.run(resources.close())
        finally:
            self._asyncio.close()

    def prepare(self, subject: Subject) -> Runner | Absent:
        """Build a subject, check that it does its job, count its frames and size its samples.

        Whatever goes wrong makes it absent: a peer that is not installed or has changed its API must not stop
        the others, and must not vanish either.
        """
        try:
            self._check(subject)
            runner = Runner(subject, self._build(subject, _work(subject)), _loop(subject))
            self._time(runner, _each(WARM_UP_CALLS, subject))
            runner.frames = self._frames(runner)
            runner.calls = self._calibrate(runner)
        except Exception as error:
            return Absent(subject, reason(error))
        return runner

    def measure(self, runners: Sequence[Runner], rounds: int) -> None:
        """Take one sample of each runner per round, there and back again in turn.

        Turning round each time spares any subject from always being first or always following the same one.
        """
        for number in range(rounds):
            with _no_gc():
                for runner in runners if number % 2 == 0 else reversed(runners):
                    runner.note(self._time(runner, runner.calls))

    def _build(self, subject: Subject, work: Work) -> Work:
        async def build() -> Any:
            built = subject.build(work)
            return await built if inspect.isawaitable(built) else built

        # Some asynchronous peers look for the running loop as they decorate, and some must be started on it.
        call: Work = self._run(build()) if subject.awaited else subject.build(work)
        return call

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # In a context of its own: what one subject leaves in its context variables is nobody else's burden.
        return self._asyncio.run(coroutine, context=copy_context())

    def _check(self, subject: Subject) -> None:
        inside: list[int] = []
        work = _work(subject, rest=CHECK_REST)
        call = self._build(subject, counted(work, awaited=subject.awaited, note=inside.append))
        for _ in repeat(None, WARM_UP_CALLS):
            self._outcome(subject, call)
        inside.clear()
        verify(subject.outcome, self._outcomes(subject, call), len(inside))
        if subject.crowd:
            verify_slots(subject.crowd.slots, inside)

    def _outcomes(self, subject: Subject, call: Work) -> list[object]:
        results: list[object] = []

        def ask(call: Work, calls: int) -> float:
            results.extend([self._outcome(subject, call) for _ in repeat(None, calls)])
            return 0.0

        _crowded(subject, ask)(call, CHECK_CALLS)
        return results

    def _outcome(self, subject: Subject, call: Work) -> object:
        try:
            return subject.read(self._run(call(ARGUMENT)) if subject.awaited else call(ARGUMENT))
        except Exception as error:
            # Some peers raise one stored instance again and again: its traceback would grow for ever.
            return error.with_traceback(None)

    def _frames(self, runner: Runner) -> int:
        count = self._count_async if runner.subject.awaited else count_frames
        return statistics.median_low([count(runner.call) for _ in range(5)])

    def _count_async(self, call: Work) -> int:
        entered: int = self._run(count_frames_async(call))
        return entered

    def _calibrate(self, runner: Runner) -> int:
        calls = _each(FEW_CALLS, runner.subject)
        sample = self._sample * (CROWD_SHARE if runner.subject.crowd else 1.0)
        # The best of three: one preempted run must not leave a subject with samples too short to time.
        while (took := min(self._time(runner, calls) for _ in range(3))) < sample / 4:
            calls *= 2
        return calls_for(sample, calls=calls, took=took)

    def _time(self, runner: Runner, calls: int) -> float:
        ran = runner.loop(runner.call, calls)
        took: float = self._run(ran) if runner.subject.awaited else ran
        if runner.subject.outcome.raises:
            self._outcome(runner.subject, runner.call)
        return took


def _work(subject: Subject, *, rest: float | None = None) -> Work:
    """Return the function to guard; *rest* is what a crowd's has instead of its own."""
    if subject.crowd is None:
        return make_work(awaited=subject.awaited, fails=subject.outcome.raises)
    chosen = subject.crowd.rest if rest is None else rest
    return make_work(awaited=False, fails=subject.outcome.raises, rest=chosen)


def _each(calls: int, subject: Subject) -> int:
    """Return how many of so many *calls* each of those makes who call at once; at least 1."""
    return max(1, calls // subject.callers)


def _crowded(subject: Subject, loop: Callable[[Work, int], Any]) -> Callable[[Work, int], Any]:
    return Together(loop, subject.crowd.threads) if subject.crowd else loop


def _loop(subject: Subject) -> Callable[[Work, int], Any]:
    return _crowded(subject, own_loop(subject))


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def verify(outcome: Outcome, results: Sequence[object], entered: int) -> None:
    """Check that calls of a subject did what its family is about.

    Args:
        outcome: What each call must do.
        results: What the calls returned or raised.
        entered: How often the guarded function was entered by them.

    Raises:
        WrongBehaviourError: If a call ended otherwise, or the function was entered too often or too rarely.
    """
    for result in results:
        if not outcome.fits(result):
            raise WrongBehaviourError(f"a call that {outcome.value} gave {result!r}")
    expected = len(results) if outcome.reaches_the_function else 0
    if entered != expected:
        raise WrongBehaviourError(
            f"{len(results)} calls entered the function {entered} times, not {expected}"
        )


def verify_slots(slots: int, inside: Sequence[int]) -> None:
    """Check that a crowd was kept to its slots.

    Args:
        slots: How many may be in the guarded function at once.
        inside: How many were, at each entry.

    Raises:
        WrongBehaviourError: If there were more.
    """
    if (most := max(inside)) > slots:
        raise WrongBehaviourError(f"{most} calls were in the function at once, not {slots}")


def reason(error: Exception) -> str:
    """Say in one line why a subject is absent, without the folders of this machine."""
    line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {_FOLDERS.sub('', line)}"


def count_frames(call: Work) -> int:
    """Return how many Python frames one call enters; an `Exception` it raises is passed over."""
    tally = _Tally()
    sys.setprofile(tally)
    try:
        call(ARGUMENT)
    except Exception:
        pass
    finally:
        sys.setprofile(None)
    return tally.entered


async def count_frames_async(call: Work) -> int:
    """Return how many Python frames one awaited call enters, those of the event loop too if it suspends."""
    tally = _Tally()
    sys.setprofile(tally)
    try:
        await call(ARGUMENT)
    except Exception:
        pass
    finally:
        sys.setprofile(None)
    return tally.entered


class _Tally:
    """A profile function that counts the frames entered."""

    def __init__(self) -> None:
        self.entered = 0

    def __call__(self, _frame: FrameType, event: str, _arg: object) -> None:
        self.entered += event == "call"


# -- loops -----------------------------------------------------------------------------------------------


def own_loop(subject: Subject) -> Callable[[Work, int], Any]:
    """Return the loop a subject needs, with a code object of its own.

    CPython specialises each call site for what it has seen there. One loop for all subjects would be
    specialised for none of them, and would cost the cheapest ones most.
    """
    if subject.awaited:
        loop: Any = _await_raising if subject.outcome.raises else _await_returning
    else:
        loop = _call_raising if subject.outcome.raises else _call_returning
        loop = _call_timed if subject.rests else loop
    return cast("Callable[[Work, int], Any]", FunctionType(loop.__code__.replace(), loop.__globals__))


def _call_returning(call: Work, calls: int) -> float:
    started = perf_counter()
    for _ in repeat(None, calls):
        call(ARGUMENT)
    return perf_counter() - started


def _call_raising(call: Work, calls: int) -> float:
    started = perf_counter()
    for _ in repeat(None, calls):
        try:  # noqa: SIM105 - `suppress` is three calls of its own
            call(ARGUMENT)
        except Exception:
            pass
    return perf_counter() - started


def _call_timed(call: Work, calls: int) -> float:
    """Return what the longest call took."""
    longest = 0.0
    for _ in repeat(None, calls):
        started = perf_counter()
        call(ARGUMENT)
        longest = max(longest, perf_counter() - started)
    return longest


async def _await_returning(call: Work, calls: int) -> float:
    started = perf_counter()
    for _ in repeat(None, calls):
        await call(ARGUMENT)
    # One turn of the loop: who leaves work to it, such as cancelled timers to sweep, pays for it here.
    await asyncio.sleep(0)
    return perf_counter() - started


async def _await_raising(call: Work, calls: int) -> float:
    started = perf_counter()
    for _ in repeat(None, calls):
        try:  # noqa: SIM105
            await call(ARGUMENT)
        except Exception:
            pass
    await asyncio.sleep(0)
    return perf_counter() - started
