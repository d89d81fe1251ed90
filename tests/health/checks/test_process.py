"""What a process has of what it may have."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resilient.health import Status
from resilient.health.checks import CPU, DiskSpace, FileDescriptors, Threads
from resilient.health.checks import process as module
from resilient.health.checks.cgroups import Cgroups
from resilient.testing import FakeClock

GB = 1024**3


class TestCPU:
    """A machine with two processors, of which the process uses what the test says."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.used = FakeClock(), 100.0
        self.quota: float | None = None
        self.periods: tuple[int, int] | None = None
        monkeypatch.setattr(time, "process_time", lambda: self.used)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(Cgroups, "cpus", lambda _: self.quota)
        monkeypatch.setattr(Cgroups, "throttling", lambda _: self.periods)

    def work(self, seconds: float, busy: float) -> None:
        """Let *seconds* pass, in which *busy* processors are used."""
        self.clock.advance(seconds)
        self.used += seconds * busy

    def test_share_since_the_last_call(self) -> None:
        """What was before it does not count."""
        check = CPU(clock=self.clock)
        self.work(10.0, 2.0)
        first = check()
        self.work(10.0, 0.5)
        second = check()
        assert (first.status, first.value, first.output) == (
            Status.WARN,
            100.0,
            "2 of 2 processors used, 100%",
        )
        assert (second.status, second.value) == (Status.PASS, 25.0)

    def test_quota_is_what_it_may_use(self) -> None:
        """Half a processor of a quota of half a processor is all of it."""
        self.quota = 0.5
        check = CPU(warn=0.8, fail=0.95, clock=self.clock)
        self.work(10.0, 0.5)
        finding = check()
        assert (finding.status, finding.value) == (Status.FAIL, 100.0)
        assert finding.facts["cpus_allowed"] == 0.5

    def test_first_second_tells_nothing(self) -> None:
        """A share of a few milliseconds would be chance."""
        check = CPU(clock=self.clock)
        self.work(0.2, 2.0)
        finding = check()
        assert (finding.status, finding.value) == (Status.PASS, None)
        assert "too early" in finding.output

    def test_two_probers_see_the_same(self) -> None:
        """Whoever asks right after another one is not told of a moment."""
        check = CPU(clock=self.clock)
        self.work(10.0, 1.0)
        assert check().value == 50.0
        self.work(0.1, 2.0)
        assert check().value == pytest.approx(50.5, abs=0.2)
        self.work(10.0, 2.0)
        assert check().value == 100.0

    def test_storm_of_probes_keeps_a_few_samples(self) -> None:
        """And each is told of at least the last second."""
        check = CPU(clock=self.clock)
        for _ in range(1000):
            self.work(0.01, 1.0)
            finding = check()
            assert finding.value in {None, 50.0}
        assert len(check._samples) <= 3

    def test_throttling_is_told(self) -> None:
        """A quota holds up whoever needs it in bursts, long before the share is high."""
        self.periods = (100, 0)
        check = CPU(clock=self.clock)
        self.work(10.0, 0.2)
        self.periods = (200, 43)
        finding = check()
        assert finding.facts["throttled_percent"] == 43.0
        assert finding.output == "0.2 of 2 processors used, 10%; held up in 43% of the periods of its quota"

    def test_clock_that_runs_backwards_begins_anew(self) -> None:
        """No share is negative."""
        check = CPU(clock=self.clock)
        self.work(10.0, 1.0)
        check()
        self.clock._now = 1.0
        assert check().value is None
        self.work(2.0, 1.0)
        assert check().value == 50.0

    def test_without_affinity_all_processors_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on systems that cannot tell."""
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        check = CPU(clock=self.clock)
        self.work(10.0, 1.0)
        assert check().value == 25.0


class TestThreads:
    """Their number."""

    def test_counts_one_more(self) -> None:
        """A thread that is begun is counted."""
        gate = threading.Event()
        before = Threads()().value
        thread = threading.Thread(target=gate.wait)
        thread.start()
        finding = Threads()()
        gate.set()
        thread.join()
        assert before is not None
        assert finding.value == before + 1
        assert finding.facts["python_threads"] == threading.active_count() + 1

    @pytest.mark.parametrize(
        ("warn", "fail", "status"),
        [(7, None, Status.WARN), (8, None, Status.PASS), (5, 7, Status.FAIL), (None, None, Status.PASS)],
    )
    def test_thresholds(
        self, monkeypatch: pytest.MonkeyPatch, warn: int | None, fail: int | None, status: Status
    ) -> None:
        """Seven threads are too many when it says so."""
        monkeypatch.setattr(module, "_threads", lambda: 7)
        finding = Threads(warn, fail)()
        assert finding.status is status
        assert finding.output.startswith("7 threads")

    @pytest.mark.parametrize("text", [None, "nonsense", "Name: x\nThreads:\n"])
    def test_elsewhere_pythons_are_counted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
    ) -> None:
        """Where /proc does not tell."""
        status = tmp_path / "status"
        if text is not None:
            status.write_text(text)
        monkeypatch.setattr(module, "_STATUS", status)
        assert Threads()().value == threading.active_count()

    def test_bad_thresholds_are_refused(self) -> None:
        """When it is made, by name."""
        with pytest.raises(ValueError, match="warn must be at least 1, got 0"):
            Threads(0)
        with pytest.raises(ValueError, match="fail must be at least warn, which is 9, got 3"):
            Threads(9, 3)


class TestFileDescriptors:
    """Their share of the limit."""

    def test_counts_what_is_opened(self) -> None:
        """Ten sockets more are ten more; its own look is not among them."""
        before = FileDescriptors()().facts["open"]
        sockets = [socket.socket() for _ in range(10)]
        after = FileDescriptors()().facts["open"]
        for one in sockets:
            one.close()
        assert isinstance(before, int)
        assert after == before + 10
        assert FileDescriptors()().facts["open"] == before

    @pytest.mark.parametrize(
        ("count", "status"), [(79, Status.PASS), (80, Status.WARN), (94, Status.WARN), (95, Status.FAIL)]
    )
    def test_thresholds(self, monkeypatch: pytest.MonkeyPatch, count: int, status: Status) -> None:
        """It warns from 80 % on, and fails from 95 %."""
        monkeypatch.setattr(module, "_descriptors", lambda: count)
        monkeypatch.setattr(module, "_descriptor_limit", lambda: 100)
        finding = FileDescriptors()()
        assert (finding.status, finding.value) == (status, float(count))
        assert finding.output == f"{count} of 100 file descriptors open, {count}%"

    def test_none_left_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To count them takes one; where there is none, that says it all."""

        def listdir(_: str) -> list[str]:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(os, "listdir", listdir)
        finding = FileDescriptors()()
        assert finding.status is Status.FAIL
        assert finding.output.startswith("no file descriptor is left")

    def test_system_that_does_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody knows there."""
        monkeypatch.setattr(module, "_DESCRIPTORS", ("/nowhere/fd",))
        assert FileDescriptors()().status is Status.UNKNOWN

    def test_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then there is no share, and nothing to warn of."""
        monkeypatch.setattr(module, "_descriptor_limit", lambda: None)
        finding = FileDescriptors()()
        assert finding.status is Status.PASS
        assert "without a limit" in finding.output


