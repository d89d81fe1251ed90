"""What a bulkhead refuses to be made of."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from resilient import AIMD, Bulkhead, Gradient, Priority


async def _asynchronous(*_: Any) -> str:
    return "default"


BAD_ARGUMENTS: list[tuple[str, object, type[Exception], str]] = [
    ("name", "", ValueError, "must not be empty"),
    ("name", " ", ValueError, "must not be empty"),
    ("name", 5, TypeError, "must be text"),
    ("limit", 0, ValueError, "must be at least 1"),
    ("limit", -1, ValueError, "must be at least 1"),
    *[
        ("limit", value, TypeError, r"must be a whole number or an adaptive limit such as Gradient\(\)")
        for value in (True, 2.0, math.inf, "5", None, AIMD, [5])
    ],
    ("max_wait", -1, ValueError, "must be at least 0"),
    ("max_wait", timedelta(seconds=-1), ValueError, "must be at least 0"),
    ("max_wait", math.nan, ValueError, "must be a number of seconds or a timedelta that is finite"),
    ("max_wait", math.inf, ValueError, "must be a number of seconds or a timedelta that is finite"),
    ("max_wait", None, TypeError, "must be a number of seconds or a timedelta"),
    ("max_wait", True, TypeError, "must be a number of seconds or a timedelta"),
    ("max_wait", "1s", TypeError, "must be a number of seconds or a timedelta"),
    ("max_queue", -1, ValueError, "must be at least 0"),
    ("max_queue", 1.5, TypeError, "must be a whole number"),
    ("max_queue", True, TypeError, "must be a whole number"),
    ("max_queue", math.inf, TypeError, "must be a whole number"),
    ("threads", 1, TypeError, "must be True or False"),
    ("threads", None, TypeError, "must be True or False"),
    ("order", "lifo", ValueError, "must be one of 'fifo', 'newest-first'"),
    ("order", None, TypeError, "must be text"),
    ("key", "tenant", TypeError, "must be callable"),
    ("key", str, TypeError, "must be an instance or a function, not a class"),
    ("key", _asynchronous, TypeError, "must be an ordinary function, not a coroutine function"),
    ("max_keys", 0, ValueError, "must be at least 1"),
    ("max_keys", None, TypeError, "must be a whole number"),
    ("drops", 5, TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("drops", "TimeoutError", TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("drops", KeyboardInterrupt, ValueError, "must name types below Exception"),
    ("drops", int, TypeError, "must name types below Exception"),
    ("drops", _asynchronous, TypeError, "must be an ordinary function, not a coroutine function"),
    ("clock", 5, TypeError, "must be callable"),
    ("priority", 1, TypeError, "must be a Priority or one of 'probe', 'critical', 'default', 'sheddable'"),
    ("priority", "urgent", ValueError, "must be one of 'probe', 'critical', 'default', 'sheddable'"),
    ("priority", "CRITICAL", ValueError, "must be one of 'probe', 'critical', 'default', 'sheddable'"),
    ("priority", Priority, TypeError, "must be an instance or a function, not a class"),
    ("priority", _asynchronous, TypeError, "must be an ordinary function, not a coroutine function"),
]

BAD_SHARES: list[tuple[object, type[Exception], str]] = [
    (0.7, TypeError, "shares must be a mapping of priorities to shares"),
    ([("default", 0.7)], TypeError, "shares must be a mapping of priorities to shares"),
    ({"urgent": 0.5}, ValueError, "shares must be one of 'probe', "),
    ({3: 0.5}, TypeError, "shares must be a Priority or one of "),
    ({"critical": 0.5}, ValueError, "shares must name 'default' and 'sheddable' only"),
    ({Priority.PROBE: 1.0}, ValueError, "shares must name 'default' and 'sheddable' only"),
    ({"default": 0.5, "sheddable": 0.6}, ValueError, "shares must not give 'sheddable' more than 'default'"),
    ({"sheddable": 0.95}, ValueError, "shares must not give 'sheddable' more than 'default'"),
    ({"default": 0}, ValueError, r"shares\['default'\] must be greater than 0"),
    ({"default": 1.5}, ValueError, r"shares\['default'\] must be at most 1"),
    ({"sheddable": True}, TypeError, r"shares\['sheddable'\] must be a ratio"),
    ({"sheddable": math.nan}, ValueError, r"shares\['sheddable'\] must be a ratio that is finite"),
]

BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"shares": {"default": 0.8}}, r"shares goes with priority= only, got \{'default': 0\.8\}"),
    ({"reserve": 1}, "reserve goes with priority= only, got 1"),
    ({"reserve": 0}, "reserve goes with priority= only, got 0"),
]


@pytest.mark.parametrize(("parameter", "value", "error", "rule"), BAD_ARGUMENTS)
def test_bad_argument_is_refused(parameter: str, value: object, error: type[Exception], rule: str):
    """By name, rule and value."""
    arguments: dict[str, Any] = {"name": "b", "limit": 5, parameter: value}
    with pytest.raises(error, match=f"^{parameter} {rule}") as caught:
        Bulkhead(**arguments)
    if not isinstance(value, timedelta):
        assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(("shares", "error", "message"), BAD_SHARES)
def test_bad_shares_are_refused(shares: Any, error: type[Exception], message: str):
    """The share that is meant is named."""
    with pytest.raises(error, match=f"^{message}"):
        Bulkhead("b", 5, priority="default", shares=shares)


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_reserve_is_refused(value: Any, error: type[Exception]):
    """It is a whole number, 0 or more."""
    with pytest.raises(error, match=rf"^reserve must be .*, got {value!r}$"):
        Bulkhead("b", 5, priority="default", reserve=value)


@pytest.mark.parametrize(("arguments", "message"), BAD_PAIRS)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, Any], message: str):
    """In the constructor, not at the first call."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        Bulkhead("b", 5, **arguments)


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (2.5, TypeError), (None, TypeError), (True, TypeError)]
)
def test_bad_limit_is_refused_when_resizing(limit: Any, error: type[Exception]):
    """And the limit stays as it was."""
    bulkhead = Bulkhead("b", 5)
    with pytest.raises(error, match=rf"^limit must be .*, got {limit!r}$"):
        bulkhead.resize(limit)
    assert bulkhead.limit == 5


@pytest.mark.parametrize(
    ("level", "error", "message"),
    [
        ("urgent", ValueError, "priority must be one of 'probe', "),
        (1, TypeError, "priority must be a Priority or one of "),
    ],
)
def test_bad_priority_of_a_block_is_refused(level: Any, error: type[Exception], message: str):
    """When the block is made, before it is entered."""
    with pytest.raises(error, match=f"^{message}"):
        Bulkhead("b", 5, priority="default").calling(level)


def test_priority_of_a_block_is_refused_where_all_calls_are_alike():
    """It would be of no effect."""
    with pytest.raises(TypeError, match=r"^priority goes with priority= only, got 'critical'$"):
        Bulkhead("b", 5).calling("critical")


def test_good_arguments_are_taken_in_every_form():
    """Durations as timedeltas, priorities by name, limits of either kind."""
    bulkhead = Bulkhead(
        "b",
        Gradient(initial=8),
        max_wait=timedelta(milliseconds=500),
        max_queue=0,
        threads=True,
        priority=Priority.SHEDDABLE,
        shares={"default": 1, Priority.SHEDDABLE: 1.0},
        reserve=0,
        order="newest-first",
        max_keys=1,
        drops=(TimeoutError, lambda exc: False),
    )
    assert (bulkhead.name, bulkhead.max_wait, bulkhead.limit) == ("b", 0.5, 8)
