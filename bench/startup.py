"""What `import resilient` costs, each time in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

FAMILY = "import"

# `opentelemetry` itself is an empty namespace; `metrics` is the part a library calls.
DEPENDENCIES = ("cachetools", "limits", "opentelemetry.metrics", "pybreaker", "tenacity")

PACKAGES = ("cachetools", "limits", "opentelemetry-api", "pybreaker", "redis", "tenacity")
"""Distributions whose versions matter here; pybreaker imports redis where that is installed."""

STATEMENTS: Mapping[str, str] = MappingProxyType(
    {
        f"{FAMILY}/resilient": "import resilient",
        f"{FAMILY}/all of resilient": "from resilient import *",
        f"{FAMILY}/its five dependencies": f"import {', '.join(DEPENDENCIES)}",
    }
)
"""Series id to the statement that is timed."""

LOADED = f"{FAMILY}/those it loads at once"
"""Series id of those dependencies `import resilient` brings in itself: the rest of its time is our own."""

_TIMED = """
from time import perf_counter_ns
started = perf_counter_ns()
{statement}
print(perf_counter_ns() - started)
"""

_LIST_LOADED = """
import sys
import resilient
print(*(name for name in {modules!r} if name in sys.modules))
"""


class StartupError(Exception):
    """An import failed."""


def measure(rounds: int) -> dict[str, list[float]]:
    """Return nanoseconds per import and series, one for each round, the series taking turns.

    Raises:
        StartupError: If one of the imports fails.
    """
    statements = {**STATEMENTS, LOADED: _loaded_at_once()}
    samples: dict[str, list[float]] = {name: [] for name in statements}
    for number in range(-1, rounds):
        for name, statement in statements.items():
            took = float(_python(_TIMED.format(statement=statement)))
            # The round before the first compiles the bytecode and fills the file cache.
            if number >= 0:
                samples[name].append(took)
    return samples


def _loaded_at_once() -> str:
    loaded = _python(_LIST_LOADED.format(modules=DEPENDENCIES)).split()
    return f"import {', '.join(loaded)}" if loaded else "pass"


def _python(code: str) -> str:
    # Isolated: neither the folder we stand in nor the user's environment may lend or hide a module.
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise StartupError(ran.stderr.strip().rpartition("\n")[2])
    return ran.stdout.strip()
