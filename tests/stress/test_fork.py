"""A child process forked at the worst moment uses every policy, and none of them hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT = 600.0 if os.environ.get("RESILIENT_SOAK") else 50.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(TIMEOUT + 10.0)
@pytest.mark.parametrize("moment", ["locks", "load"])
def test_forked_child_uses_every_policy(moment: str) -> None:
    """With every lock held by a thread that the child does not have, and with threads under way."""
    fork(moment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(TIMEOUT + 10.0)
@pytest.mark.parametrize("moment", ["slots", "inside", "hammered", "abandoned"])
def test_forked_child_has_all_slots_of_its_bulkheads(moment: str) -> None:
    """With all slots taken, inside a call, while threads take and give up, with work that is abandoned."""
    fork(moment)


def fork(moment: str) -> None:
    """Do what forks in a process of its own, and fail as that does."""
    # Python warns of what is done here on purpose.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.stress.forking", moment]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    assert done.returncode == 0, done.stderr
