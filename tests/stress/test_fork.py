"""A child process forked at the worst moment uses every policy, and none of them hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["locks", "load"])
def test_forked_child_uses_every_policy(moment: str) -> None:
    """With every lock held by a thread that the child does not have, and with threads under way."""
    # Python warns of what is done here on purpose.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.stress.forking", moment]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)

    assert done.returncode == 0, done.stderr
