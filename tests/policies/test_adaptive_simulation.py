"""Ten minutes of bad luck for each adaptive limit, as `bench.simulation` plays them.

`make soak` plays the large servers, and more than one seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from bench.simulation import page, studies
from bench.simulation.agenda import Agenda
from bench.simulation.chance import Chance
from bench.simulation.servers import Backend, Server, SharedProcessors, Workers
from bench.simulation.story import Phase, application_limited, overload, scaled_up, steps, story
from bench.simulation.studies import ADAPTIVE, BACKEND
from bench.simulation.world import play

from resilient import Gradient

LATENCY = ("Vegas", "Gradient")
each = pytest.mark.parametrize("name", ADAPTIVE)
each_by_latency = pytest.mark.parametrize("name", LATENCY)
in_full = pytest.mark.skipif(not os.environ.get("RESILIENT_SOAK"), reason="millions of calls: make soak")

# What others make of a noisy machine is no fault of these; nothing in here waits.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _forget_runs() -> Iterator[None]:
    """Keep the traces no longer than for the tests in here."""
    yield
    for study in (studies.ten_minute_runs, studies.creep_runs, studies.starts, studies.size):
        study.cache_clear()


# -- the world itself --


def ends(server: Server, agenda: Agenda, works: list[float]) -> list[float]:
    """Return when each of *works* is finished that are submitted at once."""
    found: list[float] = []
    for work in works:
        server.submit(work, lambda: found.append(round(agenda.clock(), 9)))
    agenda.run_until(100.0)
    return found


def test_workers_serve_one_after_another():
    """Two workers, three calls: the third begins as the first ends."""
    agenda = Agenda()

    assert ends(Workers(agenda, 2), agenda, [1.0, 2.0, 1.5]) == [1.0, 2.0, 2.5]


def test_shared_processors_serve_all_at_once():
    """Three calls on two processors each get two thirds of one, until one ends."""
    agenda = Agenda()

    assert ends(SharedProcessors(agenda, 2), agenda, [1.0, 2.0, 2.0]) == [1.5, 2.5, 2.5]


@pytest.mark.parametrize("kind", [Workers, SharedProcessors])
def test_server_that_grows_takes_on_what_waits(kind: Any):
    """Three calls of a second each, one worker, and two more after half a second."""
    agenda = Agenda()
    server: Server = kind(agenda, 1)
    agenda.after(0.5, server.grow, 2)

    assert ends(server, agenda, [1.0] * 3) == (
        [1.0, 1.5, 1.5] if kind is Workers else [pytest.approx(4 / 3)] * 3
    )


@pytest.mark.parametrize("kind", [Workers, SharedProcessors])
def test_hung_server_finishes_nothing_until_it_is_back(kind: Any):
    """What was due in the meantime is finished then."""
    agenda = Agenda()
    server: Server = kind(agenda, 1)
    found: list[float] = []
    server.submit(1.0, lambda: found.append(agenda.clock()))
    agenda.run_until(0.5)
    server.hang(hung=True)
    agenda.run_until(10.0)
    assert found == []

    server.hang(hung=False)
    agenda.run_until(11.0)

    assert found == [10.0] if kind is Workers else [10.5]


def test_what_is_due_at_the_same_moment_happens_in_the_order_it_was_noted():
    """A heap alone would not promise that."""
    agenda = Agenda()
    seen: list[int] = []
    for number in range(20):
        agenda.after(1.0, seen.append, number)
    agenda.run_until(2.0)

    assert seen == list(range(20))


def test_durations_are_as_long_as_they_are_said_to_be():
    """A mean of one, half of it at least, and a standard deviation of a half."""
    chance = Chance(7)
    drawn = [chance.around(1.0) for _ in range(20_000)]
    mean = sum(drawn) / len(drawn)

    assert mean == pytest.approx(1.0, abs=0.02)
    assert min(drawn) >= 0.5
    assert sum((value - mean) ** 2 for value in drawn) / len(drawn) == pytest.approx(0.25, abs=0.02)


def test_same_seed_gives_the_same_run_and_leaves_common_chance_alone():
    """To the last call; another seed gives another."""
    told = overload(BACKEND, 20.0)
    before = random.getstate()
    first = play(told, Gradient(), seed=3)

    assert random.getstate() == before
    assert play(told, Gradient(), seed=3).rows == first.rows
    assert play(told, Gradient(), seed=4).rows != first.rows


def test_constant_limit_serves_what_the_server_can_do():
    """The world without an algorithm: full goodput at the right limit, less below, and no more above."""
    told = overload(BACKEND, 60.0)
    goodput = {limit: play(told, limit).goodput(5.0, 60.0) for limit in (5, 12, 24)}

    assert goodput[12] == pytest.approx(BACKEND.capacity, rel=0.05)
    assert goodput[5] == pytest.approx(BACKEND.capacity / 2, rel=0.05)
    assert goodput[24] == pytest.approx(goodput[12], rel=0.05)


# -- the limits in it --


@pytest.mark.parametrize(
    "table", [pytest.param(name, marks=in_full) if name == "sizes" else name for name in page.TABLES]
)
def test_page_shows_what_is_simulated(table: str):
    """Every table of the page is what `make simulate` writes."""
    assert page.tables(page.PAGE.read_text())[table] == page.TABLES[table]()


def test_page_has_a_place_for_each_table():
    """Once, and for no other."""
    written = page.PAGE.read_text()

    assert page.tables(written).keys() == page.TABLES.keys()
    assert written.count("<!-- simulated: ") == len(page.TABLES)


def test_pictures_show_what_is_simulated():
    """Each is what `make simulate` draws, and there is no other."""
    assert {file.name: file.read_text() for file in page.PICTURES.iterdir()} == page.pictures()


@each
def test_goodput_at_four_times_the_capacity_stays(name: str):
    """At least 80 % of what was possible, where a limit that is too high leaves next to nothing."""
    runs = studies.ten_minute_runs()
    bare = runs["250"].chapter("overload x4").share

    share = runs[name].chapter("overload x4").share

    assert bare is not None
    assert share is not None
    assert bare < 0.1
    assert share >= 0.8


@each
def test_every_phase_of_the_ten_minutes_is_survived(name: str):
    """Goodput in each phase, but for the hang, and the lost calls, which have a test of their own."""
    chapters = studies.ten_minute_runs()[name].chapters
    shares = {seen.phase.name: seen.share for seen in chapters if seen.share is not None}
    del shares["a tenth is lost"]

    assert min(shares.values()) >= 0.8


@each
def test_calls_that_are_lost_whatever_is_done_cost_no_more_than_with_the_right_limit(name: str):
    """A tenth of them, each as long as 20 others: the slots they keep cost a constant limit as much."""
    told = story(BACKEND, Phase("calm", 30.0), Phase("lost", 300.0, lost=0.1))
    constant, adaptive = (play(told, limit).chapter("lost").share for limit in (12, ADAPTIVE[name]()))

    assert constant is not None
    assert adaptive is not None
    assert adaptive >= 0.85 * constant


@each_by_latency
def test_calls_let_in_are_answered_soon(name: str):
    """In overload, 95 % within five times what a call takes, where AIMD lets them wait for much longer."""
    late = studies.ten_minute_runs()[name].chapter("overload x4").tally.quantile(0.95)

    assert late is not None
    assert late <= 5 * BACKEND.service


def _sizes() -> Iterator[Any]:
    for number, (backend, load, lasts) in enumerate(studies.SIZES):
        calls = backend.capacity * load * lasts
        shared = "-shared" * (backend.kind is SharedProcessors)
        marks = [in_full] if calls > 50_000 else []
        yield pytest.param(number, id=f"{backend.workers}x{backend.service:g}{shared}", marks=marks)


@each_by_latency
@pytest.mark.parametrize("number", [*_sizes()])
def test_goodput_does_not_depend_on_the_size_of_the_server(name: str, number: int):
    """From 2 to 200 workers and from 2 ms to 2 s, and with processors that all calls share."""
    assert studies.size(name, number).share >= 0.8


@each
def test_wrong_beginning_is_corrected_within_thirty_seconds(name: str):
    """Ten times too low and ten times too high."""
    found = [start for start in studies.starts() if start.name == name]

    assert [start.initial for start in found] == [studies.WRONG.workers // 10, studies.WRONG.workers * 10]
    assert all(start.converged is not None and start.converged <= 30.0 for start in found)


def test_limit_does_not_creep_in_ten_minutes_of_overload():
    """It ends no higher than it was after a minute, and a quarter; as published, it more than doubles."""
    runs = studies.creep_runs()

    def mean(name: str, begin: float, end: float) -> float:
        limits = [*runs[name].limits(begin, end)]
        return sum(limits) / len(limits)

    assert mean("ours", 540.0, 600.0) <= 1.25 * mean("ours", 60.0, 120.0)
    assert mean("as published", 540.0, 600.0) >= 2.0 * mean("as published", 60.0, 120.0)


@each
@pytest.mark.parametrize("wire", [0.1, 0.4])
def test_longer_way_is_followed(name: str, wire: float):
    """A call takes twice, or five times as long, and so many more have to be in flight; and back."""
    trace = play(steps(BACKEND, wire), ADAPTIVE[name]())

    for chapter in trace.chapters:
        begin, end = chapter.begin + 30.0, chapter.begin + chapter.phase.seconds
        assert trace.goodput(begin, end) >= 0.8 * BACKEND.capacity
        assert trace.goodput(chapter.begin, end) >= 0.7 * BACKEND.capacity


@each
def test_capacity_that_was_added_is_used(name: str):
    """With five times the workers, 80 % of them after 15 seconds."""
    trace = play(scaled_up(BACKEND, 5), ADAPTIVE[name]())

    assert trace.goodput(75.0, 120.0) >= 0.8 * 5 * BACKEND.capacity


@each
def test_limit_stays_while_little_is_asked(name: str):
    """Five minutes of a tenth of the load: the limit has no reason to grow."""
    limit = ADAPTIVE[name]()
    trace = play(application_limited(BACKEND), limit)

    assert max(trace.limits(0.0, 300.0)) <= limit.initial
    assert trace.chapters[0].share == pytest.approx(1.0, abs=0.02)


@each
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_next_to_nothing_is_refused_without_overload(name: str, load: float):
    """Less than one call in a hundred in five minutes, the measurements at half the limit included."""
    told = story(BACKEND, Phase("steady", 300.0, load=load))
    tally = play(told, ADAPTIVE[name]()).chapters[0].tally

    assert tally.rejected <= 0.01 * tally.offered
    assert tally.timed_out == 0


@each
def test_mixture_of_short_and_long_calls_is_served(name: str):
    """One call in twenty takes ten times as long: goodput stays, for all that the times swing."""
    mixed = Backend(workers=20, service=0.1, slow_share=0.05)
    told = story(mixed, Phase("mixed", 240.0, load=3.0))

    assert play(told, ADAPTIVE[name]()).goodput(60.0, 240.0) >= 0.8 * mixed.capacity


@each_by_latency
@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=in_full) for seed in (3, 4))])
def test_chance_makes_no_difference(name: str, seed: int):
    """What holds for one seed holds for others."""
    told = overload(BACKEND, 120.0)

    assert play(told, ADAPTIVE[name](), seed=seed).goodput(10.0, 120.0) >= 0.85 * BACKEND.capacity


@each
def test_server_that_was_hung_is_used_again(name: str):
    """Within ten seconds, after half a minute in which nothing ended."""
    told = story(
        BACKEND,
        Phase("full", 60.0, load=1.2),
        Phase("hung", 30.0, load=1.2, hung=True),
        Phase("back", 60.0, load=1.2),
    )
    trace = play(told, ADAPTIVE[name]())

    assert trace.goodput(100.0, 150.0) >= 0.8 * BACKEND.capacity
