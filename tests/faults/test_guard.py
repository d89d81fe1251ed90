"""The guard that every test runs under: what a test may not leave behind fails that very test."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

pytest_plugins = ["pytester"]

_ROOT = Path(__file__).parents[2]
_CONFTEST = (_ROOT / "tests" / "conftest.py").read_text()
_GUILTY = {
    "pending_task": """
        import asyncio

        async def test_guilty():
            asyncio.create_task(asyncio.sleep(60))
        """,
    "exception_nobody_retrieved": """
        import asyncio

        async def fail():
            raise ValueError

        async def test_guilty():
            asyncio.create_task(fail())
            await asyncio.sleep(0)
        """,
    "coroutine_never_awaited_in_a_cycle": """
        import asyncio

        async def test_guilty():
            cycle = [asyncio.sleep(0)]
            cycle.append(cycle)
        """,
    "running_thread": """
        import threading

        def test_guilty():
            threading.Thread(target=threading.Event().wait, args=(1,)).start()
        """,
    "exception_in_a_thread": """
        import threading

        def test_guilty():
            threading.Thread(target=lambda: 1 / 0).start()
        """,
    "socket_not_closed_in_a_cycle": """
        import socket

        def test_guilty():
            cycle = [socket.socket()]
            cycle.append(cycle)
        """,
}

_INNOCENT = """
    import asyncio
    import threading

    import pytest

    @pytest.fixture
    async def task():
        task = asyncio.create_task(asyncio.sleep(60))
        yield
        task.cancel()

    async def test_task_that_its_fixture_ends(task):
        pass

    async def test_thread_of_the_loop():
        await asyncio.to_thread(int)

    async def test_task_on_its_way_out():
        asyncio.create_task(asyncio.sleep(0.01))

    def test_thread_on_its_way_out():
        threading.Timer(0.01, int).start()

    def test_loop_of_its_own():
        asyncio.run(asyncio.sleep(0))
    """


def test_guilty_tests_fail_and_the_blame_falls_on_them_alone(pytester: pytest.Pytester) -> None:
    after = "\n\ndef test_next():\n    pass\n"

    result = _run(pytester, {name: dedent(source) + after for name, source in _GUILTY.items()})

    verdicts = [line for line in result.outlines if line.startswith(("FAILED test_", "ERROR test_"))]
    blamed = {line.split()[1] for line in verdicts}
    assert blamed == {f"test_{name}.py::test_guilty" for name in _GUILTY}


def test_innocent_tests_pass(pytester: pytest.Pytester) -> None:
    _run(pytester, {"innocent": dedent(_INNOCENT)}).assert_outcomes(passed=5)


def _run(pytester: pytest.Pytester, sources: dict[str, str]) -> pytest.RunResult:
    pytester.makeconftest(_CONFTEST)
    pytester.makepyfile(**{f"test_{name}": source for name, source in sources.items()})
    # With the project's own options, in a process of its own: some of pytest's hooks belong to a process.
    options = ("-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(pytester.path))
    return pytester.runpytest_subprocess(*options, str(pytester.path))
