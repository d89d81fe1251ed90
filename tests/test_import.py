"""What `import resilient` brings in, each time asked in a new interpreter."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import textwrap

import pytest
from packaging.requirements import Requirement

RUN_TIME = ("cachetools", "limits", "opentelemetry", "pybreaker", "tenacity")

# Whatever a user may have beside it: imported by integration modules only.
FRAMEWORKS = (
    "aiohttp",
    "anyio",
    "django",
    "fastapi",
    "flask",
    "grpc",
    "httpx",
    "psycopg",
    "requests",
    "sqlalchemy",
    "starlette",
    "trio",
)


def python(code: str) -> str:
    """Run *code* in an interpreter of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def top_level_after(imports: str) -> set[str]:
    """Return the packages that are loaded after *imports*."""
    code = f"""
    import json, sys
    {imports}
    loaded = {{name.partition(".")[0] for name in sys.modules}}
    print(json.dumps(sorted(loaded - set(sys.stdlib_module_names))))
    """
    return set(json.loads(python(code)))


def test_brings_in_its_dependencies_and_nothing_else():
    """Beside itself, it loads what importing its five run-time dependencies loads, no more."""
    dependencies = top_level_after("import cachetools, limits, opentelemetry, pybreaker, tenacity")
    ours = top_level_after("import resilient")
    assert ours - dependencies == {"resilient"}


def test_declares_what_it_imports():
    """The five are what the distribution requires, extras aside."""
    required = {
        requirement.name.removesuffix("-api")
        for requirement in map(Requirement, importlib.metadata.requires("resilient-py") or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    assert required == set(RUN_TIME)


def test_brings_in_no_framework():
    """Not even those that are installed here."""
    assert not top_level_after("import resilient, resilient.testing") & set(FRAMEWORKS)


def test_asyncio_is_all_the_concurrency_it_starts():
    """Importing starts no thread and no loop, and leaves the event loop policy alone."""
    code = """
    import asyncio, threading
    import resilient
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        print(threading.active_count())
    """
    assert python(code).split() == ["1"]


@pytest.mark.parametrize("absent", ["redis", "limits.aio", "httpx"])
def test_works_without_extras(absent):
    """Without what only an extra installs, everything that needs no extra imports and works."""
    code = f"""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == {absent!r} or name.startswith({absent + "."!r}):
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Absent())
    from resilient import Cache, CircuitBreaker, Fallback, Pipeline, Retry, Timeout

    guard = Pipeline(
        Fallback(0), Cache("c", ttl=1), Retry(on=OSError), CircuitBreaker("b"), Timeout(1)
    )
    print(guard(lambda: 42)(), {absent!r} in sys.modules)
    """
    assert python(code).split() == ["42", "False"]


def test_knows_its_version():
    """The package and its distribution agree, so the version in a bug report is the one installed."""
    import resilient

    assert resilient.__version__ == importlib.metadata.version("resilient-py")
