"""Pressure on the process: what is measured of loops and processor, on clocks that are told what to show."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient import AIMD, Bulkhead
from resilient.policies.bulkhead import pressure
from resilient.policies.bulkhead.pressure import (
    BEAT,
    CPU_WINDOW,
    HALF_LIFE,
    KEEP,
    Pressure,
    PressureMeter,
    Reading,
    usable_cores,
)
from resilient.testing import FakeClock


class Loop:
    """An event loop as far as a meter knows one; its one timer is let off by hand."""

    def __init__(self) -> None:
        self.running = True
        self.timers: list[Callable[[], None]] = []
        self.contexts: list[contextvars.Context] = []

    def is_running(self) -> bool:
        return self.running

    def call_later(self, delay: float, callback: Callable[[], None], context: contextvars.Context) -> None:
        assert delay == BEAT
        self.timers.append(callback)
        self.contexts.append(context)

    def beat(self) -> None:
        """Let the timer off."""
        self.timers.pop()()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


@pytest.fixture
def meter(clock: FakeClock) -> PressureMeter:
    """A meter for whose loops no time passes, and no processor time at all."""
    return PressureMeter(Pressure(), clock, cpu_clock=float)


@pytest.fixture
def loop() -> Iterator[Any]:
    """A loop that runs in this thread."""
    loop = Loop()
    with running(loop):
        yield loop


class running:  # noqa: N801 - reads as a word
    """Have a loop run in this thread."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._before = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop)

    def __exit__(self, *exc_info: object) -> None:
        asyncio._set_running_loop(self._before)


# The settings.


@pytest.mark.parametrize(
    ("lag", "cpu", "factor"),
    [
        (0.0, 0.0, 1.0),
        (0.05, 0.9, 1.0),
        (0.0625, 0.0, 0.8),
        (0.0, 0.96, 0.9375),
        (0.0625, 0.96, 0.8),
        (0.1, 0.0, 0.5),
        (60.0, 64.0, 0.5),
        (math.inf, 0.0, 0.5),
    ],
)
def test_factor_is_the_smaller_share_within_bounds(lag: float, cpu: float, factor: float) -> None:
    """Target by measured, never below a half: who is busy with refusing must not talk himself down."""
    assert Pressure(lag=0.05, cpu=0.9).factor(lag, cpu) == pytest.approx(factor)


