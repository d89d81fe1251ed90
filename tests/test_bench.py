"""The benchmark's own arithmetic, and that it runs: a figure from a broken harness is worse than none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from time import process_time, sleep
from typing import Any

import pytest
import redis
from bench import arithmetic, crowd, overhead, report, resources, startup, targets, telemetry, waiting
from bench.arithmetic import Spread
from bench.crowd import Together
from bench.harness import (
    WARM_UP_CALLS,
    Absent,
    Harness,
    Runner,
    WrongBehaviourError,
    own_loop,
    reason,
    verify,
)
from bench.report import Count, Results, Series
from bench.subjects import SUBJECTS, Outcome, Subject, Work, bulkheads
from bench.subjects.baselines import bare, plain_wrapper, plain_wrapper_async
from bench.subjects.bulkheads import bounded_semaphore, full, full_async
from bench.subjects.deciders import PLENTY, resilient
from bench.subjects.model import ARGUMENT, OK, TOO_MANY_REQUESTS, BrokenError, Crowd
from bench.subjects.pools import Setting, lifo_queue
from bench.subjects.requests import driven, served
from bench.subjects.shared_limiters import CALLED, bare_evalsha
from bench.targets import FrameBudget, Judged, Surplus, Target, Unit, Verdict
from bench.telemetry import Stack, Way
from bench.waiting import Queue

from resilient import CircuitBreaker
from resilient.engine.living import all_living
from tests.support.valkey import client_for

ROOT = Path(__file__).parents[1]


def test_spread_of_several_values_is_median_and_quartiles() -> None:
    """Quartiles are taken between the least and the largest value."""
    assert arithmetic.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_spread_of_one_value_is_that_value() -> None:
    """A run of one round has a figure too."""
    assert arithmetic.spread([2.0]) == Spread(2.0, 2.0, 2.0)


def test_spread_of_nothing_is_refused() -> None:
    """No figure is made up."""
    with pytest.raises(ValueError, match="must not be empty"):
        arithmetic.spread([])


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was ten times slower changes nothing."""
    assert arithmetic.ratios([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]) == [0.5, 0.5, 0.25]


def test_differences_are_taken_round_by_round() -> None:
    """What ours adds is the same in a slow round, though the medians are far apart."""
    assert arithmetic.differences([3.0, 12.0], [1.0, 10.0]) == [2.0, 2.0]


@pytest.mark.parametrize("compare", [arithmetic.ratios, arithmetic.differences])
def test_unequal_rounds_are_refused(compare: Any) -> None:
    """Samples that have no partner cannot be compared."""
    with pytest.raises(ValueError, match="zip"):
        compare([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("took", "expected"), [(0.5, 20), (1.0, 10), (1000.0, 1)])
def test_calls_for_fills_the_time_and_is_at_least_one(took: float, expected: int) -> None:
    """Ten calls took so long; how many fill one second?"""
    assert arithmetic.calls_for(1.0, calls=10, took=took) == expected


def test_table_compares_ours_with_each_of_its_family_and_no_other() -> None:
    """The fastest comes first; ours itself and families without ours have nothing to compare."""
    rows = report.tabulate(
        [
            Series("breaker", "slow", [4.0, 40.0]),
            Series("baseline", "bare", [1.0, 1.0]),
            Series("breaker", "resilient", [2.0, 20.0]),
        ]
    )

    assert [(row.name, row.ours_to_it and row.ours_to_it.median) for row in rows] == [
        ("resilient", None),
        ("slow", 0.5),
        ("bare", None),
    ]


def _promise(
    monkeypatch: pytest.MonkeyPatch,
    *,
    ratios: tuple[Target, ...] = (),
    surpluses: tuple[Surplus, ...] = (),
    frames: tuple[FrameBudget, ...] = (),
) -> None:
    """Promise these, and nothing else."""
    monkeypatch.setattr(targets, "TARGETS", ratios)
    monkeypatch.setattr(targets, "SURPLUSES", surpluses)
    monkeypatch.setattr(targets, "FRAME_BUDGETS", frames)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([1.0, 1.0], Verdict.MET), ([1.0, 1.1], Verdict.MISSED), (None, Verdict.ABSENT)],
)
def test_target_is_judged_by_the_median_ratio(
    monkeypatch: pytest.MonkeyPatch, ours: list[float] | None, verdict: Verdict
) -> None:
    """Exactly the limit is still met; nothing measured is nothing kept."""
    _promise(monkeypatch, ratios=(Target("a/x", "a/y", 0.5),))
    samples = {"a/y": [2.0, 2.0]} | ({"a/x": ours} if ours else {})

    (judged,) = targets.judge(samples, {}, frozenset({"a/x", "a/y"}))

    assert judged.verdict is verdict


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([6_000.0, 16_000.0], Verdict.MET), ([6_000.0, 16_100.0], Verdict.MISSED), (None, Verdict.ABSENT)],
)
def test_surplus_is_judged_by_the_median_difference_in_microseconds(
    monkeypatch: pytest.MonkeyPatch, ours: list[float] | None, verdict: Verdict
) -> None:
    """Five more than what it wraps, in a fast round and in a slow one."""
    _promise(monkeypatch, surpluses=(Surplus("a/x", "a/y", 5.0),))
    samples = {"a/y": [1_000.0, 11_000.0]} | ({"a/x": ours} if ours else {})

    (judged,) = targets.judge(samples, {}, frozenset({"a/x", "a/y"}))

    assert judged.verdict is verdict
    assert judged.unit is Unit.MICROSECONDS


