"""How several processes share the tests: side by side, and then one alone with what wants to be alone."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

pytest_plugins = ["pytester"]

_ROOT = Path(__file__).parents[2]

_CONFTEST = """
    import os
    import time
    from pathlib import Path

    import pytest
    from tests.support.alone import AloneLast

    DONE = Path(__file__).parent / "done"

    def pytest_xdist_make_scheduler(config, log):
        return AloneLast(config, log, ["test_z*", "test_y*"], ["alone/test_*"])

    def pytest_collection_modifyitems(items):
        # The third process comes in the place of one that died.
        if os.environ.get("PYTEST_XDIST_WORKER") == "gw2" and "FINDS_LESS" in os.environ:
            items.pop()

    @pytest.fixture
    def done(request):
        DONE.mkdir(exist_ok=True)
        yield DONE
        (DONE / request.node.name).touch()

    @pytest.fixture
    def meet(tmp_path_factory):
        def meet(here, other):
            DONE.mkdir(exist_ok=True)
            (DONE / here).touch()
            give_up_at = time.monotonic() + 20
            while not (DONE / other).exists():
                assert time.monotonic() < give_up_at, f"no {other}"
                time.sleep(0.01)
        return meet
    """

_TOGETHER = {
    "test_a": """
        def test_meets_b(meet, done):
            meet("a", "b")

        def test_next_to_it(done):
            pass
        """,
    "test_b": """
        def test_meets_a(meet, done):
            meet("b", "a")
        """,
}

_ALONE = """
    import os

    def test_{name}_is_alone(done):
        before = {{"test_meets_a", "test_meets_b", "test_next_to_it"}}
        assert before <= {{file.name for file in done.iterdir()}}
        (done / f"process {{os.getpid()}}").touch()
        assert len(list(done.glob("process *"))) == 1
    """


def _run(pytester: pytest.Pytester, *files: str, processes: int = 2) -> pytest.RunResult:
    pytester.makeconftest(dedent(_CONFTEST))
    pytester.makepyfile(**{name: dedent(source) for name, source in _TOGETHER.items()})
    alone = pytester.mkdir("alone")
    for name in "cd":
        (alone / f"test_{name}.py").write_text(dedent(_ALONE.format(name=name)))
    options = ("-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(pytester.path), "-n", str(processes))
    return pytester.runpytest_subprocess(*options, *(files or [str(pytester.path)]))


def test_some_meet_and_those_that_want_to_be_alone_come_after_them_in_one_process(
    pytester: pytest.Pytester,
) -> None:
    """Though their folder is the first to be collected."""
    _run(pytester).assert_outcomes(passed=5)


def test_those_that_want_to_be_alone_run_also_where_they_are_all_there_is(pytester: pytest.Pytester) -> None:
    """Nobody is waited for who has nothing to do."""
    result = _run(pytester, "alone", processes=3)

    assert result.parseoutcomes() == {"failed": 2}  # as nothing else was done before
    assert result.ret == pytest.ExitCode.TESTS_FAILED


_DIES = "import os\n\ndef test_dies():\n    os._exit(1)\n"


def test_process_that_dies_keeps_nobody_from_being_run(pytester: pytest.Pytester) -> None:
    """Neither those beside which it died nor those that waited for its end."""
    pytester.makepyfile(test_dies=_DIES)

    result = _run(pytester)

    assert result.parseoutcomes() == {"failed": 1, "passed": 5}
    result.stdout.fnmatch_lines(["FAILED test_dies.py::test_dies *"])


def test_run_ends_also_if_a_file_has_changed_when_a_process_dies(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in its place finds other tests, and is of no use."""
    monkeypatch.setenv("FINDS_LESS", "1")
    pytester.makepyfile(test_dies=_DIES)

    result = _run(pytester)

    assert result.parseoutcomes()["failed"] == 1
    assert result.ret != pytest.ExitCode.OK


def test_those_that_come_first_do_in_the_order_of_their_patterns(pytester: pytest.Pytester) -> None:
    """Whatever they are called."""
    sees = "def test_{name}(done):\n    assert {{file.name for file in done.iterdir()}} == {before}\n"
    for name, before in {"x": {"test_y", "test_z"}, "y": {"test_z"}, "z": set()}.items():
        pytester.makepyfile(**{f"test_{name}": sees.format(name=name, before=before)})

    _run(pytester, "test_x.py", "test_y.py", "test_z.py", processes=1).assert_outcomes(passed=3)
