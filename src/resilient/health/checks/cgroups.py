"""What the container may use: control groups of Linux, version 2 and version 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Cgroups", "Memory", "machine_memory"]

# Version 1 says "no limit" by the largest number of pages there can be. No machine has half as much.
_NO_LIMIT: Final = 1 << 60
_KB: Final = 1024
_PATH_FIELDS: Final = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """How much memory is in use, of how much.

    Attributes:
        used: bytes that cannot be taken back at once.
        limit: bytes there may be.
        source: whose limit it is: "cgroup v2", "cgroup v1" or "machine".
    """

    used: float
    limit: float
    source: str


class Cgroups:
    """The groups that this process is in, as files tell it.

    In a container only its own group is there, at the root; elsewhere the groups are nested, and each may
    have a limit: the one that is nearest to being reached counts.

    Args:
        proc: of the process; `/proc/self`.
        mount: where control groups are mounted.
    """

    def __init__(self, proc: Path = Path("/proc/self"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._mount = mount

    def memory(self) -> Memory | None:
        """Return the memory of the group that is nearest to its limit; None where there is no limit."""
        found = [*self._memory_v2(), *self._memory_v1()]
        return max(found, key=lambda memory: memory.used / memory.limit, default=None)

    def cpus(self) -> float | None:
        """Return how many processors' time the groups allow; None where they do not limit it."""
        found = [*self._quotas_v2(), *self._quotas_v1()]
        return min(found, default=None)

    def throttling(self) -> tuple[int, int] | None:
        """Return in how many periods this group wanted to run, and in how many of them it was held up."""
        for folder in (*self._folders(""), *self._folders("cpu")):
            stat = _table(folder / "cpu.stat")
            if "nr_periods" in stat and "nr_throttled" in stat:
                return stat["nr_periods"], stat["nr_throttled"]
        return None

    def _memory_v2(self) -> Iterator[Memory]:
        for folder in self._folders(""):
            limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
            if limit and used is not None:
                yield _working_set(used, limit, _table(folder / "memory.stat").get("inactive_file"), "v2")

    def _memory_v1(self) -> Iterator[Memory]:
        for folder in self._folders("memory"):
            limit = _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.usage_in_bytes")
            if limit and limit < _NO_LIMIT and used is not None:
                yield _working_set(
                    used, limit, _table(folder / "memory.stat").get("total_inactive_file"), "v1"
                )

    def _quotas_v2(self) -> Iterator[float]:
        for folder in self._folders(""):
            words = _text(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():  # noqa: PLR2004 - quota, period
                yield from _quota(int(words[0]), int(words[1]))

    def _quotas_v1(self) -> Iterator[float]:
        for folder in self._folders("cpu"):
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota is not None and period is not None:
                yield from _quota(quota, period)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Return the folders of a controller, from the process's own group to the root.

        "": those of version 2.
        """
        roots = self._roots(controller)
        path = self._path(controller)
        if path is None:
            return
        # In a container the path is that on the host, where it cannot be seen from here: the root is ours.
        for root in roots:
            folder = root / path
            while folder != root:
                if folder.is_dir():
                    yield folder
                folder = folder.parent
            yield root

    def _roots(self, controller: str) -> list[Path]:
        if not controller:
            return [root for root in (self._mount, self._mount / "unified") if root.is_dir()]
        if not self._mount.is_dir():
            return []
        # "cpu" may be mounted together with another one, under the names of both.
        return [root for root in self._mount.iterdir() if controller in root.name.split(",")][:1]

    def _path(self, controller: str) -> str | None:
        for line in _text(self._proc / "cgroup").splitlines():
            fields = line.split(":", _PATH_FIELDS - 1)
            if len(fields) == _PATH_FIELDS and controller in fields[1].split(","):
                path = fields[2].lstrip("/")
                return "" if ".." in path.split("/") else path
        return None


def machine_memory(proc: Path = Path("/proc")) -> Memory | None:
    """Return the memory of the machine; None where it does not tell."""
    table = _table(proc / "meminfo")
    total, available = table.get("MemTotal:"), table.get("MemAvailable:")
    if not total or available is None:
        return _machine_memory_elsewhere()
    return Memory((total - available) * _KB, total * _KB, "machine")


def _machine_memory_elsewhere() -> Memory | None:
    try:
        import psutil  # noqa: PLC0415 - only where it is needed, and may be missing
    except ImportError:
        return None
    memory = psutil.virtual_memory()
    return Memory(memory.total - memory.available, memory.total, "machine")


def _working_set(used: int, limit: int, inactive: int | None, version: str) -> Memory:
    """Return what cannot be taken back at once: pages of files that nobody has read for long can.

    Source: kubelet and cAdvisor, which evict by the same figure.
    """
    return Memory(max(0, used - (inactive or 0)), limit, f"cgroup {version}")


def _quota(quota: int, period: int) -> Iterator[float]:
    if quota > 0 and period > 0:  # -1: no limit
        yield quota / period


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # not there, not ours to read, or no text
        return ""


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is none, such as "max"."""
    text = _text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number in each line."""
    table: dict[str, int] = {}
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            table[words[0]] = int(words[1])
    return table
