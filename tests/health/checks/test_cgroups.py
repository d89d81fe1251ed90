"""The limits of containers, as the files of both versions of control groups tell them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from resilient.health.checks.cgroups import Cgroups, Memory, machine_memory

MB = 1024 * 1024
NO_LIMIT_V1 = "9223372036854771712"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine's /proc/self and /sys/fs/cgroup, empty."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def write(tree: Path, files: dict[str, object]) -> Cgroups:
    """Write *files* into the tree, and return the groups in it."""
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return Cgroups(tree / "proc", tree / "cgroup")


def in_container_v2(tree: Path, **files: object) -> Cgroups:
    """Return what a container sees: its own group at the root."""
    return write(
        tree,
        {
            "proc/cgroup": "0::/",
            **{f"cgroup/{name.replace('_', '.', 1)}": text for name, text in files.items()},
        },
    )


class TestVersion2:
    """One tree for all controllers."""

    def test_working_set_is_what_counts(self, tree: Path) -> None:
        """Pages of files that nobody reads can be taken back, so they are not in use."""
        groups = in_container_v2(
            tree,
            memory_max=512 * MB,
            memory_current=400 * MB,
            memory_stat=f"anon 1\ninactive_file {100 * MB}\nactive_file 7",
        )
        assert groups.memory() == Memory(300 * MB, 512 * MB, "cgroup v2")

    def test_max_is_no_limit(self, tree: Path) -> None:
        """The word, not a number."""
        assert in_container_v2(tree, memory_max="max", memory_current=MB).memory() is None

    def test_no_statistics(self, tree: Path) -> None:
        """Without memory.stat, all that is used is in use."""
        groups = in_container_v2(tree, memory_max=512 * MB, memory_current=400 * MB)
        assert groups.memory() == Memory(400 * MB, 512 * MB, "cgroup v2")

    def test_more_inactive_than_used(self, tree: Path) -> None:
        """The files are read one after the other, and may not agree; nothing is below zero."""
        groups = in_container_v2(
            tree, memory_max=512 * MB, memory_current=MB, memory_stat=f"inactive_file {2 * MB}"
        )
        assert groups.memory() == Memory(0, 512 * MB, "cgroup v2")

    def test_nested_groups(self, tree: Path) -> None:
        """Of a pod and its container, the one that is nearer to its limit counts."""
        pod = "cgroup/kubepods/pod1"
        groups = write(
            tree,
            {
                "proc/cgroup": "0::/kubepods/pod1/c1",
                f"{pod}/c1/memory.max": "max",
                f"{pod}/c1/memory.current": 100 * MB,
                f"{pod}/memory.max": 200 * MB,
                f"{pod}/memory.current": 150 * MB,
                "cgroup/kubepods/memory.max": 8000 * MB,
                "cgroup/kubepods/memory.current": 300 * MB,
            },
        )
        assert groups.memory() == Memory(150 * MB, 200 * MB, "cgroup v2")

    def test_path_of_the_host_that_is_not_here(self, tree: Path) -> None:
        """With the host's /proc and the container's mount, the root is the container's group."""
        groups = write(
            tree,
            {
                "proc/cgroup": "0::/system.slice/docker-0a1b.scope",
                "cgroup/memory.max": 64 * MB,
                "cgroup/memory.current": 32 * MB,
            },
        )
        assert groups.memory() == Memory(32 * MB, 64 * MB, "cgroup v2")

    def test_path_out_of_the_tree_is_not_followed(self, tree: Path) -> None:
        """Seen from another namespace the path begins with dots."""
        write(tree, {"memory.max": MB, "memory.current": MB})
        groups = write(
            tree, {"proc/cgroup": "0::/..", "cgroup/memory.max": 64 * MB, "cgroup/memory.current": 32 * MB}
        )
        assert groups.memory() == Memory(32 * MB, 64 * MB, "cgroup v2")

    def test_quota(self, tree: Path) -> None:
        """150 ms of each 100 ms are one and a half processors."""
        assert in_container_v2(tree, cpu_max="150000 100000").cpus() == 1.5

    @pytest.mark.parametrize("text", ["max 100000", "", "x y", "100000", "0 100000", "100000 0"])
    def test_no_quota(self, tree: Path, text: str) -> None:
        """Without a number, or with one that makes no sense, there is none."""
        assert in_container_v2(tree, cpu_max=text).cpus() is None

    def test_throttling(self, tree: Path) -> None:
        """How many periods there were, and in how many it was held up."""
        groups = in_container_v2(tree, cpu_stat="usage_usec 5\nnr_periods 40\nnr_throttled 10")
        assert groups.throttling() == (40, 10)


