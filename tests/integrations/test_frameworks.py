"""What all integrations have in common: what they import, and the words they pass on."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap

import pytest

from resilient import asgi, wsgi
from resilient.web.door import Door, Words

FRAMEWORKS = ("fastapi", "flask", "django", "starlette")


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


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("asgi", []),
        ("wsgi", []),
        ("integrations", []),
        ("integrations.fastapi", ["fastapi", "starlette"]),
        ("integrations.flask", ["flask"]),
        ("integrations.starlette", ["starlette"]),
        ("integrations.gunicorn", []),
        ("integrations.django", ["django"]),
    ],
)
def test_each_imports_its_own_framework_only(module: str, expected: list[str]) -> None:
    """The middlewares, and the package that integrations are in, import none."""
    code = f"""
    import sys
    import resilient.{module}
    print(*sorted({{*{FRAMEWORKS!r}, "gunicorn", "uvicorn"}} & set(sys.modules)))
    """
    assert python(code).split() == expected


@pytest.mark.parametrize("taker", [asgi.ResilienceMiddleware, wsgi.ResilienceMiddleware, Door])
def test_words_are_the_arguments_of_the_middlewares(taker: type) -> None:
    """The ones that are passed through, with the same defaults everywhere."""
    parameters = inspect.signature(taker).parameters
    words = {name: parameter for name, parameter in parameters.items() if name not in {"app", "in_tasks"}}
    reference = inspect.signature(asgi.ResilienceMiddleware).parameters

    assert list(words) == list(Words.__annotations__)
    assert all(parameter.default == reference[name].default for name, parameter in words.items())
