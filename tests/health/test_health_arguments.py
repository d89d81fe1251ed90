"""Bad arguments are refused where they are given: by the name of the parameter, the rule and the value."""

from __future__ import annotations

import copy
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from tests.health.scripted import Scripted

from resilient import CircuitBreaker, Pipeline, Retry
from resilient.health import Finding, Health, Status

ABOVE = "must be greater than 0, got 0"
NO_SECONDS = "must be a number of seconds or a timedelta, got '1'"
NO_NUMBER = "must be a whole number, got 1.5"
INFINITE = "must be a number of seconds or a timedelta that is finite, got inf"

SERVICE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"service": ""}, ValueError, "service must not be empty, got ''"),
    ({"service": None}, TypeError, "service must be text, got None"),
    ({"version": ""}, ValueError, "version must not be empty, got ''"),
    ({"version": 1.4}, TypeError, "version must be text, got 1.4"),
    ({"timeout": 0}, ValueError, f"timeout {ABOVE}"),
    ({"timeout": "1"}, TypeError, f"timeout {NO_SECONDS}"),
    ({"timeout": math.inf}, ValueError, f"timeout {INFINITE}"),
    ({"timeout": None}, TypeError, "timeout must be a number of seconds or a timedelta, got None"),
    ({"ttl": 0}, ValueError, f"ttl {ABOVE}"),
    ({"ttl": -1.0}, ValueError, "ttl must be greater than 0, got -1.0"),
    ({"interval": 0}, ValueError, f"interval {ABOVE}"),
    ({"fail_after": 0}, ValueError, "fail_after must be at least 1, got 0"),
    ({"fail_after": 1.5}, TypeError, f"fail_after {NO_NUMBER}"),
    ({"pass_after": True}, TypeError, "pass_after must be a whole number, got True"),
    ({"grace": -1}, ValueError, "grace must be at least 0, got -1"),
    (
        {"grace": math.nan},
        ValueError,
        "grace must be a number of seconds or a timedelta that is finite, got nan",
    ),
    ({"answer_within": -1}, ValueError, "answer_within must be at least 0, got -1"),
    ({"details": "sometimes"}, ValueError, "details must be .*, got 'sometimes'"),
    ({"details": 1}, TypeError, "details must be .*, got 1"),
    ({"max_threads": 0}, ValueError, "max_threads must be at least 1, got 0"),
    ({"listeners": [1]}, TypeError, "listener must be callable, got 1"),
    ({"clock": 1.0}, TypeError, "clock must be callable, got 1.0"),
]

CHECK: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": ""}, ValueError, "name must not be empty, got ''"),
    ({"name": 5}, TypeError, "name must be text, got 5"),
    (
        {"name": "two\nlines"},
        ValueError,
        r"name must be printable, with at most 100 characters, got 'two\\nlines'",
    ),
    ({"name": "x" * 101}, ValueError, "name must be printable, with at most 100 characters, got 'xxx"),
    ({"critical": 1}, TypeError, "critical must be True or False, got 1"),
    ({"external": "no"}, TypeError, "external must be True or False, got 'no'"),
    ({"timeout": 0}, ValueError, f"timeout {ABOVE}"),
    ({"timeout": "1"}, TypeError, f"timeout {NO_SECONDS}"),
    ({"ttl": 0.0}, ValueError, r"ttl must be greater than 0, got 0\.0"),
    ({"failed_ttl": 0}, ValueError, f"failed_ttl {ABOVE}"),
    ({"interval": timedelta(0)}, ValueError, "interval must be greater than 0, got 0"),
    ({"fail_after": 0}, ValueError, "fail_after must be at least 1, got 0"),
    ({"pass_after": 1.5}, TypeError, f"pass_after {NO_NUMBER}"),
    ({"grace": "1"}, TypeError, f"grace {NO_SECONDS}"),
    ({"stale_after": 0}, ValueError, "stale_after must be at least 5, got 0"),
    ({"ttl": 60.0, "stale_after": 59.0}, ValueError, "stale_after must be .*, got 59"),
    ({"interval": 60.0, "stale_after": 59.0}, ValueError, "stale_after must be .*, got 59"),
    ({"groups": "ready"}, TypeError, "groups must be several names, such as a list, got 'ready'"),
    ({"groups": 5}, TypeError, "groups must be several names, such as a list, got 5"),
    ({"groups": [5]}, TypeError, "groups must be text, got 5"),
    ({"groups": ["all"]}, ValueError, "group must be of small letters.*, and not 'all'.*, got 'all'"),
    ({"groups": ["Ready"]}, ValueError, "group must be of small letters.*, got 'Ready'"),
    ({"groups": ["a/b"]}, ValueError, "group must be of small letters.*, got 'a/b'"),
    ({"depends_on": "network"}, TypeError, "depends_on must be several names, such as a list, got 'network'"),
    ({"depends_on": ["nobody"]}, ValueError, "depends_on must be registered before .*, got 'nobody'"),
    ({"depends_on": ["it"]}, ValueError, "depends_on must be registered before .*, got 'it'"),
    ({"live_anyway": ""}, ValueError, "live_anyway must not be empty, got ''"),
    ({"live_anyway": True}, TypeError, "live_anyway must be text, got True"),
    (
        {"judged_by": "breaker"},
        TypeError,
        r"judged_by must be .* has a name and finding\(\); .* got 'breaker'",
    ),
]