class TestVersion1:
    """A tree for each controller, or for several together."""

    FILES: ClassVar = {"proc/cgroup": "5:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n1:name=systemd:/"}

    def test_memory(self, tree: Path) -> None:
        """The limit is that of the group; what its children use is in its figures."""
        groups = write(
            tree,
            {
                **self.FILES,
                "cgroup/memory/memory.limit_in_bytes": 512 * MB,
                "cgroup/memory/memory.usage_in_bytes": 400 * MB,
                "cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MB}",
            },
        )
        assert groups.memory() == Memory(300 * MB, 512 * MB, "cgroup v1")

    def test_enormous_limit_is_none(self, tree: Path) -> None:
        """No limit is a number, too: the largest there is."""
        groups = write(
            tree,
            {
                **self.FILES,
                "cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
                "cgroup/memory/memory.usage_in_bytes": 400 * MB,
            },
        )
        assert groups.memory() is None

    def test_quota_of_controllers_mounted_together(self, tree: Path) -> None:
        """The folder is called by the names of both."""
        folder = "cgroup/cpu,cpuacct/docker/0a1b"
        groups = write(
            tree,
            {**self.FILES, f"{folder}/cpu.cfs_quota_us": 50_000, f"{folder}/cpu.cfs_period_us": 100_000},
        )
        assert groups.cpus() == 0.5

    def test_no_quota(self, tree: Path) -> None:
        """-1 is none."""
        folder = "cgroup/cpu,cpuacct/docker/0a1b"
        groups = write(
            tree, {**self.FILES, f"{folder}/cpu.cfs_quota_us": -1, f"{folder}/cpu.cfs_period_us": 100_000}
        )
        assert groups.cpus() is None

    def test_both_versions_at_once(self, tree: Path) -> None:
        """A hybrid machine has an empty tree of version 2 beside those of version 1."""
        groups = write(
            tree,
            {
                "proc/cgroup": f"{self.FILES['proc/cgroup']}\n0::/",
                "cgroup/unified/cgroup.procs": 1,
                "cgroup/memory/memory.limit_in_bytes": 512 * MB,
                "cgroup/memory/memory.usage_in_bytes": 400 * MB,
            },
        )
        assert groups.memory() == Memory(400 * MB, 512 * MB, "cgroup v1")


class TestElsewhere:
    """Systems without any of it."""

    def test_no_groups(self, tmp_path: Path) -> None:
        """Nothing is there, and nothing is raised."""
        groups = Cgroups(tmp_path / "no", tmp_path / "nowhere")
        assert (groups.memory(), groups.cpus(), groups.throttling()) == (None, None, None)

    def test_garbage(self, tree: Path) -> None:
        """Files with something else in them are as good as none."""
        groups = write(
            tree, {"proc/cgroup": "nonsense\n0::/", "cgroup/memory.max": "§", "cgroup/memory.current": "x"}
        )
        (tree / "cgroup/memory.stat").write_bytes(b"\xff\xfe")
        assert groups.memory() is None

    def test_memory_of_the_machine(self, tmp_path: Path) -> None:
        """In use is what is not available."""
        (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:     400 kB\n")
        assert machine_memory(tmp_path) == Memory(600 * 1024, 1000 * 1024, "machine")

    def test_memory_of_a_machine_without_proc(self, tmp_path: Path) -> None:
        """It is psutil that tells then."""
        memory = machine_memory(tmp_path)
        assert memory is not None
        assert 0 < memory.used < memory.limit
        assert memory.source == "machine"

    def test_this_machine(self) -> None:
        """The real files can be read, whichever there are."""
        groups = Cgroups()
        memory, cpus = groups.memory(), groups.cpus()
        assert memory is None or memory.used >= 0
        assert cpus is None or cpus > 0
