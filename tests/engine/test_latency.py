"""Distributions of durations in fixed memory, and when calls are timed at all."""

from __future__ import annotations

import gc
import math
import sys
import threading
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import add

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilient.engine.latency import (
    _LONGEST_REST,
    _SLICE,
    BATCH,
    EDGES,
    Histogram,
    Latency,
    Recorder,
    Stopwatch,
)
from resilient.engine.measure import Instrument, defined
from resilient.testing import FakeClock

SECONDS = st.one_of(st.floats(0.0, 2000.0), st.sampled_from((0.0, *EDGES)))
MANY = st.lists(SECONDS, max_size=40)
SHARES = (0.0, 0.5, 0.95, 0.99, 1.0)


def recorded(*seconds: float) -> Histogram:
    """Return the distribution of *seconds*."""
    recorder = Recorder(FakeClock())
    for one in seconds:
        recorder.record(one)
    return recorder.histogram()


def bin_of(seconds: float) -> tuple[float, float]:
    """Return between which bounds *seconds* falls: above the first, up to the second."""
    edges = (0.0, *EDGES, math.inf)
    return next((low, high) for low, high in pairwise(edges) if seconds <= high)


def facts(histogram: Histogram) -> tuple[object, ...]:
    """Return what is exact about it, and its sum as exactly as floats have it."""
    return (
        tuple(histogram.bins), histogram.count, histogram.shortest, histogram.longest,
        pytest.approx(histogram.total),
    )  # fmt: skip


class TestEdges:
    def test_all_bounds_of_metrics_are_among_them(self):
        """Else what is told in the buckets of a metric would be a guess."""
        for metric in defined():
            if metric.instrument is Instrument.HISTOGRAM and metric.name.startswith("resilient."):
                assert set(metric.boundaries) <= set(EDGES), metric.name
                assert list(metric.boundaries) == sorted(set(metric.boundaries)), metric.name

    def test_two_neighbours_are_no_more_than_a_sixth_apart(self):
        """From 10 us to 900 s, each bound is at most 17 % above the one before."""
        assert tuple(sorted(set(EDGES))) == EDGES
        assert (EDGES[0], EDGES[-1]) == (1e-5, 900.0)
        assert max(high / low for low, high in pairwise(EDGES)) < 1.17


