"""What we promised: a row per promise. Later parts of the library add theirs here."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import arithmetic, telemetry, waiting


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that must not be exceeded.

    Args:
        ours: Subject id of ours.
        against: Subject id of what it is compared with.
        at_most: The largest allowed median of the ratios ours/against.
    """

    ours: str
    against: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Surplus:
    """Time that ours may add to something it wraps: where a ratio would say more of that than of ours.

    Args:
        ours: Subject id of ours.
        against: Subject id of what it is compared with.
        at_most: The largest allowed median of the differences ours - against, in microseconds.
    """

    ours: str
    against: str
    at_most: float


@dataclass(frozen=True, slots=True)
class FrameBudget:
    """Python frames one call of ours may enter, the guarded function's included."""

    ours: str
    at_most: int


TARGETS: tuple[Target, ...] = (
    Target("breaker/resilient", "breaker/pybreaker", 0.30),
    Target("breaker/resilient", "breaker/circuitbreaker", 0.75),
    Target("breaker/resilient", "breaker/interlock-cb (time window)", 0.06),
    Target("retry/resilient", "baseline/plain wrapper", 1.5),
    Target("cache hit/resilient", "cache hit/cachetools TTLCache, lock", 0.35),
    Target("cache hit/resilient", "cache hit/cachebox", 1.0),
    Target("async breaker/resilient", "async breaker/hyx", 0.75),
    Target("async cache hit/resilient", "async cache hit/async-lru", 0.7),
    Target("async timeout/resilient", "async timeout/asyncio.timeout", 0.35),
    Target("bulkhead/resilient", "bulkhead/threading.BoundedSemaphore", 0.30),
    *(
        Target(f"{crowded}/resilient", f"{crowded}/threading.BoundedSemaphore", 1.0)
        for crowded in (
            "bulkhead, 32 threads, a slot for each",
            "bulkhead, 32 threads, 4 slots",
            "bulkhead, 32 threads, 4 slots, calls of 0.1 ms",
        )
    ),
    Target("async bulkhead/resilient", "async bulkhead/asyncio.Semaphore", 0.8),
    Target("pool/resilient", "pool/SQLAlchemy QueuePool", 0.35),
    *(
        Target(f"{waits}: {waiting.P99}/resilient", f"{waits}: {waiting.P99}/{waiting.IDEAL}", 1.2)
        for waits in (waiting.THREADS, waiting.TASKS)
    ),
    Target("breaker + retry + bulkhead/resilient", "breaker + retry + bulkhead/pyresilience", 0.30),
    Target(
        "breaker + retry + bulkhead/resilient",
        "breaker + retry + bulkhead/pybreaker + stamina + semaphore",
        0.06,
    ),
    Target(
        "async breaker + retry + bulkhead + timeout/resilient",
        "async breaker + retry + bulkhead + timeout/pyresilience",
        0.15,
    ),
    Target("rate limiter/resilient", "rate limiter/limits (fixed window)", 0.20),
    Target("redis decision/resilient", "redis decision/bare EVALSHA", 1.1),
    Target("redis decision/resilient (lease=100)", "redis decision/resilient", 0.05),
    Target("async redis decision/resilient", "async redis decision/bare EVALSHA", 1.1),
    Target("async redis decision/resilient (lease=100)", "async redis decision/resilient", 0.05),
    *(
        Target(f"{stack}/resilient", f"{stack}/{telemetry.Way.OFF}", 1.1)
        for stack in (telemetry.STACK, telemetry.ASYNC_STACK)
    ),
    Target(f"{telemetry.COLLECTING}/resilient", f"{telemetry.COLLECTING}/{telemetry.RECORDED}", 1.3),
    Target("import/resilient", "import/its five dependencies", 1.2),
)

SURPLUSES: tuple[Surplus, ...] = (
    Surplus("asgi middleware/resilient", "asgi middleware/bare app", 10.0),
    Surplus("wsgi middleware/resilient", "wsgi middleware/bare app", 10.0),
)

FRAME_BUDGETS: tuple[FrameBudget, ...] = (
    FrameBudget("breaker/resilient", 4),
    FrameBudget("retry/resilient", 2),
    FrameBudget("rate limiter/resilient", 2),
    FrameBudget("bulkhead/resilient", 2),
    FrameBudget("async bulkhead/resilient", 2),
    FrameBudget("async breaker + retry + timeout/resilient (and a fallback)", 10),
    FrameBudget("async breaker + retry + bulkhead + timeout/resilient", 10),
)


class Verdict(enum.StrEnum):
    """What became of a promise in one run."""

    MET = "met"
    MISSED = "MISSED"
    ABSENT = "ABSENT"


class Unit(enum.StrEnum):
    """What a promise's figures count."""

    RATIO = "ratio"
    MICROSECONDS = "microseconds more"
    FRAMES = "frames"


@dataclass(frozen=True, slots=True)
class Judged:
    """A promise, the figure measured for it and the verdict.

    Args:
        what: Ours.
        against: What it is compared with; None for a number of frames.
        at_most: The promise.
        figure: What was measured, with its quartiles; None if a side of it is absent.
        unit: What *at_most* and *figure* count.
    """

    what: str
    against: str | None
    at_most: float
    figure: arithmetic.Spread | None
    unit: Unit

    @property
    def verdict(self) -> Verdict:
        """Return met, missed, or absent where there is no figure: a promise nobody measured is not kept."""
        if self.figure is None:
            return Verdict.ABSENT
        return Verdict.MET if self.figure.median <= self.at_most else Verdict.MISSED


def judge(
    samples: Mapping[str, Sequence[float]],
    frames: Mapping[str, int],
    selected: frozenset[str],
) -> list[Judged]:
    """Return a verdict on each promise whose subjects were *selected* for this run.

    Args:
        samples: Nanoseconds per call and round, by subject id.
        frames: Frames per call, by subject id.
        selected: Subject ids the run was asked for, whether they could be measured or not.
    """
    timed: list[Target | Surplus] = [*TARGETS, *SURPLUSES]
    chosen = [_time(one, samples) for one in timed if {one.ours, one.against} <= selected]
    return chosen + [_frames(budget, frames) for budget in FRAME_BUDGETS if budget.ours in selected]


def _time(promise: Target | Surplus, samples: Mapping[str, Sequence[float]]) -> Judged:
    unit = Unit.RATIO if isinstance(promise, Target) else Unit.MICROSECONDS
    ours, theirs = samples.get(promise.ours), samples.get(promise.against)
    figure = arithmetic.spread(_COMPARED[unit](ours, theirs)) if ours and theirs else None
    return Judged(promise.ours, promise.against, promise.at_most, figure, unit)


def _microseconds(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [nanoseconds / 1000 for nanoseconds in arithmetic.differences(ours, theirs)]


_COMPARED = {Unit.RATIO: arithmetic.ratios, Unit.MICROSECONDS: _microseconds}


def _frames(budget: FrameBudget, frames: Mapping[str, int]) -> Judged:
    entered = frames.get(budget.ours)
    figure = None if entered is None else arithmetic.spread([entered])
    return Judged(budget.ours, None, budget.at_most, figure, Unit.FRAMES)