@pytest.mark.parametrize(
    ("judged", "at_most", "measured"),
    [
        (Judged("a/x", "a/y", 0.5, Spread(0.25, 0.2, 0.3), Unit.RATIO), "0.50", "0.25 (0.20-0.30)"),
        (Judged("a/x", "a/y", 10.0, Spread(2.5, 2.0, 3.0), Unit.MICROSECONDS), "+10 µs", "+2.5 µs (2.0-3.0)"),
        (Judged("a/x", "a/y", 10.0, None, Unit.MICROSECONDS), "+10 µs", ""),
        (Judged("a/x", None, 4, Spread(4, 4, 4), Unit.FRAMES), "4", "4"),
        (Judged("a/x", None, 4, None, Unit.FRAMES), "4", ""),
    ],
)
def test_page_tells_each_kind_of_promise_in_its_unit(judged: Judged, at_most: str, measured: str) -> None:
    """A ratio, microseconds and frames must not be taken for one another."""
    against = judged.against or "frames"
    page = report.markdown(Results(report.describe_run(1, 0.001, ()), [], {}, [judged]))

    assert f"| a/x | {against} | {at_most} | {measured} | {judged.verdict} |" in page


@pytest.mark.parametrize(("frames", "verdict"), [({"a/x": 4}, "met"), ({"a/x": 5}, "MISSED"), ({}, "ABSENT")])
def test_frame_budget_is_judged_by_the_count(
    monkeypatch: pytest.MonkeyPatch, frames: dict[str, int], verdict: str
) -> None:
    """Frames do not wobble: one too many is too many."""
    _promise(monkeypatch, frames=(FrameBudget("a/x", 4),))

    (judged,) = targets.judge({}, frames, frozenset({"a/x"}))

    assert judged.verdict == verdict