class TestHistogram:
    @given(MANY)
    def test_each_duration_is_in_its_bin(self, seconds: list[float]) -> None:
        """A bin holds what is above the bound before and up to its own, and nothing is lost."""
        histogram = recorded(*seconds)

        expected = [0] * (len(EDGES) + 1)
        for one in seconds:
            expected[[*EDGES, math.inf].index(bin_of(one)[1])] += 1
        assert list(histogram.bins) == expected
        assert histogram.count == len(seconds)
        assert histogram.total == pytest.approx(math.fsum(seconds))
        assert histogram.shortest == min(seconds, default=math.inf)
        assert histogram.longest == max(seconds, default=-math.inf)

    @given(MANY, MANY, MANY)
    def test_putting_together_is_associative(
        self, first: list[float], second: list[float], third: list[float]
    ) -> None:
        """And the same as having recorded all of it at once, in whatever order."""
        a, b, c = recorded(*first), recorded(*second), recorded(*third)

        assert facts((a + b) + c) == facts(a + (b + c)) == facts(c + b + a)
        assert facts(a + b + c) == facts(recorded(*first, *second, *third))

    @given(MANY, MANY)
    @example([0.5], [0.5])
    def test_what_came_later_is_the_difference(self, before: list[float], after: list[float]) -> None:
        """Its shortest and longest are in the bins of the true ones, and never beyond what there ever was."""
        earlier, now = recorded(*before), recorded(*before, *after)

        later = now - earlier

        assert (list(later.bins), later.count) == (list(recorded(*after).bins), len(after))
        assert later.total == pytest.approx(math.fsum(after), abs=1e-9)
        if after:
            assert (bin_of(later.shortest), bin_of(later.longest)) == (bin_of(min(after)), bin_of(max(after)))
            assert later.shortest <= min(after) + 1e-9
            assert later.longest >= max(after) - 1e-9
            assert now.shortest - 1e-9 <= later.shortest <= later.longest <= now.longest

    @pytest.mark.parametrize("edge", [EDGES[0], 0.005, 0.1, 1.3, EDGES[-1]])
    def test_single_one_stays_in_its_bin(self, edge: float) -> None:
        """However large the sum is that its duration is the difference of."""
        before = [1234.567891] * 1000
        later = recorded(*before, edge) - recorded(*before)

        assert later.count == 1
        assert bin_of(later.longest) == bin_of(later.shortest) == bin_of(edge)

    @given(st.lists(SECONDS, min_size=1, max_size=60), st.sampled_from(SHARES))
    def test_quantiles_are_in_the_bin_of_the_true_one(self, seconds: list[float], share: float) -> None:
        """And between the shortest and the longest."""
        quantile = recorded(*seconds).quantile(share)

        true = sorted(seconds)[max(1, math.ceil(share * len(seconds))) - 1]
        low, high = bin_of(true)
        assert quantile is not None
        assert low <= quantile <= high
        assert min(seconds) <= quantile <= max(seconds)

    @given(st.lists(SECONDS, min_size=1, max_size=60))
    def test_quantiles_grow_with_the_share(self, seconds: list[float]) -> None:
        """No larger share took less time."""
        histogram = recorded(*seconds)

        quantiles = [histogram.quantile(number / 20) for number in range(21)]
        assert quantiles == sorted(quantiles, key=lambda one: -1.0 if one is None else one)

    def test_nothing_has_no_quantiles(self):
        """Where nothing was timed there is no figure, and not a nought."""
        empty = recorded()
        latency = Latency((empty, empty))

        assert empty.quantile(0.5) is None
        assert (latency.count, latency.mean, latency.p50, latency.p95, latency.p99) == (0, *[None] * 4)
        assert repr(latency) == "Latency(count=0)"

    def test_are_equal_if_they_tell_the_same(self):
        """So are latencies."""
        one, same, other = recorded(0.1, 0.2), recorded(0.2, 0.1), recorded(0.1)

        assert (one == same, hash(one) == hash(same)) == (True, True)
        assert one != other
        assert Latency((one, other)) == Latency((same, other)) != Latency((one, recorded()))
        assert len({Latency((one, other)), Latency((same, other))}) == 1
        assert one != "one"
        assert Latency((one, other)) != "one"

    def test_latency_tells_its_figures(self):
        """To whoever prints stats."""
        latency = Latency((recorded(0.1, 0.1, 0.1, 0.1), recorded()))

        assert repr(latency) == "Latency(count=4, mean=0.1, p50=0.1, p95=0.1, p99=0.1)"


