"""A leak is told long before the kill, and nothing else is taken for one."""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilient.health import Finding, Status
from resilient.health.checks import ContainerMemory, MemoryGrowth
from resilient.health.checks.cgroups import Memory
from resilient.health.checks.memory import resident_memory
from resilient.testing import FakeClock

MB = 1024.0 * 1024.0
MINUTE = 60.0
HOUR = 3600.0

Shape = Callable[[float], float]


class Process:
    """A process whose memory follows a shape, in MB by seconds, and a check that is asked now and then."""

    def __init__(self, shape: Shape, container: float | None = None, **options: object) -> None:
        self.clock = FakeClock()
        self.shape = shape
        self.container = container
        self.check = MemoryGrowth(
            read=self.read,
            container=self.limit,
            clock=self.clock,
            **options,  # type: ignore[arg-type]
        )

    def read(self) -> float:
        return self.shape(self.clock()) * MB

    def limit(self) -> Memory | None:
        return None if self.container is None else Memory(self.read(), self.container * MB, "cgroup v2")

    def run(self, until: float, steps: Callable[[], float] = lambda: 5.0) -> Iterator[tuple[float, Finding]]:
        """Ask until so many seconds are over, and return when and what was found."""
        while self.clock() < until:
            yield self.clock(), self.check()
            self.clock.advance(steps())

    def warned_at(self, until: float, steps: Callable[[], float] = lambda: 5.0) -> list[float]:
        """Return when it warned."""
        return [at for at, finding in self.run(until, steps) if finding.status is not Status.PASS]


def leak(at: float) -> float:
    """Grow by 10 MB a minute, from 80 MB on, as incident A5 did."""
    return 80.0 + 10.0 * at / MINUTE


def noise(at: float, size: float) -> float:
    """Return the same "random" number for the same moment."""
    return random.Random(at).uniform(0.0, size)


class TestIncident:
    """A5: 80 to 400 MB in 30 minutes, and killed at 512 MB, twelve times in six hours."""

    def test_leak_is_told_in_six_minutes(self) -> None:
        """There is half an hour left until the kill at 512 MB, after 43 minutes."""
        first = Process(leak).warned_at(43 * MINUTE)[0]
        assert 5 * MINUTE <= first <= 6.5 * MINUTE

    def test_leak_is_told_until_the_kill(self) -> None:
        """Once told, it is told without a break."""
        warned = Process(leak).warned_at(43 * MINUTE)
        assert warned[-1] - warned[0] == pytest.approx(5.0 * (len(warned) - 1))
        assert warned[-1] >= 42 * MINUTE

    def test_message_has_the_figures(self) -> None:
        """How much, how fast, where it stands and when it will end."""
        process = Process(leak, container=512.0)
        finding = [found for _, found in process.run(11.5 * MINUTE)][-1]
        assert finding.status is Status.WARN
        assert finding.output == (
            "grew 104 MB in 10 min, 10.0 MB/min, now 194 MB; at this rate the container limit of 512 MB is "
            "reached in 32 min"
        )
        assert finding.value == pytest.approx(104 * MB, rel=0.02)
        assert finding.unit == "bytes"
        assert finding.facts["bytes_per_minute"] == pytest.approx(10 * MB, rel=0.02)
        assert finding.facts["seconds_left"] == pytest.approx(32 * MINUTE, rel=0.02)

    def test_each_restart_begins_anew_and_is_told(self) -> None:
        """The leak is told after each of the twelve kills."""
        for _ in range(12):
            assert Process(leak).warned_at(30 * MINUTE)

    @pytest.mark.parametrize("every", [1.0, 10.0, 60.0, 180.0, 290.0])
    def test_it_is_told_however_often_it_is_asked(self, every: float) -> None:
        """A probe each second, or three in ten minutes."""
        first = Process(leak).warned_at(43 * MINUTE, lambda: every)[0]
        assert first <= 6.5 * MINUTE + 2.5 * every

    def test_it_is_told_when_asked_at_random(self) -> None:
        """Bursts of probes, and minutes without any."""
        chance = random.Random(6)
        first = Process(leak).warned_at(43 * MINUTE, lambda: chance.choice([0.01, 0.5, 5.0, 90.0]))[0]
        assert 5 * MINUTE <= first <= 9 * MINUTE

    def test_leak_under_saw_teeth_is_told(self) -> None:
        """Collections do not hide it."""
        warned = Process(lambda at: leak(at) + at % 45.0 + noise(at, 10.0)).warned_at(43 * MINUTE)
        assert 4 * MINUTE <= warned[0] <= 9 * MINUTE

    def test_model_loaded_again_and_again_is_told(self) -> None:
        """200 MB per request, and a request each 20 minutes, is 10 MB a minute."""
        warned = Process(lambda at: 80.0 + 200.0 * (at // (20 * MINUTE))).warned_at(HOUR)
        assert warned
        assert warned[0] < 25 * MINUTE


class TestNoLeak:
    """Hours of what healthy processes do, without a warning."""

    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param(lambda _: 300.0, id="level"),
            pytest.param(lambda at: 300.0 + noise(at, 200.0), id="noise"),
            pytest.param(lambda at: 100.0 + 100.0 * (at % 120.0) / 120.0, id="saw of two minutes"),
            pytest.param(lambda at: 100.0 + 100.0 * (at % 300.0) / 300.0 - 50.0, id="saw of five minutes"),
            pytest.param(lambda at: 100.0 + 60.0 * math.sin(at / 40.0), id="waves"),
            pytest.param(lambda at: 400.0 * (1 - math.exp(-at / 15.0)), id="warm-up"),
            pytest.param(lambda at: 400.0 if at > 30.0 else 50.0, id="a model loaded at the start"),
            pytest.param(lambda at: 100.0 + 4.0 * at / MINUTE, id="slow leak under the limit"),
            pytest.param(lambda at: 900.0 if 1500.0 <= at < 1620.0 else 100.0, id="burst of two minutes"),
            pytest.param(lambda at: 900.0 - 10.0 * at / MINUTE, id="shrinks"),
        ],
    )
    def test_is_not_taken_for_one(self, shape: Shape) -> None:
        """Neither peaks nor what happens at the start count."""
        assert Process(shape).warned_at(1.4 * HOUR) == []

    @pytest.mark.parametrize("seed", range(5))
    def test_random_saws_are_no_leak(self, seed: int) -> None:
        """Teeth of any height under 300 MB and any length up to two minutes, asked at random."""
        chance = random.Random(seed)
        height, length = chance.uniform(1.0, 300.0), chance.uniform(5.0, 120.0)
        process = Process(lambda at: 100.0 + height * (at % length) / length)
        assert process.warned_at(2 * HOUR, lambda: chance.uniform(0.5, 10.0)) == []

    def test_long_warm_up_is_told_with_a_longer_settle(self) -> None:
        """Whoever needs five minutes says so."""

        def shape(at: float) -> float:
            return min(500.0, 100.0 + 100.0 * at / MINUTE)

        assert Process(shape).warned_at(HOUR)
        assert Process(shape, settle=300.0).warned_at(HOUR) == []


