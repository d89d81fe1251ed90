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
    "valkey",
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


@pytest.mark.parametrize("absent", ["redis", "httpx"])
def test_works_without_extras(absent):
    """Without what only an extra installs, everything that needs no extra imports and works."""
    code = f"""
    import sys
    sys.modules[{absent!r}] = None  # as if it were not installed
    from resilient import Cache, CircuitBreaker, Fallback, Pipeline, RateLimiter, Retry, Timeout

    limiter = RateLimiter("5/minute")
    guard = Pipeline(
        Fallback(0), Cache("c", ttl=1), Retry(on=OSError), CircuitBreaker("b"), limiter, Timeout(1)
    )
    print(guard(lambda: 42)())
    """
    assert python(code).split() == ["42"]


@pytest.mark.parametrize("uri", ["redis://127.0.0.1", "valkey://127.0.0.1", "redis+cluster://127.0.0.1:1"])
def test_shared_limit_without_its_client_says_what_to_install(uri):
    """When the limiter is made, not when the first call comes."""
    code = f"""
    import sys
    sys.modules["redis"] = None
    from resilient import RateLimiter

    try:
        RateLimiter("5/minute", name="door", storage={uri!r})
    except ModuleNotFoundError as exc:
        print(exc, exc.name, sep="\\n")
    """
    message, name = python(code).splitlines()
    assert message == "storage on Redis or Valkey needs the client: pip install 'resilient-py[redis]'"
    assert name == "redis"


def test_limiter_in_memory_loads_nothing_for_shared_limits():
    """What speaks to a store is brought in by the first limiter on one."""
    code = """
    import sys
    from resilient import RateLimiter

    RateLimiter("5/minute").hit()
    print([name for name in sys.modules if name.startswith("resilient.fleet")])
    RateLimiter("5/minute", name="door", storage="redis://127.0.0.1:1")
    print("resilient.fleet" in sys.modules)
    """
    assert python(code).split() == ["[]", "True"]


def test_knows_its_version():
    """The package and its distribution agree, so the version in a bug report is the one installed."""
    import resilient

    assert resilient.__version__ == importlib.metadata.version("resilient-py")
