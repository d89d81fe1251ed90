"""Measure what each policy adds to a call that needs no help, beside its peers, in one run.

Run it from the top of the repository: `python -m bench.overhead`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path

from bench import arithmetic, report, startup, targets, telemetry, waiting
from bench.harness import Absent, Harness, Runner, reason
from bench.report import Count, Results, Series
from bench.subjects import SUBJECTS, Subject
from bench.telemetry import Stack
from bench.waiting import QUEUES, Queue, Waited

RESULTS = Path(__file__).parent / "results"

ROUNDS = 40
STARTUP_ROUNDS = 12
"""A fresh interpreter costs a hundred samples, and its noise is smaller beside it: fewer rounds do."""

CROWD_ROUNDS = 8
"""A crowd's sample is long, since each of its threads takes one."""

QUEUE_ROUNDS = 5
"""A queue's sample is longer still: everybody in it has to have many turns."""

TELEMETRY_ROUNDS = 6
"""Slices of a second with telemetry on, and as many in each other way."""

COLLECTING_ROUNDS = 12

SAMPLE = 0.006
QUICK_SAMPLE = 0.001
"""Seconds a sample takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if a target is missed under `--check`, or 2 if nothing is chosen."""
    options = _parser().parse_args(argv)
    results = run(options.only, options.rounds, QUICK_SAMPLE if options.quick else SAMPLE)
    if not results.rows and not results.absent:
        print(f"nothing is called {options.only!r}", file=sys.stderr)
        return 2
    print(report.text(results))
    if folder := _folder(options):
        report.write(results, folder)
    kept = all(one.verdict is targets.Verdict.MET for one in results.targets)
    return 0 if kept or not options.check else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"interleaved rounds ({ROUNDS})")
    parser.add_argument(
        "--only", metavar="PATTERN", help="only subjects whose family/name matches or contains it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="samples of 1 ms: to see that it runs, not to quote"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (a full run: bench/results)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _folder(options: argparse.Namespace) -> Path | None:
    """Return where to write: a partial or hasty run must not replace the committed figures unasked."""
    if options.out:
        chosen: Path = options.out
        return chosen
    partial = options.only or options.quick or options.rounds < ROUNDS
    return None if partial else RESULTS


def run(only: str | None, rounds: int, sample: float) -> Results:
    """Measure the subjects that match *only* (None: all) and judge the targets among them.

    Args:
        only: Part of `family/name`, or a pattern of `fnmatch` for the whole of it.
        rounds: Interleaved rounds, >= 1.
        sample: Seconds one sample takes.
    """
    chosen = [subject for subject in SUBJECTS if matches(only, subject.id)]
    measured, absent = _measure(chosen, rounds, sample)
    selected = {subject.id for subject in chosen}
    packages = [subject.package for subject in chosen if subject.package]
    counts: list[Count] = []
    if queues := [queue for queue in QUEUES if any(matches(only, name) for name in queue.ids)]:
        selected = selected.union(*(queue.ids for queue in queues))
        packages += [queue.package for queue in queues if queue.package]
        waited, failed = _measure_queues(queues, min(rounds, QUEUE_ROUNDS), sample)
        measured += _waits(waited)
        counts += _counts(waited)
        absent.update({name: reason(error) for queue, error in failed.items() for name in sorted(queue.ids)})
    stacks = [one for one in telemetry.STACKS if any(matches(only, name) for name in one.ids)]
    collects = any(matches(only, name) for name in telemetry.COLLECTED)
    if stacks or collects:
        selected = selected.union(*(one.ids for one in stacks), telemetry.COLLECTED if collects else ())
        packages.append(telemetry.PACKAGE)
        measured += _measure_telemetry(stacks, rounds, sample, absent) if stacks else []
        measured += _measure_collecting(rounds, absent) if collects else []
    if any(matches(only, name) for name in startup.STATEMENTS):
        selected |= startup.STATEMENTS.keys()
        packages += startup.PACKAGES
        measured += _measure_startup(min(rounds, STARTUP_ROUNDS), absent)
    judged = targets.judge(
        {f"{one.family}/{one.name}": one.samples for one in measured},
        {f"{one.family}/{one.name}": one.frames for one in measured if one.frames is not None},
        frozenset(selected),
    )
    circumstances = report.describe_run(rounds, sample, packages)
    return Results(circumstances, report.tabulate(measured), absent, judged, counts)


def matches(only: str | None, name: str) -> bool:
    """Say whether a subject id is wanted."""
    return only is None or only in name or fnmatchcase(name, only)


def _measure(chosen: Sequence[Subject], rounds: int, sample: float) -> tuple[list[Series], dict[str, str]]:
    with Harness(sample) as harness:
        prepared = [harness.prepare(subject) for subject in chosen]
        runners = [one for one in prepared if isinstance(one, Runner)]
        _take(harness, [one for one in runners if not one.subject.crowd], rounds, sample)
        _take(harness, [one for one in runners if one.subject.crowd], min(rounds, CROWD_ROUNDS), sample)
    absent = {one.subject.id: one.reason for one in prepared if isinstance(one, Absent)}
    return [series for runner in runners for series in _series(runner)], absent


def _take(harness: Harness, runners: Sequence[Runner], rounds: int, sample: float) -> None:
    if runners:
        samples = sum(runner.subject.callers for runner in runners) * rounds
        _say(f"{len(runners)} subjects, {rounds} rounds: about {samples * sample * 1.3:.0f} s")
        harness.measure(runners, rounds)


def _series(runner: Runner) -> Iterator[Series]:
    subject = runner.subject
    yield Series(subject.family, subject.name, runner.samples, runner.frames, runner.calls)
    if runner.longest:
        yield Series(f"{subject.family}: the longest", subject.name, runner.longest, calls=runner.calls)


def _measure_queues(
    queues: Sequence[Queue], rounds: int, sample: float
) -> tuple[dict[Queue, Waited], dict[Queue, Exception]]:
    turns = max(waiting.FIRST + 2, round(waiting.TURNS * sample / SAMPLE))
    _say(f"{len(queues)} queues, {rounds} rounds: about {len(queues) * rounds * (turns / 25 + 0.5):.0f} s")
    return waiting.measure(queues, rounds, turns)


def _waits(waited: Mapping[Queue, Waited]) -> Iterator[Series]:
    for figure, samples in (
        (waiting.P50, attrgetter("p50")),
        (waiting.P99, attrgetter("p99")),
        (waiting.LONGEST, attrgetter("longest")),
    ):
        for queue, found in waited.items():
            yield Series(f"{queue.title}: {figure}", queue.name, samples(found), calls=found.waits)


def _counts(waited: Mapping[Queue, Waited]) -> Iterator[Count]:
    for queue, found in waited.items():
        if found.made:
            yield Count(queue.rushed, queue.name, arithmetic.spread(found.made), max(found.made))


def _measure_telemetry(
    stacks: Sequence[Stack], rounds: int, sample: float, absent: dict[str, str]
) -> list[Series]:
    turns, seconds = min(rounds, TELEMETRY_ROUNDS), telemetry.SECONDS * sample / SAMPLE
    expected = len(stacks) * len(telemetry.Way) * turns * seconds
    _say(f"{len(stacks)} stacks with telemetry and without, {turns} rounds: about {expected:.0f} s")
    samples, failed = telemetry.measure(stacks, turns, seconds)
    absent.update({name: reason(error) for one, error in failed.items() for name in sorted(one.ids)})
    return _named(samples)


def _measure_collecting(rounds: int, absent: dict[str, str]) -> list[Series]:
    turns = min(rounds, COLLECTING_ROUNDS)
    _say(f"{telemetry.COLLECTING}, {turns} rounds")
    try:
        samples = telemetry.measure_collecting(turns)
    except Exception as error:
        absent.update(dict.fromkeys(sorted(telemetry.COLLECTED), reason(error)))
        return []
    return _named(samples)


def _named(samples: Mapping[str, Sequence[float]]) -> list[Series]:
    named = [(*name.partition("/"), taken) for name, taken in samples.items()]
    return [Series(family, name, taken) for family, _, name, taken in named]


def _measure_startup(rounds: int, absent: dict[str, str]) -> list[Series]:
    _say(f"imports in fresh interpreters, {rounds} rounds")
    try:
        samples = startup.measure(rounds)
    except startup.StartupError as error:
        absent.update(dict.fromkeys(startup.STATEMENTS, reason(error)))
        return []
    return _named(samples)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
