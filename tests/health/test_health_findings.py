"""What a check may return and raise: whatever it is, it becomes a finding, short and without secrets."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.health.scripted import AScripted, Scripted, a_health

from resilient import BulkheadFullError, CircuitOpenError, MaintenanceError, RateLimitedError, ThrottledError
from resilient.health import Finding, Result, Status
from resilient.health.tidy import tidy

PASSWORD = "hunter2hunter2hunter2"


def found(check: Callable[[], Any]) -> Result:
    """Return what comes of it, asked by a thread."""
    with a_health() as health:
        health.add(check, "it")
        (result,) = health.report().results
        assert (result.running_for, result.age is None) == (None, False)
        return result


@pytest.fixture(params=[Scripted, AScripted], ids=["function", "coroutine function"])
def kind(request: pytest.FixtureRequest) -> Callable[[Any], Callable[[], Any]]:
    """A function that returns or raises what it is given, or a coroutine function."""
    return request.param


Kind = Callable[[Any], Callable[[], Any]]


# What it returns


@pytest.mark.parametrize(
    ("answer", "status", "output"),
    [
        (None, Status.PASS, ""),
        (True, Status.PASS, ""),
        (False, Status.FAIL, "the check returned False"),
        (Status.WARN, Status.WARN, ""),
        (Finding(Status.UNKNOWN, "who knows"), Status.UNKNOWN, "who knows"),
    ],
)
def test_what_a_check_may_return(kind: Kind, answer: object, status: Status, output: str) -> None:
    """Nothing, a truth, a status, or all of it."""
    result = found(kind(answer))
    assert (result.status, result.output) == (status, output)


@pytest.mark.parametrize("answer", [0, 1, "", "ok", "pass", (), {}, str, 1.0, math.nan, ...])
def test_what_it_may_not_return_is_a_failure_that_says_so(kind: Kind, answer: object) -> None:
    """`return cursor.execute(...)` says nothing of health; 1 is not True."""
    result = found(kind(answer))
    assert result.status is Status.FAIL
    assert result.output.startswith(f"the check returned {type(answer).__name__}: ")
    assert "None or True, False, a Status or a Finding" in result.output


def test_function_that_returns_a_coroutine_is_told_so() -> None:
    """It was forgotten to be awaited, and nobody complains of that a second time."""

    async def look() -> bool:
        return True

    assert "a coroutine, and is no coroutine function" in found(lambda: look()).output  # noqa: PLW0108


class Evil:
    """Whatever is asked of it, it fails."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no class")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, _other: object) -> bool:
        raise RuntimeError("not equal")

    __hash__ = None  # type: ignore[assignment]


class Exiting:
    """The same, and it wants the process to end."""

    def __repr__(self) -> str:
        raise SystemExit(3)

    __str__ = __repr__


class Unsayable:
    """No text can be made of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class NoMapping(dict[str, Any]):
    """A mapping that cannot be read."""

    def items(self) -> Any:
        raise RuntimeError("no items")


UNREADABLE: dict[str, Callable[[], Any]] = {
    "answer": Evil,
    "status": lambda: Finding("splendid"),  # type: ignore[arg-type]
    "evil status": lambda: Finding(Evil()),  # type: ignore[arg-type]
    "facts in a list": lambda: Finding(Status.PASS, facts=[("a", 1)]),  # type: ignore[arg-type]
    "no facts": lambda: Finding(Status.PASS, facts=None),  # type: ignore[arg-type]
    "unreadable facts": lambda: Finding(Status.PASS, facts=NoMapping(a=1)),
    "evil fact": lambda: Finding(Status.PASS, facts={"a": Evil()}),  # type: ignore[dict-item]
    "evil output": lambda: Finding(Status.PASS, output=Evil()),  # type: ignore[arg-type]
    "exiting unit": lambda: Finding(Status.PASS, unit=Exiting()),  # type: ignore[arg-type]
    "exiting fact": lambda: Finding(Status.PASS, facts={"a": Exiting()}),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_a_failure(kind: Kind, what: str) -> None:
    """And is found each time anew: nothing hangs for it."""
    assert found(kind(UNREADABLE[what]())).status is Status.FAIL


def test_generators_are_refused() -> None:
    """Nobody would run them."""

    def look() -> Iterator[bool]:
        yield True

    async def alook() -> AsyncIterator[bool]:
        yield True

    with a_health() as health:
        for check, shape in ((look, "generator function"), (alook, "async generator function")):
            with pytest.raises(TypeError, match=f"check must be .*look is a.* {shape}"):
                health.add(check, "it")


# What it raises


class TextedError(Exception):
    """Says what it is told."""


class MuteError(Exception):
    """Fails when it is asked what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")