class TestRecorder:
    @pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1e-9, -5.0], ids=str)
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_durations_by_a_broken_clock_are_left_out(self, nonsense: float, place: int) -> None:
        """One that was set back, or reads nothing sensible, does not spoil what others took."""
        seconds = [0.1, 0.3]
        seconds.insert(place, nonsense)

        assert facts(recorded(*seconds)) == facts(recorded(0.1, 0.3))

    def test_only_nonsense_is_nothing(self):
        """As if nothing had been recorded."""
        assert recorded(math.nan, -1.0) == recorded()

    def test_no_more_than_a_batch_is_pending(self):
        """However much is recorded, and without anybody looking."""
        recorder = Recorder(FakeClock())

        for number in range(3 * BATCH + 7):
            recorder.record(number / 1000)
            assert len(recorder.pending) <= BATCH

        assert recorder.histogram().count == 3 * BATCH + 7

    def test_tells_what_was_lately(self):
        """What is younger than a minute is told, what is older than two is not: where somebody looks."""
        clock = FakeClock()
        recorder = Recorder(clock)
        counts = set()
        for number in range(100):
            recorder.record(float(number))
            clock.advance(7.0)
            lately = recorder.lately()
            counts.add(lately.count)
            youngest = recorded(*(float(one) for one in range(number - lately.count + 1, number + 1)))
            assert [*lately.histogram.bins] == [*youngest.bins]
            assert lately.count >= min(number + 1, 8)  # 60 s
            assert lately.count <= 19  # 133 s: two minutes, and until somebody looks

        assert len(counts) > 5
        assert recorder.histogram().count == 100

    def test_after_a_rest_tells_what_came_since_it_was_looked_at(self):
        """Marks are made when somebody looks or a batch is full, by no timer."""
        clock = FakeClock()
        recorder = Recorder(clock)
        recorder.record(0.1)
        assert recorder.lately().count == 1
        clock.advance(3600.0)
        recorder.record(0.2)

        assert recorder.lately().count == 2
        clock.advance(59.0)
        assert recorder.lately().count == 2
        clock.advance(1.0)
        assert recorder.lately().count == 0

    @pytest.mark.parametrize("jump", [-1e9, 1e9])
    def test_clock_that_jumps_loses_nothing(self, jump: float) -> None:
        """What was recorded stays; how lately it was is all that such a clock can confuse."""
        now = [1e10]
        recorder = Recorder(lambda: now[0])
        recorder.record(0.1)
        recorder.lately()
        now[0] += jump
        recorder.record(0.2)

        assert recorder.lately().count >= 1
        assert recorder.histogram().count == 2

    def test_takes_the_same_memory_for_any_number(self):
        """A hundred thousand durations leave no more behind than a thousand."""
        recorder = Recorder(FakeClock())
        record = recorder.record

        def blocks_after(number: int) -> int:
            for turn in range(number):
                record(turn % 997 * 0.001)
            recorder.fold()
            gc.collect()
            return sys.getallocatedblocks()

        blocks_after(2 * BATCH)
        before = blocks_after(2 * BATCH)
        assert min(blocks_after(30_000) for _ in range(3)) - before < 300

    def test_counts_what_threads_record_at_once(self):
        """Eight of them, while another one looks all the time."""
        recorder, each, over = Recorder(FakeClock()), 4_000, threading.Event()
        looks: list[Histogram] = []

        def record() -> None:
            for _ in range(each):
                recorder.record(0.25)

        def look() -> None:
            while not over.is_set():
                looks.append(recorder.histogram())
                del looks[:-2]
                assert looks[-1].count >= looks[0].count

        threads = [threading.Thread(target=record) for _ in range(8)]
        looker = threading.Thread(target=look)
        for thread in (*threads, looker):
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        looker.join()

        histogram = recorder.histogram()
        assert (histogram.count, sum(histogram.bins)) == (8 * each, 8 * each)
        assert histogram.total == pytest.approx(0.25 * 8 * each)

    def test_snapshots_do_not_change(self):
        """What was told once stays as it was."""
        recorder = Recorder(FakeClock())
        recorder.record(0.1)
        before = recorder.histogram()
        bins = tuple(before.bins)
        recorder.record(0.1)
        recorder.fold()

        assert (before.count, tuple(before.bins)) == (1, bins)