def test_target_outside_the_selection_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` asks for less; it does not miss the rest."""
    _promise(monkeypatch, ratios=(Target("a/x", "a/y", 0.5),))

    assert targets.judge({"a/x": [1.0]}, {}, frozenset({"a/x"})) == []


def _listed() -> set[str]:
    """Return all there is to be measured, but for imports."""
    several = (*waiting.QUEUES, *telemetry.STACKS)
    return {subject.id for subject in SUBJECTS}.union(telemetry.COLLECTED, *(one.ids for one in several))


def test_every_promise_speaks_of_subjects_that_exist() -> None:
    """A misspelt id would make a promise that nobody ever measures."""
    known = _listed() | startup.STATEMENTS.keys()
    timed = [*targets.TARGETS, *targets.SURPLUSES]
    named = {name for promise in timed for name in (promise.ours, promise.against)}

    assert named | {budget.ours for budget in targets.FRAME_BUDGETS} <= known


def test_subjects_have_different_ids() -> None:
    """One id, one row."""
    assert len({subject.id for subject in SUBJECTS}) == len(SUBJECTS)


@pytest.mark.parametrize(
    ("outcome", "result", "entered"),
    [
        (Outcome.RETURNS, ARGUMENT, 1),
        (Outcome.REMEMBERS, ARGUMENT, 0),
        (Outcome.FAILS, BrokenError(), 1),
        (Outcome.REJECTS, RuntimeError(), 0),
        (Outcome.ALLOWS, True, 0),
        (Outcome.DENIES, False, 0),
        (Outcome.ANSWERS, OK, 1),
        (Outcome.REFUSES, TOO_MANY_REQUESTS, 0),
    ],
)
def test_subject_that_does_its_job_is_accepted(outcome: Outcome, result: object, entered: int) -> None:
    """Each family's behaviour, as it should be."""
    verify(outcome, [result], entered)


@pytest.mark.parametrize(
    ("outcome", "result", "entered"),
    [
        (Outcome.RETURNS, None, 1),
        (Outcome.RETURNS, ARGUMENT, 0),
        (Outcome.REMEMBERS, ARGUMENT, 1),
        (Outcome.FAILS, ARGUMENT, 1),
        (Outcome.REJECTS, BrokenError(), 0),
        (Outcome.REJECTS, RuntimeError(), 1),
        (Outcome.ALLOWS, False, 0),
        (Outcome.ALLOWS, 1, 0),
        (Outcome.ALLOWS, RuntimeError(), 0),
        (Outcome.DENIES, True, 0),
        (Outcome.DENIES, None, 0),
        (Outcome.ANSWERS, TOO_MANY_REQUESTS, 0),
        (Outcome.ANSWERS, OK, 0),
        (Outcome.REFUSES, OK, 1),
        (Outcome.REFUSES, TOO_MANY_REQUESTS, 1),
    ],
)
def test_subject_that_does_not_do_its_job_is_refused(outcome: Outcome, result: object, entered: int) -> None:
    """A cache that loads each time or a limiter that denies by mistake would be a fine but false figure."""
    with pytest.raises(WrongBehaviourError):
        verify(outcome, [result], entered)


def _missing(work: Work) -> Work:
    raise ImportError("cannot import name 'x' from 'peer' (/some/where/peer/__init__.py)")


def _wrong(work: Work) -> Work:
    return lambda x: ARGUMENT


@pytest.mark.parametrize(("build", "why"), [(_missing, "ImportError"), (_wrong, "WrongBehaviourError")])
def test_subject_that_is_missing_or_wrong_is_absent_with_the_reason(build: Any, why: str) -> None:
    """It neither stops the run nor vanishes."""
    with Harness(0.001) as harness:
        absent = harness.prepare(Subject("family", "peer", build))

    assert isinstance(absent, Absent)
    assert absent.reason.startswith(why)


# -- crowds ----------------------------------------------------------------------------------------------


def test_crowd_calls_all_at_once() -> None:
    """Each of its threads is there before the first has finished."""
    together = threading.Barrier(3, timeout=5.0)
    asked: list[int] = []

    def meet(call: Work, calls: int) -> float:
        together.wait()
        asked.append(call(calls))
        return 0.0

    Together(meet, 3)(lambda x: x, 7)

    assert asked == [7, 7, 7]


def test_time_of_a_crowd_lasts_from_its_start_to_its_last_and_is_shared_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Divided by the calls of one thread it is the time on the wall for one call of any."""
    monkeypatch.setattr(crowd, "perf_counter", iter([10.0, 11.0, 16.0, 12.0]).__next__)

    assert Together(lambda call, calls: 0.0, 3)(bare, 1) == 2.0


def test_longest_of_a_crowd_is_that_of_its_last_run() -> None:
    """Each sample has its own."""
    longest = iter([3.0, 9.0, 6.0, 2.0, 1.0, 4.0])
    together = Together(lambda call, calls: next(longest), 3)

    assert [together(bare, 1) and together.longest for _ in range(2)] == [9.0, 4.0]


def test_failure_in_a_crowd_is_not_lost() -> None:
    """A thread that gives up early would make a fine figure."""

    def fail(call: Work, calls: int) -> float:
        raise BrokenError

    with pytest.raises(BrokenError):
        Together(fail, 2)(bare, 1)


@pytest.mark.parametrize(("rest", "families"), [(0.0, ["f"]), (0.0002, ["f", "f: the longest"])])
def test_run_of_a_crowd_that_waits_tells_how_long_it_did(
    monkeypatch: pytest.MonkeyPatch, rest: float, families: list[str]
) -> None:
    """No call is shorter than its rest; where none rests there is nothing to tell."""
    crowd = Crowd(2, slots=1, rest=rest)
    subject = Subject("f", "x", partial(bounded_semaphore, slots=1), crowd=crowd)
    monkeypatch.setattr(overhead, "SUBJECTS", (subject,))

    rows = overhead.run("f/x", rounds=1, sample=0.004).rows

    assert [row.family for row in rows] == families
    assert rows[-1].ns.median >= rest * 1e9


@pytest.mark.parametrize("crowd", [Crowd(8, slots=2), Crowd(8, slots=2, rest=0.0001)])
def test_crowd_that_is_let_in_all_at_once_is_absent(crowd: Crowd) -> None:
    """Nothing is cheaper than a bulkhead that stops nobody."""
    with Harness(0.001) as harness:
        kept = harness.prepare(Subject("family", "kept", partial(bounded_semaphore, slots=2), crowd=crowd))
        free = harness.prepare(Subject("family", "free", bare, crowd=crowd))

    assert isinstance(kept, Runner)
    assert isinstance(free, Absent)
    assert free.reason.startswith("WrongBehaviourError")


def _turning_away(work: Work, slots: int) -> Work:
    free = [None] * slots

    def guarded(x: int) -> Any:
        free.pop()  # an IndexError where there is none
        try:
            return work(x)
        finally:
            free.append(None)

    return guarded


def _turning_away_async(work: Work, slots: int) -> Work:
    free = [None] * slots

    async def guarded(x: int) -> Any:
        free.pop()
        try:
            return await work(x)
        finally:
            free.append(None)

    return guarded


@pytest.mark.parametrize(
    ("fill", "guard", "awaited"), [(full, _turning_away, False), (full_async, _turning_away_async, True)]
)
def test_bulkhead_is_full_for_as_long_as_the_run_lasts(
    fill: Callable[..., Any], guard: Any, awaited: bool
) -> None:
    """Whoever fills it leaves with the run: no thread and no task is left behind."""
    subject = Subject("family", "x", partial(fill, guard), awaited=awaited, outcome=Outcome.REJECTS)
    with Harness(0.001) as harness:
        assert isinstance(harness.prepare(subject), Runner)


def _closed(work: Work, slots: int) -> Work:
    return lambda x: None


def _closed_async(work: Work, slots: int) -> Work:
    async def guarded(x: int) -> None: ...

    return guarded


@pytest.mark.parametrize(
    ("fill", "closed", "awaited"), [(full, _closed, False), (full_async, _closed_async, True)]
)
def test_bulkhead_that_cannot_be_filled_is_absent(
    monkeypatch: pytest.MonkeyPatch, fill: Callable[..., Any], closed: Any, awaited: bool
) -> None:
    """A call that never gets in is not waited for without end."""
    monkeypatch.setattr(bulkheads, "START", 0.01)
    subject = Subject("family", "x", partial(fill, closed), awaited=awaited, outcome=Outcome.REJECTS)
    with Harness(0.001) as harness:
        absent = harness.prepare(subject)

    assert isinstance(absent, Absent)
    assert absent.reason.startswith("TimeoutError")


# -- queues ----------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few wait, and not for long."""
    for name, value in {"BORROWERS": 6, "CONNECTIONS": 2, "AHEAD": 2, "RUSH": 4, "CONNECTING": 0.01}.items():
        monkeypatch.setattr(waiting, name, value)


def _fair(work: Work, setting: Setting) -> Work:
    """Lend to whoever has waited longest."""
    line = threading.Condition()
    inside: list[object] = []

    def guarded(x: int) -> Any:
        with line:
            inside.append(me := object())
            line.wait_for(lambda: me in inside[: setting.most])
        try:
            return work(x)
        finally:
            with line:
                inside.remove(me)
                line.notify_all()

    for _ in range(setting.least or 0):
        setting.connect()
    return guarded


def _greedy(work: Work, setting: Setting) -> Work:
    """Lend to those who came first, again and again."""
    guarded = _fair(work, setting)
    first: list[int] = []

    def greedy(x: int) -> Any:
        me = threading.get_ident()
        if len(first) < setting.most:
            first.append(me)
        if me not in first:
            sleep(0.08)
        return guarded(x)

    return greedy


@pytest.mark.usefixtures("few")
def test_whoever_is_kept_waiting_is_counted() -> None:
    """Those that get on make thousands of waits of nothing, and the median of them."""
    queues = [Queue("q", name, None, build, awaited=False) for name, build in (("a", _fair), ("b", _greedy))]

    found, failed = waiting.measure(queues, rounds=1, turns=6)

    assert not failed
    fair, greedy = found.values()
    assert fair.longest[0] < 0.06e9
    assert greedy.longest[0] >= 0.08e9
    assert greedy.p50[0] < fair.p50[0]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("awaited", [False, True])
def test_ideal_is_what_the_holds_of_those_before_take(awaited: bool) -> None:
    """Twice the hold, where there are three for each connection."""
    found, _ = waiting.measure([Queue("q", waiting.IDEAL, None, None, awaited)], rounds=2, turns=4)

    (ideal,) = found.values()
    assert len(ideal.p50) == len(ideal.p99) == 2
    assert ideal.p50[0] >= 2 * waiting.HOLD * 1e9
    assert ideal.made == []


@pytest.mark.usefixtures("few")
def test_connections_for_a_rush_are_those_beyond_what_was_there() -> None:
    """A pool that connects once more for those that come together, and one that has all it will ever have."""

    def eager(work: Work, setting: Setting) -> Work:
        guarded, called = _fair(work, setting), []

        def noting(x: int) -> Any:
            called.append(x)
            if len(called) == 3:
                setting.connect()
            return guarded(x)

        return noting

    queues = [Queue("q", name, None, build, awaited=False) for name, build in (("a", _fair), ("b", eager))]

    found, failed = waiting.measure(queues, rounds=1, turns=4)

    assert not failed
    assert [one.made for one in found.values()] == [[0], [1]]


@pytest.mark.usefixtures("few")
def test_queue_that_fails_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of its figures; the others go on, and what is missing keeps no promise."""
    queues = (
        Queue("q", "missing", "peer", lambda work, setting: _missing(work), awaited=False),
        Queue("q", "resilient", None, lifo_queue, awaited=False),
        Queue("q", waiting.IDEAL, None, None, awaited=False),
    )
    monkeypatch.setattr(overhead, "QUEUES", queues)
    ids = [f"q: {waiting.P99}/{name}" for name in ("missing", "resilient", waiting.IDEAL)]
    _promise(monkeypatch, ratios=(Target(ids[0], ids[2], 9.0), Target(ids[1], ids[2], 900.0)))

    results = overhead.run("q: *", rounds=1, sample=0.001)

    assert results.absent.keys() == queues[0].ids
    assert {why.partition(":")[0] for why in results.absent.values()} == {"ImportError"}
    assert [one.verdict for one in results.targets] == [Verdict.ABSENT, Verdict.MET]
    assert {row.family for row in results.rows} == {
        f"q: {figure}" for figure in (waiting.P50, waiting.P99, waiting.LONGEST)
    }
    assert results.run.packages.keys() == {"peer"}


def test_counts_are_told_in_every_form() -> None:
    """They have no nanoseconds, so they have tables of their own."""
    counts = [Count("pool: made", "mine", Spread(2.0, 1.0, 3.0), 4.0)]
    results = Results(report.describe_run(1, 0.001, ()), [], {}, [], counts)

    assert (
        "## Pool: made\n\n| subject | median | most |\n| --- | --- | --- |\n| mine | 2 | 4 |"
        in report.markdown(results)
    )
    assert "pool: made\n  subject  median  most\n  mine     2       4" in report.text(results)
    assert report.as_data(results)["counts"][0]["most"] == 4.0


# -- telemetry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", telemetry.STACKS)
def test_each_way_of_a_stack_is_called_in_turn(chosen: Stack) -> None:
    """A sample of each in each round, each call told of where it should be, and nothing told afterwards."""
    samples, failed = telemetry.measure([chosen], rounds=2, seconds=0.01)

    assert not failed
    assert samples.keys() == chosen.ids
    assert {len(taken) for taken in samples.values()} == {2}
    provider, reader = telemetry._sdk()
    assert telemetry._count_points(reader) == 0
    provider.shutdown()


def test_collection_falls_into_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that is over before the reader has collected goes on, and what that takes is in its time."""

    def slow(collect: Callable[..., None], *args: Any) -> None:
        end = process_time() + 0.03
        while process_time() < end:
            pass
        collect(*args)

    reader = telemetry._sdk()[1]
    monkeypatch.setattr(reader, "collect", partial(slow, reader.collect))
    called = telemetry._Called(bare(_echo), _PLAIN, reader)

    nanoseconds = asyncio.run(called.slice(0.0))

    assert nanoseconds * (called.called - WARM_UP_CALLS) >= 0.03e9


def _echo(x: int) -> int:
    return x


_PLAIN = Stack("s", lambda work, name: work, awaited=False)


def _deaf(work: Work, name: str) -> Work:
    """Leave out the breaker, by which calls are counted."""
    return work


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda work, name: _missing(work), "ImportError"),
        (lambda work, name: lambda x: None, "WrongBehaviourError: a call gave None"),
        (_deaf, "WrongBehaviourError: 0 were told of, not"),
    ],
)
def test_stack_that_fails_is_absent_in_all_its_ways(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[Work, str], Work], why: str
) -> None:
    """A stack that nobody hears of has its telemetry for nothing."""
    monkeypatch.setattr(telemetry, "STACKS", (Stack("t", build, awaited=False),))
    ids = [f"t/{way}" for way in (Way.ON, Way.OFF)]
    _promise(monkeypatch, ratios=(Target(ids[0], ids[1], 9.0),))

    results = overhead.run("t/*", rounds=1, sample=0.0001)

    assert results.absent.keys() == {f"t/{way}" for way in Way}
    assert all(one.startswith(why) for one in results.absent.values())
    assert [one.verdict for one in results.targets] == [Verdict.ABSENT]


def test_collection_is_compared_with_one_of_as_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a sample for each round, and recording takes its time on top of collecting."""
    monkeypatch.setattr(telemetry, "EACH", 2)

    results = overhead.run("collecting*", rounds=2, sample=0.001)

    assert not results.absent
    took = {row.name: row.ns.median for row in results.rows}
    assert took.keys() == {Way.ON, telemetry.READY_MADE, telemetry.RECORDED}
    assert took[telemetry.RECORDED] > took[telemetry.READY_MADE]


def test_what_others_leave_behind_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be told of as long as it lives; a policy of somebody else's is told of again afterwards."""
    monkeypatch.setattr(telemetry, "EACH", 1)
    other = CircuitBreaker("somebody else's")

    found = telemetry._metrics
    seen: list[str] = []

    def noting(data: Any) -> list[Any]:
        points = [point for metric in found(data) for point in metric.data.data_points]
        seen.extend(str(point.attributes.get("resilient.policy.name")) for point in points)
        return found(data)

    monkeypatch.setattr(telemetry, "_metrics", noting)
    telemetry.measure_collecting(1)

    assert seen
    assert other.name not in seen
    assert other in [place() for place in all_living()]


def test_collection_without_the_sdk_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, in each of its figures."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)

    results = overhead.run("collecting*", rounds=1, sample=0.001)

    assert results.absent.keys() == telemetry.COLLECTED
    assert {why.partition(":")[0] for why in results.absent.values()} == {"ModuleNotFoundError"}


# -- what subjects need ----------------------------------------------------------------------------------


def test_decision_is_read_before_it_is_judged() -> None:
    """What allows is said by an attribute here, by a bool there."""

    def decides(_: Work) -> Work:
        return lambda x: {"allowed": x == ARGUMENT}

    subject = Subject("family", "peer", decides, outcome=Outcome.ALLOWS, read=itemgetter("allowed"))
    with Harness(0.001) as harness:
        assert isinstance(harness.prepare(subject), Runner)


def test_awaited_builder_runs_on_the_loop_of_the_run() -> None:
    """Who must be started is started there, and what it keeps open is closed there when the run ends."""
    steps: list[tuple[str, asyncio.AbstractEventLoop]] = []

    @asynccontextmanager
    async def app() -> AsyncIterator[None]:
        steps.append(("opened", asyncio.get_running_loop()))
        yield
        steps.append(("closed", asyncio.get_running_loop()))

    async def build(work: Work) -> Work:
        await resources.keep_open(app())
        return work

    with Harness(0.001) as harness:
        assert isinstance(harness.prepare(Subject("family", "peer", build, awaited=True)), Runner)
        assert {step for step, _ in steps} == {"opened"}

    assert [step for step, _ in steps] == ["opened", "opened", "closed", "closed"]
    assert len({loop for _, loop in steps}) == 1


@pytest.mark.faults
def test_server_is_started_once_and_stopped_with_the_run() -> None:
    """Each who asks gets an empty database of its own on it."""
    with Harness(0.001):
        urls = [resources.valkey_url() for _ in range(2)]
        clients = [client_for(url) for url in urls]
        clients[0].set("key", "value")
        assert [client.dbsize() for client in clients] == [1, 0]
        for client in clients:
            client.close()

    assert urls[0].rpartition("/")[0] == urls[1].rpartition("/")[0]
    with client_for(urls[0]) as client, pytest.raises(redis.ConnectionError):
        client.ping()


@pytest.mark.faults
def test_bare_evalsha_sends_what_ours_sends() -> None:
    """Or its time would be that of another question."""
    with Harness(0.001):
        asks = [build(CALLED, PLENTY) for build in (bare_evalsha, resilient)]
        with client_for(resources.valkey_url()) as client, client.monitor() as monitor:
            for ask in asks:
                ask(ARGUMENT)
            seen = (command["command"] for command in monitor.listen())
            bare, ours = islice((text for text in seen if text.startswith("EVALSHA")), 2)

    assert bare == ours


async def test_driven_request_has_a_scope_of_its_own() -> None:
    """What a framework writes into one request must not ease the next."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("app"))
        scope["app"] = scope["state"]["left"] = app
        scope["headers"].clear()
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body"})

    request = driven(app)

    assert [await request(ARGUMENT), await request(ARGUMENT)] == [418, 418]
    assert seen == [None, None]


def test_served_request_reads_its_body_and_closes_it() -> None:
    """A middleware that gives its permit back at the end of the body must come to do so."""
    steps: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            steps.append("read")
            return iter((b"a", b"b"))

        def close(self) -> None:
            steps.append("closed")

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        assert environ.pop("PATH_INFO") == "/"  # the next request has it again
        start_response("503 Service Unavailable", [])
        return Body()

    request = served(app)  # type: ignore[arg-type]

    assert [request(ARGUMENT), request(ARGUMENT)] == [503, 503]
    assert steps == ["read", "closed"] * 2


def test_reason_names_no_folder_of_this_machine() -> None:
    """Results are committed."""
    assert (
        reason(ImportError("no x in (/a/b/peer.py) or 'c/d'\nmore"))
        == "ImportError: no x in (peer.py) or 'c/d'"
    )


@pytest.mark.parametrize(
    ("build", "awaited", "frames"),
    [(bare, False, 1), (plain_wrapper, False, 2), (bare, True, 1), (plain_wrapper_async, True, 2)],
)
def test_frames_are_those_of_the_call_alone(build: Any, awaited: bool, frames: int) -> None:
    """Neither the loop nor the counting is counted."""
    with Harness(0.001) as harness:
        runner = harness.prepare(Subject("family", "name", build, awaited=awaited))

    assert isinstance(runner, Runner)
    assert runner.frames == frames


def test_frames_of_a_call_that_raises_are_counted_too() -> None:
    """The rows of failing calls have a count as well."""
    with Harness(0.001) as harness:
        runner = harness.prepare(Subject("family", "name", plain_wrapper, outcome=Outcome.FAILS))

    assert isinstance(runner, Runner)
    assert runner.frames == 2


def test_each_subject_has_code_of_its_own_to_specialise() -> None:
    """Shared code would be specialised for another subject's calls."""
    subject = Subject("family", "name", bare)

    assert own_loop(subject).__code__ is not own_loop(subject).__code__


def test_measuring_takes_one_sample_of_each_per_round() -> None:
    """Every subject is there in every round, however the rounds are turned."""
    with Harness(0.001) as harness:
        runners = [harness.prepare(Subject("family", name, bare)) for name in ("a", "b")]
        assert all(isinstance(one, Runner) for one in runners)
        harness.measure(runners, 3)  # type: ignore[arg-type]

    assert [len(one.samples) for one in runners] == [3, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(("at_most", "status"), [(1000.0, 0), (0.001, 1)])
def test_check_turns_a_missed_target_into_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_most: float, status: int
) -> None:
    """A wrapper is neither a thousand times dearer than a call nor a thousand times cheaper."""
    target = Target("baseline/plain wrapper", "baseline/bare call", at_most)
    monkeypatch.setattr(targets, "TARGETS", (target,))

    assert overhead.main(["--only", "baseline/*", "--rounds", "1", "--quick", "--check"]) == status
    assert f"{1 - status} of 1 targets met" in capsys.readouterr().out


def test_partial_run_leaves_the_committed_results_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Figures of a hasty run are written only where one asks for them."""
    monkeypatch.setattr(overhead, "RESULTS", tmp_path / "committed")

    overhead.main(["--only", "baseline/*", "--quick", "--rounds", "1"])
    assert not (tmp_path / "committed").exists()

    overhead.main(["--only", "baseline/*", "--quick", "--rounds", "1", "--out", str(tmp_path / "asked")])
    assert (tmp_path / "asked" / "overhead.json").exists()


def test_pattern_that_matches_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt pattern does not pass for a clean run."""
    assert overhead.main(["--only", "no such thing"]) == 2
    assert "no such thing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(120)  # three times as long as it takes beside other tests
def test_whole_benchmark_runs_and_accounts_for_every_subject(tmp_path: Path) -> None:
    """Each subject is a row or is absent with a reason; peers need not be installed."""
    command = [sys.executable, "-m", "bench.overhead", "--rounds", "1", "--quick", "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

    data = json.loads((tmp_path / "overhead.json").read_text())
    measured = {f"{row['family']}/{row['name']}" for row in data["rows"]}
    measured |= {f"{count['family']}/{count['name']}" for count in data["counts"]}
    assert _listed() <= measured | data["absent"].keys()
    assert not [name for name in data["absent"] if "/resilient" in name], data["absent"]

    page = (tmp_path / "overhead.md").read_text()
    assert all(row["name"] in page for row in data["rows"])
    assert str(ROOT) not in page
