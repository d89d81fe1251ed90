"""The algorithms of adaptive limits, window by window: formulas, bounds, and what they must not learn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from bench.simulation.published import PublishedGradient
from hypothesis import given
from hypothesis import strategies as st

from resilient import AIMD, Gradient, Vegas
from resilient.policies.bulkhead.limits import AdaptiveLimit, Algorithm, Window
from resilient.policies.bulkhead.rounds import Round

LATENCY = (Vegas, Gradient)
each = pytest.mark.parametrize("kind", [AIMD, *LATENCY])
each_by_latency = pytest.mark.parametrize("kind", LATENCY)


@dataclass
class Run:
    """An algorithm, and the time."""

    settings: AdaptiveLimit
    now: float = 0.0
    algorithm: Algorithm = field(init=False)

    def __post_init__(self):
        self.algorithm = self.settings.open(self.now)

    @property
    def limit(self) -> float:
        """What it is now."""
        return self.algorithm.limit

    def see(self, rtt: float, *, samples: int = 100, dropped: int = 0, peak: int | None = None) -> float:
        """Show one window, with the limit in full use if not said otherwise; return the limit."""
        peak = math.ceil(self.limit) if peak is None else peak
        self.now += max(0.1, rtt)
        self.algorithm.update(Window(rtt, samples, dropped, peak), self.now)
        return self.limit

    def move(self, rtt: float, **seen: Any) -> float:
        """Show windows until the limit has been moved, if only by nothing; return it."""
        before = self.algorithm._round  # type: ignore[attr-defined]
        while self.algorithm._round is before:  # type: ignore[attr-defined]
            self.see(rtt, **seen)
        return self.limit

    def measure(self, rtt: float) -> None:
        """Show windows until the baseline has been measured once more, with calls that take *rtt*."""
        count = self.algorithm.measurements
        for _ in range(2_000):
            if self.algorithm.measurements > count:
                return
            self.see(rtt)
        raise AssertionError("it never measures")


def settled(kind: type[Vegas | Gradient], limit: int, baseline: float = 0.05, **options: Any) -> Run:
    """Return a run that knows the baseline and has given up seeking, near *limit*."""
    run = Run(kind(initial=limit, max_limit=10_000, remeasure=1e6, **options))
    run.move(baseline)  # seeks
    run.move(10 * baseline)  # finds no more room, and measures
    run.measure(baseline)
    run.move(3 * baseline)  # seeks no more
    return run


# -- formulas --


def test_aimd_adds_one_for_a_good_window():
    """Of any length, as long as half of the limit is used."""
    run = Run(AIMD(initial=20))

    assert run.see(0.05) == 21
    assert run.see(2.0, peak=11) == 22


@pytest.mark.parametrize(("samples", "dropped", "left"), [(99, 1, 18.0), (80, 20, 16.0), (0, 100, 10.0)])
def test_aimd_takes_off_the_share_that_was_dropped(samples: int, dropped: int, left: float):
    """A tenth at least, a half at most."""
    assert Run(AIMD(initial=20)).see(0.05, samples=samples, dropped=dropped) == pytest.approx(left)


def test_aimd_counts_slow_calls_as_dropped():
    """It is the sampler that asks for it."""
    assert AIMD(timeout=3.0).drop_after == 3.0
    assert Gradient().drop_after is None


@pytest.mark.parametrize("rtt", [0.06, 0.075, 0.1, 0.15, 0.5])
def test_gradient_follows_its_formula(rtt: float):
    """That of Gradient2, with our baseline."""
    run = settled(Gradient, 100)
    limit, baseline = run.limit, run.algorithm.baseline
    assert baseline == pytest.approx(0.05)
    gradient = max(0.5, min(1.0, 1.5 * baseline / rtt))

    assert run.move(rtt) == pytest.approx(0.8 * limit + 0.2 * (limit * gradient + 4))


def test_gradient_moves_as_published_between_measurements():
    """The same windows, and the same baseline: the same limits as the reference."""
    ours, theirs = settled(Gradient, 100), PublishedGradient(max_limit=10_000).open(0.0)
    theirs.limit, theirs.baseline = ours.limit, ours.algorithm.baseline
    for rtt in (0.06, 0.08, 0.09, 0.07, 0.12):
        theirs.baseline = ours.algorithm.baseline
        theirs._windows = 10**9  # no warm-up: what it takes from the window is next to nothing
        object.__setattr__(theirs._settings, "long_window", 10**9)
        theirs.update(Window(rtt, 100, 0, math.ceil(theirs.limit)), 0.0)

        assert ours.move(rtt) == pytest.approx(theirs.limit, rel=1e-6)


@pytest.mark.parametrize(("samples", "dropped", "factor"), [(99, 1, 0.99), (80, 20, 0.8), (0, 100, 0.7)])
def test_gradient_takes_off_the_share_that_was_dropped(samples: int, dropped: int, factor: float):
    """Down to `backoff`; Netflix ignores drops."""
    run = settled(Gradient, 100, backoff=0.7)
    limit = run.limit

    assert run.move(0.05, samples=samples, dropped=dropped) == pytest.approx(limit * factor)


def steps_of(limit: float) -> float:
    """What Vegas moves a limit by."""
    return max(1, int(math.log10(limit)), int(limit / 40))


@pytest.mark.parametrize(("waiting", "steps"), [(0.9, 6), (1.9, 1), (4.5, 0), (7.5, -1), (20.0, -1)])
@pytest.mark.parametrize("limit", [30, 60, 400])
def test_vegas_follows_its_formula(waiting: float, steps: int, limit: int):
    """By how many steps of calls seem to wait."""
    run = settled(Vegas, limit)
    limit_before, step = run.limit, steps_of(run.limit)
    assert run.algorithm.baseline == pytest.approx(0.05)
    rtt = 0.05 / (1.0 - (waiting * step - 0.01) / limit_before)

    assert run.move(rtt) == pytest.approx(limit_before + steps * step)


@pytest.mark.parametrize("dropped", [1, 100])
def test_vegas_takes_a_step_back_for_drops(dropped: int):
    """However many they are."""
    run = settled(Vegas, 60)
    limit = run.limit

    assert run.move(0.05, dropped=dropped) == limit - steps_of(limit)


# -- what is not learnt --


@each
def test_limit_does_not_grow_while_less_than_half_of_it_is_used(kind: type[AIMD]):
    """What calls take says nothing about it then."""
    run = Run(kind(initial=20))
    for _ in range(100):
        assert run.see(0.05, peak=9) <= 20


@each
@pytest.mark.parametrize("rtt", [0.0, -1.0, math.nan, math.inf])
def test_times_that_are_none_change_nothing(kind: type[AIMD], rtt: float):
    """A clock that stands still, or goes back; AIMD does not look at times."""
    run = Run(kind(initial=20))
    for _ in range(10):
        run.algorithm.update(Window(rtt, 10, 0, 20), run.now)

    assert run.limit == (30 if kind is AIMD else 20)
    assert run.algorithm.baseline is None


@each
def test_windows_without_calls_change_nothing_that_is_asked_for(kind: type[AIMD]):
    """No sample, no drop, nothing in flight."""
    run = Run(kind(initial=20))
    for _ in range(10):
        run.see(0.0, samples=0, peak=0)

    assert run.limit == 20


@each_by_latency
def test_used_limit_never_raises_the_baseline(kind: type[Gradient]):
    """A queue of its own making would be taken for how long calls take."""
    run = settled(kind, 100)
    epoch, baseline = run.algorithm.epoch, run.algorithm.baseline
    while run.algorithm.epoch == epoch:
        assert run.algorithm.baseline == baseline
        run.see(0.5)


@each_by_latency
def test_baseline_follows_while_the_limit_is_not_used(kind: type[Gradient]):
    """Then there is no queue of its own making."""
    run = settled(kind, 100)
    for _ in range(10_000):
        run.see(0.08, peak=1)

    assert run.algorithm.baseline == pytest.approx(0.08, rel=0.01)


@each_by_latency
def test_baseline_that_is_far_too_high_falls_soon(kind: type[Gradient]):
    """More than twice what calls take, it loses a twentieth with each move."""
    run = settled(kind, 100, baseline=0.5)
    for _ in range(60):
        run.see(0.05)

    assert run.algorithm.baseline is not None
    assert run.algorithm.baseline <= 0.11


# -- measurements --


@each_by_latency
def test_measurement_halves_the_limit_and_leaves_out_what_was_begun_before(kind: type[Gradient]):
    """The epoch tells the sampler; afterwards the limit is what it was."""
    run = Run(kind(initial=100, remeasure=10.0, max_limit=200))
    run.measure(0.05)
    epoch, limit = run.algorithm.epoch, run.limit
    while run.algorithm.epoch == epoch:
        limit = run.limit
        run.see(0.06)

    assert run.limit == pytest.approx(limit / 2, rel=0.2)
    count = run.algorithm.measurements
    while run.algorithm.measurements == count:
        run.see(0.06)
    assert run.algorithm.baseline == pytest.approx(0.06)
    assert run.limit == pytest.approx(limit, rel=0.2)


@each_by_latency
def test_measurement_goes_down_to_where_there_is_no_queue(kind: type[Gradient]):
    """50 workers, 1,000 calls in flight: what a call takes is found, and how many are enough."""
    run = Run(kind(initial=1000, max_limit=1000))
    while not run.algorithm.measurements:
        run.see(0.1 * max(1.0, run.limit / 50))

    assert run.algorithm.baseline == pytest.approx(0.1, rel=0.2)
    assert 50 <= run.limit <= 100


@each_by_latency
def test_measurement_at_the_least_limit_leaves_the_queue_above_it_out(kind: type[Gradient]):
    """Two workers and no fewer than 4 calls in flight take 0.2 s each; that 8 take 0.4 s is left out."""
    run = Run(kind(initial=64, min_limit=4, max_limit=64))
    while not run.algorithm.measurements:
        run.see(0.1 * max(1.0, run.limit / 2))

    assert run.algorithm.baseline == pytest.approx(0.2)


@each_by_latency
@pytest.mark.parametrize("remeasure", [10.0, 30.0])
def test_measurements_come_at_intervals_with_a_jitter(kind: type[Gradient], remeasure: float):
    """Up to 15 % more, so that many processes do not all do it at once."""
    run = Run(kind(remeasure=remeasure))
    run.move(0.05)
    run.move(0.5)
    run.measure(0.05)  # the first takes longer, and is followed by ten times as long a rest
    pauses: list[float] = []
    for _ in range(20):
        ended, epoch = run.now, run.algorithm.epoch
        while run.algorithm.epoch == epoch:
            run.see(0.05, peak=1)
        pauses.append(run.now - ended)
        run.measure(0.05)
    del pauses[0]

    assert min(pauses) >= remeasure - 0.2
    assert max(pauses) <= 1.15 * remeasure + 0.5
    assert len({round(pause, 1) for pause in pauses}) > 3


@each_by_latency
def test_limit_that_has_halved_is_a_reason_to_measure(kind: type[Gradient]):
    """A dependency that is three times slower for good is followed long before the interval is over."""
    run = settled(kind, 100)
    began, count = run.now, run.algorithm.measurements
    while run.algorithm.measurements == count:
        run.see(0.15)
        assert run.now < began + 200.0

    assert run.algorithm.baseline == pytest.approx(0.15)


@each_by_latency
def test_measurement_waits_until_something_comes_back(kind: type[Gradient]):
    """While all calls are dropped there is nothing to measure, and the limit is the least."""
    run = settled(kind, 100)
    while run.limit > run.settings.min_limit:
        run.see(0.05, samples=0, dropped=50)
    count = run.algorithm.measurements
    for _ in range(100):
        run.see(0.05, samples=0, dropped=50)

    assert run.limit == run.settings.min_limit
    assert run.algorithm.measurements == count

    run.measure(0.05)
    assert run.algorithm.baseline == pytest.approx(0.05)


@each_by_latency
def test_limit_is_sought_until_there_is_no_more_room(kind: type[Gradient]):
    """From 10 to what 200 workers can serve, in a few moves instead of a hundred."""
    run = Run(kind(initial=10, max_limit=1000))
    moves = 0
    while not run.algorithm.epoch:
        run.move(0.05 * max(1.0, run.limit / 200))
        moves += 1

    assert moves <= 20
    assert run.limit * 2 >= 200


@each
def test_held_limit_grows_no_further(kind: type[AIMD]):
    """And is lowered by no more than that: not by the half that a measurement takes for a moment."""
    run = Run(kind(initial=20))
    while run.limit <= 20:
        run.see(0.05)
    run.algorithm.hold(30.0)
    assert 20 < run.limit <= 30
    run.algorithm.hold(20.0)
    assert run.limit == 20


# -- rounds --


def window(rtt: float, samples: int = 10, dropped: int = 0) -> Window:
    """A window of calls that all take the same."""
    return Window(rtt, samples, dropped, 5)


def test_round_leaves_out_what_was_begun_before_the_change():
    """Calls of 1 s: the first that tells is in the window from 1.0 to 2.0."""
    seen = Round(now=0.0, wait=1.0)

    assert seen.add(window(1.0), 1.0) is None
    assert seen.add(window(1.0, samples=20), 2.0) == window(1.0, samples=20)
    assert seen.length(3.0) == 1.5


def test_round_of_short_calls_settles_at_once():
    """Most of the window lies after they have shown the change."""
    assert Round(now=0.0, wait=1.0).add(window(0.04), 0.1) == window(0.04)


def test_round_begins_when_the_first_call_ends():
    """Until then those in flight were begun at the old limit: they have to drain first."""
    seen = Round(now=0.0, wait=1.0)
    for end in range(1, 10):
        assert seen.add(window(0.0, samples=0), float(end)) is None

    assert seen.add(window(1.0), 10.0) is None
    assert seen.add(window(1.0), 11.0) is not None


def test_round_joins_windows_by_their_samples():
    """The mean of all calls, the least, the most in flight, all drops."""
    seen = Round(now=0.0, wait=1.0)
    seen.add(Window(0.04, 10, 1, 5), 0.1)

    joined = seen.add(Window(0.08, 30, 2, 7), 0.2)

    assert joined == Window(pytest.approx(0.07), 40, 3, 7)


# -- whatever comes --

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.0, 10.0)
WINDOWS = st.lists(
    st.builds(
        Window,
        rtt=NUMBERS,
        samples=st.integers(0, 1000),
        dropped=st.just(0) | st.integers(0, 1000),
        peak=st.integers(0, 300),
    ),
    max_size=60,
)


@given(
    kind=st.sampled_from([AIMD, Vegas, Gradient]),
    bounds=st.lists(st.integers(1, 300), min_size=3, max_size=3).map(sorted),
    windows=WINDOWS,
    gaps=st.floats(0.0, 100.0),
)
def test_limit_stays_within_its_bounds_whatever_the_windows(
    kind: type[AIMD], bounds: list[int], windows: Iterable[Window], gaps: float
):
    """Any numbers, in any order, at any distance: a limit within bounds, and a time or none as baseline."""
    least, initial, most = bounds
    algorithm = kind(min_limit=least, initial=initial, max_limit=most).open(0.0)
    for number, seen in enumerate(windows):
        algorithm.update(seen, number * gaps)
        algorithm.hold(float(initial))

        assert least <= algorithm.limit <= most
        assert algorithm.baseline is None or 0.0 < algorithm.baseline < math.inf


@given(
    kind=st.sampled_from(LATENCY),
    limit=st.integers(10, 500),
    faster=st.floats(0.05, 2.0),
    slower=st.floats(0.05, 2.0),
)
def test_higher_latency_never_leads_to_a_higher_limit(
    kind: type[Gradient], limit: int, faster: float, slower: float
):
    """With all else the same."""
    faster, slower = sorted((faster, slower))
    after = [settled(kind, limit).move(rtt) for rtt in (faster, slower)]

    assert after[0] >= after[1]


@given(kind=st.sampled_from([AIMD, Vegas, Gradient]), dropped=st.integers(1, 1000), rtt=st.floats(0.01, 2.0))
def test_drops_never_lead_to_a_higher_limit(kind: type[AIMD], dropped: int, rtt: float):
    """Whatever those took that went well; after a measurement it is what it was before that."""
    run = Run(kind(initial=50))
    for _ in range(100):
        assert run.see(rtt, dropped=dropped) <= 50