def interrupted(recorder: Recorder, after: int) -> int:
    """Fold, and after so many steps do what a signal handler does that makes a call; return how many."""
    steps = 0

    def trace(frame, event, _argument):
        nonlocal steps
        if not frame.f_code.co_filename.endswith("latency.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == after:
                sys.settrace(None)
                recorder.record(0.5)
                recorder.fold()
                return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        recorder.fold()
    finally:
        sys.settrace(before)
    return steps


def test_signal_handler_may_come_in_between_anywhere():
    """It may use the policy whose durations are just being put into bins: nothing is lost."""
    after, steps = 0, 0
    while steps == after:
        after += 1
        recorder = Recorder(FakeClock())
        for seconds in (0.1, 0.2, 0.2, 7.0):
            recorder.add(seconds)
        steps = interrupted(recorder, after)
        if steps == after:
            assert facts(recorder.histogram()) == facts(recorded(0.1, 0.2, 0.2, 7.0, 0.5)), after

    assert after > 50  # there were moments to come in


def timed(watch: Stopwatch, clock: FakeClock, calls: int, every: float) -> list[bool]:
    """Make *calls* under a *watch*, one *every* so many seconds; return which were timed."""
    told = []
    for _ in range(calls):
        clock.advance(every)
        told.append(clock() >= watch.resumes)
        if told[-1]:
            watch.good.add(0.01)
            if len(watch.good.pending) >= BATCH:
                watch.rest(clock())
    return told


class TestStopwatch:
    def test_times_every_call_while_there_are_few(self):
        """2000 calls a second are few."""
        clock = FakeClock()
        watch = Stopwatch(clock)

        assert all(timed(watch, clock, 10 * BATCH, 1 / 2000))
        assert watch.lately().count == 10 * BATCH

    def test_times_a_sample_of_many(self):
        """Of 20,000 calls a second, some 2500: a batch, and then none for the rest of its time."""
        clock = FakeClock()
        watch = Stopwatch(clock)

        told = timed(watch, clock, 20_000, 1 / 20_000)

        assert 2400 <= sum(told) <= 2700
        assert told[:BATCH] == [True] * BATCH
        assert told[BATCH : 4 * BATCH] == [False] * (3 * BATCH)
        # Over the whole second, and not all at its beginning.
        parts = [sum(told[first : first + 4000]) for first in range(0, 20_000, 4000)]
        assert min(parts) >= 400

    def test_goes_on_when_there_are_few_again(self):
        """A rest ends with the time that the batch should have lasted."""
        clock = FakeClock()
        watch = Stopwatch(clock)
        timed(watch, clock, BATCH, 1 / 1_000_000)
        assert clock() < watch.resumes
        clock.advance(1.0)

        assert all(timed(watch, clock, 2 * BATCH, 0.001))

    def test_rests_for_as_long_as_all_that_came_at_once_should_have_taken(self):
        """Five batches of calls that were under way together: five slices of time, and not one."""
        watch = Stopwatch(FakeClock())
        for _ in range(5):
            watch.rest(0.0)

        assert watch.resumes == pytest.approx(min(5 * _SLICE, _LONGEST_REST))

    def test_never_rests_for_long(self):
        """However many were under way together, or however wrong the clock was."""
        clock = FakeClock()
        watch = Stopwatch(clock)
        for _ in range(1000):
            watch.rest(clock())

        assert watch.resumes <= clock() + _LONGEST_REST <= 60.0

    def test_survives_a_clock_that_makes_no_sense_for_a_while(self):
        """It goes on timing afterwards."""
        clock = FakeClock()
        watch = Stopwatch(clock)
        watch.rest(math.nan)
        watch.rest(-math.inf)
        clock.advance(1.0)

        assert all(timed(watch, clock, 2 * BATCH, 0.001))

    def test_tells_good_and_bad_ones_together(self):
        """In stats; metrics tell them apart."""
        watch = Stopwatch(FakeClock())
        watch.good.record(0.1)
        watch.bad.record(5.0)

        assert (watch.lately().count, watch.lately().mean) == (2, pytest.approx(2.55))
        assert (watch.good.histogram().count, watch.bad.histogram().count) == (1, 1)


def test_latency_adds_up_its_parts() -> None:
    """Each part is what there is now, less what there was."""
    parts: Sequence[tuple[Histogram, Histogram]] = (
        (recorded(0.1, 0.2, 0.2), recorded(0.1)),
        (recorded(4.0), recorded()),
    )

    latency = Latency(*parts)

    assert latency.count == 3
    assert latency.mean == pytest.approx(4.4 / 3)
    assert [*accumulate(latency.histogram.bins, add)][-1] == 3
    assert latency.p50 == pytest.approx(0.2, rel=0.09)
    assert latency.p99 == pytest.approx(4.0, rel=0.09)