def test_what_is_none_is_not_gone_by() -> None:
    """A process that is meant to use all of its processor, or that has no loops."""
    assert Pressure(cpu=None).factor(0.05, 1.0) == 1.0
    assert Pressure(lag=None).factor(9.0, 0.9) == 1.0


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lag": 0.0}, ValueError, r"lag must be greater than 0, got 0\.0"),
    ({"lag": -1.0}, ValueError, r"lag must be greater than 0, got -1\.0"),
    ({"lag": math.nan}, ValueError, r"lag must be a number of seconds that is finite, got nan"),
    ({"lag": math.inf}, ValueError, r"lag must be a number of seconds that is finite, got inf"),
    ({"lag": True}, TypeError, r"lag must be a number of seconds, got True"),
    ({"lag": "50ms"}, TypeError, r"lag must be a number of seconds, got '50ms'"),
    ({"cpu": 0.0}, ValueError, r"cpu must be greater than 0, got 0\.0"),
    ({"cpu": 1.1}, ValueError, r"cpu must be at most 1, got 1\.1"),
    ({"cpu": math.nan}, ValueError, r"cpu must be a ratio that is finite, got nan"),
    ({"cpu": "90%"}, TypeError, r"cpu must be a ratio, got '90%'"),
    ({"lag": None, "cpu": None}, ValueError, r"lag or cpu must be given, got None"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_settings_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    """When they are made, with parameter, rule and value."""
    with pytest.raises(error, match=f"^{message}$"):
        Pressure(**settings)


def test_settings_are_a_value() -> None:
    """Equal if alike, and not to be changed: adaptive limits that hold them are, too."""
    assert Pressure(lag=0.1) == Pressure(lag=0.1, cpu=0.9)
    with pytest.raises(AttributeError):
        Pressure().lag = 1.0  # type: ignore[misc]


# The lag of loops.


def test_loop_in_time_has_no_lag(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """Its timer comes when it is due."""
    for _ in range(10):
        meter.touch()
        clock.advance(BEAT)
        loop.beat()

        assert meter.read() == Reading(lag=0.0, cpu=0.0, factor=1.0)


def test_lag_is_how_late_the_timer_comes_and_fades(
    meter: PressureMeter, clock: FakeClock, loop: Loop
) -> None:
    """To half in a quarter of a second, whether anything is late or not."""
    meter.touch()
    clock.advance(BEAT + 0.08)
    loop.beat()
    assert meter.read().lag == pytest.approx(0.08)
    assert meter.read().factor == pytest.approx(0.05 / 0.08)

    for _ in range(round(HALF_LIFE / BEAT)):
        clock.advance(BEAT)
        loop.beat()

    assert meter.read().lag == pytest.approx(0.04)
    assert meter.read().factor == 1.0


def test_late_loop_lowers_a_limit_while_calls_take_no_longer(clock: FakeClock, loop: Loop) -> None:
    """Before latency shows it; the limit comes back with the loop."""
    limit = AIMD(initial=20, window=0.1, min_samples=1, pressure=Pressure(cpu=None))
    bulkhead = Bulkhead("door", limit, clock=clock)

    def see(late: float) -> tuple[int, float | None]:
        block = bulkhead.calling()
        block.__enter__()
        clock.advance(0.01)
        block.__exit__(None, None, None)
        clock.advance(BEAT + late)
        loop.beat()
        stats = bulkhead.stats().adaptive
        assert stats is not None
        return bulkhead.limit, stats.rtt

    calm = [see(0.0) for _ in range(5)]
    late = [see(0.1) for _ in range(5)]
    back = [see(0.0) for _ in range(50)]

    assert {limit for limit, _ in calm} == {20}
    assert late[-1][0] == 10
    assert back[-1][0] == 20
    assert {round(rtt, 6) for _, rtt in (*calm, *late, *back) if rtt is not None} == {0.01}


def test_worst_of_late_counts(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """A smaller lag does not hide a greater one, and a greater one counts at once."""
    lags = []
    for late in (0.08, 0.01, 0.2):
        meter.touch()
        clock.advance(BEAT + late)
        loop.beat()
        lags.append(meter.read().lag)

    assert lags == pytest.approx([0.08, 0.08 * 2 ** -((BEAT + 0.01) / HALF_LIFE), 0.2])


def test_loop_that_is_blocked_shows_before_it_can_say_so(
    meter: PressureMeter, clock: FakeClock, loop: Loop
) -> None:
    """The beat that does not come tells, also from another thread."""
    meter.touch()
    clock.advance(BEAT + 0.1)
    readings = [meter.read()]
    thread = threading.Thread(target=lambda: readings.append(meter.read()))
    thread.start()
    thread.join()
    clock.advance(1.0)
    readings.append(meter.read())

    assert [reading.lag for reading in readings] == pytest.approx([0.1, 0.1, 1.1])
    assert {reading.factor for reading in readings} == {0.5}


def test_worst_of_several_loops_counts(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """Whichever thread it runs in; and only as long as it runs."""
    other = Loop()

    def run_other() -> None:
        with running(other):
            meter.touch()

    thread = threading.Thread(target=run_other)
    thread.start()
    thread.join()
    meter.touch()
    clock.advance(BEAT)
    loop.beat()
    clock.advance(0.1)

    lags = [meter.read().lag]
    loop.beat()
    lags.append(meter.read().lag)
    other.running = False
    lags.append(meter.read().lag)

    assert lags == pytest.approx([0.1, 0.1, 0.1 - BEAT])


def test_heart_stops_beating_a_second_after_the_last_call(
    meter: PressureMeter, clock: FakeClock, loop: Loop
) -> None:
    """A service without traffic has no timers; and the next call has the loop watched again."""
    meter.touch()
    beats = 0
    while loop.timers:
        clock.advance(BEAT)
        loop.beat()
        beats += 1

    assert beats == pytest.approx(1 + KEEP / BEAT, abs=1)
    assert not meter.watched
    meter.touch()
    assert len(loop.timers) == 1


def test_heart_beats_on_while_calls_come(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """One timer, however many calls there are."""
    for _ in range(200):
        for _ in range(3):
            meter.touch()
        assert len(loop.timers) == 1
        clock.advance(BEAT)
        loop.beat()


def test_heart_holds_on_to_no_context(meter: PressureMeter, loop: Loop) -> None:
    """What the first call had in its context could else never be freed."""
    contextvars.ContextVar[str]("request").set("the first one")

    meter.touch()

    assert not list(loop.contexts[0])


def test_loop_that_stands_still_is_not_late(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """It was stopped, or closed: forgotten, and watched anew if calls come on it again."""
    meter.touch()
    loop.running = False
    clock.advance(60.0)

    assert meter.read().lag == 0.0
    assert not meter.watched
    loop.running = True
    meter.touch()
    loop.timers.pop(0)()  # that of the first heartbeat
    assert len(loop.timers) == 1


def test_time_between_two_runs_of_a_loop_is_no_lag(
    meter: PressureMeter, clock: FakeClock, loop: Loop
) -> None:
    """Also where nobody has looked meanwhile."""
    meter.touch()
    clock.advance(60.0)
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=lambda _: None)  # as a run does
    loop.beat()
    reading = meter.read()
    clock.advance(BEAT + 0.07)
    loop.beat()
    sys.set_asyncgen_hooks(*before)

    assert reading.lag == 0.0
    assert meter.read().lag == pytest.approx(0.07)


def test_thread_that_gets_a_loop_is_watched(meter: PressureMeter) -> None:
    """It had none when it was asked first; a reading has it asked again."""
    loop = Loop()
    meter.touch()
    with running(loop):
        meter.touch()
        assert not loop.timers
        meter.read()
        meter.touch()

    assert len(loop.timers) == 1


def test_thread_that_gets_another_loop_is_watched(meter: PressureMeter) -> None:
    """As with one `asyncio.run` after another."""
    first, second = Loop(), Loop()
    with running(first):
        meter.touch()
    first.running = False
    with running(second):
        meter.read()
        meter.touch()

    assert (len(first.timers), len(second.timers)) == (1, 1)


def test_forked_child_forgets_the_loops(meter: PressureMeter, clock: FakeClock, loop: Loop) -> None:
    """They belong to threads that it does not have: none of them would ever beat again."""
    meter.touch()
    meter.after_fork()
    clock.advance(60.0)

    assert meter.read().lag == 0.0
    loop.beat()
    assert not loop.timers


def test_clock_that_went_back_does_no_harm(loop: Loop) -> None:
    """It must not; but a reading is no place to fail."""
    now = 10_000.0
    meter = PressureMeter(Pressure(), lambda: now, cpu_clock=float)
    meter.touch()
    now += BEAT + 0.1
    loop.beat()
    now = 0.0

    assert meter.read().lag == pytest.approx(0.1)


# The processor.


def test_processor_time_is_a_share_of_what_there_is(clock: FakeClock) -> None:
    """Of one core, or of all that the process may use; measured at most every quarter of a second."""
    used = FakeClock(100.0)  # what the process used before there was a meter
    one, four = (PressureMeter(Pressure(), clock, cpu_clock=used, cores=cores) for cores in (1, 4))
    shares = []
    for spent in (0.5, 0.5, 0.5, 0.25):
        clock.advance(CPU_WINDOW / 2)
        used.advance(spent)
        shares.append((one.read().cpu, four.read().cpu))

    assert shares == [(0.0, 0.0), (4.0, 1.0), (4.0, 1.0), (3.0, 0.75)]


def test_busy_processor_lowers_the_limit(clock: FakeClock) -> None:
    """In proportion, as with the lag."""
    used = FakeClock()
    meter = PressureMeter(Pressure(cpu=0.6), clock, cpu_clock=used, cores=1)
    clock.advance(1.0)
    used.advance(0.75)

    assert meter.read() == Reading(lag=0.0, cpu=0.75, factor=pytest.approx(0.8))


def test_forked_child_has_processor_time_of_its_own(clock: FakeClock) -> None:
    """What the parent has used is none of it; its clock begins at 0."""
    used = 100.0
    meter = PressureMeter(Pressure(), clock, cpu_clock=lambda: used, cores=1)
    clock.advance(1.0)
    used = 0.0
    meter.after_fork()
    clock.advance(1.0)
    used = 0.25

    assert meter.read().cpu == 0.25


@pytest.mark.parametrize(
    ("gil", "process_cores", "machine_cores", "expected"),
    [(True, 8, 8, 1), (False, 6, 8, 6), (False, None, 8, 8), (False, 0, 0, 1)],
    ids=str,
)
def test_cores_are_those_that_python_code_can_use(
    monkeypatch: pytest.MonkeyPatch,
    gil: bool,
    process_cores: int | None,
    machine_cores: int,
    expected: int,
) -> None:
    """One with a global interpreter lock; else those that the process may run on."""
    monkeypatch.setattr(pressure, "HAS_GIL", gil)
    if process_cores is None:
        monkeypatch.delattr("os.process_cpu_count", raising=False)
    else:
        monkeypatch.setattr("os.process_cpu_count", lambda: process_cores, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: machine_cores)

    assert usable_cores() == expected