@pytest.mark.parametrize(("words", "error", "message"), SERVICE, ids=lambda value: str(value)[:40])
def test_bad_argument_of_a_health_is_named(
    words: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With the rule and the value."""
    with pytest.raises(error, match=message):
        Health(**{"service": "shop"} | words)


@pytest.mark.parametrize(("words", "error", "message"), CHECK, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("way", ["check", "add"])
def test_bad_argument_of_a_check_is_named(
    way: str, words: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With the rule and the value; and nothing is registered."""
    health = Health("shop")
    words = {"name": "it"} | words
    register = health.add if way == "add" else lambda check, **words: health.check(**words)(check)
    with pytest.raises(error, match=message):
        register(Scripted(), **words)
    assert health.latest().results == ()


@pytest.mark.parametrize("check", [5, None, "postgres", Scripted, [print]], ids=repr)
def test_what_cannot_be_called_is_no_check(check: Any) -> None:
    """Nor is the class of one."""
    with pytest.raises(TypeError, match=r"check must be a function, or an object that can be called, .*got "):
        Health("shop").add(check, "it")


def test_unknown_argument_is_a_type_error() -> None:
    """A misspelt word would be one that does not hold."""
    health = Health("shop")
    with pytest.raises(TypeError, match="critcal"):
        health.add(Scripted(), "it", critcal=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="critcal"):
        health.check("it", critcal=True)  # type: ignore[call-arg]
    assert health.latest().results == ()


def test_function_needs_a_name() -> None:
    """An object may have its own."""
    with pytest.raises(TypeError, match="name must be text, got None"):
        Health("shop").add(lambda: None)


def test_name_of_a_check_is_taken_once() -> None:
    """The message says what to do; a breaker may be called like the check of what it guards."""
    health = Health("shop")
    health.add(Scripted(), "postgres")
    with pytest.raises(
        ValueError, match="a check named 'postgres' is registered already: give this one another name"
    ):
        health.add(Scripted(), "postgres")
    health.watch(CircuitBreaker("postgres"))
    assert [one.kind for one in health.latest().results] == ["check", "circuit_breaker"]


def test_watched_policies_of_one_name_are_numbered() -> None:
    """Two pipelines with a retry each, which nobody has named, are the usual case."""
    health = Health("shop")
    first, second = (Pipeline(Retry(on=OSError), CircuitBreaker(name)) for name in ("rates", "mails"))
    health.watch(first, second)
    health.watch(first, CircuitBreaker("rates"))
    names = [(one.kind, one.name) for one in health.latest().results]
    assert names == [
        ("retry", "retry"),
        ("circuit_breaker", "rates"),
        ("retry", "retry 2"),
        ("circuit_breaker", "mails"),
        ("circuit_breaker", "rates 2"),
    ]


def test_nothing_is_taken_out_on_which_something_stands() -> None:
    """Nor what is not there."""
    health = Health("shop")
    health.add(Scripted(), "network")
    health.add(Scripted(), "postgres", depends_on=["network"])
    with pytest.raises(ValueError, match="'postgres' depends on 'network': remove that first"):
        health.remove("network")
    with pytest.raises(KeyError, match="nobody"):
        health.remove("nobody")
    health.remove("postgres")
    health.remove("network")
    assert health.latest().results == ()


@pytest.mark.parametrize("part", [5, None, "breaker", print, []], ids=repr)
def test_what_sees_no_traffic_cannot_be_watched(part: Any) -> None:
    """Nor are the others in the same call."""
    health = Health("shop")
    with pytest.raises(
        TypeError, match=r"must be a policy, a pool, or whatever has a name and finding\(\).*, got "
    ):
        health.watch(CircuitBreaker("fine"), part)
    assert health.latest().results == ()


def test_bad_argument_of_watch_is_named() -> None:
    """As those of a check."""
    health = Health("shop")
    for words, error, message in (
        ({"critical": None}, TypeError, "critical must be True or False, got None"),
        ({"groups": ["All"]}, ValueError, "group must be of small letters"),
        ({"depends_on": ["nobody"]}, ValueError, "depends_on must be registered before"),
    ):
        with pytest.raises(error, match=message):
            health.watch(CircuitBreaker("payments"), **words)  # type: ignore[arg-type]
    assert health.latest().results == ()


@pytest.mark.parametrize("within", [-1, "1", math.nan, math.inf])
@pytest.mark.parametrize("has_checks", [False, True])
async def test_bad_patience_is_named(within: Any, has_checks: bool) -> None:
    """Whether or not there is anything to wait for."""
    health = Health("shop")
    if has_checks:
        health.add(Scripted(), "it")
    with pytest.raises((TypeError, ValueError), match="within must be"):
        await health.areport(within=within)


@pytest.mark.parametrize("reason", [None, 5, b"SIGTERM"], ids=repr)
def test_reason_for_draining_is_text(reason: Any) -> None:
    """And nothing drains otherwise."""
    health = Health("shop")
    with pytest.raises(TypeError, match="reason must be text, got "):
        health.drain(reason)
    assert not health.draining


def test_durations_may_be_timedeltas() -> None:
    """And an age at which nothing is too old may be infinite."""
    health = Health("shop", timeout=timedelta(seconds=2), ttl=timedelta(minutes=1), grace=timedelta(0))
    health.add(Scripted(), "it", interval=timedelta(seconds=30), stale_after=math.inf)
    (entry,) = health._monitor.registry.entries
    rules = entry.record.rules  # type: ignore[attr-defined]
    assert (rules.timeout, rules.ttl, rules.failed_ttl, rules.stale_after) == (2.0, 30.0, 30.0, math.inf)
    assert rules.background


def test_kind_of_an_object_is_a_word_or_nothing() -> None:
    """It is in every report."""

    class Odd(Scripted):
        kind = 5

    class Even(Scripted):
        kind = "DiskSpace"

    health = Health("shop")
    health.add(Odd(), "odd")
    health.add(Even(), "even")
    assert [one.kind for one in health.latest().results] == ["check", "disk_space"]


def test_health_is_one_of_a_kind() -> None:
    """A copy is itself, so that settings which hold one can be copied; it cannot be pickled."""
    health = Health("shop")
    assert copy.copy(health) is copy.deepcopy(health) is health
    with pytest.raises((TypeError, AttributeError)):
        pickle.dumps(health)


def test_words_of_a_report_are_frozen() -> None:
    """Whoever has one may keep it."""
    health = Health("shop")
    health.add(lambda: Finding(Status.PASS, facts={"n": 1}), "it")
    report = health.report()
    for frozen, name in ((report, "status"), (report.results[0], "status")):
        with pytest.raises(AttributeError):
            setattr(frozen, name, Status.FAIL)
    with pytest.raises(KeyError, match="nobody"):
        report.result("nobody")