class DeadlyError(Exception):
    """Ends the process when it is asked what it is."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "output"),
    [
        (ConnectionRefusedError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
        (TextedError("of several\n  lines"), "TextedError: of several lines"),
        (MuteError(), "MuteError"),
        (DeadlyError(), "DeadlyError"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError(), "TimeoutError"),
        (ExceptionGroup("two", [ValueError("one")]), "ExceptionGroup: two (1 sub-exception)"),
        (CircuitOpenError("it is open"), "CircuitOpenError: it is open"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_is_raised_becomes_a_short_reason(kind: Kind, error: BaseException, output: str) -> None:
    """No traceback, no end of the process, of a thread, of a loop; and it counts for the ttl."""
    check = kind(error)
    with a_health() as health:
        health.add(check, "it")
        for _ in range(3):
            (result,) = health.report().results
        assert result.status is Status.FAIL
        assert result.output.rstrip(": ") == output
        assert check.runs == 1  # type: ignore[attr-defined]


def test_keyboard_interrupt_in_a_check_of_a_thread_is_a_failure(kind: Kind) -> None:
    """Ctrl-C goes to the main thread: this is none."""
    assert found(kind(KeyboardInterrupt())).status is Status.FAIL


@pytest.mark.parametrize(
    "error",
    [
        BulkheadFullError("full"),
        RateLimitedError("too often"),
        ThrottledError("throttled"),
        MaintenanceError("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_check_that_was_not_let_through_says_nothing(kind: Kind, error: Exception) -> None:
    """Nobody was asked, so nobody knows; a row of failures goes neither on nor back."""
    result = found(kind(error))
    assert (result.status, result.failures_in_a_row) == (Status.UNKNOWN, 0)
    assert type(error).__name__ in result.output


def test_coroutine_that_cancels_itself_has_failed_and_is_not_run_each_time() -> None:
    """Where only threads ask, nobody else can have cancelled it."""

    async def give_up() -> None:
        nonlocal runs
        runs += 1
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    runs = 0
    with a_health() as health:
        health.add(give_up, "it")
        for _ in range(5):
            (result,) = health.report().results
    assert (result.status, result.output) == (Status.FAIL, "it has cancelled itself")
    assert runs == 1


async def test_cancelled_error_of_something_awaited_is_a_failure() -> None:
    """The run goes on, and has found it."""

    async def wait_for_a_cancelled_future() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with a_health() as health:
        health.add(wait_for_a_cancelled_future, "it")
        (result,) = (await health.areport()).results
    assert (result.status, result.output.rstrip(": ")) == (Status.FAIL, "CancelledError")


def test_timeout_of_the_checks_own_is_its_own() -> None:
    """Not taken for ours."""

    async def look() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30.0)

    assert found(look).output.rstrip(": ") == "TimeoutError"


# What is told of it


def test_ten_thousand_lines_are_one_short_one(kind: Kind) -> None:
    """Whether they are returned or raised."""
    lines = "\n".join(f"line {number}" for number in range(10_000))
    for answer in (
        Finding(Status.FAIL, lines),
        TextedError(lines),
        Finding(Status.FAIL, facts={"log": lines}),
    ):
        result = found(kind(answer))
        facts: Mapping[str, Any] = result.facts or {}
        text = facts.get("log") or result.output
        assert len(text) <= 300
        assert "\n" not in text
        assert "line 0 line 1 line 2 " in text
        assert text.endswith("…")


@pytest.mark.parametrize(
    "text",
    [
        f"postgres://shop:{PASSWORD}@db/orders",
        "x" * 150 + f" postgres://shop:{PASSWORD}@db/orders",
        "x" * 280 + f" postgres://shop:{PASSWORD}@db/orders",
        " " * 4_060 + f"postgres://shop:{PASSWORD}@db/orders",
        "\n" * 16_360 + f"postgres://shop:{PASSWORD}@db/orders",
        "\n" * 16_360 + f"postgres://shop:{PASSWORD * 100}@db/orders",
        f"connection failed: host=db password={PASSWORD} user=shop",
        f"{{'api_key': '{PASSWORD}'}}",
        f"Authorization: Bearer {PASSWORD}",
        f"password=\n{PASSWORD} token={PASSWORD}",
    ],
)
def test_no_secret_is_told_wherever_it_stands(kind: Kind, text: str) -> None:
    """In what is raised and in what is returned; nor a half of it, where a text is cut."""
    answers = (
        TextedError(text),
        Finding(Status.FAIL, text),
        Finding(Status.FAIL, unit=text),
        Finding(Status.FAIL, facts={"text": text, text: 1}),
    )
    for answer in answers:
        told = repr(found(kind(answer)))
        assert PASSWORD[:7] not in told


@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, math.nan, 10**5000, -(10**400), True, "12", None, []],
    ids=lambda value: type(value).__name__,
)
def test_figures_that_no_reader_understands_are_none(value: Any) -> None:
    """JSON has no infinities, and Python reads no number of 5,000 digits."""
    finding = tidy(Finding(Status.PASS, value=value, facts={"n": value}))
    assert finding.value is None
    json.dumps(finding.facts["n"], allow_nan=False)


def test_figures_that_can_be_told_are() -> None:
    """As they are."""
    for value in (0, -3, 1.5, 2**62, 2.0**100):
        assert tidy(Finding(Status.PASS, value=value)).value == value


def test_facts_are_not_without_end() -> None:
    """Nor taken along in full where a check found thousands."""

    class Endless(Mapping[str, Any]):
        taken: ClassVar[int] = 0

        def __getitem__(self, key: str) -> Any:
            raise KeyError(key)

        def __len__(self) -> int:
            return 10**9

        def __iter__(self) -> Iterator[str]:
            raise NotImplementedError

        def items(self) -> Any:
            while True:
                Endless.taken += 1
                yield f"fact {Endless.taken}", Endless.taken

    assert len(tidy(Finding(Status.PASS, facts=Endless())).facts) == Endless.taken == 32


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=9)
    | st.builds(Unsayable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.one_of(st.sampled_from(Status), ANYTHING),
    ANYTHING,
    ANYTHING,
    ANYTHING,
    st.dictionaries(st.text(), ANYTHING, max_size=5) | ANYTHING,
)
def test_whatever_is_in_a_finding_a_report_can_tell_it(
    status: Any, output: Any, value: Any, unit: Any, facts: Any
) -> None:
    """Short printable text, finite figures; and once tidy, it stays as it is."""
    finding = tidy(Finding(status, output, value, unit, facts))
    assert isinstance(finding.status, Status)
    texts = [finding.output, finding.unit or "", *finding.facts]
    texts += [fact for fact in finding.facts.values() if isinstance(fact, str)]
    for text in texts:
        assert isinstance(text, str)
        assert len(text) <= 300
        assert text.isprintable()
        text.encode()
    json.dumps([finding.value, dict(finding.facts)], allow_nan=False)
    again = tidy(finding)
    assert replace(again, facts=dict(again.facts)) == replace(finding, facts=dict(finding.facts))
