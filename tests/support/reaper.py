"""Kill the servers of a test run that died without stopping them.

`hold` and `drop` run in the test process. This file run as a script is the reaper: a process of its own whose
standard input is a pipe from the test process. However that process ends, SIGKILL included, the kernel
closes the pipe, and the reaper kills what is still held and removes its directories. Unlike
`PR_SET_PDEATHSIG` this needs no Linux, and does not kill a server when the *thread* that started it ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_write_lock = threading.Lock()


def hold(pid: int, directory: Path) -> None:
    """Have the process group led by *pid* killed, and *directory* removed, should this process die."""
    _tell(f"hold {pid} {directory}\n")


def drop(pid: int) -> None:
    """Take back `hold`: the process has ended, its number may soon belong to another."""
    _tell(f"drop {pid}\n")


def _tell(line: str) -> None:
    stdin = _reaper(os.getpid()).stdin
    assert stdin is not None
    with _write_lock:
        stdin.write(line)
        stdin.flush()


@cache
def _reaper(_owner_pid: int) -> subprocess.Popen[str]:
    """Start the reaper of this process; a forked child gets one of its own."""
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        text=True,
        # Ctrl-C goes to the whole group of the terminal; the reaper must outlive it.
        start_new_session=True,
    )
    # Closes the pipe and waits, so that a run that ends by itself leaves nothing behind either.
    atexit.register(reaper.communicate)
    return reaper


def _read_until_parent_ends(lines: Iterable[str]) -> dict[int, str]:
    held: dict[int, str] = {}
    for line in lines:
        verb, pid, *directory = line.rstrip("\n").split(" ", 2)
        if verb == "hold":
            held[int(pid)] = directory[0]
        else:
            held.pop(int(pid), None)
    return held


def _reap(held: dict[int, str]) -> None:
    for pid, directory in held.items():
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _reap(_read_until_parent_ends(sys.stdin))