class TestGrowthThatEnds:
    """What has grown for good is told for as long as a window, and that it does not go on."""

    def test_step_is_told_and_forgotten(self) -> None:
        """200 MB more since a minute is more than 50 MB in ten minutes; after ten minutes it is the past."""
        process = Process(lambda at: 80.0 if at < 1200.0 else 280.0, container=512.0)
        found = dict(process.run(HOUR))
        warned = [at for at, finding in found.items() if finding.status is Status.WARN]
        assert 1200.0 < warned[0] <= 1500.0
        assert warned[-1] <= 1200.0 + 620.0
        middle = found[warned[len(warned) // 2]]
        assert middle.output == "grew 200 MB in 10 min, and does not go on growing, now 280 MB"

    def test_small_step_is_no_growth(self) -> None:
        """45 MB in one step are no trend of 67 MB."""
        assert Process(lambda at: 80.0 if at < 1200.0 else 125.0).warned_at(HOUR) == []


class TestSamples:
    """What it does with few samples, strange clocks and readers that fail."""

    def test_too_early_is_said(self) -> None:
        """Nothing is known at first, and that is no failure."""
        finding = Process(leak).check()
        assert (finding.status, finding.output) == (Status.PASS, "now 80 MB; too early to tell its growth")
        assert finding.value is None

    def test_asked_too_rarely_never_tells(self) -> None:
        """Two samples are no trend."""
        assert Process(leak).warned_at(2 * HOUR, lambda: 400.0) == []

    def test_clock_that_runs_backwards_begins_anew(self) -> None:
        """Samples from the future are dropped."""
        process = Process(leak)
        assert process.warned_at(600.0)
        process.clock._now = 100.0
        assert process.check().output.endswith("too early to tell its growth")
        assert process.warned_at(600.0)[0] >= 100.0 + 240.0

    def test_clock_that_leaps_begins_anew(self) -> None:
        """After a night asleep, the evening's samples are old."""
        process = Process(leak)
        assert process.warned_at(600.0)
        process.clock.advance(8 * HOUR)
        assert process.check().output.endswith("too early to tell its growth")

    def test_is_bounded(self) -> None:
        """A million probes a day keep no more than a few numbers."""
        process = Process(leak)
        for _ in process.run(HOUR, lambda: 0.5):
            assert len(process.check._trend._floors) <= 22

    def test_unreadable_memory_is_unknown(self) -> None:
        """Whatever the reader raises is told, and not raised."""

        def read() -> float:
            raise OSError("no such thing, password=Zq7")

        finding = MemoryGrowth(read=read)()
        assert finding.status is Status.UNKNOWN
        assert (
            finding.output == "the memory of this process is not known: OSError: no such thing, password=***"
        )

    def test_failure_where_it_is_wanted(self) -> None:
        """A replica that leaks can be taken out before it is killed."""
        found = [finding.status for _, finding in Process(leak, fails=True).run(600.0)]
        assert found[-1] is Status.FAIL

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forked_child_begins_anew(self) -> None:
        """What the parent had grown by is not told of the child."""
        process = Process(leak)
        assert process.warned_at(600.0)
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            os._exit(0 if process.check().output.endswith("too early to tell its growth") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_reads_this_process(self) -> None:
        """The real reader sees 30 MB that were asked for and written to."""
        before = resident_memory()
        block = b"x" * int(30 * MB)
        assert resident_memory() - before > 20 * MB
        assert MemoryGrowth()().facts["resident_bytes"] == pytest.approx(resident_memory(), rel=0.2)
        del block

    def test_psutil_reads_it_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is no /proc it is psutil, if that is there."""
        direct = resident_memory()
        monkeypatch.setattr("resilient.health.checks.memory._STATM", Path("/nowhere/statm"))
        assert resident_memory() == pytest.approx(direct, rel=0.1)
        monkeypatch.setitem(sys.modules, "psutil", None)
        finding = MemoryGrowth()()
        assert finding.status is Status.UNKNOWN
        assert "psutil is not installed" in finding.output

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "limit must be greater than 0, got 0"),
            ({"window": 0}, "window must be greater than 0, got 0"),
            ({"settle": -1}, "settle must be at least 0, got -1"),
            ({"name": " "}, "name must not be empty, got ' '"),
        ],
    )
    def test_bad_settings_are_refused(self, options: dict[str, object], message: str) -> None:
        """When it is made, by name."""
        with pytest.raises(ValueError, match=message):
            MemoryGrowth(**options)  # type: ignore[arg-type]


class TestContainer:
    """How much of the limit is in use."""

    @pytest.mark.parametrize(
        ("used", "status"), [(409, Status.PASS), (410, Status.WARN), (486, Status.WARN), (487, Status.FAIL)]
    )
    def test_thresholds(self, used: float, status: Status) -> None:
        """It warns from 80 % on, and fails from 95 %."""
        finding = ContainerMemory(read=lambda: Memory(used * MB, 512 * MB, "cgroup v2"))()
        assert finding.status is status
        assert finding.output == f"{used} MB of the container's 512 MB in use, {used / 512:.0%}"
        assert finding.facts["limit_bytes"] == 512 * MB

    def test_thresholds_may_be_off(self) -> None:
        """Figures only."""
        finding = ContainerMemory(None, None, read=lambda: Memory(512 * MB, 512 * MB, "cgroup v1"))()
        assert (finding.status, finding.value) == (Status.PASS, 100.0)

    def test_real_machine(self) -> None:
        """Where this runs, something is in use, and less than all."""
        finding = ContainerMemory(None, None)()
        assert finding.value is not None
        assert 0.0 < finding.value <= 100.0
        assert finding.facts["source"] in {"cgroup v1", "cgroup v2", "machine"}

    def test_nothing_known(self) -> None:
        """That is said, and is not taken for health."""
        assert ContainerMemory(read=lambda: None)().status is Status.UNKNOWN

        def read() -> Memory:
            raise RuntimeError("broken")

        finding = ContainerMemory(read=read)()
        assert (finding.status, finding.output) == (
            Status.UNKNOWN,
            "the memory in use is not known: RuntimeError: broken",
        )

    @pytest.mark.parametrize(
        ("warn", "fail", "message"),
        [
            (0, None, "warn must be greater than 0"),
            (None, 1.5, "fail must be at most 1"),
            (0.9, 0.5, "fail must be at least warn, which is 0.9"),
        ],
    )
    def test_bad_thresholds_are_refused(self, warn: float | None, fail: float | None, message: str) -> None:
        """When it is made, by name."""
        with pytest.raises(ValueError, match=message):
            ContainerMemory(warn, fail)
