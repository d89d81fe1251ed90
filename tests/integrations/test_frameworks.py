"""What all integrations have in common: what they import, and the words they pass on."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap

import pytest

from resilient import asgi, wsgi
from resilient.web.door import Door, Words

FRAMEWORKS = ("fastapi", "flask", "django")


def python(code: str) -> str:
    """Run *code* in an interpreter of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_missing_framework_is_named_with_its_extra(framework: str) -> None:
    """Who has not installed it is told how."""
    code = f"""
    import sys
    sys.modules[{framework!r}] = None
    try:
        import resilient.integrations.{framework}
    except ImportError as error:
        print(error.name, error)
    """
    name, _, message = python(code).partition(" ")

    assert name.partition(".")[0] == framework
    assert message.endswith(f"pip install 'resilient-py[{framework}]'")


def test_each_imports_its_own_framework_only() -> None:
    """Nor do the middlewares, and the package they are in, import any."""
    code = f"""
    import importlib, sys
    frameworks = {{*{FRAMEWORKS!r}, "starlette"}}
    for name in ("", *{FRAMEWORKS!r}):
        import resilient.asgi, resilient.wsgi, resilient.integrations
        before = set(sys.modules)
        if name:
            importlib.import_module(f"resilient.integrations.{{name}}")
        print(name, *sorted(frameworks & (set(sys.modules) - before if name else set(sys.modules))))
    """
    lines = [line.split() for line in python(code).splitlines()]

    assert lines == [[], ["fastapi", "fastapi", "starlette"], ["flask", "flask"], ["django", "django"]]


@pytest.mark.parametrize("taker", [asgi.ResilienceMiddleware, wsgi.ResilienceMiddleware, Door])
def test_words_are_the_arguments_of_the_middlewares(taker: type) -> None:
    """The ones that are passed through, with the same defaults everywhere."""
    parameters = inspect.signature(taker).parameters
    words = {name: parameter for name, parameter in parameters.items() if name not in {"app", "in_tasks"}}
    reference = inspect.signature(asgi.ResilienceMiddleware).parameters

    assert list(words) == list(Words.__annotations__)
    assert all(parameter.default == reference[name].default for name, parameter in words.items())
