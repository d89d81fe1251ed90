"""What a throttle refuses to be made of."""

from __future__ import annotations

import asyncio
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from tests.support.naming import named

from resilient import AdaptiveThrottle, PipelineOrderError

BAD_ARGUMENTS: list[tuple[str, object, type[Exception], str]] = [
    ("name", "", ValueError, "must not be empty"),
    ("name", None, TypeError, "must be text"),
    ("k", 0.99, ValueError, "must be at least 1"),
    ("k", -2, ValueError, "must be at least 1"),
    ("k", math.nan, ValueError, "must be a number that is finite"),
    ("k", math.inf, ValueError, "must be a number that is finite"),
    ("k", True, TypeError, "must be a number"),
    ("k", "2", TypeError, "must be a number"),
    ("k", None, TypeError, "must be a number"),
    ("window", 0, ValueError, "must be greater than 0"),
    ("window", timedelta(seconds=-1), ValueError, "must be greater than 0"),
    ("window", math.nan, ValueError, "must be a number of seconds or a timedelta that is finite"),
    ("window", math.inf, ValueError, "must be a number of seconds or a timedelta that is finite"),
    ("window", "2m", TypeError, "must be a number of seconds or a timedelta"),
    ("window", None, TypeError, "must be a number of seconds or a timedelta"),
    ("max_rejection", 0, ValueError, "must be greater than 0"),
    ("max_rejection", 1.01, ValueError, "must be at most 1"),
    ("max_rejection", math.nan, ValueError, "must be a ratio that is finite"),
    ("max_rejection", "90%", TypeError, "must be a ratio"),
    ("min_calls", 0, ValueError, "must be at least 1"),
    ("min_calls", 20.0, TypeError, "must be a whole number"),
    ("min_calls", True, TypeError, "must be a whole number"),
    ("on", (), ValueError, "must name at least one type or predicate"),
    ("on", "OSError", TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("on", asyncio.CancelledError, ValueError, "must name types below Exception"),
    ("on", (OSError, 5), TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("exclude", KeyboardInterrupt, ValueError, "must name types below Exception"),
    ("exclude", None, TypeError, "must be an exception type, a predicate, or a tuple of these"),
    ("clock", 0.0, TypeError, "must be callable"),
    ("random", 0.5, TypeError, "must be callable"),
]


@pytest.mark.parametrize(("parameter", "value", "error", "rule"), BAD_ARGUMENTS, ids=str)
def test_bad_argument_is_refused(parameter: str, value: object, error: type[Exception], rule: str) -> None:
    """At once, with parameter, rule and value."""
    arguments: dict[str, Any] = {"name": "t", parameter: value}

    with pytest.raises(error, match=rf"^{parameter} .*{rule}.*, got "):
        AdaptiveThrottle(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 1},
        {"k": 1_000},
        {"window": timedelta(minutes=2)},
        {"window": 1e-6},
        {"max_rejection": 1},
        {"max_rejection": 1e-9},
        {"min_calls": 1},
        {"min_calls": 10**12},
        {"on": [OSError, lambda _: True]},
        {"exclude": {LookupError}},
    ],
    ids=named,
)
def test_odd_but_good_arguments_are_taken(arguments: dict[str, Any]) -> None:
    """And a call gets through."""
    assert AdaptiveThrottle("t", **arguments).call(int) == 0


def test_is_shared_and_not_copied() -> None:
    """As every policy: it refuses to be pickled, and to be applied twice to one function."""
    throttle = AdaptiveThrottle("t")

    with pytest.raises(TypeError, match="AdaptiveThrottle 't' cannot be pickled"):
        pickle.dumps(throttle)
    with pytest.raises(PipelineOrderError, match="a policy applied twice would count every call twice"):
        throttle(throttle(lambda: None))