class TestDiskSpace:
    """How full a disk is."""

    @pytest.fixture
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A disk of 100 GB with 1,000 inodes; the test says how many are free."""
        disk = SimpleNamespace(
            f_frsize=4096,
            f_blocks=100 * GB // 4096,
            f_bfree=50 * GB // 4096,
            f_bavail=50 * GB // 4096,
            f_files=1000,
            f_ffree=900,
            f_favail=900,
        )
        monkeypatch.setattr(os, "statvfs", lambda _: disk)
        return disk

    def free(self, disk: SimpleNamespace, gigabytes: int) -> None:
        """Leave so much room."""
        disk.f_bfree = disk.f_bavail = gigabytes * GB // 4096

    @pytest.mark.parametrize(
        ("free", "status"), [(11, Status.PASS), (10, Status.WARN), (3, Status.WARN), (2, Status.FAIL)]
    )
    def test_thresholds(self, disk: SimpleNamespace, free: int, status: Status) -> None:
        """It warns from 90 % on, and fails from 98 %."""
        self.free(disk, free)
        finding = DiskSpace("/data")()
        assert (finding.status, finding.value) == (status, 100.0 - free)
        assert finding.facts["free_bytes"] == free * GB

    def test_what_only_root_may_use_is_not_free(self, disk: SimpleNamespace) -> None:
        """Five of a hundred gigabytes are kept for root, as `df` has it."""
        self.free(disk, 5)
        disk.f_bavail = 0
        finding = DiskSpace("/data")()
        assert (finding.status, finding.value) == (Status.FAIL, 100.0)

    def test_inodes_count_too(self, disk: SimpleNamespace) -> None:
        """A disk with room and without inodes takes no file any more."""
        disk.f_ffree = disk.f_favail = 10
        finding = DiskSpace("/data")()
        assert (finding.status, finding.value) == (Status.FAIL, 99.0)
        assert finding.output.endswith("; 99% of its inodes")

    def test_file_system_without_inodes(self, disk: SimpleNamespace) -> None:
        """Btrfs says 0 of 0."""
        disk.f_files = disk.f_ffree = disk.f_favail = 0
        finding = DiskSpace("/data")()
        assert finding.status is Status.PASS
        assert "inodes_used_percent" not in finding.facts

    def test_least_room(self, disk: SimpleNamespace) -> None:
        """20 % of room may be too little, in bytes."""
        self.free(disk, 20)
        assert DiskSpace("/data", min_free=21 * GB)().status is Status.FAIL
        assert DiskSpace("/data", min_free=20 * GB)().status is Status.PASS

    def test_disk_of_no_size(self, disk: SimpleNamespace) -> None:
        """Such as /proc: it is full."""
        disk.f_blocks = disk.f_bfree = disk.f_bavail = 0
        assert DiskSpace("/proc")().status is Status.FAIL

    def test_no_such_path(self, tmp_path: Path) -> None:
        """A volume that is not mounted is a failure."""
        finding = DiskSpace(tmp_path / "gone")()
        assert finding.status is Status.FAIL
        assert "FileNotFoundError" in finding.output

    def test_real_disk(self, tmp_path: Path) -> None:
        """Where this runs there is some room."""
        finding = DiskSpace(tmp_path, None, None)()
        assert finding.status is Status.PASS
        assert finding.value is not None
        assert 0.0 <= finding.value <= 100.0

    def test_without_statvfs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on Windows."""
        monkeypatch.delattr(os, "statvfs")
        usage = SimpleNamespace(used=20 * GB, free=80 * GB)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        finding = DiskSpace(tmp_path)()
        assert (finding.status, finding.value) == (Status.PASS, 20.0)
        assert "inodes_used_percent" not in finding.facts

    def test_repr_says_which(self) -> None:
        """There may be several."""
        assert repr(DiskSpace("/data", name="data")) == "<DiskSpace 'data' of /data>"

    def test_bad_path_is_refused(self) -> None:
        """When it is made."""
        bad: Any = 3
        with pytest.raises(TypeError, match="path must be a path, got 3"):
            DiskSpace(bad)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_used_nothing_yet() -> None:
    """Or its share would be negative."""
    check = CPU()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        os._exit(0 if check().value is None and check._samples[0][1] < 1.0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
