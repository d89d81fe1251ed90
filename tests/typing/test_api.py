"""The types of the public API, as two type checkers see them; `api.py` and `pools.py` say what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def check(*command: str) -> str:
    """Run a type checker from the root of the repository; return what it says, with its status."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=55, check=False
    )
    return f"{done.stdout}{done.stderr}exit {done.returncode}"


@pytest.mark.slow
def test_mypy_agrees() -> None:
    """Strict mypy finds the types that are asserted, and each wrong use refused."""
    pytest.importorskip("mypy", reason="comes with `make check`")
    said = check("mypy", "--strict", str(HERE / "api.py"), str(HERE / "pools.py"))
    assert said.endswith("exit 0"), said


@pytest.mark.slow
def test_basedpyright_agrees() -> None:
    """So does strict basedpyright, which reads no comment that is meant for mypy."""
    pytest.importorskip("basedpyright", reason="comes with `make check`")
    said = check("basedpyright", "--project", str(HERE), "--pythonpath", sys.executable)
    assert said.endswith("exit 0"), said


@pytest.mark.slow
def test_a_lost_type_would_be_found(tmp_path: Path) -> None:
    """The check can fail: a decorator that forgets its function's type is reported."""
    pytest.importorskip("mypy", reason="comes with `make check`")
    careless = tmp_path / "careless.py"
    careless.write_text(
        "from typing import Any, assert_type\n"
        "def decorate(fn: Any) -> Any: return fn\n"
        "@decorate\n"
        "def one() -> int: return 1\n"
        "assert_type(one(), int)\n",
        encoding="utf-8",
    )
    said = check("mypy", "--strict", str(careless))
    assert "[assert-type]" in said
    assert said.endswith("exit 1"), said
