"""The file of a worker: whole or the one before, as old as it is, and for nobody else."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resilient.health import Report, Result, Status
from resilient.health.serving.status_file import StatusFile, read_status
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """The time since the machine was started."""
    return FakeClock(1_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the file is; nothing else is left there."""
    yield tmp_path / "health"
    assert {file.name for file in tmp_path.iterdir()} <= {"health"}


def report_of(status: Status = Status.PASS, *results: Result) -> Report:
    return Report("live", status, "worker", "1.0", datetime.now(UTC), 3.0, results)


def test_report_comes_back(path: Path, clock: FakeClock) -> None:
    """With all of its details."""
    results = (Result("queue", "check", Status.WARN, "7 jobs wait"), Result("disk", "check", Status.PASS))
    StatusFile(path, clock).write(report_of(Status.WARN, *results))

    found = read_status(path, 30.0, clock)
    assert (found.status, found.output) == (Status.WARN, "")
    assert found.report is not None
    assert found.report.service == "worker"
    assert found.report.result("queue").output == "7 jobs wait"


def test_report_is_as_old_as_it_is(path: Path, clock: FakeClock) -> None:
    """A worker that hangs does not write; one second more, and it has failed."""
    StatusFile(path, clock).write(report_of())
    clock.advance(30.0)
    assert read_status(path, 30.0, clock).status is Status.PASS

    clock.advance(1.0)
    found = read_status(path, 30.0, clock)
    assert (found.status, found.output) == (
        Status.FAIL,
        "the report is 31 s old, which is more than 30 s",
    )


def test_step_of_the_wall_clock_makes_it_neither_old_nor_young(path: Path, clock: FakeClock) -> None:
    """Its own time does not count, nor that of the file."""
    StatusFile(path, clock).write(report_of())
    os.utime(path, (0.0, 0.0))

    assert read_status(path, 30.0, clock).status is Status.PASS


def test_report_from_before_the_machine_was_started_is_none(path: Path) -> None:
    """A volume outlives that."""
    StatusFile(path, FakeClock(90_000.0)).write(report_of())

    found = read_status(path, 30.0, FakeClock(20.0))
    assert (found.status, found.output) == (
        Status.FAIL,
        "the report was written before this machine was started",
    )


def test_failure_is_told(path: Path, clock: FakeClock) -> None:
    """However young the file is."""
    StatusFile(path, clock).write(report_of(Status.FAIL))

    assert read_status(path, 30.0, clock).status is Status.FAIL


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"pass",
        b"{}",
        b'{"status": "pass"}',
        b'{"status": "pass", "monotonic": "now"}',
        b"[" * 200_000,
        b"x" * 2**21,
    ],
    ids=range(7),
)
def test_what_is_no_report_fails(path: Path, content: bytes, clock: FakeClock) -> None:
    """Somebody else's file, or half of one."""
    path.write_bytes(content)

    assert (read_status(path, 30.0, clock).status, read_status(path, 30.0, clock).output) == (
        Status.FAIL,
        "the file holds no report",
    )


def test_missing_file_fails_and_so_does_what_is_no_file(path: Path, clock: FakeClock) -> None:
    """Before the worker has started; and a pipe is not waited for."""
    assert read_status(path, 30.0, clock).output == "the file cannot be read: No such file or directory"
    assert read_status(path.parent, 30.0, clock).output == "the file cannot be read: it is no file"
    os.mkfifo(path)
    assert read_status(path, 30.0, clock).output == "the file cannot be read: it is no file"


def test_file_is_for_its_owner_only(path: Path, clock: FakeClock) -> None:
    """It has all the details."""
    StatusFile(path, clock).write(report_of())

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_readers_find_a_whole_report_while_it_is_written(path: Path, clock: FakeClock) -> None:
    """The one before, or the new one; two writers and a reader."""
    file = StatusFile(path, clock)
    file.write(report_of())
    long = report_of(Status.PASS, *(Result(f"c{n}", "check", Status.PASS) for n in range(50)))
    threads = [
        threading.Thread(target=lambda one=one: [file.write(one) for _ in range(100)])
        for one in (report_of(), long)
    ]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        found = read_status(path, 30.0, clock)
        assert found.status is Status.PASS, found.output
        assert found.report is not None
        seen.append(len(found.report.results))
    for thread in threads:
        thread.join()

    assert set(seen) <= {0, 50}
    assert seen


def test_file_that_cannot_be_written_leaves_the_one_before(path: Path, clock: FakeClock) -> None:
    """It grows old, and so it is noticed."""
    file = StatusFile(path, clock)
    file.write(report_of())
    before = path.read_bytes()

    class BrokenError(Exception):
        pass

    def broken() -> float:
        raise BrokenError

    with pytest.raises(BrokenError):
        StatusFile(path, broken).write(report_of(Status.FAIL))
    assert path.read_bytes() == before


def test_no_directory_is_an_error_of_the_writer(tmp_path: Path) -> None:
    """Whoever sets it up wrongly learns it at once."""
    with pytest.raises(FileNotFoundError):
        StatusFile(tmp_path / "no" / "health").write(report_of())


@pytest.mark.parametrize("put", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_file_in_place_of_the_draft_is_not_taken_over(
    path: Path, clock: FakeClock, tmp_path_factory: pytest.TempPathFactory, put: Callable[[Path, Path], None]
) -> None:
    """In a directory that is everybody's, somebody may have put it there, to read what it gets to hold."""
    victim = tmp_path_factory.mktemp("other") / "victim"
    victim.write_text("mine")
    victim.chmod(0o644)
    put(path.with_name(f".health.{os.getpid()}"), victim)

    StatusFile(path, clock).write(report_of())
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("mine", 0o644)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert read_status(path, 30.0, clock).status is Status.PASS


def test_file_is_taken_away_at_the_end(path: Path, clock: FakeClock) -> None:
    """Twice does nothing."""
    file = StatusFile(path, clock)
    file.write(report_of())
    file.remove()
    file.remove()

    assert not path.exists()


def test_file_is_the_json_that_is_served(path: Path, clock: FakeClock) -> None:
    """With one member more, for its age."""
    StatusFile(path, clock).write(report_of())
    told = json.loads(path.read_text())

    assert (told["status"], told["serviceId"], told["monotonic"]) == ("pass", "worker", 1_000.0)
